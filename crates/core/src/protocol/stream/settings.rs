//! How a stream is run.

use std::time::Duration;

use crate::{
    connector::Connector,
    model::{FeedId, OverflowPolicy, Rotation},
    protocol::{backoff, session::Timeouts},
};

/// An overlap of two sessions ends after this time, even if the old session has not answered its probe.
pub(super) const OVERLAP_MAX: Duration = Duration::from_secs(5);

/// The settings of one stream.
#[derive(Debug, Clone)]
pub struct Settings {
    pub connector: Connector,
    /// The feed that the connector reads. A position of another feed is not used.
    pub feed: FeedId,
    pub rotation: Rotation,
    /// A planned rotation begins after a random delay between half of this time and all of it.
    pub rotation_jitter: Duration,
    /// How long the platform keeps events for a resume.
    pub retention: Duration,
    /// The maximum number of events that wait for the log.
    pub buffer: usize,
    /// The maximum size in bytes of the events that wait for the log. One event may exceed it.
    pub buffer_bytes: usize,
    /// The maximum number of events in one append.
    pub append_max: usize,
    pub overflow: OverflowPolicy,
    pub timeouts: Timeouts,
    pub backoff: backoff::Settings,
}
