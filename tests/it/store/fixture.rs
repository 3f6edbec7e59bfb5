//! A fixture for stores of one kind, and a log of one stream for appends and reads.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use trunkline::{
    clock,
    model::{
        Batch, BatchBuilder, Body, Checkpoint, Event, Mark, Offset, Position, Sequence, Source, StreamName, Timestamp,
    },
    store::{
        Append, AppendError, LogState, Retention, Store,
        embedded::{self, EmbeddedStore},
        redis::{self, Durability},
    },
};

use crate::harness::{RedisServer, redis_limits};

pub(super) const KEEP_ALL: Retention =
    Retention { events: u64::MAX, age: Duration::from_secs(1 << 33), bytes: u64::MAX };

/// The folder or the server of a store.
pub(super) enum StoreFixture {
    Embedded(TempDir),
    Redis(Box<RedisServer>),
    Cluster(Box<[RedisServer; 3]>),
}

impl StoreFixture {
    pub(super) fn embedded() -> Self {
        Self::Embedded(tempfile::tempdir().unwrap())
    }

    pub(super) fn redis() -> Self {
        Self::Redis(Box::new(RedisServer::volatile()))
    }

    pub(super) fn valkey() -> Self {
        Self::Redis(Box::new(RedisServer::valkey()))
    }

    pub(super) async fn cluster() -> Self {
        Self::Cluster(Box::new(RedisServer::cluster().await))
    }

    /// Opens a store on this fixture.
    pub(super) fn open(&self, retention: Retention) -> Store {
        match self {
            Self::Embedded(folder) => {
                let settings = embedded::Settings { path: folder.path().to_owned(), retention };
                Store::Embedded(EmbeddedStore::open(&settings).unwrap())
            }
            Self::Redis(server) => Store::Redis(redis_store(server, retention, Durability::Written)),
            Self::Cluster(nodes) => {
                let url = format!("redis-cluster://127.0.0.1:{}", nodes[0].port());
                Store::Redis(redis::RedisStore::new(redis_settings(&url, retention, Durability::Written)))
            }
        }
    }

    /// Waits until retention has trimmed the log far enough.
    pub(super) async fn wait_until_trimmed(&self, store: &Store, stream: &StreamName, done: impl Fn(Offset) -> bool) {
        if let Store::Redis(store) = store {
            store.trim(stream).await.unwrap();
        }
        for _ in 0..500 {
            if done(store.first(stream)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the log starts at {}", store.first(stream));
    }
}

pub(super) fn redis_store(server: &RedisServer, retention: Retention, durability: Durability) -> redis::RedisStore {
    redis::RedisStore::new(redis_settings(&server.url(), retention, durability))
}

pub(super) fn redis_settings(url: &str, retention: Retention, durability: Durability) -> redis::Settings {
    let address = url.parse().unwrap();
    let (prefix, credentials) = ("trunkline".to_owned(), redis::Credentials::default());
    redis::Settings { address, credentials, prefix, durability, retention, timeouts: redis_limits() }
}

pub(super) fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint {
        position: Some(Position::Numbered(Sequence(position))),
        last_received_at: Timestamp(1_777_901_509_570),
        feed: None,
    }
}

/// Checks the checkpoint that a claim found. A store with another clock returns its time with the error of one round
/// trip.
pub(super) fn assert_found(found: &Option<Checkpoint>, expected: &Checkpoint) {
    let found = found.as_ref().expect("a position was stored");
    assert_eq!((&found.position, found.feed), (&expected.position, expected.feed));
    let apart = found.last_received_at.0.abs_diff(expected.last_received_at.0);
    assert!(apart <= 1_000, "{found:?} where {expected:?} was stored");
}

/// A stream of a store.
#[derive(Clone)]
pub(super) struct LogFixture {
    pub(super) store: Store,
    pub(super) name: StreamName,
    pub(super) state: LogState,
}

impl LogFixture {
    pub(super) async fn open(store: &Store, name: &str) -> Self {
        let name: StreamName = name.parse().unwrap();
        let state = store.claim(&name, None).await.unwrap();
        Self { store: store.clone(), name, state }
    }

    /// The next append of `len` entries of about 600 bytes.
    pub(super) fn next(&self, len: usize, received: Timestamp) -> Append {
        let source = Source::new(&"acme".parse().unwrap(), &self.name);
        let mut builder = BatchBuilder::new(&source, self.state.lineage.current(), self.state.last);
        for _ in 0..len {
            let mut event = Event::internal("test.v1", &(), received);
            event.body = Body::Json(format!("\"{}\"", "x".repeat(600)).into());
            builder.push(&event);
        }
        Append {
            stream: self.name.clone(),
            fence: self.state.fence,
            batches: builder.finish().map(Arc::new).into_iter().collect(),
            checkpoint: checkpoint(self.state.last.0 + len as u64),
        }
    }

    pub(super) async fn append(&mut self, len: usize) -> Result<Append, AppendError> {
        self.append_received(len, clock::wall()).await
    }

    pub(super) async fn append_received(&mut self, len: usize, received: Timestamp) -> Result<Append, AppendError> {
        let append = self.next(len, received);
        self.put(&append).await?;
        Ok(append)
    }

    /// Appends, and updates the state after success.
    pub(super) async fn put(&mut self, append: &Append) -> Result<(), AppendError> {
        self.store.append(append.clone()).await?;
        self.state.last = append.batches.last().map_or(self.state.last, |batch| batch.last());
        Ok(())
    }

    pub(super) async fn read(&self, after: Offset, bytes_max: usize) -> Vec<Arc<Batch>> {
        self.store.read(&self.name, after, self.state.last, bytes_max).await.unwrap()
    }

    pub(super) async fn entries(&self) -> Vec<u64> {
        let batches = self.read(Offset::START, usize::MAX).await;
        batches.iter().flat_map(|batch| batch.first().0..=batch.last().0).collect()
    }

    /// The mark of an entry of the current epoch.
    pub(super) fn mark(&self, offset: u64) -> Mark {
        Mark { epoch: self.state.lineage.current(), offset: Offset(offset) }
    }
}
