//! Durable consumers: readers with a name, whose cursors are in the store.
//!
//! One reader at a time has the name. A newer one, at any replica, takes a new claim; the older one ends. The store decides,
//! so no two readers acknowledge under one claim.

mod reader;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use self::reader::{ConsumerReader, superseded};
use crate::{
    clock,
    event_log::{EventLog, EventLogs},
    model::{ConsumerName, Fence, Mark, Span, StreamName, Timestamp},
    protocol::consumer::{Acknowledgement, ConsumerExpiry, ConsumerRecord, is_superseded},
    store::{AppendError, ReadError, Store},
    tasks::{TaskResult, Tasks},
    telemetry::{
        chain,
        metrics::{ConsumerMetrics, consumer_removed},
    },
};

/// How often the claims of this replica's readers are compared with the store.
const CLAIM_INTERVAL: Duration = Duration::from_millis(300);

/// How often the record of a consumer with a reader is marked as used.
const USE_INTERVAL: Duration = Duration::from_secs(20);

/// Claims that are compared at the same time.
const CLAIM_READS_MAX: usize = 32;

/// Repetitions of a change that competes with others.
const ATTEMPTS_MAX: usize = 50;

/// The settings of a consumer, `[consumers.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The streams in which the consumer is created at the start, with the next new entry as its first.
    #[schemars(with = "Vec<String>", extend("items" = { "type": "string", "format": "name" }))]
    pub streams: Vec<StreamName>,
    /// Time without a reader or an acknowledgement after which the consumer is reported, and later deleted.
    #[serde(default = "expires_default", with = "Span")]
    #[schemars(extend("x-minimum" = "1m"))]
    pub expires: Duration,
}

/// The expiry of a consumer without another one in the configuration.
const EXPIRES_DEFAULT: Duration = Duration::from_secs(7 * 86_400);

fn expires_default() -> Duration {
    EXPIRES_DEFAULT
}

/// Why a request about a consumer failed.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    #[error("unknown consumer {0}")]
    Unknown(ConsumerName),
    /// An acknowledgement of an entry before the stored cursor.
    #[error("{entry} lies behind the stored cursor {stored}")]
    Behind { entry: Mark, stored: Mark },
    #[error("event {entry} does not exist yet in {stream}")]
    AheadOfLog { entry: Mark, stream: StreamName },
    #[error("{entry} belongs to another epoch of {stream}")]
    UnknownEpoch { entry: Mark, stream: StreamName },
    #[error("the consumer does not read {0}")]
    NotRead(StreamName),
    #[error("the request is for several streams, so the cursor needs their names")]
    NamesRequired,
    /// Another reader has the name, or the consumer was deleted.
    #[error("a newer reader has the name of the consumer")]
    Superseded,
    #[error("the store cannot be used")]
    Store(#[source] AppendError),
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

impl From<AppendError> for ConsumerError {
    fn from(error: AppendError) -> Self {
        Self::Store(error)
    }
}

/// A consumer, as callers see it.
#[derive(Debug, Clone, Serialize)]
pub struct ConsumerStatus {
    pub name: ConsumerName,
    /// The last time of use.
    pub used: String,
    /// Whether it is unused for so long that it will be deleted.
    pub expired: bool,
    pub streams: BTreeMap<StreamName, ConsumerProgress>,
}

/// How far a consumer is in one stream.
#[derive(Debug, Clone, Serialize)]
pub struct ConsumerProgress {
    pub cursor: Mark,
    /// Entries that it has not acknowledged.
    pub lag: u64,
}

/// The durable consumers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Consumers {
    shared: Arc<ConsumersShared>,
}

#[derive(Debug)]
struct ConsumersShared {
    store: Store,
    logs: EventLogs,
    configured: BTreeMap<ConsumerName, Settings>,
    /// The readers of this process, one for each consumer.
    readers: Mutex<BTreeMap<ConsumerName, OpenReader>>,
    /// The consumers and streams that have metrics. The survey removes those of deleted consumers.
    metered: Mutex<BTreeSet<(ConsumerName, StreamName)>>,
}

