//! The stores of logs: entries, position and fence in one durable step; reads by offset; retention.
//!
//! An enum, not a trait: Trunkline ships every store.

mod age;
pub mod consumers;
pub mod embedded;
pub mod redis;
pub mod sinks;
mod tickets;

use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    model::{
        Batch, Checkpoint, ConsumerName, Epoch, FeedId, Fence, Lineage, Mark, Offset, Revocation, RevocationTarget,
        Size, Span, StreamName, Timestamp,
    },
    telemetry::Cause,
};

/// How much of each stream is kept. The newest entry is always kept, with the entries of its batch: the embedded store
/// removes whole batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Entries per stream. A consumer that is further behind gets a gap.
    #[schemars(range(min = 1), extend("x-unit" = "entries"))]
    pub events: u64,
    /// Age of the oldest entry.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "1s"))]
    pub age: Duration,
    /// Bytes of events per stream, without the overhead of the database.
    #[serde(with = "Size")]
    #[schemars(extend("x-minimum" = "1MiB"))]
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events: 1_000_000, age: Duration::from_secs(86_400), bytes: 4 << 30 }
    }
}

/// The first and last entry of a log, for readers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBounds {
    /// Epoch [`Epoch::NONE`] before the first write.
    pub lineage: Lineage,
    /// The oldest entry held; without entries the next one.
    pub first: Offset,
    /// The newest entry that may be shown; [`Offset::START`] when there is none.
    pub last: Offset,
}

impl LogBounds {
    /// The bounds of a stream without a log.
    const NONE: Self = Self { lineage: Lineage::new(Epoch::NONE), first: Offset(1), last: Offset::START };
}

/// A log as a claim for writing finds it.
#[derive(Debug, Clone)]
pub struct LogState {
    pub lineage: Lineage,
    /// The oldest entry held; `last.next()` when there is none.
    pub first: Offset,
    /// The newest entry; [`Offset::START`] when there never was one.
    pub last: Offset,
    /// The newest entry that readers may get. The entries up to `last` follow with the next append.
    pub high_watermark: Offset,
    pub checkpoint: Option<Checkpoint>,
    /// The fence of this claim. The store rejects appends under an earlier fence.
    pub fence: Fence,
    /// Earlier entries are lost or quarantined: the writer must append a gap with reason `store`.
    pub damaged: bool,
}

/// The entries of a log that a process has read: up to `last` of the lineage's present epoch, and earlier epochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLog {
    pub lineage: Lineage,
    pub last: Offset,
}

impl ObservedLog {
    /// No entry was read.
    pub const NONE: Self = Self { lineage: Lineage::new(Epoch::NONE), last: Offset::START };
}

/// One append: entries and the position that covers them, or (without entries) the position alone.
#[derive(Debug, Clone)]
pub struct Append {
    pub stream: StreamName,
    pub fence: Fence,
    /// Consecutive batches; all are stored or none.
    pub batches: Vec<Arc<Batch>>,
    pub checkpoint: Checkpoint,
}

impl Append {
    /// The number of entries; 0 where only the checkpoint moves.
    pub fn entries(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }
}

