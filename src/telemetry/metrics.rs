//! Prometheus metrics: one function per event. Names, labels and registries are private.
//!
//! Labels are bounded: streams and accounts come from the configuration, the store limits the number of consumers, other
//! labels are fixed sets.

mod account;
mod consumer;
mod stream;

pub use account::AccountMetrics;
pub use consumer::{ConsumerMetrics, consumer_removed};
pub use stream::StreamMetrics;

use std::{sync::LazyLock, time::Duration};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder, histogram_opts, opts,
};

use crate::{
    model::StreamName,
    protocol::access::{AuthenticationFailure, CloseReason},
};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Reasons why a subscription ended. A page is not a subscription.
const CLOSE_REASONS: [&str; 5] = ["draining", "gone", "protocol", "store", "too_slow"];
const TRANSPORTS: [&str; 4] = ["websocket", "sse", "ndjson", "page"];
const STORE_ERRORS: [&str; 7] = ["full", "fenced", "damaged", "io", "read", "open", "refused"];

/// The metrics of a transport.
struct TransportMetrics {
    connected: IntGauge,
    deliveries: IntCounter,
}

struct Metrics {
    registry: Registry,
    streams: stream::StreamFamilies,
    accounts: account::AccountFamilies,
    consumers: consumer::ConsumerFamilies,
    transports: [TransportMetrics; TRANSPORTS.len()],
    closed: IntCounterVec,
    lag: IntGaugeVec,
    auth_failures: IntCounterVec,
    auth_flagged: IntGauge,
    store_append: Histogram,
    store_errors: IntCounterVec,
    log_lines_dropped: IntCounter,
    replica_members: IntGauge,
    replica_renewal_failures: IntCounter,
}

/// Histogram bounds in seconds, from a quick fsync to a stalled disk.
const LATENCY_BOUNDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 2.0, 8.0];

/// Histogram bounds per stream in seconds. Few, because there may be a thousand streams.
const STREAM_BOUNDS: [f64; 5] = [0.001, 0.008, 0.064, 0.512, 4.0];

impl Metrics {
    fn new() -> Self {
        let r = &Registry::new_custom(Some("trunkline".to_owned()), None).expect("the prefix is a valid name");
        let build = gauge_vec(r, "build_info", "Always 1; the labels identify the build", &["version", "commit"]);
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), option_env!("TRUNKLINE_COMMIT").unwrap_or("unknown")])
            .set(1);
        let subscribers = gauge_vec(r, "subscribers", "Connected clients", &["transport"]);
        let deliveries = counter_vec(r, "deliveries_total", "Events sent to clients", &["transport"]);
        Self {
            streams: stream::StreamFamilies::register(r),
            accounts: account::AccountFamilies::register(r),
            consumers: consumer::ConsumerFamilies::register(r),
            transports: TRANSPORTS.map(|transport| TransportMetrics {
                connected: subscribers.with_label_values(&[transport]),
                deliveries: deliveries.with_label_values(&[transport]),
            }),
            closed: counter_vec(r, "subscribers_closed_total", "Ended subscriptions by reason", &["reason"]),
            lag: gauge_vec(r, "subscribers_lag_events_max", "Lag of the slowest subscriber in entries", &["stream"]),
            auth_failures: counter_vec(r, "auth_failures_total", "Failed authentications of consumers", &["reason"]),
            auth_flagged: gauge(
                r,
                "auth_flagged_addresses",
                "Addresses with more than 50 failed authentications within a minute",
            ),
            store_append: histogram(
                r,
                "store_append_seconds",
                "Duration of one durable append or other write of the store",
            ),
            store_errors: counter_vec(r, "store_errors_total", "Store operations that failed, by reason", &["reason"]),
            log_lines_dropped: counter(
                r,
                "log_lines_dropped_total",
                "Log lines dropped because standard error was blocked or failed",
            ),
            replica_members: gauge(r, "replica_members", "Live replicas that this replica sees, including itself"),
            replica_renewal_failures: counter(
                r,
                "replica_renewal_failures_total",
                "Failed renewals of this replica's membership",
            ),
            registry: r.clone(),
        }
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect("metric names are valid");
    registry.register(Box::new(metric.clone())).expect("metric names are unique");
    metric
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
    let options = histogram_opts!(name, help, STREAM_BOUNDS.to_vec());
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

