//! The only place that reads a clock. Rules are told the time; shells ask here.

use std::time::Instant;

use crate::model::Timestamp;

/// The monotonic clock: for waiting and deciding.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: for people, and for what must survive a restart.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn wall() -> Timestamp {
    std::time::SystemTime::now().into()
}
