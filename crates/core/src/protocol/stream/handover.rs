//! From one replica to the next: a standby that takes the log over, an owner that makes way.
//!
//! Sessions are opened, proved and replaced as ever, whoever the log belongs to; only what becomes of their events
//! differs.

use super::{
    LastReceived, LogHead, Output, Stream, StreamReport, dedup,
    intake::{Intake, IntakeOutcome},
    link::LinkState,
    messages::ValidatedHead,
    standby::{RecordedGap, StandbyBuffer, copies_due_from, find_splice, is_hole_likely, is_platform_event},
};
use crate::{
    connector::{Item, Resume},
    model::{Event, Gap, GapReason, Position},
    protocol::{
        Moment,
        session::{Session, SessionId},
    },
};

/// Whose log it is.
#[derive(Debug)]
pub(super) enum StreamRole {
    Owner(Flush),
    /// Another's: what is heard is kept here.
    Standby(StandbyBuffer),
    /// Another's, and nothing that is heard is wanted any more.
    Released,
}

/// What a successor waits for: that everything is durable which was said before it could hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// Nobody waits.
    Idle,
    Requested,
    /// This session was asked; what it brings before it answers is waited for.
    Probing(SessionId),
    /// It has answered; so many entries must be durable.
    Acked(u64),
}

impl Stream {
    /// The position of the log that another replica writes.
    pub(super) fn follow(&mut self, position: Position) {
        if matches!(self.role, StreamRole::Standby(_)) {
            self.intake = Intake::new(&self.settings, &self.capabilities, Some(position));
        }
    }

    pub(super) fn buffer_items(&mut self, session: SessionId, items: Vec<Item>, now: Moment) {
        let StreamRole::Standby(standby_buffer) = &mut self.role else { return };
        for item in items {
            match item {
                Item::Event(event) => standby_buffer.push(session, event, now.at),
                Item::Undecoded(frame) => standby_buffer.push(session, Event::undecoded(frame, now.wall), now.at),
                Item::Notice(_) | Item::Heartbeat | Item::ProbeAck => (),
            }
        }
    }

    /// What sessions up to this one bring has a hole behind it.
    pub(super) fn mark_discontinuity(&mut self, session: SessionId) {
        if let StreamRole::Standby(standby_buffer) = &mut self.role {
            standby_buffer.mark_discontinuity(session);
        }
    }

