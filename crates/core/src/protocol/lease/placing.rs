//! The moves: taking what is vacant, following a holder, handing over, draining.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Boot, HANDOVERS_MAX, Lease, Note, Now, Output, PATIENCE, Record, Stay, Suspicion,
    plan::{self, Place, Plan},
    seat::{Role, Seat},
};
use crate::model::{Fence, ReplicaId, StreamName};

impl Lease {
    /// Does what the members make necessary. They were read after a renewal that was sent at `sent`.
    pub(super) fn place(&mut self, sent: Boot, now: Now) {
        let places = self.places(sent);
        let Plan { takes, moves } = plan::plan(&self.members, &places);
        self.count_vacancies(&places, now.boot);
        for (stream, taker) in takes {
            if self.takes(&stream, taker, now.boot) {
                self.take(&stream, now.nonce);
            }
        }
        for step in moves {
            if step.from == self.settings.me {
                self.ask(&step.stream, step.to, now.boot);
            }
        }
        if self.gives_up() {
            self.give_up(now.nonce);
        }
        self.follow_holders(&places, now.boot);
    }

    /// Where each stream is, as far as that is known. A holder that is no member is dead only if its record was known
    /// before the members were read: a new one is a member before it holds anything.
    fn places(&self, sent: Boot) -> BTreeMap<StreamName, Place> {
        let place = |seat: &Seat| {
            let holder = if seat.fence().is_some() {
                Some(self.settings.me)
            } else {
                seat.asked_for.map_or(seat.holder(), |record| record.holder)
            };
            let lives = |replica: &ReplicaId| self.members.iter().any(|member| member.replica == *replica);
            match holder.filter(lives) {
                Some(holder) => Some(Place::Held(holder)),
                None => seat.seen.filter(|seen| seen.at < sent).map(|_| Place::Vacant),
            }
        };
        self.seats.iter().filter_map(|(stream, seat)| Some((stream.clone(), place(seat)?))).collect()
    }

    fn count_vacancies(&mut self, places: &BTreeMap<StreamName, Place>, now: Boot) {
        for (stream, seat) in &mut self.seats {
            let vacant = places.get(stream) == Some(&Place::Vacant);
            seat.vacant_since = vacant.then(|| seat.vacant_since.unwrap_or(now));
        }
    }

    /// Whether a vacant stream is taken here: it is ours by plan, or whoever it belongs to does not take it.
    fn takes(&self, stream: &StreamName, taker: ReplicaId, now: Boot) -> bool {
        let vacant_since = self.seats.get(stream).and_then(|seat| seat.vacant_since);
        let neglected = vacant_since.is_some_and(|since| since + self.settings.life * PATIENCE <= now);
        let allowed = self.takes_from.is_some_and(|from| from <= now);
        allowed && self.has_room() && (taker == self.settings.me || neglected)
    }

    fn take(&mut self, stream: &StreamName, nonce: u128) {
        let Some(seat) = self.seats.get(stream).filter(|seat| seat.asked_for.is_none()) else { return };
        let record = seat.next_record(Some(self.settings.me), nonce);
        self.change(stream, seat.expected(), record);
    }

    fn change(&mut self, stream: &StreamName, expected: Option<Fence>, record: Record) {
        if let Some(seat) = self.seats.get_mut(stream) {
            seat.asked_for = Some(record);
            self.outputs.push_back(Output::Change { stream: stream.clone(), expected, record });
        }
    }

    /// Begins a hand-over.
    fn ask(&mut self, stream: &StreamName, to: ReplicaId, now: Boot) {
        let asking = |seat: &&Seat| matches!(seat.role, Role::Asking { .. });
        if self.seats.values().filter(asking).count() >= HANDOVERS_MAX {
            return;
        }
        let until = now + self.settings.handover;
        let Some(seat) = self.seats.get_mut(stream).filter(|seat| seat.asked_for.is_none()) else { return };
        if let Role::Owning { fence } = seat.role {
            seat.role = Role::Asking { fence, to, until };
            self.outputs.push_back(Output::Send { to, note: Note::Ask { stream: stream.clone() } });
        }
    }

