//! Rebalancing: take vacant streams, follow a holder, hand over, drain.

use std::{collections::BTreeMap, time::Duration};

use super::{
    BootTime, HANDOVERS_MAX, HolderHealth, Lease, LeaseMoment, LeaseRecord, Lifecycle, NEGLECTED_LIFETIMES, Output,
    PeerMessage,
    plan::{self, Assignment, RebalancePlan},
    stream_lease::{LeaseRole, StreamLease},
};
use crate::model::{Fence, ReplicaId, StreamName};

impl Lease {
    /// Acts on the current members. They were read after a renewal that was sent at `sent`.
    pub(super) fn rebalance(&mut self, sent: BootTime, now: LeaseMoment) {
        let assignments = self.assignments(sent);
        let RebalancePlan { acquisitions: takes, transfers: moves } = plan::plan(&self.members, &assignments);
        self.track_vacancies(&assignments, now.boot);
        for (stream, taker) in takes {
            if self.may_acquire(&stream, taker, now.boot) {
                self.acquire(&stream, now.nonce);
            }
        }
        for step in moves {
            if step.from == self.settings.me {
                self.request_handover(&step.stream, step.to, now.boot);
            }
        }
        if self.must_abandon() {
            self.abandon_all(now.nonce);
        }
        self.follow_holders(&assignments, now.boot);
    }

    /// The known holder of each stream. A holder that is no member counts as dead only if its record was read before
    /// the members: a new replica is a member before it holds a stream.
    fn assignments(&self, sent: BootTime) -> BTreeMap<StreamName, Assignment> {
        let assignment = |lease: &StreamLease| {
            let holder = if lease.fence().is_some() {
                Some(self.settings.me)
            } else {
                lease.pending_change.map_or(lease.holder(), |record| record.holder)
            };
            let lives = |replica: &ReplicaId| self.members.iter().any(|member| member.replica == *replica);
            match holder.filter(lives) {
                Some(holder) => Some(Assignment::Held(holder)),
                None => lease.last_read.filter(|seen| seen.at < sent).map(|_| Assignment::Vacant),
            }
        };
        self.leases.iter().filter_map(|(stream, lease)| Some((stream.clone(), assignment(lease)?))).collect()
    }

    fn track_vacancies(&mut self, assignments: &BTreeMap<StreamName, Assignment>, now: BootTime) {
        for (stream, lease) in &mut self.leases {
            let vacant = assignments.get(stream) == Some(&Assignment::Vacant);
            lease.vacant_since = vacant.then(|| lease.vacant_since.unwrap_or(now));
        }
    }

    /// Whether this replica takes a vacant stream: by plan, or because the planned replica does not take it.
    fn may_acquire(&self, stream: &StreamName, taker: ReplicaId, now: BootTime) -> bool {
        let vacant_since = self.leases.get(stream).and_then(|lease| lease.vacant_since);
        let neglected = vacant_since.is_some_and(|since| since + self.settings.lease_ttl * NEGLECTED_LIFETIMES <= now);
        let allowed = self.acquire_from.is_some_and(|from| from <= now);
        allowed && self.has_room() && (taker == self.settings.me || neglected)
    }

    fn acquire(&mut self, stream: &StreamName, nonce: u128) {
        let Some(lease) = self.leases.get(stream).filter(|lease| lease.pending_change.is_none()) else { return };
        let record = lease.next_record(Some(self.settings.me), nonce);
        self.request_change(stream, lease.expected(), record);
    }

    fn request_change(&mut self, stream: &StreamName, expected: Option<Fence>, record: LeaseRecord) {
        if let Some(lease) = self.leases.get_mut(stream) {
            lease.pending_change = Some(record);
            self.outputs.push_back(Output::ChangeRecord { stream: stream.clone(), expected, record });
        }
    }

    /// Begins a handover.
    fn request_handover(&mut self, stream: &StreamName, to: ReplicaId, now: BootTime) {
        let asking = |lease: &&StreamLease| matches!(lease.role, LeaseRole::HandingOver { .. });
        if self.leases.values().filter(asking).count() >= HANDOVERS_MAX {
            return;
        }
        let until = now + self.settings.handover_timeout;
        let Some(lease) = self.leases.get_mut(stream).filter(|lease| lease.pending_change.is_none()) else { return };
        if let LeaseRole::Owner { fence } = lease.role {
            lease.role = LeaseRole::HandingOver { fence, to, until };
            self.outputs.push_back(Output::Send { to, note: PeerMessage::RequestHandover { stream: stream.clone() } });
        }
    }

