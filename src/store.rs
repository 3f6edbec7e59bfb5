//! Where logs live: append, position and fence in one durable step; read by offset; retention.
//!
//! An enum of stores, not a trait: the set is closed and shipped.

mod age;
pub mod embedded;
pub mod redis;
pub mod sinks;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::model::{
    Batch, Checkpoint, ConsumerName, Epoch, FeedId, Fence, Lineage, Mark, Offset, Revocation, RevocationTarget,
    StreamName, Timestamp,
};

/// How much of each stream is kept. The newest entry is kept in any case, and those that are held together with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// At least so many entries are kept, where age and bytes allow it, and few more: the embedded store at most a batch.
    pub events: u64,
    /// An entry that was received longer ago goes; in the embedded store with its whole batch.
    pub age: Duration,
    /// More bytes than this are not kept.
    pub bytes: u64,
}

/// How far a log goes for those who read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBounds {
    /// Of the epoch [`Epoch::NONE`] when nobody has written to it yet.
    pub lineage: Lineage,
    /// The oldest entry held; the one to come when there is none.
    pub first: Offset,
    /// The newest entry that may be shown; [`Offset::START`] when there is none.
    pub last: Offset,
}

impl LogBounds {
    /// Of a stream that has no log yet.
    const NONE: Self = Self { lineage: Lineage::new(Epoch::NONE), first: Offset(1), last: Offset::START };
}

/// What whoever claims a log for writing finds.
#[derive(Debug, Clone)]
pub struct LogState {
    pub lineage: Lineage,
    /// The oldest entry held; `last.next()` when there is none.
    pub first: Offset,
    /// The newest entry; [`Offset::START`] when there never was one.
    pub last: Offset,
    /// The newest entry that may be shown. What lies between is shown with the next append.
    pub high_watermark: Offset,
    pub checkpoint: Option<Checkpoint>,
    /// The right to append from now on; whoever held it before is refused.
    pub fence: Fence,
    /// What was held before is lost or was put aside: the writer owes the log a gap with reason `store`.
    pub damaged: bool,
}

/// What a process has seen of a log: entries up to `last` of the lineage's present epoch, and those before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLog {
    pub lineage: Lineage,
    pub last: Offset,
}

impl ObservedLog {
    /// Of a log that nobody has looked at.
    pub const NONE: Self = Self { lineage: Lineage::new(Epoch::NONE), last: Offset::START };
}

/// One append: entries and the position that covers them, or (without entries) the position alone.
#[derive(Debug, Clone)]
pub struct Append {
    pub stream: StreamName,
    pub fence: Fence,
    /// One behind the other; all are stored or none.
    pub batches: Vec<Arc<Batch>>,
    pub checkpoint: Checkpoint,
}

impl Append {
    /// How many entries; none where only the checkpoint moves.
    pub fn entries(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }
}

/// Why an append was not done. It was then not done at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No room on the disk, or the store cannot be written right now: hold the events and try again.
    #[error("the store takes no entries: {0}")]
    Unavailable(String),
    /// Somebody else holds the stream now.
    #[error("the fence is stale: another holder has the stream")]
    Fenced,
    /// The log does not end where this writer left it: it was rolled back with the server that has it, or an append
    /// that was given up was done after all. Nothing more can be appended under this claim. Whoever still has the right
    /// drops the writer and claims the log anew, under the same fence; the claim says where it goes on, and which
    /// position the entries that are left cover.
    #[error("the log has moved: {0}")]
    Diverged(String),
    /// What the store holds of this one stream cannot be used: a key of another type, a foreign entry, a field that
    /// makes no sense. The stream waits, the others go on. Claim the log again until an operator has mended it.
    #[error("the log cannot be used: {0}")]
    UnusableLog(String),
    /// The store is broken; the process must end and open it anew.
    #[error("the store is broken: {0}")]
    Broken(String),
}

/// When opening a store that could not be opened is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may come by itself.
    Soon,
    /// An operator has to act.
    Slowly,
}

/// What somebody who knew a log hears of it.
#[derive(Debug)]
pub enum LogUpdate {
    /// These follow what was known, and may be shown.
    Entries(Vec<Arc<Batch>>),
    /// It is in another epoch, or what followed is not held any more: this is how far it goes.
    Diverged(LogBounds),
}

/// Hears what other processes append to a log.
#[derive(Debug)]
pub enum LogFollower {
    /// There are no other processes.
    Embedded,
    Redis(Box<redis::RedisFollower>),
}

impl LogFollower {
    /// Waits for what is news to somebody who knows the log up to `last` of `epoch`. It goes on by itself after trouble,
    /// and fails when the store is closed. Cancel-safe.
    pub async fn next(&mut self, epoch: Epoch, last: Offset) -> Result<LogUpdate, ReadError> {
        match self {
            Self::Embedded => std::future::pending().await,
            Self::Redis(follower) => follower.next(epoch, last).await,
        }
    }
}

/// Entries could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store could not be read: {0}")]
pub struct ReadError(pub String);

/// One of the stores.
#[derive(Debug, Clone)]
pub enum Store {
    Embedded(embedded::EmbeddedStore),
    Redis(redis::RedisStore),
}

impl Store {
    /// How far the log goes. Nothing is written; a stream without a log has an empty one.
    pub async fn bounds(&self, stream: &StreamName) -> Result<LogBounds, ReadError> {
        match self {
            Self::Embedded(store) => store.bounds(stream).await,
            Self::Redis(store) => Box::pin(store.bounds(stream)).await,
        }
    }

