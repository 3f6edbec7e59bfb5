//! The way of events from a session to the log: each once, in order, with gaps marked, within limits.

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
    model::{Event, Gap, GapReason, Position, Sequence},
    protocol::{Moment, session::SessionId},
};

/// After an abandoned position the first event shows how much is missing. Without an event the gap is marked after this
/// time.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(1);

/// The session id under which entries of the log count as duplicates. No session has it.
const LOG_SESSION: SessionId = SessionId(0);

/// The data path of an owner: order or dedup, recovery, and the buffer in front of the log.
#[derive(Debug)]
pub(super) struct Intake {
    numbering: Numbering,
    /// The reason of the current outage, if the platform does not replay it.
    outage_reason: Option<GapReason>,
    buffer: Buffer,
    pub(super) recovery: Recovery,
    tickets: u64,
    decisions: Vec<Decision>,
    snapshot: Vec<RestRequest>,
}

/// How duplicates and gaps are found.
#[derive(Debug)]
enum Numbering {
    /// By the platform's sequence numbers. `gap_at`: when the gap of an abandoned position is marked without its end.
    Numbered { sequencer: Box<Sequencer>, gap_at: Option<Instant> },
    /// By comparing events while sessions overlap. `position`: the newest one, if the platform sends opaque ones.
    Unnumbered { dedup: Option<DedupWindow>, position: Option<Position> },
}

/// The facts that the caller must report after events were accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IntakeOutcome {
    pub(super) duplicates: u64,
    pub(super) shed: u64,
    /// The sizes in bytes of frames that could not be decoded.
    pub(super) undecoded: Vec<usize>,
    pub(super) gaps: Vec<Gap>,
    /// An event is missing that the platform may still have.
    pub(super) refetch: bool,
}

impl Intake {
    pub(super) fn new(settings: &Settings, capabilities: &Capabilities, position: Option<Position>) -> Self {
        let numbering = match capabilities.resume {
            Resume::Sequence => {
                let sequencer = Box::new(Sequencer::new(position.as_ref().and_then(Position::order)));
                Numbering::Numbered { sequencer, gap_at: None }
            }
            Resume::Opaque | Resume::None => Numbering::Unnumbered { dedup: None, position: position.clone() },
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

    /// The position for the next session; none if there is none or it was abandoned.
    pub(super) fn resume(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { sequencer, .. } => sequencer.resume().map(Position::Numbered),
            Numbering::Unnumbered { position, .. } => position.clone(),
        }
    }

    /// A session is dialled to resume after this number.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Option<Sequence>) {
        if let (Numbering::Numbered { sequencer, .. }, Some(after)) = (&mut self.numbering, after) {
            sequencer.record_resume(session, after);
        }
    }

    /// Another replica wrote the log up to its position.
    pub(super) fn took_over(&mut self) {
        if let Numbering::Numbered { sequencer, .. } = &mut self.numbering {
            sequencer.took_over();
        }
    }

