//! One function per thing worth counting. Callers know neither names, labels nor registries.
//!
//! Labels are bounded: streams and accounts come from the configuration, every other label is a closed set.

use std::{sync::LazyLock, time::Duration};

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder, histogram_opts, opts,
};

use crate::model::{AccountName, GapReason, StreamName};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

const ROTATION_TRIGGERS: [&str; 6] = ["token", "notice", "channel-end", "revoked", "operator", "drain"];
const ROTATION_OUTCOMES: [&str; 2] = ["completed", "failed"];
const NETWORK_CLASSES: [&str; 6] = ["network", "silence", "restart", "clean", "protocol", "refused"];
const SNAPSHOT_OUTCOMES: [&str; 2] = ["taken", "failed"];
const REFRESH_OUTCOMES: [&str; 4] = ["granted", "throttled", "unreachable", "rejected"];
const TRANSPORTS: [&str; 4] = ["websocket", "sse", "ndjson", "page"];
const STORE_ERRORS: [&str; 5] = ["full", "fenced", "damaged", "io", "read"];
const STATES: [&str; 7] = ["starting", "connecting", "live", "recovering", "backing-off", "paused", "failed"];

struct Metrics {
    registry: Registry,
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
    refreshes: IntCounterVec,
    token_remaining: GaugeVec,
    token_lifetime: GaugeVec,
    token_claimed: GaugeVec,
    subscribers: IntGaugeVec,
    store_append: Histogram,
    store_errors: IntCounterVec,
}

/// Histogram bounds in seconds, from a quick fsync to a stalled disk.
const LATENCY_BOUNDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 2.0, 8.0];

impl Metrics {
    fn new() -> Self {
        let r = &Registry::new_custom(Some("trunkline".to_owned()), None).expect("the prefix is a valid name");
        let build = gauge_vec(r, "build_info", "Always 1; the labels say which build runs", &["version", "commit"]);
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), option_env!("TRUNKLINE_COMMIT").unwrap_or("unknown")])
            .set(1);
        Self {
            events: counter_vec(
                r,
                "stream_events_total",
                "Entries appended to the log, gaps and snapshots included",
                &["stream"],
            ),
            bytes: counter_vec(r, "stream_bytes_total", "Bytes of event data appended to the log", &["stream"]),
            duplicates: counter_vec(
                r,
                "stream_duplicates_total",
                "Events dropped because the log held them already",
                &["stream"],
            ),
            undecoded: counter_vec(
                r,
                "stream_undecoded_total",
                "Frames that nobody could read, kept as they came",
                &["stream"],
            ),
            gaps: counter_vec(r, "stream_gaps_total", "Gap entries by reason", &["stream", "reason"]),
            lost: counter_vec(
                r,
                "stream_lost_events_total",
                "Events known to be missing, where the platform numbers them",
                &["stream"],
            ),
            state: gauge_vec(r, "stream_state", "1 for the state a stream is in", &["stream", "state"]),
            connected: gauge_vec(r, "stream_connected", "1 while a session is live", &["stream"]),
            buffer: gauge_vec(r, "stream_buffer_events", "Events heard but not yet durable", &["stream"]),
            shed: counter_vec(r, "stream_shed_total", "Events dropped at the limit of the buffer", &["stream", "lane"]),
            rotations: counter_vec(
                r,
                "stream_rotations_total",
                "Planned replacements of a session",
                &["stream", "trigger", "outcome"],
            ),
            rotation_silence: histogram_vec(
                r,
                "stream_rotation_silence_seconds",
                "From the old session's last event to the new one's first",
                &["stream"],
            ),
            reconnects: counter_vec(
                r,
                "stream_network_reconnects_total",
                "Sessions lost to trouble, never to a rotation",
                &["stream", "class"],
            ),
            breaker: gauge_vec(r, "stream_breaker_open", "1 while connecting is tried once each cap only", &["stream"]),
            snapshots: counter_vec(
                r,
                "stream_snapshots_total",
                "Snapshots over REST after a gap",
                &["stream", "outcome"],
            ),
            ingest_latency: histogram_vec(r, "stream_ingest_latency_seconds", "From receipt to durable", &["stream"]),
            lease_owner: gauge_vec(r, "stream_lease_owner", "1 on the replica that appends to the stream", &["stream"]),
            refreshes: counter_vec(r, "token_refreshes_total", "Grant requests", &["account", "outcome"]),
            token_remaining: float_vec(
                r,
                "token_remaining_seconds",
                "Life left of the token in use, by the monotonic clock",
                &["account"],
            ),
            token_lifetime: float_vec(
                r,
                "token_lifetime_seconds",
                "Life of the newest token by which refreshes are scheduled",
                &["account"],
            ),
            token_claimed: float_vec(
                r,
                "token_claimed_lifetime_seconds",
                "Life that the newest token's own claims state; 0 when it has none",
                &["account"],
            ),
            subscribers: gauge_vec(r, "subscribers", "Connected clients", &["transport"]),
            store_append: histogram(r, "store_append_seconds", "One durable step of the store"),
            store_errors: counter_vec(r, "store_errors_total", "Steps that the store refused or failed", &["reason"]),
            registry: r.clone(),
        }
    }
}

