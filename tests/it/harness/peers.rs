//! Peers that the simulator does not provide: a proxy, a platform that never replies, and a platform with an unusual but
//! valid upgrade reply.

use std::{net::SocketAddr, sync::Arc};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tokio_util::sync::DropGuard;

use super::tcp::listen;

/// An HTTP proxy that connects every host to the platform.
pub(crate) struct ForwardProxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
}

impl ForwardProxy {
    pub(crate) async fn to(platform: SocketAddr) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        let (address, stop) = listen(move |client| forward(client, platform, Arc::clone(&noted))).await;
        Self { address, requests, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether a request started with this text.
    pub(crate) fn was_requested(&self, start: &str) -> bool {
        self.requests.lock().iter().any(|request| request.starts_with(start))
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

async fn forward(mut client: TcpStream, platform: SocketAddr, requests: Arc<Mutex<Vec<String>>>) {
    let Some(head) = head(&mut client).await else { return };
    let first = head.lines().next().unwrap_or_default().to_owned();
    requests.lock().push(first.clone());
    let Ok(mut server) = TcpStream::connect(platform).await else { return };
    if first.starts_with("CONNECT ") {
        if client.write_all(b"HTTP/1.0 200 Connection established\r\n\r\n").await.is_err() {
            return;
        }
    } else if server.write_all(head.as_bytes()).await.is_err() {
        // The platform accepts absolute URLs, as RFC 9112 section 3.2.2 requires.
        return;
    }
    drop(copy_bidirectional(&mut client, &mut server).await);
}

/// The request head up to the empty line; `None` if the client disconnects first.
async fn head(client: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A platform that accepts connections and never replies.
pub(crate) struct SilentPlatform {
    address: SocketAddr,
    counts: Arc<Mutex<ConnectionCounts>>,
    _stop: DropGuard,
}

#[derive(Default)]
struct ConnectionCounts {
    opened: u64,
    closed: u64,
}

impl SilentPlatform {
    pub(crate) async fn start() -> Self {
        let counts = Arc::new(Mutex::new(ConnectionCounts::default()));
        let shared = Arc::clone(&counts);
        let (address, stop) = listen(move |client| hold_silently(client, Arc::clone(&shared))).await;
        Self { address, counts, _stop: stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn opened(&self) -> u64 {
        self.counts.lock().opened
    }

    /// Number of connections that the daemon holds open.
    pub(crate) fn open(&self) -> u64 {
        let counts = self.counts.lock();
        counts.opened - counts.closed
    }
}

async fn hold_silently(mut client: TcpStream, counts: Arc<Mutex<ConnectionCounts>>) {
    counts.lock().opened += 1;
    let mut chunk = [0; 1024];
    while client.read(&mut chunk).await.is_ok_and(|len| len > 0) {}
    counts.lock().closed += 1;
}

/// A platform that answers upgrades with an interim response, then with lists in its headers, and sends its first event
/// in the same packet.
pub(crate) struct ListingPlatform {
    address: SocketAddr,
    _stop: DropGuard,
}

impl ListingPlatform {
    pub(crate) async fn start() -> Self {
        let (address, stop) = listen(answer_with_lists).await;
        Self { address, _stop: stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn answer_with_lists(mut client: TcpStream) {
    let Some(head) = head(&mut client).await else { return };
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = derive_accept_key(key.as_bytes());
    let mut answer = format!(
        "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\
         Connection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    let event = br#"[{"sequenceId":1}]"#;
    answer.extend([0x81, u8::try_from(event.len()).unwrap()]);
    answer.extend(event);
    if client.write_all(&answer).await.is_err() {
        return;
    }
    let mut socket = WebSocketStream::from_raw_socket(client, Role::Server, None).await;
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
}