    /// A holder wants this replica to be its successor.
    pub(super) fn asked(&mut self, holder: ReplicaId, stream: &StreamName, now: Boot) {
        let until = now + self.settings.handover;
        let has_room = self.has_room();
        let Some(seat) = self.seats.get_mut(stream).filter(|seat| has_room && seat.asked_for.is_none()) else { return };
        match seat.role {
            Role::Apart => {
                seat.role = Role::Preparing { holder, until, live: false };
                self.outputs.push_back(Output::Prepare { stream: stream.clone() });
            }
            Role::Following { live, .. } | Role::Preparing { live, .. } => {
                seat.role = Role::Preparing { holder, until, live };
                if live {
                    self.say_ready(holder, stream);
                }
            }
            Role::Owning { .. } | Role::Asking { .. } => (),
        }
    }

    pub(super) fn prepared(&mut self, stream: &StreamName, is_live: bool) {
        let Some(seat) = self.seats.get_mut(stream) else { return };
        match &mut seat.role {
            Role::Following { live, .. } => *live = is_live,
            Role::Preparing { holder, live, .. } => {
                let holder = *holder;
                *live = is_live;
                if is_live {
                    self.say_ready(holder, stream);
                }
            }
            Role::Apart | Role::Owning { .. } | Role::Asking { .. } => (),
        }
    }

    fn say_ready(&mut self, holder: ReplicaId, stream: &StreamName) {
        self.outputs.push_back(Output::Send { to: holder, note: Note::Ready { stream: stream.clone() } });
    }

    /// The successor is live: the record moves.
    pub(super) fn give(&mut self, successor: ReplicaId, stream: &StreamName, now: Now) {
        let Some(seat) = self.seats.get(stream).filter(|seat| seat.asked_for.is_none()) else { return };
        match seat.role {
            Role::Asking { fence, to, .. } if to == successor => {
                self.change(stream, Some(fence), Record { holder: Some(to), fence: fence.next(now.nonce) });
            }
            Role::Apart
            | Role::Following { .. }
            | Role::Preparing { .. }
            | Role::Owning { .. }
            | Role::Asking { .. } => (),
        }
    }

    /// The record moved here, says whoever had it.
    pub(super) fn given(&mut self, giver: ReplicaId, stream: &StreamName, fence: Fence, now: Boot) {
        let Some(seat) = self.seats.get_mut(stream).filter(|seat| seat.asked_for.is_none()) else { return };
        match seat.role {
            Role::Preparing { holder, .. } if holder == giver => {
                seat.outruns_look = self.look.is_some();
                self.settle(stream, Some(Record { holder: Some(self.settings.me), fence }), now);
            }
            Role::Apart
            | Role::Following { .. }
            | Role::Preparing { .. }
            | Role::Owning { .. }
            | Role::Asking { .. } => self.look_at = now,
        }
    }

    /// Neither a successor nor a holder is waited for without end, nor one that is gone at all.
    pub(super) fn end_waits(&mut self, now: Boot) {
        let gone = |replica| self.members.iter().all(|member| member.replica != replica);
        let over = |seat: &&mut Seat| seat.wait().is_some_and(|(other, until)| until <= now || gone(other));
        for seat in self.seats.values_mut().filter(over) {
            match seat.role {
                Role::Preparing { live, .. } => seat.role = Role::Following { since: now, live },
                Role::Asking { fence, .. } => seat.role = Role::Owning { fence },
                Role::Apart | Role::Following { .. } | Role::Owning { .. } => (),
            }
        }
    }

    /// Begins to follow where this replica is the standby, and ends it where it is not.
    fn follow_holders(&mut self, places: &BTreeMap<StreamName, Place>, now: Boot) {
        for (stream, place) in places {
            let Place::Held(holder) = place else { continue };
            let wanted = self.settings.standby.contains(stream)
                && *holder != self.settings.me
                && plan::standby(stream, *holder, &self.members) == Some(self.settings.me);
            let Some(seat) = self.seats.get_mut(stream).filter(|seat| seat.asked_for.is_none()) else { continue };
            match (seat.role, wanted) {
                (Role::Apart, true) => {
                    seat.role = Role::Following { since: now, live: false };
                    self.outputs.push_back(Output::Follow { stream: stream.clone() });
                }
                (Role::Following { .. }, false) => self.release(stream),
                (Role::Apart, false) | (Role::Following { .. }, true) => (),
                (Role::Preparing { .. } | Role::Owning { .. } | Role::Asking { .. }, _) => (),
            }
        }
    }

