//! The observable side of a stream: counters, state, log lines and metrics.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, error, info, warn};

use super::{
    claim_failures::ClaimFailures,
    stream_stats::{LogThrottle, REFUSED_SHOWN_MAX, StreamErrorKind, StreamStats},
};
use crate::{
    clock,
    connector::{Connector, Failure, RefusedTopic},
    model::{Position, StreamName},
    protocol::stream::{OverflowPolicy, Settings, Stream, StreamReport, StreamState, TopicCoverage},
    telemetry::metrics,
};

/// Minimum time between two log lines of the same frequent event.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Statistics of one stream. The stream task writes, `status` reads.
#[derive(Debug)]
pub(super) struct StreamReporter {
    metrics: metrics::StreamMetrics,
    connector: Connector,
    overflow: OverflowPolicy,
    stats: Mutex<StreamStats>,
}

impl StreamReporter {
    pub(super) fn new(stream: &StreamName, rules: &Settings) -> Self {
        let metrics = metrics::StreamMetrics::new(stream);
        metrics.set_state(StreamState::Starting);
        Self {
            metrics,
            connector: rules.connector.clone(),
            overflow: rules.overflow,
            stats: Mutex::new(StreamStats::starting()),
        }
    }

    /// A copy of the current statistics.
    pub(super) fn stats(&self) -> StreamStats {
        self.with(|stats| stats.clone())
    }

    fn with<T>(&self, change: impl FnOnce(&mut StreamStats) -> T) -> T {
        change(&mut self.stats.lock())
    }

    /// Clears log errors when another replica owns the log; the owner reports them.
    pub(super) fn clear_log_error(&self) {
        self.clear_error(StreamErrorKind::Log);
        self.with(|stats| {
            stats.claim_failures = ClaimFailures::default();
            if stats.log_error.take().is_some() {
                stats.state = stats.machine_state;
            }
        });
    }

    /// Resets state and metrics when another replica owns the stream.
    pub(super) fn reset(&self) {
        self.clear_log_error();
        self.metrics.clear();
        self.with(|stats| {
            stats.state = StreamState::Starting;
            stats.machine_state = StreamState::Starting;
            stats.position = None;
            stats.buffered = 0;
            stats.last_received_at = None;
            stats.snapshot_pending = false;
            stats.topics = TopicCoverage { subscribed: 0, missing: Vec::new() };
            stats.errors.clear();
        });
    }

    /// Sets whether this process owns the log.
    pub(super) fn set_owner(&self, owned: bool) {
        self.metrics.set_owner(owned);
    }

    /// Copies buffer length, position and receive time from the machine.
    pub(super) fn update(&self, machine: &Stream) {
        let buffered = machine.buffered();
        self.metrics.set_buffered(buffered);
        let snapshot_pending = machine.snapshot_pending();
        if !snapshot_pending {
            self.clear_error(StreamErrorKind::Snapshot);
        }
        self.with(|stats| {
            stats.position = machine.position();
            stats.buffered = buffered;
            stats.last_received_at = machine.last_received_at();
            stats.snapshot_pending = snapshot_pending;
        });
    }

    /// Counts durable entries. `latency` is the age of the oldest one; none if all were created by the relay.
    pub(super) fn appended(&self, events: usize, bytes: usize, latency: Option<Duration>) {
        self.metrics.appended(events, bytes, latency);
        self.with(|stats| stats.events += events as u64);
    }

    /// Records that the store rejects appends for now.
    pub(super) fn store_unavailable(&self, why: &str) {
        let is_new = self.with(|stats| !std::mem::replace(&mut stats.store_unavailable, true));
        if is_new {
            let when_full = when_full(self.overflow);
            error!(%why, when_full, "store unavailable; events wait in the buffer");
        }
        self.set_error(StreamErrorKind::Store, format!("store unavailable: {why}"));
    }

    /// Records a successful append.
    pub(super) fn append_succeeded(&self) {
        let (had_no_room, was_refused) = self.with(|stats| {
            stats.claim_failures.appended();
            stats.errors.remove(&StreamErrorKind::Store);
            (std::mem::take(&mut stats.store_unavailable), stats.log_error.is_some())
        });
        if had_no_room {
            info!("store available again");
        }
        if was_refused {
            self.log_usable();
        }
    }

    /// Records that the store rejected an append because its copy of the log is unusable.
    pub(super) fn append_refused(&self, why: &str) {
        self.with(|stats| stats.claim_failures.refused());
        self.log_unusable(why);
    }

    /// Records that the log changed outside this process. The first time is not reported as a failure.
    pub(super) fn log_moved(&self, why: &str) {
        if self.with(|stats| stats.claim_failures.moved()) {
            self.log_unusable(why);
        }
    }

