//! The `Retry-After` header (RFC 9110 section 10.2.3): seconds or a date.
//!
//! A date counts from the answer's own `Date` header, if there is one, so that the local wall clock does not matter.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::model::Timestamp;

/// The minimum delay, also for zero and for a date in the past.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// The maximum delay, also if the header asks for more.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// The delay that an answer asks for in `Retry-After`. `date` is its `Date` header. `received` is the local wall clock,
/// which counts if the answer has no valid `Date`.
pub fn of_answer(retry_after: Option<&str>, date: Option<&str>, received: Timestamp) -> Option<Duration> {
    parse(retry_after?, date.and_then(http_date).unwrap_or(received))
}

/// The delay in the header's value, between [`RETRY_AFTER_MIN`] and [`RETRY_AFTER_MAX`]; none if the value is invalid.
/// `answered` is the time of the answer.
fn parse(value: &str, answered: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let pause = match is_integer(value) {
        true => seconds(value),
        false => http_date(value)?.since(answered),
    };
    Some(pause.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

/// Reads a date in each of the three forms of RFC 9110 section 5.6.7, and one with another offset than GMT.
pub fn http_date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let moment = match OffsetDateTime::parse(text, &Rfc2822) {
        Ok(moment) => moment,
        Err(_) => httpdate::parse_http_date(text).ok()?.into(),
    };
    moment.unix_timestamp().checked_mul(1_000).map(Timestamp)
}

fn is_integer(value: &str) -> bool {
    let digits = value.strip_prefix('-').unwrap_or(value);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A number that does not fit is the maximum. A negative number is invalid.
fn seconds(value: &str) -> Duration {
    match value.starts_with('-') {
        true => Duration::ZERO,
        false => value.parse().map_or(Duration::MAX, Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_is_read_as_seconds_or_date_and_kept_within_bounds() {
        let table = [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("0", Some(1)),
            ("-5", Some(1)),
            ("999999999999999999999999", Some(3_600)),
            ("Sun, 06 Nov 1994 08:51:37 GMT", Some(120)),
            ("Sun, 06 Nov 1994 07:49:37 GMT", Some(1)),
            ("Sunday, 06-Nov-94 08:51:37 GMT", Some(120)),
            ("Sun Nov  6 08:51:37 1994", Some(120)),
            ("Sun, 06 Nov 1994 09:51:37 +0100", Some(120)),
            ("Fri, 06 Nov 2093 08:49:37 GMT", Some(3_600)),
            ("soon", None),
            ("1.5", None),
            ("", None),
            ("-", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ];
        let answered = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, expected) in table {
            assert_eq!(parse(value, answered), expected.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn a_retry_date_is_relative_to_the_date_of_the_response() {
        let (date, at) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:57 GMT");
        let sent = http_date(date).unwrap();
        for skew_secs in [-86_400, -3_600, 0, 3_600, 86_400] {
            let received = Timestamp(sent.0 + skew_secs * 1_000);
            let pause = |date| of_answer(Some(at), date, received).unwrap().as_secs();
            assert_eq!(pause(Some(date)), 80, "{skew_secs}");
            let by_local_clock = u64::try_from((80 - skew_secs).clamp(1, 3_600)).unwrap();
            assert_eq!((pause(None), pause(Some("yesterday"))), (by_local_clock, by_local_clock), "{skew_secs}");
        }
        assert_eq!(of_answer(None, Some(date), sent), None);
    }

    proptest! {
        #[test]
        fn any_header_value_is_bounded(value in ".{0,40}", answered in any::<i64>()) {
            if let Some(pause) = parse(&value, Timestamp(answered)) {
                prop_assert!((RETRY_AFTER_MIN..=RETRY_AFTER_MAX).contains(&pause));
            }
        }
    }
}