/// Why a write was not applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The disk is full or the store cannot be written now. Hold the events and retry.
    #[error("store unavailable")]
    Unavailable(#[source] Cause),
    /// Another replica owns the stream.
    #[error("stale fence: another replica owns the stream")]
    Fenced,
    /// The log does not end where this writer's last append ended: the server was rolled back, or an append without an
    /// answer was applied later. Nothing more can be appended under this claim. The owner drops the writer and claims the
    /// log again under the same fence; the new claim has the end of the log and its position.
    #[error("the log diverged")]
    Diverged(#[source] Cause),
    /// The data of this stream cannot be used: a key of another type, a foreign entry, or an invalid field. Other streams
    /// are not affected. Claim the log again until an operator has repaired it.
    #[error("the log cannot be used")]
    UnusableLog(#[source] Cause),
    /// The store is broken; the process must end and open it again.
    #[error("store broken")]
    Broken(#[source] Cause),
}

/// How soon a failed opening of the store is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The cause may pass.
    Soon,
    /// An operator must act.
    Slowly,
}

/// An update of a log for a follower.
#[derive(Debug)]
pub enum LogUpdate {
    /// The next entries, which readers may get.
    Entries(Vec<Arc<Batch>>),
    /// The log is in another epoch, or the next entries are not held. These are its bounds.
    Diverged(LogBounds),
}

/// Follows the appends of other processes to a log.
#[derive(Debug)]
pub enum LogFollower {
    /// No other process can append.
    Embedded,
    Redis(Box<redis::RedisFollower>),
}

impl LogFollower {
    /// Waits for an update after the entry `last` of `epoch`. Retries after failures. Cancel-safe.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn next(&mut self, epoch: Epoch, last: Offset) -> Result<LogUpdate, ReadError> {
        match self {
            Self::Embedded => std::future::pending().await,
            Self::Redis(follower) => follower.next(epoch, last).await,
        }
    }
}

/// Entries could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store could not be read")]
pub struct ReadError(#[source] Cause);

impl ReadError {
    /// A failed read because of an error, or of a fact that no other error states.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Cause::new(cause))
    }
}

/// One of the stores.
#[derive(Debug, Clone)]
pub enum Store {
    Embedded(embedded::EmbeddedStore),
    Redis(redis::RedisStore),
}

impl Store {
    /// The bounds of the log. Nothing is written; a stream without a log has an empty one.
    pub async fn bounds(&self, stream: &StreamName) -> Result<LogBounds, ReadError> {
        match self {
            Self::Embedded(store) => store.bounds(stream).await,
            Self::Redis(store) => Box::pin(store.bounds(stream)).await,
        }
    }

    /// The bounds of the log at process start. If the data of this stream cannot be used: empty bounds, and the reason.
    pub async fn bounds_at_startup(&self, stream: &StreamName) -> Result<(LogBounds, Option<String>), ReadError> {
        match self {
            Self::Embedded(store) => store.bounds_at_startup(stream).await,
            Self::Redis(store) => Box::pin(store.bounds_at_startup(stream)).await,
        }
    }

    /// The feed that the stored position belongs to, if known. For readers without a claim.
    pub async fn feed(&self, stream: &StreamName) -> Result<Option<FeedId>, ReadError> {
        match self {
            Self::Embedded(store) => store.feed(stream).await,
            Self::Redis(store) => Box::pin(store.feed(stream)).await,
        }
    }

    /// Claims the log for writing: under a new fence, or under the fence `under`, which must be the present one.
    pub async fn claim(&self, stream: &StreamName, under: Option<Fence>) -> Result<LogState, AppendError> {
        self.claim_after(stream, under, &ObservedLog::NONE).await
    }

    /// Claims the log for a process that has read entries of it. If the log no longer has these entries, a new epoch
    /// begins, so that no two entries get the same id.
    pub async fn claim_after(
        &self,
        stream: &StreamName,
        under: Option<Fence>,
        seen: &ObservedLog,
    ) -> Result<LogState, AppendError> {
        match self {
            Self::Embedded(store) => store.claim(stream, under, seen).await,
            Self::Redis(store) => Box::pin(store.claim(stream, under, seen)).await,
        }
    }

    /// Ends the claim under this fence: this process appends nothing more and no longer applies the retention.
    pub fn release_claim(&self, stream: &StreamName, fence: Fence) {
        match self {
            Self::Embedded(_) => (),
            Self::Redis(store) => store.release_claim(stream, fence),
        }
    }

    /// Checks the fence and stores entries and position in one durable step.
    pub async fn append(&self, append: Append) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.append(append).await,
            Self::Redis(store) => Box::pin(store.append(append)).await,
        }
    }

    /// A follower of the log; with Redis it opens its own connection.
    pub fn follower(&self, stream: &StreamName) -> LogFollower {
        match self {
            Self::Embedded(_) => LogFollower::Embedded,
            Self::Redis(store) => LogFollower::Redis(Box::new(store.follower(stream))),
        }
    }

    /// Publishes the newest visible entry to followers in other processes. Call it after an append.
    pub async fn publish_high_watermark(&self, stream: &StreamName) {
        match self {
            Self::Embedded(_) => (),
            Self::Redis(store) => store.publish_high_watermark(stream).await,
        }
    }

    /// The batches that follow `after`, oldest first, about `bytes_max` bytes, but at least one batch if there is one.
    /// The first batch may begin before `after`. `last` is the last entry that the caller may read; only a batch that
    /// one append stored may extend past it.
    pub async fn read(
        &self,
        stream: &StreamName,
        after: Offset,
        last: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Batch>>, ReadError> {
        match self {
            Self::Embedded(store) => store.read(stream, after, last, bytes_max).await,
            // Boxed: every subscriber reserves memory for the larger future, and most never read the store.
            Self::Redis(store) => Box::pin(store.read(stream, after, last, bytes_max)).await,
        }
    }

    /// The last offset up to `last` whose entry was received before `moment`; START without such an entry.
    pub async fn offset_before(
        &self,
        stream: &StreamName,
        last: Offset,
        moment: Timestamp,
    ) -> Result<Offset, ReadError> {
        match self {
            Self::Embedded(store) => store.offset_before(stream, last, moment).await,
            Self::Redis(store) => Box::pin(store.offset_before(stream, last, moment)).await,
        }
    }

    /// The last entry of a stream that a consumer acknowledged; none before the first.
    pub async fn cursor(&self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        match self {
            Self::Embedded(store) => store.cursor(consumer, stream).await,
            Self::Redis(store) => Box::pin(store.cursor(consumer, stream)).await,
        }
    }

    /// Moves a cursor from `from` to `to` by compare-and-set, in one durable step. Returns whether it is at `to`: false when
    /// it was not at `from`. A repeated call returns true. The caller decides whether a cursor may go back.
    pub async fn move_cursor(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
        from: Option<Mark>,
        to: Mark,
    ) -> Result<bool, AppendError> {
        match self {
            Self::Embedded(store) => store.move_cursor(consumer, stream, from, to).await,
            Self::Redis(store) => Box::pin(store.move_cursor(consumer, stream, from, to)).await,
        }
    }

    /// Revokes access for a time. A repeated revocation keeps the later moment and the later end.
    pub async fn revoke(&self, revocation: &Revocation) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.revoke(revocation).await,
            Self::Redis(store) => Box::pin(store.revoke(revocation)).await,
        }
    }

    /// The current revocations; each rejects tokens that were issued up to its moment.
    pub async fn revoked(&self) -> Result<BTreeMap<RevocationTarget, Timestamp>, ReadError> {
        match self {
            Self::Embedded(store) => store.revoked().await,
            Self::Redis(store) => Box::pin(store.revoked()).await,
        }
    }

    /// Why readers here cannot get the entries of this stream now.
    pub fn unreadable(&self, stream: &StreamName) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            Self::Redis(store) => store.unreadable(stream),
        }
    }

    /// The oldest entry held. Retention moves it.
    pub fn first(&self, stream: &StreamName) -> Offset {
        match self {
            Self::Embedded(store) => store.first(stream),
            Self::Redis(store) => store.first(stream),
        }
    }

    /// Closes the store after all earlier commands. Later calls on other handles return errors.
    pub async fn close(&self) {
        match self {
            Self::Embedded(store) => store.close().await,
            Self::Redis(store) => store.close(),
        }
    }

    /// Warnings for the operator about the server's configuration.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Embedded(_) => &[],
            Self::Redis(store) => store.warnings(),
        }
    }

    /// Whether the store can be written now, for readiness; else the reason.
    pub fn health(&self) -> Result<(), String> {
        match self {
            Self::Embedded(store) => store.health(),
            Self::Redis(store) => store.health(),
        }
    }
}
