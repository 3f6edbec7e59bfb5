//! Consumers: everything that reads the logs on behalf of somebody else.
//!
//! A consumer is a cursor: nothing here keeps a queue for anybody. It refuses to write to a log.

pub mod merged_reader;
pub mod server;
