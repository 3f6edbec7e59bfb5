//! The listener with a few resources: one responds, one panics, one upgrades to an echo, one never ends.

use axum::{
    Extension, Router,
    body::Body,
    http::{HeaderMap, StatusCode, Uri},
    routing::get,
};
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::tasks::Tasks;

fn three_pages() -> Router {
    let echo =
        || async { (StatusCode::SWITCHING_PROTOCOLS, [("upgrade", "echo")], Extension(UpgradeExtension::new(echo))) };
    let long = || async { "x".repeat(LONG) };
    let endless =
        || async { (Extension(EndlessBody), Body::from_stream(stream::pending::<Result<Bytes, io::Error>>())) };
    let host = |headers: HeaderMap| async move { headers["host"].to_str().unwrap().to_owned() };
    let pages = Router::new().route("/", get(fine)).route("/broken", get(fine)).route("/echo", get(echo));
    pages.route("/long", get(long)).route("/endless", get(endless)).route("/host", get(host))
}

/// Bytes of a long response.
const LONG: usize = 8 * 1024 * 1024;

async fn fine(uri: Uri) -> &'static str {
    assert_ne!(uri.path(), "/broken", "a defect");
    "fine"
}

async fn echo(mut socket: AcceptedSocket, received: Bytes) {
    socket.write_all(&received).await.unwrap();
    let mut more = [0; 64];
    let read = socket.read(&mut more).await.unwrap();
    socket.write_all(&more[..read]).await.unwrap();
}

fn start(limits: HttpListener) -> (SocketAddr, Tasks) {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), limits).unwrap();
    let address = listener.address().unwrap();
    let mut tasks = Tasks::new("listener");
    let stop = tasks.stop();
    tasks.start("three pages", async move { Ok(listener.serve(RouterSwitch::new(three_pages()), stop).await?) });
    (address, tasks)
}

async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 1_024];
    let read = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_and_no_other() {
    let (address, tasks) = start(HttpListener { connections_max: 2, ..HttpListener::default() });
    let mut other = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut other, "/").await.ends_with("fine"));
    for _ in 0..5 {
        let mut unlucky = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut unlucky, "/broken").await;
        assert!(answer.is_empty() || answer.contains("503"), "{answer}");
    }
    assert!(ask(&mut other, "/").await.ends_with("fine"));
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_speaks_http_2_is_refused() {
    let (address, tasks) = start(HttpListener::default());
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(10), client.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the connection is open");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}

/// The kernel's connection list shows which timer a connection has: 02 is the keep-alive timer.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_probes_a_silent_client() {
    let (address, tasks) = start(HttpListener::default());
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut client, "/").await.ends_with("fine"));
    let ends = [address.port(), client.local_addr().unwrap().port()].map(|port| format!("0100007F:{port:04X}"));
    let mut timers = Vec::new();
    for _ in 0..1_000 {
        let listed = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let ours = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = ours.filter(|fields| fields.len() > 5 && fields[1] == ends[0] && fields[2] == ends[1]);
        timers = ours.map(|fields| fields[5].to_owned()).collect();
        if timers.iter().any(|timer| timer.starts_with("02:")) {
            return tasks.drain(Duration::from_secs(10)).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection is not probed: {timers:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_closes_a_peer_that_acknowledges_nothing() {
    use rustix::net::sockopt;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    notice_vanished_peer(&stream, Duration::from_secs(75)).unwrap();
    assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 75_000);
    assert!(sockopt::socket_keepalive(&stream).unwrap());
    let longest = sockopt::tcp_keepidle(&stream).unwrap()
        + sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
    assert!(longest <= Duration::from_secs(90), "{longest:?}");
}

async fn ask_and_end(address: SocketAddr, path: &str) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(10), client.read_to_end(&mut answer)).await;
    ended.expect("the connection is closed").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_half_closed_client_gets_a_complete_answer_but_no_endless_one() {
    let (address, tasks) = start(HttpListener::default());
    assert!(ask_and_end(address, "/").await.ends_with("fine"));
    let long = ask_and_end(address, "/long").await;
    let (_, body) = long.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len(), LONG, "more than all buffers hold");
    ask_and_end(address, "/endless").await;
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn an_absolute_target_counts_in_place_of_the_host_header() {
    let (address, tasks) = start(HttpListener::default());
    for (target, host) in
        [("http://evil.test/host", "evil.test"), ("/host", "localhost"), ("http://[::1]:9/host", "[::1]:9")]
    {
        let mut client = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut client, target).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(host), "{target}: {answer}");
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut client, "http://user@localhost/host").await.starts_with("HTTP/1.1 400 "));
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_does_not_delay_the_shutdown() {
    let (address, tasks) = start(HttpListener { header_timeout: Duration::from_secs(600), ..HttpListener::default() });
    let mut used = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut used, "/").await.ends_with("fine"));
    let mut fresh = TcpStream::connect(address).await.unwrap();
    let (drained, closed) = tokio::join!(tasks.drain(Duration::from_secs(10)), async {
        (used.read(&mut [0; 16]).await.unwrap_or(0), fresh.read(&mut [0; 16]).await.unwrap_or(0))
    });
    drained.unwrap();
    assert_eq!(closed, (0, 0));
}

#[tokio::test]
async fn an_upgraded_connection_runs_its_handler_and_holds_its_permit() {
    let (address, tasks) = start(HttpListener { connections_max: 1, ..HttpListener::default() });
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nearly") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
    }
    let head = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(!head.contains("content-length"), "a 101 has no body: {head}");
    let mut second = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut second, "/").await.contains("503"));
    stream.write_all(b"later").await.unwrap();
    let mut later = Vec::new();
    stream.read_to_end(&mut later).await.unwrap();
    assert_eq!(later, b"later");
    tasks.drain(Duration::from_secs(10)).await.unwrap();
}
