//! The judgement over a whole log, when a world is over: once, in order, and no hole without a word.

use std::collections::{BTreeMap, BTreeSet};

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
        Dialect::Sequenced => judge_numbered(log, &around.platform.said),
        Dialect::Notifications => judge_unnumbered(log, &around.platform.said),
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
    around.platform.said.iter().filter(|said| said.class >= first && !said.withheld).count()
}

fn judge_numbered(log: &[Event], said: &[Said]) {
    let (mut before, mut gaps): (Option<usize>, Vec<&str>) = (None, Vec::new());
    for event in log {
        gaps.extend(reason(event));
        let Some(index) = uid(event) else { continue };
        assert_eq!(event.sequence.map(|sequence| sequence.0), said[index].number, "an entry under another number");
        if let Some(before) = before {
            judge_neighbours(before, index, &gaps, said);
        }
        before = Some(index);
        gaps.clear();
    }
    assert!(said.is_empty() || before == Some(said.len() - 1), "the last event said is not the last in the log");
}

fn judge_neighbours(before: usize, after: usize, gaps: &[&str], said: &[Said]) {
    let (first, second) = (&said[before], &said[after]);
    let what = format!("event {before} ({:?}) and then {after} ({:?})", first.number, second.number);
    assert!(after > before, "twice or out of order: {what}");
    let follows = second.number == first.number.map(|number| number + 1) && second.era == first.era;
    assert!((follows && after == before + 1) || !gaps.is_empty(), "a silent hole: {what}");
    assert!(first.era == second.era || gaps.contains(&"reset"), "a numbering started over without a word: {what}");
    let lost = said[before + 1..after].iter().filter(|said| !said.withheld).count();
    assert!(lost == 0 || gaps.contains(&"shed"), "{lost} events were to be had and are not there: {what} {gaps:?}");
}

fn judge_unnumbered(log: &[Event], said: &[Said]) {
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, event) in log.iter().enumerate() {
        if let Some(class) = uid(event) {
            places.entry(class).or_default().push(place);
        }
    }
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for event in said {
        *times.entry(event.class).or_default() += 1;
    }
    for (class, places) in &places {
        let times = times.get(class).copied().unwrap_or(0);
        assert!(
            places.len() <= times,
            "event {class} is in the log {} times, and was said {times} times",
            places.len()
        );
    }
    let gaps: BTreeSet<usize> = (0..log.len()).filter(|place| reason(&log[*place]).is_some()).collect();
    let Some(first) = places.values().flatten().min() else { return };
    for (class, times) in times {
        let held = places.get(&class).map_or(0, Vec::len);
        if held < times && !said[class].withheld {
            judge_missing(class, &places, &gaps, *first);
        }
    }
}

/// A gap must stand between what was said before the missing event and what was said after it.
fn judge_missing(class: usize, places: &BTreeMap<usize, Vec<usize>>, gaps: &BTreeSet<usize>, first: usize) {
    let Some((_, before)) = places.range(..class).next_back() else { return };
    let after = places.range(class + 1..).next().map(|(_, places)| places[0]);
    let before = places.get(&class).map_or(before[before.len() - 1], |own| own[0]);
    if after.is_some_and(|after| after <= first) {
        return;
    }
    let mut between = gaps.range((before + 1).min(after.unwrap_or(usize::MAX))..after.unwrap_or(usize::MAX));
    assert!(between.next().is_some(), "a silent hole: event {class}, between the places {before} and {after:?}");
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
            "events stand between a gap and its snapshot"
        );
    }
}
