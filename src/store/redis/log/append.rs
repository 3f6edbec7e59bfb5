//! What is appended, and where it goes.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Value, cmd};

use crate::{
    model::{Batch, Checkpoint, Epoch, Fence, Offset, Timestamp},
    store::{Append, redis::connection::CommandError},
};

/// Beside its envelope an entry is counted with so much.
pub(super) const ENTRY_OVERHEAD: usize = 16;

/// Where an append goes: under this fence and turn, in this epoch, behind this offset.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AppendTarget {
    pub(super) fence: Fence,
    pub(super) epoch: Epoch,
    pub(super) turn: u64,
    pub(super) last: Offset,
    /// What the log is told of replicas, where they count.
    pub(super) replicated_up_to: Option<Offset>,
    /// When the platform was heard, by the server's clock.
    pub(super) heard_at: Timestamp,
    /// The claim found a loss, and this append is the first after it: the entries report it.
    pub(super) gap_pending: bool,
}

/// What tells an append from another one: what is true after it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    pub(super) last: Offset,
    pub(super) len: usize,
    pub(super) checkpoint: Checkpoint,
}

/// What came of an append that the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AppendReply {
    Done,
    /// Somebody else has the log.
    Fenced,
    /// The log has no head any more.
    HeadMissing,
    /// The log has a head, and no entries any more.
    EntriesMissing,
    /// The log ends here, and that is not where the append goes.
    Diverged(String),
    /// Behind its end the log has or had an entry with this id, which no writer of ours has put there.
    ForeignEntry(String),
}

impl Identity {
    /// Of an append to a log that ends at `last`.
    pub(super) fn of(append: &Append, last: Offset) -> Self {
        Self {
            last: append.batches.last().map_or(last, |batch| batch.last()),
            len: append.batches.iter().map(|batch| batch.bytes().len() + ENTRY_OVERHEAD * batch.len()).sum(),
            checkpoint: append.checkpoint,
        }
    }

    /// As the head has it; nothing where there is none.
    pub(super) fn position(&self) -> String {
        self.checkpoint.position.map(|position| position.0.0.to_string()).unwrap_or_default()
    }

    /// As the head has it: the feed, and the position that is meant. An earlier version moves the position alone, and
    /// then the two differ.
    pub(super) fn feed(&self) -> String {
        self.checkpoint.feed.map(|feed| format!("{feed} {}", self.position())).unwrap_or_default()
    }
}

/// The envelopes of an append's entries, in order.
pub(super) fn envelopes(batches: &[Arc<Batch>]) -> impl Iterator<Item = &[u8]> {
    batches.iter().flat_map(|batch| (0..batch.len()).map(|index| batch.entry(index).json))
}

/// Waits until a replica has what was written over the same connection before.
pub(super) fn wait_for_replica(patience: Duration) -> Cmd {
    let mut wait = cmd("WAIT");
    wait.arg(1).arg(patience.as_millis().to_string());
    wait
}

/// Whether one has it, by the answer to that.
pub(super) fn require_replica(replicas: &Value, patience: Duration) -> Result<(), CommandError> {
    if matches!(replicas, Value::Int(1..)) {
        return Ok(());
    }
    Err(CommandError::NoAnswer(format!("no replica had it within {patience:?}")))
}

/// As the head has it.
pub(super) fn epoch_text(epoch: Epoch) -> String {
    format!("{:08x}", epoch.0)
}

/// As the head has it.
pub(super) fn hex(nonce: u128) -> String {
    format!("{nonce:032x}")
}