    /// How far the log goes, for a process that starts: an empty extent, and why, where what the store holds of this
    /// one stream cannot be used.
    pub async fn bounds_at_startup(&self, stream: &StreamName) -> Result<(LogBounds, Option<String>), ReadError> {
        match self {
            Self::Embedded(store) => store.bounds(stream).await.map(|extent| (extent, None)),
            Self::Redis(store) => Box::pin(store.bounds_at_startup(stream)).await,
        }
    }

    /// Whose numbers the stored position is in, as far as is known. For who does not hold the log.
    pub async fn feed(&self, stream: &StreamName) -> Result<Option<FeedId>, ReadError> {
        match self {
            Self::Embedded(store) => store.feed(stream).await,
            Self::Redis(store) => Box::pin(store.feed(stream)).await,
        }
    }

    /// Takes the log over for writing: under a new fence, or under the one that was drawn for the caller already. The
    /// log must hold that very fence.
    pub async fn claim(&self, stream: &StreamName, under: Option<Fence>) -> Result<LogState, AppendError> {
        self.claim_after(stream, under, &ObservedLog::NONE).await
    }

    /// The same for a process that has seen entries of the log: where they are not in it any more, an epoch begins, so
    /// that no id is given to two entries.
    pub async fn claim_after(
        &self,
        stream: &StreamName,
        under: Option<Fence>,
        seen: &ObservedLog,
    ) -> Result<LogState, AppendError> {
        match self {
            Self::Embedded(store) => store.claim(stream, under).await,
            Self::Redis(store) => Box::pin(store.claim(stream, under, seen)).await,
        }
    }

    /// The claim under this fence is over: this process appends nothing more, nor looks after the retention.
    pub fn release_claim(&self, stream: &StreamName, fence: Fence) {
        match self {
            Self::Embedded(_) => (),
            Self::Redis(store) => store.release_claim(stream, fence),
        }
    }

    /// Fence check, entries and position in one durable step. Done when it returns.
    pub async fn append(&self, append: Append) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.append(append).await,
            Self::Redis(store) => Box::pin(store.append(append)).await,
        }
    }

    /// Follows the log, over a connection of its own where it needs one.
    pub fn follower(&self, stream: &StreamName) -> LogFollower {
        match self {
            Self::Embedded(_) => LogFollower::Embedded,
            Self::Redis(store) => LogFollower::Redis(Box::new(store.follower(stream))),
        }
    }

    /// After an append and when its entries are shown here: those who follow the log from elsewhere may show them, too.
    pub async fn publish_high_watermark(&self, stream: &StreamName) {
        match self {
            Self::Embedded(_) => (),
            Self::Redis(store) => store.publish_high_watermark(stream).await,
        }
    }

    /// The batches that follow `after`, oldest first, until about `bytes_max` are together; at least one if there is one.
    /// The first of them may begin before `after`. `last` is the last entry that the caller may be shown: none reaches
    /// over it that was not appended so.
    pub async fn read(
        &self,
        stream: &StreamName,
        after: Offset,
        last: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Batch>>, ReadError> {
        match self {
            Self::Embedded(store) => store.read(stream, after, bytes_max).await,
            // On the heap: every subscriber keeps room for the larger of the two, and most never read the store.
            Self::Redis(store) => Box::pin(store.read(stream, after, last, bytes_max)).await,
        }
    }

    /// The last offset up to `last` whose entry was received before `moment` (START when none was).
    pub async fn offset_before(
        &self,
        stream: &StreamName,
        last: Offset,
        moment: Timestamp,
    ) -> Result<Offset, ReadError> {
        match self {
            Self::Embedded(store) => Ok(store.offset_before(stream, moment).await?.min(last)),
            Self::Redis(store) => Box::pin(store.offset_before(stream, last, moment)).await,
        }
    }

    /// Up to where a consumer has acknowledged a stream; none before it has acknowledged anything.
    pub async fn cursor(&self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        match self {
            Self::Embedded(store) => store.cursor(consumer, stream).await,
            Self::Redis(store) => Box::pin(store.cursor(consumer, stream)).await,
        }
    }

    /// Moves a cursor that is where the caller knows it to be: false, and nothing is moved, when it is elsewhere. Whether
    /// it may go back is the caller's to say. Durable when it returns; what was moved already is moved.
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

    /// Refuses somebody for a time. One that is revoked again is refused up to the later moment, for the longer time.
    pub async fn revoke(&self, revocation: &Revocation) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.revoke(revocation).await,
            Self::Redis(store) => Box::pin(store.revoke(revocation)).await,
        }
    }

    /// Who is refused now, and up to which moment of issue.
    pub async fn revoked(&self) -> Result<BTreeMap<RevocationTarget, Timestamp>, ReadError> {
        match self {
            Self::Embedded(store) => store.revoked().await,
            Self::Redis(store) => Box::pin(store.revoked()).await,
        }
    }

    /// Why what the store holds of this stream cannot be shown to readers here now.
    pub fn unreadable(&self, stream: &StreamName) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            Self::Redis(store) => store.unreadable(stream),
        }
    }

    /// The oldest entry held now; moves as retention trims.
    pub fn first(&self, stream: &StreamName) -> Offset {
        match self {
            Self::Embedded(store) => store.first(stream),
            Self::Redis(store) => store.first(stream),
        }
    }

    /// Ends it in order: what was asked before is done, and the next start finds everything in place. Handles that are
    /// left get errors.
    pub async fn close(&self) {
        match self {
            Self::Embedded(store) => store.close().await,
            Self::Redis(store) => store.close(),
        }
    }

    /// What an operator should know about the way it is set up.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Embedded(_) => &[],
            Self::Redis(store) => store.warnings(),
        }
    }

    /// Whether it can be written right now (for readiness), else why not.
    pub fn health(&self) -> Result<(), String> {
        match self {
            Self::Embedded(store) => store.health(),
            Self::Redis(store) => store.health(),
        }
    }
}
