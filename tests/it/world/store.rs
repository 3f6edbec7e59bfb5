//! The model store: acknowledged appends stay; after a crash, a pending append may or may not be written.

use std::collections::BTreeMap;

use trunkline::{
    model::{Checkpoint, Epoch, Event, Mark, Offset, Sequence},
    protocol::stream::LogHead,
};

use super::schedule::WorldTime;

/// A log with its position.
#[derive(Debug)]
pub(super) struct ModelStore {
    epoch: Epoch,
    pub(super) log: Vec<Event>,
    pub(super) checkpoint: Option<Checkpoint>,
    damaged: bool,
    /// The pending append of each process.
    pending: BTreeMap<u32, (Vec<Event>, Checkpoint)>,
    /// The process whose appends are accepted; 0 for any.
    pub(super) holder: u32,
    /// Appends are not acknowledged before this time.
    pub(super) stalls_until: WorldTime,
}

impl ModelStore {
    pub(super) fn new() -> Self {
        let stalls_until = WorldTime::ZERO;
        Self {
            epoch: Epoch(1),
            log: Vec::new(),
            checkpoint: None,
            damaged: false,
            pending: BTreeMap::new(),
            holder: 0,
            stalls_until,
        }
    }

    pub(super) fn opening(&self) -> LogHead {
        LogHead { checkpoint: self.checkpoint.clone(), damaged: self.damaged }
    }

    pub(super) fn position(&self) -> Option<Sequence> {
        self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.position.as_ref()?.order())
    }

    pub(super) fn start_append(&mut self, incarnation: u32, events: Vec<Event>, checkpoint: Checkpoint) {
        let before = self.pending.insert(incarnation, (events, checkpoint));
        assert!(before.is_none(), "one append at a time");
    }

    /// Stores the pending append and returns the address of its last entry. `None` if there is none or the process does
    /// not own the log.
    pub(super) fn commit(&mut self, incarnation: u32) -> Option<Mark> {
        let (events, checkpoint) = self.pending.remove(&incarnation)?;
        if self.holder != 0 && self.holder != incarnation {
            return None;
        }
        self.log.extend(events);
        self.checkpoint = Some(checkpoint);
        self.damaged = false;
        Some(Mark { epoch: self.epoch, offset: Offset(self.log.len() as u64) })
    }

    /// The process crashed: its pending append is written or discarded.
    pub(super) fn abandon(&mut self, incarnation: u32, was_written: bool) {
        if was_written && self.pending.contains_key(&incarnation) {
            self.commit(incarnation);
        }
        self.pending.remove(&incarnation);
    }

    /// Deletes everything; a new log starts.
    pub(super) fn wipe(&mut self) {
        let epoch = Epoch(self.epoch.0 + 1);
        *self = Self { epoch, damaged: true, ..Self::new() };
    }

    /// The address of the entry at this index of the log.
    pub(super) fn mark(&self, place: usize) -> Mark {
        Mark { epoch: self.epoch, offset: Offset(place as u64 + 1) }
    }
}
