//! Network paths and foreign hosts between the daemon and a platform.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::SinkExt;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep_until,
};
use tokio_tungstenite::{
    accept_async,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use trunkline::clock;

const CHUNK_LEN: usize = 16 * 1024;
/// Chunks in flight in one direction. At the limit, the proxy stops reading.
const IN_FLIGHT_MAX: usize = 1_024;

/// A TCP proxy to the platform that can be slow or disconnected.
pub(crate) struct TcpProxy {
    address: SocketAddr,
    state: Arc<Mutex<TcpProxyState>>,
    _stop: DropGuard,
}

#[derive(Default)]
struct TcpProxyState {
    one_way: Duration,
    is_down: bool,
    /// Ends the existing connections.
    connections: CancellationToken,
    /// The heads of upgrades.
    upgrades: Vec<String>,
}

impl TcpProxy {
    pub(crate) async fn to(platform: SocketAddr) -> Self {
        let state = Arc::new(Mutex::new(TcpProxyState::default()));
        let shared = Arc::clone(&state);
        let (address, stop) = listen(move |client| carry(client, platform, Arc::clone(&shared))).await;
        Self { address, state, _stop: stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds `time` to every round trip.
    pub(crate) fn add_round_trip(&self, time: Duration) {
        self.state.lock().one_way = time / 2;
    }

    /// Ends every connection and accepts no other.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.is_down = true;
        std::mem::take(&mut state.connections).cancel();
    }

    pub(crate) fn restore(&self) {
        self.state.lock().is_down = false;
    }

    /// The targets of the forwarded upgrades.
    pub(crate) fn upgrades(&self) -> Vec<String> {
        let target = |head: &String| head.split(' ').nth(1).map(str::to_owned);
        self.heads().iter().filter_map(target).collect()
    }

    /// The bearer tokens of the forwarded upgrades.
    pub(crate) fn bearer_tokens(&self) -> Vec<String> {
        let bearer = |head: &String| {
            head.lines().find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("authorization: bearer ")
                    .map(|_| line["authorization: bearer ".len()..].to_owned())
            })
        };
        self.heads().iter().filter_map(bearer).collect()
    }

    fn heads(&self) -> Vec<String> {
        self.state.lock().upgrades.clone()
    }
}

/// Accepts connections until the guard is dropped.
pub(super) async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, DropGuard)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (stopped, spawner) = (stop.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(Ok((client, _))) = stopped.run_until_cancelled(listener.accept()).await {
            let conversation = serve(client);
            let stopped = stopped.clone();
            spawner.spawn(async move { stopped.run_until_cancelled(conversation).await });
        }
    });
    (address, stop.drop_guard())
}

async fn carry(client: TcpStream, platform: SocketAddr, state: Arc<Mutex<TcpProxyState>>) {
    let (cut, connections) = {
        let state = state.lock();
        (state.is_down, state.connections.clone())
    };
    if cut {
        return;
    }
    let Ok(server) = TcpStream::connect(platform).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let conversation =
        async { tokio::join!(pump(from_client, to_server, &state, true), pump(from_server, to_client, &state, false)) };
    connections.run_until_cancelled(conversation).await;
}

