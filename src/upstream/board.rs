//! What is known of a stream from outside: its counts, its state, and the log lines and metrics that tell them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use super::relapse::Relapses;
use crate::{
    clock,
    connector::{RefusedTopic, Unheard},
    model::{Position, StreamName, Timestamp},
    protocol::stream::{Overflow, Report, State, Stream, Topics},
    telemetry::metrics,
};

/// So many refused topics are shown.
const REFUSED_SHOWN_MAX: usize = 20;
/// The same trouble is told at most once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The board of one stream. Its task writes, whoever asks reads.
#[derive(Debug)]
pub(super) struct Board {
    metrics: metrics::Stream,
    overflow: Overflow,
    facts: Mutex<Facts>,
}

/// What stands on it.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) state: State,
    pub(super) position: Option<Position>,
    pub(super) events: u64,
    pub(super) gaps: u64,
    pub(super) duplicates: u64,
    pub(super) rotations: u64,
    pub(super) reconnects: u64,
    pub(super) buffered: usize,
    pub(super) heard_at: Option<Instant>,
    pub(super) snapshot_owed: bool,
    pub(super) topics: Topics,
    /// What holds now, with the time at which it began to be so.
    errors: BTreeMap<Trouble, (Timestamp, String)>,
    no_room: bool,
    /// Why the log cannot be used.
    refused_log: Option<String>,
    relapses: Relapses,
    /// What the machine is in: shown while the log can be used.
    machine: State,
    quiet: Quiet,
}

/// What an error is about: each kind is cleared when it no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Session,
    Rotation,
    Store,
    Log,
    Topics,
    Snapshot,
}

/// When the frequent kinds of trouble were last told.
#[derive(Debug, Clone, Copy, Default)]
struct Quiet {
    undecoded: Option<Instant>,
    shed: Option<Instant>,
    lost: Option<Instant>,
}

impl Board {
    pub(super) fn new(stream: &StreamName, overflow: Overflow) -> Self {
        let metrics = metrics::Stream::new(stream);
        metrics.entered(State::Starting.as_str());
        Self {
            metrics,
            overflow,
            facts: Mutex::new(Facts {
                state: State::Starting,
                position: None,
                events: 0,
                gaps: 0,
                duplicates: 0,
                rotations: 0,
                reconnects: 0,
                buffered: 0,
                heard_at: None,
                snapshot_owed: false,
                topics: Topics { subscribed: 0, missing: Vec::new() },
                errors: BTreeMap::new(),
                no_room: false,
                refused_log: None,
                relapses: Relapses::default(),
                machine: State::Starting,
                quiet: Quiet::default(),
            }),
        }
    }

