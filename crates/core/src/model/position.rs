//! The positions of a platform: where its next session resumes.

use std::{fmt, sync::Arc};

use super::Sequence;

/// How far a stream has been stored, in the platform's terms: after the last stored event, not at the next one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Position {
    /// The number of the last event, where the platform numbers events.
    Numbered(Sequence),
    /// A text that the platform gave out. Two of them have no order.
    Opaque(PositionText),
}

impl Position {
    /// The longest opaque text, in bytes.
    pub const LEN_MAX: usize = 1024;

    /// A position with an opaque text. None if the text is empty, longer than [`Self::LEN_MAX`], or has a control
    /// character.
    pub fn opaque(text: &str) -> Option<Self> {
        let is_valid = (1..=Self::LEN_MAX).contains(&text.len()) && !text.contains(char::is_control);
        is_valid.then(|| Self::Opaque(PositionText(text.into())))
    }

    /// The number of the last event; none if the platform does not number events.
    pub fn order(&self) -> Option<Sequence> {
        match self {
            Self::Numbered(sequence) => Some(*sequence),
            Self::Opaque(_) => None,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbered(sequence) => sequence.fmt(f),
            Self::Opaque(text) => f.write_str(text.as_str()),
        }
    }
}

/// The text of an opaque position, in an allocation of its own: a slice would keep the received frame in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PositionText(Arc<str>);

impl PositionText {
    /// The text as the platform wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_has_an_order() {
        let (number, text) = (Position::Numbered(Sequence(7)), Position::opaque("7").unwrap());
        assert_eq!((number.order(), text.order()), (Some(Sequence(7)), None));
        assert_eq!((number.to_string(), text.to_string()), ("7".to_owned(), "7".to_owned()));
        assert_ne!(number, text);
    }

    #[test]
    fn an_opaque_text_has_a_bounded_length_and_no_control_characters() {
        let longest = "x".repeat(Position::LEN_MAX);
        for text in ["2026-05-04 13:31:49+00:00", "=7 é", &longest] {
            assert_eq!(Position::opaque(text).unwrap().to_string(), text);
        }
        for text in ["", "a\nb", "\u{1b}[2J", &format!("{longest}x")] {
            assert_eq!(Position::opaque(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_position_is_small() {
        assert!(size_of::<Option<Position>>() <= 3 * size_of::<usize>());
    }
}
