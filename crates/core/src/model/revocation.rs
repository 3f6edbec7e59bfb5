//! Revoked sessions and subjects.

use std::{fmt, str::FromStr, time::Duration};

use super::Timestamp;

/// A session, or all tokens of one subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevocationTarget {
    Session(String),
    Subject(String),
}

/// Tokens that are refused although they are not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub target: RevocationTarget,
    /// Tokens issued up to this time are refused, by the clock of the issuer.
    pub at: Timestamp,
    /// The time until the last of these tokens expires.
    pub ttl: Duration,
}

/// The text is not a target.
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
        assert!("unknown".parse::<RevocationTarget>().is_err());
    }
}
