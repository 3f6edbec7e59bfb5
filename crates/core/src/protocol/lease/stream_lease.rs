//! One stream as this replica sees it: what the store's record says, what was asked of the store, and its own part.

use std::{mem, time::Duration};

use super::{BootTime, LeaseRecord};
use crate::model::{Fence, ReplicaId};

/// What is known and done about one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct StreamLease {
    /// What the store's record is known to be; `None` before the first look.
    pub(super) last_read: Option<RecordRead>,
    pub(super) role: LeaseRole,
    /// The record that was asked for by compare-and-set, not answered yet.
    pub(super) pending_change: Option<LeaseRecord>,
    /// Something newer is known than what a look under way may bring.
    pub(super) is_newer_than_read: bool,
    /// Since when nobody who lives has held it.
    pub(super) vacant_since: Option<BootTime>,
}

/// A record, and when it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RecordRead {
    /// None: the stream has no record.
    pub(super) record: Option<LeaseRecord>,
    pub(super) at: BootTime,
}

/// The part of this replica in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum LeaseRole {
    #[default]
    Idle,
    /// A warm standby.
    Standby { since: BootTime, live: bool },
    /// Asked by its holder to become the successor.
    Preparing { holder: ReplicaId, until: BootTime, live: bool },
    /// The holder.
    Owner { fence: Fence },
    /// The holder, who has asked another one to be the successor.
    HandingOver { fence: Fence, to: ReplicaId, until: BootTime },
}

impl StreamLease {
    /// The fence that this replica believes in.
    pub(super) fn fence(&self) -> Option<Fence> {
        match self.role {
            LeaseRole::Owner { fence } | LeaseRole::HandingOver { fence, .. } => Some(fence),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Preparing { .. } => None,
        }
    }

    /// The fence of the record as it is known, if there is a record.
    pub(super) fn expected(&self) -> Option<Fence> {
        self.last_read?.record.map(|record| record.fence)
    }

    pub(super) fn holder(&self) -> Option<ReplicaId> {
        self.last_read?.record?.holder
    }

    /// The record that follows the one known.
    pub(super) fn next_record(&self, holder: Option<ReplicaId>, nonce: u128) -> LeaseRecord {
        LeaseRecord { holder, fence: self.expected().unwrap_or(Fence::NONE).next(nonce) }
    }

    /// Whom this role waits for, and how long.
    pub(super) fn handover_wait(&self) -> Option<(ReplicaId, BootTime)> {
        match self.role {
            LeaseRole::Preparing { holder, until, .. } => Some((holder, until)),
            LeaseRole::HandingOver { to, until, .. } => Some((to, until)),
            LeaseRole::Idle | LeaseRole::Standby { .. } | LeaseRole::Owner { .. } => None,
        }
    }

    /// Whether a look that has come in tells something about this stream. Asked once for each look.
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
