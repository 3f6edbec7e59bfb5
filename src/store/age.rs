//! The clock by which entries grow old: the wall clock, as far as it moves as time does.
//!
//! Whoever sets the wall clock a day ahead for ten seconds must not empty the log. What it shows beyond the time that has
//! gone by is taken over at the pace of time itself, so age runs at most twice as fast; what it is set back is taken
//! over at once, since that only keeps more.

use std::time::Duration;

use crate::model::Timestamp;

/// A difference from here on is a jump that an operator should hear of; less is a clock that is being disciplined.
const JUMP_MIN: Duration = Duration::from_secs(60);

/// The clock of one store.
#[derive(Debug)]
pub(super) struct AgeClock {
    current: Timestamp,
    /// Time since the machine was started.
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

    /// What it shows now; a jump of the wall clock is logged once.
    pub(super) fn now(&mut self, wall: Timestamp, boot: Duration) -> Timestamp {
        let (shows, jump) = self.advance(wall, boot);
        match jump {
            None => (),
            Some(ClockJump::Ahead(by)) => {
                tracing::warn!(?by, "the wall clock was set ahead: entries do not expire at once by it");
            }
            Some(ClockJump::Back(by)) => tracing::warn!(?by, "the wall clock was set back: entries are kept longer"),
        }
        shows
    }

    /// What it shows now, and the jump of the wall clock that was met for the first time.
    fn advance(&mut self, wall: Timestamp, boot: Duration) -> (Timestamp, Option<ClockJump>) {
        let passed = boot.saturating_sub(self.last_boot);
        self.last_boot = boot;
        let expected = self.current.after(passed);
        let (ahead, back) = (wall.since(expected), expected.since(wall));
        self.current = expected.after(ahead.min(passed)).before(back);
        let is_ahead = ahead >= JUMP_MIN;
        let jump = match back >= JUMP_MIN {
            // Of the way back to where the jump began there is nothing to say.
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

    /// Seconds on the wall clock, seconds since the start: what the clock shows, and the jump that it tells.
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
        // Ahead for good: age catches up at the pace of time.
        check(&[(90_001, 1, 2, "ahead 90000"), (180_000, 90_000, 180_000, ""), (180_001, 90_001, 180_001, "")]);
        // Set back: more is kept, at once.
        check(&[(10, 10, 10, ""), (-89_989, 11, -89_989, "back 90000"), (-89_988, 12, -89_988, "")]);
        // Small differences are followed.
        check(&[(2, 1, 2, ""), (3, 3, 3, ""), (3, 4, 3, "")]);
    }
}
