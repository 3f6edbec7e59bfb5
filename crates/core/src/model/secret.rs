//! A value that must not be shown: `Debug` is masked, and there is no `Display` or `Serialize`.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// Some editors write it at the start of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A secret text: wiped from memory when dropped, printed as `***`.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The secret of a file or variable, without surrounding white space and byte order mark.
    pub fn trimmed(text: &str) -> &str {
        text.trim_matches(|character: char| character.is_whitespace() || character == BYTE_ORDER_MARK)
    }

    /// Whether a trimmed text contains a control character. Secrets contain none.
    pub fn has_control_characters(text: &str) -> bool {
        text.chars().any(char::is_control)
    }

    /// The plain text. Use it only to send it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// In constant time for equal lengths, so that the duration reveals nothing about the text.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.expose().as_bytes(), other.expose().as_bytes()).is_ok()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_around_a_secret_is_removed() {
        for text in ["s3cr t", " s3cr t\n", "\u{feff}s3cr t\r\n", "\n\u{feff} s3cr t\u{feff}"] {
            assert_eq!(Secret::trimmed(text), "s3cr t", "{text:?}");
        }
        assert_eq!(Secret::trimmed("\u{feff}\n"), "");
        for text in ["two\nlines", "a\0", "a\tb", "a\u{9b}b"] {
            assert!(Secret::has_control_characters(Secret::trimmed(text)), "{text:?}");
        }
        assert!(!Secret::has_control_characters("s3cr t"));
    }
}
