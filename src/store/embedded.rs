//! The store on this machine: SQLite in one directory.
//!
//! One thread writes; all waiting commands share one transaction and one fsync. Each reader has its own connection. An
//! acknowledged write is on the disk. A damaged file is quarantined with an error message, and the store starts empty.

mod consumers;
mod database;
mod directory;
mod fault;
mod group;
mod identity;
mod opening;
mod presence;
mod reads;
mod records;
mod reserve;
mod sinks;
mod step;
mod stored_stream;
mod tickets;
mod writer;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use self::{
    directory::{Directory, ShutdownMarker},
    fault::SqliteFault,
    group::{Command, QUEUE_LEN},
    presence::FilePresence,
    reads::{ReaderPool, RowRange},
    records::RecordChange,
    stored_stream::StoredStream,
    tickets::Tickets,
    writer::EmbeddedWriter,
};
use super::{Append, AppendError, LogBounds, LogState, ObservedLog, ReadError, Retention, Retry};
use crate::{
    clock,
    model::{Batch, ConsumerName, FeedId, Fence, Mark, Offset, Revocation, RevocationTarget, StreamName, Timestamp},
    telemetry::{Cause, chain, metrics},
};

/// The most entries that an append should have. Larger appends cost less fsync time per entry.
pub const APPEND_MAX: usize = 2_048;

/// Where the store is and how much it keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory, which is created if it is missing. One process at a time uses it.
    pub path: PathBuf,
    /// The retention of each stream.
    pub retention: Retention,
}

/// The store was not opened, and nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store's directory {path} cannot be used")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the store's directory {path} is in use by {holder}")]
    InUse { path: PathBuf, holder: String },
    #[error("the store in {path} has schema {found}, this version supports {known}: a newer version wrote it")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("the store in {path} cannot be opened")]
    Database {
        path: PathBuf,
        #[source]
        cause: Cause,
    },
    #[error("the store's thread could not be started")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// How soon opening is retried.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Newer { .. } => Retry::Slowly,
            // The former pod releases the directory when it ends.
            Self::InUse { .. } | Self::Directory { .. } | Self::Database { .. } | Self::Thread(_) => Retry::Soon,
        }
    }
}

/// A handle to the embedded store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedStore {
    commands: mpsc::Sender<Command>,
    shared: Arc<EmbeddedShared>,
}

impl EmbeddedStore {
    /// Opens or creates the store. Blocks for milliseconds after an orderly close, for seconds after a kill.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let directory = Directory::claim(&settings.path)?;
        let (connection, replaced) = opening::open(&directory)?;
        let unusable = |source| OpenError::Directory { path: settings.path.clone(), source };
        let presence = FilePresence::of(&directory).map_err(unusable)?;
        let shared = Arc::new(EmbeddedShared::new(directory));
        let (commands, queue) = mpsc::channel(QUEUE_LEN);
        let writer = EmbeddedWriter::new(connection, presence, replaced, settings.retention, Arc::clone(&shared));
        writer.start(queue).map_err(OpenError::Thread)?;
        Ok(Self { commands, shared })
    }

    /// Closes the store after all earlier commands, checkpoints the write-ahead log and releases the directory. Later calls
    /// on other handles return errors. When all handles are dropped, the store closes in the same way.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            // An error means that the thread has ended already.
            drop(done.await);
        }
    }

    /// Committed transactions since the start. Appends that wait together share one.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    pub(super) async fn bounds(&self, stream: &StreamName) -> Result<LogBounds, ReadError> {
        let (pool, name) = (Arc::clone(&self.shared.readers), stream.clone());
        let found = pool.run(move |connection| step::load(connection, &name)).await;
        let Some(held) = found.map_err(|fault| self.shared.read_failed(&fault))? else { return Ok(LogBounds::NONE) };
        self.shared.register(stream, &held);
        let LogState { lineage, first, last, .. } = held.state();
        Ok(LogBounds { lineage, first, last })
    }

    pub(super) async fn bounds_at_startup(
        &self,
        stream: &StreamName,
    ) -> Result<(LogBounds, Option<String>), ReadError> {
        Ok((self.bounds(stream).await?, None))
    }

    pub(super) async fn feed(&self, stream: &StreamName) -> Result<Option<FeedId>, ReadError> {
        let (pool, name) = (Arc::clone(&self.shared.readers), stream.clone());
        let found = pool.run(move |connection| step::load(connection, &name)).await;
        let held = found.map_err(|fault| self.shared.read_failed(&fault))?;
        Ok(held.and_then(|held| held.checkpoint?.feed))
    }

    /// No other process writes to this store, so the log always has the entries that this process has read.
    pub(super) async fn claim(
        &self,
        stream: &StreamName,
        under: Option<Fence>,
        _read: &ObservedLog,
    ) -> Result<LogState, AppendError> {
        self.send(|reply| Command::Claim(stream.clone(), under, reply)).await
    }

    pub(super) async fn append(&self, append: Append) -> Result<(), AppendError> {
        self.send(|reply| Command::Append(append, reply)).await
    }

    pub(super) async fn cursor(&self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        let (pool, consumer, stream) = (Arc::clone(&self.shared.readers), consumer.clone(), stream.clone());
        let found = pool.run(move |connection| records::cursor(connection, &consumer, &stream)).await;
        found.map_err(|fault| self.shared.read_failed(&fault))
    }

    pub(super) async fn move_cursor(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
        from: Option<Mark>,
        to: Mark,
    ) -> Result<bool, AppendError> {
        let change = RecordChange::Cursor { consumer: consumer.clone(), stream: stream.clone(), from, to };
        self.send(|reply| Command::Change(change, reply)).await
    }

    pub(super) async fn revoke(&self, revocation: &Revocation) -> Result<(), AppendError> {
        let Revocation { target: whose, at, ttl: lasting } = revocation;
        let ends_at = clock::wall().after(*lasting);
        let change = RecordChange::Revocation { whose: whose.clone(), at: *at, ends_at };
        self.send(|reply| Command::Change(change, reply)).await.map(drop)
    }

    pub(super) async fn revoked(&self) -> Result<BTreeMap<RevocationTarget, Timestamp>, ReadError> {
        let pool = Arc::clone(&self.shared.readers);
        let found = pool.run(move |connection| records::revoked(connection, clock::wall())).await;
        found.map_err(|fault| self.shared.read_failed(&fault))
    }

    pub(super) async fn read(
        &self,
        stream: &StreamName,
        after: Offset,
        _last: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Batch>>, ReadError> {
        let Some(log) = self.shared.log(stream) else { return Ok(Vec::new()) };
        let pool = Arc::clone(&self.shared.readers);
        let found = pool.run(move |connection| reads::batches(connection, log.range, after, bytes_max)).await;
        found.map_err(|fault| self.shared.read_failed(&fault))
    }

    pub(super) async fn offset_before(
        &self,
        stream: &StreamName,
        last: Offset,
        moment: Timestamp,
    ) -> Result<Offset, ReadError> {
        let Some(log) = self.shared.log(stream) else { return Ok(Offset::START) };
        let pool = Arc::clone(&self.shared.readers);
        let found = pool.run(move |connection| reads::offset_before(connection, log.range, moment)).await;
        Ok(found.map_err(|fault| self.shared.read_failed(&fault))?.min(last))
    }

    pub(super) fn first(&self, stream: &StreamName) -> Offset {
        self.shared.log(stream).map_or(Offset::START.next(), |log| Offset(log.first.load(Ordering::Acquire)))
    }

    pub(super) fn health(&self) -> Result<(), String> {
        if let Some(reason) = self.shared.broken().or_else(|| self.shared.unavailable()) {
            return Err(chain(&reason));
        }
        if self.commands.is_closed() { Err("the store is closed".to_owned()) } else { Ok(()) }
    }

    async fn send<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> Command,
    ) -> Result<T, AppendError> {
        let ended = || AppendError::Broken(self.shared.broken().unwrap_or_else(|| Cause::new("the store is closed")));
        let (reply, done) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ended())?;
        done.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// The state of one stream that the writer publishes.
