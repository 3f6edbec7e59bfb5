//! When a reader of a part is told how far the whole has gone: of what passes it by it would otherwise hear nothing, and
//! come back with a cursor that retention has overtaken although nothing that it wanted is missing.
//!
//! It counts entries and knows no transport: how a position is written is the transport's business.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{clock, model::BatchView};

/// So many entries may pass before the reader is told.
const UNREPORTED_MAX: usize = 1_000;

/// What one reader has not been told of.
#[derive(Debug)]
pub(super) struct PositionReporter {
    /// Entries that went by since the reader last knew where it stands.
    unreported: usize,
    /// What is delivered carries the whole cursor, so that with it the reader knows.
    cursor_delivered: bool,
    interval: Interval,
}

impl PositionReporter {
    /// Nothing has passed yet. The reader is told at least each `every` if something has.
    pub(super) fn new(carried: bool, every: Duration) -> Self {
        let mut every = interval_at(tokio::time::Instant::from_std(clock::now()) + every, every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { unreported: 0, cursor_delivered: carried, interval: every }
    }

    /// A view went by; `delivered` is the end of what was delivered of it, none where nothing was.
    pub(super) fn on_view(&mut self, view: &BatchView, delivered: Option<usize>) {
        match delivered.filter(|_| self.cursor_delivered) {
            Some(end) => self.unreported = view.batch.len() - end,
            None => self.unreported += view.batch.len() - view.from,
        }
    }

    /// Whether so many entries passed that the reader is to be told now.
    pub(super) fn is_due(&self) -> bool {
        self.unreported >= UNREPORTED_MAX
    }

    /// Waits until it is time to tell, and something is to be told. Cancel-safe.
    pub(super) async fn wait_until_due(&mut self) {
        loop {
            self.interval.tick().await;
            if self.unreported > 0 {
                return;
            }
        }
    }

    /// The reader was told.
    pub(super) fn on_reported(&mut self) {
        self.unreported = 0;
        self.interval.reset();
    }
}

/// Waits until it is time to tell a reader its position; for ever where it always knows.
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
    async fn what_passes_behind_the_last_delivered_entry_is_counted() {
        let mut positions = PositionReporter::new(true, Duration::from_secs(3_600));
        positions.on_view(&view(999, 0), None);
        assert!(!positions.is_due());
        positions.on_view(&view(999, 0), Some(999));
        positions.on_view(&view(1_000, 1), None);
        assert!(!positions.is_due(), "what was delivered told it");
        positions.on_view(&view(2, 1), None);
        assert!(positions.is_due());
        positions.on_reported();
        assert!(!positions.is_due());
        positions.on_view(&view(1_500, 0), Some(10));
        assert!(positions.is_due(), "much came behind it");
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
        assert!(early.is_err(), "nothing passed");
        positions.on_view(&view(1, 0), None);
        positions.wait_until_due().await;
    }
}
