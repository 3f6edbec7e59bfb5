//! The only module that reads a clock. Rules get the time as an argument.

use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// The monotonic clock: for waiting and deciding.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: for display, and for values that must survive a restart.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn wall() -> Timestamp {
    std::time::SystemTime::now().into()
}

/// Time since the machine started, including sleep: for leases and other limits that end during sleep.
#[cfg(target_os = "linux")]
pub fn boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Time since the process first asked, on systems without a boot clock. It does not count sleep, so only the store
/// detects a lease that ended meanwhile.
#[cfg(not(target_os = "linux"))]
pub fn boot() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(now);
    now().saturating_duration_since(*START)
}