    /// The log is ours.
    pub(super) fn take_ownership(&mut self, opening: LogHead, stored: Vec<Event>, covered: bool, now: Moment) {
        if !matches!(self.role, StreamRole::Standby(_)) {
            return;
        }
        let StreamRole::Standby(standby_buffer) = std::mem::replace(&mut self.role, StreamRole::Owner(Flush::Idle))
        else {
            return;
        };
        let validated = opening.validated_for(self.settings.feed);
        let opening = validated.head;
        self.intake = Intake::new(&self.settings, &self.capabilities, opening.position());
        self.checkpointed_at = now.at;
        self.adopt_endpoint();
        if opening.damaged {
            self.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        if validated.is_other_feed {
            return self.own_after_feed_change(validated, now);
        }
        if !self.link.is_live() {
            self.restore_last_received(opening, now);
            self.apply_head(validated);
        }
        // An empty log has nothing in front of which something could be missing, and a damaged one has its gap.
        let covered = covered || opening.checkpoint.is_none();
        let doubted = self.link.is_live() && !opening.damaged;
        match self.capabilities.resume {
            Resume::Sequence => self.own_numbered(standby_buffer, opening, doubted && !covered, now),
            Resume::None => self.own_unnumbered(standby_buffer, stored, doubted.then_some(covered), now),
        }
    }

    /// What stands in front of the first session.
    pub(super) fn apply_head(&mut self, validated: ValidatedHead) {
        if validated.is_other_feed {
            self.report(StreamReport::FeedChanged);
        }
        if let Some(reason) = validated.gap_reason {
            self.intake.mark_disconnected(reason);
        }
    }

    /// The log's last holder read another feed (replicas with different configurations, or the feed was changed and
    /// changed back). Sessions may have been asked to go on after a position that the log has left since: none of them,
    /// and nothing that they brought, is used.
    fn own_after_feed_change(&mut self, validated: ValidatedHead, now: Moment) {
        self.restore_last_received(validated.head, now);
        self.apply_head(validated);
        if !matches!(self.link, LinkState::Paused | LinkState::Drained) {
            self.restart_sessions(now);
        }
    }

    /// The platform was last heard when the log says so.
    fn restore_last_received(&mut self, opening: LogHead, now: Moment) {
        self.last_received =
            LastReceived { at: None, wall: opening.checkpoint.map_or(now.wall, |known| known.last_received_at) };
    }

    fn own_numbered(&mut self, standby_buffer: StandbyBuffer, opening: LogHead, doubted: bool, now: Moment) {
        let Some(first) = self.resumable_session(&standby_buffer, opening.position()) else {
            self.restore_last_received(opening, now);
            return self.restart_sessions(now);
        };
        if !self.link.is_live() {
            self.abandon_if_too_old(now);
        } else if opening.position().is_none() && doubted {
            self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
        }
        self.intake.took_over();
        let outcome = self.intake.take_buffered(standby_buffer, first, &self.session_ids(), now);
        self.report_intake(outcome, now);
    }

    /// The session with which the log goes on; none if between the two lies something that only the platform still has.
    fn resumable_session(&self, standby_buffer: &StandbyBuffer, position: Option<Position>) -> Option<SessionId> {
        let Some(position) = position else { return Some(SessionId(0)) };
        if self.link.is_live() {
            return standby_buffer.covering_session(position);
        }
        // One that is not dialled yet is asked to go on in the right place.
        let dialled = self.link.sessions().next().and_then(|session| standby_buffer.resume_of(session.id()));
        dialled.is_none_or(|after| after.is_some_and(|after| after <= position)).then_some(SessionId(0))
    }

    /// Drops the sessions that there are, whatever they still bring, and goes on from the log's position.
    fn restart_sessions(&mut self, now: Moment) {
        for session in self.session_ids() {
            self.outputs.push_back(Output::DropSocket(session));
        }
        self.closing.clear();
        // The log's position is another than the one that was refused.
        self.position_refused = false;
        self.backoff.retired(now.at);
        self.link = LinkState::Waiting;
        self.open_session(None, now);
    }

    /// `covered`: none when no hole is to be looked for.
    fn own_unnumbered(
        &mut self,
        standby_buffer: StandbyBuffer,
        mut stored: Vec<Event>,
        covered: Option<bool>,
        now: Moment,
    ) {
        let recorded = RecordedGap::find(&stored);
        stored.retain(is_platform_event);
        let gave_way = standby_buffer.overflowed();
        let alive = self.session_ids();
        let mut buffered = standby_buffer.into_events(&alive);
        let log: Vec<u64> = stored.iter().map(dedup::key).collect();
        let kept: Vec<u64> = buffered.iter().map(|buffered| buffered.key).collect();
        match find_splice(&log, &kept).or_else(|| recorded.as_ref()?.find_splice(&log, &kept)) {
            Some(overlay) => {
                stored.drain(..copies_due_from(&log, &buffered, &alive, &overlay));
                buffered.drain(..overlay.event);
            }
            None => {
                let is_older = recorded.is_some_and(|gap| gap.drop_older(&log, &mut buffered));
                if covered.is_some_and(|covered| is_older || is_hole_likely(&log, &kept, gave_way, covered)) {
                    self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
                }
            }
        }
        let waits = match &self.link {
            LinkState::Overlapping { old, new, .. } if !old.has_acked_probes() => Some(new.id()),
            LinkState::Overlapping { .. }
            | LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained => None,
        };
        let outcome = self.intake.take_over(&stored, buffered, waits, now);
        self.report_intake(outcome, now);
        self.end_overlap(now);
    }

    fn session_ids(&self) -> Vec<SessionId> {
        self.link.sessions().chain(&self.closing).map(Session::id).collect()
    }

    /// A successor is live, and asks for what was said before.
    pub(super) fn request_flush(&mut self) {
        if let StreamRole::Owner(flush) = &mut self.role {
            *flush = Flush::Requested;
        }
    }

    /// Goes on with what the successor waits for, as far as it goes.
    pub(super) fn flush(&mut self, now: Moment) {
        while let StreamRole::Owner(flush) = self.role {
            let Some(next) = self.flush_step(flush, now) else { return };
            self.role = StreamRole::Owner(next);
            if next == Flush::Idle {
                self.outputs.push_back(Output::Flushed);
            }
        }
    }

    fn flush_step(&mut self, flush: Flush, now: Moment) -> Option<Flush> {
        match flush {
            Flush::Idle => None,
            // The successor asks the platform for what it did not hear, unless the log stalls for longer than that is kept.
            Flush::Requested if self.capabilities.resume == Resume::Sequence => {
                let queued = self.intake.queued().filter(|_| self.link.is_live());
                queued.map(Flush::Acked)
            }
            Flush::Requested => {
                let LinkState::Live { session, .. } = &mut self.link else { return None };
                session.send_flush_probe(now);
                let id = session.id();
                self.drain_outputs(id, now);
                Some(Flush::Probing(id))
            }
            Flush::Probing(id) => {
                let asked = self.link.sessions().find(|session| session.id() == id).map(Session::has_acked_probes);
                match asked {
                    None => Some(Flush::Requested),
                    Some(false) => None,
                    Some(true) => self.intake.queued().map(Flush::Acked),
                }
            }
            Flush::Acked(end) => (self.appending.is_none() && self.intake.has_drained(end)).then_some(Flush::Idle),
        }
    }

    /// The log is another's: whatever is not durable is that one's to hear, or to mark.
    pub(super) fn release(&mut self, now: Moment) {
        self.close_all("released", now);
        self.link = LinkState::Paused;
        self.role = StreamRole::Released;
        self.intake = Intake::new(&self.settings, &self.capabilities, None);
        self.appending = None;
        self.appending_len = 0;
        self.appending_bytes = 0;
        self.draining = true;
    }
}

impl Intake {
    /// Reads what a standby of a numbered stream has kept. What the log has already is no double of the platform's.
    fn take_buffered(
        &mut self,
        mut standby_buffer: StandbyBuffer,
        first: SessionId,
        alive: &[SessionId],
        now: Moment,
    ) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        let mut repeating = standby_buffer.repeating(alive, self.position());
        for (session, event) in standby_buffer.take_from(first) {
            if let Some(after) = repeating.remove(&session) {
                self.record_resume(session, after);
            }
            self.accept_event(event, session, now, &mut outcome);
        }
        for (session, after) in repeating {
            self.record_resume(session, after);
        }
        IntakeOutcome { duplicates: 0, ..outcome }
    }
}