    /// A copy of what stands there.
    pub(super) fn facts(&self) -> Facts {
        self.with(|facts| facts.clone())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another replica owns the log: whether it can be used is for that one to report.
    pub(super) fn disowned(&self) {
        self.recovers(Trouble::Log);
        self.with(|facts| {
            facts.relapses = Relapses::default();
            if facts.refused_log.take().is_some() {
                facts.state = facts.machine;
            }
        });
    }

    /// The stream is kept elsewhere.
    pub(super) fn left(&self) {
        self.disowned();
        self.metrics.left();
        self.with(|facts| {
            facts.state = State::Starting;
            facts.machine = State::Starting;
            facts.position = None;
            facts.buffered = 0;
            facts.heard_at = None;
            facts.snapshot_owed = false;
            facts.topics = Topics { subscribed: 0, missing: Vec::new() };
            facts.errors.clear();
        });
    }

    /// Whether this process appends to its log.
    pub(super) fn owned(&self, owned: bool) {
        self.metrics.owned(owned);
    }

    /// What changes with every step.
    pub(super) fn update(&self, machine: &Stream) {
        let buffered = machine.buffered();
        self.metrics.buffered(buffered);
        let owes_snapshot = machine.owes_snapshot();
        if !owes_snapshot {
            self.recovers(Trouble::Snapshot);
        }
        self.with(|facts| {
            facts.position = machine.position();
            facts.buffered = buffered;
            facts.heard_at = machine.heard_at();
            facts.snapshot_owed = owes_snapshot;
        });
    }

    /// Entries became durable, so long after the oldest of them was received (none if all are the relay's own).
    pub(super) fn appended(&self, events: usize, bytes: usize, latency: Option<Duration>) {
        self.metrics.appended(events, bytes, latency);
        self.with(|facts| facts.events += events as u64);
    }

    pub(super) fn store_has_no_room(&self, why: &str) {
        let news = self.with(|facts| !std::mem::replace(&mut facts.no_room, true));
        if news {
            let when_full = when_full(self.overflow);
            error!(%why, when_full, "the store takes no entries: events wait in the buffer");
        }
        self.fails(Trouble::Store, format!("the store takes no entries: {why}"));
    }

    /// An append was done.
    pub(super) fn store_has_room(&self) {
        let (had_no_room, was_refused) = self.with(|facts| {
            facts.relapses.appended();
            facts.errors.remove(&Trouble::Store);
            (std::mem::take(&mut facts.no_room), facts.refused_log.is_some())
        });
        if had_no_room {
            info!("the store takes entries again");
        }
        if was_refused {
            self.log_usable();
        }
    }

    /// The store refused an append for what it holds of the log.
    pub(super) fn append_refused(&self, why: &str) {
        self.with(|facts| facts.relapses.refused());
        self.log_refused(why);
    }

    /// The log was not where this process left it. What comes of that is no failure the first time.
    pub(super) fn log_moved(&self, why: &str) {
        if self.with(|facts| facts.relapses.moved()) {
            self.log_refused(why);
        }
    }

    /// How long the next claim of the log waits.
    pub(super) fn claim_wait(&self) -> Option<Duration> {
        self.with(|facts| facts.relapses.wait(fastrand::f64()))
    }

    /// Why the log cannot be used, while it cannot.
    pub(super) fn refused_log(&self) -> Option<String> {
        self.with(|facts| facts.refused_log.clone())
    }

    /// What the store holds of this stream's log cannot be used, until an operator has mended it.
    pub(super) fn log_refused(&self, why: &str) {
        let text = format!("the log cannot be used: {why}");
        let is_news = self.with(|facts| {
            let is_news = facts.refused_log.as_deref() != Some(why);
            facts.refused_log = Some(why.to_owned());
            facts.state = State::Failed;
            facts.machine = State::Starting;
            is_news
        });
        self.fails(Trouble::Log, text);
        self.metrics.entered(State::Failed.as_str());
        if is_news {
            error!(reason = why, state = State::Failed.as_str(), "the log of this stream cannot be used");
        }
    }

    /// The log was claimed. After an append that was refused only an append shows that it can be used.
    pub(super) fn log_claimed(&self) {
        if !self.with(|facts| facts.relapses.is_doubted()) {
            self.log_usable();
        }
    }

    fn log_usable(&self) {
        self.recovers(Trouble::Log);
        let machine = self.with(|facts| {
            facts.refused_log.take()?;
            facts.state = facts.machine;
            Some(facts.machine)
        });
        if let Some(machine) = machine {
            self.metrics.entered(machine.as_str());
            info!(state = machine.as_str(), "the log can be used again");
        }
    }

    /// Counts and tells what the machine reports.
    pub(super) fn report(&self, report: Report) {
        match report {
            Report::State(state) => self.entered(state),
            Report::Connected(connected) => self.metrics.connected(connected),
            Report::OtherFeed => warn!(
                "the log was written from another feed (connector or URL): its position is not used, and a gap is marked"
            ),
            Report::Resuming(position) => info!(position = position.map(|position| position.0.0), "connecting"),
            Report::Gap { reason, lost } => {
                self.metrics.gap_seen(reason, lost);
                self.with(|facts| facts.gaps += 1);
                warn!(reason = reason.as_str(), lost, "gap marked");
            }
            Report::Duplicates(count) => {
                self.metrics.duplicates_dropped(count);
                self.with(|facts| facts.duplicates += count);
            }
            Report::Undecoded { bytes } => self.undecoded(bytes),
            Report::Shed(count) => self.shed(count),
            Report::RotationBegins(trigger) => debug!(trigger = trigger.as_str(), "rotation begins"),
            Report::RotationFailed { trigger, failure } => {
                self.metrics.rotated(trigger.as_str(), false);
                self.fails(Trouble::Rotation, failure.to_string());
                warn!(trigger = trigger.as_str(), error = %failure, "the successor failed; the old session serves on");
            }
            Report::Rotated { trigger, silence } => {
                self.metrics.rotated(trigger.as_str(), true);
                self.metrics.rotation_was_silent_for(silence);
                self.recovers(Trouble::Rotation);
                self.with(|facts| facts.rotations += 1);
                info!(trigger = trigger.as_str(), silence_ms = silence.as_millis(), "rotated");
            }
            Report::Lost { failure, retry_in } => self.lost(&failure, retry_in),
            Report::GivenUp { failure, retry_in } => {
                self.metrics.session_lost(failure.class());
                self.fails(Trouble::Session, failure.to_string());
                let retry_ms = retry_in.as_millis();
                error!(error = %failure, retry_ms, "the platform refuses this stream: check its configuration and permissions");
            }
            Report::Breaker(open) => self.breaker(open),
            Report::Snapshot(fetched) => self.snapshot(fetched),
            Report::Refused(topics) => self.topics(&topics),
        }
    }

    fn entered(&self, state: State) {
        let is_shown = self.with(|facts| {
            facts.machine = state;
            let is_shown = facts.refused_log.is_none();
            if is_shown {
                facts.state = state;
            }
            is_shown
        });
        if matches!(state, State::Live | State::Degraded | State::Recovering) {
            self.recovers(Trouble::Session);
        }
        if is_shown {
            self.metrics.entered(state.as_str());
            info!(state = state.as_str(), "stream");
        }
    }

    fn snapshot(&self, fetched: Result<(), String>) {
        self.metrics.snapshot(fetched.is_ok());
        if let Err(why) = fetched {
            warn!(error = %why, "the snapshot could not be fetched; it is tried again behind the live stream");
            self.fails(Trouble::Snapshot, format!("the snapshot could not be fetched: {why}"));
        }
    }

    fn undecoded(&self, bytes: usize) {
        self.metrics.frame_undecoded();
        if self.may_tell(|quiet| &mut quiet.undecoded) {
            warn!(bytes, "a frame that nobody can read was kept as it came");
        }
    }

    fn shed(&self, count: u64) {
        self.metrics.shed(count);
        if self.may_tell(|quiet| &mut quiet.shed) {
            warn!(count, "the buffer is full: the oldest events were dropped, a gap marks them");
        }
    }

    fn lost(&self, failure: &crate::connector::Failure, retry_in: Option<Duration>) {
        self.metrics.session_lost(failure.class());
        self.with(|facts| facts.reconnects += 1);
        self.fails(Trouble::Session, failure.to_string());
        self.recovers(Trouble::Rotation);
        if self.may_tell(|quiet| &mut quiet.lost) {
            let retry_ms = retry_in.map(|delay| delay.as_millis());
            info!(error = %failure, class = failure.class(), retry_ms, "session lost");
        }
    }

    fn breaker(&self, open: bool) {
        self.metrics.breaker_open(open);
        if open {
            error!("connecting has failed again and again: it is tried once each backoff.cap from here on");
        } else {
            info!("connecting works again");
        }
    }

    fn topics(&self, topics: &Topics) {
        let news = self.with(|facts| facts.topics.missing != topics.missing);
        let counts = self.with(|facts| {
            facts.topics = topics.clone();
            facts.topic_counts()
        });
        self.metrics.topics(counts);
        if news {
            for RefusedTopic { topic, reason, .. } in topics.missing.iter().take(REFUSED_SHOWN_MAX) {
                warn!(%topic, %reason, "a topic is not heard; the others are not affected");
            }
            let [subscribed, refused, unserved] = counts;
            match degradation(topics) {
                Some(_) => warn!(subscribed, refused, unserved, "not every configured topic is heard"),
                None => info!(subscribed, "every configured topic is heard again"),
            }
        }
        match degradation(topics) {
            Some(why) => self.fails(Trouble::Topics, why),
            None => self.recovers(Trouble::Topics),
        }
    }

    /// Something does not work; since when is kept while it stays the same.
    fn fails(&self, what: Trouble, why: String) {
        let now = clock::wall();
        self.with(|facts| {
            let known = facts.errors.get(&what).filter(|(_, known)| *known == why).map(|(at, _)| *at);
            let at = if what == Trouble::Topics { known.unwrap_or(now) } else { now };
            facts.errors.insert(what, (at, why));
        });
    }

    fn recovers(&self, what: Trouble) {
        self.with(|facts| facts.errors.remove(&what));
    }

    fn may_tell(&self, kind: impl FnOnce(&mut Quiet) -> &mut Option<Instant>) -> bool {
        let now = clock::now();
        self.with(|facts| {
            let told = kind(&mut facts.quiet);
            let due = told.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL);
            if due {
                *told = Some(now);
            }
            due
        })
    }
}

