//! The built program as its users meet it: real processes, signals, a real disk, exit codes, and what is printed.
//!
//! These tests know nothing of the inside: they speak through the command line, HTTP, signals and files. Each process
//! is ended by its own handle, and every wait has a bound.

mod among;
pub(crate) mod child;
mod commands;
mod copied;
mod descriptors;
mod disk;
mod injected;
mod kill;
mod large;
mod log;
mod logs;
mod proxy;
mod redis;
mod refusals;
mod relay;
mod replicas;
mod secrets;
mod site;
mod starting;
mod stop;
mod tls;
mod vanished;
mod wall;

pub(crate) use self::{
    log::{LogEntry, pages_of},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};
