//! The clock that measures the age of entries: the wall clock, limited by the time since boot.
//!
//! If the wall clock jumps a day ahead for ten seconds, the retention must not empty the log. This clock follows a
//! forward jump at the pace of elapsed time, so age runs at most twice as fast. It follows a backward jump immediately,
//! because that only keeps more entries.

use std::time::Duration;

use crate::model::Timestamp;

/// A difference of at least this is a jump and is logged. A smaller one is a normal clock adjustment.
const JUMP_MIN: Duration = Duration::from_secs(60);

/// The clock of one store.
#[derive(Debug)]
pub(super) struct AgeClock {
    current: Timestamp,
    /// Time since the machine started.
    last_boot: Duration,
    jumped: bool,
}

/// The wall clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClockJump {
    Ahead(Duration),
    Back(Duration),
}

impl AgeClock {
    pub(super) fn new(wall: Timestamp, boot: Duration) -> Self {
        Self { current: wall, last_boot: boot, jumped: false }
    }

    /// The current time of this clock. Logs each jump of the wall clock once.
    pub(super) fn now(&mut self, wall: Timestamp, boot: Duration) -> Timestamp {
        let (shows, jump) = self.advance(wall, boot);
        match jump {
            None => (),
            Some(ClockJump::Ahead(by)) => {
                tracing::warn!(?by, "wall clock was set ahead; entries expire gradually, not at once");
            }
            Some(ClockJump::Back(by)) => tracing::warn!(?by, "wall clock was set back; entries are kept longer"),
        }
        shows
    }

    /// The current time of this clock, and a jump of the wall clock when it is detected for the first time.
    fn advance(&mut self, wall: Timestamp, boot: Duration) -> (Timestamp, Option<ClockJump>) {
        let passed = boot.saturating_sub(self.last_boot);
        self.last_boot = boot;
        let expected = self.current.after(passed);
        let (ahead, back) = (wall.since(expected), expected.since(wall));
        self.current = expected.after(ahead.min(passed)).before(back);
        let is_ahead = ahead >= JUMP_MIN;
        let jump = match back >= JUMP_MIN {
            // A return to the time before the jump is not reported.
            true => Some(ClockJump::Back(back)),
            false => (is_ahead && !self.jumped).then_some(ClockJump::Ahead(ahead)),
        };
        self.jumped = is_ahead;
        (self.current, jump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Per step: seconds on the wall clock, seconds since boot, the expected time of this clock, and the expected jump.
    fn check(steps: &[(i64, u64, i64, &str)]) {
        let mut clock = AgeClock::new(Timestamp(1_000_000_000), Duration::ZERO);
        for (wall, boot, shows, jump) in steps {
            let at = |seconds: i64| Timestamp(1_000_000_000 + seconds * 1_000);
            let found = clock.advance(at(*wall), Duration::from_secs(*boot));
            let text = match found.1 {
                None => String::new(),
                Some(ClockJump::Ahead(by)) => format!("ahead {}", by.as_secs()),
                Some(ClockJump::Back(by)) => format!("back {}", by.as_secs()),
            };
            assert_eq!((found.0, text.as_str()), (at(*shows), *jump), "{wall} {boot}");
        }
    }

    #[test]
    fn a_wall_clock_jump_is_reported_and_expires_nothing_at_once() {
        check(&[(1, 1, 1, ""), (2, 2, 2, ""), (1_000, 1_000, 1_000, "")]);
        // 25 hours ahead for ten seconds.
        check(&[(1, 1, 1, ""), (90_002, 2, 3, "ahead 90000"), (90_011, 11, 21, ""), (12, 12, 12, "")]);
        // A permanent forward jump: age catches up at the pace of elapsed time.
        check(&[(90_001, 1, 2, "ahead 90000"), (180_000, 90_000, 180_000, ""), (180_001, 90_001, 180_001, "")]);
        // A backward jump: more entries are kept immediately.
        check(&[(10, 10, 10, ""), (-89_989, 11, -89_989, "back 90000"), (-89_988, 12, -89_988, "")]);
        // The clock follows small differences.
        check(&[(2, 1, 2, ""), (3, 3, 3, ""), (3, 4, 3, "")]);
    }
}
