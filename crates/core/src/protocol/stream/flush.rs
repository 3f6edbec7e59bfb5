//! The flush before a handover: everything that the successor may have missed becomes durable.

use super::{intake::Intake, link::Link};
use crate::protocol::{Moment, session::SessionId};

/// The progress of a flush that a live successor requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// No flush is requested.
    Idle,
    Requested,
    /// This session was sent a probe. Everything that it brings before the answer belongs to the flush.
    Probing(SessionId),
    /// The session has answered. This many entries must be durable.
    Acked(u64),
}

impl Flush {
    /// The next step; none while this one is not complete.
    pub(super) fn next(
        self,
        intake: &Intake,
        is_appending: bool,
        is_resumable: bool,
        link: &mut Link,
        now: Moment,
    ) -> Option<Self> {
        match self {
            Self::Idle => None,
            // The successor asks the platform for what it missed, unless the log stalls for longer than the retention.
            Self::Requested if is_resumable => intake.queued().filter(|_| link.is_live()).map(Self::Acked),
            Self::Requested => link.probe_live_session(now).map(Self::Probing),
            Self::Probing(session) => match link.has_session_acked(session) {
                None => Some(Self::Requested),
                Some(false) => None,
                Some(true) => intake.queued().map(Self::Acked),
            },
            Self::Acked(count) => (!is_appending && intake.has_drained(count)).then_some(Self::Idle),
        }
    }
}
