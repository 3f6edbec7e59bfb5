//! The order of a numbered stream: each event once, in sequence, whichever socket it came by.
//!
//! What is missing is waited for a little and then told; what comes twice is dropped; a numbering that started over
//! is recognised. Nothing is ever let go without a word.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    model::{Body, Event, Gap, GapReason, Sequence},
    protocol::{backoff::BackoffCurve, session::SessionId},
};

/// A missing number is waited for until this many later events are there …
const REORDER_MAX: usize = 64;
/// … or this much time has gone by.
const REORDER_WAIT_MAX: Duration = Duration::from_millis(200);
/// Then the platform is asked once more for what is missing, by a session that goes on after the last good number. The
/// missing number is told as a jump when that session is not heard in this time …
const REFETCH_MAX: Duration = Duration::from_secs(5);
/// … or when so many later events are held.
const REFETCH_HELD_MAX: usize = 1_024;
/// After a refetch that brought nothing the next one has to wait: a numbering that is never dense must not lead to a
/// session for each of its holes.
const REFETCH_PAUSE: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(60), jitter: 0.0 };
/// So many events with numbers long gone, and the numbering has started over …
const RESET_CANDIDATES_MAX: usize = 100;
/// … or so much time without the run reaching where we are.
const RESET_DECISION_MAX: Duration = Duration::from_millis(500);
/// A single event with an old number is no new beginning: it takes so many of them, one behind the other.
const RESET_RUN_MIN: usize = 2;
/// So many of the newest events that were kept without their number are remembered, to drop them when they come again.
const STRAYS_MAX: usize = 64;
/// Events that are held back take at most about so many bytes; then what they are held for is decided without it.
const HELD_BYTES_MAX: usize = 16 << 20;
/// So many sessions may be catching up at a time.
const REPLAYS_MAX: usize = 64;
/// The bodies of so many of the newest events are remembered, to tell a repeated event from a new one with an old number.
const RECENT_LEN: usize = 1024;

/// What becomes of what was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Accepted(Event),
    Gap(Gap),
    Duplicates(u64),
    /// A number is missing that the platform may still have: open a session that goes on after the last good one.
    Refetch,
}

/// Which number may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Any: nothing was heard yet.
    First,
    /// The one after this.
    After(Sequence),
    /// Any beyond this: the platform could not be asked to go on, and why. `None` when the gap is in the log already.
    Beyond(Sequence, Option<GapReason>),
}

/// The guard of one stream's order.
#[derive(Debug)]
pub(super) struct Sequencer {
    expected: Expected,
    reorder_buffer: BTreeMap<Sequence, Event>,
    reorder_since: Option<Instant>,
    refetch: Option<Refetch>,
    /// How many refetches in a row brought nothing, and when the next may begin.
    failed_refetches: u32,
    refetch_from: Option<Instant>,
    /// The newest session that was asked to go on after a number, and that number.
    last_resume: Option<(SessionId, Sequence)>,
    reset_candidates: Option<ResetCandidates>,
    /// The number of the newest lone suspect. One more behind it makes a run, unless the numbering has gone on.
    stray: Option<Sequence>,
    /// What was kept without its number.
    strays: VecDeque<(Sequence, u32)>,
    /// Why the position was given up, and whether an event without a number came since.
    abandon_reason: Option<GapReason>,
    unnumbered_since: bool,
    /// From this number on every number was received, or lies in a gap, or is only a little older than where this began.
    received_from: Sequence,
    /// The newest session that brought an event.
    newest: SessionId,
    /// The newest sessions that were asked to go on after a number, and have not caught up yet.
    replays: VecDeque<(SessionId, Sequence)>,
    /// Up to this number another replica heard the events, and we may hear some of them yet.
    takeover_position: Option<Sequence>,
    /// By number modulo its length: the newest events' numbers and digests.
    recent: Vec<(Sequence, u32)>,
    /// The same of the numbering before this one: what was judged a new beginning may come to where the old one was.
    previous_numbering: Vec<(Sequence, u32)>,
}

/// What is missing is being asked for again.
#[derive(Debug)]
struct Refetch {
    /// It is filled when this number is reached.
    before: Sequence,
    /// Sessions after this one go on after the last good number.
    newest: SessionId,
    until: Instant,
}

/// Events whose numbers lie behind us and that we do not remember: a replay, or a numbering that started over.
#[derive(Debug)]
struct ResetCandidates {
    session: SessionId,
    since: Instant,
    events: BTreeMap<Sequence, Event>,
}

