//! The consumer server from its clients' view: real sockets, a real log.

mod access;
mod consumers;
mod delivery;
mod harness;
mod protocol;
