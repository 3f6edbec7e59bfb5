//! Checks that every event of the simulated platform is in a log once and in order, or covered by a gap.
//!
//! It compares the logs, as CloudEvents like a consumer, with the simulator's ledger.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
};

use serde::Deserialize;

/// The attributes that are compared.
#[derive(Deserialize)]
struct AuditEntry<'a> {
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
struct AuditGap {
    reason: String,
}

/// The gap reason after which sequence numbers start again.
const RESET: &str = "reset";

/// The results for one log.
#[derive(Debug, Default)]
pub(super) struct Audit {
    pub(super) entries: u64,
    pub(super) events: u64,
    pub(super) gaps: BTreeMap<String, u64>,
    pub(super) snapshots: u64,
    /// Entries whose offset did not follow the previous one.
    pub(super) offset_errors: u64,
    numbered: NumberedAudit,
    unnumbered: UnnumberedAudit,
    /// Whether the last entry was a gap, or a snapshot after one.
    in_gap: bool,
    gaps_seen: u64,
}

/// Counters of a numbered stream.
#[derive(Debug, Default)]
struct NumberedAudit {
    last: Option<u64>,
    duplicates: u64,
    lost: u64,
}

/// Counters of a stream without sequence numbers.
#[derive(Debug, Default)]
struct UnnumberedAudit {
    logged: HashMap<String, LoggedEvent>,
    emitted: VecDeque<(u64, String)>,
    duplicates: u64,
    /// Events after one that was sent later.
    out_of_order: u64,
    /// The offset of the last settled event.
    offset: u64,
    complete: u64,
    covered_by_gap: u64,
    lost: u64,
    /// Events sent since the last settled one that are not in the log.
    missing: u64,
    gaps_before: u64,
}

#[derive(Debug)]
struct LoggedEvent {
    times: u64,
    gaps: u64,
    offset: u64,
}

