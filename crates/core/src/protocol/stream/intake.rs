//! What is heard on its way to the log: once, in order, gaps marked, bounded.

use std::time::{Duration, Instant};

use super::{
    Settings,
    buffer::{Buffer, Limits, Pending, Taken, Ticket},
    order::{Order, Ruling},
    recovery::Recovery,
    standby::Carried,
    twins::{Kept, Twins},
};
use crate::{
    connector::{Choices, Item, Request, Resume},
    model::{Event, Gap, GapReason, Position},
    protocol::{Now, session::SessionId},
};

/// After an abandoned position the first event tells how much is missing; the gap is marked without it after this time.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(1);

/// Its entries are compared with what sessions bring as if it were one; no session has this name.
const THE_LOG: SessionId = SessionId(0);

/// The way from a session to the log.
#[derive(Debug)]
pub(super) struct Intake {
    numbering: Numbering,
    /// Nobody listened, and nothing of that time will be repeated.
    deaf: Option<GapReason>,
    buffer: Buffer,
    pub(super) recovery: Recovery,
    tickets: u64,
    rulings: Vec<Ruling>,
    snapshot: Vec<Request>,
}

/// How doubles and holes are found.
#[derive(Debug)]
enum Numbering {
    /// By the platform's dense numbers. `marks_at`: when the gap of an abandoned position is marked without its end.
    Numbered { order: Box<Order>, marks_at: Option<Instant> },
    /// By comparing, while sockets overlap.
    Unnumbered { twins: Option<Twins> },
}

/// What came of taking items in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TakenIn {
    pub(super) duplicates: u64,
    pub(super) shed: u64,
    /// Sizes of frames that nobody could read.
    pub(super) undecoded: Vec<usize>,
    pub(super) gaps: Vec<Gap>,
    /// Something is missing that the platform may still have.
    pub(super) refetch: bool,
}

impl Intake {
    pub(super) fn new(settings: &Settings, choices: &Choices, position: Option<Position>) -> Self {
        let numbering = match choices.resume {
            Resume::Sequence => {
                let order = Box::new(Order::new(position.map(|position| position.0)));
                Numbering::Numbered { order, marks_at: None }
            }
            Resume::None => Numbering::Unnumbered { twins: None },
        };
        let snapshot = settings.connector.snapshot(None);
        let limits = Limits { events: settings.buffer, bytes: settings.buffer_bytes, append_max: settings.append_max };
        let buffer = Buffer::new(limits, settings.overflow, position);
        Self { numbering, deaf: None, buffer, recovery: Recovery::default(), tickets: 0, rulings: Vec::new(), snapshot }
    }

