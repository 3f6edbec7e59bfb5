//! Where logs live: append, position and fence in one durable step; read by offset; retention.
//!
//! An enum of stores, not a trait: the set is closed and shipped.

pub mod embedded;
pub mod redis;

use std::sync::Arc;

pub use embedded::Retention;

use crate::model::{Batch, Checkpoint, Fence, Lineage, Offset, StreamName, Timestamp};

/// What a stream's log looks like when it is opened for writing.
#[derive(Debug, Clone)]
pub struct LogState {
    pub lineage: Lineage,
    /// The oldest entry held; `last.next()` when there is none.
    pub first: Offset,
    /// The newest entry; [`Offset::START`] when there never was one.
    pub last: Offset,
    pub checkpoint: Option<Checkpoint>,
    /// The right to append from now on; whoever held it before is refused.
    pub fence: Fence,
    /// What was held before is lost or was put aside: the writer owes the log a gap with reason `store`.
    pub damaged: bool,
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

/// Why an append was not done. It was then not done at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No room on the disk, or the store cannot be written right now: hold the events and try again.
    #[error("the store has no room: {0}")]
    NoRoom(String),
    /// Somebody else holds the stream now.
    #[error("the fence is stale: another holder has the stream")]
    Fenced,
    /// The store is broken; the process must end and open it anew.
    #[error("the store is broken: {0}")]
    Broken(String),
}

/// Entries could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the store could not be read: {0}")]
pub struct ReadError(pub String);

/// One of the stores.
#[derive(Debug, Clone)]
pub enum Store {
    Embedded(embedded::Embedded),
    Redis(redis::Redis),
}

impl Store {
    /// Takes the stream over: a new fence, and what is there.
    pub async fn open_log(&self, stream: &StreamName) -> Result<LogState, AppendError> {
        match self {
            Self::Embedded(store) => store.open_log(stream).await,
            Self::Redis(store) => store.open_log(stream).await,
        }
    }

    /// Fence check, entries and position in one durable step. Done when it returns.
    pub async fn append(&self, append: Append) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.append(append).await,
            Self::Redis(store) => Box::pin(store.append(append)).await,
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

    /// The last offset whose entry was received before `moment` (START when none was).
    pub async fn offset_before(&self, stream: &StreamName, moment: Timestamp) -> Result<Offset, ReadError> {
        match self {
            Self::Embedded(store) => store.offset_before(stream, moment).await,
            Self::Redis(store) => Box::pin(store.offset_before(stream, moment)).await,
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
