//! From one replica to the next: a standby that takes the log over, an owner that makes way.
//!
//! Sessions are opened, proved and replaced as ever, whoever the log belongs to; only what becomes of their events
//! differs.

use super::{
    Heard, Opening, Output, Report, Stream,
    intake::{Intake, TakenIn},
    link::Link,
    messages::Judged,
    standby::{RecordedGap, Ring, due_from, is_heard, is_hole_likely, lay_over},
    twins,
};
use crate::{
    connector::{Item, Resume},
    model::{Event, Gap, GapReason, Position},
    protocol::{
        Now,
        session::{Session, SessionId},
    },
};

/// Whose log it is.
#[derive(Debug)]
pub(super) enum Role {
    Owner(Flush),
    /// Another's: what is heard is kept here.
    Standby(Ring),
    /// Another's, and nothing that is heard is wanted any more.
    Released,
}

/// What a successor waits for: that everything is durable which was said before it could hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// Nobody waits.
    Idle,
    Wanted,
    /// This session was asked; what it brings before it answers is waited for.
    Asked(SessionId),
    /// It has answered; so many entries must be durable.
    Answered(u64),
}

impl Stream {
    /// The position of the log that another replica writes.
    pub(super) fn follow(&mut self, position: Position) {
        if matches!(self.role, Role::Standby(_)) {
            self.intake = Intake::new(&self.settings, &self.choices, Some(position));
        }
    }

    pub(super) fn keep(&mut self, session: SessionId, items: Vec<Item>, now: Now) {
        let Role::Standby(ring) = &mut self.role else { return };
        for item in items {
            match item {
                Item::Event(event) => ring.keep(session, event, now.at),
                Item::Undecoded(frame) => ring.keep(session, Event::undecoded(frame, now.wall), now.at),
                Item::Notice(_) | Item::Alive | Item::Answer => (),
            }
        }
    }

    /// What sessions up to this one bring has a hole behind it.
    pub(super) fn cut_off(&mut self, session: SessionId) {
        if let Role::Standby(ring) = &mut self.role {
            ring.cut_off(session);
        }
    }

