//! Errors of failed commands, by whether the command may have been applied.

use redis::{ErrorKind, RedisError};

/// A command failed. The variants state whether it may have been applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no connection: the command was not sent.
    #[error("no connection: {0}")]
    NotSent(String),
    /// It was sent, and no valid reply came: it was applied, will be applied later, or never.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The server did not apply it. `code` is the first word of its error, such as `OOM`.
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

    /// The first word of the server's error.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NotSent(_) | Self::NoAnswer(_) => None,
        }
    }

    /// Whether user and password were rejected: an operator must act.
    pub fn is_refused_login(&self) -> bool {
        match self {
            Self::NotSent(text) => text.contains(LOGIN_REFUSED),
            Self::NoAnswer(_) => false,
            Self::Refused { code, .. } => matches!(code.as_str(), "NOAUTH" | "WRONGPASS" | "NOPERM"),
        }
    }

    /// Whether the server is not a primary (now), or did not reply: then the next command looks up the primary again.
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

/// Whether a login was rejected or is missing.
pub(super) fn is_refused_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS") || wants_login(error)
}

/// Whether the server requires a login or another one.
pub(super) fn wants_login(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOAUTH" | "NOPERM"))
}

/// Whether no version of Redis gives this reply.
fn is_no_redis(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Parse || error.to_string().contains("Parse error")
}

/// An error as text, with its kind where the text alone is not enough.
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
