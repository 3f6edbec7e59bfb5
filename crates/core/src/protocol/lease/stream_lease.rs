//! The lease of one stream on this replica: the known record, the change in flight, and the role.
//!
//! Each step returns the output that it causes.

use std::{mem, time::Duration};

use super::{
    boot_time::{self, BootTime},
    messages::{LeaseRecord, Member, Output, PeerMessage},
    plan::Assignment,
};
use crate::model::{Fence, ReplicaId, StreamName};

/// The state of one stream's lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StreamLease {
    stream: StreamName,
    /// This replica.
    me: ReplicaId,
    /// The known record; `None` before the first read.
    last_read: Option<RecordRead>,
    role: LeaseRole,
    /// The record of a compare-and-set in flight.
    pending_change: Option<LeaseRecord>,
    /// The known record is newer than what a read in flight may return.
    is_newer_than_read: bool,
    /// Since when no live replica holds the stream.
    vacant_since: Option<BootTime>,
}

/// A record, and when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct RecordRead {
    /// None: the stream has no record.
    record: Option<LeaseRecord>,
    at: BootTime,
}

/// The role of this replica for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LeaseRole {
    Idle,
    /// A warm standby.
    Standby {
        since: BootTime,
        live: bool,
    },
    /// The holder asked this replica to be the successor.
    Preparing {
        holder: ReplicaId,
        until: BootTime,
        live: bool,
    },
    /// The holder.
    Owner {
        fence: Fence,
    },
    /// The holder, during a handover to another replica.
    HandingOver {
        fence: Fence,
        to: ReplicaId,
        until: BootTime,
    },
}

impl StreamLease {
    pub(super) fn new(stream: StreamName, me: ReplicaId) -> Self {
        Self {
            stream,
            me,
            last_read: None,
            role: LeaseRole::Idle,
            pending_change: None,
            is_newer_than_read: false,
            vacant_since: None,
        }
    }

    /// The fence of this replica, if it is the holder.
    pub(super) fn fence(&self) -> Option<Fence> {
        match self.role {
            LeaseRole::Owner { fence } | LeaseRole::HandingOver { fence, .. } => Some(fence),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Preparing { .. } => None,
        }
    }

    /// The holder, as far as this replica knows.
    pub(super) fn holder(&self) -> Option<ReplicaId> {
        if self.fence().is_some() { Some(self.me) } else { self.last_read?.record?.holder }
    }

    /// Whether this replica is the holder, or has requested to be.
    pub(super) fn is_held(&self) -> bool {
        self.fence().is_some() || self.pending_change.is_some_and(|record| record.holder == Some(self.me))
    }

