//! Decodes a log's head from the answers of the scripts.

use super::{
    Durability,
    skew::ClockSkew,
    unreadable::{REPAIR_HINT, quoted as shown_text},
};
use crate::{
    model::{Checkpoint, Epoch, FeedId, Fence, Lineage, Offset, Position, Sequence, Timestamp},
    store::{LogBounds, LogState},
};

/// The result of a claim.
#[derive(Debug)]
pub(super) struct ClaimedHead {
    pub(super) state: LogState,
    /// The turn of the first append.
    pub(super) turn: u64,
    pub(super) skew: ClockSkew,
}

/// A field with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MalformedField {
    field: &'static str,
    value: String,
}

impl MalformedField {
    pub(super) fn new(field: &'static str, value: &str) -> Self {
        Self { field, value: value.to_owned() }
    }
}

/// Decodes the answer of the script that reads the bounds.
pub(super) fn read_bounds(answer: &[String], durability: Durability) -> Result<LogBounds, MalformedField> {
    let [epoch, earlier, last, safe, first] = answer else {
        return Err(MalformedField::new("(all)", &answer.join(", ")));
    };
    let newest = parse_offset(last).ok_or_else(|| MalformedField::new("last", last))?;
    if epoch.is_empty() && newest > Offset::START {
        return Err(MalformedField::new("epoch", epoch));
    }
    let last = high_watermark(newest, safe, durability).ok_or_else(|| MalformedField::new("safe", safe))?;
    Ok(LogBounds { lineage: lineage(epoch, earlier)?, first: first_of(first, newest)?, last })
}

/// The message for a head that cannot be used.
pub(super) fn describe_malformed(key: &str, MalformedField { field, value }: &MalformedField) -> String {
    describe_field(key, field, value)
}

pub(super) fn describe_field(head: &str, field: &str, value: &str) -> String {
    format!(
        "{head}: the field {field} is {}, expected a whole number of at most 15 digits (an epoch: in hexadecimal); {REPAIR_HINT}",
        shown_text(value)
    )
}

/// Decodes the answer of the claim script, under the fence with `nonce`, at the local time `now`.
pub(super) fn read_claim(
    answer: &[String],
    nonce: u128,
    durability: Durability,
    now: Timestamp,
) -> Result<ClaimedHead, MalformedField> {
    let [epoch, earlier, last, safe, first, number, turn, position, heard_at, server, lost, feed] = answer else {
        return Err(MalformedField::new("(all)", &answer.join(", ")));
    };
    let server = server.parse().map_err(|_| MalformedField::new("(time of the server)", server))?;
    let skew = ClockSkew::measured(Timestamp(server), now);
    let newest = parse_offset(last).ok_or_else(|| MalformedField::new("last", last))?;
    let state = LogState {
        lineage: lineage(epoch, earlier)?,
        first: first_of(first, newest)?,
        last: newest,
        high_watermark: high_watermark(newest, safe, durability).ok_or_else(|| MalformedField::new("safe", safe))?,
        checkpoint: checkpoint(position, heard_at, feed, &skew)?,
        fence: Fence { number: parse_count(number).ok_or_else(|| MalformedField::new("number", number))?, nonce },
        damaged: lost == "1",
    };
    Ok(ClaimedHead { state, turn: parse_count(turn).ok_or_else(|| MalformedField::new("turn", turn))?, skew })
}

/// The newest visible entry. A log that was written without waiting for replicas has no field for them: all its entries
/// were visible then.
pub(super) fn high_watermark(last: Offset, safe: &str, durability: Durability) -> Option<Offset> {
    match (durability, safe) {
        (Durability::Written, _) | (Durability::Replicated, "") => Some(last),
        (Durability::Replicated, digits) => Some(parse_offset(digits)?.min(last)),
    }
}

fn lineage(epoch: &str, earlier: &str) -> Result<Lineage, MalformedField> {
    let ended = earlier.split_whitespace().map(ended_epoch).collect::<Option<Vec<_>>>();
    let ended = ended.ok_or_else(|| MalformedField::new("earlier", earlier))?;
    Ok(Lineage::with_earlier(self::parse_epoch(epoch).ok_or_else(|| MalformedField::new("epoch", epoch))?, ended))
}

fn ended_epoch(text: &str) -> Option<(Epoch, Offset)> {
    let (epoch, end) = text.split_once(':')?;
    Some((self::parse_epoch(epoch)?, parse_offset(end)?))
}

