//! The stored state of one stream, and the part of it that has expired. Rules only.

use std::sync::Arc;

use crate::{
    model::{Batch, Checkpoint, Fence, Lineage, Offset, Timestamp},
    store::{LogState, Retention},
};

/// One stream as stored in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredStream {
    pub(super) number: i64,
    pub(super) lineage: Arc<Lineage>,
    pub(super) fence: Fence,
    pub(super) last: Offset,
    /// Bytes of all batches held, their indexes included.
    pub(super) len: u64,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Entries are lost, and the gap that reports it has not been appended yet.
    pub(super) damaged: bool,
    pub(super) oldest: Option<OldestBatch>,
}

/// The oldest stored batch, which retention removes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OldestBatch {
    pub(super) first: Offset,
    pub(super) last: Offset,
    pub(super) len: u64,
    pub(super) received_last: Timestamp,
}

impl StoredStream {
    /// The oldest entry; the next offset when there is none.
    pub(super) fn first(&self) -> Offset {
        self.oldest.map_or(self.last.next(), |oldest| oldest.first)
    }

    /// Adds an appended batch to the state.
    pub(super) fn record_append(&mut self, batch: &Batch, len: u64) {
        assert_eq!(batch.first(), self.last.next(), "entries are dense");
        self.last = batch.last();
        self.len += len;
        self.damaged = false;
        self.oldest.get_or_insert(OldestBatch {
            first: batch.first(),
            last: batch.last(),
            len,
            received_last: batch.received_last(),
        });
    }

    /// The oldest batch if it has expired.
    pub(super) fn expired(&self, retention: &Retention, now: Timestamp) -> Option<OldestBatch> {
        let oldest = self.oldest.filter(|oldest| oldest.last < self.last)?;
        let too_many = self.last.0 - oldest.last.0 >= retention.events;
        let too_old = oldest.received_last < now.before(retention.age);
        let too_large = self.len > retention.bytes;
        (too_many || too_old || too_large).then_some(oldest)
    }

    /// The state that a claim returns.
    pub(super) fn state(&self) -> LogState {
        LogState {
            lineage: Lineage::clone(&self.lineage),
            first: self.first(),
            last: self.last,
            high_watermark: self.last,
            checkpoint: self.checkpoint.clone(),
            fence: self.fence,
            damaged: self.damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Epoch;

    const RETAIN_ALL: Retention = Retention { events: 1_000, age: Duration::from_secs(60), bytes: 10_000 };
    const NOW: Timestamp = Timestamp(1_000_000);

    /// 30 entries in 3 batches of 10, 1,000 bytes each, the oldest received 30 s ago.
    fn stored_stream() -> StoredStream {
        let oldest = OldestBatch {
            first: Offset(1),
            last: Offset(10),
            len: 1_000,
            received_last: NOW.before(Duration::from_secs(30)),
        };
        StoredStream {
            number: 1,
            lineage: Arc::new(Lineage::new(Epoch(7))),
            fence: Fence { number: 1, nonce: 1 },
            last: Offset(30),
            len: 3_000,
            checkpoint: None,
            damaged: false,
            oldest: Some(oldest),
        }
    }

    #[test]
    fn each_bound_alone_takes_the_oldest_batch() {
        let seconds = Duration::from_secs;
        for (retention, taken) in [
            (RETAIN_ALL, false),
            (Retention { events: 21, ..RETAIN_ALL }, false),
            (Retention { events: 20, ..RETAIN_ALL }, true),
            (Retention { age: seconds(30), ..RETAIN_ALL }, false),
            (Retention { age: seconds(29), ..RETAIN_ALL }, true),
            (Retention { bytes: 3_000, ..RETAIN_ALL }, false),
            (Retention { bytes: 2_999, ..RETAIN_ALL }, true),
        ] {
            assert_eq!(stored_stream().expired(&retention, NOW).is_some(), taken, "{retention:?}");
        }
    }

    #[test]
    fn the_newest_batch_stays_whatever_the_bounds_say() {
        let mut held = stored_stream();
        held.last = Offset(10);
        let nothing = Retention { events: 0, age: Duration::ZERO, bytes: 0 };
        assert_eq!(held.expired(&nothing, NOW), None);
    }
}
