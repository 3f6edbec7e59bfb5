//! What a replica's machine is told, what it wants done, and the words for both.

use std::collections::BTreeMap;

use super::BootTime;
use crate::model::{Fence, ReplicaId, StreamName};

/// A replica that lives, as the store tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    pub replica: ReplicaId,
    /// How many streams it takes at most; 0 when it drains.
    pub limit: usize,
}

/// Who has a stream, and under which fence. Changed only by compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseRecord {
    /// None: its last holder gave it up.
    pub holder: Option<ReplicaId>,
    pub fence: Fence,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// The store has the membership, and these, read after that.
    Renewed { members: Vec<Member> },
    /// All records there are.
    RecordsRead { records: BTreeMap<StreamName, LeaseRecord> },
    /// What became of [`Output::Change`] to this fence.
    Changed { stream: StreamName, fence: Fence, outcome: ChangeOutcome },
    /// The store was not reached, or did not answer in time.
    RequestFailed(LeaseRequest),
    /// The holder lives.
    Heartbeat { from: ReplicaId },
    /// Another replica says something.
    Received { from: ReplicaId, message: PeerMessage },
    /// The session that [`Output::Follow`] or [`Output::Prepare`] asked for is live, or is no longer.
    Prepared { stream: StreamName, live: bool },
    /// The store refused an append: the fence is stale.
    Fenced { stream: StreamName, fence: Fence },
    /// Hand everything over, and give up then what is left.
    Drain { until: BootTime },
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeOutcome {
    Done,
    /// The record is not the one expected.
    Refused,
    /// Nobody knows: it was done, or not, or will be.
    Unknown,
}

/// What the store can fail to answer without leaving a doubt behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseRequest {
    Renew,
    ReadRecords,
}

/// What replicas say to one another. A hint each: one that is lost costs time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerMessage {
    /// From the holder: become the successor.
    RequestHandover { stream: StreamName },
    /// To the holder: the session is live.
    Ready { stream: StreamName },
    /// To the successor: the record is yours.
    HandedOver { stream: StreamName, fence: Fence },
}

/// What is to be done. Each request to the store must be answered once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Set the membership for its whole life, with this limit; then read who is a member.
    Renew {
        limit: usize,
    },
    /// Read all records.
    ReadRecords,
    /// Set the record if its fence is the one expected (none: if there is no record).
    ChangeRecord {
        stream: StreamName,
        expected: Option<Fence>,
        record: LeaseRecord,
    },
    /// Tell everybody that this replica lives.
    Beat,
    Send {
        to: ReplicaId,
        note: PeerMessage,
    },
    /// Be the warm standby: hold a session where the platform allows two, append nothing.
    Follow {
        stream: StreamName,
    },
    /// Become the successor: open a session, append nothing, and say when it is live.
    Prepare {
        stream: StreamName,
    },
    /// The stream is this replica's: append under this fence.
    BecomeOwner {
        stream: StreamName,
        fence: Fence,
    },
    /// It is not, or not any more: end what there is of it.
    Release {
        stream: StreamName,
    },
    /// Append nothing: hold sockets and buffers.
    StepDown,
    /// What is owned is still owned: go on.
    Resume,
    /// Remove the membership. Nothing follows.
    Leave,
}
