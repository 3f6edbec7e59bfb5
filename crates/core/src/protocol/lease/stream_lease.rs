//! The lease of one stream on this replica: the known record, the pending request, and the role.

use std::{mem, time::Duration};

use super::{BootTime, LeaseRecord};
use crate::model::{Fence, ReplicaId};

/// The state of one stream's lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct StreamLease {
    /// The known record; `None` before the first read.
    pub(super) last_read: Option<RecordRead>,
    pub(super) role: LeaseRole,
    /// The record of a compare-and-set in flight.
    pub(super) pending_change: Option<LeaseRecord>,
    /// The known record is newer than what a read in flight may return.
    pub(super) is_newer_than_read: bool,
    /// Since when no live replica holds the stream.
    pub(super) vacant_since: Option<BootTime>,
}

/// A record, and when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RecordRead {
    /// None: the stream has no record.
    pub(super) record: Option<LeaseRecord>,
    pub(super) at: BootTime,
}

/// The role of this replica for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum LeaseRole {
    #[default]
    Idle,
    /// A warm standby.
    Standby { since: BootTime, live: bool },
    /// The holder asked this replica to be the successor.
    Preparing { holder: ReplicaId, until: BootTime, live: bool },
    /// The holder.
    Owner { fence: Fence },
    /// The holder, during a handover to another replica.
    HandingOver { fence: Fence, to: ReplicaId, until: BootTime },
}

impl StreamLease {
    /// The fence of this replica, if it is the holder.
    pub(super) fn fence(&self) -> Option<Fence> {
        match self.role {
            LeaseRole::Owner { fence } | LeaseRole::HandingOver { fence, .. } => Some(fence),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Preparing { .. } => None,
        }
    }

    /// The fence of the known record, if there is one.
    pub(super) fn expected(&self) -> Option<Fence> {
        self.last_read?.record.map(|record| record.fence)
    }

    pub(super) fn holder(&self) -> Option<ReplicaId> {
        self.last_read?.record?.holder
    }

    /// The record after the known one.
    pub(super) fn next_record(&self, holder: Option<ReplicaId>, nonce: u128) -> LeaseRecord {
        LeaseRecord { holder, fence: self.expected().unwrap_or(Fence::NONE).next(nonce) }
    }

    /// The replica that this role waits for, and the deadline.
    pub(super) fn handover_wait(&self) -> Option<(ReplicaId, BootTime)> {
        match self.role {
            LeaseRole::Preparing { holder, until, .. } => Some((holder, until)),
            LeaseRole::HandingOver { to, until, .. } => Some((to, until)),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Owner { .. } => None,
        }
    }

    /// Whether a finished read is newer than the known record. Must be called once for each read.
    pub(super) fn accepts_read(&mut self) -> bool {
        let outruns = mem::take(&mut self.is_newer_than_read);
        self.pending_change.is_none() && !outruns
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        super::rebase(self.last_read.iter_mut().map(|seen| &mut seen.at).chain(&mut self.vacant_since), by);
        match &mut self.role {
            LeaseRole::Standby { since: at, .. }
            | LeaseRole::Preparing { until: at, .. }
            | LeaseRole::HandingOver { until: at, .. } => {
                super::rebase([at], by);
            }
            LeaseRole::Idle | LeaseRole::Owner { .. } => (),
        }
    }
}
