//! Who is let in no longer although a token says so.

use std::{fmt, str::FromStr, time::Duration};

use super::Timestamp;

/// A session, or everything that one subject was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevocationTarget {
    Session(String),
    Subject(String),
}

/// What was let in up to a moment counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub target: RevocationTarget,
    /// Tokens issued up to then are refused: by the clock of whoever issues them.
    pub at: Timestamp,
    /// So long from now on: until the last of those tokens has ended by itself.
    pub ttl: Duration,
}

/// The text does not say whose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is neither session:ID nor subject:NAME")]
pub struct RevocationTargetError {
    found: String,
}

impl fmt::Display for RevocationTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) => write!(f, "session:{id}"),
            Self::Subject(name) => write!(f, "subject:{name}"),
        }
    }
}

impl FromStr for RevocationTarget {
    type Err = RevocationTargetError;

    fn from_str(text: &str) -> Result<Self, RevocationTargetError> {
        match text.split_once(':') {
            Some(("session", id)) => Ok(Self::Session(id.to_owned())),
            Some(("subject", name)) => Ok(Self::Subject(name.to_owned())),
            Some(_) | None => Err(RevocationTargetError { found: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_target_survives_the_round_trip() {
        for whose in [RevocationTarget::Session("a:1".to_owned()), RevocationTarget::Subject(String::new())] {
            assert_eq!(whose.to_string().parse(), Ok(whose));
        }
        assert!("nobody".parse::<RevocationTarget>().is_err());
    }
}
