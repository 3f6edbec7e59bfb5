//! Trunkline keeps one WebSocket per configured stream to a contact-centre platform, rotates OAuth tokens without
//! losing an event, and serves every consumer from one durable log.
//!
//! In reading order:
//!
//! - [`model`]: the basic types. [`connector`]: the protocols of the platforms. [`protocol`]: the rules, as pure state
//!   machines. These are the crate `trunkline-core`, without I/O.
//! - [`store`]: durable logs, embedded or in Redis. [`event_log`]: the log of a stream, its writer and its readers.
//! - [`network`]: connections to platforms. [`coordination`]: which streams this replica owns. [`auth`]: tokens.
//! - [`upstream`]: one task per stream, which runs its rules over sockets and REST calls.
//! - [`downstream`]: consumers over HTTP. [`admin`]: health, metrics, status and operator commands.
//! - [`config`]: the configuration. [`app`]: starts every part and drains them in order. [`cli`]: one file per command.
//! - [`simulator`]: simulated platforms, a crate without dependencies on the rest.
//!
//! Invariants: an entry is durable before any reader sees it, and its position is stored with it; offsets are dense; a
//! gap entry marks every loss; every queue has a bound; no rule reads a clock. `ARCHITECTURE.md` has the details.

pub mod admin;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordination;
pub mod downstream;
pub mod event_log;
pub mod listener;
pub mod network;
pub mod random;
pub mod secrets;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upstream;

pub use trunkline_core::{connector, model, protocol};
pub use trunkline_simulator as simulator;
