//! Whether everything that the simulated platform said is in the logs: once, in order, or marked.
//!
//! It holds the logs against what the simulator wrote into its own books. It knows the entries only as a consumer does:
//! as CloudEvents.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
};

use serde::Deserialize;

/// The few attributes that are held against the books.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sequence: &'a str,
    #[serde(rename = "platformsequence", default)]
    platform_sequence: Option<&'a str>,
    #[serde(rename = "correlationid", default)]
    correlation: Option<&'a str>,
    #[serde(default)]
    data: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct GapData {
    reason: String,
}

/// The reason of the gap behind which the numbers begin again.
const RESET: &str = "reset";

/// What a log showed so far.
#[derive(Debug, Default)]
pub(super) struct Audit {
    pub(super) entries: u64,
    pub(super) events: u64,
    pub(super) gaps: BTreeMap<String, u64>,
    pub(super) snapshots: u64,
    /// Entries whose offset was not the one that had to follow.
    pub(super) undense: u64,
    numbered: Numbered,
    unnumbered: Unnumbered,
    /// The last entry was a gap (or a snapshot behind one).
    in_gap: bool,
    gaps_seen: u64,
}

/// The order of a numbered stream.
#[derive(Debug, Default)]
struct Numbered {
    last: Option<u64>,
    doubled: u64,
    unmarked: u64,
}

/// The completeness of a stream without numbers.
#[derive(Debug, Default)]
struct Unnumbered {
    logged: HashMap<String, Logged>,
    said: VecDeque<(u64, String)>,
    doubled: u64,
    /// Events that came after one that was said later.
    disordered: u64,
    /// The entry of the last one that was held against the books.
    place: u64,
    complete: u64,
    marked: u64,
    unmarked: u64,
    /// Events that were said and are not in the log, since the last one that is.
    missing: u64,
    gaps_before: u64,
}

#[derive(Debug)]
struct Logged {
    times: u64,
    gaps: u64,
    place: u64,
}

impl Audit {
    /// Takes the next entry of the log.
    pub(super) fn entry(&mut self, json: &[u8]) -> anyhow::Result<()> {
        let entry: Entry<'_> = serde_json::from_slice(json)?;
        self.entries += 1;
        self.undense += u64::from(entry.sequence.parse() != Ok(self.entries));
        match entry.kind {
            "trunkline.gap.v1" => {
                let data: GapData = serde_json::from_str(entry.data.map_or("{}", |data| data.get()))?;
                if data.reason == RESET {
                    self.start_over();
                }
                *self.gaps.entry(data.reason).or_default() += 1;
                self.gaps_seen += 1;
                self.in_gap = true;
            }
            "trunkline.snapshot.v1" => self.snapshots += 1,
            _ => self.event(&entry),
        }
        Ok(())
    }

    /// Numbers and ids behind this entry belong to another feed: they may be equal to those before it.
    fn start_over(&mut self) {
        self.numbered.last = self.numbered.last.map(|_| 0);
        self.unnumbered.logged.clear();
    }

    fn event(&mut self, entry: &Entry<'_>) {
        self.events += 1;
        let in_gap = std::mem::take(&mut self.in_gap);
        if let Some(number) = entry.platform_sequence.and_then(|number| number.parse().ok()) {
            self.numbered.take(number, in_gap);
        } else if let Some(correlation) = entry.correlation {
            let (gaps, place) = (self.gaps_seen, self.entries);
            let new = Logged { times: 0, gaps, place };
            let logged = self.unnumbered.logged.entry(correlation.to_owned()).or_insert(new);
            logged.times += 1;
        }
    }

    /// The platform said this to whoever had subscribed.
    pub(super) fn said(&mut self, at_second: u64, correlation: String) {
        self.unnumbered.said.push_back((at_second, correlation));
    }

    /// Closes the books on what was said before this second.
    pub(super) fn settle(&mut self, before_second: u64) {
        let books = &mut self.unnumbered;
        while let Some((_, correlation)) = books.said.pop_front_if(|(at, _)| *at < before_second) {
            books.close(&correlation);
        }
    }

