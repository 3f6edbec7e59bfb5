//! The judgement over a whole log, when a world is over: once, in order, and no hole without a word.

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

/// Panics with what is wrong.
pub(super) fn check_log(env: &TestEnvironment) {
    let log = &env.store.log;
    match env.schedule.plan.dialect {
        ConnectorKind::Sequenced => {
            assert!(
                env.numbered_check.is_complete(&env.platform.sent_events),
                "the last event said is not the last in the log"
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
        assert_eq!(held, expected_count(env), "a planned profile loses nothing and doubles nothing");
    }
}

/// Everything from the first event in the log on that the platform had somebody to say to.
fn expected_count(env: &TestEnvironment) -> usize {
    let first = env.store.log.iter().filter_map(uid).min().unwrap_or(usize::MAX);
    let numbered = env.schedule.plan.dialect == ConnectorKind::Sequenced;
    env.platform.sent_events.iter().filter(|said| said.class >= first && (numbered || !said.undeliverable)).count()
}

/// A numbered log, judged entry by entry as it grows.
#[derive(Debug, Default)]
pub(super) struct NumberedLogCheck {
    previous: Option<usize>,
    gaps: Vec<String>,
    /// Events with an old number that came alone, and the process that appended them without it. No position covers
    /// them: only the same process knows them when they come again.
    unnumbered: BTreeMap<usize, u32>,
}

impl NumberedLogCheck {
    /// Judges the entries that were appended.
    pub(super) fn check_appended(&mut self, entries: &[Event], said: &[SentEvent], incarnation: u32) {
        for event in entries {
            self.gaps.extend(reason(event).map(str::to_owned));
            let Some(index) = uid(event) else { continue };
            if let Some(number) = said[index].number {
                assert_ne!(self.unnumbered.get(&index), Some(&incarnation), "event {index} ({number}) is there twice");
                if event.sequence.is_none() && self.starts_new_numbering(index, said) {
                    self.unnumbered.insert(index, incarnation);
                    continue;
                }
                assert_eq!(event.sequence.map(|sequence| sequence.0), Some(number), "an entry under another number");
                if let Some(before) = self.previous {
                    check_neighbours(before, index, self, said, incarnation);
                }
            }
            self.previous = Some(index);
            self.gaps.clear();
        }
    }

    /// Whether an event belongs to a numbering of which none is in the log under its number.
    fn starts_new_numbering(&self, index: usize, said: &[SentEvent]) -> bool {
        self.previous.is_some_and(|before| said[before].era != said[index].era)
    }

    fn is_complete(&self, said: &[SentEvent]) -> bool {
        let last = said.len().checked_sub(1);
        last.is_none_or(|last| self.previous == Some(last) || self.unnumbered.contains_key(&last))
    }
}

fn check_neighbours(before: usize, after: usize, ledger: &NumberedLogCheck, said: &[SentEvent], incarnation: u32) {
    let gaps = &ledger.gaps;
    let (first, second) = (&said[before], &said[after]);
    let has = |reason: &str| gaps.iter().any(|gap| gap == reason);
    let what = || format!("event {before} ({:?}) and then {after} ({:?})", first.number, second.number);
    assert!(after > before, "twice or out of order: {}", what());
    let follows = second.number == first.number.map(|number| number + 1) && second.era == first.era;
    assert!((follows && after == before + 1) || !gaps.is_empty(), "a silent hole: {}", what());
    assert!(first.era == second.era || has("reset"), "a numbering started over without a word: {}", what());
    let was_to_be_had = |said: &&SentEvent| !said.undeliverable || said.received_by == incarnation;
    let between = (before + 1..after).filter(|index| !ledger.unnumbered.contains_key(index)).map(|index| &said[index]);
    let lost = between.filter(was_to_be_had).count();
    assert!(lost == 0 || has("shed"), "{lost} events were to be had and are not there: {} {gaps:?}", what());
}

/// An unnumbered log: nothing more often than it was said, and what is missing lies at a gap.
fn check_unnumbered(env: &TestEnvironment) {
    let (log, said) = (&env.store.log, &env.platform.sent_events);
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, class) in log.iter().enumerate().filter_map(|(place, event)| Some((place, uid(event)?))) {
        places.entry(class).or_default().push(place);
    }
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for event in said {
        *times.entry(event.class).or_default() += 1;
    }
    let gaps: BTreeSet<usize> = (0..log.len()).filter(|place| reason(&log[*place]).is_some()).collect();
    for (class, times) in times {
        let held = places.get(&class).map_or(0, Vec::len);
        assert!(held <= times, "event {class} is in the log {held} times, and was said {times} times");
        if held < times && !said[class].undeliverable {
            check_missing(class, &places, &gaps, env);
        }
    }
}

/// A store that stalls leaves frames unread for a while.
const UNREAD_LAG_MAX: Duration = Duration::from_secs(1);

/// What was said long before stands behind what was said after it only if a gap stands between the two. One socket may
/// lag behind another, and while frames are left unread the old one's answer does, for which its successor waits.
fn check_order(env: &TestEnvironment) {
    let said = &env.platform.sent_events;
    let lag = env.schedule.plan.lag() + if env.was_congested { UNREAD_LAG_MAX } else { Duration::ZERO };
    let mut newest = Duration::ZERO;
    for event in &env.store.log {
        if reason(event).is_some() {
            newest = Duration::ZERO;
        }
        let Some(class) = uid(event) else { continue };
        let at = said[class].sent_at;
        assert!(at + lag >= newest, "event {class}, said at {at:?}, stands behind what was said at {newest:?}");
        newest = newest.max(at);
    }
}

/// A gap must stand between what was said before the missing event and what was said after it. Order is not promised
/// within the time by which one socket may lag behind another.
fn check_missing(class: usize, places: &BTreeMap<usize, Vec<usize>>, gaps: &BTreeSet<usize>, env: &TestEnvironment) {
    let (said, lag) = (&env.platform.sent_events, env.schedule.plan.lag());
    let at = |class: &usize| said[*class].sent_at;
    let (earlier, later) = (places.range(..class), places.range(class + 1..));
    let Some(fell_silent) = earlier.clone().next_back().map(|(class, _)| at(class)) else { return };
    let spoke_again = later.clone().next().map_or(Duration::MAX, |(class, _)| at(class));
    let before = earlier.rev().find(|(class, _)| at(class) + lag < fell_silent).map_or(0, |(_, places)| places[0]);
    // What a standby kept while the owner was deaf stands behind what the owner heard since: only what lies behind counts.
    let after = later.clone().find(|(class, places)| at(class) > spoke_again.saturating_add(lag) && places[0] > before);
    let end = after.map_or(usize::MAX, |(_, places)| places[0]);
    let marked = gaps.range(before..end).next().is_some();
    assert!(
        marked,
        "a silent hole: event {class} said at {:?}, between the places {before} and {end}",
        said[class].sent_at
    );
}

/// A snapshot names its gap and stands right behind it, unless getting it took a while.
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
        assert_eq!(Some(data["reason"].as_str().unwrap()), reason(&log[*gap]), "a snapshot of another gap");
        let own = log[*gap + 1..place].iter().all(|event| event.kind.starts_with("trunkline."));
        assert!(
            own || env.platform.snapshot_failed || env.was_congested,
            "events stand between a gap and its snapshot {data}"
        );
    }
}
