//! One stream as this replica sees it: what the store's record says, what was asked of the store, and its own part.

use std::{mem, time::Duration};

use super::{Boot, Record};
use crate::model::{Fence, ReplicaId};

/// What is known and done about one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Seat {
    /// What the store's record is known to be; `None` before the first look.
    pub(super) seen: Option<Seen>,
    pub(super) role: Role,
    /// The record that was asked for by compare-and-set, not answered yet.
    pub(super) asked_for: Option<Record>,
    /// Something newer is known than what a look under way may bring.
    pub(super) outruns_look: bool,
    /// Since when nobody who lives has held it.
    pub(super) vacant_since: Option<Boot>,
}

/// A record, and when it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    /// None: the stream has no record.
    pub(super) record: Option<Record>,
    pub(super) at: Boot,
}

/// The part of this replica in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Role {
    #[default]
    Apart,
    /// A warm standby.
    Following { since: Boot, live: bool },
    /// Asked by its holder to become the successor.
    Preparing { holder: ReplicaId, until: Boot, live: bool },
    /// The holder.
    Owning { fence: Fence },
    /// The holder, who has asked another one to be the successor.
    Asking { fence: Fence, to: ReplicaId, until: Boot },
}

impl Seat {
    /// The fence that this replica believes in.
    pub(super) fn fence(&self) -> Option<Fence> {
        match self.role {
            Role::Owning { fence } | Role::Asking { fence, .. } => Some(fence),
            Role::Apart | Role::Following { .. } | Role::Preparing { .. } => None,
        }
    }

    /// The fence of the record as it is known, if there is a record.
    pub(super) fn expected(&self) -> Option<Fence> {
        self.seen?.record.map(|record| record.fence)
    }

    pub(super) fn holder(&self) -> Option<ReplicaId> {
        self.seen?.record?.holder
    }

    /// The record that follows the one known.
    pub(super) fn next_record(&self, holder: Option<ReplicaId>, nonce: u128) -> Record {
        Record { holder, fence: self.expected().unwrap_or(Fence::NONE).next(nonce) }
    }

    /// Whom this role waits for, and how long.
    pub(super) fn wait(&self) -> Option<(ReplicaId, Boot)> {
        match self.role {
            Role::Preparing { holder, until, .. } => Some((holder, until)),
            Role::Asking { to, until, .. } => Some((to, until)),
            Role::Apart | Role::Following { .. } | Role::Owning { .. } => None,
        }
    }

    /// Whether a look that has come in tells something about this stream. Asked once for each look.
    pub(super) fn heeds_look(&mut self) -> bool {
        let outruns = mem::take(&mut self.outruns_look);
        self.asked_for.is_none() && !outruns
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        super::rebase(self.seen.iter_mut().map(|seen| &mut seen.at).chain(&mut self.vacant_since), by);
        match &mut self.role {
            Role::Following { since: at, .. } | Role::Preparing { until: at, .. } | Role::Asking { until: at, .. } => {
                super::rebase([at], by);
            }
            Role::Apart | Role::Owning { .. } => (),
        }
    }
}
