//! What can go wrong, as values, for code, JSON and TOML alike. It refuses what cannot be done, and it does
//! nothing itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most events one fault may repeat, skip or hold back, and most pieces of one frame.
const COUNT_MAX: u64 = 100_000;
/// Largest oversize frame.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Whose sockets a fault is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    #[default]
    All,
    Sequenced,
    Notifications,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The TCP connection is reset.
    Drop {
        #[serde(default)]
        on: Target,
    },
    /// The socket stays open; nothing is read, sent or answered on it for this long.
    Stall {
        #[serde(default)]
        on: Target,
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// The server closes with this code.
    Close {
        #[serde(default)]
        on: Target,
        code: u16,
        #[serde(default)]
        reason: String,
    },
    /// `v2.system.socket_closing`, and the close after the lead time.
    SocketClosing {
        #[serde(with = "span")]
        lead: Duration,
    },
    /// Every token ends now; notification sockets are told.
    TokenRevoked {},
    /// Every channel loses its subscriptions and is told so.
    NoLongerSubscribed {},
    /// The next handshakes are answered with this status.
    Refuse {
        #[serde(default)]
        on: Target,
        status: u16,
        #[serde(default = "once")]
        times: u32,
        /// Written into the header as it is.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// The next token requests fail.
    Token {
        failure: TokenFailure,
        #[serde(default = "once")]
        times: u32,
    },
    /// The next REST calls fail.
    Rest {
        status: u16,
        #[serde(default = "once")]
        times: u32,
        #[serde(default)]
        retry_after: Option<String>,
        /// Only calls whose path begins so.
        #[serde(default)]
        path: Option<String>,
    },
    /// The last `n` sequenced events are said again.
    Duplicate { n: u64 },
    /// `n` sequence numbers are skipped.
    Jump { n: u64 },
    /// The numbering starts again at 1.
    Reset {},
    /// The next `n` sequenced events are said in reverse order.
    Reorder { n: u64 },
    /// A frame that nobody can read.
    Undecodable {
        #[serde(default)]
        on: Target,
        #[serde(default)]
        what: Undecodable,
    },
    /// An event of at least this size: numbered on the sequenced stream.
    Oversize {
        #[serde(default)]
        on: Target,
        bytes: usize,
    },
    /// From now on each frame waits so long before it is sent.
    Delay {
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// The next frame of each socket is sent one byte at a time.
    SlowLoris {
        #[serde(default)]
        on: Target,
        /// Time between two bytes.
        #[serde(with = "span")]
        every: Duration,
    },
    /// The next frame of each socket is sent in `n` fragments.
    Fragments {
        #[serde(default)]
        on: Target,
        n: usize,
    },
}

/// How a token request fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenFailure {
    /// 429; `retry_after` is written as it is: seconds, a date, or nonsense.
    TooManyRequests {
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// An answer with this status and an error body.
    Status {
        status: u16,
    },
    /// 401 `invalid_client`.
    InvalidClient,
    /// 400 `invalid_grant`.
    InvalidGrant,
    /// The connection is reset before an answer.
    Reset,
    /// The right answer, so much later.
    Slow {
        #[serde(rename = "for", with = "span")]
        lasting: Duration,
    },
    /// No answer, ever.
    Silent,
    /// 200 with a page for people.
    Html,
    /// 200 with a right answer that is padded beyond 64 KiB.
    Huge,
    NoExpiresIn,
    /// `expires_in` is this JSON text.
    ExpiresIn {
        json: String,
    },
    /// 302 to this address.
    Redirect {
        to: String,
    },
}

/// Why a frame cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undecodable {
    Binary,
    #[default]
    InvalidJson,
    /// JSON, but no event.
    WrongShape,
    /// JSON nested deeper than any reader goes.
    Deep,
    /// A text frame that is not UTF-8.
    InvalidUtf8,
}

/// A fault that asks for the impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error("status {0} is no refusal; use 400 to 599")]
    Status(u16),
    #[error("close code {0} cannot be sent; use 1000 to 4999")]
    CloseCode(u16),
    #[error("times must be at least 1")]
    Times,
    #[error("n must be 1 to {COUNT_MAX}, not {0}")]
    Count(u64),
    #[error("bytes must be at most {BYTES_MAX}, not {0}")]
    Bytes(usize),
    #[error("expires_in must be JSON text, not {0:?}")]
    Json(String),
    #[error("retry_after must be visible ASCII, not {0:?}")]
    RetryAfter(String),
    #[error("to must be visible ASCII, not {0:?}")]
    Redirect(String),
}

