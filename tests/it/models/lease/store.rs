//! The store of the model: memberships that expire, records with compare-and-set, logs that compare the fence.

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{BootTime, ChangeOutcome, LeaseRecord, Member},
};

/// The content of the store. A failover rolls it back as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct LeaseStore {
    members: BTreeMap<ReplicaId, LeaseMembership>,
    pub(super) records: BTreeMap<StreamName, LeaseRecord>,
    pub(super) logs: BTreeMap<StreamName, LeaseLog>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LeaseMembership {
    limit: usize,
    ends_at: BootTime,
}

/// A stream's log. Its position follows from its entries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct LeaseLog {
    pub(super) epoch: u8,
    pub(super) entries: Vec<LeaseLogEntry>,
    pub(super) position: usize,
}

/// An entry: its writer and its fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LeaseLogEntry {
    pub(super) by: ReplicaId,
    pub(super) fence: Fence,
}

/// An append in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PendingAppend {
    pub(super) entry: LeaseLogEntry,
    pub(super) epoch: u8,
    pub(super) offset: usize,
}

/// The result of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum AppendOutcome {
    Stored,
    Fenced,
    /// The append does not follow the newest entry of this epoch.
    Displaced,
}

impl LeaseStore {
    pub(super) fn renew(&mut self, replica: ReplicaId, limit: usize, ends_at: BootTime) {
        self.members.insert(replica, LeaseMembership { limit, ends_at });
    }

    pub(super) fn remove(&mut self, replica: ReplicaId) {
        self.members.remove(&replica);
    }

    pub(super) fn members(&self) -> Vec<Member> {
        self.members.iter().map(|(replica, found)| Member { replica: *replica, limit: found.limit }).collect()
    }

    pub(super) fn has_member(&self, replica: ReplicaId) -> bool {
        self.members.contains_key(&replica)
    }

    pub(super) fn change(
        &mut self,
        stream: &StreamName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> ChangeOutcome {
        if self.records.get(stream).map(|record| record.fence) != expected {
            return ChangeOutcome::Refused;
        }
        self.records.insert(stream.clone(), record);
        ChangeOutcome::Done
    }

    pub(super) fn append(&mut self, stream: &StreamName, append: PendingAppend) -> AppendOutcome {
        if self.records.get(stream).map(|record| record.fence) != Some(append.entry.fence) {
            return AppendOutcome::Fenced;
        }
        let log = self.logs.entry(stream.clone()).or_default();
        if append.epoch != log.epoch || append.offset != log.entries.len() + 1 {
            return AppendOutcome::Displaced;
        }
        log.entries.push(append.entry);
        log.position = append.offset;
        AppendOutcome::Stored
    }

    /// The state that a failover may restore: everything except memberships, which are renewed often.
    pub(super) fn memory(&self) -> Self {
        Self { members: BTreeMap::new(), ..self.clone() }
    }

    /// The state after a failover to `past`: each log continues in a new epoch.
    pub(super) fn rolled_back_to(&self, past: Self) -> Self {
        let mut next = Self { members: self.members.clone(), ..past };
        for (stream, log) in &self.logs {
            next.logs.entry(stream.clone()).or_default().epoch = log.epoch + 1;
        }
        next
    }

    /// Advances time, by moving all stored times back.
    pub(super) fn pass(&mut self, now: BootTime, by: Duration) {
        self.members.retain(|_, membership| membership.ends_at > now);
        self.members.values_mut().for_each(|membership| membership.ends_at -= by);
    }
}