impl Sequencer {
    /// Goes on after `last`.
    pub(super) fn new(last: Option<Sequence>) -> Self {
        let expected = last.map_or(Expected::First, Expected::After);
        let received_from = last.map_or(0, |last| last.0.saturating_sub(REORDER_MAX as u64));
        Self {
            expected,
            received_from: Sequence(received_from),
            reorder_buffer: BTreeMap::new(),
            reorder_since: None,
            refetch: None,
            failed_refetches: 0,
            refetch_from: None,
            last_resume: None,
            reset_candidates: None,
            stray: None,
            strays: VecDeque::new(),
            abandon_reason: None,
            unnumbered_since: false,
            newest: SessionId(0),
            replays: VecDeque::new(),
            takeover_position: None,
            recent: Vec::new(),
            previous_numbering: Vec::new(),
        }
    }

    /// The number of the last event accepted.
    pub(super) fn last(&self) -> Option<Sequence> {
        match self.expected {
            Expected::First => None,
            Expected::After(last) | Expected::Beyond(last, _) => Some(last),
        }
    }

    /// The number to resume after; none when there is none, or it was given up.
    pub(super) fn resume(&self) -> Option<Sequence> {
        match self.expected {
            Expected::After(last) => Some(last),
            Expected::First | Expected::Beyond(..) => None,
        }
    }

    /// Whether the position was given up and the gap is not told yet.
    pub(super) fn is_abandoned(&self) -> bool {
        matches!(self.expected, Expected::Beyond(_, Some(_)))
    }

    /// The position is given up for this reason: whatever number comes next, it is no jump.
    pub(super) fn abandon(&mut self, reason: GapReason) {
        if let Some(last) = self.last() {
            self.expected = Expected::Beyond(last, Some(reason));
            self.abandon_reason = Some(reason);
            self.unnumbered_since = false;
            self.refetch = None;
        }
    }

    /// A session is live that was asked for no position. What stands behind the gap of an abandoned position was brought
    /// by a session before it: in front of what this one brings there is a hole too.
    pub(super) fn mark_connected(&mut self) {
        if let Expected::Beyond(last, None) = self.expected
            && std::mem::take(&mut self.unnumbered_since)
        {
            self.expected = Expected::Beyond(last, self.abandon_reason);
        }
    }

    /// An event without a number, or whose number is not its own. The gap of an abandoned position lies in front of it.
    pub(super) fn pass_unnumbered(&mut self, event: Event, decisions: &mut Vec<Decision>) {
        decisions.extend(self.take_abandoned_gap().map(Decision::Gap));
        self.unnumbered_since = true;
        decisions.push(Decision::Accepted(Event { sequence: None, ..event }));
    }

    /// The gap of an abandoned position that no event has closed yet; told only once.
    pub(super) fn take_abandoned_gap(&mut self) -> Option<Gap> {
        let Expected::Beyond(last, Some(reason)) = self.expected else { return None };
        self.expected = Expected::Beyond(last, None);
        Some(Gap::between(reason, Some(last), None))
    }