    /// The log is ours.
    pub(super) fn own(&mut self, opening: Opening, stored: Vec<Event>, covered: bool, now: Now) {
        if !matches!(self.role, Role::Standby(_)) {
            return;
        }
        let Role::Standby(ring) = std::mem::replace(&mut self.role, Role::Owner(Flush::Idle)) else { return };
        let judged = opening.judged(self.settings.feed);
        let opening = judged.opening;
        self.intake = Intake::new(&self.settings, &self.choices, opening.position());
        self.checkpointed_at = now.at;
        self.adopt_endpoint();
        if opening.damaged {
            self.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        if judged.is_other_feed {
            return self.own_after_other_feed(judged, now);
        }
        if !self.link.is_live() {
            self.hear_as_told(opening, now);
            self.take_verdict(judged);
        }
        // An empty log has nothing in front of which something could be missing, and a damaged one has its gap.
        let covered = covered || opening.checkpoint.is_none();
        let doubted = self.link.is_live() && !opening.damaged;
        match self.choices.resume {
            Resume::Sequence => self.own_numbered(ring, opening, doubted && !covered, now),
            Resume::None => self.own_unnumbered(ring, stored, doubted.then_some(covered), now),
        }
    }

    /// What stands in front of the first session.
    pub(super) fn take_verdict(&mut self, judged: Judged) {
        if judged.is_other_feed {
            self.report(Report::OtherFeed);
        }
        if let Some(reason) = judged.unheard {
            self.intake.deaf(reason);
        }
    }

    /// The log's last holder read another feed (replicas with different configurations, or the feed was changed and
    /// changed back). Sessions may have been asked to go on after a position that the log has left since: none of them,
    /// and nothing that they brought, is used.
    fn own_after_other_feed(&mut self, judged: Judged, now: Now) {
        self.hear_as_told(judged.opening, now);
        self.take_verdict(judged);
        if !matches!(self.link, Link::Paused | Link::Drained) {
            self.begin_again(now);
        }
    }

    /// The platform was last heard when the log says so.
    fn hear_as_told(&mut self, opening: Opening, now: Now) {
        self.heard = Heard { at: None, wall: opening.checkpoint.map_or(now.wall, |known| known.heard_at) };
    }

    fn own_numbered(&mut self, ring: Ring, opening: Opening, doubted: bool, now: Now) {
        let Some(first) = self.goes_on_from(&ring, opening.position()) else {
            self.hear_as_told(opening, now);
            return self.begin_again(now);
        };
        if !self.link.is_live() {
            self.abandon_if_too_old(now);
        } else if opening.position().is_none() && doubted {
            self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
        }
        self.intake.took_over();
        let taken = self.intake.take_kept(ring, first, &self.session_ids(), now);
        self.report_taken(taken, now);
    }

    /// The session with which the log goes on; none if between the two lies something that only the platform still has.
    fn goes_on_from(&self, ring: &Ring, position: Option<Position>) -> Option<SessionId> {
        let Some(position) = position else { return Some(SessionId(0)) };
        if self.link.is_live() {
            return ring.reaches(position);
        }
        // One that is not dialled yet is asked to go on in the right place.
        let dialled = self.link.sessions().next().and_then(|session| ring.asked(session.id()));
        dialled.is_none_or(|after| after.is_some_and(|after| after <= position)).then_some(SessionId(0))
    }

    /// Drops the sessions that there are, whatever they still bring, and goes on from the log's position.
    fn begin_again(&mut self, now: Now) {
        for session in self.session_ids() {
            self.outputs.push_back(Output::Forget(session));
        }
        self.leaving.clear();
        // The log's position is another than the one that was refused.
        self.position_refused = false;
        self.backoff.retired(now.at);
        self.link = Link::Waiting;
        self.open(None, now);
    }

    /// `covered`: none when no hole is to be looked for.
    fn own_unnumbered(&mut self, ring: Ring, mut stored: Vec<Event>, covered: Option<bool>, now: Now) {
        let recorded = RecordedGap::find(&stored);
        stored.retain(is_heard);
        let gave_way = ring.gave_way();
        let alive = self.session_ids();
        let mut carried = ring.into_carried(&alive);
        let log: Vec<u64> = stored.iter().map(twins::key).collect();
        let kept: Vec<u64> = carried.iter().map(|carried| carried.key).collect();
        match lay_over(&log, &kept).or_else(|| recorded.as_ref()?.lay_over(&log, &kept)) {
            Some(overlay) => {
                stored.drain(..due_from(&log, &carried, &alive, &overlay));
                carried.drain(..overlay.event);
            }
            None => {
                let is_older = recorded.is_some_and(|gap| gap.drop_older(&log, &mut carried));
                if covered.is_some_and(|covered| is_older || is_hole_likely(&log, &kept, gave_way, covered)) {
                    self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
                }
            }
        }
        let waits = match &self.link {
            Link::Overlapping { old, new, .. } if !old.has_answered() => Some(new.id()),
            Link::Overlapping { .. }
            | Link::Waiting
            | Link::Opening { .. }
            | Link::Live { .. }
            | Link::Swapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained => None,
        };
        let taken = self.intake.take_over(&stored, carried, waits, now);
        self.report_taken(taken, now);
        self.overlap_ends(now);
    }

    fn session_ids(&self) -> Vec<SessionId> {
        self.link.sessions().chain(&self.leaving).map(Session::id).collect()
    }

    /// A successor is live, and asks for what was said before.
    pub(super) fn want_flush(&mut self) {
        if let Role::Owner(flush) = &mut self.role {
            *flush = Flush::Wanted;
        }
    }

    /// Goes on with what the successor waits for, as far as it goes.
    pub(super) fn flush(&mut self, now: Now) {
        while let Role::Owner(flush) = self.role {
            let Some(next) = self.flush_step(flush, now) else { return };
            self.role = Role::Owner(next);
            if next == Flush::Idle {
                self.outputs.push_back(Output::Flushed);
            }
        }
    }

    fn flush_step(&mut self, flush: Flush, now: Now) -> Option<Flush> {
        match flush {
            Flush::Idle => None,
            // The successor asks the platform for what it did not hear, unless the log stalls for longer than that is kept.
            Flush::Wanted if self.choices.resume == Resume::Sequence => {
                let queued = self.intake.queued().filter(|_| self.link.is_live());
                queued.map(Flush::Answered)
            }
            Flush::Wanted => {
                let Link::Live { session, .. } = &mut self.link else { return None };
                session.ask(now);
                let id = session.id();
                self.obey(id, now);
                Some(Flush::Asked(id))
            }
            Flush::Asked(id) => {
                let asked = self.link.sessions().find(|session| session.id() == id).map(Session::has_answered);
                match asked {
                    None => Some(Flush::Wanted),
                    Some(false) => None,
                    Some(true) => self.intake.queued().map(Flush::Answered),
                }
            }
            Flush::Answered(end) => (self.appending.is_none() && self.intake.is_past(end)).then_some(Flush::Idle),
        }
    }

    /// The log is another's: whatever is not durable is that one's to hear, or to mark.
    pub(super) fn release(&mut self, now: Now) {
        self.leave_all("released", now);
        self.link = Link::Paused;
        self.role = Role::Released;
        self.intake = Intake::new(&self.settings, &self.choices, None);
        self.appending = None;
        self.appending_len = 0;
        self.appending_bytes = 0;
        self.draining = true;
    }
}

impl Intake {
    /// Reads what a standby of a numbered stream has kept. What the log has already is no double of the platform's.
    fn take_kept(&mut self, mut ring: Ring, first: SessionId, alive: &[SessionId], now: Now) -> TakenIn {
        let mut taken = TakenIn::default();
        let mut repeating = ring.repeating(alive, self.position());
        for (session, event) in ring.take_from(first) {
            if let Some(after) = repeating.remove(&session) {
                self.resumes(session, after);
            }
            self.event(event, session, now, &mut taken);
        }
        for (session, after) in repeating {
            self.resumes(session, after);
        }
        TakenIn { duplicates: 0, ..taken }
    }
}
