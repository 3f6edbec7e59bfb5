//! Serves the logs to consumers.
//!
//! A consumer is a cursor: there is no queue per consumer, and nothing here writes to a log.

pub mod merged_reader;
pub mod server;
