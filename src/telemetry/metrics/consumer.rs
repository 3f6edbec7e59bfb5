//! The metrics of durable consumers. Their number is bounded by the store; the series of a deleted one are removed.

use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::{METRICS, counter_vec, float_vec, gauge_vec, histogram_vec};
use crate::model::{ConsumerName, StreamName};

const LABELS: [&str; 2] = ["consumer", "stream"];

/// The metrics of all consumers.
pub(super) struct ConsumerFamilies {
    lag_events: IntGaugeVec,
    lag_seconds: GaugeVec,
    delivered: IntCounterVec,
    latency: HistogramVec,
}

impl ConsumerFamilies {
    pub(super) fn register(r: &Registry) -> Self {
        Self {
            lag_events: gauge_vec(r, "consumer_lag_events", "Entries that the consumer has not acknowledged", &LABELS),
            lag_seconds: float_vec(
                r,
                "consumer_lag_seconds",
                "Age of the oldest entry held that the consumer has not acknowledged",
                &LABELS,
            ),
            delivered: counter_vec(r, "consumer_delivered_total", "Events handed over to the consumer", &LABELS),
            latency: histogram_vec(
                r,
                "consumer_delivery_latency_seconds",
                "Time from the receipt of a batch to its handover",
                &LABELS,
            ),
        }
    }
}

/// The metrics of one consumer in one stream.
#[derive(Debug, Clone)]
pub struct ConsumerMetrics {
    lag_events: IntGauge,
    lag_seconds: Gauge,
    delivered: IntCounter,
    latency: Histogram,
}

impl ConsumerMetrics {
    /// Creates the series, with the value 0.
    pub fn new(consumer: &ConsumerName, stream: &StreamName) -> Self {
        let (families, labels) = (&METRICS.consumers, [consumer.as_str(), stream.as_str()]);
        Self {
            lag_events: families.lag_events.with_label_values(&labels),
            lag_seconds: families.lag_seconds.with_label_values(&labels),
            delivered: families.delivered.with_label_values(&labels),
            latency: families.latency.with_label_values(&labels),
        }
    }

    /// Sets how far the consumer is behind.
    pub fn set_lag(&self, events: u64, age: Duration) {
        self.lag_events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.lag_seconds.set(age.as_secs_f64());
    }

    /// Counts events that are handed over, so long after their receipt.
    pub fn delivered(&self, events: usize, latency: Duration) {
        self.delivered.inc_by(events as u64);
        self.latency.observe(latency.as_secs_f64());
    }
}

/// Removes the series of a consumer in a stream.
pub fn consumer_removed(consumer: &ConsumerName, stream: &StreamName) {
    let (families, labels) = (&METRICS.consumers, [consumer.as_str(), stream.as_str()]);
    // An error means that there is no such series.
    drop(families.lag_events.remove_label_values(&labels));
    drop(families.lag_seconds.remove_label_values(&labels));
    drop(families.delivered.remove_label_values(&labels));
    drop(families.latency.remove_label_values(&labels));
}
