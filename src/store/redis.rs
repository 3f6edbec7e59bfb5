//! The store in Redis (7 or later, or Valkey): one server, one behind Sentinels, or a cluster.
//!
//! Every change compares the fence in one step, by a script or by a transaction over watched keys. Appends carry an
//! idempotency counter, so an append whose answer was lost is never applied twice.

pub mod address;
pub mod connection;
mod consumers;
mod credentials;
mod follower;
pub(crate) mod head;
pub mod keys;
pub(crate) mod lease_row;
mod log;
mod preflight;
mod reads;
mod records;
mod sinks;
mod skew;
mod tickets;
pub(crate) mod unreadable;
pub mod values;
mod view;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use redis::cmd;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use self::{
    address::Address,
    connection::{CommandError, RedisConnection, RedisTimeouts},
    consumers::ConsumerScript,
    keys::LogKeys,
    log::{Log, RedisLog},
    records::RecordStore,
    sinks::SinkScripts,
    tickets::TicketScript,
    view::LogView,
};
pub use self::{credentials::Credentials, follower::RedisFollower, preflight::UnsupportedServer};
use super::{Append, AppendError, LogBounds, LogState, ObservedLog, ReadError, Retention, age::AgeClock};
use crate::{
    clock,
    model::{Batch, ConsumerName, FeedId, Fence, Mark, Offset, Revocation, RevocationTarget, StreamName, Timestamp},
    telemetry::{Cause, chain, metrics},
};

/// Concurrent reads of entries over all readers, which limits the memory for answers. Further reads wait.
const READS_MAX: usize = 4;

/// Interval of retention and of the connection check.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// The most entries that an append should have. Larger appends leave the server's CPU cache (measured: 5.4 µs per entry
/// of 1.4 KiB with 128 entries, 6.2 with 256, 7.9 with 1,000); 128 cost the writer a fifth more.
pub const APPEND_MAX: usize = 256;

/// Where the store is and how much it keeps.
#[derive(Debug, Clone)]
pub struct Settings {
    pub address: Address,
    /// Logins that are not in the address.
    pub credentials: Credentials,
    /// The prefix of all keys, so that independent installations can share a server.
    pub prefix: String,
    pub durability: Durability,
    /// The retention of each stream.
    pub retention: Retention,
    pub timeouts: RedisTimeouts,
}

/// When an entry in Redis counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The primary has it.
    #[default]
    Written,
    /// At least one Redis replica has it, too.
    Replicated,
}

/// A handle to the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RedisStore {
    shared: Arc<RedisShared>,
}

#[derive(Debug)]
struct RedisShared {
    settings: Settings,
    connection: RedisConnection,
    /// The connection for entries, so that no other command waits for large answers.
    read_connection: RedisConnection,
    /// Permits for concurrent reads.
    reads: Semaphore,
    scripts: Arc<RedisLog>,
    record_scripts: records::RecordScripts,
    sink_scripts: SinkScripts,
    ticket_script: TicketScript,
    consumer_script: ConsumerScript,
    /// The logs that were read.
    views: RwLock<BTreeMap<StreamName, Arc<LogView>>>,
    /// The logs that this process writes to.
    logs: RwLock<BTreeMap<StreamName, Arc<Log>>>,
    /// The clock of the retention.
    age: Mutex<AgeClock>,
    /// Why the last connection check failed.
    last_error: Mutex<Option<Cause>>,
    /// The warnings of the start.
    warnings: OnceLock<Vec<String>>,
}

