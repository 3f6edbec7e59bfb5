//! When all records are read, and the read in flight.

use std::time::Duration;

use super::boot_time::{self, BootTime};

/// The schedule of the reads. At most one is in flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RecordReads {
    interval: Duration,
    pending: Option<PendingRead>,
    due_at: BootTime,
}

/// A read of the records that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PendingRead {
    /// When the last renewal was sent that the store had answered before this read began.
    pub(super) confirmed_at: Option<BootTime>,
}

impl RecordReads {
    pub(super) fn new(interval: Duration, now: BootTime) -> Self {
        Self { interval, pending: None, due_at: now + interval }
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.pending.is_some()
    }

    /// When the next read is due; none while one is in flight.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.pending.is_none().then_some(self.due_at)
    }

    pub(super) fn begin(&mut self, confirmed_at: Option<BootTime>, now: BootTime) {
        self.pending = Some(PendingRead { confirmed_at });
        self.due_at = now + self.interval;
    }

    /// The next read begins at this time at the latest.
    pub(super) fn expedite(&mut self, at: BootTime) {
        self.due_at = self.due_at.min(at);
    }

    /// The read in flight is answered or has failed.
    pub(super) fn finish(&mut self) -> Option<PendingRead> {
        self.pending.take()
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        boot_time::rebase([&mut self.due_at], by);
    }
}
