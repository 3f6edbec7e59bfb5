//! Why a socket without credentials in its upgrade does not become a session.

use super::AccessError;

/// The end of an unauthenticated socket.
#[derive(Debug)]
pub(in crate::downstream::server) enum FirstMessage {
    Access(AccessError),
    /// No message in time.
    Timeout,
    /// The client disconnected.
    Gone,
    /// The first message is no authentication.
    Malformed,
    /// What the client requested cannot be read. Has the name of the problem.
    Rejected(&'static str),
}

impl From<AccessError> for FirstMessage {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}
