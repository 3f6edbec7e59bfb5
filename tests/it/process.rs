//! The built program with real processes, signals, disks, exit codes and output.
//!
//! These tests use only the command line, HTTP, signals and files. Each process is ended by its handle, and every wait
//! has a bound.

pub(crate) mod child;
mod commands;
mod consumers;
mod descriptors;
mod disk;
mod disk_errors;
mod kill;
mod large;
mod log;
mod logs;
mod operator_requests;
mod proxy;
mod redis;
mod refusals;
mod relay;
mod replicas;
mod restored_copy;
mod secrets;
mod site;
mod startup;
mod stop;
mod tls;
mod vanished;
mod wall_clock;

pub(crate) use self::{
    log::{LogEntry, pages_of},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};
