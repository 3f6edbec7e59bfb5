//! Every integration test in one binary: linked once, a module per feature.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod architecture;
mod decoders;
mod harness;
mod process;
mod readme;
mod sequenced;
mod world;
