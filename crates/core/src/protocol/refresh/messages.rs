//! Inputs and outputs of the refresh machine.

use std::time::{Duration, Instant};

/// The limit of generations: a Redis script counts in floating point and cannot distinguish higher numbers. A stored
/// generation at or above it is damaged and is reset.
pub const GENERATION_MAX: u64 = (1 << 53) - 1;

/// An input of the refresh machine. `unit` is a random number from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// Get the first token. Sent once.
    Start,
    /// The endpoint granted a token with this lifetime from the sending of the request. None: the lifetime is unknown,
    /// so a refresh is never due. `repeated`: it is the token that was rejected (the endpoint caches).
    Granted { lifetime: Option<Duration>, repeated: bool, unit: f64 },
    /// The request failed.
    Failed { failure: GrantFailure, unit: f64 },
    /// The platform rejected a token. Only the newest generation counts. `proven`: a session was live under it here.
    Refused { generation: u64, proven: bool },
    /// A session is live under the rejected token, so the account keeps it.
    RefusalCleared { generation: u64 },
    /// An operator, or a changed secret, requests a new token.
    RefreshRequested,
    /// The contents of the store; none while it is unreachable.
    VaultRead { seen: Option<VaultContent>, unit: f64 },
    /// The result of the attempt to lock.
    Locked { lock: LockOutcome, unit: f64 },
    /// The result of the attempt to publish.
    Published(PublishOutcome),
    /// A notification of a newer token. None: notifications may have been missed. It is a hint that may be late or
    /// wrong.
    VaultNotified { generation: Option<u64> },
}

/// The contents of the token store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultContent {
    /// The newest generation that was ever published, if the store still has it.
    pub last: u64,
    pub token: Option<VaultToken>,
    /// The token endpoint asked a replica for this pause.
    pub pause: Option<Duration>,
}

/// The token in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultToken {
    pub generation: u64,
    /// The lifetime, from the sending of its request.
    pub lifetime: Duration,
    /// The rest of the lifetime when the read was requested.
    pub remaining: Duration,
}

/// The result of an attempt to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockOutcome {
    Acquired,
    /// Another replica has the lock.
    Held,
    /// The store does not answer.
    Unavailable,
}

/// The result of an attempt to publish. It releases the lock, unless the store is unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishOutcome {
    Done,
    /// The store has this generation already, or a newer one.
    AlreadyNewer,
    /// Another replica has the lock, and will publish its own token.
    LockLost,
    /// The store does not answer. The token may be published or not.
    Unavailable,
}

/// The kind of a failed request, as far as it matters for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrantFailure {
    /// Status 429, with the delay of a valid `Retry-After`.
    Throttled(Option<Duration>),
    /// No answer, a server error, or an invalid answer.
    Unreachable,
    /// The credentials are rejected.
    Rejected,
}

/// An output of the refresh machine. Outputs are handled in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Send the grant request. It must be answered with [`Input::Granted`] or [`Input::Failed`].
    Fetch,
    /// The token of this generation is in use.
    Adopt { generation: u64, origin: TokenOrigin },
    /// The failed request is repeated at this time. With `alarm` an operator must act.
    Retry { at: Instant, alarm: bool },
    /// The token endpoint asked another replica for a pause until this time. This replica waits too.
    PauseRequests { at: Instant },
    /// Read the store. It must be answered with [`Input::VaultRead`].
    ReadVault,
    /// Take the lock for `ttl`, if it is free. It must be answered with [`Input::Locked`].
    Lock { ttl: Duration },
    /// Extend the lock, if this replica still has it, to `ttl` from now.
    Renew { ttl: Duration },
    /// Release the lock, if this replica still has it. With `pause`, no replica may use the token endpoint for this
    /// time.
    Release { pause: Option<Duration> },
    /// Store the token just granted, or the one in use, unless the store has this generation or a newer one, or another
    /// replica has the lock. It must be answered with [`Input::Published`].
    Publish { generation: u64, lifetime: Duration, remaining: Duration },
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenOrigin {
    /// The token was just granted.
    Grant,
    /// The token comes from the newest read of the store.
    Vault,
}

/// The state of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPhase {
    /// There is no token yet.
    NoToken,
    Valid,
    /// A newer token is requested, or the request is delayed.
    Renewing,
    /// The credentials are rejected. An operator must act.
    Rejected,
}

impl TokenPhase {
    /// The name in logs and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "waiting",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Rejected => "rejected",
        }
    }
}
