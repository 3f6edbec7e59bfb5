//! Decides when a filtered reader gets its position. Without it, the cursor of a reader without matching events falls
//! behind retention although no matching event is missing.
//!
//! It counts entries; each transport has its own form of a position.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{clock, model::BatchView};

/// Entries that may pass before a position is due.
const UNREPORTED_MAX: usize = 1_000;

/// Counts the entries since the last position of a reader.
#[derive(Debug)]
pub(super) struct PositionReporter {
    /// Entries since the reader last got a cursor.
    unreported: usize,
    /// Whether each delivered entry carries the whole cursor.
    cursor_delivered: bool,
    interval: Interval,
}

impl PositionReporter {
    /// A reporter with a position at least every `every`, if entries have passed.
    pub(super) fn new(carried: bool, every: Duration) -> Self {
        let mut every = interval_at(tokio::time::Instant::from_std(clock::now()) + every, every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { unreported: 0, cursor_delivered: carried, interval: every }
    }

    /// Counts a view; `delivered` is the end of its delivered part.
    pub(super) fn on_view(&mut self, view: &BatchView, delivered: Option<usize>) {
        match delivered.filter(|_| self.cursor_delivered) {
            Some(end) => self.unreported = view.batch.len() - end,
            None => self.unreported += view.batch.len() - view.from,
        }
    }

    /// Whether a position is due by the number of entries.
    pub(super) fn is_due(&self) -> bool {
        self.unreported >= UNREPORTED_MAX
    }

    /// Waits until a position is due by time. Cancel-safe.
    pub(super) async fn wait_until_due(&mut self) {
        loop {
            self.interval.tick().await;
            if self.unreported > 0 {
                return;
            }
        }
    }

    /// Resets the count after a position.
    pub(super) fn on_reported(&mut self) {
        self.unreported = 0;
        self.interval.reset();
    }
}

/// Waits until a position is due. Never completes for an unfiltered reader.
pub(super) async fn wait_until_due(positions: &mut Option<Box<PositionReporter>>) {
    match positions {
        Some(positions) => positions.wait_until_due().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Batch, Epoch, Offset, StoredEntry, Timestamp};

    fn view(len: usize, from: usize) -> BatchView {
        let entry = StoredEntry { json: b"{}", kind: (0, 0), received: Timestamp(0) };
        let batch = Batch::of(Epoch(1), Offset(1), &vec![entry; len]).unwrap();
        BatchView { batch: Arc::new(batch), from }
    }

    #[tokio::test]
    async fn entries_after_the_last_delivered_one_are_counted() {
        let mut positions = PositionReporter::new(true, Duration::from_secs(3_600));
        positions.on_view(&view(999, 0), None);
        assert!(!positions.is_due());
        positions.on_view(&view(999, 0), Some(999));
        positions.on_view(&view(1_000, 1), None);
        assert!(!positions.is_due(), "the delivered entries report the position");
        positions.on_view(&view(2, 1), None);
        assert!(positions.is_due());
        positions.on_reported();
        assert!(!positions.is_due());
        positions.on_view(&view(1_500, 0), Some(10));
        assert!(positions.is_due(), "many entries followed the delivered one");
    }

    #[tokio::test]
    async fn where_an_entry_does_not_carry_the_cursor_all_count() {
        let mut positions = PositionReporter::new(false, Duration::from_secs(3_600));
        positions.on_view(&view(600, 0), Some(600));
        positions.on_view(&view(600, 200), Some(600));
        assert!(positions.is_due());
    }

    #[tokio::test]
    async fn the_position_is_due_only_after_entries_passed() {
        let mut positions = PositionReporter::new(true, Duration::from_millis(1));
        let early = tokio::time::timeout(Duration::from_millis(50), positions.wait_until_due()).await;
        assert!(early.is_err(), "no entry passed");
        positions.on_view(&view(1, 0), None);
        positions.wait_until_due().await;
    }
}
