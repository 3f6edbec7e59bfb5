//! Which replica owns which stream: membership, leases, standbys and handovers.
//!
//! Safety does not depend on this machine: each append presents its fence, and the store compares it. The machine gives
//! every stream an owner soon, keeps the old session until its successor is live, and reads the records again after the
//! process was suspended.

mod boot_time;
mod holder_watch;
mod lifecycle;
mod membership;
mod messages;
mod plan;
mod record_reads;
mod settings;
mod stream_lease;
#[cfg(test)]
mod tests;

pub use self::{
    boot_time::{BootTime, LeaseMoment},
    messages::{ChangeOutcome, Input, LeaseRecord, LeaseRequest, Member, Output, PeerMessage},
    settings::Settings,
};

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use self::{
    holder_watch::{HolderHealth, HolderWatch},
    lifecycle::Lifecycle,
    membership::{Membership, RENEWAL_PART},
    plan::{Assignment, RebalancePlan},
    record_reads::RecordReads,
    stream_lease::StreamLease,
};
use crate::model::{Fence, ReplicaId, StreamName};

/// The maximum number of handovers of one replica at the same time.
const HANDOVERS_MAX: usize = 8;

/// A stream that is vacant for this many membership lifetimes is taken by any member with room.
const NEGLECTED_LIFETIMES: u32 = 2;

/// The machine of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    settings: Settings,
    membership: Membership,
    members: Vec<Member>,
    leases: BTreeMap<StreamName, StreamLease>,
    watch: HolderWatch,
    reads: RecordReads,
    heartbeat_at: BootTime,
    /// When it may take vacant streams. None: only after the membership is valid again.
    acquire_from: Option<BootTime>,
    lifecycle: Lifecycle,
    outputs: VecDeque<Output>,
}

impl Lease {
    /// The first renewal is due at once.
    pub fn new(settings: Settings, now: BootTime) -> Self {
        let lease = |stream: &StreamName| (stream.clone(), StreamLease::new(stream.clone(), settings.me));
        Self {
            membership: Membership::new(&settings, now),
            members: Vec::new(),
            leases: settings.streams.iter().map(lease).collect(),
            watch: HolderWatch::new(settings.heartbeat_timeout),
            reads: RecordReads::new(settings.lease_ttl, now),
            heartbeat_at: now,
            acquire_from: Some(now + settings.start_delay),
            lifecycle: Lifecycle::Active,
            outputs: VecDeque::new(),
            settings,
        }
    }

    pub fn handle(&mut self, input: Input, now: LeaseMoment) {
        self.check_expiry(now.boot);
        match input {
            Input::Renewed { members } => self.on_renewed(members, now),
            Input::RecordsRead { records } => self.on_records_read(&records, now.boot),
            Input::Changed { stream, fence, outcome } => self.on_record_changed(&stream, fence, outcome, now.boot),
            Input::RequestFailed(LeaseRequest::Renew) => self.membership.on_renewal_failed(),
            Input::RequestFailed(LeaseRequest::ReadRecords) => self.on_read_failed(now.boot),
            Input::Heartbeat { from } => self.on_heartbeat(from, now.boot),
            Input::Received { from, message } => self.on_peer_message(from, message, now),
            Input::Prepared { stream, live } => self.change_lease(&stream, |lease| lease.on_prepared(live)),
            Input::Fenced { stream, fence } => self.on_fenced(&stream, fence, now.boot),
            Input::Drain { until } => self.drain(until, now.boot),
        }
        self.advance(now);
    }

    pub fn handle_timeout(&mut self, now: LeaseMoment) {
        self.check_expiry(now.boot);
        self.advance(now);
    }

