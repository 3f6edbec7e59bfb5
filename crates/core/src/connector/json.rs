//! Reads the few members of a JSON text that a connector needs, in one pass, without building a document.

use std::{borrow::Cow, fmt, ops::Range};

use bytestring::ByteString;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::Timestamp;

/// Common parsers refuse a deeper document. It is stored undecoded.
const DEPTH_MAX: usize = 64;

/// Whether the text nests no deeper than consumers can read. Expects valid JSON.
pub(super) fn is_within_depth(text: &str) -> bool {
    count_openers(text.as_bytes()) <= DEPTH_MAX || depth(text.as_bytes()) <= DEPTH_MAX
}

/// The number of `[` and `{`, also inside strings. The chunks let the compiler vectorize the loop.
fn count_openers(text: &[u8]) -> usize {
    /// In ASCII, `[` and `{` differ only in this bit.
    const BRACE: u8 = b'[' ^ b'{';
    let count =
        |chunk: &[u8]| chunk.iter().fold(0_u8, |count, byte| count.wrapping_add(u8::from(byte | BRACE == b'{')));
    text.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(count(chunk))).sum()
}

fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match (byte, in_string) {
            (_, true) if escaped => escaped = false,
            (b'\\', true) => escaped = true,
            (b'"', _) => in_string = !in_string,
            (b'{' | b'[', false) => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (b'}' | b']', false) => depth = depth.saturating_sub(1),
            _ => (),
        }
    }
    deepest
}

/// A value that is read if it is a text or a whole number, and skipped otherwise.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LenientValue<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Other,
}

impl LenientValue<'_> {
    /// The text, as a slice of `frame` if it has no escapes.
    pub(super) fn text_in(&self, frame: &ByteString) -> Option<ByteString> {
        match self {
            Self::Text(text) => Some(slice_of(frame, text)),
            Self::Number(_) | Self::Other => None,
        }
    }

    /// A whole number, also if it is written as a text.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
            Self::Other => None,
        }
    }

    /// An event time as RFC 3339: a valid text, a text that lacks only the colon in its offset, or a plausible number of
    /// milliseconds since 1970. None otherwise; the envelope then has the time of receipt.
    pub(super) fn time_in(&self, frame: &ByteString) -> Option<ByteString> {
        match self {
            Self::Text(text) => match OffsetForm::of(text)? {
                OffsetForm::Rfc3339 => Some(slice_of(frame, text)),
                OffsetForm::OffsetWithoutColon { minutes } => Some(with_colon(text, minutes)),
            },
            Self::Number(millis) => {
                let millis = i64::try_from(*millis).ok().filter(|millis| PLAUSIBLE_MILLIS.contains(millis))?;
                Some(Timestamp(millis).to_string().into())
            }
            Self::Other => None,
        }
    }
}

/// The years 2000 to 2100 in milliseconds. Other numbers are seconds, counters or unset values.
const PLAUSIBLE_MILLIS: Range<i64> = 946_684_800_000..4_102_444_800_000;

/// Larger floating-point numbers are not exact.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// `text` as a slice of `frame`, or as a copy if it had escapes.
#[expect(clippy::ptr_arg, reason = "whether it is borrowed decides")]
pub(super) fn slice_of(frame: &ByteString, text: &Cow<'_, str>) -> ByteString {
    match text {
        Cow::Borrowed(text) => frame.slice_ref(text),
        Cow::Owned(text) => ByteString::from(text.as_str()),
    }
}

/// The notation of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OffsetForm {
    /// RFC 3339 section 5.6.
    Rfc3339,
    /// RFC 3339 except for an offset `+hhmm` or `+hh`.
    OffsetWithoutColon { minutes: bool },
}

/// The length of `YYYY-MM-DDThh:mm:ss`, and of the longest text with a fraction and an offset.
const DATE_TIME_LEN: usize = 19;
const TIME_LEN_MAX: usize = 64;

