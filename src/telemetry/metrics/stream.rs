//! The metrics of streams.

use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{METRICS, counter_vec, gauge_vec, histogram_vec};
use crate::{
    connector::FailureClass,
    model::{GapReason, StreamName},
    protocol::stream::{StreamState, Trigger},
};

const ROTATION_OUTCOMES: [&str; 2] = ["completed", "failed"];
const SNAPSHOT_OUTCOMES: [&str; 2] = ["taken", "failed"];
const TOPIC_STATES: [&str; 3] = ["subscribed", "refused", "unserved"];

/// The metrics of all streams.
pub(super) struct StreamFamilies {
    events: IntCounterVec,
    bytes: IntCounterVec,
    duplicates: IntCounterVec,
    undecoded: IntCounterVec,
    gaps: IntCounterVec,
    lost: IntCounterVec,
    state: IntGaugeVec,
    connected: IntGaugeVec,
    buffer: IntGaugeVec,
    shed: IntCounterVec,
    rotations: IntCounterVec,
    rotation_silence: HistogramVec,
    reconnects: IntCounterVec,
    breaker: IntGaugeVec,
    snapshots: IntCounterVec,
    ingest_latency: HistogramVec,
    lease_owner: IntGaugeVec,
    topics: IntGaugeVec,
}

impl StreamFamilies {
    pub(super) fn register(r: &Registry) -> Self {
        let counter = |name, help| counter_vec(r, name, help, &["stream"]);
        let counter_by = |name, help, labels: &[&str]| counter_vec(r, name, help, &[&["stream"], labels].concat());
        let gauge = |name, help| gauge_vec(r, name, help, &["stream"]);
        let gauge_by = |name, help, label| gauge_vec(r, name, help, &["stream", label]);
        let histogram = |name, help| histogram_vec(r, name, help, &["stream"]);
        Self {
            events: counter("stream_events_total", "Entries appended to the log, gaps and snapshots included"),
            bytes: counter("stream_bytes_total", "Bytes of event data appended to the log"),
            duplicates: counter("stream_duplicates_total", "Duplicate events dropped before the log"),
            undecoded: counter("stream_undecoded_total", "Frames that could not be decoded (stored verbatim)"),
            gaps: counter_by("stream_gaps_total", "Gap entries by reason", &["reason"]),
            lost: counter("stream_lost_events_total", "Events known to be missing, where the platform numbers them"),
            state: gauge_by("stream_state", "1 for the current state of the stream, 0 for the others", "state"),
            connected: gauge("stream_connected", "1 while a session is live"),
            buffer: gauge("stream_buffer_events", "Events received but not yet durable"),
            shed: counter_by("stream_shed_total", "Events dropped because the buffer was full", &["lane"]),
            rotations: counter_by(
                "stream_rotations_total",
                "Planned replacements of a session by trigger and outcome",
                &["trigger", "outcome"],
            ),
            rotation_silence: histogram(
                "stream_rotation_silence_seconds",
                "Time without a live session during a planned replacement",
            ),
            reconnects: counter_by(
                "stream_network_reconnects_total",
                "Unplanned disconnects by class (rotations excluded)",
                &["class"],
            ),
            breaker: gauge("stream_breaker_open", "1 while the circuit breaker is open"),
            snapshots: counter_by("stream_snapshots_total", "Snapshot fetches after a gap by outcome", &["outcome"]),
            ingest_latency: histogram(
                "stream_ingest_latency_seconds",
                "Time from receipt of an event until it is durable",
            ),
            topics: gauge_by(
                "stream_topics",
                "Configured topics by state: subscribed, refused by the platform, or unserved",
                "state",
            ),
            lease_owner: gauge("stream_lease_owner", "1 on the replica that appends to the stream"),
        }
    }
}

/// The metrics of one stream.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    name: StreamName,
    events: IntCounter,
    bytes: IntCounter,
    duplicates: IntCounter,
    undecoded: IntCounter,
    lost: IntCounter,
    connected: IntGauge,
    buffer: IntGauge,
    shed: IntCounter,
    rotation_silence: Histogram,
    breaker: IntGauge,
    ingest_latency: Histogram,
    lease_owner: IntGauge,
}

