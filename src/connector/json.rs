//! Reading just as much of a JSON text as a connector needs, in one pass, without building a document.

use std::{borrow::Cow, fmt};

use bytestring::ByteString;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::Timestamp;

/// Deeper than this, common parsers downstream refuse a document, so it is kept as undecoded.
const DEPTH_MAX: usize = 64;

/// Whether the text nests no deeper than consumers can read. Expects valid JSON.
pub(super) fn is_shallow(text: &str) -> bool {
    let count = |opener| memchr::memchr_iter(opener, text.as_bytes()).count();
    count(b'{') + count(b'[') <= DEPTH_MAX || depth(text.as_bytes()) <= DEPTH_MAX
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

/// A value of which only a text or a whole number is of interest; anything else is passed over.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Loose<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Other,
}

impl Loose<'_> {
    /// The text as a slice of `frame` where it stands there unescaped.
    pub(super) fn text_in(&self, frame: &ByteString) -> Option<ByteString> {
        match self {
            Self::Text(text) => Some(slice_of(frame, text)),
            Self::Number(_) | Self::Other => None,
        }
    }

    /// A whole number, also when it is written as a text.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
            Self::Other => None,
        }
    }

    /// An event time: RFC 3339, or milliseconds since 1970.
    pub(super) fn time_in(&self, frame: &ByteString) -> Option<ByteString> {
        match self {
            Self::Text(text) if is_rfc_3339(text) => Some(slice_of(frame, text)),
            Self::Number(millis) => i64::try_from(*millis).ok().map(|millis| Timestamp(millis).to_string().into()),
            Self::Text(_) | Self::Other => None,
        }
    }
}

/// `text` as a slice of `frame`, or as a copy when it is not part of it (it had escapes).
#[expect(clippy::ptr_arg, reason = "whether it is borrowed decides")]
pub(super) fn slice_of(frame: &ByteString, text: &Cow<'_, str>) -> ByteString {
    match text {
        Cow::Borrowed(text) => frame.slice_ref(text),
        Cow::Owned(text) => ByteString::from(text.as_str()),
    }
}

/// The shape of RFC 3339 section 5.6; the numbers are the platform's business.
fn is_rfc_3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shaped = bytes.len() >= 20 && bytes.len() <= 35;
    shaped
        && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')].iter().all(|(at, mark)| bytes[*at] == *mark)
        && [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18].iter().all(|at| bytes[*at].is_ascii_digit())
        && bytes[19..].iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'Z' | b'+' | b'-' | b':'))
        && (bytes.ends_with(b"Z") || bytes[19..].iter().any(|byte| matches!(byte, b'+' | b'-')))
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Loose::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Loose::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Loose::Number(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Loose::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::Other)
    }
}

/// `{"CorrelationId": …}` and whatever else stands beside it.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a> {
    pub(super) correlation: Option<Loose<'a>>,
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
        while let Some(key) = map.next_key::<Key<'_>>()? {
            if &*key.0 == "CorrelationId" {
                metadata.correlation = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(metadata)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        LooseVisitor.visit_seq(seq).map(|_| Metadata::default())
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

/// A key of an object, borrowed where it has no escapes.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Key<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_of_strings_only() {
        assert!(is_shallow(&format!("{}{}", "[".repeat(64), "]".repeat(64))));
        assert!(!is_shallow(&format!("{}{}", "[".repeat(65), "]".repeat(65))));
        assert!(is_shallow(&format!(r#"["\"{}"]"#, "[".repeat(200))));
        assert!(is_shallow(&format!("[{}[]]", "[],".repeat(200))));
    }

    #[test]
    fn a_time_is_taken_only_in_a_form_that_consumers_can_read() {
        for good in ["2026-05-04T13:31:49Z", "2026-05-04T13:31:49.570Z", "2026-05-04T13:31:49.570+02:00"] {
            assert!(is_rfc_3339(good), "{good}");
        }
        for bad in ["2026-05-04", "2026-05-04 13:31:49Z", "2026-05-04T13:31:49", "2026-05-04T13:31:49.570 CEST", "now"]
        {
            assert!(!is_rfc_3339(bad), "{bad}");
        }
    }
}