impl Audit {
    /// Processes the next entry of the log.
    pub(super) fn entry(&mut self, json: &[u8]) -> anyhow::Result<()> {
        let entry: AuditEntry<'_> = serde_json::from_slice(json)?;
        self.entries += 1;
        self.offset_errors += u64::from(entry.sequence.parse() != Ok(self.entries));
        match entry.kind {
            "trunkline.gap.v1" => {
                let data: AuditGap = serde_json::from_str(entry.data.map_or("{}", |data| data.get()))?;
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

    /// Resets the numbers and ids: after a reset the same ones may occur again.
    fn start_over(&mut self) {
        self.numbered.last = self.numbered.last.map(|_| 0);
        self.unnumbered.logged.clear();
    }

    fn event(&mut self, entry: &AuditEntry<'_>) {
        self.events += 1;
        let in_gap = std::mem::take(&mut self.in_gap);
        if let Some(number) = entry.platform_sequence.and_then(|number| number.parse().ok()) {
            self.numbered.record(number, in_gap);
        } else if let Some(correlation) = entry.correlation {
            let (gaps, place) = (self.gaps_seen, self.entries);
            let new = LoggedEvent { times: 0, gaps, offset: place };
            let logged = self.unnumbered.logged.entry(correlation.to_owned()).or_insert(new);
            logged.times += 1;
        }
    }

    /// Records an event that the platform sent to a subscriber.
    pub(super) fn record_emitted(&mut self, at_second: u64, correlation: String) {
        self.unnumbered.emitted.push_back((at_second, correlation));
    }

    /// Settles the events sent before this second: one that is not in the log is missing.
    pub(super) fn settle(&mut self, before_second: u64) {
        let unnumbered = &mut self.unnumbered;
        while let Some((_, correlation)) = unnumbered.emitted.pop_front_if(|(at, _)| *at < before_second) {
            unnumbered.settle_event(&correlation);
        }
    }

    /// Whether the log contains this number, or without numbers the last event sent before this second.
    pub(super) fn reaches(&self, number: u64, before_second: u64) -> bool {
        if let Some(last) = self.numbered.last {
            return last >= number;
        }
        let unnumbered = &self.unnumbered;
        let last = unnumbered.emitted.iter().rev().find(|(at, _)| *at < before_second);
        last.is_none_or(|(_, correlation)| unnumbered.logged.contains_key(correlation))
    }

    /// Ends the audit: events that are still missing, up to `number` or up to the last settled one, are lost. If the
    /// log ends with a gap, the gap covers them.
    pub(super) fn end(&mut self, number: u64) {
        let Self { numbered, unnumbered, in_gap, gaps_seen, .. } = self;
        if let Some(last) = numbered.last {
            numbered.lost += if *in_gap { 0 } else { number.saturating_sub(last) };
        }
        let missing = std::mem::take(&mut unnumbered.missing);
        if *gaps_seen > unnumbered.gaps_before {
            unnumbered.covered_by_gap += missing;
        } else {
            unnumbered.lost += missing;
        }
    }

    /// Whether the log fulfils the guarantees.
    pub(super) fn is_consistent(&self) -> bool {
        let Self { numbered, unnumbered, offset_errors, .. } = self;
        let unnumbered = unnumbered.duplicates + unnumbered.out_of_order + unnumbered.lost;
        *offset_errors + numbered.duplicates + numbered.lost + unnumbered == 0
    }

    /// The highest sequence number of the platform in the log.
    pub(super) fn last(&self) -> Option<u64> {
        self.numbered.last
    }
}

impl NumberedAudit {
    fn record(&mut self, number: u64, in_gap: bool) {
        if let Some(last) = self.last {
            self.duplicates += u64::from(number <= last);
            self.lost += if number > last && !in_gap { number - last - 1 } else { 0 };
        }
        self.last = self.last.max(Some(number));
    }
}

impl UnnumberedAudit {
    fn settle_event(&mut self, correlation: &str) {
        let Some(LoggedEvent { times, gaps, offset: place }) = self.logged.remove(correlation) else {
            self.missing += 1;
            return;
        };
        self.complete += 1;
        self.duplicates += times - 1;
        self.out_of_order += u64::from(place < self.offset);
        self.offset = self.offset.max(place);
        let missing = std::mem::take(&mut self.missing);
        if gaps > self.gaps_before || self.complete == 1 {
            self.covered_by_gap += missing;
        } else {
            self.lost += missing;
        }
        self.gaps_before = self.gaps_before.max(gaps);
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, events, snapshots, offset_errors, numbered, unnumbered, .. } = self;
        let verdict = if self.is_consistent() { "ok" } else { "FAILED" };
        write!(f, "{verdict}: {entries} entries, {events} events")?;
        write!(f, ", {} duplicated", numbered.duplicates + unnumbered.duplicates)?;
        write!(f, ", {} missing without a gap", numbered.lost + unnumbered.lost)?;
        if unnumbered.covered_by_gap > 0 {
            write!(f, ", {} sent while disconnected", unnumbered.covered_by_gap)?;
        }
        if unnumbered.out_of_order > 0 {
            write!(f, ", {} out of order", unnumbered.out_of_order)?;
        }
        if *offset_errors > 0 {
            write!(f, ", {offset_errors} offsets out of order")?;
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
    fn a_missing_number_is_accepted_only_with_a_gap() {
        assert!(audit(&[numbered(1, 7), numbered(2, 8)]).is_consistent());
        assert!(!audit(&[numbered(1, 7), numbered(2, 9)]).is_consistent());
        assert!(audit(&[numbered(1, 7), gap(2), numbered(3, 9)]).is_consistent());
        assert!(!audit(&[numbered(1, 7), numbered(2, 7)]).is_consistent());
        assert!(!audit(&[numbered(1, 7), numbered(3, 8)]).is_consistent());
    }

    #[test]
    fn equal_numbers_and_ids_across_a_reset_are_no_duplicates() {
        let reset = |offset| gap_of(offset, RESET);
        let before = [numbered(1, 1), numbered(2, 2)];
        let cases: [(&[String], bool); 5] = [
            (&[reset(3), numbered(4, 1), numbered(5, 2)], true),
            (&[gap(3), numbered(4, 1), numbered(5, 2)], false),
            (&[reset(3), numbered(4, 1), numbered(5, 1)], false),
            (&[reset(3), numbered(4, 1), numbered(5, 3)], false),
            (&[reset(3), numbered(4, 1), reset(5), numbered(6, 1)], true),
        ];
        for (behind, consistent) in cases {
            let audit = audit(&[&before, behind].concat());
            assert_eq!(audit.is_consistent(), consistent, "{behind:?}: {audit}");
        }
        let mut audit = audit(&[unnumbered(1, "a"), reset(2), unnumbered(3, "a")]);
        audit.record_emitted(0, "a".to_owned());
        audit.settle(1);
        assert!(audit.is_consistent(), "{audit}");
    }

    #[test]
    fn a_log_that_ends_with_a_reset_does_not_reach_the_new_numbers() {
        let audit = audit(&[numbered(1, 7), gap_of(2, RESET)]);
        assert!(!audit.reaches(3, 0), "number 7 belongs to the feed before");
    }

    #[test]
    fn missing_numbers_at_the_end_count_as_lost() {
        for (number, entries, consistent) in [
            (8, vec![numbered(1, 7), numbered(2, 8)], true),
            (9, vec![numbered(1, 7), numbered(2, 8)], false),
            (9, vec![numbered(1, 7), gap(2)], true),
        ] {
            let mut audit = audit(&entries);
            assert_eq!(audit.reaches(number, 0), number == 8);
            audit.end(number);
            assert_eq!(audit.is_consistent(), consistent, "{audit}");
        }
    }

    #[test]
    fn a_missing_event_needs_a_gap_between_its_neighbours() {
        for (entries, consistent) in [
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
                audit.record_emitted(second, id.to_owned());
            }
            audit.settle(3);
            audit.end(0);
            assert_eq!(audit.is_consistent(), consistent, "{audit}");
        }
    }
}
