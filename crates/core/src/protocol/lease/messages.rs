//! Inputs and outputs of the lease machine.

use std::collections::BTreeMap;

use super::boot_time::BootTime;
use crate::model::{Fence, ReplicaId, StreamName};

/// A live replica, as the store lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    pub replica: ReplicaId,
    /// The maximum number of its streams; 0 when it drains.
    pub limit: usize,
}

/// The holder of a stream and its fence. It is changed only by compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseRecord {
    /// None: the last holder released it.
    pub holder: Option<ReplicaId>,
    pub fence: Fence,
}

/// An input of the lease machine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The store has the membership. The members were read after that.
    Renewed { members: Vec<Member> },
    /// All records of the store.
    RecordsRead { records: BTreeMap<StreamName, LeaseRecord> },
    /// The result of [`Output::ChangeRecord`] to this fence.
    Changed { stream: StreamName, fence: Fence, outcome: ChangeOutcome },
    /// The store did not answer in time.
    RequestFailed(LeaseRequest),
    /// A heartbeat of a holder arrived.
    Heartbeat { from: ReplicaId },
    /// A message of another replica arrived.
    Received { from: ReplicaId, message: PeerMessage },
    /// The session of [`Output::Follow`] or [`Output::Prepare`] is live, or not live any more.
    Prepared { stream: StreamName, live: bool },
    /// The store refused an append: the fence is stale.
    Fenced { stream: StreamName, fence: Fence },
    /// Hand over all streams, then release the rest.
    Drain { until: BootTime },
}

/// The result of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeOutcome {
    Done,
    /// The record is not the one expected.
    Refused,
    /// The result is unknown: the change was made, or not, or will be made.
    Unknown,
}

/// A request whose failure changes nothing in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseRequest {
    Renew,
    ReadRecords,
}

/// A message between replicas. Each is a hint: a lost message only delays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerMessage {
    /// From the holder: become the successor.
    RequestHandover { stream: StreamName },
    /// To the holder: the session is live.
    Ready { stream: StreamName },
    /// To the successor: it is the holder now.
    HandedOver { stream: StreamName, fence: Fence },
}

/// An output of the lease machine. Each request to the store must be answered once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Renew the membership with this limit, then read the members.
    Renew {
        limit: usize,
    },
    /// Read all records.
    ReadRecords,
    /// Set the record if it has the expected fence (none: if there is no record).
    ChangeRecord {
        stream: StreamName,
        expected: Option<Fence>,
        record: LeaseRecord,
    },
    /// Publish a heartbeat to all replicas.
    SendHeartbeat,
    Send {
        to: ReplicaId,
        note: PeerMessage,
    },
    /// Be the warm standby: keep a session live if the platform allows two, and append nothing.
    Follow {
        stream: StreamName,
    },
    /// Become the successor: open a session and append nothing. [`Input::Prepared`] follows when it is live.
    Prepare {
        stream: StreamName,
    },
    /// This replica owns the stream: append under this fence.
    BecomeOwner {
        stream: StreamName,
        fence: Fence,
    },
    /// This replica does not own the stream: close its sessions.
    Release {
        stream: StreamName,
    },
    /// Append nothing, and keep sessions and buffers.
    StepDown,
    /// The leases are still valid: append again.
    Resume,
    /// Remove the membership. It is the last output.
    Leave,
}