impl OffsetForm {
    /// None for an invalid date, a missing offset, or another order.
    fn of(text: &str) -> Option<Self> {
        let (date_time, offset) = text.as_bytes().split_first_chunk()?;
        if text.len() > TIME_LEN_MAX || !is_date_time(date_time) {
            return None;
        }
        let (form, [h0, h1, m0, m1]) = match *after_fraction(offset)? {
            [b'Z' | b'z'] => return Some(Self::Rfc3339),
            [b'+' | b'-', h0, h1, b':', m0, m1] => (Self::Rfc3339, [h0, h1, m0, m1]),
            [b'+' | b'-', h0, h1, m0, m1] => (Self::OffsetWithoutColon { minutes: true }, [h0, h1, m0, m1]),
            [b'+' | b'-', h0, h1] => (Self::OffsetWithoutColon { minutes: false }, [h0, h1, b'0', b'0']),
            _ => return None,
        };
        let are_digits = [h0, h1, m0, m1].iter().all(u8::is_ascii_digit);
        (are_digits && number(h0, h1) < 24 && number(m0, m1) < 60).then_some(form)
    }
}

/// The rest after an optional fraction of a second; none if the point has no digits.
fn after_fraction(text: &[u8]) -> Option<&[u8]> {
    let Some(fraction) = text.strip_prefix(b".") else { return Some(text) };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| &fraction[digits..])
}

/// Whether date and time of day exist. A leap second is valid at the end of an hour.
fn is_date_time(text: &[u8; DATE_TIME_LEN]) -> bool {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b'T' | b't', h0, h1, b':', n0, n1, b':', s0, s1] = *text else {
        return false;
    };
    let digits = [y0, y1, y2, y3, m0, m1, d0, d1, h0, h1, n0, n1, s0, s1];
    let year = 100 * number(y0, y1) + number(y2, y3);
    let (minute, second) = (number(n0, n1), number(s0, s1));
    digits.iter().fold(true, |all, digit| all & digit.is_ascii_digit())
        && (1..=days_in_month(year, number(m0, m1))).contains(&number(d0, d1))
        && number(h0, h1) < 24
        && minute < 60
        && second <= if minute == 59 { 60 } else { 59 }
}

/// The days of a month; none for an invalid month.
fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 0,
    }
}

/// The number of two digits. Other bytes give an arbitrary number.
fn number(tens: u8, ones: u8) -> u32 {
    let value = |digit: u8| u32::from(digit.wrapping_sub(b'0'));
    10 * value(tens) + value(ones)
}

/// The time with its offset in the notation of RFC 3339.
fn with_colon(text: &str, minutes: bool) -> ByteString {
    let (rest, minutes) = if minutes { text.split_at(text.len() - 2) } else { (text, "00") };
    format!("{rest}:{minutes}").into()
}

impl<'de: 'a, 'a> Deserialize<'de> for LenientValue<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LenientValueVisitor)
    }
}

struct LenientValueVisitor;

impl<'de> Visitor<'de> for LenientValueVisitor {
    type Value = LenientValue<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(LenientValue::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(LenientValue::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(LenientValue::Number(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(LenientValue::Other)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is whole and within the range")]
    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        let whole = (0.0..EXACT_MAX).contains(&number) && number.fract() == 0.0;
        Ok(if whole { LenientValue::Number(number as u64) } else { LenientValue::Other })
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(LenientValue::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(LenientValue::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(LenientValue::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(LenientValue::Other)
    }
}

/// `{"CorrelationId": …}`. Other members are skipped.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a> {
    pub(super) correlation: Option<LenientValue<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Metadata<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = Metadata::default();
        while let Some(key) = map.next_key::<MemberName<'_>>()? {
            if &*key.0 == "CorrelationId" {
                metadata.correlation = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(metadata)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        LenientValueVisitor.visit_seq(seq).map(|_| Metadata::default())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Metadata::default())
    }
}

/// The unparsed members of an object. Each is parsed on use, so that an invalid one does not affect the others. The
/// last one of equal names counts.
#[derive(Debug)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// Members beyond this limit are skipped.
const MEMBERS_MAX: usize = 256;

impl<'a> Members<'a> {
    /// None if the text is not a JSON object.
    pub(super) fn read(text: &'a [u8]) -> Option<Self> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        serde_json::from_slice(text).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| *value)
    }

    /// A member of this type; none if it is missing or invalid.
    pub(super) fn member<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// A text, or the digits of a number.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(text)
    }

    /// A whole number, also if it is written as a text.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.member::<LenientValue<'_>>(name)?.number()
    }

    /// The elements of a list; empty for another type.
    pub(super) fn list(&self, name: &str) -> Vec<&'a RawValue> {
        self.member(name).unwrap_or_default()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(MemberName(key)) = map.next_key()? {
            let value = map.next_value()?;
            if members.len() < MEMBERS_MAX {
                members.push((key, value));
            }
        }
        Ok(Members(members))
    }
}

/// A text, or the digits of a number.
pub(super) fn text(value: &RawValue) -> Option<String> {
    match serde_json::from_str(value.get()).ok()? {
        LenientValue::Text(text) => Some(text.into_owned()),
        LenientValue::Number(number) => Some(number.to_string()),
        LenientValue::Other => None,
    }
}

/// Texts of an answer are truncated to this length in messages.
pub(super) const TEXT_LEN_MAX: usize = 300;

/// A text from outside for a message: on one line, at most [`TEXT_LEN_MAX`] characters.
pub(super) fn truncated(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_LEN_MAX).collect()
}

