//! The writer of a log. All other handles, in this and other processes, only read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{LogShared, append_gate::AppendGate};
use crate::{
    model::{Batch, BatchBuilder, Checkpoint, Epoch, Event, Fence, Offset},
    store::{Append, AppendError, LogState},
};

/// Bytes of a batch, the unit of storage and reads: large enough for a small cost per batch, small enough for the byte
/// limits of readers.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Estimated bytes of an envelope without its body.
const ATTRIBUTES_LEN: usize = 512;

/// The state of the log at the claim.
#[derive(Debug, Clone)]
pub struct ClaimedState {
    pub checkpoint: Option<Checkpoint>,
    /// The writer must append a gap with reason `store`.
    pub damaged: bool,
}

/// The right to append to one log until it is dropped.
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<LogShared>,
    /// The number of the claim in this process.
    claim: u64,
    fence: Fence,
    epoch: Epoch,
    claimed: ClaimedState,
    /// The last entry of the log.
    last: AtomicU64,
    gate: AppendGate,
}

impl LogWriter {
    pub(super) fn new(shared: Arc<LogShared>, state: &LogState) -> Self {
        let claim = shared.claims.fetch_add(1, Ordering::AcqRel) + 1;
        Self {
            shared,
            claim,
            fence: state.fence,
            epoch: state.lineage.current(),
            claimed: ClaimedState { checkpoint: state.checkpoint.clone(), damaged: state.damaged },
            last: AtomicU64::new(state.last.0),
            gate: AppendGate::default(),
        }
    }

    pub fn claimed_state(&self) -> &ClaimedState {
        &self.claimed
    }

    /// The fence of its appends.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The epoch of its appends.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Wraps the events, makes them durable with their position, then makes them visible to readers. Returns the new last
    /// offset. Without events only the checkpoint is stored. All is stored or nothing.
    ///
    /// Append one at a time and wait for the result: after a future that was dropped before its end, every later append
    /// returns [`AppendError::Broken`].
    pub async fn append(&self, events: &[Event], checkpoint: Checkpoint) -> Result<Offset, AppendError> {
        let turn = self.gate.acquire()?;
        if !self.is_current() {
            turn.complete();
            return Err(AppendError::Fenced);
        }
        let batches = self.build_batches(events);
        let stream = self.shared.name.clone();
        let append = Append { stream, fence: self.fence, batches: batches.clone(), checkpoint };
        let outcome = self.shared.store.append(append).await;
        turn.complete();
        outcome?;
        let last = self.publish(batches);
        self.shared.store.publish_high_watermark(&self.shared.name).await;
        Ok(last)
    }

    fn build_batches(&self, mut events: &[Event]) -> Vec<Arc<Batch>> {
        let mut batches = Vec::new();
        let mut last = self.last();
        while !events.is_empty() {
            let (now, later) = events.split_at(batch_len(events));
            let mut builder = BatchBuilder::new(&self.shared.source, self.epoch, last);
            builder.reserve(now);
            now.iter().for_each(|event| builder.push(event));
            let batch = builder.finish().expect("a batch begins with an event");
            last = batch.last();
            batches.push(Arc::new(batch));
            events = later;
        }
        batches
    }

    fn publish(&self, batches: Vec<Arc<Batch>>) -> Offset {
        let last = batches.last().map_or(self.last(), |newest| newest.last());
        self.last.store(last.0, Ordering::Release);
        self.shared.publish(batches, self.epoch, last);
        last
    }

    fn is_current(&self) -> bool {
        self.shared.claims.load(Ordering::Acquire) == self.claim
    }

    fn last(&self) -> Offset {
        Offset(self.last.load(Ordering::Acquire))
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if self.is_current() {
            self.shared.store.release_claim(&self.shared.name, self.fence);
        }
    }
}

/// The number of events in the next batch, at least one.
fn batch_len(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        bytes += event.body.len() + ATTRIBUTES_LEN;
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().max(1)
}
