//! Escapes text from outside: no control characters, and no characters that reorder or hide text.

use std::fmt::{self, Debug, Write};

use tracing::field::Field;
use tracing_subscriber::fmt::format::Writer;

/// Whether the character is a control character, or reorders or hides text.
pub fn is_unsafe(character: char) -> bool {
    let reorders =
        matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(character, '\u{2028}' | '\u{2029}');
    character.is_control() || reorders || breaks
}

/// Formats a field of a text line: the message alone, others as `name=value`.
pub(super) fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    match (field.name(), writer.has_ansi_escapes()) {
        ("message", _) => (),
        (name, true) => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
        (name, false) => write!(writer, "{name}=")?,
    }
    write!(EscapingWriter { out: writer, escape: backslashed }, "{value:?}")
}

/// Escapes unsafe characters in a line of JSON. ASCII control characters are already escaped.
pub(super) fn json(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    let written = EscapingWriter { out: &mut escaped, escape: unicode }.write_str(line.trim_end_matches('\n'));
    written.expect("writing to a string does not fail");
    escaped.push('\n');
    escaped
}

/// Replaces each unsafe character.
struct EscapingWriter<'a, W> {
    out: &'a mut W,
    escape: fn(&mut W, char) -> fmt::Result,
}

impl<W: Write> Write for EscapingWriter<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unsafe) {
            self.out.write_str(&rest[..at])?;
            let mut tail = rest[at..].chars();
            tail.next().map_or(Ok(()), |character| (self.escape)(self.out, character))?;
            rest = tail.as_str();
        }
        self.out.write_str(rest)
    }
}

fn backslashed(out: &mut Writer<'_>, character: char) -> fmt::Result {
    write!(out, "{}", character.escape_default())
}

/// RFC 8259 section 7. All unsafe characters are in the basic plane.
fn unicode(out: &mut String, character: char) -> fmt::Result {
    write!(out, "\\u{:04x}", u32::from(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_characters_are_escaped_in_json() {
        let text = "ä\u{1b}[31m\u{7}\r\n\u{7f}\u{9b}2J\u{202e}txt\u{2028}\u{61c}";
        let line = serde_json::to_string(text).unwrap() + "\n";
        let escaped = json(&line);
        assert!(!escaped.trim_end_matches('\n').chars().any(is_unsafe), "{escaped:?}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        assert_eq!(json("{}\n"), "{}\n");
    }

    #[test]
    fn unsafe_characters_are_escaped_in_text_fields() {
        for value in ["\u{1b}]0;x\u{7}", "a\r\nINFO forged", "\u{9b}31m", "\u{202e}"] {
            let mut text = String::new();
            let mut writer = Writer::new(&mut text);
            write!(EscapingWriter { out: &mut writer, escape: backslashed }, "{value}").unwrap();
            assert!(!text.chars().any(is_unsafe), "{text:?}");
        }
    }
}