#[derive(Debug, Clone)]
struct OpenReader {
    claim: Fence,
    superseded: CancellationToken,
}

impl Consumers {
    /// Starts the tasks that compare claims, and that report lag and expiry.
    pub fn start(
        store: Store,
        logs: EventLogs,
        configured: BTreeMap<ConsumerName, Settings>,
        tasks: &mut Tasks,
    ) -> Self {
        let (readers, metered) = (Mutex::default(), Mutex::default());
        let consumers = Self { shared: Arc::new(ConsumersShared { store, logs, configured, readers, metered }) };
        tasks.start("claims of consumers", consumers.clone().watch_claims(tasks.stop()));
        tasks.start("survey of consumers", survey::run(consumers.clone(), tasks.stop()));
        consumers
    }

    /// Takes over the name for a reader of these streams, and returns the stored cursors. The consumer is created if it is
    /// missing. The former reader ends.
    pub async fn claim(
        &self,
        consumer: &ConsumerName,
        streams: &[StreamName],
    ) -> Result<(ConsumerReader, BTreeMap<StreamName, Mark>), ConsumerError> {
        let store = &self.shared.store;
        let ConsumerRecord { claim, .. } = store.claim_consumer(consumer, clock::wall()).await?;
        let superseded = CancellationToken::new();
        let open = OpenReader { claim, superseded: superseded.clone() };
        self.replace_reader(consumer, open);
        let reader = ConsumerReader::new(self.clone(), consumer.clone(), claim, superseded, streams.to_vec());
        let mut cursors = BTreeMap::new();
        for stream in streams {
            if let Some(mark) = store.cursor(consumer, stream).await? {
                cursors.insert(stream.clone(), mark);
            }
        }
        Ok((reader, cursors))
    }

    /// Keeps the reader with the newest claim.
    fn replace_reader(&self, consumer: &ConsumerName, open: OpenReader) {
        let mut readers = self.shared.readers.lock();
        match readers.get(consumer) {
            Some(newer) if newer.claim.number > open.claim.number => open.superseded.cancel(),
            Some(_) | None => {
                if let Some(older) = readers.insert(consumer.clone(), open) {
                    older.superseded.cancel();
                }
            }
        }
    }

    /// Acknowledges the entries of a stream up to `entry`, of a reader with `claim` or of any caller.
    pub async fn acknowledge(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
        entry: Mark,
        claim: Option<Fence>,
    ) -> Result<(), ConsumerError> {
        let (store, log) = (&self.shared.store, self.log(stream)?);
        for _ in 0..ATTEMPTS_MAX {
            // The cursor first: a seek takes a new claim before it moves the cursor.
            let stored = store.cursor(consumer, stream).await?;
            let record = store.consumer(consumer).await?;
            if claim.is_some_and(|claim| is_superseded(claim, record)) {
                return Err(ConsumerError::Superseded);
            }
            let Some(found) = record else { return Err(ConsumerError::Unknown(consumer.clone())) };
            if !is_advance(log, stream, entry, stored)? || store.move_cursor(consumer, stream, stored, entry).await? {
                return self.record_use(consumer, found).await;
            }
        }
        Err(contended())
    }

    /// Marks a consumer as used, unless that was done a short time ago.
    async fn record_use(&self, consumer: &ConsumerName, record: ConsumerRecord) -> Result<(), ConsumerError> {
        let now = clock::wall();
        if now.since(record.used_at) >= USE_INTERVAL {
            // Another change means another use, so a lost race is no failure.
            self.shared.store.change_consumer(consumer, Some(record), Some(record.used(now))).await?;
        }
        Ok(())
    }