/// Forwards each chunk after the delay.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &Mutex<TcpProxyState>,
    from_client: bool,
) {
    let (sender, mut on_their_way) = mpsc::channel::<(std::time::Instant, Vec<u8>)>(IN_FLIGHT_MAX);
    let read = async move {
        let mut chunk = vec![0; CHUNK_LEN];
        while let Ok(len @ 1..) = from.read(&mut chunk).await {
            if from_client {
                record_upgrade(state, &chunk[..len]);
            }
            let due = clock::now() + state.lock().one_way;
            if sender.send((due, chunk[..len].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = on_their_way.recv().await {
            sleep_until(due.into()).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(read, write);
}

fn record_upgrade(state: &Mutex<TcpProxyState>, chunk: &[u8]) {
    let text = String::from_utf8_lossy(chunk);
    if text.starts_with("GET ") && text.to_lowercase().contains("upgrade: websocket") {
        state.lock().upgrades.push(text.into_owned());
    }
}

/// A server that records requests and answers each with the same response.
pub(crate) struct ForeignHost {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
}

impl ForeignHost {
    /// `answer` is the head of the response without its empty line.
    pub(crate) async fn start(answer: &str) -> Self {
        let answer: Arc<str> = format!("{answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&requests);
        let (address, stop) =
            listen(move |client| listen_and_answer(client, Arc::clone(&answer), Arc::clone(&shared))).await;
        Self { address, requests, _stop: stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first chunk of each connection.
    pub(crate) fn received_requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

async fn listen_and_answer(mut client: TcpStream, answer: Arc<str>, requests: Arc<Mutex<Vec<String>>>) {
    let mut chunk = vec![0; CHUNK_LEN];
    let Ok(len) = client.read(&mut chunk).await else { return };
    requests.lock().push(String::from_utf8_lossy(&chunk[..len]).into_owned());
    drop(client.write_all(answer.as_bytes()).await);
    drop(client.shutdown().await);
}

/// A platform that sends fragments of an endless message with pings between them on every socket.
pub(crate) struct GarbageServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl GarbageServer {
    pub(crate) async fn start() -> Self {
        let (address, stop) = listen(send_garbage).await;
        Self { address, _stop: stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn send_garbage(client: TcpStream) {
    let Ok(mut socket) = accept_async(client).await else { return };
    let mut part = Data::Text;
    loop {
        let frame = Frame::message("[", OpCode::Data(part), false);
        if socket.send(Message::Frame(frame)).await.is_err() || socket.send(Message::Ping("".into())).await.is_err() {
            return;
        }
        part = Data::Continue;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A platform that answers upgrades by a script. The last reply of the script is repeated.
pub(crate) struct ScriptedPlatform {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
}

/// The reply to one upgrade.
#[derive(Clone)]
pub(crate) enum UpgradeReply {
    /// This status.
    Refused(u16),
    /// The upgrade succeeds, these bytes follow, and the connection stays open.
    Open(Vec<u8>),
    /// The upgrade succeeds, these bytes follow, and the connection is closed.
    Ended(Vec<u8>),
}

impl ScriptedPlatform {
    pub(crate) async fn start(script: Vec<UpgradeReply>) -> Self {
        let targets = Arc::new(Mutex::new(Vec::new()));
        let (shared, script) = (Arc::clone(&targets), Arc::new(script));
        let (address, stop) =
            listen(move |client| follow_script(client, Arc::clone(&script), Arc::clone(&shared))).await;
        Self { address, targets, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// The target of each upgrade.
    pub(crate) fn targets(&self) -> Vec<String> {
        self.targets.lock().clone()
    }
}

async fn follow_script(mut client: TcpStream, script: Arc<Vec<UpgradeReply>>, targets: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let step = {
        let mut targets = targets.lock();
        targets.push(head.split(' ').nth(1).unwrap().to_owned());
        script[(targets.len() - 1).min(script.len() - 1)].clone()
    };
    let (bytes, stays) = match step {
        UpgradeReply::Refused(status) => {
            (format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes(), false)
        }
        UpgradeReply::Open(frames) => ([accepted(&head), frames].concat(), true),
        UpgradeReply::Ended(frames) => ([accepted(&head), frames].concat(), false),
    };
    drop(client.write_all(&bytes).await);
    drop(client.flush().await);
    let mut chunk = vec![0; CHUNK_LEN];
    if !stays {
        drop(client.shutdown().await);
    }
    while let Ok(1..) = client.read(&mut chunk).await {}
}

/// The reply to a successful upgrade.
fn accepted(head: &str) -> Vec<u8> {
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let accept = derive_accept_key(key.unwrap().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

/// Numbered events, one per frame.
pub(crate) fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| frame(0x81, format!(r#"[{{"sequenceId":{number}}}]"#).as_bytes())).collect()
}

/// A short frame with this first header byte.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).ok().filter(|len| *len < 126).expect("a short frame");
    [&[first, len], payload].concat()
}
