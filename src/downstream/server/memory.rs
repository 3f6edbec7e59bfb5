//! What readers of old entries hold of their own while their clients take it. Entries of a log's tail are shared by all
//! who read them and are not counted; what was read from the store is one reader's alone.
//!
//! It makes nobody wait: while much is held, each reader reads less at a time. So many slow clients cost little each,
//! and a quick one only smaller steps.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::model::BatchView;

/// While readers hold more than this of their own, each reads …
const HELD_MAX: usize = 64 * 1024 * 1024;
/// … no more than this at a time, or one batch.
const READ_LEN_MIN: usize = 16 * 1024;

/// What all readers of a server hold of their own, in bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<AtomicUsize>);

/// What one reader holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    /// How much a reader that would like to read `most` reads now.
    pub(super) fn read_len(&self, most: usize) -> usize {
        if self.0.load(Ordering::Relaxed) > HELD_MAX { READ_LEN_MIN.min(most) } else { most }
    }

    /// Counts what nobody else holds of these views; none where that is nothing. On the heap: few subscribers hold any,
    /// and all keep room for it.
    pub(super) fn hold(&self, views: &[BatchView]) -> Option<Box<Held>> {
        let own = views.iter().filter(|view| Arc::strong_count(&view.batch) == 1);
        let bytes: usize = own.map(|view| view.batch.bytes().len()).sum();
        (bytes > 0).then(|| {
            self.0.fetch_add(bytes, Ordering::Relaxed);
            Box::new(Held { memory: self.clone(), bytes })
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Batch, Epoch, Offset, StoredEntry, Timestamp};

    fn view(len: usize) -> BatchView {
        let json = vec![b'x'; len];
        let entry = StoredEntry { json: &json, kind: (0, 0), received: Timestamp(0) };
        BatchView { batch: Arc::new(Batch::of(Epoch(1), Offset(1), &[entry]).unwrap()), from: 0 }
    }

    #[test]
    fn readers_read_less_at_a_time_while_much_is_held() {
        let memory = Memory::default();
        let (own, shared) = (view(HELD_MAX + 1), view(HELD_MAX + 1));
        let _tail = Arc::clone(&shared.batch);
        assert!(memory.hold(&[shared]).is_none(), "the tail's entries are nobody's own");
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
        let held = memory.hold(&[own]);
        assert_eq!(memory.read_len(256 * 1024), READ_LEN_MIN);
        assert_eq!(memory.read_len(1_000), 1_000);
        drop(held);
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
    }
}
