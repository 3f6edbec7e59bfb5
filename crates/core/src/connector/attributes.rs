//! Makes a platform's texts valid CloudEvents attributes (CloudEvents 1.0, "Type System": no control characters, no
//! noncharacters, not empty). The prefix `trunkline.` is reserved for entries that Trunkline makes.

use std::fmt::Write;

use bytestring::ByteString;

use crate::model::Event;

/// The prefix of the types that Trunkline makes.
const RESERVED_PREFIX: &[u8] = b"trunkline.";
/// A longer type does not fit into a header.
const KIND_LEN_MAX: usize = 1_024;

/// Replaces an invalid type by `kind_default`, and escapes invalid characters in other attributes.
pub(super) fn normalize(event: &mut Event, kind_default: &str) {
    if !is_kind(&event.kind) {
        event.kind = kind_default.into();
    }
    for text in [&mut event.subject, &mut event.correlation, &mut event.partition_key] {
        if text.as_ref().is_some_and(|text| text.is_empty() || !is_graphic(text)) {
            *text = text.take().filter(|text| !text.is_empty()).map(escaped);
        }
    }
}

fn is_kind(kind: &str) -> bool {
    let is_own =
        kind.as_bytes().get(..RESERVED_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX));
    let is_text = is_graphic(kind) || kind.chars().all(|c| is_permitted(c) && !c.is_whitespace());
    is_text && !is_own && !kind.is_empty() && kind.len() <= KIND_LEN_MAX
}

/// Escapes characters that are not permitted as JSON does: `\u000a`.
fn escaped(text: ByteString) -> ByteString {
    if text.chars().all(is_permitted) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_permitted(c) {
            true => escaped.push(c),
            false => write!(escaped, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
        }
    }
    escaped.into()
}

/// Whether all characters are visible ASCII, the usual case. The compiler vectorizes it.
fn is_graphic(text: &str) -> bool {
    text.bytes().fold(true, |all, byte| all & byte.is_ascii_graphic())
}

fn is_permitted(c: char) -> bool {
    let is_noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    !c.is_control() && !is_noncharacter
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Timestamp};

    fn event(text: &str) -> Event {
        let text = ByteString::from(text);
        Event {
            kind: text.clone(),
            subject: Some(text.clone()),
            time: None,
            sequence: None,
            correlation: Some(text.clone()),
            partition_key: Some(text),
            body: Body::Json("{}".into()),
            received: Timestamp(0),
        }
    }

    #[test]
    fn a_reserved_or_invalid_type_is_replaced() {
        let long = "x".repeat(KIND_LEN_MAX + 1);
        for bad in [
            "trunkline.gap.v1",
            "trunkline.",
            "Trunkline.Snapshot.v1",
            "",
            " ",
            " a",
            "a b",
            "a\u{a0}b",
            "a\r\nb",
            "\u{1b}[31m",
            "a\u{0}",
            "a\u{7f}",
            "a\u{85}",
            "a\u{ffff}",
            &long,
        ] {
            let mut event = event(bad);
            normalize(&mut event, "x.event");
            assert_eq!(event.kind, "x.event", "{bad:?}");
        }
        for good in ["v2.users.presence", "trunkline", "trunklines.x", "a-b_c/d", "Ereignis-ü", &long[1..]] {
            let mut event = event(good);
            normalize(&mut event, "x.event");
            assert_eq!(event.kind, *good);
        }
    }

    #[test]
    fn other_attributes_are_escaped_and_never_empty() {
        for (text, expected) in [
            ("v2.users.1.presence", Some("v2.users.1.presence")),
            ("trunkline.gap.v1", Some("trunkline.gap.v1")),
            ("a b ü", Some("a b ü")),
            ("a\r\nb\u{1b}[0m", Some("a\\u000d\\u000ab\\u001b[0m")),
            ("\u{7f}\u{9f}\u{fdd0}\u{fffe}\u{1ffff}", Some("\\u007f\\u009f\\ufdd0\\ufffe\\u1ffff")),
            ("", None),
        ] {
            let mut event = event(text);
            normalize(&mut event, "x.event");
            for found in [event.subject, event.correlation, event.partition_key] {
                assert_eq!(found.as_deref(), expected, "{text:?}");
            }
        }
    }
}