impl RedisStore {
    /// A handle, which connects at the first command.
    pub fn new(settings: Settings) -> Self {
        let connection =
            RedisConnection::with(settings.address.clone(), settings.credentials.clone(), settings.timeouts);
        let shared = RedisShared {
            settings,
            read_connection: connection.dedicated(),
            reads: Semaphore::new(READS_MAX),
            connection,
            scripts: Arc::default(),
            record_scripts: records::RecordScripts::default(),
            sink_scripts: SinkScripts::default(),
            ticket_script: TicketScript::default(),
            consumer_script: ConsumerScript::default(),
            views: RwLock::default(),
            logs: RwLock::default(),
            age: Mutex::new(AgeClock::new(clock::wall(), clock::boot())),
            last_error: Mutex::default(),
            warnings: OnceLock::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The connection to the server.
    pub fn connection(&self) -> &RedisConnection {
        &self.shared.connection
    }

    /// Where the store is and how much it keeps.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Checks whether the server can hold logs. Returns warnings for the operator.
    pub async fn preflight(&self) -> Result<Vec<String>, UnsupportedServer> {
        preflight::run(&self.shared.connection, &self.shared.settings).await
    }

    /// Keeps the warnings of the start for the status. Only the first call has an effect.
    pub fn set_warnings(&self, warnings: Vec<String>) {
        self.shared.warnings.get_or_init(|| warnings);
    }

    /// The warnings of the start.
    pub fn warnings(&self) -> &[String] {
        self.shared.warnings.get().map_or(&[], Vec::as_slice)
    }

    /// Applies the retention and checks the connection until `stop`.
    pub async fn run_maintenance(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let answer = self.shared.connection.run::<String>(&cmd("PING")).await;
            self.shared.set_error(answer.err().map(Cause::new));
            for stream in self.shared.streams() {
                if let Err(error) = self.trim(&stream).await {
                    tracing::debug!(%stream, error = chain(&error), "retention not applied; retry follows");
                }
            }
            tokio::select! {
                () = stop.cancelled() => (),
                () = tokio::time::sleep(MAINTENANCE_INTERVAL) => (),
            }
        }
    }

    /// Applies the retention to a log that this process writes to.
    pub async fn trim(&self, stream: &StreamName) -> Result<(), CommandError> {
        self.trim_at(stream, clock::wall(), clock::boot()).await
    }

    /// Applies the retention at the time `wall` of the wall clock, `boot` after the machine started.
    pub async fn trim_at(&self, stream: &StreamName, wall: Timestamp, boot: Duration) -> Result<(), CommandError> {
        let now = self.shared.age.lock().now(wall, boot);
        match self.shared.log(stream) {
            Some(log) => log.trim(&self.shared.settings.retention, now).await,
            None => Ok(()),
        }
    }

    pub(super) async fn bounds(&self, stream: &StreamName) -> Result<LogBounds, ReadError> {
        let RedisShared { settings, connection, scripts, .. } = &*self.shared;
        let found = self.shared.view(stream).bounds(connection, &scripts.bounds, settings.durability).await;
        let found = found.map_err(ReadError::new).and_then(|found| found.map_err(ReadError::new));
        found.inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) async fn bounds_at_startup(
        &self,
        stream: &StreamName,
    ) -> Result<(LogBounds, Option<String>), ReadError> {
        let RedisShared { settings, connection, scripts, .. } = &*self.shared;
        match self.shared.view(stream).bounds(connection, &scripts.bounds, settings.durability).await {
            Ok(Ok(extent)) => Ok((extent, None)),
            Ok(Err(why)) => Ok((LogBounds::NONE, Some(why))),
            Err(error) => Err(ReadError::new(error)),
        }
    }

    pub(super) async fn feed(&self, stream: &StreamName) -> Result<Option<FeedId>, ReadError> {
        let found = self.shared.view(stream).feed(&self.shared.connection).await;
        found.map_err(ReadError::new).inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) async fn claim(
        &self,
        stream: &StreamName,
        under: Option<Fence>,
        seen: &ObservedLog,
    ) -> Result<LogState, AppendError> {
        let RedisShared { settings, connection, scripts, .. } = &*self.shared;
        let view = self.shared.view(stream);
        let claimed = Log::claim(connection, Arc::clone(scripts), settings, stream, view, (under, seen)).await;
        let (log, state) = claimed.inspect_err(|error| {
            if matches!(error, AppendError::UnusableLog(_)) {
                metrics::store_failed("refused");
            }
        })?;
        self.shared.logs.write().insert(stream.clone(), Arc::new(log));
        Ok(state)
    }

    pub(super) fn release_claim(&self, stream: &StreamName, fence: Fence) {
        let mut logs = self.shared.logs.write();
        if logs.get(stream).is_some_and(|log| log.fence == fence) {
            logs.remove(stream);
        }
    }

    pub(super) async fn append(&self, append: Append) -> Result<(), AppendError> {
        let log = self.shared.log(&append.stream).ok_or(AppendError::Fenced)?;
        let started = clock::now();
        let outcome = log.append(&append).await;
        match &outcome {
            Ok(()) => metrics::store_appended(started.elapsed()),
            Err(AppendError::Unavailable(_)) => metrics::store_failed("io"),
            Err(AppendError::UnusableLog(_)) => metrics::store_failed("refused"),
            Err(AppendError::Fenced) => metrics::store_failed("fenced"),
            Err(AppendError::Diverged(_) | AppendError::Broken(_)) => metrics::store_failed("damaged"),
        }
        outcome
    }

    /// Publishes the outcome of the last append to followers, where that needs its own command.
    pub(super) async fn publish_high_watermark(&self, stream: &StreamName) {
        let Some(log) = self.shared.log(stream) else { return };
        if let Err(error) = log.publish_high_watermark().await {
            tracing::debug!(%stream, error = chain(&error), "high watermark not published; followers wait for the next append");
        }
    }

    pub(super) async fn read(
        &self,
        stream: &StreamName,
        after: Offset,
        last: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Batch>>, ReadError> {
        let view = self.shared.view(stream);
        let _permit = self.shared.read_permit().await?;
        let found = reads::batches(&self.shared.read_connection, &view.keys, after, last, bytes_max).await;
        let first = found.as_ref().ok().and_then(|batches| batches.first()).map(|batch| batch.first());
        if first.is_some_and(|first| first > after.next()) {
            // Retention removed entries, or there is a hole.
            self.bounds(stream).await?;
        }
        found.inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) async fn offset_before(
        &self,
        stream: &StreamName,
        last: Offset,
        moment: Timestamp,
    ) -> Result<Offset, ReadError> {
        let view = self.shared.view(stream);
        let _permit = self.shared.read_permit().await?;
        let found = reads::offset_before(&self.shared.read_connection, &view.keys, last, moment).await;
        found.inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) async fn cursor(&self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        self.shared.records().cursor(consumer, stream).await.inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) async fn move_cursor(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
        from: Option<Mark>,
        to: Mark,
    ) -> Result<bool, AppendError> {
        self.shared.records().move_cursor(consumer, stream, from, to).await
    }

    pub(super) async fn revoke(&self, revocation: &Revocation) -> Result<(), AppendError> {
        self.shared.records().revoke(revocation).await
    }

    pub(super) async fn revoked(&self) -> Result<BTreeMap<RevocationTarget, Timestamp>, ReadError> {
        self.shared.records().revoked().await.inspect_err(|_| metrics::store_failed("read"))
    }

    pub(super) fn follower(&self, stream: &StreamName) -> RedisFollower {
        RedisFollower::new(self.clone(), stream)
    }

    pub(super) fn unreadable(&self, stream: &StreamName) -> Option<String> {
        self.shared.view(stream).unreadable()
    }

    pub(super) fn first(&self, stream: &StreamName) -> Offset {
        self.shared.view(stream).first()
    }

    pub(super) fn health(&self) -> Result<(), String> {
        let trouble = self.shared.last_error.lock().clone();
        trouble.map_or(Ok(()), |cause| Err(chain(&cause)))?;
        self.shared.logs.read().values().try_for_each(|log| log.health())
    }

    /// Closes the connections.
    pub fn close(&self) {
        self.shared.connection.close();
        self.shared.read_connection.close();
        self.shared.reads.close();
        self.shared.set_error(Some(Cause::new("the store is closed")));
        for log in self.shared.logs.read().values() {
            log.close();
        }
    }
}

impl RedisShared {
    fn records(&self) -> RecordStore<'_> {
        RecordStore { connection: &self.connection, prefix: &self.settings.prefix, scripts: &self.record_scripts }
    }

    /// Waits for a permit. Reads have timeouts.
    async fn read_permit(&self) -> Result<SemaphorePermit<'_>, ReadError> {
        self.reads.acquire().await.map_err(|_| ReadError::new("the store is closed"))
    }

    fn view(&self, stream: &StreamName) -> Arc<LogView> {
        if let Some(view) = self.views.read().get(stream) {
            return Arc::clone(view);
        }
        let mut views = self.views.write();
        let view = || Arc::new(LogView::new(LogKeys::of(&self.settings.prefix, stream)));
        Arc::clone(views.entry(stream.clone()).or_insert_with(view))
    }

    fn log(&self, stream: &StreamName) -> Option<Arc<Log>> {
        self.logs.read().get(stream).cloned()
    }

    fn streams(&self) -> Vec<StreamName> {
        self.logs.read().keys().cloned().collect()
    }

    fn set_error(&self, trouble: Option<Cause>) {
        *self.last_error.lock() = trouble;
    }
}
