//! The hot tail: the newest batches of one log in memory, shared by every reader.
//!
//! It holds consecutive batches of one epoch up to the end of the log, or none. It never waits and never reads the store.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;

use crate::model::{Batch, BatchView, Epoch, Offset};

/// Copies of a batch in memory: its bytes, and its rendering for two kinds of subscribers.
const COPIES: usize = 3;

/// Memory of a batch without its bytes: the struct, its slot in the tail, and this much per entry.
const BATCH_OVERHEAD: usize = 256;
const ENTRY_OVERHEAD: usize = 24;

/// The newest batches.
#[derive(Debug)]
pub(super) struct HotTail {
    bytes_max: usize,
    batches: RwLock<TailBatches>,
}

#[derive(Debug, Default)]
struct TailBatches {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
}

impl HotTail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, batches: RwLock::default() }
    }

    /// Adds the next batches and removes the oldest beyond the limit. The newest batch always stays.
    pub(super) fn push(&self, batches: Vec<Arc<Batch>>) {
        let mut held = self.batches.write();
        for batch in batches {
            held.push(batch);
        }
        let mut gone = Vec::new();
        while held.bytes > self.bytes_max && held.batches.len() > 1 {
            gone.extend(held.pop());
        }
        drop(held);
        // Large batches are freed after the lock.
        drop(gone);
    }

    /// Removes all batches, before one that does not continue them.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.batches.write());
        drop(gone);
    }

    /// The entries after `after` in the same epoch, up to `last` and about `bytes_max` bytes, but at least one batch. None
    /// when the tail begins later or has no further entries.
    pub(super) fn after(&self, epoch: Epoch, after: Offset, last: Offset, bytes_max: usize) -> Option<Vec<BatchView>> {
        let held = self.batches.read();
        let next = after.next();
        let oldest = held.batches.front()?;
        if oldest.epoch() != epoch || oldest.first() > next {
            return None;
        }
        let from = held.batches.partition_point(|batch| batch.last() < next);
        let mut bytes = 0;
        let taken = held.batches.range(from..).take_while(|batch| {
            let room = bytes < bytes_max && batch.last() <= last;
            bytes += batch.bytes().len();
            room
        });
        let views: Vec<BatchView> = taken.map(|batch| view(batch, next)).collect();
        (!views.is_empty()).then_some(views)
    }
}

/// The part of a batch from the entry `next` on.
pub(super) fn view(batch: &Arc<Batch>, next: Offset) -> BatchView {
    let from = usize::try_from(next.0.saturating_sub(batch.first().0)).expect("an index of a batch fits");
    BatchView { batch: Arc::clone(batch), from }
}

impl TailBatches {
    fn push(&mut self, batch: Arc<Batch>) {
        if let Some(newest) = self.batches.back() {
            assert_eq!(batch.first(), newest.last().next(), "the tail is dense");
        }
        self.bytes += memory_len(&batch);
        self.batches.push_back(batch);
    }

    fn pop(&mut self) -> Option<Arc<Batch>> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= memory_len(&oldest);
        Some(oldest)
    }
}

fn memory_len(batch: &Batch) -> usize {
    COPIES * batch.bytes().len() + ENTRY_OVERHEAD * batch.len() + BATCH_OVERHEAD
}