    /// Whether this replica is the holder, or a change of the record is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.fence().is_some() || self.is_changing()
    }

    /// Whether a change of the record is in flight.
    pub(super) fn is_changing(&self) -> bool {
        self.pending_change.is_some()
    }

    pub(super) fn is_preparing(&self) -> bool {
        matches!(self.role, LeaseRole::Preparing { .. })
    }

    /// Whether this holder asked this replica to be its successor.
    pub(super) fn is_preparing_for(&self, other: ReplicaId) -> bool {
        matches!(self.role, LeaseRole::Preparing { holder, .. } if holder == other)
    }

    pub(super) fn is_handing_over(&self) -> bool {
        matches!(self.role, LeaseRole::HandingOver { .. })
    }

    /// The holder that this standby follows, and since when.
    pub(super) fn followed(&self) -> Option<(ReplicaId, BootTime)> {
        let LeaseRole::Standby { since, .. } = self.role else { return None };
        Some((self.holder().filter(|_| !self.is_changing())?, since))
    }

    /// When a handover fails.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.handover_wait().map(|(_, until)| until)
    }

    /// The replica that this role waits for, and the deadline.
    fn handover_wait(&self) -> Option<(ReplicaId, BootTime)> {
        match self.role {
            LeaseRole::Preparing { holder, until, .. } => Some((holder, until)),
            LeaseRole::HandingOver { to, until, .. } => Some((to, until)),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Owner { .. } => None,
        }
    }

    /// The holder for the plan; none if it is not known. A holder that is no member counts as dead only if its record
    /// was read before the members: a new replica is a member before it holds a stream. `sent`: the members were read
    /// after a renewal that was sent at this time.
    pub(super) fn assignment(&self, members: &[Member], sent: BootTime) -> Option<Assignment> {
        let holder = match self.pending_change.filter(|_| self.fence().is_none()) {
            Some(record) => record.holder,
            None => self.holder(),
        };
        match holder.filter(|holder| is_member(members, *holder)) {
            Some(holder) => Some(Assignment::Held(holder)),
            None => self.last_read.filter(|seen| seen.at < sent).map(|_| Assignment::Vacant),
        }
    }

    pub(super) fn track_vacancy(&mut self, is_vacant: bool, now: BootTime) {
        self.vacant_since = is_vacant.then(|| self.vacant_since.unwrap_or(now));
    }

    pub(super) fn vacant_since(&self) -> Option<BootTime> {
        self.vacant_since
    }

    /// Whether a finished read is newer than the known record. Must be called once for each read.
    pub(super) fn accepts_read(&mut self) -> bool {
        let is_newer_than_read = mem::take(&mut self.is_newer_than_read);
        !self.is_changing() && !is_newer_than_read
    }

    /// Applies a record of the store.
    pub(super) fn apply_record(&mut self, record: Option<LeaseRecord>, now: BootTime) -> Option<Output> {
        self.last_read = Some(RecordRead { record, at: now });
        let mine = record.filter(|record| record.holder == Some(self.me)).map(|record| record.fence);
        match (self.fence(), mine) {
            (None, None) => None,
            (Some(known), Some(fence)) if known == fence => None,
            (_, Some(fence)) => {
                self.role = LeaseRole::Owner { fence };
                Some(Output::BecomeOwner { stream: self.stream.clone(), fence })
            }
            (Some(_), None) => Some(self.release()),
        }
    }

    /// Ends the change to this fence. Returns its record; none if it is not in flight.
    pub(super) fn end_change(&mut self, fence: Fence, is_reading: bool) -> Option<LeaseRecord> {
        let record = self.pending_change.take_if(|record| record.fence == fence)?;
        self.is_newer_than_read = is_reading;
        Some(record)
    }

    /// The known record is wrong.
    pub(super) fn forget_record(&mut self) {
        self.last_read = None;
    }

    /// The store refused an append under this fence. None if it is not the current one.
    pub(super) fn on_fenced(&mut self, fence: Fence, is_reading: bool) -> Option<Output> {
        if self.fence() != Some(fence) {
            return None;
        }
        self.forget_record();
        self.is_newer_than_read = is_reading;
        Some(self.release())
    }

    fn release(&mut self) -> Output {
        self.role = LeaseRole::Idle;
        Output::Release { stream: self.stream.clone() }
    }

    /// Requests to be the holder.
    pub(super) fn acquire(&mut self, nonce: u128) -> Option<Output> {
        let expected = self.last_read.and_then(|seen| seen.record).map(|record| record.fence);
        let fence = expected.unwrap_or(Fence::NONE).next(nonce);
        self.change_record(expected, LeaseRecord { holder: Some(self.me), fence })
    }

    /// Releases the record, so that other replicas need not wait until the membership expires.
    pub(super) fn abandon(&mut self, nonce: u128) -> Option<Output> {
        let fence = self.fence()?;
        self.change_record(Some(fence), LeaseRecord { holder: None, fence: fence.next(nonce) })
    }

    /// Requests a change of the record, unless one is in flight.
    fn change_record(&mut self, expected: Option<Fence>, record: LeaseRecord) -> Option<Output> {
        if self.is_changing() {
            return None;
        }
        self.pending_change = Some(record);
        Some(Output::ChangeRecord { stream: self.stream.clone(), expected, record })
    }

    /// Begins a handover to another replica.
    pub(super) fn request_handover(&mut self, to: ReplicaId, until: BootTime) -> Option<Output> {
        let LeaseRole::Owner { fence } = self.role else { return None };
        if self.is_changing() {
            return None;
        }
        self.role = LeaseRole::HandingOver { fence, to, until };
        Some(Output::Send { to, note: PeerMessage::RequestHandover { stream: self.stream.clone() } })
    }

    /// A holder asks this replica to be its successor.
    pub(super) fn on_handover_requested(&mut self, holder: ReplicaId, until: BootTime) -> Option<Output> {
        if self.is_changing() {
            return None;
        }
        match self.role {
            LeaseRole::Idle => {
                self.role = LeaseRole::Preparing { holder, until, live: false };
                Some(Output::Prepare { stream: self.stream.clone() })
            }
            LeaseRole::Standby { live, .. } | LeaseRole::Preparing { live, .. } => {
                self.role = LeaseRole::Preparing { holder, until, live };
                live.then(|| self.ready(holder))
            }
            LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. } => None,
        }
    }

    /// The session of a standby or successor is live, or not live any more.
    pub(super) fn on_prepared(&mut self, is_live: bool) -> Option<Output> {
        match &mut self.role {
            LeaseRole::Standby { live, .. } => {
                *live = is_live;
                None
            }
            LeaseRole::Preparing { holder, live, .. } => {
                let holder = *holder;
                *live = is_live;
                is_live.then(|| self.ready(holder))
            }
            LeaseRole::Idle | LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. } => None,
        }
    }

    fn ready(&self, holder: ReplicaId) -> Output {
        Output::Send { to: holder, note: PeerMessage::Ready { stream: self.stream.clone() } }
    }

    /// The successor is live: moves the record to it.
    pub(super) fn hand_over(&mut self, successor: ReplicaId, nonce: u128) -> Option<Output> {
        match self.role {
            LeaseRole::HandingOver { fence, to, .. } if to == successor => {
                self.change_record(Some(fence), LeaseRecord { holder: Some(to), fence: fence.next(nonce) })
            }
            LeaseRole::Idle
            | LeaseRole::Standby { .. }
            | LeaseRole::Preparing { .. }
            | LeaseRole::Owner { .. }
            | LeaseRole::HandingOver { .. } => None,
        }
    }

    /// The record moved to this replica.
    pub(super) fn on_handed_over(&mut self, fence: Fence, is_reading: bool, now: BootTime) -> Option<Output> {
        self.is_newer_than_read = is_reading;
        self.apply_record(Some(LeaseRecord { holder: Some(self.me), fence }), now)
    }

    /// Ends the wait for a successor or a holder that is over, or whose replica is gone.
    pub(super) fn expire_wait(&mut self, members: &[Member], now: BootTime) {
        if self.handover_wait().is_none_or(|(other, until)| now < until && is_member(members, other)) {
            return;
        }
        match self.role {
            LeaseRole::Preparing { live, .. } => self.role = LeaseRole::Standby { since: now, live },
            LeaseRole::HandingOver { fence, .. } => self.role = LeaseRole::Owner { fence },
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Owner { .. } => (),
        }
    }

    /// Starts to follow the holder, or stops.
    pub(super) fn follow(&mut self, is_standby: bool, now: BootTime) -> Option<Output> {
        if self.is_changing() {
            return None;
        }
        match (self.role, is_standby) {
            (LeaseRole::Idle, true) => {
                self.role = LeaseRole::Standby { since: now, live: false };
                Some(Output::Follow { stream: self.stream.clone() })
            }
            (LeaseRole::Standby { .. }, false) => Some(self.release()),
            (LeaseRole::Idle, false) | (LeaseRole::Standby { .. }, true) => None,
            (LeaseRole::Preparing { .. } | LeaseRole::Owner { .. } | LeaseRole::HandingOver { .. }, _) => None,
        }
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        boot_time::rebase(self.last_read.iter_mut().map(|seen| &mut seen.at).chain(&mut self.vacant_since), by);
        match &mut self.role {
            LeaseRole::Standby { since: at, .. }
            | LeaseRole::Preparing { until: at, .. }
            | LeaseRole::HandingOver { until: at, .. } => boot_time::rebase([at], by),
            LeaseRole::Idle | LeaseRole::Owner { .. } => (),
        }
    }
}

fn is_member(members: &[Member], replica: ReplicaId) -> bool {
    members.iter().any(|member| member.replica == replica)
}
