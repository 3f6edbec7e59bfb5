//! Consumers: the HTTP server over the logs.

pub mod server;
