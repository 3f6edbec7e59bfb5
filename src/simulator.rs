//! draft
mod clock;
mod world;