    /// Moves a cursor in either direction. A reader with the name ends, so that it continues there.
    pub async fn seek(&self, consumer: &ConsumerName, stream: &StreamName, to: Mark) -> Result<(), ConsumerError> {
        let store = &self.shared.store;
        if store.consumer(consumer).await?.is_none() {
            return Err(ConsumerError::Unknown(consumer.clone()));
        }
        store.claim_consumer(consumer, clock::wall()).await?;
        self.end_reader(consumer);
        for _ in 0..ATTEMPTS_MAX {
            let stored = store.cursor(consumer, stream).await?;
            if store.move_cursor(consumer, stream, stored, to).await? {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Deletes a consumer and ends its reader. Returns whether there was one.
    pub async fn delete(&self, consumer: &ConsumerName) -> Result<bool, ConsumerError> {
        let store = &self.shared.store;
        for _ in 0..ATTEMPTS_MAX {
            let record = store.consumer(consumer).await?;
            if store.delete_consumer(consumer, record, self.streams()).await? {
                self.end_reader(consumer);
                return Ok(record.is_some());
            }
        }
        Err(contended())
    }

    /// All consumers.
    pub async fn list(&self) -> Result<Vec<ConsumerStatus>, ConsumerError> {
        let (records, now) = (self.shared.store.consumers().await?, clock::wall());
        let status = |(name, record): (ConsumerName, ConsumerRecord)| (name.clone(), self.status(name, record, now));
        let mut found: BTreeMap<ConsumerName, ConsumerStatus> = records.into_iter().map(status).collect();
        for (stream, log) in self.shared.logs.iter() {
            for (consumer, cursor) in self.shared.store.cursors(stream).await? {
                if let Some(status) = found.get_mut(&consumer) {
                    status.streams.insert(stream.clone(), ConsumerProgress { cursor, lag: lag(log, cursor) });
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// One consumer; none if there is no such consumer.
    pub async fn show(&self, consumer: &ConsumerName) -> Result<Option<ConsumerStatus>, ConsumerError> {
        let Some(record) = self.shared.store.consumer(consumer).await? else { return Ok(None) };
        let mut status = self.status(consumer.clone(), record, clock::wall());
        for (stream, log) in self.shared.logs.iter() {
            if let Some(cursor) = self.shared.store.cursor(consumer, stream).await? {
                status.streams.insert(stream.clone(), ConsumerProgress { cursor, lag: lag(log, cursor) });
            }
        }
        Ok(Some(status))
    }

    fn status(&self, name: ConsumerName, record: ConsumerRecord, now: Timestamp) -> ConsumerStatus {
        let expired = record.expiry(self.expires(&name), now) != ConsumerExpiry::InUse;
        ConsumerStatus { name, used: record.used_at.to_string(), expired, streams: BTreeMap::new() }
    }

    fn expires(&self, consumer: &ConsumerName) -> Duration {
        self.shared.configured.get(consumer).map_or(EXPIRES_DEFAULT, |settings| settings.expires)
    }

    fn log(&self, stream: &StreamName) -> Result<&EventLog, ConsumerError> {
        self.shared.logs.get(stream).ok_or_else(|| ConsumerError::NotRead(stream.clone()))
    }

    fn streams(&self) -> impl Iterator<Item = &StreamName> {
        self.shared.logs.iter().map(|(stream, _)| stream)
    }

    /// The metrics of a consumer in a stream.
    fn metrics(&self, consumer: &ConsumerName, stream: &StreamName) -> ConsumerMetrics {
        self.shared.metered.lock().insert((consumer.clone(), stream.clone()));
        ConsumerMetrics::new(consumer, stream)
    }

    /// Removes the metrics of consumers for which `exists` is false and which have no reader here.
    fn remove_metrics(&self, exists: impl Fn(&(ConsumerName, StreamName)) -> bool) {
        let readers = self.shared.readers.lock();
        self.shared.metered.lock().retain(|key| {
            let stays = exists(key) || readers.contains_key(&key.0);
            if !stays {
                consumer_removed(&key.0, &key.1);
            }
            stays
        });
    }

    /// Ends the reader of this process.
    fn end_reader(&self, consumer: &ConsumerName) {
        if let Some(open) = self.shared.readers.lock().remove(consumer) {
            open.superseded.cancel();
        }
    }

    /// Ends a reader whose claim is this one.
    fn end_claim(&self, consumer: &ConsumerName, claim: Fence) {
        let mut readers = self.shared.readers.lock();
        if readers.get(consumer).is_some_and(|open| open.claim == claim)
            && let Some(open) = readers.remove(consumer)
        {
            open.superseded.cancel();
        }
    }

    /// Compares the claims of the readers with the store until the stop signal, and records the use of their consumers.
    async fn watch_claims(self, stop: CancellationToken) -> TaskResult {
        let is_shared = self.shared.store.is_shared();
        let mut ticks = interval(if is_shared { CLAIM_INTERVAL } else { USE_INTERVAL });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut use_at = clock::now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => (),
            }
            let uses = clock::now() >= use_at;
            if uses {
                use_at = clock::now() + USE_INTERVAL;
            }
            self.check_claims(uses).await;
        }
    }

    async fn check_claims(&self, uses: bool) {
        let readers = self.shared.readers.lock().clone();
        let checks = readers.into_iter().map(|(consumer, open)| self.check_claim(consumer, open.claim, uses));
        stream::iter(checks).buffer_unordered(CLAIM_READS_MAX).collect::<Vec<()>>().await;
    }

    /// Ends a reader without its claim. While the store cannot be read, it continues: it cannot acknowledge then.
    async fn check_claim(&self, consumer: ConsumerName, claim: Fence, uses: bool) {
        match self.renew_claim(&consumer, claim, uses).await {
            Ok(true) => (),
            Ok(false) => self.end_claim(&consumer, claim),
            Err(error) => tracing::debug!(%consumer, error = chain(&error), "cannot compare the claim of a reader"),
        }
    }

    async fn renew_claim(&self, consumer: &ConsumerName, claim: Fence, uses: bool) -> Result<bool, ConsumerError> {
        let record = self.shared.store.consumer(consumer).await?;
        match record {
            Some(found) if !is_superseded(claim, record) => {
                if uses {
                    self.record_use(consumer, found).await?;
                }
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }
}

/// Whether an acknowledged entry is after the stored cursor; an error if it cannot be acknowledged.
fn is_advance(log: &EventLog, stream: &StreamName, entry: Mark, stored: Option<Mark>) -> Result<bool, ConsumerError> {
    let end = log.end();
    // Without a cursor every entry of the log can be acknowledged.
    let before_all = Mark { epoch: end.lineage.current(), offset: crate::model::Offset::START };
    match Acknowledgement::of(entry, stored.unwrap_or(before_all), &end.lineage, end.last) {
        Acknowledgement::Moves => Ok(true),
        Acknowledgement::Repeated => Ok(stored.is_none()),
        Acknowledgement::Behind => Err(ConsumerError::Behind { entry, stored: stored.unwrap_or(before_all) }),
        Acknowledgement::AheadOfLog => Err(ConsumerError::AheadOfLog { entry, stream: stream.clone() }),
        Acknowledgement::UnknownEpoch => Err(ConsumerError::UnknownEpoch { entry, stream: stream.clone() }),
    }
}

/// The entries of a log that follow a cursor; all of them if the cursor is not of this log.
fn lag(log: &EventLog, cursor: Mark) -> u64 {
    let end = log.end();
    end.last.0.saturating_sub(survey::acknowledged(log, cursor).0)
}

fn contended() -> ConsumerError {
    ConsumerError::Unreadable(ReadError::new(format!("the consumer changed {ATTEMPTS_MAX} times meanwhile")))
}