impl Fault {
    /// Whether it can be done at all.
    pub fn check(&self) -> Result<(), FaultError> {
        match self {
            Self::Drop { .. }
            | Self::Stall { .. }
            | Self::SocketClosing { .. }
            | Self::TokenRevoked {}
            | Self::NoLongerSubscribed {}
            | Self::Reset {}
            | Self::Undecodable { .. }
            | Self::Delay { .. }
            | Self::SlowLoris { .. } => Ok(()),
            Self::Close { code, .. } if !(1000..5000).contains(code) => Err(FaultError::CloseCode(*code)),
            Self::Close { .. } => Ok(()),
            Self::Refuse { status, times, retry_after, .. } | Self::Rest { status, times, retry_after, .. } => {
                refusal(*status)?;
                at_least_once(*times)?;
                header(retry_after.as_deref(), FaultError::RetryAfter)
            }
            Self::Token { failure, times } => {
                at_least_once(*times)?;
                failure.check()
            }
            Self::Duplicate { n } | Self::Jump { n } | Self::Reorder { n } => count(*n),
            Self::Fragments { n, .. } => count(*n as u64),
            Self::Oversize { bytes, .. } if *bytes > BYTES_MAX => Err(FaultError::Bytes(*bytes)),
            Self::Oversize { .. } => Ok(()),
        }
    }
}

impl TokenFailure {
    fn check(&self) -> Result<(), FaultError> {
        match self {
            Self::TooManyRequests { retry_after } => header(retry_after.as_deref(), FaultError::RetryAfter),
            Self::Status { status } => refusal(*status),
            Self::ExpiresIn { json } => match serde_json::from_str::<serde_json::Value>(json) {
                Ok(_) => Ok(()),
                Err(_) => Err(FaultError::Json(json.clone())),
            },
            Self::Redirect { to } => header(Some(to), FaultError::Redirect),
            Self::InvalidClient
            | Self::InvalidGrant
            | Self::Reset
            | Self::Slow { .. }
            | Self::Silent
            | Self::Html
            | Self::Huge
            | Self::NoExpiresIn => Ok(()),
        }
    }
}

fn once() -> u32 {
    1
}

fn refusal(status: u16) -> Result<(), FaultError> {
    if (400..600).contains(&status) { Ok(()) } else { Err(FaultError::Status(status)) }
}

fn at_least_once(times: u32) -> Result<(), FaultError> {
    if times == 0 { Err(FaultError::Times) } else { Ok(()) }
}

fn count(n: u64) -> Result<(), FaultError> {
    if (1..=COUNT_MAX).contains(&n) { Ok(()) } else { Err(FaultError::Count(n)) }
}

fn header(value: Option<&str>, wrong: fn(String) -> FaultError) -> Result<(), FaultError> {
    match value {
        Some(text) if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Err(wrong(text.to_owned())),
        Some(_) | None => Ok(()),
    }
}

/// Durations with a unit, as people write them.
pub(super) mod span {
    use std::time::Duration;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::simulator) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(in crate::simulator) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |_| Error::invalid_value(Unexpected::Str(&text), &"a duration with a unit, such as \"30s\"");
        humantime::parse_duration(&text).map_err(wrong)
    }
}

pub(super) mod maybe_span {
    use std::time::Duration;

    use serde::Deserializer;

    pub(in crate::simulator) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        super::span::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fault_goes_through_json_and_back() {
        let faults = [
            Fault::Stall { on: Target::All, lasting: 5 * SECOND },
            Fault::TokenRevoked {},
            Fault::Token { failure: TokenFailure::Slow { lasting: SECOND }, times: 3 },
            Fault::Undecodable { on: Target::Notifications, what: Undecodable::Deep },
        ];
        for fault in faults {
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault, "{text}");
        }
    }
}
