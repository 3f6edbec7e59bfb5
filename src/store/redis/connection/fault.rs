//! What became of a command that failed.

use redis::{ErrorKind, RedisError};

/// A command failed; the caller must know whether it may have been done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no connection: nothing was sent, nothing was done.
    #[error("no connection: {0}")]
    NotSent(String),
    /// It was sent, and no answer came (or none that makes sense): it was done, or will be yet, or never.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The server did not do it. `code` is the first word of its answer, such as `OOM`.
    #[error("refused: {code} {text}")]
    Refused { code: String, text: String },
}

impl CommandError {
    pub(super) fn of(error: &RedisError) -> Self {
        match error.code() {
            Some(code) => Self::Refused { code: code.to_owned(), text: error.detail().unwrap_or_default().to_owned() },
            None => Self::NoAnswer(text(error)),
        }
    }

    /// The first word of the server's refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NotSent(_) | Self::NoAnswer(_) => None,
        }
    }

    /// Whether user and password were refused: an operator has to act.
    pub fn is_refused_login(&self) -> bool {
        match self {
            Self::NotSent(text) => text.contains(LOGIN_REFUSED),
            Self::NoAnswer(_) => false,
            Self::Refused { code, .. } => matches!(code.as_str(), "NOAUTH" | "WRONGPASS" | "NOPERM"),
        }
    }

    /// Whether the server that answered is no primary (now), or nobody answered: then it is looked up anew.
    pub(super) fn ends_connection(&self) -> bool {
        match self {
            Self::NotSent(_) => false,
            Self::NoAnswer(_) => true,
            Self::Refused { code, .. } => {
                matches!(code.as_str(), "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH" | "UNBLOCKED")
            }
        }
    }
}

const LOGIN_REFUSED: &str = "user or password is refused";

/// Whether a login was refused, or is missing.
pub(super) fn is_refused_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS") || wants_login(error)
}

/// Whether the server answers only those who have presented a (better) login.
pub(super) fn wants_login(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOAUTH" | "NOPERM"))
}

/// Whether the answer was none that any version of Redis gives.
fn is_no_redis(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Parse || error.to_string().contains("Parse error")
}

/// An error for people, with its kind where the text alone says little.
pub(super) fn text(error: &RedisError) -> String {
    if is_no_redis(error) {
        "this is not a Redis server: it does not answer in Redis' protocol (an HTTP server, or TLS on a port without it?)"
            .to_owned()
    } else if error.kind() == ErrorKind::Io {
        format!("network error: {error}")
    } else if is_refused_login(error) {
        format!("{LOGIN_REFUSED}: {error}")
    } else {
        error.to_string()
    }
}