    /// Delay before the next claim of the log.
    pub(super) fn claim_delay(&self) -> Option<Duration> {
        self.with(|stats| stats.claim_failures.delay(fastrand::f64()))
    }

    /// Why the log is unusable; none if it is usable.
    pub(super) fn log_error(&self) -> Option<String> {
        self.with(|stats| stats.log_error.clone())
    }

    /// Records that the stored log is unusable until an operator repairs it.
    pub(super) fn log_unusable(&self, why: &str) {
        let text = format!("log unusable: {why}");
        let is_new = self.with(|stats| {
            let is_new = stats.log_error.as_deref() != Some(why);
            stats.log_error = Some(why.to_owned());
            stats.state = StreamState::Failed;
            stats.machine_state = StreamState::Starting;
            is_new
        });
        self.set_error(StreamErrorKind::Log, text);
        self.metrics.set_state(StreamState::Failed);
        if is_new {
            error!(
                reason = why,
                state = StreamState::Failed.as_str(),
                "log unusable; fix the cause, the stream retries"
            );
        }
    }

    /// Records a successful claim. After a rejected append, only a successful append shows that the log is usable.
    pub(super) fn log_claimed(&self) {
        if !self.with(|stats| stats.claim_failures.needs_append()) {
            self.log_usable();
        }
    }

    fn log_usable(&self) {
        self.clear_error(StreamErrorKind::Log);
        let machine = self.with(|stats| {
            stats.log_error.take()?;
            stats.state = stats.machine_state;
            Some(stats.machine_state)
        });
        if let Some(machine) = machine {
            self.metrics.set_state(machine);
            info!(state = machine.as_str(), "log usable again");
        }
    }

    /// Counts and logs a report of the machine.
    pub(super) fn report(&self, report: StreamReport) {
        match report {
            StreamReport::State(state) => self.entered(state),
            StreamReport::Connected(connected) => self.metrics.set_connected(connected),
            StreamReport::FeedChanged => {
                warn!(
                    "the log was written from another feed (connector or URL); stored position ignored, gap recorded"
                );
            }
            StreamReport::Resuming(position) => log_connecting(position.as_ref()),
            StreamReport::Gap { reason, lost } => {
                self.metrics.gap_marked(reason, lost);
                self.with(|stats| stats.gaps += 1);
                warn!(reason = reason.as_str(), lost, "gap recorded");
            }
            StreamReport::Duplicates(count) => {
                self.metrics.duplicates_dropped(count);
                self.with(|stats| stats.duplicates += count);
            }
            StreamReport::Undecoded { bytes } => self.undecoded(bytes),
            StreamReport::Shed(count) => self.shed(count),
            StreamReport::RotationStarted(trigger) => debug!(trigger = trigger.as_str(), "rotation started"),
            StreamReport::RotationFailed { trigger, failure } => {
                self.metrics.rotated(trigger, false);
                self.set_error(StreamErrorKind::Rotation, failure.to_string());
                warn!(trigger = trigger.as_str(), error = %failure, "rotation failed; the old session stays in use");
            }
            StreamReport::Rotated { trigger, silence } => {
                self.metrics.rotated(trigger, true);
                self.metrics.observe_rotation_silence(silence);
                self.clear_error(StreamErrorKind::Rotation);
                self.with(|stats| stats.rotations += 1);
                info!(trigger = trigger.as_str(), silence_ms = silence.as_millis(), "rotation completed");
            }
            StreamReport::SessionLost { failure, retry_in } => self.lost(&failure, retry_in),
            StreamReport::ActionRequired { failure, retry_in } => {
                self.metrics.session_lost(self.connector.failure_class(&failure));
                self.set_error(StreamErrorKind::Session, failure.to_string());
                let retry_ms = retry_in.as_millis();
                error!(error = %failure, retry_ms, "platform rejects this stream; check its configuration and permissions");
            }
            StreamReport::Breaker(open) => self.breaker(open),
            StreamReport::Snapshot(fetched) => self.snapshot(fetched),
            StreamReport::TopicCoverage(topics) => self.topics(&topics),
        }
    }

    fn entered(&self, state: StreamState) {
        let is_shown = self.with(|stats| {
            stats.machine_state = state;
            let is_shown = stats.log_error.is_none();
            if is_shown {
                stats.state = state;
            }
            is_shown
        });
        if matches!(state, StreamState::Live | StreamState::Degraded | StreamState::Recovering) {
            self.clear_error(StreamErrorKind::Session);
        }
        if is_shown {
            self.metrics.set_state(state);
            info!(state = state.as_str(), "stream state changed");
        }
    }

