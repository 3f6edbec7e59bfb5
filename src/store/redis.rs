//! Where logs live in Redis (7 or later, or Valkey): one server, one behind Sentinels, or a cluster.

pub mod address;
pub mod connection;
