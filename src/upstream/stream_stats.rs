//! Counters, state and errors of one stream, as `status` shows them.

use std::{collections::BTreeMap, time::Instant};

use super::claim_failures::ClaimFailures;
use crate::{
    connector::{RefusedTopic, TopicState},
    model::{Position, Timestamp},
    protocol::stream::{StreamState, TopicCoverage},
};

/// Maximum number of refused topics in logs and status.
pub(super) const REFUSED_SHOWN_MAX: usize = 20;
/// Counters, state and errors of one stream.
#[derive(Debug, Clone)]
pub(super) struct StreamStats {
    pub(super) state: StreamState,
    pub(super) position: Option<Position>,
    pub(super) events: u64,
    pub(super) gaps: u64,
    pub(super) duplicates: u64,
    pub(super) rotations: u64,
    pub(super) reconnects: u64,
    pub(super) buffered: usize,
    pub(super) last_received_at: Option<Instant>,
    pub(super) snapshot_pending: bool,
    pub(super) topics: TopicCoverage,
    /// Current errors, each with the time of its detection.
    pub(super) errors: BTreeMap<StreamErrorKind, (Timestamp, String)>,
    pub(super) store_unavailable: bool,
    /// Why the log cannot be used.
    pub(super) log_error: Option<String>,
    pub(super) claim_failures: ClaimFailures,
    /// The state of the stream machine; shown unless the log is unusable.
    pub(super) machine_state: StreamState,
    pub(super) log_throttle: LogThrottle,
}

/// The kind of an error. Each kind is cleared separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StreamErrorKind {
    Session,
    Rotation,
    Store,
    Log,
    Topics,
    Snapshot,
}

/// Time of the last log line of each frequent event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LogThrottle {
    pub(super) undecoded: Option<Instant>,
    pub(super) shed: Option<Instant>,
    pub(super) lost: Option<Instant>,
}

impl StreamStats {
    pub(super) fn starting() -> Self {
        Self {
            state: StreamState::Starting,
            position: None,
            events: 0,
            gaps: 0,
            duplicates: 0,
            rotations: 0,
            reconnects: 0,
            buffered: 0,
            last_received_at: None,
            snapshot_pending: false,
            topics: TopicCoverage { subscribed: 0, missing: Vec::new() },
            errors: BTreeMap::new(),
            store_unavailable: false,
            log_error: None,
            claim_failures: ClaimFailures::default(),
            machine_state: StreamState::Starting,
            log_throttle: LogThrottle::default(),
        }
    }

    /// The topics that are not received, each with its reason.
    pub(super) fn refused_topic_texts(&self) -> Vec<String> {
        let shown = self.topics.missing.iter().take(REFUSED_SHOWN_MAX);
        shown.map(|RefusedTopic { topic, reason, .. }| format!("{topic}: {reason}")).collect()
    }

    /// The number of subscribed, refused and unserved topics.
    pub(super) fn topic_counts(&self) -> [usize; 3] {
        let refused = self.topics.missing.iter().filter(|topic| topic.state == TopicState::Refused).count();
        [self.topics.subscribed, refused, self.topics.missing.len() - refused]
    }

    /// The newest current error and its time.
    pub(super) fn last_error(&self) -> Option<(Timestamp, String)> {
        self.errors.values().max_by_key(|(at, _)| *at).cloned()
    }
}