    fn snapshot(&self, fetched: Result<(), String>) {
        self.metrics.snapshot(fetched.is_ok());
        if let Err(why) = fetched {
            warn!(error = %why, "snapshot fetch failed; will retry while the stream is live");
            self.set_error(StreamErrorKind::Snapshot, format!("snapshot fetch failed: {why}"));
        }
    }

    fn undecoded(&self, bytes: usize) {
        self.metrics.frame_undecoded();
        if self.should_log(|throttle| &mut throttle.undecoded) {
            warn!(bytes, "frame not decoded; stored verbatim");
        }
    }

    fn shed(&self, count: u64) {
        self.metrics.shed(count);
        if self.should_log(|throttle| &mut throttle.shed) {
            warn!(count, "buffer full; oldest events dropped, gap recorded");
        }
    }

    fn lost(&self, failure: &Failure, retry_in: Option<Duration>) {
        let class = self.connector.failure_class(failure);
        self.metrics.session_lost(class);
        self.with(|stats| stats.reconnects += 1);
        self.set_error(StreamErrorKind::Session, failure.to_string());
        self.clear_error(StreamErrorKind::Rotation);
        if self.should_log(|throttle| &mut throttle.lost) {
            let retry_ms = retry_in.map(|delay| delay.as_millis());
            info!(error = %failure, class = class.as_str(), retry_ms, "connection lost");
        }
    }

    fn breaker(&self, open: bool) {
        self.metrics.set_breaker_open(open);
        if open {
            error!("circuit breaker open; one connection attempt per backoff.cap");
        } else {
            info!("circuit breaker closed");
        }
    }

    fn topics(&self, topics: &TopicCoverage) {
        let is_new = self.with(|stats| stats.topics.missing != topics.missing);
        let counts = self.with(|stats| {
            stats.topics = topics.clone();
            stats.topic_counts()
        });
        self.metrics.set_topics(counts);
        if is_new {
            for RefusedTopic { topic, reason, .. } in topics.missing.iter().take(REFUSED_SHOWN_MAX) {
                warn!(%topic, %reason, "topic not received; other topics are not affected");
            }
            let [subscribed, refused, unserved] = counts;
            match degradation(topics) {
                Some(_) => warn!(subscribed, refused, unserved, "some configured topics are not received"),
                None => info!(subscribed, "all configured topics are received again"),
            }
        }
        match degradation(topics) {
            Some(why) => self.set_error(StreamErrorKind::Topics, why),
            None => self.clear_error(StreamErrorKind::Topics),
        }
    }

    /// Records an error. The time of an unchanged topic error is kept.
    fn set_error(&self, what: StreamErrorKind, why: String) {
        let now = clock::wall();
        self.with(|stats| {
            let known = stats.errors.get(&what).filter(|(_, known)| *known == why).map(|(at, _)| *at);
            let at = if what == StreamErrorKind::Topics { known.unwrap_or(now) } else { now };
            stats.errors.insert(what, (at, why));
        });
    }

    fn clear_error(&self, what: StreamErrorKind) {
        self.with(|stats| stats.errors.remove(&what));
    }

    fn should_log(&self, kind: impl FnOnce(&mut LogThrottle) -> &mut Option<Instant>) -> bool {
        let now = clock::now();
        self.with(|stats| {
            let last_logged = kind(&mut stats.log_throttle);
            let due = last_logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL);
            if due {
                *last_logged = Some(now);
            }
            due
        })
    }
}

fn log_connecting(position: Option<&Position>) {
    match position {
        None => info!("connecting"),
        Some(Position::Numbered(number)) => info!(position = number.0, "connecting"),
        Some(Position::Opaque(text)) => info!(position = text.as_str(), "connecting"),
    }
}

/// The effect of a full buffer while the store is unavailable.
fn when_full(overflow: OverflowPolicy) -> &'static str {
    match overflow {
        OverflowPolicy::Backpressure => "reads from the platform pause",
        OverflowPolicy::DropOldest => "oldest events are dropped and a gap is recorded",
    }
}

/// Why a stream is degraded.
fn degradation(topics: &TopicCoverage) -> Option<String> {
    let first = topics.missing.first()?;
    let RefusedTopic { topic, reason, .. } = first;
    Some(format!("{} topics not received, the first is {topic}: {reason}", topics.missing.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_backpressure_is_logged_as_paused_reads() {
        for (overflow, stops) in [(OverflowPolicy::Backpressure, true), (OverflowPolicy::DropOldest, false)] {
            assert_eq!(when_full(overflow).contains("pause"), stops, "{overflow:?}");
            assert_eq!(when_full(overflow).contains("dropped"), !stops, "{overflow:?}");
        }
    }
}
