//! The listener as its clients see it: real sockets, a real log.

mod conduct;
mod delivery;
mod harness;