#[derive(Debug)]
struct EmbeddedLog {
    range: RowRange,
    first: AtomicU64,
}

/// State that handles, readers and the writer share.
#[derive(Debug)]
struct EmbeddedShared {
    directory: Arc<Directory>,
    readers: Arc<ReaderPool>,
    logs: RwLock<BTreeMap<StreamName, Arc<EmbeddedLog>>>,
    /// Why no further transaction is started.
    broken: OnceLock<Cause>,
    /// Why writes fail at present: the disk is full, or the files are missing.
    unavailable: Mutex<Option<Cause>>,
    steps: AtomicU64,
    tickets: Mutex<Tickets>,
}

impl EmbeddedShared {
    fn new(directory: Directory) -> Self {
        Self {
            readers: Arc::new(ReaderPool::new(directory.database())),
            directory: Arc::new(directory),
            logs: RwLock::default(),
            broken: OnceLock::new(),
            unavailable: Mutex::default(),
            steps: AtomicU64::new(0),
            tickets: Mutex::default(),
        }
    }

    fn log(&self, stream: &StreamName) -> Option<Arc<EmbeddedLog>> {
        self.logs.read().get(stream).cloned()
    }

    /// Makes the log visible to readers. State that the writer published is newer and stays.
    fn register(&self, stream: &StreamName, held: &StoredStream) -> Arc<EmbeddedLog> {
        let mut logs = self.logs.write();
        let range = RowRange { number: held.number };
        let log = || Arc::new(EmbeddedLog { range, first: AtomicU64::new(held.first().0) });
        Arc::clone(logs.entry(stream.clone()).or_insert_with(log))
    }

    fn publish(&self, stream: &StreamName, held: &StoredStream) {
        let log = self.log(stream).unwrap_or_else(|| self.register(stream, held));
        log.first.store(held.first().0, Ordering::Release);
    }

    fn step_done(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn broken(&self) -> Option<Cause> {
        self.broken.get().cloned()
    }

    fn unavailable(&self) -> Option<Cause> {
        self.unavailable.lock().clone()
    }

    fn set_unavailable(&self, reason: Option<Cause>) {
        *self.unavailable.lock() = reason;
    }

    /// Stops all further transactions until the store is opened again. After damage the next start checks the whole file.
    fn fail(&self, fault: &SqliteFault) {
        let reason = chain(fault.cause());
        if let SqliteFault::Damaged(_) = fault
            && let Err(error) = self.directory.write_marker(ShutdownMarker::SuspectedDamage(reason.clone()))
        {
            tracing::error!(%error, "could not record suspected damage; next start may skip the full check");
        }
        if self.broken.set(fault.cause().clone()).is_ok() {
            tracing::error!(reason, "store broken; restart required");
        }
    }

    /// The error for a reader. Damage also stops the store.
    fn read_failed(&self, fault: &SqliteFault) -> ReadError {
        metrics::store_failed("read");
        match fault {
            SqliteFault::Damaged(_) => self.fail(fault),
            SqliteFault::Unavailable(_) | SqliteFault::Failed(_) => (),
        }
        ReadError(fault.cause().clone())
    }

    fn close_readers(&self) {
        self.readers.close();
    }
}

#[cfg(test)]
pub(crate) mod tests;
