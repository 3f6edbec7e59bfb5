//! Trunkline keeps one WebSocket per configured stream to a contact-centre platform, rotates OAuth tokens without
//! losing an event, and serves every consumer from one durable log.
//!
//! In reading order:
//!
//! - [`model`]: the words. [`connector`]: what a platform is. [`protocol`]: the rules of every conversation, pure.
//! - [`store`] and [`event_log`]: what was heard, durable, and its readers. The only road from a platform to a consumer.
//! - [`network`]: how every connection to a platform is made. [`coordination`]: which streams this process keeps. [`auth`]: tokens. [`upstream`]: a task per stream, which carries out its rules over sockets and REST calls.
//! - [`downstream`]: consumers over HTTP. [`admin`]: health, metrics, status, an operator's wishes.
//! - [`config`]: the file. [`app`] builds every part from it and drains them in order. [`cli`]: a file a command.
//! - [`simulator`]: fake platforms, written from the platforms' documents; it knows nothing of the rest.
//!
//! What always holds: data is durable before its position is stored and before any reader sees it; offsets are dense;
//! between two neighbours nothing is missing, or a gap entry stands between them; every queue has a bound; no rule
//! reads a clock. `ARCHITECTURE.md` says more.

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
