//! How a session whose socket is open becomes live.

use std::time::Duration;

use crate::connector::{Capabilities, Liveness, OpeningVerdict};

/// What proves that a new session works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verification {
    pub(super) sends_probe: bool,
    /// Without any frame for this time the session counts as live.
    pub(super) quiet_period: Option<Duration>,
    /// Only a frame that accepts the opening exchange counts.
    pub(super) needs_acceptance: bool,
}

impl Verification {
    /// `replaces`: the session replaces a live one, so that a frame is better proof than none.
    pub(super) fn of(capabilities: &Capabilities, replaces: bool) -> Self {
        let needs_acceptance = capabilities.opening.verdict == OpeningVerdict::Frame;
        let (sends_probe, quiet_period) = match capabilities.liveness {
            _ if needs_acceptance => (false, None),
            Liveness::Reply => (true, None),
            Liveness::ReplyOrQuietFor(quiet) => (true, (!replaces).then_some(quiet)),
            Liveness::QuietFor(quiet) => (false, Some(quiet)),
        };
        Self { sends_probe, quiet_period, needs_acceptance }
    }
}
