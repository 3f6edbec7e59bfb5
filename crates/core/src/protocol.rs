//! The protocol rules: pure state machines with inputs, outputs and timeouts.
//!
//! Nothing here waits, reads a clock, draws a random number or uses a socket: time and random numbers are arguments.

pub mod access;
pub mod backoff;
pub mod breaker;
pub mod consumer;
pub mod key_refresh;
pub mod lease;
pub mod refresh;
pub mod retry_after;
pub mod session;
pub mod stream;

use std::time::Instant;

use crate::model::Timestamp;

/// The time of an input, and one random number.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic clock, for all waits and timeouts.
    pub at: Instant,
    /// The wall clock, for stored times and for the time before this process.
    pub wall: Timestamp,
    /// A fresh random number from 0 to 1.
    pub random: f64,
}
