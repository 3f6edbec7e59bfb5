//! The only place that reads a clock. Rules are told the time; shells ask here.

use std::time::{Duration, Instant};

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

/// Time since the machine was started, counted on while it sleeps: for what must not outlive a promise.
#[cfg(target_os = "linux")]
pub fn boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The same where no such clock is known: a machine that sleeps is noticed by the store alone.
#[cfg(not(target_os = "linux"))]
pub fn boot() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(now);
    now().saturating_duration_since(*START)
}
