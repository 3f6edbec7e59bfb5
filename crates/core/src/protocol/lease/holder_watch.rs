//! The heartbeats of other replicas, and when a standby takes over.

use std::{collections::BTreeMap, time::Duration};

use super::{
    boot_time::{self, BootTime},
    membership::Membership,
    messages::Member,
};
use crate::model::ReplicaId;

/// When the last heartbeat of each member arrived. The members limit the map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HolderWatch {
    timeout: Duration,
    last_heartbeats: BTreeMap<ReplicaId, BootTime>,
}

/// The health of a holder, as its standby sees it.
#[derive(Debug, Clone, Copy)]
pub(super) enum HolderHealth {
    /// From this time on the holder is suspect, if this replica can still reach the store.
    Suspect(BootTime),
    /// From this time on the holder counts as dead. The store answered this replica in the meantime.
    Dead(BootTime),
}

impl HolderHealth {
    pub(super) fn at(self) -> BootTime {
        match self {
            Self::Suspect(at) | Self::Dead(at) => at,
        }
    }
}

impl HolderWatch {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, last_heartbeats: BTreeMap::new() }
    }

    pub(super) fn on_heartbeat(&mut self, from: ReplicaId, now: BootTime) {
        self.last_heartbeats.insert(from, now);
    }

    pub(super) fn retain(&mut self, members: &[Member]) {
        self.last_heartbeats.retain(|replica, _| members.iter().any(|member| member.replica == *replica));
    }

    /// The health of a holder that is followed since this time, and when to act on it. None while this replica's
    /// membership is not valid, and while a renewal is in flight that shows whether the store can be reached.
    pub(super) fn health(&self, holder: ReplicaId, since: BootTime, membership: &Membership) -> Option<HolderHealth> {
        let heartbeat = self.last_heartbeats.get(&holder).copied().unwrap_or(since);
        let last_sign = heartbeat.max(since).max(membership.valid_since()?);
        let suspect_at = last_sign + self.timeout / 2;
        if membership.confirmed_at() >= Some(suspect_at) {
            return Some(HolderHealth::Dead(last_sign + self.timeout));
        }
        (membership.sent_at() < Some(suspect_at)).then_some(HolderHealth::Suspect(suspect_at))
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        boot_time::rebase(self.last_heartbeats.values_mut(), by);
    }
}
