//! The judgement over a whole log, when a world is over: once, in order, and no hole without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use trunkline::model::Event;

use super::{
    Around,
    judge::{reason, text_of, uid},
    plan::{Dialect, Night},
    platform::Said,
};

/// Panics with what is wrong.
pub(super) fn judge(around: &Around) {
    let log = &around.store.log;
    match around.scene.plan.dialect {
        Dialect::Sequenced => {
            assert!(around.ledger.is_complete(&around.platform.said), "the last event said is not the last in the log");
        }
        Dialect::Notifications => {
            judge_unnumbered(around);
            judge_order(around);
        }
    }
    judge_snapshots(around);
    if around.scene.plan.night == Night::Planned {
        let held = log.iter().filter(|event| uid(event).is_some()).count();
        assert_eq!(held, owed(around), "a planned night loses nothing and doubles nothing");
    }
}

/// Everything from the first event in the log on that the platform had somebody to say to.
fn owed(around: &Around) -> usize {
    let first = around.store.log.iter().filter_map(uid).min().unwrap_or(usize::MAX);
    let numbered = around.scene.plan.dialect == Dialect::Sequenced;
    around.platform.said.iter().filter(|said| said.class >= first && (numbered || !said.withheld)).count()
}

/// A numbered log, judged entry by entry as it grows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    before: Option<usize>,
    gaps: Vec<String>,
    /// Events with an old number that came alone, and the process that appended them without it. No position covers
    /// them: only the same process knows them when they come again.
    alone: BTreeMap<usize, u32>,
}

impl Ledger {
    /// Judges the entries that were appended.
    pub(super) fn take(&mut self, entries: &[Event], said: &[Said], life: u32) {
        for event in entries {
            self.gaps.extend(reason(event).map(str::to_owned));
            let Some(index) = uid(event) else { continue };
            if let Some(number) = said[index].number {
                assert_ne!(self.alone.get(&index), Some(&life), "event {index} ({number}) is there twice");
                if event.sequence.is_none() && self.is_of_a_new_era(index, said) {
                    self.alone.insert(index, life);
                    continue;
                }
                assert_eq!(event.sequence.map(|sequence| sequence.0), Some(number), "an entry under another number");
                if let Some(before) = self.before {
                    judge_neighbours(before, index, self, said, life);
                }
            }
            self.before = Some(index);
            self.gaps.clear();
        }
    }

    /// Whether an event belongs to a numbering of which none is in the log under its number.
    fn is_of_a_new_era(&self, index: usize, said: &[Said]) -> bool {
        self.before.is_some_and(|before| said[before].era != said[index].era)
    }

    fn is_complete(&self, said: &[Said]) -> bool {
        let last = said.len().checked_sub(1);
        last.is_none_or(|last| self.before == Some(last) || self.alone.contains_key(&last))
    }
}

fn judge_neighbours(before: usize, after: usize, ledger: &Ledger, said: &[Said], life: u32) {
    let gaps = &ledger.gaps;
    let (first, second) = (&said[before], &said[after]);
    let has = |reason: &str| gaps.iter().any(|gap| gap == reason);
    let what = || format!("event {before} ({:?}) and then {after} ({:?})", first.number, second.number);
    assert!(after > before, "twice or out of order: {}", what());
    let follows = second.number == first.number.map(|number| number + 1) && second.era == first.era;
    assert!((follows && after == before + 1) || !gaps.is_empty(), "a silent hole: {}", what());
    assert!(first.era == second.era || has("reset"), "a numbering started over without a word: {}", what());
    let was_to_be_had = |said: &&Said| !said.withheld || said.heard_in == life;
    let between = (before + 1..after).filter(|index| !ledger.alone.contains_key(index)).map(|index| &said[index]);
    let lost = between.filter(was_to_be_had).count();
    assert!(lost == 0 || has("shed"), "{lost} events were to be had and are not there: {} {gaps:?}", what());
}

/// An unnumbered log: nothing more often than it was said, and what is missing lies at a gap.
fn judge_unnumbered(around: &Around) {
    let (log, said) = (&around.store.log, &around.platform.said);
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
        if held < times && !said[class].withheld {
            judge_missing(class, &places, &gaps, around);
        }
    }
}

/// A store that stalls leaves frames unread for a while.
const UNREAD_LAG_MAX: Duration = Duration::from_secs(1);

/// What was said long before stands behind what was said after it only if a gap stands between the two. One socket may
/// lag behind another, and while frames are left unread the old one's answer does, for which its successor waits.
fn judge_order(around: &Around) {
    let said = &around.platform.said;
    let lag = around.scene.plan.lag() + if around.crowded { UNREAD_LAG_MAX } else { Duration::ZERO };
    let mut newest = Duration::ZERO;
    for event in &around.store.log {
        if reason(event).is_some() {
            newest = Duration::ZERO;
        }
        let Some(class) = uid(event) else { continue };
        let at = said[class].at;
        assert!(at + lag >= newest, "event {class}, said at {at:?}, stands behind what was said at {newest:?}");
        newest = newest.max(at);
    }
}

/// A gap must stand between what was said before the missing event and what was said after it. Order is not promised
/// within the time by which one socket may lag behind another.
fn judge_missing(class: usize, places: &BTreeMap<usize, Vec<usize>>, gaps: &BTreeSet<usize>, around: &Around) {
    let (said, lag) = (&around.platform.said, around.scene.plan.lag());
    let at = |class: &usize| said[*class].at;
    let (earlier, later) = (places.range(..class), places.range(class + 1..));
    let Some(fell_silent) = earlier.clone().next_back().map(|(class, _)| at(class)) else { return };
    let spoke_again = later.clone().next().map_or(Duration::MAX, |(class, _)| at(class));
    let before = earlier.rev().find(|(class, _)| at(class) + lag < fell_silent).map_or(0, |(_, places)| places[0]);
    // What a standby kept while the owner was deaf stands behind what the owner heard since: only what lies behind counts.
    let after = later.clone().find(|(class, places)| at(class) > spoke_again.saturating_add(lag) && places[0] > before);
    let end = after.map_or(usize::MAX, |(_, places)| places[0]);
    let marked = gaps.range(before..end).next().is_some();
    assert!(marked, "a silent hole: event {class} said at {:?}, between the places {before} and {end}", said[class].at);
}

/// A snapshot names its gap and stands right behind it, unless getting it took a while.
fn judge_snapshots(around: &Around) {
    let log = &around.store.log;
    let marks: BTreeMap<String, usize> = (0..log.len())
        .filter(|place| reason(&log[*place]).is_some())
        .map(|place| (around.store.mark(place).to_string(), place))
        .collect();
    for (place, event) in log.iter().enumerate().filter(|(_, event)| event.kind == "trunkline.snapshot.v1") {
        let data: serde_json::Value = serde_json::from_str(text_of(event)).unwrap();
        let gap = data["gap"].as_str().and_then(|gap| marks.get(gap));
        let Some(gap) = gap.filter(|gap| **gap < place) else { panic!("a snapshot without its gap: {data}") };
        assert_eq!(Some(data["reason"].as_str().unwrap()), reason(&log[*gap]), "a snapshot of another gap");
        let own = log[*gap + 1..place].iter().all(|event| event.kind.starts_with("trunkline."));
        assert!(
            own || around.platform.snapshot_failed || around.crowded,
            "events stand between a gap and its snapshot {data}"
        );
    }
}
