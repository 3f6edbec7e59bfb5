//! The order of a numbered stream: each event once, in sequence, whichever session brought it.
//!
//! A missing number becomes a gap after a wait, a repeated event is dropped, and a numbering that starts over is
//! recognised. Nothing is dropped without a [`Decision`].

mod expected;
mod limits;
mod refetch;
mod replays;
mod reset;
mod seen;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests;

use std::{collections::BTreeMap, time::Instant};

use self::{
    expected::Expected,
    limits::{HELD_BYTES_MAX, REORDER_MAX, REORDER_WAIT_MAX},
    refetch::Refetches,
    replays::Replays,
    reset::{ResetCandidates, weight},
    seen::{SeenEvents, digest},
};
use crate::{
    model::{Event, Gap, GapReason, Sequence},
    protocol::session::SessionId,
};

/// A refetch fails when the sequencer holds this many later events.
const REFETCH_HELD_MAX: usize = 1_024;
/// A reset takes at least this many events with old numbers in a run. A single one is a stray.
const RESET_RUN_MIN: usize = 2;
/// The decision on received events.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Accepted(Event),
    Gap(Gap),
    Duplicates(u64),
    /// A number is missing that the platform may still have: start a session that resumes after the last one in order.
    Refetch,
}

/// Puts the events of one stream in order.
#[derive(Debug)]
pub(super) struct Sequencer {
    expected: Expected,
    reorder_buffer: BTreeMap<Sequence, Event>,
    reorder_since: Option<Instant>,
    refetches: Refetches,
    reset_candidates: Option<ResetCandidates>,
    /// The number of the newest stray. One more event just behind it makes a run, unless the numbering has continued.
    stray: Option<Sequence>,
    /// From this number on every number was received, lies in a gap, or is a little older than the start of this
    /// process.
    received_from: Sequence,
    /// The newest session that brought an event.
    newest: SessionId,
    replays: Replays,
    seen: SeenEvents,
}

impl Sequencer {
    /// Continues after `last`.
    pub(super) fn new(last: Option<Sequence>) -> Self {
        let expected = last.map_or(Expected::First, Expected::After);
        let received_from = last.map_or(0, |last| last.0.saturating_sub(REORDER_MAX as u64));
        Self {
            expected,
            received_from: Sequence(received_from),
            reorder_buffer: BTreeMap::new(),
            reorder_since: None,
            refetches: Refetches::default(),
            reset_candidates: None,
            stray: None,
            newest: SessionId(0),
            replays: Replays::default(),
            seen: SeenEvents::default(),
        }
    }