    /// The position after the last accepted event.
    pub(super) fn position(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { sequencer, .. } => sequencer.last().map(Position::Numbered),
            Numbering::Unnumbered { position, .. } => position.clone(),
        }
    }

    /// The position of the last event in the log or in the append in flight.
    pub(super) fn last_passed(&self) -> Option<Position> {
        self.buffer.last_passed()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len() + self.recovery.held() + self.held_for_predecessor()
    }

    /// The dedup window, while there is one.
    fn dedup(&mut self) -> Option<&mut DedupWindow> {
        match &mut self.numbering {
            Numbering::Numbered { .. } => None,
            Numbering::Unnumbered { dedup, .. } => dedup.as_mut(),
        }
    }

    fn dedup_window(&self) -> Option<&DedupWindow> {
        match &self.numbering {
            Numbering::Numbered { .. } => None,
            Numbering::Unnumbered { dedup, .. } => dedup.as_ref(),
        }
    }

    /// Whether events of several sessions are compared.
    pub(super) fn uses_dedup(&self) -> bool {
        self.dedup_window().is_some()
    }

    /// How many items of a successor wait for the old session: events, positions, and discontinuities between them.
    pub(super) fn held_for_predecessor(&self) -> usize {
        self.dedup_window().map_or(0, DedupWindow::held)
    }

    fn held_for_predecessor_bytes(&self) -> usize {
        self.dedup_window().map_or(0, DedupWindow::held_bytes)
    }

    /// How many entries ever went into the buffer; none while events wait for a snapshot or for another session.
    pub(super) fn queued(&self) -> Option<u64> {
        (self.recovery.held() + self.held_for_predecessor() == 0).then(|| self.buffer.pushed_total())
    }

    /// Whether this number of entries has left the buffer.
    pub(super) fn has_drained(&self, count: u64) -> bool {
        self.buffer.has_drained(count)
    }

    /// Whether no more events of a successor can wait.
    pub(super) fn is_full_of_successor(&self) -> bool {
        self.buffer.is_limit(self.held_for_predecessor(), self.held_for_predecessor_bytes())
    }

    /// Whether nothing is left to append. The platform repeats events that wait for a missing number.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no more frames should be read. `appending`, `appending_bytes`: the size of the append in flight.
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

    /// The position must not be used any more.
    pub(super) fn abandon_position(&mut self, reason: GapReason) {
        match &mut self.numbering {
            Numbering::Numbered { sequencer, .. } => sequencer.abandon(reason),
            Numbering::Unnumbered { position, .. } => {
                if position.take().is_some() {
                    self.outage_reason.get_or_insert(reason);
                }
            }
        }
    }

    /// No session is live. Without a position the platform does not replay what it sends now.
    pub(super) fn mark_disconnected(&mut self, reason: GapReason) {
        if self.position().is_none() {
            self.outage_reason.get_or_insert(reason);
        }
    }

    /// A session is live again. Returns the gap of the outage, if the platform does not replay it.
    pub(super) fn mark_connected(&mut self, silence: Duration, now: Moment) -> Option<Gap> {
        if let Numbering::Numbered { sequencer, gap_at } = &mut self.numbering {
            sequencer.mark_connected();
            *gap_at = sequencer.is_abandoned().then(|| now.at + FIRST_EVENT_WAIT);
        }
        self.outage_reason.take().map(|reason| Gap::unknown(reason).with_silence(silence))
    }

    /// Two sessions bring the same events from here on.
    pub(super) fn start_overlap(&mut self) {
        if let Numbering::Unnumbered { dedup, .. } = &mut self.numbering {
            dedup.get_or_insert_default().resume();
        }
    }

    /// Events of this session wait until the old session has answered its probe.
    pub(super) fn hold(&mut self, successor: SessionId) {
        if let Some(dedup) = self.dedup() {
            dedup.hold_from(successor);
        }
    }

    /// A successor is lost before the old session has answered its probe.
    pub(super) fn lose_successor(&mut self) {
        if let Some(dedup) = self.dedup() {
            dedup.lose_successor();
        }
    }

    /// The old session will not answer its probe.
    pub(super) fn abandon_predecessor(&mut self) {
        if let Some(dedup) = self.dedup() {
            dedup.abandon_predecessor();
        }
    }

    /// Accepts the events of a successor that waited.
    pub(super) fn release_held(&mut self, now: Moment, outcome: &mut IntakeOutcome) {
        let held = self.dedup().map(|dedup| dedup.release(now.at));
        for held in held.into_iter().flatten() {
            match held {
                HeldItem::Event(session, event) => self.accept_event(event, session, now, outcome),
                HeldItem::Position(session, position) => self.accept_position(position, session),
                HeldItem::Discontinuity => self.record_gap(Gap::unknown(GapReason::NoReplay), now, outcome),
            }
        }
    }

    /// At most one session is left.
    pub(super) fn end_overlap(&mut self, now: Moment) {
        if let Some(dedup) = self.dedup() {
            dedup.end(now.at);
        }
    }

    /// Frames are not read because the buffer is full.
    pub(super) fn suspend_timers(&mut self, now: Moment) {
        if let Some(dedup) = self.dedup() {
            dedup.suspend_timers(now.at);
        }
    }

    /// Accepts the items that a session received.
    pub(super) fn accept_items(&mut self, items: Vec<Item>, session: SessionId, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        for item in items {
            match item {
                Item::Event(event) => self.accept_event(event, session, now, &mut outcome),
                Item::Position(position) => self.accept_position(position, session),
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
            Numbering::Unnumbered { dedup: None, .. } => self.push(event.into(), outcome),
            Numbering::Unnumbered { dedup: Some(dedup), .. } => {
                let Some(event) = dedup.hold(event, session) else { return };
                if dedup.insert(&event, session, now.at) {
                    self.push(event.into(), outcome);
                } else {
                    outcome.duplicates += 1;
                }
            }
        }
    }

    /// The events of the session so far are in front of this position.
    fn accept_position(&mut self, received: Position, session: SessionId) {
        let Numbering::Unnumbered { dedup, position } = &mut self.numbering else { return };
        if dedup.as_mut().is_some_and(|dedup| dedup.hold_position(&received, session)) {
            return;
        }
        *position = Some(received.clone());
        match self.recovery.newest_held() {
            Some(newest) => newest.position = Some(received),
            None => self.buffer.set_position(received),
        }
    }

    /// Stores the buffer of a standby, without the events that `stored`, the newest entries of the log, has already.
    /// Events of the session `held` wait for the session before it. Duplicates are not counted.
    pub(super) fn take_over(
        &mut self,
        stored: &[Event],
        buffered: Vec<BufferedEvent>,
        held: Option<SessionId>,
        now: Moment,
        outcome: &mut IntakeOutcome,
    ) {
        let Numbering::Unnumbered { dedup, .. } = &mut self.numbering else { return };
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

    /// Accepts an event that several sessions brought.
    fn accept_shared_event(&mut self, event: Event, by: &[SessionId], now: Moment, outcome: &mut IntakeOutcome) {
        let Some(dedup) = self.dedup() else { return };
        // The event counts for each session.
        let new_for = by.iter().filter(|session| dedup.insert(&event, **session, now.at)).count();
        if new_for > 0 {
            self.push(event.into(), outcome);
        }
    }

    /// Whether the events that wait for a missing number would fill the buffer when they are released.
    pub(super) fn is_reorder_full(&self) -> bool {
        matches!(&self.numbering, Numbering::Numbered { sequencer, .. }
            if self.buffer.is_limit(2 * sequencer.held(), 2 * sequencer.held_bytes()))
    }

    /// Whether a refetch is in progress.
    pub(super) fn is_refetching(&self) -> bool {
        matches!(&self.numbering, Numbering::Numbered { sequencer, .. } if sequencer.is_refetching())
    }

    /// Ends a refetch, because there is no room for the events that wait.
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
        for decision in decisions.drain(..) {
            match decision {
                Decision::Accepted(event) => self.push(PendingEntry::numbered(event), outcome),
                Decision::Duplicates(count) => outcome.duplicates += count,
                Decision::Refetch => outcome.refetch = true,
                Decision::Gap(gap) => self.record_gap(gap, now, outcome),
            }
        }
        self.decisions = decisions;
    }

    /// Marks a gap and requests the snapshot that follows it.
    pub(super) fn record_gap(&mut self, gap: Gap, now: Moment, outcome: &mut IntakeOutcome) {
        self.tickets += 1;
        let ticket = GapTicket(self.tickets);
        self.push(PendingEntry { ticket: Some(ticket), ..gap.event(now.wall).into() }, outcome);
        self.recovery.start(ticket, gap.reason, self.snapshot.clone(), now.at);
        outcome.gaps.push(gap);
    }

    fn push(&mut self, pending: PendingEntry, outcome: &mut IntakeOutcome) {
        // Held events come first, also after holding has ended.
        if !self.recovery.is_holding() && self.recovery.held() == 0 {
            outcome.shed += self.buffer.push(pending);
            return;
        }
        self.recovery.hold(pending);
        if self.buffer.is_full_with(self.recovery.held(), self.recovery.held_bytes()) {
            self.recovery.stop_holding();
        }
    }

    /// Releases events that waited for a snapshot. Returns how many events were shed.
    pub(super) fn release(&mut self, now: Moment) -> u64 {
        let released = self.recovery.release(&self.snapshot, now);
        released.into_iter().map(|pending| self.buffer.push(pending)).sum()
    }

    /// Takes the next append.
    pub(super) fn take(&mut self, now: Moment) -> Option<AppendBatch> {
        self.buffer.take(now.wall)
    }

    /// Sets the REST calls whose answers are a snapshot of the stream's state.
    pub(super) fn set_snapshot(&mut self, requests: Vec<RestRequest>) {
        self.snapshot = requests;
    }

    pub(super) fn handle_timeout(&mut self, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        self.recovery.handle_timeout(&self.snapshot, now.at);
        match &mut self.numbering {
            Numbering::Numbered { sequencer, gap_at } => {
                sequencer.handle_timeout(now.at, &mut self.decisions);
                let abandoned = gap_at.take_if(|at| now.at >= *at).and_then(|_| sequencer.take_abandoned_gap());
                self.apply_decisions(now, &mut outcome);
                if let Some(gap) = abandoned {
                    self.record_gap(gap, now, &mut outcome);
                }
            }
            Numbering::Unnumbered { dedup, .. } => {
                dedup.take_if(|dedup| dedup.ends_at().is_some_and(|at| now.at >= at));
            }
        }
        outcome
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let numbering = match &self.numbering {
            Numbering::Numbered { sequencer, gap_at } => sequencer.poll_timeout().into_iter().chain(*gap_at).min(),
            Numbering::Unnumbered { dedup, .. } => dedup.as_ref().and_then(DedupWindow::ends_at),
        };
        numbering.into_iter().chain(self.recovery.poll_timeout()).min()
    }
}
