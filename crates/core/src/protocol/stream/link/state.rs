//! The states of the connection side.

use std::time::Instant;

use super::super::messages::{Input, StreamState, Trigger};
use crate::protocol::session::Session;

/// The sessions of a stream, and the step they are in.
#[derive(Debug)]
pub(super) enum LinkState {
    /// There is no usable token.
    Waiting,
    /// The only session is connecting.
    Opening {
        session: Session,
        /// Set if a planned rotation or a lost session left no other session.
        swap: Option<BreakFirstSwap>,
    },
    Live {
        session: Session,
        rotation: Option<PendingRotation>,
    },
    /// The old session is live and its successor is connecting.
    Swapping {
        old: Session,
        new: Session,
        rotation: PendingRotation,
    },
    /// Both sessions are live. The overlap ends at `overlap_until` if the old session has answered the probe that it
    /// was sent when the successor became live, and at `overlap_deadline` otherwise.
    Overlapping {
        old: Session,
        new: Session,
        overlap_until: Instant,
        overlap_deadline: Instant,
        /// A rotation that replaces the successor too.
        rotation: Option<PendingRotation>,
    },
    BackingOff {
        until: Instant,
        cause: BackoffCause,
    },
    Paused,
    Drained,
}

/// Why the link backs off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackoffCause {
    Network,
    /// The platform rejected the newest token. A newer token ends the wait.
    TokenRejected,
    /// The platform refused several times in a row, and an operator must act. A newer token ends the wait.
    Refused,
}

/// A planned rotation that has not begun, or whose successor failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingRotation {
    pub(super) trigger: Trigger,
    pub(super) at: Instant,
    /// How many successors failed so far. Network failures are counted separately.
    pub(super) failures: u32,
}

/// A rotation in progress that has no old session any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct BreakFirstSwap {
    pub(super) trigger: Trigger,
    /// Since when no session is live.
    pub(super) since: Instant,
}

impl LinkState {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::BackingOff { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    pub(super) fn sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::BackingOff { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Whether a session is live.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => true,
            Self::Waiting | Self::Opening { .. } | Self::BackingOff { .. } | Self::Paused | Self::Drained => false,
        }
    }

    pub(super) fn stream_state(&self) -> StreamState {
        match self {
            Self::Waiting => StreamState::Starting,
            Self::Opening { .. } => StreamState::Connecting,
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => StreamState::Live,
            Self::BackingOff { cause: BackoffCause::Network | BackoffCause::TokenRejected, .. } => {
                StreamState::BackingOff
            }
            Self::BackingOff { cause: BackoffCause::Refused, .. } => StreamState::Failed,
            Self::Paused | Self::Drained => StreamState::Paused,
        }
    }

    /// Why a command would have no effect in this state. None if it has an effect, or if its effect is there already.
    pub(super) fn objection(&self, command: &Input, is_draining: bool, has_token: bool) -> Option<&'static str> {
        let is_waiting = matches!(self, Self::Waiting | Self::BackingOff { .. });
        match (command, self) {
            (Input::Rotate | Input::Pause | Input::Resume, Self::Drained) => Some("it is ending"),
            (Input::Rotate | Input::Resume, _) if is_draining => Some("it is ending"),
            (Input::Rotate, Self::Paused) => Some("it is paused: resume it first"),
            (Input::Rotate | Input::Resume, _) if is_waiting && !has_token => {
                Some("it waits for a token that the platform accepts: see the account's status")
            }
            _ => None,
        }
    }

    /// The successor of an old session that has not answered its probe.
    pub(super) fn successor_of_unflushed(&self) -> Option<&Session> {
        match self {
            Self::Overlapping { old, new, .. } if !old.has_acked_probes() => Some(new),
            Self::Overlapping { .. }
            | Self::Waiting
            | Self::Opening { .. }
            | Self::Live { .. }
            | Self::Swapping { .. }
            | Self::BackingOff { .. }
            | Self::Paused
            | Self::Drained => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Live { rotation, .. } => rotation.map(|rotation| rotation.at),
            Self::Overlapping { old, overlap_until, overlap_deadline, .. } => {
                Some(overlap_end(old, *overlap_until, *overlap_deadline))
            }
            Self::BackingOff { until, .. } => Some(*until),
            Self::Waiting | Self::Opening { .. } | Self::Swapping { .. } | Self::Paused | Self::Drained => None,
        }
    }
}

/// When an overlap ends.
pub(super) fn overlap_end(old: &Session, until: Instant, deadline: Instant) -> Instant {
    if old.has_acked_probes() { until } else { deadline }
}