/// A key of an object, borrowed where it has no escapes.
#[derive(Debug, serde::Deserialize)]
pub(super) struct MemberName<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_inside_strings_is_ignored() {
        assert!(is_within_depth(&format!("{}{}", "[".repeat(64), "]".repeat(64))));
        assert!(!is_within_depth(&format!("{}{}", "[".repeat(65), "]".repeat(65))));
        assert!(is_within_depth(&format!(r#"["\"{}"]"#, "[".repeat(200))));
        assert!(is_within_depth(&format!("[{}[]]", "[],".repeat(200))));
    }

    #[test]
    fn a_time_is_rfc_3339_or_omitted() {
        let time_of = |value: &str| {
            let frame = ByteString::from(value);
            let loose: LenientValue<'_> = serde_json::from_str(&frame).unwrap();
            loose.time_in(&frame).map(|time| time.to_string())
        };
        for same in [
            "2026-05-04T13:31:49Z",
            "2026-05-04T13:31:49.570Z",
            "2026-05-04t13:31:49.570z",
            "2026-05-04T13:31:49.570+02:00",
            "2026-05-04T13:31:49.123456789-11:30",
            "2024-02-29T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "2016-12-31T23:59:60Z",
            "2026-05-04T13:31:49.12345678901234567890Z",
        ] {
            assert_eq!(time_of(&format!("{same:?}")).as_deref(), Some(same));
        }
        for (found, expected) in [
            (r#""2026-05-04T13:31:49.570+0000""#, "2026-05-04T13:31:49.570+00:00"),
            (r#""2026-05-04T13:31:49-0330""#, "2026-05-04T13:31:49-03:30"),
            (r#""2026-05-04T13:31:49+02""#, "2026-05-04T13:31:49+02:00"),
            (r#""2026-05-04T13:31:49\u005a""#, "2026-05-04T13:31:49Z"),
            ("1777901509570", "2026-05-04T13:31:49.570Z"),
            ("1.77790150957e12", "2026-05-04T13:31:49.570Z"),
            ("946684800000", "2000-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(time_of(found).as_deref(), Some(expected), "{found}");
        }
        for bad in [
            r#""2026-05-04""#,
            r#""2026-05-04 13:31:49Z""#,
            r#""2026-05-04T13:31:49""#,
            r#""2026-05-04T13:31:49.Z""#,
            r#""2026-05-04T13:31:49.570 CEST""#,
            r#""2026-05-04T13:31:49.570+00:0""#,
            r#""2026-05-04T13:31:49+24:00""#,
            r#""2026-05-04T13:31:49+0060""#,
            r#""2026-05-04T13:31:49Z0""#,
            r#""2026-02-29T13:31:49Z""#,
            r#""1900-02-29T13:31:49Z""#,
            r#""2026-04-31T13:31:49Z""#,
            r#""2026-13-04T13:31:49Z""#,
            r#""2026-00-04T13:31:49Z""#,
            r#""2026-05-00T13:31:49Z""#,
            r#""2026-05-04T24:00:00Z""#,
            r#""2026-05-04T13:60:49Z""#,
            r#""2026-05-04T13:31:60Z""#,
            r#""20é-05-04T13:31:49Z""#,
            r#""now""#,
            r#""""#,
            "0",
            "-1",
            "1777901509",
            "946684799999",
            "4102444800000",
            "18446744073709551615",
            "1777901509570.5",
            "1e300",
            "null",
            "true",
            r#"["2026-05-04T13:31:49Z"]"#,
        ] {
            assert_eq!(time_of(bad), None, "{bad}");
        }
    }
}
