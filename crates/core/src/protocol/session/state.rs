//! The states of a session.

use std::time::Instant;

use super::{messages::Timeouts, subscription_refresh::SubscriptionRefresh};
use crate::connector::{Failure, Preparation};

#[derive(Debug)]
pub(super) enum SessionState {
    /// A REST call is in flight.
    Preparing(Preparation),
    Dialling {
        until: Instant,
    },
    /// The socket is open. At `assume_live_at` the session counts as live without a frame.
    Verifying {
        until: Instant,
        assume_live_at: Option<Instant>,
    },
    Live {
        refresh: SubscriptionRefresh,
        expiring: bool,
    },
    Closing {
        until: Instant,
    },
    Ended,
}

impl SessionState {
    /// Whether the socket is open.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Verifying { .. } | Self::Live { .. } | Self::Closing { .. })
    }

    /// When the state ends, or a live session refreshes its subscriptions.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Preparing(_) | Self::Ended => None,
            Self::Dialling { until } | Self::Closing { until } => Some(*until),
            Self::Verifying { until, assume_live_at } => Some(assume_live_at.map_or(*until, |at| at.min(*until))),
            Self::Live { refresh, .. } => refresh.deadline(),
        }
    }

    /// Frames are not read: the timeouts that need a frame begin again.
    pub(super) fn suspend(&mut self, timeouts: &Timeouts, now: Instant) {
        match self {
            Self::Verifying { until, .. } => *until = now + timeouts.connect,
            Self::Closing { until } => *until = now + timeouts.close,
            Self::Preparing(_) | Self::Dialling { .. } | Self::Live { .. } | Self::Ended => (),
        }
    }

    /// Why the session ends now; none if this state has more time.
    pub(super) fn timeout_failure(&self, now: Instant) -> Option<Failure> {
        let (until, failure) = match self {
            Self::Dialling { until } => (until, Failure::Unreachable("no connection in time".to_owned())),
            Self::Verifying { until, .. } => (until, Failure::Silent),
            Self::Closing { until } => {
                (until, Failure::Closed { code: 1006, reason: "no close frame in time".to_owned() })
            }
            Self::Preparing(_) | Self::Live { .. } | Self::Ended => return None,
        };
        (now >= *until).then_some(failure)
    }
}
