//! The permission of a consumer's token: streams, subject and expiry.

mod claims;

use std::{fmt, str::FromStr};

use super::{StreamName, Timestamp};

pub use self::claims::{ClaimError, ClaimRules, TOKEN_LEEWAY};

/// Maximum bytes of a subject.
const SUBJECT_LEN_MAX: usize = 256;

/// Maximum characters of a stream pattern.
const PATTERN_LEN_MAX: usize = 128;

/// The permission of a verified token. Tokens of consumers are issued elsewhere, or by `trunkline token mint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerGrant {
    pub subject: Subject,
    /// Never empty.
    pub streams: Vec<StreamPattern>,
    /// When the token expires, by the clock of its issuer.
    pub expires_at: Timestamp,
    /// When the token was issued. None counts as issued before every revocation.
    pub issued_at: Option<Timestamp>,
    /// An expression that limits the events of the consumer.
    pub filter: Option<String>,
}

impl ConsumerGrant {
    /// Whether the token permits to read this stream.
    pub fn may_read(&self, stream: &StreamName) -> bool {
        self.streams.iter().any(|pattern| pattern.matches(stream))
    }

    /// Whether the token permits to read every stream, also streams that do not exist.
    pub fn reads_all(&self) -> bool {
        self.streams.iter().any(|pattern| pattern.0 == "*")
    }
}

/// The consumer that a token was issued for: 1 to 256 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

/// The text is not a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a subject of 1 to {SUBJECT_LEN_MAX} bytes without control characters")]
pub struct SubjectError;

impl Subject {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let valid = (1..=SUBJECT_LEN_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        valid.then(|| Self(text.to_owned())).ok_or(SubjectError)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A stream name, or a glob over names: `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPattern(String);

/// The text is not a stream pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the name of a stream, or a pattern of at most {PATTERN_LEN_MAX} characters: a-z, 0-9, '.', '_', '-', \
     '*' for any characters and '?' for one"
)]
pub struct StreamPatternError;

impl StreamPattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name of the stream matches.
    pub fn matches(&self, stream: &StreamName) -> bool {
        matches(self.0.as_bytes(), stream.as_str().as_bytes())
    }
}

impl FromStr for StreamPattern {
    type Err = StreamPatternError;

    fn from_str(text: &str) -> Result<Self, StreamPatternError> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-' | b'*' | b'?')
        };
        let valid = (1..=PATTERN_LEN_MAX).contains(&text.len()) && text.bytes().all(allowed);
        valid.then(|| Self(text.to_owned())).ok_or(StreamPatternError)
    }
}

/// Matches in at most `pattern.len() * name.len()` steps: on a mismatch only the last `*` takes one more character.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut last_star = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                last_star = Some((at, from));
                at += 1;
            }
            Some(b'?') => (at, from) = (at + 1, from + 1),
            Some(byte) if *byte == name[from] => (at, from) = (at + 1, from + 1),
            Some(_) | None => {
                let Some((star, taken)) = last_star else { return false };
                last_star = Some((star, taken + 1));
                (at, from) = (star + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(streams: &[&str]) -> ConsumerGrant {
        ConsumerGrant {
            subject: "a".parse().unwrap(),
            streams: streams.iter().map(|text| text.parse().unwrap()).collect(),
            expires_at: Timestamp(0),
            issued_at: None,
            filter: None,
        }
    }

    #[test]
    fn a_grant_covers_the_streams_that_a_pattern_matches() {
        for (patterns, stream, covered) in [
            (&["queues"][..], "queues", true),
            (&["queues"], "queues2", false),
            (&["queues"], "queue", false),
            (&["a", "queues"], "queues", true),
            (&["acme.*"], "acme.queues", true),
            (&["acme.*"], "acme.", true),
            (&["acme.*"], "acmes.queues", false),
            (&["*.queues"], "acme.queues", true),
            (&["*.queues"], "acme.queues.eu", false),
            (&["a*b*c"], "a-b-b-c", true),
            (&["a*b*c"], "a-b-b", false),
            (&["a*b*c"], "abcabc", true),
            (&["*a"], "aaaab", false),
            (&["**a**"], "a", true),
            (&["q?"], "q1", true),
            (&["q?"], "q", false),
            (&["q?"], "q12", false),
            (&["*"], "anything.at_all-1", true),
        ] {
            assert_eq!(grant(patterns).may_read(&stream.parse().unwrap()), covered, "{patterns:?} {stream}");
        }
    }

    #[test]
    fn only_a_single_star_reads_all() {
        for (patterns, all) in [(&["*"][..], true), (&["a", "*"], true), (&["a*"], false), (&["?*"], false)] {
            assert_eq!(grant(patterns).reads_all(), all, "{patterns:?}");
        }
    }

    #[test]
    fn a_pattern_that_can_match_no_name_is_no_pattern() {
        for text in ["", "Queues", "a b", "a/b", "[ab]", "{a,b}", "a\\", "ä", &"x".repeat(129)] {
            assert_eq!(text.parse::<StreamPattern>(), Err(StreamPatternError), "{text}");
        }
    }

    #[test]
    fn a_long_pattern_does_not_take_long() {
        let pattern: StreamPattern = "*a".repeat(64).parse().unwrap();
        let name = "a".repeat(63) + "b";
        assert!(!pattern.matches(&name.parse().unwrap()));
    }

    #[test]
    fn a_subject_is_short_and_printable() {
        for text in ["wallboard", "ä b", "https://id.test/users/1", &"x".repeat(256)] {
            assert_eq!(text.parse::<Subject>().unwrap().as_str(), text);
        }
        for text in ["", "a\nb", "a\0", "a\u{9b}b", &"x".repeat(257)] {
            assert_eq!(text.parse::<Subject>(), Err(SubjectError), "{text:?}");
        }
    }
}