/// An epoch in the format of the head; an empty text means that none has begun.
pub(super) fn parse_epoch(text: &str) -> Option<Epoch> {
    match text {
        "" => Some(Epoch::NONE),
        digits => u32::from_str_radix(digits, 16).ok().map(Epoch),
    }
}

fn checkpoint(
    position: &str,
    heard_at: &str,
    feed: &str,
    skew: &ClockSkew,
) -> Result<Option<Checkpoint>, MalformedField> {
    let feed = feed_of(feed, position);
    let position = parse_position(position)?;
    match heard_at {
        "" => Ok(None),
        millis => {
            let millis = millis.parse().map_err(|_| MalformedField::new("heard_at", millis))?;
            Ok(Some(Checkpoint { position, last_received_at: skew.to_local(Timestamp(millis)), feed }))
        }
    }
}

/// In front of an opaque position. A position of digits alone is a number.
const OPAQUE_MARK: char = '=';

/// A position in the format of the head; empty if there is none.
pub(super) fn position_text(position: Option<&Position>) -> String {
    match position {
        None => String::new(),
        Some(Position::Numbered(number)) => number.to_string(),
        Some(Position::Opaque(text)) => format!("{OPAQUE_MARK}{}", text.as_str()),
    }
}

fn parse_position(text: &str) -> Result<Option<Position>, MalformedField> {
    let position = match text.strip_prefix(OPAQUE_MARK) {
        None if text.is_empty() => return Ok(None),
        None => text.parse().ok().map(|number| Position::Numbered(Sequence(number))),
        Some(opaque) => Position::opaque(opaque),
    };
    position.map(Some).ok_or_else(|| MalformedField::new("position", text))
}

/// The feed of this position. None if an earlier version has moved the position since, because it does not update the
/// feed.
pub(super) fn feed_of(text: &str, position: &str) -> Option<FeedId> {
    let (feed, moved_to) = text.split_once(' ')?;
    let rest = moved_to.strip_prefix(position)?;
    FeedId::parse(feed).filter(|_| rest.is_empty() || rest.starts_with(' '))
}

fn first_of(text: &str, last: Offset) -> Result<Offset, MalformedField> {
    match text {
        "" => Ok(last.next()),
        digits => parse_offset(digits).ok_or_else(|| MalformedField::new("first", digits)),
    }
}

pub(super) fn parse_offset(digits: &str) -> Option<Offset> {
    parse_count(digits).map(Offset)
}

/// Scripts count in doubles, which are exact up to 15 digits. No replica counts up to a longer number, so its stream is
/// rejected before a writer changes the number.
const DIGITS_MAX: usize = 15;

