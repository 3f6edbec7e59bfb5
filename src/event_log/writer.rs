//! The one who may append to a log. Others in this process and elsewhere only read.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{LogShared, append_gate::AppendGate};
use crate::{
    model::{Batch, BatchBuilder, Checkpoint, Epoch, Event, Fence, Offset},
    store::{Append, AppendError, LogState},
};

/// Entries are stored, kept and handed on in batches of about this size: large enough that a batch costs little,
/// small enough that a reader can bound what it takes.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// What an envelope is taken to have beside its body, when batches are cut.
const ATTRIBUTES_LEN: usize = 512;

/// What the writer found when it claimed the log.
#[derive(Debug, Clone)]
pub struct ClaimedState {
    pub checkpoint: Option<Checkpoint>,
    /// A gap with reason `store` is owed.
    pub damaged: bool,
}

/// The right to append to one log, until it is dropped: then the log is there for readers only again.
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<LogShared>,
    /// Which of the claims of this process it is.
    claim: u64,
    fence: Fence,
    epoch: Epoch,
    claimed: ClaimedState,
    /// Where the log ends.
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
            claimed: ClaimedState { checkpoint: state.checkpoint, damaged: state.damaged },
            last: AtomicU64::new(state.last.0),
            gate: AppendGate::default(),
        }
    }

    pub fn claimed_state(&self) -> &ClaimedState {
        &self.claimed
    }

    /// The fence that it appends under.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The epoch of what it appends.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Wraps the events, makes them durable with their position, then shows them to readers. Returns the new last
    /// offset; without events only the checkpoint is stored. All is done or nothing.
    ///
    /// Callers append one at a time, and wait: an append that is dropped half-way leaves it unknown whether it was
    /// done, and every later one is refused as [`AppendError::Broken`].
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

/// How many of the events make the next batch: at least one.
fn batch_len(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        bytes += event.body.len() + ATTRIBUTES_LEN;
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().max(1)
}