fn counter_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let metric = IntCounterVec::new(opts!(name, help), labels).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let metric = IntGaugeVec::new(opts!(name, help), labels).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

fn float_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    let metric = GaugeVec::new(opts!(name, help), labels).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

fn histogram_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let options = histogram_opts!(name, help, LATENCY_BOUNDS.to_vec());
    let metric = HistogramVec::new(options, labels).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = histogram_opts!(name, help, LATENCY_BOUNDS.to_vec());
    let metric = Histogram::with_opts(options).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

/// The whole page in Prometheus' text format, process metrics included.
pub fn page() -> String {
    let mut families = METRICS.registry.gather();
    families.extend(prometheus::gather());
    let mut page = Vec::new();
    TextEncoder::new().encode(&families, &mut page).expect("writing to memory does not fail");
    String::from_utf8(page).expect("the text format is UTF-8")
}

/// What is counted of one stream. Handles are resolved once.
#[derive(Debug, Clone)]
pub struct Stream {
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

impl Stream {
    /// All series of a stream, at 0 from the start.
    pub fn new(name: &StreamName) -> Self {
        let m = &*METRICS;
        let label = &[name.as_str()];
        for reason in GapReason::ALL {
            m.gaps.with_label_values(&[name.as_str(), reason.as_str()]);
        }
        for trigger in ROTATION_TRIGGERS {
            for outcome in ROTATION_OUTCOMES {
                m.rotations.with_label_values(&[name.as_str(), trigger, outcome]);
            }
        }
        for class in NETWORK_CLASSES {
            m.reconnects.with_label_values(&[name.as_str(), class]);
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

    /// Entries became durable, `latency` after the oldest of them was received.
    pub fn appended(&self, events: usize, bytes: usize, latency: Duration) {
        self.events.inc_by(events as u64);
        self.bytes.inc_by(bytes as u64);
        self.ingest_latency.observe(latency.as_secs_f64());
    }

    pub fn duplicates_dropped(&self, count: u64) {
        self.duplicates.inc_by(count);
    }

    pub fn frame_undecoded(&self) {
        self.undecoded.inc();
    }

    pub fn gap_seen(&self, reason: GapReason, lost: Option<u64>) {
        METRICS.gaps.with_label_values(&[self.name.as_str(), reason.as_str()]).inc();
        self.lost.inc_by(lost.unwrap_or(0));
    }

    /// One of `starting`, `connecting`, `live`, `recovering`, `backing-off`, `paused`, `failed`.
    pub fn entered(&self, state: &'static str) {
        for other in STATES {
            METRICS.state.with_label_values(&[self.name.as_str(), other]).set(i64::from(other == state));
        }
        self.lease_owner.set(1);
    }

    pub fn connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    pub fn buffered(&self, events: usize) {
        self.buffer.set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    pub fn shed(&self, events: u64) {
        self.shed.inc_by(events);
    }

    pub fn rotated(&self, trigger: &'static str, completed: bool) {
        let outcome = ROTATION_OUTCOMES[usize::from(!completed)];
        METRICS.rotations.with_label_values(&[self.name.as_str(), trigger, outcome]).inc();
    }

    pub fn rotation_was_silent_for(&self, silence: Duration) {
        self.rotation_silence.observe(silence.as_secs_f64());
    }

    pub fn session_lost(&self, class: &'static str) {
        METRICS.reconnects.with_label_values(&[self.name.as_str(), class]).inc();
    }

    pub fn breaker_open(&self, open: bool) {
        self.breaker.set(i64::from(open));
    }

    pub fn snapshot(&self, taken: bool) {
        let outcome = SNAPSHOT_OUTCOMES[usize::from(!taken)];
        METRICS.snapshots.with_label_values(&[self.name.as_str(), outcome]).inc();
    }
}

/// What is counted of one account.
#[derive(Debug, Clone)]
pub struct Account {
    name: AccountName,
    remaining: Gauge,
    lifetime: Gauge,
    claimed: Gauge,
}

impl Account {
    /// All series of an account, at 0 from the start.
    pub fn new(name: &AccountName) -> Self {
        let label = &[name.as_str()];
        for outcome in REFRESH_OUTCOMES {
            METRICS.refreshes.with_label_values(&[name.as_str(), outcome]);
        }
        Self {
            remaining: METRICS.token_remaining.with_label_values(label),
            lifetime: METRICS.token_lifetime.with_label_values(label),
            claimed: METRICS.token_claimed.with_label_values(label),
            name: name.clone(),
        }
    }

    /// One of `granted`, `throttled`, `unreachable`, `rejected`.
    pub fn refreshed(&self, outcome: &'static str) {
        METRICS.refreshes.with_label_values(&[self.name.as_str(), outcome]).inc();
    }

    /// The life by which refreshes are scheduled, and the one that the token's own claims state.
    pub fn lives(&self, lifetime: Duration, claimed: Option<Duration>) {
        self.lifetime.set(lifetime.as_secs_f64());
        self.claimed.set(claimed.unwrap_or_default().as_secs_f64());
    }

    pub fn remaining(&self, remaining: Duration) {
        self.remaining.set(remaining.as_secs_f64());
    }
}

/// A connected client; counted until dropped. `transport` is one of `websocket`, `sse`, `ndjson`, `page`.
#[derive(Debug)]
pub struct Subscriber(IntGauge);

impl Subscriber {
    pub fn connected(transport: &'static str) -> Self {
        let gauge = METRICS.subscribers.with_label_values(&[transport]);
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How many clients are connected, by transport.
pub fn subscribers() -> [(&'static str, i64); TRANSPORTS.len()] {
    TRANSPORTS.map(|transport| (transport, METRICS.subscribers.with_label_values(&[transport]).get()))
}

/// One durable step of the store took this long.
pub fn store_appended(took: Duration) {
    METRICS.store_append.observe(took.as_secs_f64());
}

/// One of `full`, `fenced`, `damaged`, `io`, `read`.
pub fn store_failed(reason: &'static str) {
    METRICS.store_errors.with_label_values(&[reason]).inc();
}

/// Makes the series exist whose labels are known without any configuration.
pub fn announce() {
    for transport in TRANSPORTS {
        METRICS.subscribers.with_label_values(&[transport]);
    }
    for reason in STORE_ERRORS {
        METRICS.store_errors.with_label_values(&[reason]);
    }
}
