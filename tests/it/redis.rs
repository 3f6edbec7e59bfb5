//! The Redis client against a real server: replies, losses, and the outcome of failed commands.

mod connection;
mod login;
