//! One memory budget for pages and entries that clients have not read yet.
//!
//! A page reserves memory before it is built. Entries of slow readers can be read from the log again, so the oldest are
//! evicted when memory is needed, and no client waits for a reader that is stalled. Readers of the same entries share
//! them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::model::{Batch, BatchView, Epoch, Offset, StreamName};

/// Default budget of all clients in bytes.
pub(super) const HELD_LEN_MAX: usize = 64 * 1024 * 1024;
/// Maximum bytes per read while less than a quarter of the budget is free. One batch is always read.
const READ_LEN_MIN: usize = 16 * 1024;
/// Time that a page waits for memory.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of a unit of the budget; sizes are rounded up.
const UNIT: usize = 1024;

/// The renderings of a batch that readers of one kind need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CopyKind {
    /// The bytes of the batch.
    Plain,
    /// The bytes and the server-sent events.
    WithSse,
    /// The bytes and the WebSocket frames.
    WithFrames,
}

/// The memory budget of a server.
#[derive(Debug, Clone)]
pub(super) struct BufferPool(Arc<BufferPoolState>);

#[derive(Debug)]
struct BufferPoolState {
    free: Arc<Semaphore>,
    units: usize,
    holds: Mutex<HoldTable>,
}

/// The held entries of slow readers.
#[derive(Debug, Default)]
struct HoldTable {
    batches: HashMap<BatchKey, PooledBatch>,
    /// Ordered by the last progress of the reader, oldest first.
    holds: BTreeMap<u64, PooledViews>,
    last_hold: u64,
}

#[derive(Debug)]
struct PooledViews {
    group: BatchGroup,
    views: Views,
}

/// Batches shared by readers of the same stream and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BatchGroup {
    stream: StreamName,
    copies: CopyKind,
}

type BatchKey = (BatchGroup, Epoch, Offset);

type Views = Arc<Mutex<Vec<BatchView>>>;

/// A batch shared by one or several holds.
#[derive(Debug)]
struct PooledBatch {
    batch: Arc<Batch>,
    holds: usize,
    _room: OwnedSemaphorePermit,
}

/// The budget is used up and nothing can be evicted.
#[derive(Debug)]
pub(super) struct PoolExhausted;

impl BufferPool {
    pub(super) fn of(bytes: usize) -> Self {
        let units = units(bytes);
        let free = Arc::new(Semaphore::new(units));
        Self(Arc::new(BufferPoolState { free, units, holds: Mutex::default() }))
    }

    /// The bytes that a reader may read now, at most `most`.
    pub(super) fn read_len(&self, most: usize) -> usize {
        let is_short = self.0.free.available_permits() < self.0.units / 4;
        if is_short { READ_LEN_MIN.min(most) } else { most }
    }

    /// Reserves memory for a page.
    pub(super) async fn reserve_page(&self, bytes: usize) -> Result<PageReservation, PoolExhausted> {
        Ok(PageReservation { memory: self.clone(), held: self.reserve(self.clamp_units(bytes)).await? })
    }

    /// Holds entries for a slow reader until they are evicted. None if there is no memory now.
    pub(super) fn hold(&self, stream: &StreamName, copies: CopyKind, mut views: Vec<BatchView>) -> Option<BatchHold> {
        let group = BatchGroup { stream: stream.clone(), copies };
        let mut table = self.0.holds.lock();
        for index in 0..views.len() {
            if !self.retain(&mut table, &group, &mut views[index]) {
                table.release(&group, &views[..index]);
                return None;
            }
        }
        let views = Arc::new(Mutex::new(views));
        let number = table.insert(PooledViews { group, views: Arc::clone(&views) });
        Some(BatchHold { memory: self.clone(), number, views })
    }

    /// Counts a shared batch once and replaces the view's batch by the shared one.
    fn retain(&self, table: &mut HoldTable, group: &BatchGroup, view: &mut BatchView) -> bool {
        let key = key(group, &view.batch);
        if let Some(known) = table.batches.get_mut(&key) {
            let same = Arc::ptr_eq(&known.batch, &view.batch) || known.batch.bytes() == view.batch.bytes();
            if same {
                known.holds += 1;
                view.batch = Arc::clone(&known.batch);
            }
            return same;
        }
        let Some(room) = self.reserve_now(table, group.weight(&view.batch)) else { return false };
        table.batches.insert(key, PooledBatch { batch: Arc::clone(&view.batch), holds: 1, _room: room });
        true
    }

