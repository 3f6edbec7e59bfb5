//! The records of sinks: leases, cursors and dead letters.
//!
//! A sink is a durable consumer that the daemon runs. One replica owns its lease; each change of its cursors presents the
//! fence of that lease.

use bytestring::ByteString;

use super::{AppendError, ReadError, Store};
use crate::{
    model::{ConsumerName, Fence, Mark, StreamName, Timestamp},
    protocol::lease::LeaseRecord,
    telemetry::Cause,
};

/// The highest number of dead letters from the oldest to the newest of one sink. Beyond it
/// [`Store::advance_sink`] refuses further dead letters, so the sink stops until an operator removes the oldest ones.
pub const DEAD_LETTERS_MAX: u64 = 10_000;

/// The maximum number of dead letters that one call of [`Store::dead_letters`] returns.
pub const DEAD_LETTERS_PAGE_MAX: usize = 100;

/// An entry that a sink could not deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub stream: StreamName,
    pub mark: Mark,
    /// The wall-clock time at which the sink stopped trying.
    pub failed_at: Timestamp,
    /// The error of the last attempt.
    pub cause: String,
    /// The CloudEvent. It stays here when the log's retention removes the entry.
    pub envelope: ByteString,
}

/// A dead letter with its number. Numbers of one sink begin at 1 and grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    pub number: u64,
    pub letter: DeadLetter,
}

/// A move of a sink's cursor in one stream.
#[derive(Debug, Clone)]
pub struct SinkAdvance {
    pub sink: ConsumerName,
    /// The fence of the sink's lease.
    pub fence: Fence,
    pub stream: StreamName,
    /// The current cursor; none before the first move.
    pub from: Option<Mark>,
    pub to: Mark,
    /// Entries up to `to` that the sink could not deliver. They are stored in the same step.
    pub dead_letters: Vec<DeadLetter>,
}

/// Why a sink with too many dead letters does not advance.
pub(super) fn dead_letters_full(sink: &ConsumerName) -> AppendError {
    AppendError::Unavailable(Cause::new(format!(
        "the sink {sink} has {DEAD_LETTERS_MAX} dead letters; remove the oldest ones"
    )))
}

impl Store {
    /// The lease of a sink; none before its first owner.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sink_lease(&self, sink: &ConsumerName) -> Result<Option<LeaseRecord>, ReadError> {
        match self {
            Self::Embedded(store) => store.sink_lease(sink).await,
            Self::Redis(store) => Box::pin(store.sink_lease(sink)).await,
        }
    }

    /// Claims, hands over or releases a sink: replaces a lease whose fence is `expected` (none: the sink never had an
    /// owner). Every change needs a new fence. Returns whether `record` is the current lease; a repeated call returns
    /// true.
    ///
    /// # Errors
    /// The store cannot be written. The change may have been applied; repeat it.
    pub async fn change_sink_lease(
        &self,
        sink: &ConsumerName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> Result<bool, AppendError> {
        match self {
            Self::Embedded(store) => store.change_sink_lease(sink, expected, record).await,
            Self::Redis(store) => Box::pin(store.change_sink_lease(sink, expected, record)).await,
        }
    }

    /// The last entry of a stream that the sink delivered or moved to its dead letters; none before the first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sink_cursor(&self, sink: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        match self {
            Self::Embedded(store) => store.sink_cursor(sink, stream).await,
            Self::Redis(store) => Box::pin(store.sink_cursor(sink, stream)).await,
        }
    }

    /// Moves a sink's cursor and stores its dead letters in one durable step. Returns whether the cursor is at `to`: false
    /// when it was not at `from`. A repeated call returns true and stores nothing again.
    ///
    /// # Errors
    /// [`AppendError::Fenced`]: another replica owns the sink. [`AppendError::Unavailable`]: the store cannot be written,
    /// or the sink has [`DEAD_LETTERS_MAX`] dead letters.
    pub async fn advance_sink(&self, advance: SinkAdvance) -> Result<bool, AppendError> {
        match self {
            Self::Embedded(store) => store.advance_sink(advance).await,
            Self::Redis(store) => Box::pin(store.advance_sink(advance)).await,
        }
    }

    /// The dead letters of a sink with numbers above `after`, in order, at most `limit` and [`DEAD_LETTERS_PAGE_MAX`].
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn dead_letters(
        &self,
        sink: &ConsumerName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredDeadLetter>, ReadError> {
        let limit = limit.min(DEAD_LETTERS_PAGE_MAX);
        match self {
            Self::Embedded(store) => store.dead_letters(sink, after, limit).await,
            Self::Redis(store) => Box::pin(store.dead_letters(sink, after, limit)).await,
        }
    }

    /// Removes a dead letter. Returns whether it existed.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remove_dead_letter(&self, sink: &ConsumerName, number: u64) -> Result<bool, AppendError> {
        match self {
            Self::Embedded(store) => store.remove_dead_letter(sink, number).await,
            Self::Redis(store) => Box::pin(store.remove_dead_letter(sink, number)).await,
        }
    }
}