    /// Takes what is followed in vain, once it is clear that not our own line is dead.
    pub(super) fn suspect(&mut self, now: Now) {
        let due = |seat: &Seat| self.suspicion(seat).filter(|suspicion| suspicion.at() <= now.boot);
        let due: Vec<_> = self.seats.iter().filter_map(|(stream, seat)| Some((stream.clone(), due(seat)?))).collect();
        for (stream, suspicion) in due {
            match suspicion {
                Suspicion::Doubt(_) => self.membership.hasten(now.boot),
                Suspicion::Death(_) if self.has_room() => self.take(&stream, now.nonce),
                Suspicion::Death(_) => (),
            }
        }
    }

    /// What is thought of the holder of a stream that is followed, and the moment at which that is acted upon.
    pub(super) fn suspicion(&self, seat: &Seat) -> Option<Suspicion> {
        let Role::Following { since, .. } = seat.role else { return None };
        let holder = seat.holder().filter(|_| seat.asked_for.is_none() && self.has_room())?;
        let from = self.takes_from?;
        let heard = self.heard.get(&holder).copied().unwrap_or(since).max(since).max(self.membership.sure_since()?);
        let doubt = heard + self.settings.silence / 2;
        if self.membership.proved_at() >= Some(doubt) {
            Some(Suspicion::Death(from.max(heard + self.settings.silence)))
        } else {
            (self.membership.sent_at() < Some(doubt)).then_some(Suspicion::Doubt(doubt))
        }
    }

    pub(super) fn drain(&mut self, until: Boot, now: Boot) {
        if self.stay == Stay::Staying {
            self.stay = Stay::Draining { until };
            self.membership.hasten(now);
        }
    }

    /// Ends the draining: by its deadline, and when nothing is left to hand over.
    pub(super) fn leave_when_done(&mut self, now: Now) {
        if matches!(self.stay, Stay::Draining { until } if until <= now.boot) {
            self.stay = Stay::GivingUp;
            self.give_up(now.nonce);
        }
        let successor = self.seats.values().any(|seat| matches!(seat.role, Role::Preparing { .. }));
        let busy = self.seats.values().any(|seat| seat.fence().is_some() || seat.asked_for.is_some());
        let done = match self.stay {
            Stay::Draining { .. } => !busy && !successor,
            Stay::GivingUp => !busy,
            Stay::Staying | Stay::Left => false,
        };
        if done {
            self.stay = Stay::Left;
            self.outputs.push_back(Output::Leave);
        }
    }

    /// Whether to wait for a successor is in vain.
    fn gives_up(&self) -> bool {
        let others = self.members.iter().any(|member| member.limit > 0 && member.replica != self.settings.me);
        match self.stay {
            Stay::Staying | Stay::Left => false,
            Stay::Draining { .. } => !others,
            Stay::GivingUp => true,
        }
    }

    /// Gives every record up, so that others need not wait for the end of the membership.
    fn give_up(&mut self, nonce: u128) {
        for stream in &self.settings.streams.clone() {
            let seat = self.seats.get(stream).filter(|seat| seat.asked_for.is_none());
            if let Some(fence) = seat.and_then(Seat::fence) {
                self.change(stream, Some(fence), Record { holder: None, fence: fence.next(nonce) });
            }
        }
    }

    /// The same machine by a clock that was started later, so that moments that look alike can be compared.
    pub fn rebase(&mut self, by: Duration) {
        self.membership.rebase(by);
        self.seats.values_mut().for_each(|seat| seat.rebase(by));
        super::rebase(self.heard.values_mut(), by);
        super::rebase([&mut self.look_at, &mut self.beat_at].into_iter().chain(&mut self.takes_from), by);
        if let Stay::Draining { until } = &mut self.stay {
            super::rebase([until], by);
        }
    }
}
