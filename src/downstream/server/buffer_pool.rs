//! What clients have not taken yet of what was read and rendered for them: one budget for pages and endless answers.
//!
//! A page takes room before it is made, and keeps it. Entries that a slow reader is being sent are in a log and can be
//! read again: the oldest give way where room is needed. So nobody waits for a reader that takes nothing. Readers of the
//! same entries share them, wherever each of them had them from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::model::{Batch, BatchView, Epoch, Offset, StreamName};

/// What all clients together may not have taken.
pub(super) const HELD_LEN_MAX: usize = 64 * 1024 * 1024;
/// While less than a quarter of the room is left, each reader reads no more than this at a time, or one batch.
const READ_LEN_MIN: usize = 16 * 1024;
/// A page that finds no room waits so long.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Room is counted in units of this, rounded up.
const UNIT: usize = 1024;

/// What is kept of a batch for readers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum CopyKind {
    /// Its own bytes.
    Plain,
    /// Its own bytes, and as server-sent events.
    WithSse,
    /// Its own bytes, and as WebSocket frames.
    WithFrames,
}

/// The room that all clients of a server share.
#[derive(Debug, Clone)]
pub(super) struct BufferPool(Arc<BufferPoolState>);

#[derive(Debug)]
struct BufferPoolState {
    free: Arc<Semaphore>,
    units: usize,
    holds: Mutex<HoldTable>,
}

/// Entries of slow readers.
#[derive(Debug, Default)]
struct HoldTable {
    batches: HashMap<BatchKey, PooledBatch>,
    /// Who has waited longest comes first.
    holds: BTreeMap<u64, PooledViews>,
    last_hold: u64,
}

#[derive(Debug)]
struct PooledViews {
    group: BatchGroup,
    views: Views,
}

/// Readers of one stream and kind have batches in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct BatchGroup {
    stream: StreamName,
    copies: CopyKind,
}

type BatchKey = (BatchGroup, Epoch, Offset);

type Views = Arc<Mutex<Vec<BatchView>>>;

/// A batch that one or several holds have in common.
#[derive(Debug)]
struct PooledBatch {
    batch: Arc<Batch>,
    holds: usize,
    _room: OwnedSemaphorePermit,
}

/// There is no room, and nothing that would give way.
#[derive(Debug)]
pub(super) struct PoolExhausted;

impl BufferPool {
    pub(super) fn of(bytes: usize) -> Self {
        let units = units(bytes);
        let free = Arc::new(Semaphore::new(units));
        Self(Arc::new(BufferPoolState { free, units, holds: Mutex::default() }))
    }

    /// How much a reader that would like to read `most` reads now.
    pub(super) fn read_len(&self, most: usize) -> usize {
        let is_short = self.0.free.available_permits() < self.0.units / 4;
        if is_short { READ_LEN_MIN.min(most) } else { most }
    }

    /// Room for one page.
    pub(super) async fn reserve_page(&self, bytes: usize) -> Result<PageReservation, PoolExhausted> {
        Ok(PageReservation { memory: self.clone(), held: self.reserve(self.clamp_units(bytes)).await? })
    }

    /// Keeps entries that a reader has not taken, for as long as there is room. None: there is none now.
    pub(super) fn hold(&self, stream: &StreamName, copies: CopyKind, mut views: Vec<BatchView>) -> Option<BatchHold> {
        let group = BatchGroup { stream: stream.clone(), copies };
        let mut table = self.holds();
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

    /// Counts the batch of a view once for all that hold it, and makes it the same one for all.
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

    /// Takes room without waiting; what is oldest gives way.
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
        let mut table = self.holds();
        while self.0.free.available_permits() < units && table.evict_oldest() {}
    }

    /// What so many bytes take. More than there is in all can never be had: a page as large as that takes everything.
    fn clamp_units(&self, bytes: usize) -> usize {
        units(bytes).min(self.0.units)
    }

    fn holds(&self) -> MutexGuard<'_, HoldTable> {
        self.0.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are taken, rounded up.
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
        let views = std::mem::take(&mut *held.views.lock().unwrap_or_else(PoisonError::into_inner));
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

/// Entries that one slow reader is being sent.
#[derive(Debug)]
pub(super) struct BatchHold {
    memory: BufferPool,
    number: u64,
    views: Views,
}

impl BatchHold {
    /// None of them is left when they had to give way.
    pub(super) fn views(&self) -> Vec<BatchView> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its reader took something: all others give way before it.
    pub(super) fn renew(&mut self) {
        let mut table = self.memory.holds();
        if let Some(held) = table.holds.remove(&self.number) {
            self.number = table.insert(held);
        }
    }
}

impl Drop for BatchHold {
    fn drop(&mut self) {
        let mut table = self.memory.holds();
        if let Some(held) = table.holds.remove(&self.number) {
            table.remove(&held);
        }
    }
}

/// Room for one page, given back as its client takes it.
#[derive(Debug)]
pub(super) struct PageReservation {
    memory: BufferPool,
    held: OwnedSemaphorePermit,
}

impl PageReservation {
    /// Makes it as large as `bytes`.
    pub(super) async fn resize(&mut self, bytes: usize) -> Result<(), PoolExhausted> {
        let (held, wanted) = (self.held.num_permits(), self.memory.clamp_units(bytes));
        if wanted > held {
            // Two that wait for one another are both refused at the deadline.
            let rest = self.memory.reserve(wanted - held).await?;
            self.held.merge(rest);
        }
        self.release(held.saturating_sub(wanted));
        Ok(())
    }

    /// The client took so many bytes.
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
        assert!(memory.holds().batches.is_empty() && memory.holds().holds.is_empty());
    }

    #[test]
    fn other_entries_under_the_same_number_are_not_shared() {
        let memory = BufferPool::of(8 * MIB);
        let _held = memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 1_000)]).unwrap();
        assert!(memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 1_001)]).is_none());
        assert!(memory.hold(&"agents".parse().unwrap(), CopyKind::WithFrames, vec![view(1, 1_001)]).is_some());
    }

    #[test]
    fn the_oldest_entries_give_way_and_the_room_is_never_exceeded() {
        let memory = BufferPool::of(8 * MIB);
        let holds: Vec<_> = (1..=20)
            .map(|first| memory.hold(&stream(), CopyKind::WithFrames, vec![view(first, MIB)]).unwrap())
            .collect();
        assert!(memory.used_bytes() <= 8 * MIB, "{}", memory.used_bytes());
        let left: Vec<bool> = holds.iter().map(|hold| !hold.views().is_empty()).collect();
        assert_eq!(left, [vec![false; 17], vec![true; 3]].concat());
        assert!(
            memory.hold(&stream(), CopyKind::WithFrames, vec![view(99, 8 * MIB)]).is_none(),
            "more than there is in all"
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
        assert!(memory.hold(&stream(), CopyKind::WithFrames, vec![view(1, 8)]).is_some(), "another kind, other copies");
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