    /// Reserves memory without waiting, evicting the oldest holds.
    fn reserve_now(&self, table: &mut HoldTable, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
        if units(bytes) > self.0.units {
            return None;
        }
        loop {
            if let Ok(room) = Arc::clone(&self.0.free).try_acquire_many_owned(wanted) {
                return Some(room);
            }
            if !table.evict_oldest() {
                return None;
            }
        }
    }

    async fn reserve(&self, units: usize) -> Result<OwnedSemaphorePermit, PoolExhausted> {
        self.evict_for(units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let taken = timeout(RESERVE_TIMEOUT, Arc::clone(&self.0.free).acquire_many_owned(units)).await;
        taken.ok().and_then(Result::ok).ok_or(PoolExhausted)
    }

    fn evict_for(&self, units: usize) {
        let mut table = self.0.holds.lock();
        while self.0.free.available_permits() < units && table.evict_oldest() {}
    }

    /// The units for a number of bytes, at most the whole budget.
    fn clamp_units(&self, bytes: usize) -> usize {
        units(bytes).min(self.0.units)
    }

    /// Used bytes, rounded up.
    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        (self.0.units - self.0.free.available_permits()) * UNIT
    }
}

impl HoldTable {
    fn evict_oldest(&mut self) -> bool {
        let Some((_, oldest)) = self.holds.pop_first() else { return false };
        self.remove(&oldest);
        true
    }

    fn insert(&mut self, held: PooledViews) -> u64 {
        self.last_hold += 1;
        self.holds.insert(self.last_hold, held);
        self.last_hold
    }

    fn remove(&mut self, held: &PooledViews) {
        let views = std::mem::take(&mut *held.views.lock());
        self.release(&held.group, &views);
    }

    fn release(&mut self, group: &BatchGroup, views: &[BatchView]) {
        for view in views {
            let key = key(group, &view.batch);
            let Some(known) = self.batches.get_mut(&key) else { continue };
            known.holds -= 1;
            if known.holds == 0 {
                self.batches.remove(&key);
            }
        }
    }
}

fn key(group: &BatchGroup, batch: &Batch) -> BatchKey {
    (group.clone(), batch.epoch(), batch.first())
}

