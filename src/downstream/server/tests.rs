//! The listener as its clients see it: real sockets, a real log.

mod delivery;
mod harness;
mod protocol;
