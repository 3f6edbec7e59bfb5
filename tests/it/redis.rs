//! The way to a real Redis: what comes back, what is lost, and what is known of a command that failed.

mod connection;
mod login;