impl Facts {
    /// The topics that are not heard, as an operator reads them.
    pub(super) fn refused_shown(&self) -> Vec<String> {
        let shown = self.topics.missing.iter().take(REFUSED_SHOWN_MAX);
        shown.map(|RefusedTopic { topic, reason, .. }| format!("{topic}: {reason}")).collect()
    }

    /// How many topics are subscribed, refused and unserved.
    pub(super) fn topic_counts(&self) -> [usize; 3] {
        let refused = self.topics.missing.iter().filter(|topic| topic.state == Unheard::Refused).count();
        [self.topics.subscribed, refused, self.topics.missing.len() - refused]
    }

    /// What does not work now, the newest first, and since when.
    pub(super) fn last_error(&self) -> Option<(Timestamp, String)> {
        self.errors.values().max_by_key(|(at, _)| *at).cloned()
    }
}

/// What a full buffer means while the store takes nothing.
fn when_full(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::Backpressure => "the platform is not read",
        Overflow::DropOldest => "the oldest events are dropped, a gap marks them",
    }
}

/// Why a stream is degraded.
fn degradation(topics: &Topics) -> Option<String> {
    let first = topics.missing.first()?;
    let RefusedTopic { topic, reason, .. } = first;
    Some(format!("{} topics are not heard, the first is {topic}: {reason}", topics.missing.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_with_backpressure_is_said_to_stop_reading() {
        for (overflow, stops) in [(Overflow::Backpressure, true), (Overflow::DropOldest, false)] {
            assert_eq!(when_full(overflow).contains("not read"), stops, "{overflow:?}");
            assert_eq!(when_full(overflow).contains("dropped"), !stops, "{overflow:?}");
        }
    }
}
