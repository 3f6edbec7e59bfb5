//! A proxy in front of a Redis server that parses the protocol: it forwards every command, and while a fault is set it
//! replaces the replies to chosen commands.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
};
use tokio_util::sync::DropGuard;

use super::tcp::listen;

/// Limit of pending replies of one connection.
const PENDING_MAX: usize = 4_096;
const CHUNK_LEN: usize = 64 << 10;

/// Commands of connections and transactions, or that a server answers in every state.
const OF_CONNECTIONS: [&str; 17] = [
    "HELLO",
    "AUTH",
    "CLIENT",
    "SELECT",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH",
    "UNWATCH",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PUBLISH",
    "INFO",
    "CONFIG",
    "ROLE",
    "CLUSTER",
    "WAIT",
];
const READS: [&str; 11] =
    ["PING", "GET", "HMGET", "HGETALL", "SMEMBERS", "TYPE", "PTTL", "XINFO", "XRANGE", "XREVRANGE", "XREAD"];

/// An error and the commands that a server in this state refuses.
pub(crate) const ERRORS: [(CommandMatch, &str); 14] = [
    (CommandMatch::All, "LOADING Redis is loading the dataset in memory"),
    (CommandMatch::All, "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    (CommandMatch::All, "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    (CommandMatch::All, "NOAUTH Authentication required."),
    (CommandMatch::Keyed, "CLUSTERDOWN The cluster is down"),
    (CommandMatch::Keyed, "CLUSTERDOWN Hash slot not served"),
    (CommandMatch::Keyed, "TRYAGAIN Multiple keys request during rehashing of slot"),
    (CommandMatch::Keyed, "MOVED 3999 127.0.0.1:1"),
    (CommandMatch::Keyed, "ASK 3999 127.0.0.1:1"),
    (CommandMatch::Keyed, "NOPERM this user has no permissions to access one of the keys used as arguments"),
    (CommandMatch::Writes, "READONLY You can't write against a read only replica."),
    (CommandMatch::Writes, "OOM command not allowed when used memory > 'maxmemory'."),
    (CommandMatch::Writes, "NOREPLICAS Not enough good replicas to write."),
    (CommandMatch::Writes, "MISCONF Errors writing to the AOF file: No space left on device"),
];

/// Its first word.
pub(crate) fn error_code(error: &str) -> &str {
    error.split(' ').next().unwrap()
}

/// The commands that a fault affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandMatch {
    /// All except those of connections and transactions.
    All,
    /// Commands with a key.
    Keyed,
    /// Commands that may change a key, including scripts.
    Writes,
    /// All commands.
    Every,
    /// One command.
    Named(&'static str),
    /// Reads of entries up to a given id, which only readers use.
    Ranges,
}

/// The replacement of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultReply {
    /// This error. The server never gets the command. Within a transaction it aborts the transaction, as in a real server.
    Error(&'static str),
    /// This text. The server never gets the command.
    Text(&'static str),
    /// The server gets this command and all later ones of the connection after this delay.
    Late(Duration),
    /// The server executes the command. Half of its reply arrives, then the connection is closed.
    Half,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RespFault {
    pub(crate) commands: CommandMatch,
    pub(crate) reply: FaultReply,
}

/// A proxy. Drop closes it and all its connections.
pub(crate) struct RespProxy {
    address: SocketAddr,
    fault: watch::Sender<Option<RespFault>>,
    replaced: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl RespProxy {
    pub(crate) async fn to(server: u16) -> Self {
        let (fault, replaced) = (watch::Sender::new(None), Arc::new(AtomicU64::new(0)));
        let (now, count) = (fault.subscribe(), Arc::clone(&replaced));
        let (address, stop) = listen(move |client| forward(client, server, now.clone(), Arc::clone(&count))).await;
        Self { address, fault, replaced, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub(crate) fn set(&self, fault: RespFault) {
        self.fault.send_replace(Some(fault));
    }

    /// Ends the fault.
    pub(crate) fn clear(&self) {
        self.fault.send_replace(None);
    }

    /// Number of replaced replies.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }
}

/// A pending reply.
#[derive(Debug, PartialEq, Eq)]
enum ExpectedReply {
    /// The reply of the server.
    Forwarded,
    /// This text instead of the server's reply.
    Replaced(Bytes),
    /// This text; the server sends no reply.
    Injected(Bytes),
    Half,
}

async fn forward(client: TcpStream, server: u16, fault: watch::Receiver<Option<RespFault>>, replaced: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (expect, expected) = mpsc::channel(PENDING_MAX);
    let requests = RequestPump { fault, replaced, expect, to_server, replies_off: false, transaction: None };
    // The first direction that ends closes both connections.
    tokio::select! {
        _ = requests.run(RespFrames::of(from_client)) => (),
        _ = replies(RespFrames::of(from_server), expected, to_client) => (),
    }
}

/// Forwards the commands of one client to the server.
struct RequestPump {
    fault: watch::Receiver<Option<RespFault>>,
    replaced: Arc<AtomicU64>,
    expect: mpsc::Sender<ExpectedReply>,
    to_server: OwnedWriteHalf,
    /// The client has switched replies off.
    replies_off: bool,
    transaction: Option<TransactionState>,
}

/// How the open transaction will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransactionState {
    Open,
    Aborted,
}

impl RequestPump {
    /// Runs until one side closes the connection.
    async fn run(mut self, mut commands: RespFrames) -> Option<()> {
        loop {
            let command = commands.next().await?;
            let words = words(&command);
            let name = words[0].to_ascii_uppercase();
            let fault = self.fault.borrow().filter(|fault| fault.commands.contain(&name, &words));
            match fault.map(|fault| fault.reply) {
                Some(FaultReply::Error(error)) => self.refuse(error).await?,
                Some(FaultReply::Text(text)) => self.inject(format!("${}\r\n{text}\r\n", text.len())).await?,
                Some(FaultReply::Late(time)) => {
                    self.replaced.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(time).await;
                    self.pass(&name, &words, &command).await?;
                }
                Some(FaultReply::Half) if !self.replies_off => self.send(&command, Some(ExpectedReply::Half)).await?,
                Some(FaultReply::Half) | None => self.pass(&name, &words, &command).await?,
            }
        }
    }

    async fn refuse(&mut self, error: &str) -> Option<()> {
        if self.transaction.is_some() {
            self.transaction = Some(TransactionState::Aborted);
        }
        self.inject(format!("-{error}\r\n")).await
    }

    async fn inject(&mut self, reply: String) -> Option<()> {
        self.replaced.fetch_add(1, Ordering::Relaxed);
        self.expect(ExpectedReply::Injected(reply.into())).await
    }

    async fn pass(&mut self, name: &str, words: &[String], command: &[u8]) -> Option<()> {
        match (name, words.get(1..).unwrap_or_default()) {
            ("CLIENT", [reply, state]) if reply.eq_ignore_ascii_case("REPLY") => {
                self.replies_off = state.eq_ignore_ascii_case("OFF");
                self.send(command, Some(ExpectedReply::Forwarded)).await
            }
            ("EXEC" | "DISCARD", _) => self.end_transaction(command).await,
            // With RESP3, their replies are pushes.
            ("SUBSCRIBE" | "UNSUBSCRIBE", _) => self.send(command, None).await,
            _ => {
                if name == "MULTI" {
                    self.transaction = Some(TransactionState::Open);
                }
                self.send(command, Some(ExpectedReply::Forwarded)).await
            }
        }
    }

    async fn end_transaction(&mut self, command: &[u8]) -> Option<()> {
        match self.transaction.take() {
            Some(TransactionState::Aborted) => {
                let aborted = b"-EXECABORT Transaction discarded because of previous errors.\r\n";
                self.send(b"*1\r\n$7\r\nDISCARD\r\n", Some(ExpectedReply::Replaced(Bytes::from_static(aborted)))).await
            }
            Some(TransactionState::Open) | None => self.send(command, Some(ExpectedReply::Forwarded)).await,
        }
    }

    /// Records the expected reply, then sends the command.
    async fn send(&mut self, command: &[u8], expected: Option<ExpectedReply>) -> Option<()> {
        if let Some(expected) = expected {
            if expected == ExpectedReply::Half {
                self.replaced.fetch_add(1, Ordering::Relaxed);
            }
            self.expect(expected).await?;
        }
        self.to_server.write_all(command).await.ok()
    }

    async fn expect(&self, expected: ExpectedReply) -> Option<()> {
        if self.replies_off {
            return Some(());
        }
        self.expect.send(expected).await.ok()
    }
}

impl CommandMatch {
    fn contain(self, name: &str, words: &[String]) -> bool {
        let of_connections = OF_CONNECTIONS.contains(&name);
        match self {
            Self::All => !of_connections,
            Self::Keyed => !of_connections && name != "PING",
            Self::Writes => !of_connections && !READS.contains(&name),
            Self::Every => true,
            Self::Named(only) => name == only,
            Self::Ranges => name == "XRANGE" && words.get(3).is_some_and(|end| end != "+"),
        }
    }
}

/// Forwards replies in the order of their commands. Pushes are forwarded immediately.
async fn replies(
    mut frames: RespFrames,
    mut expected: mpsc::Receiver<ExpectedReply>,
    mut to_client: OwnedWriteHalf,
) -> Option<()> {
    let mut pending = VecDeque::new();
    loop {
        while let Some(reply) = first_injected(&mut pending) {
            to_client.write_all(&reply).await.ok()?;
        }
        tokio::select! {
            biased;
            next = expected.recv() => pending.push_back(next?),
            frame = frames.next() => {
                let frame = frame?;
                if frame[0] == b'>' {
                    to_client.write_all(&frame).await.ok()?;
                } else {
                    answer(frame, &mut pending, &mut expected, &mut to_client).await?;
                }
            }
        }
    }
}

/// Takes the next reply if it does not need the server.
fn first_injected(pending: &mut VecDeque<ExpectedReply>) -> Option<Bytes> {
    match pending.pop_front()? {
        ExpectedReply::Injected(reply) => Some(reply),
        other @ (ExpectedReply::Forwarded | ExpectedReply::Replaced(_) | ExpectedReply::Half) => {
            pending.push_front(other);
            None
        }
    }
}

/// Writes the server's reply or its replacement.
async fn answer(
    frame: Bytes,
    pending: &mut VecDeque<ExpectedReply>,
    expected: &mut mpsc::Receiver<ExpectedReply>,
    to_client: &mut OwnedWriteHalf,
) -> Option<()> {
    loop {
        let next = match pending.pop_front() {
            Some(next) => next,
            None => expected.recv().await?,
        };
        match next {
            ExpectedReply::Injected(reply) => to_client.write_all(&reply).await.ok()?,
            ExpectedReply::Replaced(reply) => return to_client.write_all(&reply).await.ok(),
            ExpectedReply::Forwarded => return to_client.write_all(&frame).await.ok(),
            ExpectedReply::Half => {
                to_client.write_all(&frame[..frame.len() / 2]).await.ok()?;
                return None;
            }
        }
    }
}

/// One direction of a connection, frame by frame.
struct RespFrames {
    from: OwnedReadHalf,
    read: BytesMut,
}

impl RespFrames {
    fn of(from: OwnedReadHalf) -> Self {
        Self { from, read: BytesMut::with_capacity(CHUNK_LEN) }
    }

    /// The next frame; `None` when the connection is closed. Cancel-safe.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(len) = frame_len(&self.read) {
                return Some(self.read.split_to(len).freeze());
            }
            self.read.reserve(CHUNK_LEN);
            if !self.from.read_buf(&mut self.read).await.is_ok_and(|len| len > 0) {
                return None;
            }
        }
    }
}

/// The length of the first frame of RESP2 or RESP3; `None` while it is incomplete.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let line_len = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let count = || std::str::from_utf8(&bytes[1..line_len - 2]).unwrap().parse::<i64>().unwrap();
    let of_parts = |parts: i64| {
        let mut len = line_len;
        for _ in 0..parts {
            len += frame_len(bytes.get(len..)?)?;
        }
        Some(len)
    };
    match bytes[0] {
        b'$' | b'=' | b'!' => {
            let Ok(body_len) = usize::try_from(count()) else { return Some(line_len) };
            let len = line_len + body_len + 2;
            (bytes.len() >= len).then_some(len)
        }
        b'*' | b'~' | b'>' => of_parts(count()),
        b'%' => of_parts(2 * count()),
        // An attribute precedes its reply.
        b'|' => of_parts(2 * count() + 1),
        _ => Some(line_len),
    }
}

/// The words of a command.
fn words(command: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = &command[line_len(command)..];
    while !rest.is_empty() {
        let (head, len) = (line_len(rest), frame_len(rest).unwrap());
        words.push(String::from_utf8_lossy(&rest[head..len - 2]).into_owned());
        rest = &rest[len..];
    }
    words
}

fn line_len(bytes: &[u8]) -> usize {
    bytes.windows(2).position(|end| end == b"\r\n").unwrap() + 2
}