impl BatchGroup {
    fn weight(&self, batch: &Batch) -> usize {
        let len = batch.bytes().len();
        match self.copies {
            CopyKind::Plain => len,
            CopyKind::WithSse | CopyKind::WithFrames => 2 * len + UNIT,
        }
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// The held entries of one slow reader.
#[derive(Debug)]
pub(super) struct BatchHold {
    memory: BufferPool,
    number: u64,
    views: Views,
}

impl BatchHold {
    /// The entries; empty after they were evicted.
    pub(super) fn views(&self) -> Vec<BatchView> {
        self.views.lock().clone()
    }

    /// Records progress of the reader: other holds are evicted first.
    pub(super) fn renew(&mut self) {
        let mut table = self.memory.0.holds.lock();
        if let Some(held) = table.holds.remove(&self.number) {
            self.number = table.insert(held);
        }
    }
}

impl Drop for BatchHold {
    fn drop(&mut self) {
        let mut table = self.memory.0.holds.lock();
        if let Some(held) = table.holds.remove(&self.number) {
            table.remove(&held);
        }
    }
}

/// Memory of one page, released as its client reads it.
#[derive(Debug)]
pub(super) struct PageReservation {
    memory: BufferPool,
    held: OwnedSemaphorePermit,
}

impl PageReservation {
    /// Resizes the reservation to `bytes`.
    pub(super) async fn resize(&mut self, bytes: usize) -> Result<(), PoolExhausted> {
        let (held, wanted) = (self.held.num_permits(), self.memory.clamp_units(bytes));
        if wanted > held {
            // Two pages that wait for each other both fail at the deadline.
            let rest = self.memory.reserve(wanted - held).await?;
            self.held.merge(rest);
        }
        self.release(held.saturating_sub(wanted));
        Ok(())
    }

    /// Releases bytes that were sent.
    pub(super) fn release_sent(&mut self, bytes: usize) {
        let left = self.held.num_permits();
        self.release((bytes / UNIT).min(left));
    }

    fn release(&mut self, units: usize) {
        drop(self.held.split(units));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::{StoredEntry, Timestamp};

    const MIB: usize = 1024 * 1024;

    fn stream() -> StreamName {
        "queues".parse().unwrap()
    }

    fn view(first: u64, len: usize) -> BatchView {
        let json = vec![b'x'; len];
        let entry = StoredEntry { json: &json, kind: (0, 0), received: Timestamp(0) };
        BatchView { batch: Arc::new(Batch::of(Epoch(1), Offset(first), &[entry]).unwrap()), from: 0 }
    }

    #[test]
    fn readers_of_the_same_entries_hold_them_once() {
        let memory = BufferPool::of(8 * MIB);
        let first = memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, MIB)]).unwrap();
        let taken = memory.used_bytes();
        assert!((2 * MIB..3 * MIB).contains(&taken), "{taken}");
        let others: Vec<_> =
            (0..100).map(|_| memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, MIB)]).unwrap()).collect();
        assert_eq!(memory.used_bytes(), taken);
        assert!(others.iter().all(|other| Arc::ptr_eq(&other.views()[0].batch, &first.views()[0].batch)));
        drop((first, others));
        assert_eq!(memory.used_bytes(), 0);
        assert!(memory.0.holds.lock().batches.is_empty() && memory.0.holds.lock().holds.is_empty());
    }

    #[test]
    fn other_entries_under_the_same_number_are_not_shared() {
        let memory = BufferPool::of(8 * MIB);
        let _held = memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 1_000)]).unwrap();
        assert!(memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 1_001)]).is_none());
        assert!(memory.hold(&"agents".parse().unwrap(), CopyKind::WithFrames, vec![view(1, 1_001)]).is_some());
    }

    #[test]
    fn the_oldest_entries_are_evicted_and_the_budget_is_never_exceeded() {
        let memory = BufferPool::of(8 * MIB);
        let holds: Vec<_> = (1..=20)
            .map(|first| memory.hold(&stream(), CopyKind::WithFrames, vec![view(first, MIB)]).unwrap())
            .collect();
        assert!(memory.used_bytes() <= 8 * MIB, "{}", memory.used_bytes());
        let left: Vec<bool> = holds.iter().map(|hold| !hold.views().is_empty()).collect();
        assert_eq!(left, [vec![false; 17], vec![true; 3]].concat());
        assert!(
            memory.hold(&stream(), CopyKind::WithFrames, vec![view(99, 8 * MIB)]).is_none(),
            "more than the whole budget"
        );
        drop(holds);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn progressing_readers_are_evicted_last() {
        let memory = BufferPool::of(8 * MIB);
        let hold = |first| memory.hold(&stream(), CopyKind::Plain, vec![view(first, 3 * MIB)]).unwrap();
        let (mut quick, stuck) = (hold(1), hold(2));
        quick.renew();
        let _third = hold(3);
        assert!(!quick.views().is_empty() && stuck.views().is_empty());
        assert!(
            memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 8)]).is_some(),
            "readers of another kind have other copies"
        );
    }

    #[tokio::test]
    async fn a_page_evicts_entries_of_slow_readers_but_no_other_page() {
        let memory = BufferPool::of(8 * MIB);
        let hold = memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, MIB)]).unwrap();
        let mut page = memory.reserve_page(8 * MIB).await.unwrap();
        assert!(hold.views().is_empty());
        assert!(memory.hold(&stream(), CopyKind::WithFrames, vec![view(2, MIB)]).is_none());
        assert!(memory.reserve_page(1).now_or_never().is_none(), "a second page waits");
        page.release_sent(4 * MIB);
        assert!(memory.hold(&stream(), CopyKind::WithFrames, vec![view(2, MIB)]).is_some());
    }

    #[test]
    fn readers_read_less_at_a_time_while_little_room_is_left() {
        let memory = BufferPool::of(8 * MIB);
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
        let held = memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 3 * MIB + MIB / 2)]);
        assert_eq!(memory.read_len(256 * 1024), READ_LEN_MIN);
        assert_eq!(memory.read_len(1_000), 1_000);
        drop(held);
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
    }
}
