//! Checks of the whole log at the end of a world: each event once, in order, and a gap entry for each loss.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use trunkline::model::Event;

use super::{
    TestEnvironment,
    checker::{reason, text_of, uid},
    plan::{ConnectorKind, FaultProfile},
    platform::SentEvent,
};

/// Panics if the log breaks a guarantee.
pub(super) fn check_log(env: &TestEnvironment) {
    let log = &env.store.log;
    match env.schedule.plan.dialect {
        ConnectorKind::Sequenced => {
            assert!(
                env.numbered_check.is_complete(&env.platform.sent_events),
                "the last event of the platform is not the last in the log"
            );
        }
        ConnectorKind::Notifications => {
            check_unnumbered(env);
            check_order(env);
        }
    }
    check_snapshots(env);
    if env.schedule.plan.profile == FaultProfile::Planned {
        let held = log.iter().filter(|event| uid(event).is_some()).count();
        assert_eq!(held, expected_count(env), "a planned profile loses and duplicates nothing");
    }
}

/// Number of events since the first event in the log, without those that the platform could not deliver.
fn expected_count(env: &TestEnvironment) -> usize {
    let first = env.store.log.iter().filter_map(uid).min().unwrap_or(usize::MAX);
    let numbered = env.schedule.plan.dialect == ConnectorKind::Sequenced;
    env.platform.sent_events.iter().filter(|sent| sent.class >= first && (numbered || !sent.undeliverable)).count()
}

/// Checks a numbered log entry by entry as it grows.
#[derive(Debug, Default)]
pub(super) struct NumberedLogCheck {
    previous: Option<usize>,
    gaps: Vec<String>,
    /// Single events with an old number, and the process that appended them without the number. No position covers
    /// them, so only the same process recognizes a repetition.
    unnumbered: BTreeMap<usize, u32>,
}

impl NumberedLogCheck {
    /// Checks newly appended entries.
    pub(super) fn check_appended(&mut self, entries: &[Event], sent: &[SentEvent], incarnation: u32) {
        for event in entries {
            self.gaps.extend(reason(event).map(str::to_owned));
            let Some(index) = uid(event) else { continue };
            if let Some(number) = sent[index].number {
                assert_ne!(
                    self.unnumbered.get(&index),
                    Some(&incarnation),
                    "event {index} ({number}) is in the log twice"
                );
                if event.sequence.is_none() && self.starts_new_numbering(index, sent) {
                    self.unnumbered.insert(index, incarnation);
                    continue;
                }
                assert_eq!(event.sequence.map(|sequence| sequence.0), Some(number), "an entry has another number");
                if let Some(before) = self.previous {
                    check_neighbours(before, index, self, sent, incarnation);
                }
            }
            self.previous = Some(index);
            self.gaps.clear();
        }
    }

    /// Whether an event belongs to a numbering that has no numbered entry in the log yet.
    fn starts_new_numbering(&self, index: usize, sent: &[SentEvent]) -> bool {
        self.previous.is_some_and(|before| sent[before].era != sent[index].era)
    }

    fn is_complete(&self, sent: &[SentEvent]) -> bool {
        let last = sent.len().checked_sub(1);
        last.is_none_or(|last| self.previous == Some(last) || self.unnumbered.contains_key(&last))
    }
}

fn check_neighbours(before: usize, after: usize, check: &NumberedLogCheck, sent: &[SentEvent], incarnation: u32) {
    let gaps = &check.gaps;
    let (first, second) = (&sent[before], &sent[after]);
    let has = |reason: &str| gaps.iter().any(|gap| gap == reason);
    let what = || format!("event {before} ({:?}) followed by {after} ({:?})", first.number, second.number);
    assert!(after > before, "duplicated or out of order: {}", what());
    let follows = second.number == first.number.map(|number| number + 1) && second.era == first.era;
    assert!((follows && after == before + 1) || !gaps.is_empty(), "a loss without a gap: {}", what());
    assert!(first.era == second.era || has("reset"), "a numbering restarted without a gap: {}", what());
    let was_deliverable = |sent: &&SentEvent| !sent.undeliverable || sent.received_by == incarnation;
    let between = (before + 1..after).filter(|index| !check.unnumbered.contains_key(index)).map(|index| &sent[index]);
    let lost = between.filter(was_deliverable).count();
    assert!(lost == 0 || has("shed"), "{lost} deliverable events are missing: {} {gaps:?}", what());
}

