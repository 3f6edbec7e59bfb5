//! The content and the target of an append.

use std::{sync::Arc, time::Duration};

use redis::{Cmd, Value, cmd};

use crate::{
    model::{Batch, Checkpoint, Epoch, Fence, Offset, Timestamp},
    store::{
        Append,
        redis::{connection::CommandError, head::position_text},
    },
    telemetry::Cause,
};

/// The overhead per entry in bytes, added to its envelope.
pub(super) const ENTRY_OVERHEAD: usize = 16;

/// The target of an append: fence, turn, epoch, and the offset before its first entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AppendTarget {
    pub(super) fence: Fence,
    pub(super) epoch: Epoch,
    pub(super) turn: u64,
    pub(super) last: Offset,
    /// The replicated offset to publish in the head, where durability requires it.
    pub(super) replicated_up_to: Option<Offset>,
    /// When the platform's last frame was received, by the server's clock.
    pub(super) heard_at: Timestamp,
    /// The claim found a loss, and this append is the first after it: the entries report it.
    pub(super) gap_pending: bool,
}

/// Identifies an append by the state after it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    pub(super) last: Offset,
    pub(super) len: usize,
    pub(super) checkpoint: Checkpoint,
}

/// The server's answer to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AppendReply {
    Done,
    /// Another replica owns the log.
    Fenced,
    /// The head of the log was deleted.
    HeadMissing,
    /// The log has a head, but its entries were deleted.
    EntriesMissing,
    /// The log ends at this offset, which is not the target.
    Diverged(String),
    /// After its end the log has or had an entry with this id that no Trunkline writer added.
    ForeignEntry(String),
}

impl Identity {
    /// The identity of an append to a log that ends at `last`.
    pub(super) fn of(append: &Append, last: Offset) -> Self {
        Self {
            last: append.batches.last().map_or(last, |batch| batch.last()),
            len: append.batches.iter().map(|batch| batch.bytes().len() + ENTRY_OVERHEAD * batch.len()).sum(),
            checkpoint: append.checkpoint.clone(),
        }
    }

    /// The position in the head's format; empty if there is none.
    pub(super) fn position(&self) -> String {
        position_text(self.checkpoint.position.as_ref())
    }

    /// The feed and its position in the head's format. An earlier version updates only the position, and then the two
    /// positions differ.
    pub(super) fn feed(&self) -> String {
        self.checkpoint.feed.map(|feed| format!("{feed} {}", self.position())).unwrap_or_default()
    }
}

/// The envelopes of an append's entries, in order.
pub(super) fn envelopes(batches: &[Arc<Batch>]) -> impl Iterator<Item = &[u8]> {
    batches.iter().flat_map(|batch| (0..batch.len()).map(|index| batch.entry(index).json))
}

/// The command that waits until a replica has all earlier writes of the same connection.
pub(super) fn wait_for_replica(timeout: Duration) -> Cmd {
    let mut wait = cmd("WAIT");
    wait.arg(1).arg(timeout.as_millis().to_string());
    wait
}

/// Checks the reply to WAIT: at least one replica must have the writes.
pub(super) fn require_replica(replicas: &Value, timeout: Duration) -> Result<(), CommandError> {
    if matches!(replicas, Value::Int(1..)) {
        return Ok(());
    }
    Err(CommandError::NoAnswer(Cause::new(format!("no replica had it within {timeout:?}"))))
}

/// The epoch in the head's format.
pub(super) fn epoch_text(epoch: Epoch) -> String {
    format!("{:08x}", epoch.0)
}

/// The nonce in the head's format.
pub(super) fn hex(nonce: u128) -> String {
    format!("{nonce:032x}")
}
