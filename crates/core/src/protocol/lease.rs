//! Which replica owns which stream: membership, leases, standbys and handovers.
//!
//! Safety does not depend on this machine: each append presents its fence, and the store compares it. The machine gives
//! every stream an owner soon, keeps the old session until its successor is live, and reads the records again after the
//! process was suspended.

mod membership;
mod messages;
mod plan;
mod rebalancing;
mod stream_lease;
#[cfg(test)]
mod tests;

pub use self::messages::{ChangeOutcome, Input, LeaseRecord, LeaseRequest, Member, Output, PeerMessage};

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use self::{
    membership::Membership,
    stream_lease::{LeaseRole, RecordRead, StreamLease},
};
use crate::model::{Fence, ReplicaId, StreamName};

/// A membership is renewed after its lifetime divided by this.
const RENEWAL_PART: f64 = 0.2;

/// A membership counts as valid for this part of its lifetime, from the sending of a renewal.
const VALID_PART: f64 = 0.6;

/// The maximum number of handovers of one replica at the same time.
const HANDOVERS_MAX: usize = 8;

/// A stream that is vacant for this many membership lifetimes is taken by any member with room.
const NEGLECTED_LIFETIMES: u32 = 2;

/// Time since the start of the machine, including time while the host is suspended.
pub type BootTime = Duration;

/// The time of an input, and a random number for a new fence.
#[derive(Debug, Clone, Copy)]
pub struct LeaseMoment {
    pub boot: BootTime,
    pub nonce: u128,
}

/// The lease settings of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    pub me: ReplicaId,
    pub streams: Vec<StreamName>,
    /// The maximum number of streams of this replica.
    pub limit: usize,
    /// Streams with a standby that keeps a session live.
    pub standby: BTreeSet<StreamName>,
    /// The lifetime of a membership without a renewal.
    pub lease_ttl: Duration,
    /// The time between two heartbeats of a holder.
    pub heartbeat_interval: Duration,
    /// A standby takes over when no heartbeat of the holder arrived in this time.
    pub heartbeat_timeout: Duration,
    /// The maximum time until the session of a successor is live.
    pub handover_timeout: Duration,
    /// The delay before the first streams are taken, so that replicas that start together see each other first.
    pub start_delay: Duration,
}

/// The machine of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    settings: Settings,
    membership: Membership,
    members: Vec<Member>,
    leases: BTreeMap<StreamName, StreamLease>,
    /// When the last heartbeat of each member arrived.
    last_heartbeats: BTreeMap<ReplicaId, BootTime>,
    pending_read: Option<PendingRead>,
    read_records_at: BootTime,
    heartbeat_at: BootTime,
    /// When it may take vacant streams. None: only after the membership is valid again.
    acquire_from: Option<BootTime>,
    lifecycle: Lifecycle,
    outputs: VecDeque<Output>,
}

/// A read of the records that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PendingRead {
    /// When the last renewal was sent that the store had answered before this read began.
    confirmed_at: Option<BootTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lifecycle {
    Active,
    Draining {
        until: BootTime,
    },
    /// The deadline for handovers has passed.
    Abandoning,
    Left,
}

