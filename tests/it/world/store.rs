//! The model store: what it acknowledged stays, and what it had begun may or may not.

use trunkline::{
    model::{Checkpoint, Epoch, Event, Mark, Offset},
    protocol::stream::Opening,
};

use super::scene::Moment;

/// A log with its position.
#[derive(Debug)]
pub(super) struct Store {
    epoch: Epoch,
    pub(super) log: Vec<Event>,
    pub(super) checkpoint: Option<Checkpoint>,
    damaged: bool,
    begun: Option<(Vec<Event>, Checkpoint)>,
    /// Appends are not answered before.
    pub(super) stalls_until: Moment,
}

impl Store {
    pub(super) fn new() -> Self {
        let stalls_until = Moment::ZERO;
        Self { epoch: Epoch(1), log: Vec::new(), checkpoint: None, damaged: false, begun: None, stalls_until }
    }

    pub(super) fn opening(&self) -> Opening {
        Opening { checkpoint: self.checkpoint, damaged: self.damaged }
    }

    pub(super) fn begin(&mut self, events: Vec<Event>, checkpoint: Checkpoint) {
        assert!(self.begun.is_none(), "one append at a time");
        self.begun = Some((events, checkpoint));
    }

    /// What was begun is durable; returns the address of the last entry.
    pub(super) fn commit(&mut self) -> Mark {
        let (events, checkpoint) = self.begun.take().expect("an append was begun");
        self.log.extend(events);
        self.checkpoint = Some(checkpoint);
        self.damaged = false;
        Mark { epoch: self.epoch, offset: Offset(self.log.len() as u64) }
    }

    /// The process is gone: what was begun is there, or it is not.
    pub(super) fn abandon(&mut self, was_written: bool) {
        if was_written && self.begun.is_some() {
            self.commit();
        }
        self.begun = None;
    }

    /// Everything is lost: a new log begins.
    pub(super) fn wipe(&mut self) {
        let epoch = Epoch(self.epoch.0 + 1);
        *self = Self { epoch, damaged: true, ..Self::new() };
    }

    /// The address of the entry at this place of the log.
    pub(super) fn mark(&self, place: usize) -> Mark {
        Mark { epoch: self.epoch, offset: Offset(place as u64 + 1) }
    }
}