    /// Where to resume; none when there is nothing to resume from, or it was abandoned.
    pub(super) fn resume(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { order, .. } => order.resume().map(Position),
            Numbering::Unnumbered { .. } => None,
        }
    }

    /// A session is asked to go on there.
    pub(super) fn resumes(&mut self, session: SessionId, position: Option<Position>) {
        if let (Numbering::Numbered { order, .. }, Some(position)) = (&mut self.numbering, position) {
            order.resumes(session, position.0);
        }
    }

    /// Up to its position this log was written by another replica.
    pub(super) fn took_over(&mut self) {
        if let Numbering::Numbered { order, .. } = &mut self.numbering {
            order.took_over();
        }
    }

    /// The last number accepted.
    pub(super) fn position(&self) -> Option<Position> {
        match &self.numbering {
            Numbering::Numbered { order, .. } => order.last().map(Position),
            Numbering::Unnumbered { .. } => None,
        }
    }

    /// The last number that went towards the log.
    pub(super) fn passed(&self) -> Option<Position> {
        self.buffer.passed()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len() + self.recovery.held() + self.kept_back()
    }

    /// What is remembered of an overlap, while there is something.
    fn twins(&mut self) -> Option<&mut Twins> {
        match &mut self.numbering {
            Numbering::Numbered { .. } => None,
            Numbering::Unnumbered { twins } => twins.as_mut(),
        }
    }

    /// Whether what sessions bring is compared.
    pub(super) fn compares(&self) -> bool {
        matches!(&self.numbering, Numbering::Unnumbered { twins: Some(_) })
    }

    /// How much of a successor waits for the old session: events, and holes between them.
    pub(super) fn kept_back(&self) -> usize {
        match &self.numbering {
            Numbering::Numbered { .. } | Numbering::Unnumbered { twins: None } => 0,
            Numbering::Unnumbered { twins: Some(twins) } => twins.held(),
        }
    }

    fn kept_back_bytes(&self) -> usize {
        match &self.numbering {
            Numbering::Numbered { .. } | Numbering::Unnumbered { twins: None } => 0,
            Numbering::Unnumbered { twins: Some(twins) } => twins.held_bytes(),
        }
    }

    /// How many entries are on their way to the log; none while some wait for a snapshot or for another session.
    pub(super) fn queued(&self) -> Option<u64> {
        (self.recovery.held() + self.kept_back() == 0).then(|| self.buffer.came())
    }

    /// Whether so many of them have left for it.
    pub(super) fn is_past(&self, count: u64) -> bool {
        self.buffer.is_past(count)
    }

    /// Whether more of a successor cannot wait.
    pub(super) fn is_full_of_successor(&self) -> bool {
        self.buffer.is_limit(self.kept_back(), self.kept_back_bytes())
    }

    /// Whether everything that can be appended was. Events that wait for a missing number are heard again.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing more is to be read, with so much in the append under way.
    pub(super) fn holds_back(&self, appending: usize, appending_bytes: usize) -> bool {
        let (ordering, ordering_bytes) = match &self.numbering {
            Numbering::Numbered { order, .. } => (order.held(), order.held_bytes()),
            Numbering::Unnumbered { .. } => (0, 0),
        };
        self.buffer.holds_back(
            self.recovery.held() + ordering + appending,
            self.recovery.held_bytes() + ordering_bytes + appending_bytes,
        )
    }

    /// The position is worth nothing any more.
    pub(super) fn give_up_position(&mut self, reason: GapReason) {
        if let Numbering::Numbered { order, .. } = &mut self.numbering {
            order.abandon(reason);
        }
    }

    /// From here on nothing can be heard, and nothing of it will be repeated: unless there is a number to ask behind.
    pub(super) fn deaf(&mut self, reason: GapReason) {
        if self.position().is_none() {
            self.deaf.get_or_insert(reason);
        }
    }

    /// A session is live again. Returns the gap that is known by that alone.
    pub(super) fn listening(&mut self, silence: Duration, now: Now) -> Option<Gap> {
        if let Numbering::Numbered { order, marks_at } = &mut self.numbering {
            order.listens();
            *marks_at = order.is_abandoned().then(|| now.at + FIRST_EVENT_WAIT);
        }
        self.deaf.take().map(|reason| Gap::unknown(reason).silent_for(silence))
    }

    /// Two sockets carry the same events from here on.
    pub(super) fn overlap_begins(&mut self) {
        if let Numbering::Unnumbered { twins } = &mut self.numbering {
            twins.get_or_insert_default().go_on();
        }
    }

    /// What this session brings waits until the old one has answered.
    pub(super) fn keep_back(&mut self, successor: SessionId) {
        if let Some(twins) = self.twins() {
            twins.hold(successor);
        }
    }

    /// A successor is lost while the old session has not answered.
    pub(super) fn lose_successor(&mut self) {
        if let Some(twins) = self.twins() {
            twins.lose_successor();
        }
    }

    /// The old session will not answer.
    pub(super) fn write_off(&mut self) {
        if let Some(twins) = self.twins() {
            twins.write_off();
        }
    }

    /// Nothing that a successor brought has to wait any longer.
    pub(super) fn let_in(&mut self, now: Now) -> TakenIn {
        let mut taken = TakenIn::default();
        let kept = self.twins().map(|twins| twins.release(now.at));
        for kept in kept.into_iter().flatten() {
            match kept {
                Kept::Event(session, event) => self.event(event, session, now, &mut taken),
                Kept::Break => self.gap(Gap::unknown(GapReason::NoReplay), now, &mut taken),
            }
        }
        taken
    }

    /// One socket is left.
    pub(super) fn overlap_ends(&mut self, now: Now) {
        if let Some(twins) = self.twins() {
            twins.end(now.at);
        }
    }

    /// Frames are left unread for our own reasons.
    pub(super) fn excuse(&mut self, now: Now) {
        if let Some(twins) = self.twins() {
            twins.excuse(now.at);
        }
    }

    /// Takes in what a session heard.
    pub(super) fn take_in(&mut self, items: Vec<Item>, session: SessionId, now: Now) -> TakenIn {
        let mut taken = TakenIn::default();
        for item in items {
            match item {
                Item::Event(event) => self.event(event, session, now, &mut taken),
                Item::Undecoded(frame) => {
                    taken.undecoded.push(frame.len());
                    self.event(Event::undecoded(frame, now.wall), session, now, &mut taken);
                }
                Item::Notice(_) | Item::Alive | Item::Answer => (),
            }
        }
        taken
    }

    pub(super) fn event(&mut self, event: Event, session: SessionId, now: Now, taken: &mut TakenIn) {
        match &mut self.numbering {
            Numbering::Numbered { order, .. } => {
                match event.sequence {
                    Some(sequence) => order.accept(sequence, event, session, now.at, &mut self.rulings),
                    None => order.pass_unnumbered(event, &mut self.rulings),
                }
                self.carry_out_rulings(now, taken);
            }
            Numbering::Unnumbered { twins: None } => self.push(event.into(), taken),
            Numbering::Unnumbered { twins: Some(twins) } => {
                let Some(event) = twins.keep_back(event, session) else { return };
                if twins.is_new(&event, session, now.at) {
                    self.push(event.into(), taken);
                } else {
                    taken.duplicates += 1;
                }
            }
        }
    }

    /// Takes in what a standby has kept, compared with the newest entries of the log. What `waits` brought alone has to
    /// wait for the session before it.
    pub(super) fn take_over(
        &mut self,
        stored: &[Event],
        carried: Vec<Carried>,
        waits: Option<SessionId>,
        now: Now,
    ) -> TakenIn {
        let mut taken = TakenIn::default();
        let Numbering::Unnumbered { twins } = &mut self.numbering else { return taken };
        let twins = twins.get_or_insert_default();
        for entry in stored {
            twins.is_new(entry, THE_LOG, now.at);
        }
        waits.into_iter().for_each(|session| twins.hold(session));
        for Carried { event, by, .. } in carried {
            match *by {
                [session] => self.event(event, session, now, &mut taken),
                _ => self.event_of_many(event, &by, now, &mut taken),
            }
        }
        TakenIn { duplicates: 0, ..taken }
    }

    /// An event that several sessions have brought.
    fn event_of_many(&mut self, event: Event, by: &[SessionId], now: Now, taken: &mut TakenIn) {
        let Some(twins) = self.twins() else { return };
        // Each of them is counted.
        let rises = by.iter().filter(|session| twins.is_new(&event, **session, now.at)).count();
        if rises > 0 {
            self.push(event.into(), taken);
        }
    }

    /// Whether more of what waits for a missing number would not fit into the buffer when it is let go.
    pub(super) fn is_full_of_waiting(&self) -> bool {
        match &self.numbering {
            Numbering::Numbered { order, .. } => self.buffer.is_limit(2 * order.held(), 2 * order.held_bytes()),
            Numbering::Unnumbered { .. } => false,
        }
    }

    /// Whether a missing number is being asked for again.
    pub(super) fn is_refetching(&self) -> bool {
        matches!(&self.numbering, Numbering::Numbered { order, .. } if order.is_refetching())
    }

    /// There is no room to wait for what is missing.
    pub(super) fn end_refetch(&mut self, now: Now) -> TakenIn {
        let mut taken = TakenIn::default();
        if let Numbering::Numbered { order, .. } = &mut self.numbering {
            order.end_refetch(now.at, &mut self.rulings);
            self.carry_out_rulings(now, &mut taken);
        }
        taken
    }

    fn carry_out_rulings(&mut self, now: Now, taken: &mut TakenIn) {
        let mut rulings = std::mem::take(&mut self.rulings);
        for ruling in rulings.drain(..) {
            match ruling {
                Ruling::Accepted(event) => self.push(event.into(), taken),
                Ruling::Duplicates(count) => taken.duplicates += count,
                Ruling::Refetch => taken.refetch = true,
                Ruling::Gap(gap) => self.gap(gap, now, taken),
            }
        }
        self.rulings = rulings;
    }

    /// Marks a gap at this place and asks for the snapshot that belongs behind it.
    pub(super) fn gap(&mut self, gap: Gap, now: Now, taken: &mut TakenIn) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.push(Pending { event: gap.event(now.wall), ticket: Some(ticket) }, taken);
        self.recovery.begin(ticket, gap.reason, self.snapshot.clone(), now.at);
        taken.gaps.push(gap);
    }

    fn push(&mut self, pending: Pending, taken: &mut TakenIn) {
        // What was held comes first, also when nothing more is held back.
        if !self.recovery.holds() && self.recovery.held() == 0 {
            taken.shed += self.buffer.push(pending);
            return;
        }
        self.recovery.hold(pending);
        if self.buffer.is_full_with(self.recovery.held(), self.recovery.held_bytes()) {
            self.recovery.stop_holding();
        }
    }

    /// Lets held events go where they need not wait any longer. Returns how many were dropped for it.
    pub(super) fn release(&mut self, now: Now) -> u64 {
        let released = self.recovery.release(&self.snapshot, now);
        released.into_iter().map(|pending| self.buffer.push(pending)).sum()
    }

    /// What is to be appended next.
    pub(super) fn take(&mut self, now: Now) -> Option<Taken> {
        self.buffer.take(now.wall)
    }

    /// The calls whose answers show the state of what this stream is about.
    pub(super) fn set_snapshot(&mut self, requests: Vec<Request>) {
        self.snapshot = requests;
    }

    pub(super) fn handle_timeout(&mut self, now: Now) -> TakenIn {
        let mut taken = TakenIn::default();
        self.recovery.handle_timeout(&self.snapshot, now.at);
        match &mut self.numbering {
            Numbering::Numbered { order, marks_at } => {
                order.handle_timeout(now.at, &mut self.rulings);
                let abandoned = marks_at.take_if(|at| now.at >= *at).and_then(|_| order.tell_abandoned());
                self.carry_out_rulings(now, &mut taken);
                if let Some(gap) = abandoned {
                    self.gap(gap, now, &mut taken);
                }
            }
            Numbering::Unnumbered { twins } => {
                twins.take_if(|twins| twins.ends_at().is_some_and(|at| now.at >= at));
            }
        }
        taken
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let numbering = match &self.numbering {
            Numbering::Numbered { order, marks_at } => order.poll_timeout().into_iter().chain(*marks_at).min(),
            Numbering::Unnumbered { twins } => twins.as_ref().and_then(Twins::ends_at),
        };
        numbering.into_iter().chain(self.recovery.poll_timeout()).min()
    }
}
