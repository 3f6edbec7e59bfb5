//! The rules of every conversation that is held: pure machines that are told things and asked things.
//!
//! Nothing in here waits, reads a clock, draws a random number or touches a socket: time and chance are arguments.

pub mod backoff;
pub mod breaker;
pub mod lease;
pub mod refresh;
pub mod retry_after;
pub mod session;
pub mod stream;

use std::time::Instant;

use crate::model::Timestamp;

/// The moment of an input, and one random number: what a rule may know of time and chance.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic clock: decides.
    pub at: Instant,
    /// The wall clock: is written down, and judges what survived a restart.
    pub wall: Timestamp,
    /// A fresh random number from 0 to 1.
    pub random: f64,
}
