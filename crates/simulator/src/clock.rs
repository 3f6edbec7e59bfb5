//! The only place where the simulator reads a clock, and the formats of its times.
//! The other modules get the time as an argument.

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The `Date` header and the dated form of `Retry-After` (RFC 9110 section 5.6.7).
const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// The present moment, for waits and ages.
#[expect(clippy::disallowed_methods, reason = "the simulator reads its clocks here")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The simulated platform's calendar: the true time, shifted by `offset` seconds.
#[expect(clippy::disallowed_methods, reason = "the simulator reads its clocks here")]
pub(super) fn wall(offset: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc().saturating_add(time::Duration::seconds(offset))
}

/// `2026-05-04T13:31:49.570Z`, as the platform writes moments.
pub(super) fn stamp(at: OffsetDateTime) -> String {
    at.format(STAMP).expect("the format names only parts that every moment has")
}

/// `Mon, 04 May 2026 13:31:49 GMT`.
pub(super) fn http_date(at: OffsetDateTime) -> String {
    at.format(HTTP_DATE).expect("the format names only parts that every moment has")
}

/// The longest wait that is added to a moment: about a century.
const WAIT_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// `from + wait`, with `wait` limited to [`WAIT_MAX`].
pub(super) fn after(from: Instant, wait: Duration) -> Instant {
    from + wait.min(WAIT_MAX)
}