    pub fn poll_timeout(&self) -> Option<BootTime> {
        if self.lifecycle.has_left() {
            return None;
        }
        let read = self.reads.deadline().filter(|_| self.membership.is_valid());
        let heartbeat = self.sends_heartbeats().then_some(self.heartbeat_at);
        let handovers = self.leases.values().filter_map(StreamLease::deadline);
        let followed = self.leases.values().filter_map(|lease| self.holder_health(lease)).map(HolderHealth::at);
        let others = [read, heartbeat, self.lifecycle.deadline()].into_iter().flatten();
        self.membership.deadlines().chain(others).chain(handovers).chain(followed).min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The fence for an append now. It must be called right before each append, so that a process that was suspended
    /// does not append.
    pub fn append_fence(&self, stream: &StreamName, now: BootTime) -> Option<Fence> {
        self.leases.get(stream)?.fence().filter(|_| self.membership.may_append(now))
    }

    /// The owner of the stream, as far as this replica knows.
    pub fn holder(&self, stream: &StreamName) -> Option<ReplicaId> {
        self.leases.get(stream)?.holder()
    }

    /// Shifts all times to a clock that started later. Tests compare equal states this way.
    pub fn rebase(&mut self, by: Duration) {
        self.membership.rebase(by);
        self.leases.values_mut().for_each(|lease| lease.rebase(by));
        self.watch.rebase(by);
        self.reads.rebase(by);
        boot_time::rebase([&mut self.heartbeat_at].into_iter().chain(&mut self.acquire_from), by);
        if let Lifecycle::Draining { until } = &mut self.lifecycle {
            boot_time::rebase([until], by);
        }
    }

    /// Ends the validity of the membership if it is due. It comes before everything else.
    fn check_expiry(&mut self, now: BootTime) {
        if self.membership.has_expired(now) {
            self.membership.invalidate(now);
            self.acquire_from = None;
            self.outputs.push_back(Output::StepDown);
        }
    }

    fn advance(&mut self, now: LeaseMoment) {
        if self.lifecycle.has_left() {
            return;
        }
        self.leases.values_mut().for_each(|lease| lease.expire_wait(&self.members, now.boot));
        self.check_holders(now);
        self.leave_when_done(now);
        if self.membership.is_due(now.boot) {
            self.membership.on_renewal_sent(now.boot);
            self.outputs.push_back(Output::Renew { limit: self.limit() });
        }
        if self.membership.is_valid() && self.reads.deadline().is_some_and(|at| at <= now.boot) {
            self.read_records(now.boot);
        }
        if self.sends_heartbeats() && self.heartbeat_at <= now.boot {
            self.heartbeat_at = now.boot + self.settings.heartbeat_interval;
            self.outputs.push_back(Output::SendHeartbeat);
        }
    }

    fn read_records(&mut self, now: BootTime) {
        self.reads.begin(self.membership.confirmed_at(), now);
        self.outputs.push_back(Output::ReadRecords);
    }

    /// A known record is wrong. Reading at once could race with the replica that changes it.
    fn read_records_soon(&mut self, now: BootTime) {
        self.reads.expedite(now + self.settings.heartbeat_interval);
    }

    fn change_lease(&mut self, stream: &StreamName, step: impl FnOnce(&mut StreamLease) -> Option<Output>) {
        self.outputs.extend(self.leases.get_mut(stream).and_then(step));
    }

    fn on_renewed(&mut self, mut members: Vec<Member>, now: LeaseMoment) {
        let Some(sent) = self.membership.on_renewed() else { return };
        for member in members.iter_mut().filter(|member| member.replica == self.settings.me) {
            member.limit = self.limit();
        }
        members.sort_unstable_by_key(|member| member.replica);
        if members != self.members {
            self.reads.expedite(now.boot);
        }
        self.watch.retain(&members);
        self.members = members;
        if self.membership.is_valid() {
            self.rebalance(sent, now);
        } else if !self.reads.is_in_flight() {
            self.read_records(now.boot);
        }
    }

    fn on_records_read(&mut self, records: &BTreeMap<StreamName, LeaseRecord>, now: BootTime) {
        let Some(read) = self.reads.finish() else { return };
        for (stream, lease) in &mut self.leases {
            if lease.accepts_read() {
                self.outputs.extend(lease.apply_record(records.get(stream).copied(), now));
            }
        }
        if self.membership.on_records_read(read.confirmed_at, now) {
            // The same failure may have disconnected the holders. They have one lifetime to return, because their
            // buffers and sessions are worth more than a new session.
            self.acquire_from.get_or_insert(now + self.settings.lease_ttl);
            self.outputs.push_back(Output::Resume);
        }
    }

    fn on_read_failed(&mut self, now: BootTime) {
        self.reads.finish();
        self.reads.expedite(now + self.settings.lease_ttl.mul_f64(RENEWAL_PART));
    }

    fn on_record_changed(&mut self, stream: &StreamName, fence: Fence, outcome: ChangeOutcome, now: BootTime) {
        let is_reading = self.reads.is_in_flight();
        let Some(lease) = self.leases.get_mut(stream) else { return };
        let Some(record) = lease.end_change(fence, is_reading) else { return };
        match outcome {
            ChangeOutcome::Done => {
                self.outputs.extend(lease.apply_record(Some(record), now));
                if let Some(to) = record.holder.filter(|holder| *holder != self.settings.me) {
                    let note = PeerMessage::HandedOver { stream: stream.clone(), fence };
                    self.outputs.push_back(Output::Send { to, note });
                }
            }
            ChangeOutcome::Refused | ChangeOutcome::Unknown => {
                lease.forget_record();
                self.read_records_soon(now);
            }
        }
    }

    fn on_fenced(&mut self, stream: &StreamName, fence: Fence, now: BootTime) {
        let is_reading = self.reads.is_in_flight();
        let release = self.leases.get_mut(stream).and_then(|lease| lease.on_fenced(fence, is_reading));
        if release.is_some() {
            self.read_records_soon(now);
        }
        self.outputs.extend(release);
    }

    fn on_heartbeat(&mut self, from: ReplicaId, now: BootTime) {
        if self.members.iter().any(|member| member.replica == from) {
            self.watch.on_heartbeat(from, now);
        }
    }

    fn on_peer_message(&mut self, from: ReplicaId, message: PeerMessage, now: LeaseMoment) {
        match message {
            PeerMessage::RequestHandover { stream } if self.has_room() => {
                let until = now.boot + self.settings.handover_timeout;
                self.change_lease(&stream, |lease| lease.on_handover_requested(from, until));
            }
            PeerMessage::RequestHandover { .. } => (),
            PeerMessage::Ready { stream } => self.change_lease(&stream, |lease| lease.hand_over(from, now.nonce)),
            PeerMessage::HandedOver { stream, fence } => self.on_handed_over(from, &stream, fence, now.boot),
        }
    }

    /// The last holder reports that the record moved to this replica.
    fn on_handed_over(&mut self, giver: ReplicaId, stream: &StreamName, fence: Fence, now: BootTime) {
        let is_reading = self.reads.is_in_flight();
        let Some(lease) = self.leases.get_mut(stream).filter(|lease| !lease.is_changing()) else { return };
        if lease.is_preparing_for(giver) {
            self.outputs.extend(lease.on_handed_over(fence, is_reading, now));
        } else {
            self.reads.expedite(now);
        }
    }

    /// Acts on the current members. They were read after a renewal that was sent at `sent`.
    fn rebalance(&mut self, sent: BootTime, now: LeaseMoment) {
        let assignment = |lease: &StreamLease| lease.assignment(&self.members, sent);
        let assignments: BTreeMap<_, _> =
            self.leases.iter().filter_map(|(stream, lease)| Some((stream.clone(), assignment(lease)?))).collect();
        let RebalancePlan { acquisitions, transfers } = plan::plan(&self.members, &assignments);
        for (stream, lease) in &mut self.leases {
            lease.track_vacancy(assignments.get(stream) == Some(&Assignment::Vacant), now.boot);
        }
        for (stream, taker) in acquisitions {
            if self.may_acquire(&stream, taker, now.boot) {
                self.change_lease(&stream, |lease| lease.acquire(now.nonce));
            }
        }
        let me = self.settings.me;
        for step in transfers.iter().filter(|step| step.from == me) {
            self.request_handover(&step.stream, step.to, now.boot);
        }
        let has_successor = self.members.iter().any(|member| member.limit > 0 && member.replica != me);
        if self.lifecycle.must_abandon(has_successor) {
            self.abandon_all(now.nonce);
        }
        self.follow_holders(&assignments, now.boot);
    }

    /// Whether this replica takes a vacant stream: by plan, or because the planned replica does not take it.
    fn may_acquire(&self, stream: &StreamName, taker: ReplicaId, now: BootTime) -> bool {
        let neglected = self.settings.lease_ttl * NEGLECTED_LIFETIMES;
        let vacant_since = self.leases.get(stream).and_then(StreamLease::vacant_since);
        let is_neglected = vacant_since.is_some_and(|since| since + neglected <= now);
        let is_allowed = self.acquire_from.is_some_and(|from| from <= now);
        is_allowed && self.has_room() && (taker == self.settings.me || is_neglected)
    }

    fn request_handover(&mut self, stream: &StreamName, to: ReplicaId, now: BootTime) {
        if self.leases.values().filter(|lease| lease.is_handing_over()).count() < HANDOVERS_MAX {
            let until = now + self.settings.handover_timeout;
            self.change_lease(stream, |lease| lease.request_handover(to, until));
        }
    }

    /// Starts to follow the streams of which this replica is the standby, and stops for the others.
    fn follow_holders(&mut self, assignments: &BTreeMap<StreamName, Assignment>, now: BootTime) {
        let me = self.settings.me;
        for (stream, assignment) in assignments {
            let Assignment::Held(holder) = *assignment else { continue };
            let is_standby = self.settings.standby.contains(stream)
                && holder != me
                && plan::standby(stream, holder, &self.members) == Some(me);
            self.change_lease(stream, |lease| lease.follow(is_standby, now));
        }
    }

    /// Takes over the streams of dead holders, after the store has answered this replica.
    fn check_holders(&mut self, now: LeaseMoment) {
        let due = |lease: &StreamLease| self.holder_health(lease).filter(|health| health.at() <= now.boot);
        let due: Vec<_> =
            self.leases.iter().filter_map(|(stream, lease)| Some((stream.clone(), due(lease)?))).collect();
        for (stream, health) in due {
            match health {
                HolderHealth::Suspect(_) => self.membership.renew_now(now.boot),
                HolderHealth::Dead(_) if self.has_room() => {
                    self.change_lease(&stream, |lease| lease.acquire(now.nonce));
                }
                HolderHealth::Dead(_) => (),
            }
        }
    }

    /// The health of the holder of a followed stream, and when to act on it.
    fn holder_health(&self, lease: &StreamLease) -> Option<HolderHealth> {
        let (holder, since) = lease.followed().filter(|_| self.has_room())?;
        let acquire_from = self.acquire_from?;
        match self.watch.health(holder, since, &self.membership)? {
            HolderHealth::Dead(at) => Some(HolderHealth::Dead(at.max(acquire_from))),
            suspect @ HolderHealth::Suspect(_) => Some(suspect),
        }
    }

    fn drain(&mut self, until: BootTime, now: BootTime) {
        if self.lifecycle.is_active() {
            self.lifecycle = Lifecycle::Draining { until };
            self.membership.renew_now(now);
        }
    }

    /// Ends draining at its deadline, or when nothing is left to hand over.
    fn leave_when_done(&mut self, now: LeaseMoment) {
        if self.lifecycle.deadline().is_some_and(|until| until <= now.boot) {
            self.lifecycle = Lifecycle::Abandoning;
            self.abandon_all(now.nonce);
        }
        let is_busy = self.leases.values().any(StreamLease::is_busy);
        let is_preparing = self.leases.values().any(StreamLease::is_preparing);
        if self.lifecycle.is_done(is_busy, is_preparing) {
            self.lifecycle = Lifecycle::Left;
            self.outputs.push_back(Output::Leave);
        }
    }

    fn abandon_all(&mut self, nonce: u128) {
        self.outputs.extend(self.leases.values_mut().filter_map(|lease| lease.abandon(nonce)));
    }

    /// Whether this replica owns a stream with a standby.
    fn sends_heartbeats(&self) -> bool {
        let is_owner = |stream: &StreamName| self.leases.get(stream).is_some_and(|lease| lease.fence().is_some());
        self.membership.is_valid() && self.settings.standby.iter().any(is_owner)
    }

    fn limit(&self) -> usize {
        if self.lifecycle.is_active() { self.settings.limit } else { 0 }
    }

    /// Whether the streams that are owned or requested are fewer than the limit.
    fn has_room(&self) -> bool {
        self.leases.values().filter(|lease| lease.is_held()).count() < self.limit()
    }
}
