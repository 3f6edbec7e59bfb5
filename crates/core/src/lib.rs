//! The rules of Trunkline, without IO: the manifest of this crate has no async runtime, no HTTP client and no store, so
//! that a rule cannot wait, connect or write.
//!
//! - [`model`]: the values that every part uses.
//! - [`connector`]: what a platform can do, how its frames are decoded and its failures classified.
//! - [`protocol`]: the state machines of a stream, a lease, a token refresh.

pub mod connector;
pub mod model;
pub mod protocol;
