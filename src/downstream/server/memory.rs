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
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// Room is counted in units of this, rounded up.
const UNIT: usize = 1024;

/// What is kept of a batch for readers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Copies {
    /// Its own bytes.
    Plain,
    /// Its own bytes, and as server-sent events.
    WithSse,
    /// Its own bytes, and as WebSocket frames.
    WithFrames,
}

/// The room that all clients of a server share.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Arc<Semaphore>,
    units: usize,
    kept: Mutex<Kept>,
}

/// Entries of slow readers.
#[derive(Debug, Default)]
struct Kept {
    batches: HashMap<Key, KeptBatch>,
    /// Who has waited longest comes first.
    holds: BTreeMap<u64, Held>,
    holds_begun: u64,
}

#[derive(Debug)]
struct Held {
    whose: Whose,
    views: Views,
}

/// Readers of one stream and kind have batches in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Whose {
    stream: StreamName,
    copies: Copies,
}

type Key = (Whose, Epoch, Offset);

type Views = Arc<Mutex<Vec<BatchView>>>;

/// A batch that one or several holds have in common.
#[derive(Debug)]
struct KeptBatch {
    batch: Arc<Batch>,
    holds: usize,
    _room: OwnedSemaphorePermit,
}

/// There is no room, and nothing that would give way.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Memory {
    pub(super) fn of(bytes: usize) -> Self {
        let units = units(bytes);
        let free = Arc::new(Semaphore::new(units));
        Self(Arc::new(Shared { free, units, kept: Mutex::default() }))
    }

    /// How much a reader that would like to read `most` reads now.
    pub(super) fn read_len(&self, most: usize) -> usize {
        let is_short = self.0.free.available_permits() < self.0.units / 4;
        if is_short { READ_LEN_MIN.min(most) } else { most }
    }

    /// Room for one page.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room, NoRoom> {
        Ok(Room { memory: self.clone(), held: self.take(self.part(bytes)).await? })
    }

    /// Keeps entries that a reader has not taken, for as long as there is room. None: there is none now.
    pub(super) fn hold(&self, stream: &StreamName, copies: Copies, mut views: Vec<BatchView>) -> Option<Hold> {
        let whose = Whose { stream: stream.clone(), copies };
        let mut kept = self.kept();
        for index in 0..views.len() {
            if !self.keep(&mut kept, &whose, &mut views[index]) {
                kept.release(&whose, &views[..index]);
                return None;
            }
        }
        let views = Arc::new(Mutex::new(views));
        let number = kept.begin(Held { whose, views: Arc::clone(&views) });
        Some(Hold { memory: self.clone(), number, views })
    }

    /// Counts the batch of a view once for all that hold it, and makes it the same one for all.
    fn keep(&self, kept: &mut Kept, whose: &Whose, view: &mut BatchView) -> bool {
        let key = key(whose, &view.batch);
        if let Some(known) = kept.batches.get_mut(&key) {
            let same = Arc::ptr_eq(&known.batch, &view.batch) || known.batch.bytes() == view.batch.bytes();
            if same {
                known.holds += 1;
                view.batch = Arc::clone(&known.batch);
            }
            return same;
        }
        let Some(room) = self.take_now(kept, whose.weight(&view.batch)) else { return false };
        kept.batches.insert(key, KeptBatch { batch: Arc::clone(&view.batch), holds: 1, _room: room });
        true
    }

    /// Takes room without waiting; what is oldest gives way.
    fn take_now(&self, kept: &mut Kept, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
        if units(bytes) > self.0.units {
            return None;
        }
        loop {
            if let Ok(room) = Arc::clone(&self.0.free).try_acquire_many_owned(wanted) {
                return Some(room);
            }
            if !kept.let_oldest_go() {
                return None;
            }
        }
    }

    async fn take(&self, units: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
        self.make_room(units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let taken = timeout(ROOM_WAIT_MAX, Arc::clone(&self.0.free).acquire_many_owned(units)).await;
        taken.ok().and_then(Result::ok).ok_or(NoRoom)
    }

    fn make_room(&self, units: usize) {
        let mut kept = self.kept();
        while self.0.free.available_permits() < units && kept.let_oldest_go() {}
    }

    /// What so many bytes take. More than there is in all can never be had: a page as large as that takes everything.
    fn part(&self, bytes: usize) -> usize {
        units(bytes).min(self.0.units)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are taken, rounded up.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        (self.0.units - self.0.free.available_permits()) * UNIT
    }
}

impl Kept {
    fn let_oldest_go(&mut self) -> bool {
        let Some((_, oldest)) = self.holds.pop_first() else { return false };
        self.end(&oldest);
        true
    }

    fn begin(&mut self, held: Held) -> u64 {
        self.holds_begun += 1;
        self.holds.insert(self.holds_begun, held);
        self.holds_begun
    }

    fn end(&mut self, held: &Held) {
        let views = std::mem::take(&mut *held.views.lock().unwrap_or_else(PoisonError::into_inner));
        self.release(&held.whose, &views);
    }

    fn release(&mut self, whose: &Whose, views: &[BatchView]) {
        for view in views {
            let key = key(whose, &view.batch);
            let Some(known) = self.batches.get_mut(&key) else { continue };
            known.holds -= 1;
            if known.holds == 0 {
                self.batches.remove(&key);
            }
        }
    }
}

fn key(whose: &Whose, batch: &Batch) -> Key {
    (whose.clone(), batch.epoch(), batch.first())
}

