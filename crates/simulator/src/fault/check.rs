//! The limits of faults, and why one is impossible.

use super::{PlatformFault, RequestKind, ResponseFault, TokenFailure};

/// Most events that one fault may repeat, skip or hold, and most fragments of one frame.
const COUNT_MAX: u64 = 100_000;
/// Largest oversize frame.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// Most digits of a raw close: the largest frame whose length fits into two bytes.
const HEX_MAX: usize = 2 * 65_535;

/// Why a fault is impossible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error("status {0} is no refusal; use 400 to 599")]
    Status(u16),
    #[error("close code {0} cannot be sent; use 1000 to 4999, or close_raw")]
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
    #[error("status {0} is no final answer; use 200 to 599")]
    Answer(u16),
    #[error("hex must be two digits a byte and at most {HEX_MAX} digits, not {0:?}")]
    Hex(String),
    #[error("{0} is an answer that only {1} can get")]
    Kind(&'static str, &'static str),
    #[error("content_type must be visible ASCII, not {0:?}")]
    ContentType(String),
    #[error("set must be JSON text, not {0:?}")]
    Set(String),
}

impl PlatformFault {
    /// Checks that the fault is possible.
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
            | Self::CloseQuiet { .. }
            | Self::EmptyText { .. }
            | Self::SlowLoris { .. } => Ok(()),
            Self::Answer { to, times, how, .. } => {
                at_least_once(*times)?;
                how.check(*to)
            }
            Self::CloseRaw { hex, .. } => match bytes(hex) {
                Some(_) => Ok(()),
                None => Err(FaultError::Hex(hex.clone())),
            },
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
            Self::Duplicate { n }
            | Self::Jump { n }
            | Self::Reorder { n }
            | Self::Flood { n, .. }
            | Self::Binary { n, .. }
            | Self::Reword { n, .. }
            | Self::Unsent { n } => count(*n),
            Self::Fragments { n, .. } => count(*n as u64),
            Self::Oversize { bytes, .. } | Self::Pad { bytes, .. } if *bytes > BYTES_MAX => {
                Err(FaultError::Bytes(*bytes))
            }
            Self::Oversize { .. } | Self::Pad { .. } => Ok(()),
        }
    }
}

impl ResponseFault {
    fn check(&self, to: RequestKind) -> Result<(), FaultError> {
        match self {
            Self::Status { status, retry_after, .. } => {
                refusal_or_success(*status)?;
                header(retry_after.as_deref(), FaultError::RetryAfter)?;
            }
            Self::Body { status, content_type, .. } => {
                refusal_or_success(*status)?;
                header(Some(content_type), FaultError::ContentType)?;
            }
            Self::Changed { status, content_type, set, .. } => {
                status.map_or(Ok(()), refusal_or_success)?;
                header(content_type.as_deref(), FaultError::ContentType)?;
                let set = set.as_deref().filter(|set| serde_json::from_str::<serde_json::Value>(set).is_err());
                set.map_or(Ok(()), |set| Err(FaultError::Set(set.to_owned())))?;
                if to == RequestKind::Upgrade {
                    return Err(FaultError::Kind("changed", "rest and token"));
                }
            }
            Self::ConnectionList if to != RequestKind::Upgrade => {
                return Err(FaultError::Kind("connection_list", "upgrade"));
            }
            Self::Closed { .. } if to != RequestKind::Upgrade => return Err(FaultError::Kind("closed", "upgrade")),
            Self::Closed { code, .. } if !(1000..5000).contains(code) => return Err(FaultError::CloseCode(*code)),
            Self::Hang | Self::Late { .. } | Self::Trickle { .. } | Self::Reset => return Ok(()),
            Self::ConnectionList | Self::Interim | Self::Closed { .. } => (),
        }
        if to == RequestKind::Connection {
            return Err(FaultError::Kind("this", "upgrade, rest and token"));
        }
        Ok(())
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

/// The bytes that hexadecimal digits stand for.
pub(crate) fn bytes(hex: &str) -> Option<Vec<u8>> {
    if hex.len() > HEX_MAX || !hex.len().is_multiple_of(2) || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

fn refusal_or_success(status: u16) -> Result<(), FaultError> {
    if (200..600).contains(&status) { Ok(()) } else { Err(FaultError::Answer(status)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_given_is_refused_with_the_reason() {
        let table = [
            (r#"{"fault":"answer","to":"rest","how":{"status":{"status":101}}}"#, "status 101 is no final answer"),
            (r#"{"fault":"answer","to":"rest","times":0,"how":"hang"}"#, "at least 1"),
            (r#"{"fault":"answer","to":"rest","how":"connection_list"}"#, "only upgrade"),
            (r#"{"fault":"answer","to":"token","how":{"closed":{"after":"1s","code":1008}}}"#, "only upgrade"),
            (r#"{"fault":"answer","to":"upgrade","how":{"changed":{}}}"#, "only rest and token"),
            (r#"{"fault":"answer","to":"connection","how":"interim"}"#, "only upgrade, rest and token"),
            (r#"{"fault":"answer","to":"rest","how":{"changed":{"set":"{"}}}"#, "set must be JSON"),
            (r#"{"fault":"answer","to":"rest","how":{"body":{"content_type":"é","text":""}}}"#, "content_type"),
            (r#"{"fault":"close_raw","hex":"03f"}"#, "two digits a byte"),
            (r#"{"fault":"flood","n":0}"#, "n must be"),
        ];
        for (text, word) in table {
            let error = serde_json::from_str::<PlatformFault>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let always = r#"{"fault":"answer","to":"token","times":"always","how":"hang"}"#;
        let fault: PlatformFault = serde_json::from_str(always).unwrap();
        assert_eq!((fault.check(), fault.label()), (Ok(()), "answer token hang".to_owned()));
        assert!(serde_json::to_string(&fault).unwrap().contains(r#""times":"always""#));
    }
}