    /// Whether the log goes as far as this number, or as what was said before this second.
    pub(super) fn reaches(&self, number: u64, before_second: u64) -> bool {
        if let Some(last) = self.numbered.last {
            return last >= number;
        }
        let books = &self.unnumbered;
        let last = books.said.iter().rev().find(|(at, _)| *at < before_second);
        last.is_none_or(|(_, correlation)| books.logged.contains_key(correlation))
    }

    /// Nothing more is to come: what was said at the end and is not there is missing, up to this number where there are
    /// numbers, else what was settled. Behind a gap that is the end of the log it is marked.
    pub(super) fn end(&mut self, number: u64) {
        let Self { numbered, unnumbered, in_gap, gaps_seen, .. } = self;
        if let Some(last) = numbered.last {
            numbered.unmarked += if *in_gap { 0 } else { number.saturating_sub(last) };
        }
        let missing = std::mem::take(&mut unnumbered.missing);
        if *gaps_seen > unnumbered.gaps_before {
            unnumbered.marked += missing;
        } else {
            unnumbered.unmarked += missing;
        }
    }

    /// Whether the log is what the guarantees say.
    pub(super) fn is_sound(&self) -> bool {
        let Self { numbered, unnumbered, undense, .. } = self;
        let unnumbered = unnumbered.doubled + unnumbered.disordered + unnumbered.unmarked;
        *undense + numbered.doubled + numbered.unmarked + unnumbered == 0
    }

    /// The highest number of the platform in the log.
    pub(super) fn last(&self) -> Option<u64> {
        self.numbered.last
    }
}

impl Numbered {
    fn take(&mut self, number: u64, in_gap: bool) {
        if let Some(last) = self.last {
            self.doubled += u64::from(number <= last);
            self.unmarked += if number > last && !in_gap { number - last - 1 } else { 0 };
        }
        self.last = self.last.max(Some(number));
    }
}

