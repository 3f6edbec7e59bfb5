//! A standby follows the log and becomes its owner: what happens to its sessions and its buffer.
//!
//! Which events of the buffer are stored decides [`takeover`].

use super::{
    Stream,
    last_received::LastReceived,
    messages::{LogHead, ValidatedHead},
    owner::Owner,
    standby::{Standby, StandbyBuffer},
    takeover,
};
use crate::{
    connector::Resume,
    model::{Event, Gap, GapReason, Position, Sequence},
    protocol::Moment,
};

impl Stream {
    /// The log of the owner has reached this number.
    pub(super) fn follow(&mut self, position: Sequence) {
        if self.capabilities.resume == Resume::Sequence
            && let Some(standby) = self.role.as_standby_mut()
        {
            standby.follow(position);
        }
    }

    /// Makes a standby the owner of the log.
    pub(super) fn take_ownership(&mut self, head: LogHead, stored: Vec<Event>, covered: bool, now: Moment) {
        let validated = head.validated_for(self.settings.feed, self.capabilities.resume);
        let head = &validated.head;
        let owner = Owner::new(&self.settings, &self.capabilities, head.position(), now);
        let Some(Standby { buffer, .. }) = self.role.become_owner(owner) else { return };
        self.link.announce_endpoint();
        self.route(now);
        if head.damaged {
            self.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        // The last owner read another feed: the configurations of the replicas differ, or the feed was changed. Or the
        // log's position is opaque, and only the platform can show which events of the buffer follow it.
        let is_opaque = self.capabilities.resume == Resume::Opaque && head.position().is_some();
        if validated.is_other_feed || is_opaque {
            return self.restart_at(&validated, now);
        }
        if !self.link.is_live() {
            self.last_received = LastReceived::restored(head, now);
            self.apply_head(&validated);
        }
        // Nothing can be missing in front of an empty log, and a damaged log has its gap.
        let covered = covered || head.checkpoint.is_none();
        let is_doubtful = self.link.is_live() && !head.damaged;
        match self.capabilities.resume {
            Resume::Sequence => self.own_numbered(buffer, head, is_doubtful && !covered, now),
            Resume::Opaque | Resume::None => self.own_unnumbered(buffer, stored, is_doubtful.then_some(covered), now),
        }
    }

    /// The sessions were not dialled at the log's position: they start again there, and their events are dropped.
    fn restart_at(&mut self, validated: &ValidatedHead, now: Moment) {
        self.last_received = LastReceived::restored(&validated.head, now);
        self.apply_head(validated);
        if !self.link.is_stopped() {
            self.link.restart(now);
        }
    }

    fn own_numbered(&mut self, buffer: StandbyBuffer, head: &LogHead, is_doubtful: bool, now: Moment) {
        let is_live = self.link.is_live();
        let position = head.position().as_ref().and_then(Position::order);
        let Some(first) = buffer.first_usable_session(position, is_live, self.link.first_session()) else {
            self.last_received = LastReceived::restored(head, now);
            return self.link.restart(now);
        };
        if !is_live {
            self.abandon_if_too_old(now);
        } else if position.is_none() && is_doubtful {
            self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
        }
        if let Some(owner) = self.role.as_owner_mut() {
            owner.intake.took_over();
            let alive = self.link.session_ids();
            let outcome = takeover::accept_numbered(&mut owner.intake, buffer, first, &alive, now);
            self.report_intake(outcome, now);
        }
    }

    fn own_unnumbered(&mut self, buffer: StandbyBuffer, stored: Vec<Event>, covered: Option<bool>, now: Moment) {
        let sessions = takeover::Sessions { alive: self.link.session_ids(), held: self.link.successor_of_unflushed() };
        if let Some(owner) = self.role.as_owner_mut() {
            let outcome = takeover::accept_unnumbered(&mut owner.intake, buffer, stored, covered, &sessions, now);
            self.report_intake(outcome, now);
        }
        self.link.check_overlap();
    }
}