/// The metrics page in the Prometheus text format, with process metrics.
pub fn page() -> String {
    let dropped = &METRICS.log_lines_dropped;
    dropped.inc_by(super::logs::dropped_lines().saturating_sub(dropped.get()));
    let mut families = METRICS.registry.gather();
    families.extend(prometheus::gather());
    let mut page = Vec::new();
    TextEncoder::new().encode(&families, &mut page).expect("writing to memory does not fail");
    String::from_utf8(page).expect("the text format is UTF-8")
}

/// A connected client; counted until dropped. `transport` is one of `websocket`, `sse`, `ndjson`, `page`.
#[derive(Debug)]
pub struct SubscriberMetrics {
    /// Index of the transport.
    transport: usize,
    /// The counter of its close reason; none for a page.
    closed: Option<IntCounter>,
}

impl SubscriberMetrics {
    pub fn connected(transport: &'static str) -> Self {
        let index = TRANSPORTS.iter().position(|known| *known == transport).expect("one of the four transports");
        METRICS.transports[index].connected.inc();
        let closed = (transport != "page").then(|| METRICS.closed.with_label_values(&["gone"]));
        Self { transport: index, closed }
    }

    /// Counts sent events.
    pub fn delivered(&self, events: usize) {
        METRICS.transports[self.transport].deliveries.inc_by(events as u64);
    }

    /// Sets the close reason: one of `draining`, `protocol`, `store`, `too_slow`, or a [`CloseReason`]. The default is `gone`.
    pub fn set_close_reason(&mut self, reason: &'static str) {
        self.closed = Some(METRICS.closed.with_label_values(&[reason]));
    }
}

impl Drop for SubscriberMetrics {
    fn drop(&mut self) {
        METRICS.transports[self.transport].connected.dec();
        if let Some(closed) = &self.closed {
            closed.inc();
        }
    }
}

/// Sets the lag of the slowest reader of a stream.
pub fn subscribers_lag(stream: &StreamName, events: u64) {
    METRICS.lag.with_label_values(&[stream.as_str()]).set(i64::try_from(events).unwrap_or(i64::MAX));
}

/// The number of connected clients by transport.
pub fn subscribers() -> [(&'static str, i64); TRANSPORTS.len()] {
    std::array::from_fn(|index| (TRANSPORTS[index], METRICS.transports[index].connected.get()))
}

/// Records the duration of a durable store operation.
pub fn store_appended(took: Duration) {
    METRICS.store_append.observe(took.as_secs_f64());
}

/// Sets the number of live replicas, this one included.
pub fn replica_members(count: usize) {
    METRICS.replica_members.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Counts a failed renewal of this replica's membership.
pub fn replica_renewal_failed() {
    METRICS.replica_renewal_failures.inc();
}

/// Counts a failed store operation. The reason is one of `full`, `fenced`, `damaged`, `io`, `read`, `open`, `refused`.
pub fn store_failed(reason: &'static str) {
    METRICS.store_errors.with_label_values(&[reason]).inc();
}

/// Counts a failed authentication.
pub fn authentication_failed(reason: AuthenticationFailure) {
    METRICS.auth_failures.with_label_values(&[reason.as_str()]).inc();
}

/// Sets the number of addresses with too many failed authentications.
pub fn flagged_addresses(count: usize) {
    METRICS.auth_flagged.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Creates the series whose labels do not depend on the configuration.
pub fn register_series() {
    for reason in CLOSE_REASONS.into_iter().chain(CloseReason::ALL.iter().map(|reason| reason.as_str())) {
        METRICS.closed.with_label_values(&[reason]);
    }
    for reason in AuthenticationFailure::ALL {
        METRICS.auth_failures.with_label_values(&[reason.as_str()]);
    }
    for reason in STORE_ERRORS {
        METRICS.store_errors.with_label_values(&[reason]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum series per stream. With about 75 bytes per series, a page for 1,000 streams fits into a scrape of a second.
    const SERIES_MAX: usize = 80;

    #[test]
    fn a_stream_has_few_series() {
        let name: StreamName = "few-series".parse().unwrap();
        StreamMetrics::new(&name).set_state(crate::protocol::stream::StreamState::Live);
        subscribers_lag(&name, 1);
        let page = page();
        let series = page.lines().filter(|line| line.contains("stream=\"few-series\"")).count();
        assert!((40..=SERIES_MAX).contains(&series), "{series} series of one stream");
    }
}
