//! Access of consumers after their token is verified: how long a session lasts, who is refused, and what one subject may
//! use. Pure.
//!
//! It verifies no token and closes no socket: the listener does, and gives remaining times as durations of the monotonic
//! clock.

mod bindings;
mod failures;
mod lifetime;
mod limits;
mod revocations;

pub use bindings::{ClientOrigin, TokenBindings, TokenDigest};
pub use failures::{AuthenticationFailure, FLAGGED_ABOVE, FailureCounter, FailureWindow};
pub use lifetime::{AccessLifetime, AccessMessage, CloseReason, Renewal};
pub use limits::{ByteBudget, LimitExceeded, SubjectLimits, SubjectUsage};
pub use revocations::Revocations;
