//! The effect of each fault, from the counters of the streams. It reads no clock and no log; `audit` checks for losses.

use std::{collections::BTreeMap, time::Duration};

/// The minimum duration of a fault, so that its effect is visible in the counters.
const LASTS_MIN: Duration = Duration::from_secs(3);
/// After this time the line of a fault is written even if the fault is not over.
const LASTS_MAX: Duration = Duration::from_secs(45);
/// The maximum width of a line.
const WIDTH: usize = 80;

/// The counters of all streams at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) reconnects: u64,
    pub(super) rotations: u64,
    pub(super) gaps: BTreeMap<String, u64>,
    /// The longest time in seconds since the last frame of a stream.
    pub(super) silence: f64,
    /// All streams are live, and no fault waits for its request.
    pub(super) settled: bool,
}

/// Overlapping faults, whose effects cannot be separated.
#[derive(Debug)]
struct OpenFaults {
    started_at: Duration,
    newest: Duration,
    labels: Vec<String>,
    before: Counters,
    silence: f64,
}

#[derive(Debug, Default)]
pub(super) struct Outcomes {
    last: Counters,
    open: Option<OpenFaults>,
}

impl Outcomes {
    /// Processes new faults and counters; returns the line of the faults that are over now.
    pub(super) fn step(&mut self, at: Duration, injected: Vec<String>, now: &Counters) -> Option<String> {
        let before = std::mem::replace(&mut self.last, now.clone());
        if !injected.is_empty() {
            let new = || OpenFaults { started_at: at, newest: at, labels: Vec::new(), before, silence: 0.0 };
            let open = self.open.get_or_insert_with(new);
            open.newest = at;
            open.labels.extend(injected);
        }
        let open = self.open.as_mut()?;
        open.silence = open.silence.max(now.silence);
        let over = now.settled && at >= open.newest + LASTS_MIN;
        if over || at >= open.started_at + LASTS_MAX { self.end() } else { None }
    }

    /// Returns the line of the faults that are not over yet.
    pub(super) fn end(&mut self) -> Option<String> {
        self.open.take().map(|open| open.line(&self.last))
    }
}

impl OpenFaults {
    fn line(&self, now: &Counters) -> String {
        let reconnects = now.reconnects - self.before.reconnects;
        let rotations = now.rotations - self.before.rotations;
        let gaps = |(stream, count): (&String, &u64)| {
            let new = count - self.before.gaps.get(stream).copied().unwrap_or(0);
            (new > 0).then(|| (stream.clone(), new))
        };
        let gaps: Vec<(String, u64)> = now.gaps.iter().filter_map(gaps).collect();
        let gaps = match &gaps[..] {
            [] => "no gap".to_owned(),
            [(stream, count)] => format!("gaps {count} ({stream})"),
            many => format!("gaps {}", many.iter().map(|(_, count)| count).sum::<u64>()),
        };
        let open = if now.settled { "" } else { "not over; " };
        let came =
            format!(": {open}reconnects {reconnects}, rotations {rotations}, silence {:.1} s, {gaps}", self.silence);
        let start = format!("{:>4} s  ", self.started_at.as_secs());
        let room = WIDTH.saturating_sub(start.len() + came.len());
        start + &shortened(&self.labels.join(" + "), room) + &came
    }
}

fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(reconnects: u64, gaps: &[(&str, u64)], silence: f64, settled: bool) -> Counters {
        let gaps = gaps.iter().map(|(stream, count)| ((*stream).to_owned(), *count)).collect();
        Counters { reconnects, rotations: reconnects, gaps, silence, settled }
    }

    fn lines(steps: &[(u64, &[&str], Counters)]) -> Vec<String> {
        let mut outcomes = Outcomes::default();
        let step = |(at, injected, now): &(u64, &[&str], Counters)| {
            let injected = injected.iter().map(|label| (*label).to_owned()).collect();
            outcomes.step(Duration::from_secs(*at), injected, now)
        };
        let mut lines: Vec<String> = steps.iter().filter_map(step).collect();
        lines.extend(outcomes.end());
        lines
    }

    #[test]
    fn a_fault_is_reported_when_all_streams_are_live_again() {
        let quiet = |n| counters(n, &[("a", 2), ("b", 1)], 0.1, true);
        let steps: [(u64, &[&str], Counters); 5] = [
            (7, &[], quiet(1)),
            (8, &["drop"], counters(3, &[("a", 2), ("b", 1)], 0.5, false)),
            (12, &[], counters(3, &[("a", 2), ("b", 2)], 2.0, false)),
            (13, &[], counters(3, &[("a", 2), ("b", 2)], 0.1, true)),
            (14, &[], quiet(9)),
        ];
        assert_eq!(lines(&steps), ["   8 s  drop: reconnects 2, rotations 2, silence 2.0 s, gaps 1 (b)"]);
    }

    #[test]
    fn overlapping_faults_share_a_line_and_an_ongoing_fault_is_marked() {
        let up = counters(0, &[("a", 0), ("b", 0)], 0.0, true);
        let down = counters(4, &[("a", 1), ("b", 1)], 9.0, false);
        let steps: [(u64, &[&str], Counters); 4] =
            [(1, &["stall"], up.clone()), (3, &["drop"], up), (30, &[], down.clone()), (47, &["late"], down)];
        let lines = lines(&steps);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("   1 s  stall +") && lines[0].contains("not over; reconnects 4"), "{lines:?}");
        assert!(lines[0].ends_with("gaps 2") && lines[0].chars().count() <= WIDTH, "{lines:?}");
    }
}