    /// The number of the last event accepted.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.expected.last()
    }

    /// The number to resume after; none if there is none or it was abandoned.
    pub(super) fn resume(&self) -> Option<Sequence> {
        self.expected.resume()
    }

    /// Whether the position was abandoned and its gap is not in the log yet.
    pub(super) fn is_abandoned(&self) -> bool {
        self.expected.is_abandoned()
    }

    /// Abandons the position for this reason. The gap before the next event has this reason.
    pub(super) fn abandon(&mut self, reason: GapReason) {
        if self.expected.abandon(reason) {
            self.refetches.cancel();
        }
    }

    /// A session without a position is live.
    pub(super) fn mark_connected(&mut self) {
        self.expected.mark_connected();
    }

    /// Stores an event without a number. The gap of an abandoned position comes first.
    pub(super) fn pass_unnumbered(&mut self, event: Event, decisions: &mut Vec<Decision>) {
        decisions.extend(self.expected.on_unnumbered().map(Decision::Gap));
        decisions.push(Decision::Accepted(Event { sequence: None, ..event }));
    }

    /// Takes the gap of an abandoned position that no event has closed yet.
    pub(super) fn take_abandoned_gap(&mut self) -> Option<Gap> {
        self.expected.take_abandoned_gap()
    }

    /// A session is dialled with this number: it repeats the events after it.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Sequence) {
        self.refetches.record_resume(session, after);
        self.replays.record_resume(session, after);
    }

    /// Another replica stored the events up to now.
    pub(super) fn took_over(&mut self) {
        self.replays.took_over(self.last());
    }

    /// How many events are held.
    pub(super) fn held(&self) -> usize {
        self.reorder_buffer.len() + self.reset_candidates.as_ref().map_or(0, |candidates| candidates.events.len())
    }

    /// The size of the held events in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        weight(&self.reorder_buffer) + self.reset_candidates.as_ref().map_or(0, ResetCandidates::bytes)
    }

    /// Accepts an event with a number.
    pub(super) fn accept(
        &mut self,
        sequence: Sequence,
        event: Event,
        session: SessionId,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) {
        self.newest = self.newest.max(session);
        if self.last().is_some_and(|last| sequence > last) {
            self.replays.on_caught_up(session);
            self.reject_reset(session, decisions);
        }
        match self.expected {
            Expected::First => {
                self.received_from = sequence;
                self.pass(sequence, event, decisions);
            }
            Expected::After(last) | Expected::Beyond { last, .. } if sequence <= last => {
                self.accept_old(last, sequence, event, session, now, decisions);
            }
            Expected::After(last) if sequence == last.next() => {
                self.pass(sequence, event, decisions);
                self.drain_reordered(decisions);
                if self.refetches.on_progress(self.last(), now) {
                    self.restart_reorder_wait(now);
                }
            }
            Expected::After(_) => {
                self.refetches.on_later_number(session, now);
                self.hold_for_reorder(sequence, event, now, decisions);
            }
            Expected::Beyond { .. } if !self.reorder_buffer.is_empty() => {
                // Events from before the position was abandoned come first.
                self.skip_missing(decisions);
                self.accept(sequence, event, session, now, decisions);
            }
            Expected::Beyond { .. } => self.accept_after_gap(sequence, event, decisions),
        }
    }

    /// Ends the waits that are over.
    pub(super) fn handle_timeout(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        match self.refetches.until() {
            Some(until) if now >= until => self.end_refetch(now, decisions),
            Some(_) => (),
            None => self.end_reorder_wait(now, decisions),
        }
        if self.reset_candidates.as_ref().is_some_and(|candidates| now >= candidates.decision_at()) {
            self.resolve_reset(now, decisions);
        }
    }

    /// The wait for a missing number is over: refetches it, or marks the gap.
    fn end_reorder_wait(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        let is_over = self.reorder_since.is_some_and(|since| now >= since + REORDER_WAIT_MAX);
        if is_over && !self.start_refetch(now, decisions) {
            self.skip_missing(decisions);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.refetches.until().or_else(|| self.reorder_since.map(|since| since + REORDER_WAIT_MAX));
        let candidates = self.reset_candidates.as_ref().map(ResetCandidates::decision_at);
        waiting.into_iter().chain(candidates).min()
    }

    fn pass(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        self.expected = Expected::After(sequence);
        let digest = digest(&event);
        self.seen.insert(sequence, digest);
        let is_known = self.seen.was_stored_before(sequence, digest);
        decisions.push(if is_known { Decision::Duplicates(1) } else { Decision::Accepted(event) });
    }

    /// Passes the held events that continue the last number in order.
    fn drain_reordered(&mut self, decisions: &mut Vec<Decision>) {
        while let Some(entry) = self.reorder_buffer.first_entry() {
            let Expected::After(last) = self.expected else { return };
            if *entry.key() > last.next() {
                return;
            }
            let (sequence, event) = entry.remove_entry();
            if sequence == last.next() {
                self.pass(sequence, event, decisions);
            } else {
                decisions.push(Decision::Duplicates(1));
            }
        }
        self.reorder_since = None;
    }

    fn hold_for_reorder(&mut self, sequence: Sequence, event: Event, now: Instant, decisions: &mut Vec<Decision>) {
        if self.reorder_buffer.contains_key(&sequence) {
            return decisions.push(Decision::Duplicates(1));
        }
        self.reorder_buffer.insert(sequence, event);
        self.reorder_since.get_or_insert(now);
        let refetching = self.is_refetching();
        let held_max = if refetching { REFETCH_HELD_MAX } else { REORDER_MAX };
        let is_heavy = weight(&self.reorder_buffer) >= HELD_BYTES_MAX;
        if self.reorder_buffer.len() < held_max && !is_heavy {
            return;
        }
        if refetching {
            self.end_refetch(now, decisions);
        } else if is_heavy || !self.start_refetch(now, decisions) {
            self.skip_first_hole(decisions);
        }
    }

    /// Requests the missing numbers again. Returns false if that was just done.
    fn start_refetch(&mut self, now: Instant, decisions: &mut Vec<Decision>) -> bool {
        let before = self.reorder_buffer.first_key_value().map(|(sequence, _)| *sequence);
        let last = self.last();
        let starts = before.is_some_and(|before| self.refetches.start(last, before, self.newest, now));
        if starts {
            decisions.push(Decision::Refetch);
        }
        starts
    }

    fn restart_reorder_wait(&mut self, now: Instant) {
        self.reorder_since = (!self.reorder_buffer.is_empty()).then_some(now);
    }

    /// Whether a refetch is in progress.
    pub(super) fn is_refetching(&self) -> bool {
        self.refetches.is_active()
    }

    /// The platform has not sent the first missing numbers again. Later holes may still be filled.
    pub(super) fn end_refetch(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        if self.refetches.fail(now) {
            self.skip_first_hole(decisions);
            self.restart_reorder_wait(now);
        }
    }

    /// Marks a gap for each hole, and passes the held events.
    fn skip_missing(&mut self, decisions: &mut Vec<Decision>) {
        self.refetches.cancel();
        while !self.reorder_buffer.is_empty() {
            self.skip_first_hole(decisions);
        }
    }

    /// Marks a gap for the first hole. The later holes began later.
    fn skip_first_hole(&mut self, decisions: &mut Vec<Decision>) {
        if let Some((sequence, event)) = self.reorder_buffer.pop_first() {
            self.accept_after_gap(sequence, event, decisions);
            self.drain_reordered(decisions);
        }
    }

    /// Passes this event, and marks the gap in front of it.
    fn accept_after_gap(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        decisions.extend(self.expected.gap_before(sequence).map(Decision::Gap));
        self.pass(sequence, event, decisions);
    }

    /// An old number: a repetition, unless the numbering has started over.
    fn accept_old(
        &mut self,
        last: Sequence,
        sequence: Sequence,
        event: Event,
        session: SessionId,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) {
        let digest = digest(&event);
        if self.seen.contains(sequence, digest) {
            self.drop_replayed_candidates(session, sequence, decisions);
            return decisions.push(Decision::Duplicates(1));
        }
        let replayed = self.replays.is_repeated_by(session, sequence) && !self.seen.has_number(sequence);
        if replayed {
            self.seen.insert_older(sequence, digest);
        }
        let repeated = replayed || self.replays.is_before_takeover(last, sequence);
        if repeated {
            self.drop_replayed_candidates(session, sequence, decisions);
        }
        // A newer session brings everything that an older one still has.
        if session < self.newest || repeated {
            return decisions.push(Decision::Duplicates(1));
        }
        if self.reset_candidates.as_ref().is_some_and(|candidates| !candidates.can_extend(session, sequence)) {
            self.resolve_reset(now, decisions);
            // The decision may have changed the last number.
            return self.accept(sequence, event, session, now, decisions);
        }
        let candidates = self.reset_candidates.get_or_insert_with(|| ResetCandidates::new(session, now));
        candidates.events.insert(sequence, event);
        if sequence == last || candidates.is_full() {
            self.resolve_reset(now, decisions);
        }
    }

    /// The session continues the numbering: its events with old numbers were no reset.
    fn reject_reset(&mut self, session: SessionId, decisions: &mut Vec<Decision>) {
        self.stray = None;
        if let Some(candidates) = self.reset_candidates.take_if(|candidates| candidates.session == session) {
            self.pass_without_number(candidates.events, self.received_from, decisions);
        }
    }

    /// Decides about events with old numbers while the numbering continues. From the number `from` on they are
    /// repetitions, unless another event with that number was passed. The others are stored without their number.
    fn pass_without_number(
        &mut self,
        events: BTreeMap<Sequence, Event>,
        from: Sequence,
        decisions: &mut Vec<Decision>,
    ) {
        for (sequence, event) in events {
            if sequence < from || self.seen.differs(sequence, &event) {
                self.pass_stray(sequence, event, decisions);
            } else {
                decisions.push(Decision::Duplicates(1));
            }
        }
    }

    /// Drops candidates that lead up to a known repetition: they are repetitions too.
    fn drop_replayed_candidates(&mut self, session: SessionId, sequence: Sequence, decisions: &mut Vec<Decision>) {
        if let Some(candidates) = self.reset_candidates.take_if(|candidates| candidates.ends_before(session, sequence))
        {
            decisions.push(Decision::Duplicates(candidates.events.len() as u64));
        }
    }

    /// Decides about the candidates. A run that ends at the last number was a replay, unless its events differ from the
    /// passed ones. Any other run is a reset. A single event is a stray, which is stored without its number.
    fn resolve_reset(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        let Some(candidates) = self.reset_candidates.take() else { return };
        let leads_here = candidates.last() == self.last();
        let run = if leads_here {
            self.seen.count_different(&candidates.events)
        } else {
            candidates.events.len() + usize::from(self.stray.is_some_and(|stray| candidates.is_just_behind(stray)))
        };
        if run >= RESET_RUN_MIN {
            return self.reset_numbering(candidates, now, decisions);
        }
        if leads_here {
            return self.pass_without_number(candidates.events, Sequence(0), decisions);
        }
        self.stray = candidates.last();
        candidates.events.into_iter().for_each(|(sequence, event)| self.pass_stray(sequence, event, decisions));
    }

    /// Stores an event without its number.
    fn pass_stray(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        self.seen.insert_stray(sequence, digest(&event));
        self.pass_unnumbered(event, decisions);
    }

    fn reset_numbering(&mut self, candidates: ResetCandidates, now: Instant, decisions: &mut Vec<Decision>) {
        self.skip_missing(decisions);
        let gap = Gap { lost: None, ..Gap::between(GapReason::Reset, self.last(), candidates.first()) };
        decisions.push(Decision::Gap(gap));
        self.seen.reset();
        self.replays.reset_numbering();
        self.stray = None;
        self.expected = Expected::First;
        for (sequence, event) in candidates.events {
            self.accept(sequence, event, candidates.session, now, decisions);
        }
    }
}
