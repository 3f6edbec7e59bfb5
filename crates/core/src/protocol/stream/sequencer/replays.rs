//! Old numbers that are repetitions, although their events are not known: a session that resumed brings them, or another
//! replica stored them.

use std::collections::VecDeque;

use super::limits::REORDER_MAX;
use crate::{model::Sequence, protocol::session::SessionId};

/// The maximum number of sessions that replay at the same time.
const REPLAYS_MAX: usize = 64;

/// Which sessions replay, and what another replica stored.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// The newest sessions that were dialled with a number and have not caught up yet, and that number.
    sessions: VecDeque<(SessionId, Sequence)>,
    /// The last number that another replica stored. Sessions of this replica may bring older numbers too.
    takeover_position: Option<Sequence>,
}

impl Replays {
    /// A session is dialled with this number: it repeats the events after it.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Sequence) {
        if self.sessions.len() == REPLAYS_MAX {
            self.sessions.pop_front();
        }
        self.sessions.push_back((session, after));
    }

    /// The session brings new numbers.
    pub(super) fn on_caught_up(&mut self, session: SessionId) {
        self.sessions.retain(|(replaying, _)| *replaying != session);
    }

    /// Another replica stored the events up to this number.
    pub(super) fn took_over(&mut self, last: Option<Sequence>) {
        self.takeover_position = last;
    }

    /// The numbering starts over.
    pub(super) fn reset_numbering(&mut self) {
        self.takeover_position = None;
    }

    /// Whether this session repeats this number.
    pub(super) fn is_repeated_by(&self, session: SessionId, sequence: Sequence) -> bool {
        self.sessions.iter().any(|(replaying, after)| *replaying == session && sequence > *after)
    }

    /// Whether this number lies a little before the last number that another replica stored. `last`: the last number
    /// accepted.
    pub(super) fn is_before_takeover(&self, last: Sequence, sequence: Sequence) -> bool {
        let near = |number: Sequence, other: Sequence| number.0.abs_diff(other.0) < REORDER_MAX as u64;
        self.takeover_position.is_some_and(|end| sequence <= end && near(sequence, end) && near(last, end))
    }
}
