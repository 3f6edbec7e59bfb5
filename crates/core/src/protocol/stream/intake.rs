//! What is heard on its way to the log: once, in order, gaps marked, bounded.

use std::time::{Duration, Instant};

use super::{
    buffer::{AppendBatch, Buffer, BufferLimits, GapTicket, PendingEntry},
    dedup::{DedupWindow, HeldItem},
    recovery::Recovery,
    sequencer::{Decision, Sequencer},
    settings::Settings,
    splice::BufferedEvent,
};
use crate::{
    connector::{Capabilities, Item, RestRequest, Resume},
    model::{Event, Gap, GapReason, Position},
    protocol::{Moment, session::SessionId},
};

/// After an abandoned position the first event tells how much is missing; the gap is marked without it after this time.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(1);

/// Its entries are compared with what sessions bring as if it were one; no session has this name.
const LOG_SESSION: SessionId = SessionId(0);

/// The way from a session to the log.
#[derive(Debug)]
pub(super) struct Intake {
    numbering: Numbering,
    /// Nobody listened, and nothing of that time will be repeated.
    outage_reason: Option<GapReason>,
    buffer: Buffer,
    pub(super) recovery: Recovery,
    tickets: u64,
    decisions: Vec<Decision>,
    snapshot: Vec<RestRequest>,
}

/// How doubles and holes are found.
#[derive(Debug)]
enum Numbering {
    /// By the platform's dense numbers. `marks_at`: when the gap of an abandoned position is marked without its end.
    Numbered { sequencer: Box<Sequencer>, gap_at: Option<Instant> },
    /// By comparing, while sockets overlap.
    Unnumbered { dedup: Option<DedupWindow> },
}

/// What came of taking items in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IntakeOutcome {
    pub(super) duplicates: u64,
    pub(super) shed: u64,
    /// Sizes of frames that nobody could read.
    pub(super) undecoded: Vec<usize>,
    pub(super) gaps: Vec<Gap>,
    /// Something is missing that the platform may still have.
    pub(super) refetch: bool,
}

impl Intake {
    pub(super) fn new(settings: &Settings, capabilities: &Capabilities, position: Option<Position>) -> Self {
        let numbering = match capabilities.resume {
            Resume::Sequence => {
                let sequencer = Box::new(Sequencer::new(position.map(|position| position.0)));
                Numbering::Numbered { sequencer, gap_at: None }
            }
            Resume::None => Numbering::Unnumbered { dedup: None },
        };
        let snapshot = settings.connector.snapshot(None);
        let limits =
            BufferLimits { events: settings.buffer, bytes: settings.buffer_bytes, append_max: settings.append_max };
        let buffer = Buffer::new(limits, settings.overflow, position);
        Self {
            numbering,
            outage_reason: None,
            buffer,
            recovery: Recovery::default(),
            tickets: 0,
            decisions: Vec::new(),
            snapshot,
        }
    }