impl Lease {
    /// The first renewal is due at once.
    pub fn new(settings: Settings, now: BootTime) -> Self {
        Self {
            membership: Membership::new(&settings, now),
            members: Vec::new(),
            leases: settings.streams.iter().map(|stream| (stream.clone(), StreamLease::default())).collect(),
            last_heartbeats: BTreeMap::new(),
            pending_read: None,
            read_records_at: now + settings.lease_ttl,
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
            Input::Received { from, message: note } => self.on_peer_message(from, note, now),
            Input::Prepared { stream, live } => self.on_prepared(&stream, live),
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
        if self.lifecycle == Lifecycle::Left {
            return None;
        }
        let pending =
            self.pending_read.is_none().then_some(self.read_records_at).filter(|_| self.membership.is_valid());
        let heartbeat = self.sends_heartbeats().then_some(self.heartbeat_at);
        let drain = match self.lifecycle {
            Lifecycle::Draining { until } => Some(until),
            Lifecycle::Active | Lifecycle::Abandoning | Lifecycle::Left => None,
        };
        let waits = self.leases.values().filter_map(StreamLease::handover_wait).map(|(_, until)| until);
        let followed = self.leases.values().filter_map(|lease| self.holder_health(lease)).map(HolderHealth::at);
        self.membership.deadlines().chain(pending).chain(heartbeat).chain(drain).chain(waits).chain(followed).min()
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
        let lease = self.leases.get(stream)?;
        if lease.fence().is_some() { Some(self.settings.me) } else { lease.holder() }
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
        if self.lifecycle == Lifecycle::Left {
            return;
        }
        self.expire_waits(now.boot);
        self.check_holders(now);
        self.leave_when_done(now);
        if self.membership.is_due(now.boot) {
            self.membership.on_renewal_sent(now.boot);
            self.outputs.push_back(Output::Renew { limit: self.limit() });
        }
        if self.membership.is_valid() && self.pending_read.is_none() && self.read_records_at <= now.boot {
            self.read_records(now.boot);
        }
        if self.sends_heartbeats() && self.heartbeat_at <= now.boot {
            self.heartbeat_at = now.boot + self.settings.heartbeat_interval;
            self.outputs.push_back(Output::SendHeartbeat);
        }
    }

    fn read_records(&mut self, now: BootTime) {
        self.pending_read = Some(PendingRead { confirmed_at: self.membership.confirmed_at() });
        self.read_records_at = now + self.settings.lease_ttl;
        self.outputs.push_back(Output::ReadRecords);
    }

    /// A known record is wrong. Reading at once could race with the replica that changes it.
    fn read_records_soon(&mut self, now: BootTime) {
        self.read_records_at = self.read_records_at.min(now + self.settings.heartbeat_interval);
    }

    fn on_renewed(&mut self, mut members: Vec<Member>, now: LeaseMoment) {
        let Some(sent) = self.membership.on_renewed() else { return };
        for member in members.iter_mut().filter(|member| member.replica == self.settings.me) {
            member.limit = self.limit();
        }
        members.sort_unstable_by_key(|member| member.replica);
        if members != self.members {
            self.read_records_at = now.boot;
        }
        self.last_heartbeats.retain(|replica, _| members.iter().any(|member| member.replica == *replica));
        self.members = members;
        if self.membership.is_valid() {
            self.rebalance(sent, now);
        } else if self.pending_read.is_none() {
            self.read_records(now.boot);
        }
    }

    fn on_records_read(&mut self, records: &BTreeMap<StreamName, LeaseRecord>, now: BootTime) {
        let Some(pending) = self.pending_read.take() else { return };
        for stream in &self.settings.streams.clone() {
            if self.leases.get_mut(stream).is_some_and(StreamLease::accepts_read) {
                self.apply_record(stream, records.get(stream).copied(), now);
            }
        }
        if self.membership.on_records_read(pending.confirmed_at, now) {
            // The same failure may have disconnected the holders. They have one lifetime to return, because their
            // buffers and sessions are worth more than a new session.
            self.acquire_from.get_or_insert(now + self.settings.lease_ttl);
            self.outputs.push_back(Output::Resume);
        }
    }

    fn on_read_failed(&mut self, now: BootTime) {
        self.pending_read = None;
        self.read_records_at = self.read_records_at.min(now + self.settings.lease_ttl.mul_f64(RENEWAL_PART));
    }

    fn on_record_changed(&mut self, stream: &StreamName, fence: Fence, outcome: ChangeOutcome, now: BootTime) {
        let Some(lease) = self.leases.get_mut(stream) else { return };
        let Some(record) = lease.pending_change.take_if(|record| record.fence == fence) else { return };
        lease.is_newer_than_read = self.pending_read.is_some();
        match outcome {
            ChangeOutcome::Done => {
                self.apply_record(stream, Some(record), now);
                if let Some(to) = record.holder.filter(|holder| *holder != self.settings.me) {
                    self.outputs.push_back(Output::Send {
                        to,
                        note: PeerMessage::HandedOver { stream: stream.clone(), fence },
                    });
                }
            }
            ChangeOutcome::Refused | ChangeOutcome::Unknown => {
                lease.last_read = None;
                self.read_records_soon(now);
            }
        }
    }

    /// Applies a record of the store.
    fn apply_record(&mut self, stream: &StreamName, record: Option<LeaseRecord>, now: BootTime) {
        let Some(lease) = self.leases.get_mut(stream) else { return };
        lease.last_read = Some(RecordRead { record, at: now });
        let mine = record.filter(|record| record.holder == Some(self.settings.me)).map(|record| record.fence);
        match (lease.fence(), mine) {
            (None, None) => (),
            (Some(known), Some(fence)) if known == fence => (),
            (_, Some(fence)) => {
                lease.role = LeaseRole::Owner { fence };
                self.outputs.push_back(Output::BecomeOwner { stream: stream.clone(), fence });
            }
            (Some(_), None) => self.release(stream),
        }
    }

    fn release(&mut self, stream: &StreamName) {
        if let Some(lease) = self.leases.get_mut(stream) {
            lease.role = LeaseRole::Idle;
            self.outputs.push_back(Output::Release { stream: stream.clone() });
        }
    }

    fn on_fenced(&mut self, stream: &StreamName, fence: Fence, now: BootTime) {
        let Some(lease) = self.leases.get_mut(stream).filter(|lease| lease.fence() == Some(fence)) else { return };
        lease.last_read = None;
        lease.is_newer_than_read = self.pending_read.is_some();
        self.read_records_soon(now);
        self.release(stream);
    }

    fn on_heartbeat(&mut self, from: ReplicaId, now: BootTime) {
        if self.members.iter().any(|member| member.replica == from) {
            self.last_heartbeats.insert(from, now);
        }
    }

    fn on_peer_message(&mut self, from: ReplicaId, note: PeerMessage, now: LeaseMoment) {
        match note {
            PeerMessage::RequestHandover { stream } => self.on_handover_requested(from, &stream, now.boot),
            PeerMessage::Ready { stream } => self.hand_over(from, &stream, now),
            PeerMessage::HandedOver { stream, fence } => self.on_handed_over(from, &stream, fence, now.boot),
        }
    }

    /// Whether this replica owns a stream with a standby.
    fn sends_heartbeats(&self) -> bool {
        let followed = |stream: &StreamName| self.leases.get(stream).is_some_and(|lease| lease.fence().is_some());
        self.membership.is_valid() && self.settings.standby.iter().any(followed)
    }

    fn limit(&self) -> usize {
        match self.lifecycle {
            Lifecycle::Active => self.settings.limit,
            Lifecycle::Draining { .. } | Lifecycle::Abandoning | Lifecycle::Left => 0,
        }
    }

    /// The number of streams that are owned or requested.
    fn held_len(&self) -> usize {
        let me = Some(self.settings.me);
        let held = |lease: &&StreamLease| {
            lease.fence().is_some() || lease.pending_change.is_some_and(|record| record.holder == me)
        };
        self.leases.values().filter(held).count()
    }

    fn has_room(&self) -> bool {
        self.held_len() < self.limit()
    }
}

/// The health of a holder, as its standby sees it.
#[derive(Debug, Clone, Copy)]
enum HolderHealth {
    /// From this time on the holder is suspect, if this replica can still reach the store.
    Suspect(BootTime),
    /// From this time on the holder counts as dead. The store answered this replica in the meantime.
    Dead(BootTime),
}

impl HolderHealth {
    fn at(self) -> BootTime {
        match self {
            Self::Suspect(at) | Self::Dead(at) => at,
        }
    }
}

/// Shifts times to a later zero. Earlier times become zero.
fn rebase<'a>(moments: impl IntoIterator<Item = &'a mut BootTime>, by: Duration) {
    for moment in moments {
        *moment = moment.saturating_sub(by);
    }
}
