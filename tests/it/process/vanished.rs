//! Readers that vanish without a close, as after a failure of their machine or network.
//!
//! The test runs in its own network namespace, in which packets to a loopback address can be dropped.

use std::{net::SocketAddr, os::unix::fs::MetadataExt, process::Command, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    child::{Child, WAIT_MAX, eventually},
    relay::RelayProcess,
    site::{STREAM, Site},
};

const NAME: &str = "process::vanished::readers_that_vanish_are_closed_and_others_read_on";
/// Variable of the process in the network namespace.
const INSIDE: &str = "TRUNKLINE_TEST_INSIDE";

/// The address of the readers that vanish.
const FAR: [u8; 4] = [127, 0, 0, 2];
const NEAR: [u8; 4] = [127, 0, 0, 1];

/// Commands that drop packets to the readers. The rule must precede the table of local addresses.
const DROP: [&str; 3] =
    ["rule add pref 100 lookup local", "rule del pref 0", "rule add pref 10 to 127.0.0.2 blackhole"];

/// About 90 s are expected: 15 s until data is sent, and 75 s without an acknowledgement. The kernel's default is a
/// quarter of an hour.
const CLOSED_WITHIN: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_vanish_are_closed_and_others_read_on() {
    if std::env::var_os(INSIDE).is_none() {
        return run_inside().await;
    }
    ip("link set lo up");
    let site = Site::start().await;
    let relay = RelayProcess::live(&site).await;
    let mut near = read(&relay, NEAR, &accept("application/x-ndjson")).await;
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let far = [
        read(&relay, FAR, &accept("application/x-ndjson")).await,
        read(&relay, FAR, &accept("text/event-stream")).await,
        read(&relay, FAR, websocket).await,
    ];
    assert_eq!(readers(&relay).await, 4);
    DROP.into_iter().for_each(ip);
    eventually("the readers are closed", CLOSED_WITHIN, async || (readers(&relay).await == 1).then_some(())).await;
    site.platform.emit(1);
    let mut text = String::new();
    while !text.contains("\"sequence\":\"1\"") {
        let mut bytes = [0; 4_096];
        let len = timeout(WAIT_MAX, near.read(&mut bytes)).await.expect("the event in time").unwrap();
        assert_ne!(len, 0, "the remaining reader was closed: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    drop(far);
}

/// Runs this test in a network namespace.
async fn run_inside() {
    let folder = tempfile::tempdir().unwrap();
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let mut command = Command::new("unshare");
    command.args(if is_root { &["--net"][..] } else { &["--map-root-user", "--net"] });
    command.arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1");
    let mut child = Child::spawn(folder.path(), command);
    let code = child.wait_for_exit(CLOSED_WITHIN + 4 * WAIT_MAX).await;
    assert_eq!(code, 0, "{}", child.printed_output());
    assert!(child.stdout().contains("1 passed"), "{}", child.printed_output());
}

fn ip(arguments: &str) {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().expect("`ip` of the package iproute2 is needed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn accept(form: &str) -> String {
    format!("Accept: {form}\r\n")
}

/// A reader at this address that has received the response head.
async fn read(relay: &RelayProcess, from: [u8; 4], headers: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let to: SocketAddr = relay.consumers.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!("GET /v1/streams/{STREAM}/events HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    timeout(WAIT_MAX, stream.read_exact(&mut head)).await.expect("an answer in time").unwrap();
    assert!([b"HTTP/1.1 200", b"HTTP/1.1 101"].contains(&&head), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Number of readers in the status.
async fn readers(relay: &RelayProcess) -> u64 {
    let status = relay.status().await;
    let subscribers = status["subscribers"].as_object().unwrap();
    subscribers.values().map(|count| count.as_u64().unwrap()).sum()
}