    /// Where to resume; none when there is nothing to resume from, or it was abandoned.
    pub(super) fn resume(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { sequencer, .. } => sequencer.resume().map(Position),
            Numbering::Unnumbered { .. } => None,
        }
    }

    /// A session is asked to go on there.
    pub(super) fn record_resume(&mut self, session: SessionId, position: Option<Position>) {
        if let (Numbering::Numbered { sequencer, .. }, Some(position)) = (&mut self.numbering, position) {
            sequencer.record_resume(session, position.0);
        }
    }

    /// Up to its position this log was written by another replica.
    pub(super) fn took_over(&mut self) {
        if let Numbering::Numbered { sequencer, .. } = &mut self.numbering {
            sequencer.took_over();
        }
    }

    /// The last number accepted.
    pub(super) fn position(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { sequencer, .. } => sequencer.last().map(Position),
            Numbering::Unnumbered { .. } => None,
        }
    }

    /// The last number that went towards the log.
    pub(super) fn last_passed(&self) -> Option<Position> {
        self.buffer.last_passed()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len() + self.recovery.held() + self.held_for_predecessor()
    }

    /// What is remembered of an overlap, while there is something.
    fn dedup(&mut self) -> Option<&mut DedupWindow> {
        match &mut self.numbering {
            Numbering::Numbered { .. } => None,
            Numbering::Unnumbered { dedup } => dedup.as_mut(),
        }
    }

    /// Whether what sessions bring is compared.
    pub(super) fn uses_dedup(&self) -> bool {
        matches!(&self.numbering, Numbering::Unnumbered { dedup: Some(_) })
    }

    /// How much of a successor waits for the old session: events, and holes between them.
    pub(super) fn held_for_predecessor(&self) -> usize {
        match &self.numbering {
            Numbering::Numbered { .. } | Numbering::Unnumbered { dedup: None } => 0,
            Numbering::Unnumbered { dedup: Some(dedup) } => dedup.held(),
        }
    }

    fn held_for_predecessor_bytes(&self) -> usize {
        match &self.numbering {
            Numbering::Numbered { .. } | Numbering::Unnumbered { dedup: None } => 0,
            Numbering::Unnumbered { dedup: Some(dedup) } => dedup.held_bytes(),
        }
    }

    /// How many entries are on their way to the log; none while some wait for a snapshot or for another session.
    pub(super) fn queued(&self) -> Option<u64> {
        (self.recovery.held() + self.held_for_predecessor() == 0).then(|| self.buffer.pushed_total())
    }

    /// Whether so many of them have left for it.
    pub(super) fn has_drained(&self, count: u64) -> bool {
        self.buffer.has_drained(count)
    }

    /// Whether more of a successor cannot wait.
    pub(super) fn is_full_of_successor(&self) -> bool {
        self.buffer.is_limit(self.held_for_predecessor(), self.held_for_predecessor_bytes())
    }

    /// Whether everything that can be appended was. Events that wait for a missing number are heard again.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing more is to be read, with so much in the append under way.
    pub(super) fn applies_backpressure(&self, appending: usize, appending_bytes: usize) -> bool {
        let (ordering, ordering_bytes) = match &self.numbering {
            Numbering::Numbered { sequencer, .. } => (sequencer.held(), sequencer.held_bytes()),
            Numbering::Unnumbered { .. } => (0, 0),
        };
        self.buffer.applies_backpressure(
            self.recovery.held() + ordering + appending,
            self.recovery.held_bytes() + ordering_bytes + appending_bytes,
        )
    }

    /// The position is worth nothing any more.
    pub(super) fn abandon_position(&mut self, reason: GapReason) {
        if let Numbering::Numbered { sequencer, .. } = &mut self.numbering {
            sequencer.abandon(reason);
        }
    }

    /// From here on nothing can be heard, and nothing of it will be repeated: unless there is a number to ask behind.
    pub(super) fn mark_disconnected(&mut self, reason: GapReason) {
        if self.position().is_none() {
            self.outage_reason.get_or_insert(reason);
        }
    }

    /// A session is live again. Returns the gap that is known by that alone.
    pub(super) fn mark_connected(&mut self, silence: Duration, now: Moment) -> Option<Gap> {
        if let Numbering::Numbered { sequencer, gap_at: marks_at } = &mut self.numbering {
            sequencer.mark_connected();
            *marks_at = sequencer.is_abandoned().then(|| now.at + FIRST_EVENT_WAIT);
        }
        self.outage_reason.take().map(|reason| Gap::unknown(reason).with_silence(silence))
    }

    /// Two sockets carry the same events from here on.
    pub(super) fn start_overlap(&mut self) {
        if let Numbering::Unnumbered { dedup } = &mut self.numbering {
            dedup.get_or_insert_default().resume();
        }
    }

    /// What this session brings waits until the old one has answered.
    pub(super) fn hold(&mut self, successor: SessionId) {
        if let Some(dedup) = self.dedup() {
            dedup.hold_from(successor);
        }
    }

    /// A successor is lost while the old session has not answered.
    pub(super) fn lose_successor(&mut self) {
        if let Some(dedup) = self.dedup() {
            dedup.lose_successor();
        }
    }

    /// The old session will not answer.
    pub(super) fn abandon_predecessor(&mut self) {
        if let Some(dedup) = self.dedup() {
            dedup.abandon_predecessor();
        }
    }

    /// Nothing that a successor brought has to wait any longer.
    pub(super) fn release_held(&mut self, now: Moment, outcome: &mut IntakeOutcome) {
        let held = self.dedup().map(|dedup| dedup.release(now.at));
        for held in held.into_iter().flatten() {
            match held {
                HeldItem::Event(session, event) => self.accept_event(event, session, now, outcome),
                HeldItem::Discontinuity => self.record_gap(Gap::unknown(GapReason::NoReplay), now, outcome),
            }
        }
    }

    /// One socket is left.
    pub(super) fn end_overlap(&mut self, now: Moment) {
        if let Some(dedup) = self.dedup() {
            dedup.end(now.at);
        }
    }

    /// Frames are left unread for our own reasons.
    pub(super) fn suspend_timers(&mut self, now: Moment) {
        if let Some(dedup) = self.dedup() {
            dedup.suspend_timers(now.at);
        }
    }

    /// Takes in what a session heard.
    pub(super) fn accept_items(&mut self, items: Vec<Item>, session: SessionId, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        for item in items {
            match item {
                Item::Event(event) => self.accept_event(event, session, now, &mut outcome),
                Item::Undecoded(frame) => {
                    outcome.undecoded.push(frame.len());
                    self.accept_event(Event::undecoded(frame, now.wall), session, now, &mut outcome);
                }
                Item::Notice(_) | Item::Heartbeat | Item::ProbeAck | Item::Accepted => (),
            }
        }
        outcome
    }

    pub(super) fn accept_event(&mut self, event: Event, session: SessionId, now: Moment, outcome: &mut IntakeOutcome) {
        match &mut self.numbering {
            Numbering::Numbered { sequencer, .. } => {
                match event.sequence {
                    Some(sequence) => sequencer.accept(sequence, event, session, now.at, &mut self.decisions),
                    None => sequencer.pass_unnumbered(event, &mut self.decisions),
                }
                self.apply_decisions(now, outcome);
            }
            Numbering::Unnumbered { dedup: None } => self.push(event.into(), outcome),
            Numbering::Unnumbered { dedup: Some(dedup) } => {
                let Some(event) = dedup.hold(event, session) else { return };
                if dedup.insert(&event, session, now.at) {
                    self.push(event.into(), outcome);
                } else {
                    outcome.duplicates += 1;
                }
            }
        }
    }

    /// Stores the buffer of a standby, without the events that `stored`, the newest entries of the log, has already. Events
    /// of the session `held` wait for the session before it. Duplicates are not counted.
    pub(super) fn take_over(
        &mut self,
        stored: &[Event],
        buffered: Vec<BufferedEvent>,
        held: Option<SessionId>,
        now: Moment,
        outcome: &mut IntakeOutcome,
    ) {
        let Numbering::Unnumbered { dedup } = &mut self.numbering else { return };
        let dedup = dedup.get_or_insert_default();
        for entry in stored {
            dedup.insert(entry, LOG_SESSION, now.at);
        }
        held.into_iter().for_each(|session| dedup.hold_from(session));
        for BufferedEvent { event, sessions, .. } in buffered {
            match *sessions {
                [session] => self.accept_event(event, session, now, outcome),
                _ => self.accept_shared_event(event, &sessions, now, outcome),
            }
        }
        outcome.duplicates = 0;
    }

    /// An event that several sessions have brought.
    fn accept_shared_event(&mut self, event: Event, by: &[SessionId], now: Moment, outcome: &mut IntakeOutcome) {
        let Some(dedup) = self.dedup() else { return };
        // Each of them is counted.
        let rises = by.iter().filter(|session| dedup.insert(&event, **session, now.at)).count();
        if rises > 0 {
            self.push(event.into(), outcome);
        }
    }

    /// Whether more of what waits for a missing number would not fit into the buffer when it is let go.
    pub(super) fn is_reorder_full(&self) -> bool {
        match &self.numbering {
            Numbering::Numbered { sequencer, .. } => {
                self.buffer.is_limit(2 * sequencer.held(), 2 * sequencer.held_bytes())
            }
            Numbering::Unnumbered { .. } => false,
        }
    }

    /// Whether a missing number is being asked for again.
    pub(super) fn is_refetching(&self) -> bool {
        matches!(&self.numbering, Numbering::Numbered { sequencer, .. } if sequencer.is_refetching())
    }

    /// There is no room to wait for what is missing.
    pub(super) fn end_refetch(&mut self, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        if let Numbering::Numbered { sequencer, .. } = &mut self.numbering {
            sequencer.end_refetch(now.at, &mut self.decisions);
            self.apply_decisions(now, &mut outcome);
        }
        outcome
    }

    fn apply_decisions(&mut self, now: Moment, outcome: &mut IntakeOutcome) {
        let mut decisions = std::mem::take(&mut self.decisions);
        for ruling in decisions.drain(..) {
            match ruling {
                Decision::Accepted(event) => self.push(event.into(), outcome),
                Decision::Duplicates(count) => outcome.duplicates += count,
                Decision::Refetch => outcome.refetch = true,
                Decision::Gap(gap) => self.record_gap(gap, now, outcome),
            }
        }
        self.decisions = decisions;
    }

    /// Marks a gap at this place and asks for the snapshot that belongs behind it.
    pub(super) fn record_gap(&mut self, gap: Gap, now: Moment, outcome: &mut IntakeOutcome) {
        self.tickets += 1;
        let ticket = GapTicket(self.tickets);
        self.push(PendingEntry { event: gap.event(now.wall), ticket: Some(ticket) }, outcome);
        self.recovery.start(ticket, gap.reason, self.snapshot.clone(), now.at);
        outcome.gaps.push(gap);
    }

    fn push(&mut self, pending: PendingEntry, outcome: &mut IntakeOutcome) {
        // What was held comes first, also when nothing more is held back.
        if !self.recovery.is_holding() && self.recovery.held() == 0 {
            outcome.shed += self.buffer.push(pending);
            return;
        }
        self.recovery.hold(pending);
        if self.buffer.is_full_with(self.recovery.held(), self.recovery.held_bytes()) {
            self.recovery.stop_holding();
        }
    }

    /// Lets held events go where they need not wait any longer. Returns how many were dropped for it.
    pub(super) fn release(&mut self, now: Moment) -> u64 {
        let released = self.recovery.release(&self.snapshot, now);
        released.into_iter().map(|pending| self.buffer.push(pending)).sum()
    }

    /// What is to be appended next.
    pub(super) fn take(&mut self, now: Moment) -> Option<AppendBatch> {
        self.buffer.take(now.wall)
    }

    /// The calls whose answers show the state of what this stream is about.
    pub(super) fn set_snapshot(&mut self, requests: Vec<RestRequest>) {
        self.snapshot = requests;
    }

    pub(super) fn handle_timeout(&mut self, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        self.recovery.handle_timeout(&self.snapshot, now.at);
        match &mut self.numbering {
            Numbering::Numbered { sequencer, gap_at: marks_at } => {
                sequencer.handle_timeout(now.at, &mut self.decisions);
                let abandoned = marks_at.take_if(|at| now.at >= *at).and_then(|_| sequencer.take_abandoned_gap());
                self.apply_decisions(now, &mut outcome);
                if let Some(gap) = abandoned {
                    self.record_gap(gap, now, &mut outcome);
                }
            }
            Numbering::Unnumbered { dedup } => {
                dedup.take_if(|dedup| dedup.ends_at().is_some_and(|at| now.at >= at));
            }
        }
        outcome
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let numbering = match &self.numbering {
            Numbering::Numbered { sequencer, gap_at: marks_at } => {
                sequencer.poll_timeout().into_iter().chain(*marks_at).min()
            }
            Numbering::Unnumbered { dedup } => dedup.as_ref().and_then(DedupWindow::ends_at),
        };
        numbering.into_iter().chain(self.recovery.poll_timeout()).min()
    }
}