    /// A session is asked to go on after this number: up to where we are by then it repeats.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Sequence) {
        self.last_resume = Some((session, after));
        if self.replays.len() == REPLAYS_MAX {
            self.replays.pop_front();
        }
        self.replays.push_back((session, after));
    }

    /// What came before was heard by another replica.
    pub(super) fn took_over(&mut self) {
        self.takeover_position = self.last();
    }

    /// How many events are held back.
    pub(super) fn held(&self) -> usize {
        self.reorder_buffer.len() + self.reset_candidates.as_ref().map_or(0, |candidates| candidates.events.len())
    }

    /// What they weigh. They are few.
    pub(super) fn held_bytes(&self) -> usize {
        weight(&self.reorder_buffer) + self.reset_candidates.as_ref().map_or(0, |candidates| weight(&candidates.events))
    }

    /// Takes an event in.
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
            self.replays.retain(|(caught_up, _)| *caught_up != session);
            self.reject_reset(session, decisions);
        }
        match self.expected {
            Expected::First => {
                self.received_from = sequence;
                self.pass(sequence, event, decisions);
            }
            Expected::After(last) | Expected::Beyond(last, _) if sequence <= last => {
                self.accept_old(last, sequence, event, session, now, decisions);
            }
            Expected::After(last) if sequence == last.next() => {
                self.pass(sequence, event, decisions);
                self.drain_reordered(decisions);
                self.extend_refetch(now);
            }
            Expected::After(_) => {
                self.on_refetch_response(session, now);
                self.hold_for_reorder(sequence, event, now, decisions);
            }
            Expected::Beyond(..) if !self.reorder_buffer.is_empty() => {
                // What was heard before the position was given up comes first.
                self.skip_missing(decisions);
                self.accept(sequence, event, session, now, decisions);
            }
            Expected::Beyond(..) => self.accept_after_gap(sequence, event, decisions),
        }
    }

    /// Gives up waiting where the time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        match &self.refetch {
            Some(refetch) if now >= refetch.until => self.end_refetch(now, decisions),
            Some(_) => (),
            None => self.end_reorder_wait(now, decisions),
        }
        if self.reset_candidates.as_ref().is_some_and(|candidates| now >= candidates.since + RESET_DECISION_MAX) {
            self.resolve_reset(now, decisions);
        }
    }

    /// What was waited for long enough is asked for once more, or told.
    fn end_reorder_wait(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        let is_over = self.reorder_since.is_some_and(|since| now >= since + REORDER_WAIT_MAX);
        if is_over && !self.start_refetch(now, decisions) {
            self.skip_missing(decisions);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = match &self.refetch {
            Some(refetch) => Some(refetch.until),
            None => self.reorder_since.map(|since| since + REORDER_WAIT_MAX),
        };
        let candidates = self.reset_candidates.as_ref().map(|candidates| candidates.since + RESET_DECISION_MAX);
        waiting.into_iter().chain(candidates).min()
    }

    fn pass(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        self.expected = Expected::After(sequence);
        let digest = digest(&event);
        self.remember(sequence, digest);
        let is_known = find_digest(&self.previous_numbering, sequence) == Some(digest)
            || self.strays.contains(&(sequence, digest));
        decisions.push(if is_known { Decision::Duplicates(1) } else { Decision::Accepted(event) });
    }

    /// Lets go what was held back only for the number that has come.
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
        let refetching = self.refetch.is_some();
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

    /// Asks for what is missing once more, unless that was just done: the newest session was asked to go on exactly
    /// here, and this is its answer.
    fn start_refetch(&mut self, now: Instant, decisions: &mut Vec<Decision>) -> bool {
        let answered =
            self.last_resume.is_some_and(|(session, after)| session <= self.newest && Some(after) == self.last());
        let too_soon = self.refetch_from.is_some_and(|from| now < from);
        let before = self.reorder_buffer.first_key_value().map(|(sequence, _)| *sequence);
        let (Some(before), false) = (before, answered || too_soon) else { return false };
        self.refetch = Some(Refetch { before, newest: self.newest, until: now + REFETCH_MAX });
        decisions.push(Decision::Refetch);
        true
    }

    /// The number that was missing next has come.
    fn extend_refetch(&mut self, now: Instant) {
        let last = self.last();
        let Some(refetch) = &mut self.refetch else { return };
        if last.is_some_and(|last| last < refetch.before) {
            refetch.until = now + REORDER_WAIT_MAX;
            return;
        }
        self.refetch = None;
        self.failed_refetches = 0;
        self.reorder_since = (!self.reorder_buffer.is_empty()).then_some(now);
    }

    /// A session that was asked brings a later number first: what is missing may only be a little out of order.
    fn on_refetch_response(&mut self, session: SessionId, now: Instant) {
        if let Some(refetch) = self.refetch.as_mut().filter(|refetch| session > refetch.newest) {
            refetch.until = refetch.until.min(now + REORDER_WAIT_MAX);
        }
    }

    /// Whether what is missing is being asked for again.
    pub(super) fn is_refetching(&self) -> bool {
        self.refetch.is_some()
    }

    /// The platform has not sent what is missing again. Later holes may still be filled.
    pub(super) fn end_refetch(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        if self.refetch.take().is_some() {
            self.refetch_from = Some(now + REFETCH_PAUSE.delay(self.failed_refetches, 0.5));
            self.failed_refetches = self.failed_refetches.saturating_add(1);
            self.skip_first_hole(decisions);
            self.reorder_since = (!self.reorder_buffer.is_empty()).then_some(now);
        }
    }

    /// The missing numbers do not come: says so and goes on with what is there, hole by hole.
    fn skip_missing(&mut self, decisions: &mut Vec<Decision>) {
        self.refetch = None;
        while !self.reorder_buffer.is_empty() {
            self.skip_first_hole(decisions);
        }
    }

    /// Gives up the first hole; later ones have not been waited for as long.
    fn skip_first_hole(&mut self, decisions: &mut Vec<Decision>) {
        if let Some((sequence, event)) = self.reorder_buffer.pop_first() {
            self.accept_after_gap(sequence, event, decisions);
            self.drain_reordered(decisions);
        }
    }

    /// Goes on with this event, and tells the hole in front of it.
    fn accept_after_gap(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        let (last, reason) = match self.expected {
            Expected::First => (None, None),
            Expected::After(last) => (Some(last), Some(GapReason::Jump)),
            Expected::Beyond(last, reason) => (Some(last), reason),
        };
        if let Some((last, reason)) = last.zip(reason) {
            if sequence > last.next() {
                decisions.push(Decision::Gap(Gap::between(reason, Some(last), Some(sequence))));
            } else if reason == GapReason::Oversize {
                // The frame that was given up had no number of its own: how much was in it is not known.
                let gap = Gap::between(reason, Some(last), Some(sequence));
                decisions.push(Decision::Gap(Gap { lost: None, ..gap }));
            }
        }
        self.pass(sequence, event, decisions);
    }

    /// A number that lies behind us: a repetition, unless the numbering has started over.
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
        if self.recent_digest(sequence) == Some(digest) || self.strays.contains(&(sequence, digest)) {
            self.drop_replayed_candidates(session, sequence, decisions);
            return decisions.push(Decision::Duplicates(1));
        }
        // What an older socket has left to say the newer one said already, or will say too.
        let replayed = self.is_replay(session, sequence);
        if replayed {
            self.remember_older(sequence, digest);
        }
        let repeated = replayed || self.is_before_takeover(last, sequence);
        if repeated {
            self.drop_replayed_candidates(session, sequence, decisions);
        }
        if session < self.newest || repeated {
            return decisions.push(Decision::Duplicates(1));
        }
        if self.reset_candidates.as_ref().is_some_and(|candidates| !candidates.can_extend(session, sequence)) {
            self.resolve_reset(now, decisions);
            // What they were judged to be may have moved the end.
            return self.accept(sequence, event, session, now, decisions);
        }
        let candidates = self.reset_candidates.get_or_insert_with(|| ResetCandidates {
            session,
            since: now,
            events: BTreeMap::new(),
        });
        candidates.events.insert(sequence, event);
        if sequence == last || candidates.is_full() {
            self.resolve_reset(now, decisions);
        }
    }

    /// The numbering goes on by the same socket: what it brought under old numbers was no new beginning.
    fn reject_reset(&mut self, session: SessionId, decisions: &mut Vec<Decision>) {
        self.stray = None;
        if let Some(candidates) = self.reset_candidates.take_if(|candidates| candidates.session == session) {
            self.pass_without_number(candidates.events, self.received_from, decisions);
        }
    }

    /// Events under old numbers while the numbering goes on. Those from this number on are repetitions, but for one that
    /// is known to be another: it is kept without its number, like those below.
    fn pass_without_number(
        &mut self,
        events: BTreeMap<Sequence, Event>,
        from: Sequence,
        decisions: &mut Vec<Decision>,
    ) {
        for (sequence, event) in events {
            if sequence < from || self.differs_from_recent(sequence, &event) {
                self.pass_stray(sequence, event, decisions);
            } else {
                decisions.push(Decision::Duplicates(1));
            }
        }
    }

    /// Whether this number is remembered with another body.
    fn differs_from_recent(&self, sequence: Sequence, event: &Event) -> bool {
        self.recent_digest(sequence).is_some_and(|known| known != digest(event))
    }

    /// A run that leads up to what is known for a repetition was one too: it began before what we remember.
    fn drop_replayed_candidates(&mut self, session: SessionId, sequence: Sequence, decisions: &mut Vec<Decision>) {
        if let Some(candidates) = self.reset_candidates.take_if(|candidates| candidates.ends_before(session, sequence))
        {
            decisions.push(Decision::Duplicates(candidates.events.len() as u64));
        }
    }

    /// A run that ends where we are was a replay, unless its bodies are known to be others. Any other run is a numbering
    /// that started over. One event alone is neither, and is kept without its number.
    fn resolve_reset(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        let Some(candidates) = self.reset_candidates.take() else { return };
        let leads_here = candidates.last() == self.last();
        let run = if leads_here {
            candidates.events.iter().filter(|(sequence, event)| self.differs_from_recent(**sequence, event)).count()
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

    /// Keeps an event without its number.
    fn pass_stray(&mut self, sequence: Sequence, event: Event, decisions: &mut Vec<Decision>) {
        if self.strays.len() == STRAYS_MAX {
            self.strays.pop_front();
        }
        self.strays.push_back((sequence, digest(&event)));
        self.pass_unnumbered(event, decisions);
    }

    fn reset_numbering(&mut self, candidates: ResetCandidates, now: Instant, decisions: &mut Vec<Decision>) {
        self.skip_missing(decisions);
        let first = candidates.events.first_key_value().map(|(sequence, _)| *sequence);
        let gap = Gap { lost: None, ..Gap::between(GapReason::Reset, self.last(), first) };
        decisions.push(Decision::Gap(gap));
        self.previous_numbering = std::mem::take(&mut self.recent);
        self.takeover_position = None;
        self.stray = None;
        self.expected = Expected::First;
        for (sequence, event) in candidates.events {
            self.accept(sequence, event, candidates.session, now, decisions);
        }
    }

    /// Whether a session that catches up repeats this number, as far as we remember it.
    fn is_replay(&self, session: SessionId, sequence: Sequence) -> bool {
        let asked = self.replays.iter().any(|(replaying, after)| *replaying == session && sequence > *after);
        asked && self.recent_digest(sequence).is_none()
    }

    /// Whether this number, a little out of order, lies just behind where the log was taken over.
    fn is_before_takeover(&self, last: Sequence, sequence: Sequence) -> bool {
        let near = |number: Sequence, other: Sequence| number.0.abs_diff(other.0) < REORDER_MAX as u64;
        self.takeover_position.is_some_and(|end| sequence <= end && near(sequence, end) && near(last, end))
    }

    fn remember(&mut self, sequence: Sequence, digest: u32) {
        if self.recent.is_empty() {
            self.recent = vec![(Sequence(u64::MAX), 0); RECENT_LEN];
        }
        self.recent[slot(sequence)] = (sequence, digest);
    }

    /// What another replica heard, or a life before: it is known when it comes again, as far as newer ones leave room.
    fn remember_older(&mut self, sequence: Sequence, digest: u32) {
        let newer = self.recent.get(slot(sequence)).map(|(remembered, _)| *remembered);
        if newer.is_none_or(|newer| newer < sequence || newer == Sequence(u64::MAX)) {
            self.remember(sequence, digest);
        }
    }

    fn recent_digest(&self, sequence: Sequence) -> Option<u32> {
        find_digest(&self.recent, sequence)
    }
}

fn find_digest(memory: &[(Sequence, u32)], sequence: Sequence) -> Option<u32> {
    let (remembered, digest) = *memory.get(slot(sequence))?;
    (remembered == sequence).then_some(digest)
}

fn weight(events: &BTreeMap<Sequence, Event>) -> usize {
    events.values().map(Event::weight).sum()
}

impl ResetCandidates {
    fn is_full(&self) -> bool {
        self.events.len() >= RESET_CANDIDATES_MAX || weight(&self.events) >= HELD_BYTES_MAX
    }

    /// Whether an event may belong to the same run: it came by the same socket, under a number of its own that is
    /// higher, or only a little out of order.
    fn can_extend(&self, session: SessionId, sequence: Sequence) -> bool {
        let in_order = self.last().is_none_or(|last| sequence.0.saturating_add(REORDER_MAX as u64) > last.0);
        self.session == session && in_order && !self.events.contains_key(&sequence)
    }

    fn ends_before(&self, session: SessionId, sequence: Sequence) -> bool {
        self.session == session && self.last().is_some_and(|last| last < sequence)
    }

    /// Whether they are a little behind this number.
    fn is_just_behind(&self, stray: Sequence) -> bool {
        let first = self.events.first_key_value().map(|(sequence, _)| sequence.0);
        first.is_some_and(|first| first > stray.0 && first - stray.0 <= REORDER_MAX as u64)
    }

    fn last(&self) -> Option<Sequence> {
        self.events.last_key_value().map(|(sequence, _)| *sequence)
    }
}

fn slot(sequence: Sequence) -> usize {
    usize::try_from(sequence.0 % RECENT_LEN as u64).unwrap_or(0)
}

/// Two events with one number and one digest are taken for the same.
fn digest(event: &Event) -> u32 {
    match &event.body {
        Body::Json(text) => crc32fast::hash(text.as_bytes()),
        Body::Binary(bytes) => crc32fast::hash(bytes),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use bytestring::ByteString;
    use proptest::prelude::*;

    use super::*;
    use crate::model::Timestamp;

    fn event(sequence: u64, life: &str) -> Event {
        Event {
            kind: ByteString::from_static("e"),
            subject: None,
            time: None,
            sequence: Some(Sequence(sequence)),
            correlation: None,
            partition_key: None,
            body: Body::Json(format!("{life}{sequence}").into()),
            received: Timestamp(0),
        }
    }

    /// Feeds `1 2 3` (numbers), `b:4` (by the second socket), `x1` (another body under that number), `odd` (an event
    /// without a number), `live` (a session without a position is live), `wait`; tells what came of it, `~` in front of
    /// what has no number.
    fn check(last: Option<u64>, script: &str, expected: &str) {
        let mut order = Sequencer::new(last.map(Sequence));
        assert_eq!(run(&mut order, script), expected, "{script}");
    }

    fn run(order: &mut Sequencer, script: &str) -> String {
        let start = Instant::now();
        let (mut told, mut now) = (Vec::new(), start);
        for word in script.split_whitespace() {
            if word == "wait" {
                now += Duration::from_secs(1);
                order.handle_timeout(now, &mut told);
                continue;
            }
            if word == "odd" {
                order.pass_unnumbered(event(0, "odd"), &mut told);
                continue;
            }
            if word == "live" {
                order.mark_connected();
                continue;
            }
            let (session, word) = word.strip_prefix("b:").map_or((SessionId(1), word), |word| (SessionId(2), word));
            let (life, number) = word.strip_prefix('x').map_or(("", word), |number| ("x", number));
            let (first, end) = number.split_once("..").unwrap_or((number, number));
            for sequence in first.parse().unwrap()..=end.parse().unwrap() {
                order.accept(Sequence(sequence), event(sequence, life), session, now, &mut told);
            }
        }
        describe(&told)
    }

    fn describe(decisions: &[Decision]) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut duplicates = 0;
        for decision in decisions {
            match decision {
                Decision::Accepted(event) => {
                    let Body::Json(text) = &event.body else { panic!() };
                    words.push(if event.sequence.is_some() { text.to_string() } else { format!("~{text}") });
                }
                Decision::Gap(gap) => words.push(format!(
                    "{}({}..{})",
                    gap.reason.as_str(),
                    gap.after.as_deref().unwrap_or("?"),
                    gap.before.as_deref().unwrap_or("?")
                )),
                Decision::Duplicates(count) => duplicates += count,
                Decision::Refetch => words.push("refetch".to_owned()),
            }
        }
        if duplicates > 0 {
            words.push(format!("-{duplicates}"));
        }
        words.join(" ")
    }

    #[test]
    fn events_pass_once_and_in_order() {
        check(None, "5 6 7", "5 6 7");
        check(Some(4), "5 6 7", "5 6 7");
        check(None, "1 2 b:1 b:2 b:3 3 4", "1 2 3 4 -3");
        check(None, "1 3 2 4", "1 2 3 4");
        check(None, "1 4 3 b:2 wait", "1 2 3 4");
        check(None, "1 3 3 2", "1 2 3 -1");
    }

    #[test]
    fn a_missing_number_becomes_a_gap_after_the_wait() {
        check(None, "1 3 wait b:3 wait 4", "1 refetch jump(1..3) 3 4 -1");
        check(Some(4), "9 wait b:9 wait", "refetch jump(4..9) 9 -1");
        check(None, "1 3 5 wait b:3 wait", "1 refetch jump(1..3) 3 -1");
        check(None, "1 3 wait b:3 wait 2 wait", "1 refetch jump(1..3) 3 -2");
        check(None, "1 3 wait wait 4", "1 refetch");
        check(None, "1 3 wait wait wait wait wait wait 4", "1 refetch jump(1..3) 3 4");
    }

    #[test]
    fn a_missing_number_is_refetched_by_a_session_that_resumes_before_it() {
        check(None, "1 4 5 wait b:2 b:3 b:4 b:5 6", "1 refetch 2 3 4 5 6 -2");
        // It brings them slowly, and the old session goes on meanwhile.
        check(None, "1 4 wait 5 b:2 6 b:3 b:4 7", "1 refetch 2 3 4 5 6 7 -1");
        // It has some of them only.
        check(None, "1 5 wait b:2 b:3 b:5 wait 6", "1 refetch 2 3 jump(3..5) 5 6 -1");
        // A later hole has its own time.
        check(None, "1 3 6 wait b:2 wait b:4 b:5 b:6", "1 refetch 2 3 refetch 4 5 6 -1");
    }

    #[test]
    fn a_session_that_resumed_there_already_causes_no_refetch() {
        let mut order = Sequencer::new(Some(Sequence(4)));
        order.record_resume(SessionId(1), Sequence(4));
        assert_eq!(run(&mut order, "7 8 wait"), "jump(4..7) 7 8");
        assert_eq!(run(&mut order, "10 wait"), "refetch");
    }

    #[test]
    fn a_sparse_numbering_does_not_cause_a_refetch_per_hole() {
        let mut order = Sequencer::new(Some(Sequence(1)));
        let told = run(&mut order, "3 wait b:3 wait 5 wait 7 wait 9 wait 11 wait 13 wait");
        assert!(told.matches("refetch").count() <= 4, "{told}");
        assert!(told.ends_with("13") || told.ends_with("refetch -1"), "{told}");
    }

    #[test]
    fn sixty_four_later_events_end_the_reorder_wait() {
        let mut order = Sequencer::new(Some(Sequence(1)));
        order.record_resume(SessionId(1), Sequence(1));
        assert_eq!(run(&mut order, "3..65"), "");
        assert!(run(&mut order, "66").starts_with("jump(1..3) 3 4 5"));

        let mut order = Sequencer::new(Some(Sequence(1)));
        assert_eq!(run(&mut order, "3..66"), "refetch");
        assert!(run(&mut order, "67..1030").starts_with("jump(1..3) 3 4 5"), "so many are held at most");

        let mut order = Sequencer::new(Some(Sequence(1)));
        order.record_resume(SessionId(1), Sequence(1));
        assert_eq!(run(&mut order, "3..60 62..66 68"), "jump(1..3) ".to_owned() + &numbers(3, 60));
        assert_eq!(run(&mut order, "67 61"), numbers(61, 68), "the later holes were waited for");
    }

    fn numbers(first: u64, last: u64) -> String {
        (first..=last).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_replay_is_dropped_even_beyond_the_recent_digests() {
        check(None, "1..5 2..6", "1 2 3 4 5 6 -4");
        check(Some(5), "2 3 4 5 6", "6 -4");
        check(Some(5), "3 4 5 wait", "-3");
        check(Some(5), "6 7 8 3 4 5 6 7 8 wait 9", "6 7 8 9 -6");
        check(None, "5 6 3 4 5 6 7 wait", "5 6 7 -4");
        check(Some(5), "b:6 b:7 3 4 wait b:8", "6 7 8 -2");
    }

    #[test]
    fn numbers_inside_a_jump_survive_a_stray_number_and_a_reset() {
        let far = "1 2 9000 b:9000 wait wait wait wait wait wait";
        let jump = "1 2 refetch jump(2..9000) 9000";
        check(None, &format!("{far} b:3 wait b:4 wait b:5"), &format!("{jump} ~3 reset(9000..4) 4 5 -1"));
        check(None, &format!("{far} b:3..200"), &format!("{jump} reset(9000..3) {} -1", numbers(3, 200)));
        check(None, &format!("{far} b:3 b:4 b:9001"), &format!("{jump} 9001 -3"));
        check(
            None,
            &format!("{far} b:9001 b:100..210"),
            &format!("{jump} 9001 reset(9001..100) {} -1", numbers(100, 210)),
        );
    }

    #[test]
    fn a_numbering_reset_is_recorded_and_loses_nothing() {
        check(Some(500), "1 2 3 wait 4", "reset(500..1) 1 2 3 4");
        check(None, "1 2 3 x1 x2 wait x3 x4", "1 2 3 reset(3..1) x1 x2 x3 x4");
        check(Some(500), "1 3 2 wait 4", "reset(500..1) 1 2 3 4");
        check(Some(500), "200 201 1 2 wait", "reset(500..200) 200 201 reset(201..1) 1 2");
        let mut order = Sequencer::new(Some(Sequence(5_000)));
        let told = run(&mut order, "1..150");
        assert!(told.starts_with("reset(5000..1) 1 2 3"));
        assert!(told.ends_with(" 149 150"));
    }

    #[test]
    fn one_event_with_an_old_number_is_no_reset() {
        // The numbering goes on: another body is kept without its number, and so is a number that was never received.
        check(None, "1 2 3 x1 4 5", "1 2 3 ~x1 4 5");
        check(None, "1 2 3 x1 x2 4 5", "1 2 3 ~x1 ~x2 4 5");
        check(None, "1 2 3 x3 4", "1 2 3 ~x3 4");
        check(None, "1 2 3 x2 5 4", "1 2 3 ~x2 4 5");
        check(Some(500), "7 501", "~7 501");
        check(Some(500), "490 501", "501 -1");
        check(None, "1000..1019 5 1020 12 1021", &format!("{} ~5 1020 ~12 1021", numbers(1000, 1019)));
        // It does not: what may be new is kept, and the position stays.
        check(None, "1 2 3 x1 wait 4", "1 2 3 ~x1 4");
        check(Some(500), "7 wait 501 502", "~7 501 502");
        check(None, "1 2 3 x2 wait x2 wait 4", "1 2 3 ~x2 4 -1");
        check(Some(500), "200 1 wait 501", "~200 ~1 501");
        let mut order = Sequencer::new(Some(Sequence(500)));
        run(&mut order, "7 wait");
        assert_eq!(order.resume(), Some(Sequence(500)));
    }

    #[test]
    fn a_slow_run_of_old_numbers_is_a_reset() {
        check(Some(500), "1 wait 2 wait 3 wait 4", "~1 reset(500..2) 2 3 4");
        check(Some(500), "1 wait b:2 wait b:3", "~1 reset(500..2) 2 3");
        check(Some(500), "1 wait b:1 b:2 b:3 wait b:4", "~1 reset(500..2) 2 3 4 -1");
        check(Some(500), "1 wait 501 2 wait 502", "~1 501 ~2 502");
        check(Some(500), "1 wait 300 wait", "~1 ~300");
        check(None, "1 2 3 x1 x2 x3 x4", "1 2 3 reset(3..1) x1 x2 x3 x4");
    }

    #[test]
    fn a_replay_mistaken_for_a_reset_is_not_appended_again() {
        check(None, "1..9 x2 x3 wait b:4..11", &format!("{} reset(9..2) x2 x3 10 11 -6", numbers(1, 9)));
    }

    #[test]
    fn the_gap_of_an_abandoned_position_precedes_unnumbered_events() {
        let abandoned = || {
            let mut order = Sequencer::new(Some(Sequence(4)));
            order.abandon(GapReason::Jump);
            order
        };
        assert_eq!(run(&mut abandoned(), "live odd 9"), "jump(4..?) ~odd0 9");
        assert_eq!(run(&mut abandoned(), "live odd odd live odd 9 odd"), {
            "jump(4..?) ~odd0 ~odd0 jump(4..?) ~odd0 9 ~odd0"
        });
        assert_eq!(run(&mut abandoned(), "live odd live live 9"), "jump(4..?) ~odd0 jump(4..9) 9");
        assert_eq!(run(&mut abandoned(), "live 2 wait 9"), "jump(4..?) ~2 9");
        assert_eq!(run(&mut Sequencer::new(Some(Sequence(4))), "live odd live 5"), "~odd0 5");
    }

    #[test]
    fn an_abandoned_position_is_no_jump() {
        let mut order = Sequencer::new(Some(Sequence(4)));
        order.abandon(GapReason::Retention);
        assert_eq!(run(&mut order, "9 10"), "retention(4..9) 9 10");

        let mut order = Sequencer::new(Some(Sequence(4)));
        order.abandon(GapReason::Retention);
        assert_eq!(run(&mut order, "5 6"), "5 6");

        let mut order = Sequencer::new(Some(Sequence(4)));
        order.abandon(GapReason::Oversize);
        assert_eq!(run(&mut order, "5 6"), "oversize(4..5) 5 6", "a frame was given up, whatever its number");

        let mut order = Sequencer::new(Some(Sequence(4)));
        order.abandon(GapReason::Retention);
        assert_eq!(order.take_abandoned_gap().unwrap().before, None);
        assert_eq!(order.take_abandoned_gap(), None);
        assert_eq!(run(&mut order, "9 10"), "9 10");
    }

    #[test]
    fn a_catching_up_session_may_repeat_more_than_the_recent_digests() {
        let mut order = Sequencer::new(Some(Sequence(1)));
        run(&mut order, "2..3000");
        order.record_resume(SessionId(2), Sequence(1));
        assert_eq!(run(&mut order, "b:2..3001"), "3001 -2999");
    }

    proptest! {
        /// Two sockets that each carry every number from their own start on, interleaved in any way.
        #[test]
        fn two_overlapping_sessions_deliver_every_event_once(switches in proptest::collection::vec(1_u64..20, 1..20), lag in 0_u64..60) {
            let mut order = Sequencer::new(None);
            let (mut told, now) = (Vec::new(), Instant::now());
            let (mut old, mut new) = (1, 1);
            for (turn, count) in switches.iter().enumerate() {
                let (next, session) = if turn % 2 == 0 { (&mut old, SessionId(1)) } else { (&mut new, SessionId(2)) };
                for _ in 0..*count {
                    order.accept(Sequence(*next), event(*next, ""), session, now, &mut told);
                    *next += 1;
                }
            }
            for sequence in new..(old + lag) {
                order.accept(Sequence(sequence), event(sequence, ""), SessionId(2), now, &mut told);
            }
            let accepted: Vec<u64> = told.iter().filter_map(|decision| match decision {
                Decision::Accepted(event) => event.sequence.map(|sequence| sequence.0),
                Decision::Gap(_) | Decision::Duplicates(_) | Decision::Refetch => None,
            }).collect();
            let end = accepted.last().copied().unwrap_or(0);
            prop_assert_eq!(accepted, (1..=end).collect::<Vec<_>>());
            prop_assert!(!told.iter().any(|decision| matches!(decision, Decision::Gap(_))));
        }
    }
}
