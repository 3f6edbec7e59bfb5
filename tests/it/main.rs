//! All integration tests in one binary, with one module per feature.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod admin;
mod architecture;
mod consumers;
mod decoders;
mod dependencies;
mod deploy;
mod examples;
mod failures;
mod frames;
mod gaps;
mod golden;
mod harness;
mod models;
mod network;
mod notifications;
mod process;
mod readme;
mod redis;
mod rotation;
mod sequenced;
mod sharing;
mod soak;
mod store;
mod tokens;
mod world;
