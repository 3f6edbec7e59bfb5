//! Errors of failed commands, by whether the command may have been applied.

use redis::{ErrorKind, RedisError};

use crate::telemetry::Cause;

/// A command failed. The variants state whether it may have been applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no connection: the command was not sent.
    #[error("no connection")]
    NotSent(#[source] Cause),
    /// There is no connection, because the server rejects user or password: an operator must act.
    #[error("no connection")]
    LoginRefused(#[source] Cause),
    /// It was sent, and no valid reply came: it was applied, will be applied later, or never.
    #[error("no answer")]
    NoAnswer(#[source] Cause),
    /// The server did not apply it. `code` is the first word of its error, such as `OOM`.
    #[error("refused: {code} {text}")]
    Refused { code: String, text: String },
}

/// An error of the driver, with what its own text does not state.
#[derive(Debug, thiserror::Error)]
enum DriverFault {
    #[error("this is not a Redis server: it does not use the Redis protocol (an HTTP server, or a port without TLS?)")]
    NotRedis(#[source] RedisError),
    #[error("network error")]
    Network(#[source] RedisError),
    #[error("user or password is refused")]
    LoginRefused(#[source] RedisError),
    #[error(transparent)]
    Other(RedisError),
}

impl CommandError {
    pub(super) fn not_sent(what: impl Into<String>) -> Self {
        Self::NotSent(Cause::new(what.into()))
    }

    /// The error of a command that was sent.
    pub(super) fn of(error: RedisError) -> Self {
        match error.code() {
            Some(code) => Self::Refused { code: code.to_owned(), text: error.detail().unwrap_or_default().to_owned() },
            None => Self::NoAnswer(Cause::new(DriverFault::from(error))),
        }
    }

    /// The error of a command that waited for a connection which could not be opened.
    pub(super) fn not_connected(error: RedisError) -> Self {
        match DriverFault::from(error) {
            fault @ DriverFault::LoginRefused(_) => Self::LoginRefused(Cause::new(fault)),
            fault @ (DriverFault::NotRedis(_) | DriverFault::Network(_) | DriverFault::Other(_)) => {
                Self::NotSent(Cause::new(fault))
            }
        }
    }

    /// The first word of the server's error.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::NotSent(_) | Self::LoginRefused(_) | Self::NoAnswer(_) => None,
        }
    }

    /// Whether user and password were rejected: an operator must act.
    pub fn is_refused_login(&self) -> bool {
        match self {
            Self::LoginRefused(_) => true,
            Self::NotSent(_) | Self::NoAnswer(_) => false,
            Self::Refused { code, .. } => matches!(code.as_str(), "NOAUTH" | "WRONGPASS" | "NOPERM"),
        }
    }

    /// Whether the server is not a primary (now), or did not reply: then the next command looks up the primary again.
    pub(super) fn ends_connection(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::LoginRefused(_) => false,
            Self::NoAnswer(_) => true,
            Self::Refused { code, .. } => {
                matches!(code.as_str(), "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH" | "UNBLOCKED")
            }
        }
    }
}

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

impl From<RedisError> for DriverFault {
    fn from(error: RedisError) -> Self {
        if is_no_redis(&error) {
            Self::NotRedis(error)
        } else if error.kind() == ErrorKind::Io {
            Self::Network(error)
        } else if is_refused_login(&error) {
            Self::LoginRefused(error)
        } else {
            Self::Other(error)
        }
    }
}
