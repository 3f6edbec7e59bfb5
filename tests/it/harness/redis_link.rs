//! A TCP proxy in front of a Redis server that can hold data and deliver it late.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Which data the proxy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HoldMode {
    Nothing,
    /// Requests of the first connection. Later connections are not affected.
    First,
    /// Replies of the server. It still receives and executes commands.
    Replies,
    /// All data of the existing connections, in both directions and without a close. Later connections are not affected.
    Before(u64),
    /// All data in both directions, as in a network partition.
    Everything,
}

/// Counts replies that contain a word.
#[derive(Debug, Default)]
struct WatchedReply {
    word: Vec<u8>,
    count: u64,
}

/// A proxy; drop closes it and all its connections.
pub(crate) struct RedisLink {
    port: u16,
    hold_mode: watch::Sender<HoldMode>,
    connections: Arc<AtomicU64>,
    held_appends: Arc<AtomicU64>,
    watched_reply: Arc<Mutex<WatchedReply>>,
    _traffic: JoinSet<()>,
}

impl RedisLink {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (held, mut traffic) = (watch::Sender::new(HoldMode::Nothing), JoinSet::new());
        let (hold, connections) = (held.subscribe(), Arc::new(AtomicU64::new(0)));
        let opened = Arc::clone(&connections);
        let held_appends = Arc::new(AtomicU64::new(0));
        let watched = Arc::new(Mutex::new(WatchedReply::default()));
        let (appends, answers) = (Arc::clone(&held_appends), Arc::clone(&watched));
        traffic.spawn(async move {
            let mut lanes = JoinSet::new();
            for number in 0_u64.. {
                let (here, _) = listener.accept().await.unwrap();
                let Ok(there) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { continue };
                let (from, to) = (here.into_split(), there.into_split());
                let is_free = move |held: &HoldMode| match held {
                    HoldMode::Nothing | HoldMode::Replies => true,
                    HoldMode::First => number > 0,
                    HoldMode::Before(first) => number >= *first,
                    HoldMode::Everything => false,
                };
                let count = Arc::clone(&appends);
                let note = move |is_held: bool, bytes: &[u8]| {
                    count.fetch_add(u64::from(is_held && contains(bytes, b"XADD")), Ordering::Relaxed);
                };
                lanes.spawn(forward(from.0, to.1, hold.clone(), is_free, note));
                let answers_are_free = move |held: &HoldMode| match held {
                    HoldMode::Nothing | HoldMode::First => true,
                    HoldMode::Before(first) => number >= *first,
                    HoldMode::Replies | HoldMode::Everything => false,
                };
                let watched = Arc::clone(&answers);
                let note = move |_: bool, bytes: &[u8]| watched.lock().inspect(bytes);
                lanes.spawn(forward(to.0, from.1, hold.clone(), answers_are_free, note));
                opened.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, hold_mode: held, connections, held_appends, watched_reply: watched, _traffic: traffic }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Number of appends that were held. Each arrives when the hold ends.
    pub(crate) fn held_appends(&self) -> u64 {
        self.held_appends.load(Ordering::Relaxed)
    }

    /// Starts to count replies that contain this word.
    pub(crate) fn watch_replies(&self, word: &str) {
        *self.watched_reply.lock() = WatchedReply { word: word.as_bytes().to_vec(), count: 0 };
    }

    /// Number of replies with the word.
    pub(crate) fn watched_replies(&self) -> u64 {
        self.watched_reply.lock().count
    }

    /// Existing connections transfer no more data, without a close.
    pub(crate) fn lose_connections(&self) {
        self.hold(HoldMode::Before(self.connections.load(Ordering::Relaxed)));
    }

    /// Changes what is held. Data that is no longer held is delivered.
    pub(crate) fn hold(&self, held: HoldMode) {
        self.hold_mode.send_replace(held);
    }
}

impl WatchedReply {
    fn inspect(&mut self, bytes: &[u8]) {
        self.count += u64::from(!self.word.is_empty() && contains(bytes, &self.word));
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|part| part == word)
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut held: watch::Receiver<HoldMode>,
    is_free: impl Fn(&HoldMode) -> bool,
    note: impl Fn(bool, &[u8]),
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut bytes).await {
        let is_held = !is_free(&held.borrow());
        note(is_held, &bytes[..len]);
        if held.wait_for(&is_free).await.is_err() || to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}
