//! The positions of the clients' readers in a log, for the lag of the slowest one. It keeps numbers only, each until its
//! reader is dropped.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::model::Offset;

/// The positions of one log's readers.
#[derive(Debug, Default)]
pub(super) struct ProgressTracker(Mutex<Vec<Weak<AtomicU64>>>);

/// One reader's position, tracked until it is dropped.
#[derive(Debug)]
pub struct ReaderProgress(Arc<AtomicU64>);

impl ReaderProgress {
    /// The reader got all entries up to this one.
    pub fn advance_to(&self, offset: Offset) {
        self.0.store(offset.0, Ordering::Relaxed);
    }
}

impl ProgressTracker {
    pub(super) fn add(&self, after: Offset) -> ReaderProgress {
        let place = Arc::new(AtomicU64::new(after.0));
        let mut places = self.0.lock();
        // Dropped readers are removed before the list grows, so it stays near the largest number of concurrent readers.
        if places.len() == places.capacity() {
            places.retain(|place| place.strong_count() > 0);
        }
        places.push(Arc::downgrade(&place));
        ReaderProgress(place)
    }

    /// The number of entries up to `last` that the slowest reader has not got; 0 without readers.
    pub(super) fn lag_max(&self, last: Offset) -> u64 {
        let places = self.0.lock();
        let reached = places.iter().filter_map(Weak::upgrade).map(|place| place.load(Ordering::Relaxed));
        reached.min().map_or(0, |reached| last.0.saturating_sub(reached))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_max_counts_the_reader_furthest_behind_until_it_is_dropped() {
        let places = ProgressTracker::default();
        assert_eq!(places.lag_max(Offset(9)), 0);
        let (near, far) = (places.add(Offset(8)), places.add(Offset(2)));
        assert_eq!(places.lag_max(Offset(10)), 8);
        far.advance_to(Offset(9));
        assert_eq!(places.lag_max(Offset(10)), 2);
        drop((near, far));
        assert_eq!(places.lag_max(Offset(10)), 0);
    }

    #[test]
    fn a_dropped_reader_frees_its_slot() {
        let places = ProgressTracker::default();
        for _ in 0..10_000 {
            drop(places.add(Offset(1)));
        }
        assert!(places.0.lock().capacity() < 100);
    }
}
