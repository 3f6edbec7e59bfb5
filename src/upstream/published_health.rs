//! The health of a stream as the other replicas see it. Only changes are published.

use std::mem;

use super::log_access::LogAccess;
use crate::{coordination::LeaseHandle, protocol::stream::Stream};

/// What this replica published last.
#[derive(Debug)]
pub(super) struct PublishedHealth {
    log_error: Option<String>,
    live: bool,
    degraded: bool,
}

impl PublishedHealth {
    /// Initially degraded, so that a value of an earlier session is replaced.
    pub(super) fn new(log_error: Option<String>) -> Self {
        Self { log_error, live: false, degraded: true }
    }

    /// Publishes what has changed.
    pub(super) async fn publish(
        &mut self,
        machine: &Stream,
        log_error: Option<String>,
        log_access: &mut LogAccess,
        lease: &LeaseHandle,
    ) {
        let live = machine.is_ready() && log_error.is_none();
        if self.log_error != log_error {
            self.log_error.clone_from(&log_error);
            lease.report_failed(log_error).await;
        }
        if mem::replace(&mut self.live, live) != live {
            if live {
                log_access.record_live_offset();
            }
            lease.report_live(live).await;
        }
        let degraded = machine.is_degraded();
        if mem::replace(&mut self.degraded, degraded) != degraded {
            lease.report_degraded(degraded).await;
        }
    }
}