/// Checks an unnumbered log: no event is stored more often than it was sent, and each missing event is at a gap.
fn check_unnumbered(env: &TestEnvironment) {
    let (log, sent) = (&env.store.log, &env.platform.sent_events);
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, class) in log.iter().enumerate().filter_map(|(place, event)| Some((place, uid(event)?))) {
        places.entry(class).or_default().push(place);
    }
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for event in sent {
        *times.entry(event.class).or_default() += 1;
    }
    let gaps: BTreeSet<usize> = (0..log.len()).filter(|place| reason(&log[*place]).is_some()).collect();
    for (class, times) in times {
        let held = places.get(&class).map_or(0, Vec::len);
        assert!(held <= times, "event {class} is in the log {held} times, but was sent {times} times");
        if held < times && !sent[class].undeliverable {
            check_missing(class, &places, &gaps, env);
        }
    }
}

/// Longest time that frames stay unread while the store stalls.
const UNREAD_LAG_MAX: Duration = Duration::from_secs(1);

/// An event may follow one that was sent much later only if a gap is between the two. One socket may lag behind
/// another; while frames stay unread, so does the old socket's probe reply, for which the successor waits.
fn check_order(env: &TestEnvironment) {
    let sent = &env.platform.sent_events;
    let lag = env.schedule.plan.lag() + if env.was_congested { UNREAD_LAG_MAX } else { Duration::ZERO };
    let mut newest = Duration::ZERO;
    for event in &env.store.log {
        if reason(event).is_some() {
            newest = Duration::ZERO;
        }
        let Some(class) = uid(event) else { continue };
        let at = sent[class].sent_at;
        assert!(at + lag >= newest, "event {class}, sent at {at:?}, follows one sent at {newest:?}");
        newest = newest.max(at);
    }
}

/// A gap must be between the events sent before a missing event and those sent after it. Order is not guaranteed
/// within the time by which one socket may lag behind another.
fn check_missing(class: usize, places: &BTreeMap<usize, Vec<usize>>, gaps: &BTreeSet<usize>, env: &TestEnvironment) {
    let (sent, lag) = (&env.platform.sent_events, env.schedule.plan.lag());
    let at = |class: &usize| sent[*class].sent_at;
    let (earlier, later) = (places.range(..class), places.range(class + 1..));
    let Some(fell_silent) = earlier.clone().next_back().map(|(class, _)| at(class)) else { return };
    let spoke_again = later.clone().next().map_or(Duration::MAX, |(class, _)| at(class));
    let before = earlier.rev().find(|(class, _)| at(class) + lag < fell_silent).map_or(0, |(_, places)| places[0]);
    // Buffered events of a standby follow events that the owner received later, so only the entries behind them count.
    let after = later.clone().find(|(class, places)| at(class) > spoke_again.saturating_add(lag) && places[0] > before);
    let end = after.map_or(usize::MAX, |(_, places)| places[0]);
    let marked = gaps.range(before..end).next().is_some();
    assert!(
        marked,
        "a loss without a gap: event {class}, sent at {:?}, between entries {before} and {end}",
        sent[class].sent_at
    );
}

/// A snapshot names its gap and follows it directly, unless the snapshot was late.
fn check_snapshots(env: &TestEnvironment) {
    let log = &env.store.log;
    let marks: BTreeMap<String, usize> = (0..log.len())
        .filter(|place| reason(&log[*place]).is_some())
        .map(|place| (env.store.mark(place).to_string(), place))
        .collect();
    for (place, event) in log.iter().enumerate().filter(|(_, event)| event.kind == "trunkline.snapshot.v1") {
        let data: serde_json::Value = serde_json::from_str(text_of(event)).unwrap();
        let gap = data["gap"].as_str().and_then(|gap| marks.get(gap));
        let Some(gap) = gap.filter(|gap| **gap < place) else { panic!("a snapshot without its gap: {data}") };
        assert_eq!(Some(data["reason"].as_str().unwrap()), reason(&log[*gap]), "a snapshot names another gap");
        let own = log[*gap + 1..place].iter().all(|event| event.kind.starts_with("trunkline."));
        assert!(
            own || env.platform.snapshot_failed || env.was_congested,
            "events are between a gap and its snapshot {data}"
        );
    }
}