    /// A holder asks this replica to be its successor.
    pub(super) fn on_handover_requested(&mut self, holder: ReplicaId, stream: &StreamName, now: BootTime) {
        let until = now + self.settings.handover_timeout;
        let has_room = self.has_room();
        let Some(lease) = self.leases.get_mut(stream).filter(|lease| has_room && lease.pending_change.is_none()) else {
            return;
        };
        match lease.role {
            LeaseRole::Idle => {
                lease.role = LeaseRole::Preparing { holder, until, live: false };
                self.outputs.push_back(Output::Prepare { stream: stream.clone() });
            }
            LeaseRole::Standby { live, .. } | LeaseRole::Preparing { live, .. } => {
                lease.role = LeaseRole::Preparing { holder, until, live };
                if live {
                    self.send_ready(holder, stream);
                }
            }
            LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. } => (),
        }
    }

    pub(super) fn on_prepared(&mut self, stream: &StreamName, is_live: bool) {
        let Some(lease) = self.leases.get_mut(stream) else { return };
        match &mut lease.role {
            LeaseRole::Standby { live, .. } => *live = is_live,
            LeaseRole::Preparing { holder, live, .. } => {
                let holder = *holder;
                *live = is_live;
                if is_live {
                    self.send_ready(holder, stream);
                }
            }
            LeaseRole::Idle | LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. } => (),
        }
    }

    fn send_ready(&mut self, holder: ReplicaId, stream: &StreamName) {
        self.outputs.push_back(Output::Send { to: holder, note: PeerMessage::Ready { stream: stream.clone() } });
    }

    /// The successor is live: moves the record to it.
    pub(super) fn hand_over(&mut self, successor: ReplicaId, stream: &StreamName, now: LeaseMoment) {
        let Some(lease) = self.leases.get(stream).filter(|lease| lease.pending_change.is_none()) else { return };
        match lease.role {
            LeaseRole::HandingOver { fence, to, .. } if to == successor => {
                self.request_change(
                    stream,
                    Some(fence),
                    LeaseRecord { holder: Some(to), fence: fence.next(now.nonce) },
                );
            }
            LeaseRole::Idle
            | LeaseRole::Standby { .. }
            | LeaseRole::Preparing { .. }
            | LeaseRole::Owner { .. }
            | LeaseRole::HandingOver { .. } => (),
        }
    }

    /// The last holder reports that the record moved to this replica.
    pub(super) fn on_handed_over(&mut self, giver: ReplicaId, stream: &StreamName, fence: Fence, now: BootTime) {
        let Some(lease) = self.leases.get_mut(stream).filter(|lease| lease.pending_change.is_none()) else { return };
        match lease.role {
            LeaseRole::Preparing { holder, .. } if holder == giver => {
                lease.is_newer_than_read = self.pending_read.is_some();
                self.apply_record(stream, Some(LeaseRecord { holder: Some(self.settings.me), fence }), now);
            }
            LeaseRole::Idle
            | LeaseRole::Standby { .. }
            | LeaseRole::Preparing { .. }
            | LeaseRole::Owner { .. }
            | LeaseRole::HandingOver { .. } => self.read_records_at = now,
        }
    }

    /// Ends waits for a successor or a holder that are over, or whose replica is gone.
    pub(super) fn expire_waits(&mut self, now: BootTime) {
        let gone = |replica| self.members.iter().all(|member| member.replica != replica);
        let over =
            |lease: &&mut StreamLease| lease.handover_wait().is_some_and(|(other, until)| until <= now || gone(other));
        for lease in self.leases.values_mut().filter(over) {
            match lease.role {
                LeaseRole::Preparing { live, .. } => lease.role = LeaseRole::Standby { since: now, live },
                LeaseRole::HandingOver { fence, .. } => lease.role = LeaseRole::Owner { fence },
                LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Owner { .. } => (),
            }
        }
    }

    /// Starts to follow the streams of which this replica is the standby, and stops for the others.
    fn follow_holders(&mut self, assignments: &BTreeMap<StreamName, Assignment>, now: BootTime) {
        for (stream, assignment) in assignments {
            let Assignment::Held(holder) = assignment else { continue };
            let wanted = self.settings.standby.contains(stream)
                && *holder != self.settings.me
                && plan::standby(stream, *holder, &self.members) == Some(self.settings.me);
            let Some(lease) = self.leases.get_mut(stream).filter(|lease| lease.pending_change.is_none()) else {
                continue;
            };
            match (lease.role, wanted) {
                (LeaseRole::Idle, true) => {
                    lease.role = LeaseRole::Standby { since: now, live: false };
                    self.outputs.push_back(Output::Follow { stream: stream.clone() });
                }
                (LeaseRole::Standby { .. }, false) => self.release(stream),
                (LeaseRole::Idle, false) | (LeaseRole::Standby { .. }, true) => (),
                (LeaseRole::Preparing { .. } | LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. }, _) => (),
            }
        }
    }

    /// Takes over the streams of dead holders, after the store has answered this replica.
    pub(super) fn check_holders(&mut self, now: LeaseMoment) {
        let due = |lease: &StreamLease| self.holder_health(lease).filter(|health| health.at() <= now.boot);
        let due: Vec<_> =
            self.leases.iter().filter_map(|(stream, lease)| Some((stream.clone(), due(lease)?))).collect();
        for (stream, health) in due {
            match health {
                HolderHealth::Suspect(_) => self.membership.renew_now(now.boot),
                HolderHealth::Dead(_) if self.has_room() => self.acquire(&stream, now.nonce),
                HolderHealth::Dead(_) => (),
            }
        }
    }

    /// The health of the holder of a followed stream, and when to act on it.
    pub(super) fn holder_health(&self, lease: &StreamLease) -> Option<HolderHealth> {
        let LeaseRole::Standby { since, .. } = lease.role else { return None };
        let holder = lease.holder().filter(|_| lease.pending_change.is_none() && self.has_room())?;
        let from = self.acquire_from?;
        let last_heartbeat =
            self.last_heartbeats.get(&holder).copied().unwrap_or(since).max(since).max(self.membership.valid_since()?);
        let suspect_at = last_heartbeat + self.settings.heartbeat_timeout / 2;
        if self.membership.confirmed_at() >= Some(suspect_at) {
            Some(HolderHealth::Dead(from.max(last_heartbeat + self.settings.heartbeat_timeout)))
        } else {
            (self.membership.sent_at() < Some(suspect_at)).then_some(HolderHealth::Suspect(suspect_at))
        }
    }

    pub(super) fn drain(&mut self, until: BootTime, now: BootTime) {
        if self.lifecycle == Lifecycle::Active {
            self.lifecycle = Lifecycle::Draining { until };
            self.membership.renew_now(now);
        }
    }

    /// Ends draining at its deadline, or when nothing is left to hand over.
    pub(super) fn leave_when_done(&mut self, now: LeaseMoment) {
        if matches!(self.lifecycle, Lifecycle::Draining { until } if until <= now.boot) {
            self.lifecycle = Lifecycle::Abandoning;
            self.abandon_all(now.nonce);
        }
        let successor = self.leases.values().any(|lease| matches!(lease.role, LeaseRole::Preparing { .. }));
        let busy = self.leases.values().any(|lease| lease.fence().is_some() || lease.pending_change.is_some());
        let done = match self.lifecycle {
            Lifecycle::Draining { .. } => !busy && !successor,
            Lifecycle::Abandoning => !busy,
            Lifecycle::Active | Lifecycle::Left => false,
        };
        if done {
            self.lifecycle = Lifecycle::Left;
            self.outputs.push_back(Output::Leave);
        }
    }

    /// Whether no member can become the successor.
    fn must_abandon(&self) -> bool {
        let others = self.members.iter().any(|member| member.limit > 0 && member.replica != self.settings.me);
        match self.lifecycle {
            Lifecycle::Active | Lifecycle::Left => false,
            Lifecycle::Draining { .. } => !others,
            Lifecycle::Abandoning => true,
        }
    }

    /// Releases all records, so that other replicas need not wait until the membership expires.
    fn abandon_all(&mut self, nonce: u128) {
        for stream in &self.settings.streams.clone() {
            let lease = self.leases.get(stream).filter(|lease| lease.pending_change.is_none());
            if let Some(fence) = lease.and_then(StreamLease::fence) {
                self.request_change(stream, Some(fence), LeaseRecord { holder: None, fence: fence.next(nonce) });
            }
        }
    }

    /// Shifts all times to a clock that started later. Tests compare equal states this way.
    pub fn rebase(&mut self, by: Duration) {
        self.membership.rebase(by);
        self.leases.values_mut().for_each(|lease| lease.rebase(by));
        super::rebase(self.last_heartbeats.values_mut(), by);
        super::rebase(
            [&mut self.read_records_at, &mut self.heartbeat_at].into_iter().chain(&mut self.acquire_from),
            by,
        );
        if let Lifecycle::Draining { until } = &mut self.lifecycle {
            super::rebase([until], by);
        }
    }
}
