//! Where each reader on behalf of a client stands in a log, so that somebody can ask who is furthest behind. It keeps
//! numbers only: a reader that goes is forgotten with its place.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::model::Offset;

/// The places of one log.
#[derive(Debug, Default)]
pub(super) struct ProgressTracker(Mutex<Vec<Weak<AtomicU64>>>);

/// One reader's place; nobody's any more when dropped.
#[derive(Debug)]
pub struct ReaderProgress(Arc<AtomicU64>);

impl ReaderProgress {
    /// The reader was handed everything up to this entry.
    pub fn advance_to(&self, offset: Offset) {
        self.0.store(offset.0, Ordering::Relaxed);
    }
}

impl ProgressTracker {
    pub(super) fn add(&self, after: Offset) -> ReaderProgress {
        let place = Arc::new(AtomicU64::new(after.0));
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it grows, it forgets who has gone: it stays about as large as the most there were at a time.
        if places.len() == places.capacity() {
            places.retain(|place| place.strong_count() > 0);
        }
        places.push(Arc::downgrade(&place));
        ReaderProgress(place)
    }

    /// How many entries up to `last` the reader that is furthest behind has not been handed; 0 without readers.
    pub(super) fn lag_max(&self, last: Offset) -> u64 {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        assert!(places.0.lock().unwrap().capacity() < 100);
    }
}