impl Whose {
    fn weight(&self, batch: &Batch) -> usize {
        let len = batch.bytes().len();
        match self.copies {
            Copies::Plain => len,
            Copies::WithSse | Copies::WithFrames => 2 * len + UNIT,
        }
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// Entries that one slow reader is being sent.
#[derive(Debug)]
pub(super) struct Hold {
    memory: Memory,
    number: u64,
    views: Views,
}

impl Hold {
    /// None of them is left when they had to give way.
    pub(super) fn views(&self) -> Vec<BatchView> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its reader took something: all others give way before it.
    pub(super) fn renew(&mut self) {
        let mut kept = self.memory.kept();
        if let Some(held) = kept.holds.remove(&self.number) {
            self.number = kept.begin(held);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut kept = self.memory.kept();
        if let Some(held) = kept.holds.remove(&self.number) {
            kept.end(&held);
        }
    }
}

/// Room for one page, given back as its client takes it.
#[derive(Debug)]
pub(super) struct Room {
    memory: Memory,
    held: OwnedSemaphorePermit,
}

impl Room {
    /// Makes it as large as `bytes`.
    pub(super) async fn fit(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let (held, wanted) = (self.held.num_permits(), self.memory.part(bytes));
        if wanted > held {
            // Two that wait for one another are both refused at the deadline.
            let rest = self.memory.take(wanted - held).await?;
            self.held.merge(rest);
        }
        self.give_back(held.saturating_sub(wanted));
        Ok(())
    }

    /// The client took so many bytes.
    pub(super) fn taken(&mut self, bytes: usize) {
        let left = self.held.num_permits();
        self.give_back((bytes / UNIT).min(left));
    }

    fn give_back(&mut self, units: usize) {
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
        let memory = Memory::of(8 * MIB);
        let first = memory.hold(&stream(), Copies::WithFrames, vec![view(1, MIB)]).unwrap();
        let taken = memory.taken();
        assert!((2 * MIB..3 * MIB).contains(&taken), "{taken}");
        let others: Vec<_> =
            (0..100).map(|_| memory.hold(&stream(), Copies::WithFrames, vec![view(1, MIB)]).unwrap()).collect();
        assert_eq!(memory.taken(), taken);
        assert!(others.iter().all(|other| Arc::ptr_eq(&other.views()[0].batch, &first.views()[0].batch)));
        drop((first, others));
        assert_eq!(memory.taken(), 0);
        assert!(memory.kept().batches.is_empty() && memory.kept().holds.is_empty());
    }

    #[test]
    fn other_entries_under_the_same_number_are_not_shared() {
        let memory = Memory::of(8 * MIB);
        let _held = memory.hold(&stream(), Copies::WithFrames, vec![view(1, 1_000)]).unwrap();
        assert!(memory.hold(&stream(), Copies::WithFrames, vec![view(1, 1_001)]).is_none());
        assert!(memory.hold(&"agents".parse().unwrap(), Copies::WithFrames, vec![view(1, 1_001)]).is_some());
    }

    #[test]
    fn the_oldest_entries_give_way_and_the_room_is_never_exceeded() {
        let memory = Memory::of(8 * MIB);
        let holds: Vec<_> =
            (1..=20).map(|first| memory.hold(&stream(), Copies::WithFrames, vec![view(first, MIB)]).unwrap()).collect();
        assert!(memory.taken() <= 8 * MIB, "{}", memory.taken());
        let left: Vec<bool> = holds.iter().map(|hold| !hold.views().is_empty()).collect();
        assert_eq!(left, [vec![false; 17], vec![true; 3]].concat());
        assert!(
            memory.hold(&stream(), Copies::WithFrames, vec![view(99, 8 * MIB)]).is_none(),
            "more than there is in all"
        );
        drop(holds);
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn who_takes_something_keeps_its_entries_longer_than_who_takes_nothing() {
        let memory = Memory::of(8 * MIB);
        let hold = |first| memory.hold(&stream(), Copies::Plain, vec![view(first, 3 * MIB)]).unwrap();
        let (mut quick, stuck) = (hold(1), hold(2));
        quick.renew();
        let _third = hold(3);
        assert!(!quick.views().is_empty() && stuck.views().is_empty());
        assert!(memory.hold(&stream(), Copies::WithFrames, vec![view(1, 8)]).is_some(), "another kind, other copies");
    }

    #[tokio::test]
    async fn entries_of_slow_readers_give_way_to_a_page_and_a_page_to_nobody() {
        let memory = Memory::of(8 * MIB);
        let hold = memory.hold(&stream(), Copies::WithFrames, vec![view(1, MIB)]).unwrap();
        let mut page = memory.room(8 * MIB).await.unwrap();
        assert!(hold.views().is_empty());
        assert!(memory.hold(&stream(), Copies::WithFrames, vec![view(2, MIB)]).is_none());
        assert!(memory.room(1).now_or_never().is_none(), "a second page waits");
        page.taken(4 * MIB);
        assert!(memory.hold(&stream(), Copies::WithFrames, vec![view(2, MIB)]).is_some());
    }

    #[test]
    fn readers_read_less_at_a_time_while_little_room_is_left() {
        let memory = Memory::of(8 * MIB);
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
        let held = memory.hold(&stream(), Copies::WithFrames, vec![view(1, 3 * MIB + MIB / 2)]);
        assert_eq!(memory.read_len(256 * 1024), READ_LEN_MIN);
        assert_eq!(memory.read_len(1_000), 1_000);
        drop(held);
        assert_eq!(memory.read_len(256 * 1024), 256 * 1024);
    }
}
