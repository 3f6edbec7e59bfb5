//! How a replica shares the streams with the others.

use std::{collections::BTreeSet, time::Duration};

use crate::model::{ReplicaId, StreamName};

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
