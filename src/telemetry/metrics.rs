//! One function per thing worth counting. Callers know neither names, labels nor registries.
//!
//! Labels are bounded: streams and accounts come from the configuration, every other label is a closed set.

mod account;
mod stream;

pub use account::Account;
pub use stream::Stream;

use std::{sync::LazyLock, time::Duration};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
    histogram_opts, opts,
};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

const TRANSPORTS: [&str; 4] = ["websocket", "sse", "ndjson", "page"];
const STORE_ERRORS: [&str; 5] = ["full", "fenced", "damaged", "io", "read"];

struct Metrics {
    registry: Registry,
    streams: stream::Families,
    accounts: account::Families,
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
            streams: stream::Families::register(r),
            accounts: account::Families::register(r),
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