/// Parses a number that replicas increment.
pub(crate) fn parse_count(digits: &str) -> Option<u64> {
    let sound = !digits.is_empty() && digits.len() <= DIGITS_MAX && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEED: &str = "000000000000002a 77";

    fn answer<const N: usize>(fields: [&str; N]) -> Vec<String> {
        fields.map(str::to_owned).to_vec()
    }

    #[test]
    fn the_head_of_a_log_is_read() {
        let answer =
            answer(["0000002a", "00000007:5 00000008:9 ", "12", "11", "3", "4", "6", "77", "1000", "1500", "", FEED]);
        let now = Timestamp(9_500);
        let ClaimedHead { state, turn, .. } = read_claim(&answer, 1, Durability::Replicated, now).unwrap();
        let earlier = vec![(Epoch(7), Offset(5)), (Epoch(8), Offset(9))];
        assert_eq!(state.lineage, Lineage::with_earlier(Epoch(42), earlier));
        assert_eq!((state.first, state.last, state.high_watermark), (Offset(3), Offset(12), Offset(11)));
        assert_eq!((state.fence, turn), (Fence { number: 4, nonce: 1 }, 6));
        let checkpoint = Checkpoint {
            position: Some(Position::Numbered(Sequence(77))),
            last_received_at: Timestamp(9_000),
            feed: Some(FeedId(42)),
        };
        assert_eq!(state.checkpoint, Some(checkpoint), "half a second ago by the server's clock");
        let ClaimedHead { state, .. } = read_claim(&answer, 1, Durability::Written, now).unwrap();
        assert_eq!(state.high_watermark, Offset(12));
    }

    #[test]
    fn the_feed_of_a_position_that_moved_without_it_is_not_known() {
        let feed = Some(FeedId(42));
        for (text, position, expected) in [
            (FEED, "77", feed),
            (FEED, "78", None),
            (FEED, "", None),
            ("000000000000002a ", "", feed),
            ("000000000000002a 77 of a later version", "77", feed),
            ("000000000000002a", "77", None),
            ("", "77", None),
            ("", "", None),
            ("a feed 77", "77", None),
            ("000000000000002a =a b", "=a b", feed),
            ("000000000000002a =a b", "77", None),
        ] {
            assert_eq!(feed_of(text, position), expected, "{text} {position}");
        }
    }

    #[test]
    fn an_opaque_position_is_never_a_number() {
        let number = Position::Numbered(Sequence(u64::MAX));
        let opaque = ["77", "=77", "2026-05-04 13:31:49Z"].map(|text| Position::opaque(text).unwrap());
        for position in opaque.into_iter().chain([number]) {
            let text = position_text(Some(&position));
            assert_eq!(parse_position(&text).unwrap(), Some(position), "{text}");
        }
        assert_eq!((position_text(None), parse_position("")), (String::new(), Ok(None)));
        for malformed in ["=", "seven", "-7", &format!("={}", "x".repeat(Position::LEN_MAX + 1))] {
            assert!(parse_position(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn a_log_without_entries_begins_with_the_next_one() {
        let answer = answer(["1", "", "12", "", "", "4", "0", "", "", "1500", "1", ""]);
        let ClaimedHead { state, .. } = read_claim(&answer, 1, Durability::Replicated, Timestamp(0)).unwrap();
        assert_eq!((state.first, state.high_watermark, state.checkpoint), (Offset(13), Offset(12), None));
        assert!(state.damaged, "its head was lost");
    }

    #[test]
    fn a_missing_head_is_an_empty_log() {
        let extent = read_bounds(&answer(["", "", "0", "", ""]), Durability::Replicated).unwrap();
        assert_eq!(extent, LogBounds::NONE);
    }

    #[test]
    fn the_high_watermark_stops_at_what_a_replica_has() {
        for (last, safe, expected) in [(12, "9", 9), (12, "12", 12), (5, "9", 5), (12, "", 12)] {
            assert_eq!(
                high_watermark(Offset(last), safe, Durability::Replicated),
                Some(Offset(expected)),
                "{last} {safe}"
            );
        }
    }

    #[test]
    fn a_malformed_head_field_is_named() {
        for (field, fields) in [
            ("epoch", ["x", "", "0", "", ""]),
            ("earlier", ["1", "7", "0", "", ""]),
            ("last", ["1", "", "", "", ""]),
            ("safe", ["1", "", "9", "x", ""]),
            ("last", ["1", "", "xyz", "", ""]),
            ("last", ["1", "", "18446744073709551615", "", ""]),
            ("last", ["1", "", "9007199254740993", "", ""]),
            ("last", ["1", "", "+9", "", ""]),
            ("first", ["1", "", "9", "", "18446744073709551615"]),
            ("safe", ["1", "", "9", "18446744073709551615", ""]),
            ("earlier", ["1", "7:18446744073709551615 ", "9", "", ""]),
            ("epoch", ["", "", "9", "", ""]),
        ] {
            let found = answer(fields);
            let odd = read_bounds(&found, Durability::Replicated).unwrap_err();
            assert_eq!(odd.field, field, "{fields:?}");
            let why = describe_malformed("{trunkline:queues}:head", &odd);
            assert!(why.starts_with(&format!("{{trunkline:queues}}:head: the field {field} is \"")), "{why}");
            assert!(why.contains(odd.value.as_str()), "{why}");
        }
    }

    #[test]
    fn a_claim_refuses_numbers_beyond_the_counting_range() {
        let sound = ["1", "", "12", "12", "3", "4", "6", "77", "1000", "1500", "", FEED];
        let read = |fields| read_claim(&answer(fields), 1, Durability::Replicated, Timestamp(0));
        assert!(read(sound).is_ok());
        for (at, name) in [(2, "last"), (3, "safe"), (4, "first"), (5, "number"), (6, "turn")] {
            for odd in ["18446744073709551615", "1000000000000000", "-1", "xyz", "1e3"] {
                let mut fields = sound;
                fields[at] = odd;
                assert_eq!(read(fields).unwrap_err(), MalformedField::new(name, odd));
            }
        }
    }
}
