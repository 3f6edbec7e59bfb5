//! A way to a server on which what is said can be held up, and arrives late.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What does not get through for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    /// What the first connection tells the server; later connections are free.
    First,
    /// What the server answers; it goes on hearing, and doing, what it is told.
    Answers,
    /// Everything of the connections before this one, both ways, and nobody is told; later ones are free.
    Before(u64),
    /// Everything, both ways: the server might as well be on another continent, with the cable cut.
    Everything,
}

/// Answers that are counted by a word in them.
#[derive(Debug, Default)]
struct Watched {
    word: Vec<u8>,
    count: u64,
}

/// It goes with the value, and every connection over it.
pub(crate) struct Road {
    port: u16,
    held: watch::Sender<Held>,
    connections: Arc<AtomicU64>,
    held_appends: Arc<AtomicU64>,
    watched: Arc<Mutex<Watched>>,
    _traffic: JoinSet<()>,
}

impl Road {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (held, mut traffic) = (watch::Sender::new(Held::Nothing), JoinSet::new());
        let (hold, connections) = (held.subscribe(), Arc::new(AtomicU64::new(0)));
        let opened = Arc::clone(&connections);
        let held_appends = Arc::new(AtomicU64::new(0));
        let watched = Arc::new(Mutex::new(Watched::default()));
        let (appends, answers) = (Arc::clone(&held_appends), Arc::clone(&watched));
        traffic.spawn(async move {
            let mut lanes = JoinSet::new();
            for number in 0_u64.. {
                let (here, _) = listener.accept().await.unwrap();
                let Ok(there) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { continue };
                let (from, to) = (here.into_split(), there.into_split());
                let is_free = move |held: &Held| match held {
                    Held::Nothing | Held::Answers => true,
                    Held::First => number > 0,
                    Held::Before(first) => number >= *first,
                    Held::Everything => false,
                };
                let count = Arc::clone(&appends);
                let note = move |is_held: bool, bytes: &[u8]| {
                    count.fetch_add(u64::from(is_held && contains(bytes, b"XADD")), Ordering::Relaxed);
                };
                lanes.spawn(carry(from.0, to.1, hold.clone(), is_free, note));
                let answers_are_free = move |held: &Held| match held {
                    Held::Nothing | Held::First => true,
                    Held::Before(first) => number >= *first,
                    Held::Answers | Held::Everything => false,
                };
                let watched = Arc::clone(&answers);
                let note = move |_: bool, bytes: &[u8]| watched.lock().unwrap().look_at(bytes);
                lanes.spawn(carry(to.0, from.1, hold.clone(), answers_are_free, note));
                opened.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, held, connections, held_appends, watched, _traffic: traffic }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many appends were held up; each arrives when the road is free again.
    pub(crate) fn held_appends(&self) -> u64 {
        self.held_appends.load(Ordering::Relaxed)
    }

    /// From here on answers of the server with this word in them are counted.
    pub(crate) fn watch_answers(&self, word: &str) {
        *self.watched.lock().unwrap() = Watched { word: word.as_bytes().to_vec(), count: 0 };
    }

    /// How many answers had the word.
    pub(crate) fn watched_answers(&self) -> u64 {
        self.watched.lock().unwrap().count
    }

    /// The connections that there are say and hear nothing any more, for ever.
    pub(crate) fn lose_connections(&self) {
        self.hold(Held::Before(self.connections.load(Ordering::Relaxed)));
    }

    /// What was held before and is not now goes on its way.
    pub(crate) fn hold(&self, held: Held) {
        self.held.send_replace(held);
    }
}

impl Watched {
    fn look_at(&mut self, bytes: &[u8]) {
        self.count += u64::from(!self.word.is_empty() && contains(bytes, &self.word));
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|part| part == word)
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut held: watch::Receiver<Held>,
    is_free: impl Fn(&Held) -> bool,
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
