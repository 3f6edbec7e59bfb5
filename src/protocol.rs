//! The rules of every conversation that is held: pure machines that are told things and asked things.
//!
//! Nothing in here waits, reads a clock, draws a random number or touches a socket: time and chance are arguments.

pub mod backoff;
pub mod breaker;
pub mod refresh;
pub mod retry_after;
