//! A low limit of file descriptors: consumers get the rest, and no other part runs out of them.

use std::{process::Command, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    child::{Child, WAIT_MAX, eventually},
    relay::RelayProcess,
    site::Site,
};

/// Hard limit of descriptors of the process. The soft limit is half of it.
const LIMIT: usize = 128;

async fn start(site: &Site) -> RelayProcess {
    let script = format!("ulimit -Sn {} && ulimit -Hn {LIMIT} && exec \"$0\" \"$@\"", LIMIT / 2);
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_trunkline"), "run", "--config", site.config()]);
    let relay = RelayProcess::of(Child::spawn(site.folder.path(), command)).await;
    relay.wait_until_live().await;
    relay
}

/// A connection with a streaming request, and the first bytes of its response.
async fn subscribe(relay: &RelayProcess) -> Option<(TcpStream, String)> {
    let address = relay.consumers.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = "GET /v1/streams/calls/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = [0; 12];
    timeout(WAIT_MAX, stream.read_exact(&mut head)).await.expect("an answer in time").ok()?;
    Some((stream, String::from_utf8_lossy(&head).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_never_exhaust_the_descriptors_of_streams_and_operators() {
    let site = Site::start().await;
    let relay = start(&site).await;
    let (mut served, mut refused) = (Vec::new(), 0);
    for _ in 0..LIMIT {
        match subscribe(&relay).await {
            Some((stream, head)) if head == "HTTP/1.1 200" => served.push(stream),
            Some((_, head)) => {
                assert_eq!(head, "HTTP/1.1 503");
                refused += 1;
            }
            None => refused += 1,
        }
    }
    assert!(served.len() >= 8, "some consumers are served: {}", served.len());
    assert!(refused > 0, "some consumers are refused");
    let page = relay.text(&relay.admin, "/metrics").await;
    assert!(page.contains(&format!("process_max_fds {LIMIT}\n")), "the soft limit was raised");
    let reported = &relay.status().await["connections_max"]["consumers"];
    assert_eq!(reported, served.len(), "as many consumers as the status reports");
    relay.operator_request("streams/calls/rotate").await;
    eventually("the stream has dialled a second socket", WAIT_MAX, async || {
        (relay.stream().await["rotations"] == 1).then_some(())
    })
    .await;
    assert_eq!(relay.text(&relay.admin, "/healthz").await, "ok\n");
    site.platform.emit(1);
    let mut chunk = [0; 4_096];
    let read = async {
        loop {
            let read = served[0].read(&mut chunk).await.unwrap();
            assert_ne!(read, 0, "the subscriber was disconnected");
            if String::from_utf8_lossy(&chunk[..read]).contains("\"sequence\":\"1\"") {
                return;
            }
        }
    };
    timeout(WAIT_MAX.max(Duration::from_secs(30)), read).await.expect("the event arrives");
    drop(served);
    eventually("a connection permit is free again", WAIT_MAX, async || {
        subscribe(&relay).await.filter(|(_, head)| head == "HTTP/1.1 200").map(drop)
    })
    .await;
}