impl StreamMetrics {
    /// Creates all series of a stream with value 0.
    pub fn new(name: &StreamName) -> Self {
        let m = &METRICS.streams;
        let label = &[name.as_str()];
        for reason in GapReason::ALL {
            m.gaps.with_label_values(&[name.as_str(), reason.as_str()]);
        }
        for trigger in Trigger::ALL {
            for outcome in ROTATION_OUTCOMES {
                m.rotations.with_label_values(&[name.as_str(), trigger.as_str(), outcome]);
            }
        }
        for state in TOPIC_STATES {
            m.topics.with_label_values(&[name.as_str(), state]);
        }
        for class in FailureClass::ALL {
            m.reconnects.with_label_values(&[name.as_str(), class.as_str()]);
        }
        for outcome in SNAPSHOT_OUTCOMES {
            m.snapshots.with_label_values(&[name.as_str(), outcome]);
        }
        Self {
            events: m.events.with_label_values(label),
            bytes: m.bytes.with_label_values(label),
            duplicates: m.duplicates.with_label_values(label),
            undecoded: m.undecoded.with_label_values(label),
            lost: m.lost.with_label_values(label),
            connected: m.connected.with_label_values(label),
            buffer: m.buffer.with_label_values(label),
            shed: m.shed.with_label_values(&[name.as_str(), "normal"]),
            rotation_silence: m.rotation_silence.with_label_values(label),
            breaker: m.breaker.with_label_values(label),
            ingest_latency: m.ingest_latency.with_label_values(label),
            lease_owner: m.lease_owner.with_label_values(label),
            name: name.clone(),
        }
    }

    /// Counts durable entries. `latency` is the age of the oldest one.
    pub fn appended(&self, events: usize, bytes: usize, latency: Option<Duration>) {
        self.events.inc_by(events as u64);
        self.bytes.inc_by(bytes as u64);
        if let Some(latency) = latency {
            self.ingest_latency.observe(latency.as_secs_f64());
        }
    }

    pub fn duplicates_dropped(&self, count: u64) {
        self.duplicates.inc_by(count);
    }

    pub fn frame_undecoded(&self) {
        self.undecoded.inc();
    }

    pub fn gap_marked(&self, reason: GapReason, lost: Option<u64>) {
        METRICS.streams.gaps.with_label_values(&[self.name.as_str(), reason.as_str()]).inc();
        self.lost.inc_by(lost.unwrap_or(0));
    }

    /// Sets the number of subscribed, refused and unserved topics.
    pub fn set_topics(&self, counts: [usize; 3]) {
        for (state, count) in TOPIC_STATES.into_iter().zip(counts) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            METRICS.streams.topics.with_label_values(&[self.name.as_str(), state]).set(count);
        }
    }

    /// Sets the state.
    pub fn set_state(&self, state: StreamState) {
        for other in StreamState::ALL {
            METRICS
                .streams
                .state
                .with_label_values(&[self.name.as_str(), other.as_str()])
                .set(i64::from(*other == state));
        }
    }

    /// Sets whether this process owns the stream.
    pub fn set_owner(&self, owned: bool) {
        self.lease_owner.set(i64::from(owned));
    }

    /// Resets the state when another replica owns the stream.
    pub fn clear(&self) {
        for state in StreamState::ALL {
            METRICS.streams.state.with_label_values(&[self.name.as_str(), state.as_str()]).set(0);
        }
        self.connected.set(0);
        self.buffer.set(0);
        self.set_topics([0; 3]);
        self.set_owner(false);
    }

    pub fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    pub fn set_buffered(&self, events: usize) {
        self.buffer.set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    pub fn shed(&self, events: u64) {
        self.shed.inc_by(events);
    }

    pub fn rotated(&self, trigger: Trigger, completed: bool) {
        let outcome = ROTATION_OUTCOMES[usize::from(!completed)];
        METRICS.streams.rotations.with_label_values(&[self.name.as_str(), trigger.as_str(), outcome]).inc();
    }

    pub fn observe_rotation_silence(&self, silence: Duration) {
        self.rotation_silence.observe(silence.as_secs_f64());
    }

    pub fn session_lost(&self, class: FailureClass) {
        METRICS.streams.reconnects.with_label_values(&[self.name.as_str(), class.as_str()]).inc();
    }

    pub fn set_breaker_open(&self, open: bool) {
        self.breaker.set(i64::from(open));
    }

    pub fn snapshot(&self, taken: bool) {
        let outcome = SNAPSHOT_OUTCOMES[usize::from(!taken)];
        METRICS.streams.snapshots.with_label_values(&[self.name.as_str(), outcome]).inc();
    }
}
