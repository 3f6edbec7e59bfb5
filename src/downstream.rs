//! Serves the logs to consumers.
//!
//! A consumer is a cursor: there is no queue per consumer, and nothing here writes to a log. The cursor of a durable consumer
//! is in the store.

pub mod consumers;
pub mod merged_reader;
pub mod server;
