//! Every integration test in one binary: linked once, a module per feature.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod architecture;
mod consumers;
mod frames;
mod gaps;
mod golden;
mod decoders;
mod harness;
mod notifications;
mod process;
mod rotation;
mod readme;
mod sequenced;
mod tokens;
mod trouble;
mod world;
