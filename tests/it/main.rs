//! Every integration test in one binary: linked once, a module per feature.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod architecture;
mod frames;
mod gaps;
mod harness;
mod notifications;
mod rotation;
mod sequenced;
mod trouble;
mod world;
