//! Events with old numbers: a replay, or a numbering that starts over.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::limits::{HELD_BYTES_MAX, REORDER_MAX};
use crate::{
    model::{Event, Sequence},
    protocol::session::SessionId,
};

/// This many events with old numbers are a reset.
const CANDIDATES_MAX: usize = 100;
/// After this time the candidates are a reset if their run has not reached the newest number.
const DECISION_MAX: Duration = Duration::from_millis(500);

/// Events with old numbers that are not known as repetitions.
#[derive(Debug)]
pub(super) struct ResetCandidates {
    pub(super) session: SessionId,
    since: Instant,
    pub(super) events: BTreeMap<Sequence, Event>,
}

impl ResetCandidates {
    pub(super) fn new(session: SessionId, now: Instant) -> Self {
        Self { session, since: now, events: BTreeMap::new() }
    }

    /// When it must be decided what the candidates are.
    pub(super) fn decision_at(&self) -> Instant {
        self.since + DECISION_MAX
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= CANDIDATES_MAX || weight(&self.events) >= HELD_BYTES_MAX
    }

    /// Whether an event may belong to the same run: it has the same session, and its number is new and at most a little
    /// out of order.
    pub(super) fn can_extend(&self, session: SessionId, sequence: Sequence) -> bool {
        let in_order = self.last().is_none_or(|last| sequence.0.saturating_add(REORDER_MAX as u64) > last.0);
        self.session == session && in_order && !self.events.contains_key(&sequence)
    }

    pub(super) fn ends_before(&self, session: SessionId, sequence: Sequence) -> bool {
        self.session == session && self.last().is_some_and(|last| last < sequence)
    }

    /// Whether the run begins a little after this number.
    pub(super) fn is_just_behind(&self, stray: Sequence) -> bool {
        let first = self.first().map(|first| first.0);
        first.is_some_and(|first| first > stray.0 && first - stray.0 <= REORDER_MAX as u64)
    }

    pub(super) fn first(&self) -> Option<Sequence> {
        self.events.first_key_value().map(|(sequence, _)| *sequence)
    }

    pub(super) fn last(&self) -> Option<Sequence> {
        self.events.last_key_value().map(|(sequence, _)| *sequence)
    }

    pub(super) fn bytes(&self) -> usize {
        weight(&self.events)
    }
}

/// The size of these events in bytes.
pub(super) fn weight(events: &BTreeMap<Sequence, Event>) -> usize {
    events.values().map(Event::weight).sum()
}