impl Unnumbered {
    fn close(&mut self, correlation: &str) {
        let Some(Logged { times, gaps, place }) = self.logged.remove(correlation) else {
            self.missing += 1;
            return;
        };
        self.complete += 1;
        self.doubled += times - 1;
        self.disordered += u64::from(place < self.place);
        self.place = self.place.max(place);
        let missing = std::mem::take(&mut self.missing);
        if gaps > self.gaps_before || self.complete == 1 {
            self.marked += missing;
        } else {
            self.unmarked += missing;
        }
        self.gaps_before = self.gaps_before.max(gaps);
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, events, snapshots, undense, numbered, unnumbered, .. } = self;
        let verdict = if self.is_sound() { "sound" } else { "NOT SOUND" };
        write!(f, "{verdict}: {entries} entries, {events} events")?;
        write!(f, ", {} doubled", numbered.doubled + unnumbered.doubled)?;
        write!(f, ", {} missing without a mark", numbered.unmarked + unnumbered.unmarked)?;
        if unnumbered.marked > 0 {
            write!(f, ", {} said while nobody could listen", unnumbered.marked)?;
        }
        if unnumbered.disordered > 0 {
            write!(f, ", {} out of order", unnumbered.disordered)?;
        }
        if *undense > 0 {
            write!(f, ", {undense} offsets out of order")?;
        }
        let gaps: Vec<String> = self.gaps.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let gaps = if gaps.is_empty() { "none".to_owned() } else { gaps.join(", ") };
        write!(f, "; gaps: {gaps}; snapshots: {snapshots}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(offset: u64, number: u64) -> String {
        format!(r#"{{"type":"e","sequence":"{offset}","platformsequence":"{number}","data":{{}}}}"#)
    }

    fn gap(offset: u64) -> String {
        gap_of(offset, "jump")
    }

    fn gap_of(offset: u64, reason: &str) -> String {
        format!(r#"{{"type":"trunkline.gap.v1","sequence":"{offset}","data":{{"reason":"{reason}"}}}}"#)
    }

    fn unnumbered(offset: u64, id: &str) -> String {
        format!(r#"{{"type":"e","sequence":"{offset}","correlationid":"{id}","data":{{}}}}"#)
    }

    fn audit(entries: &[String]) -> Audit {
        let mut audit = Audit::default();
        entries.iter().for_each(|entry| audit.entry(entry.as_bytes()).unwrap());
        audit
    }

    #[test]
    fn a_hole_is_sound_only_with_its_gap() {
        assert!(audit(&[numbered(1, 7), numbered(2, 8)]).is_sound());
        assert!(!audit(&[numbered(1, 7), numbered(2, 9)]).is_sound());
        assert!(audit(&[numbered(1, 7), gap(2), numbered(3, 9)]).is_sound());
        assert!(!audit(&[numbered(1, 7), numbered(2, 7)]).is_sound());
        assert!(!audit(&[numbered(1, 7), numbered(3, 8)]).is_sound());
    }

    #[test]
    fn equal_numbers_and_ids_on_both_sides_of_a_reset_are_not_doubled() {
        let reset = |offset| gap_of(offset, RESET);
        let before = [numbered(1, 1), numbered(2, 2)];
        let cases: [(&[String], bool); 5] = [
            (&[reset(3), numbered(4, 1), numbered(5, 2)], true),
            (&[gap(3), numbered(4, 1), numbered(5, 2)], false),
            (&[reset(3), numbered(4, 1), numbered(5, 1)], false),
            (&[reset(3), numbered(4, 1), numbered(5, 3)], false),
            (&[reset(3), numbered(4, 1), reset(5), numbered(6, 1)], true),
        ];
        for (behind, sound) in cases {
            let audit = audit(&[&before, behind].concat());
            assert_eq!(audit.is_sound(), sound, "{behind:?}: {audit}");
        }
        let mut audit = audit(&[unnumbered(1, "a"), reset(2), unnumbered(3, "a")]);
        audit.said(0, "a".to_owned());
        audit.settle(1);
        assert!(audit.is_sound(), "{audit}");
    }

    #[test]
    fn a_log_that_ends_with_a_reset_does_not_reach_the_new_numbers() {
        let audit = audit(&[numbered(1, 7), gap_of(2, RESET)]);
        assert!(!audit.reaches(3, 0), "number 7 belongs to the feed before");
    }

    #[test]
    fn numbers_that_are_missing_at_the_end_are_missing() {
        for (number, entries, sound) in [
            (8, vec![numbered(1, 7), numbered(2, 8)], true),
            (9, vec![numbered(1, 7), numbered(2, 8)], false),
            (9, vec![numbered(1, 7), gap(2)], true),
        ] {
            let mut audit = audit(&entries);
            assert_eq!(audit.reaches(number, 0), number == 8);
            audit.end(number);
            assert_eq!(audit.is_sound(), sound, "{audit}");
        }
    }

    #[test]
    fn what_was_said_and_is_not_there_needs_a_gap_between_its_neighbours() {
        for (entries, sound) in [
            (vec![unnumbered(1, "a"), unnumbered(2, "b"), unnumbered(3, "c")], true),
            (vec![unnumbered(1, "a"), unnumbered(2, "c")], false),
            (vec![unnumbered(1, "a"), gap(2), unnumbered(3, "c")], true),
            (vec![unnumbered(1, "a"), unnumbered(2, "b"), unnumbered(3, "b"), unnumbered(4, "c")], false),
            (vec![unnumbered(1, "a"), unnumbered(2, "c"), unnumbered(3, "b")], false),
            (vec![unnumbered(1, "a"), unnumbered(2, "b")], false),
            (vec![unnumbered(1, "a"), unnumbered(2, "b"), gap(3)], true),
        ] {
            let mut audit = audit(&entries);
            for (second, id) in [(0, "a"), (1, "b"), (2, "c")] {
                audit.said(second, id.to_owned());
            }
            audit.settle(3);
            audit.end(0);
            assert_eq!(audit.is_sound(), sound, "{audit}");
        }
    }
}
