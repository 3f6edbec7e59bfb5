//! The requests of the connection side to the coordinator.

use super::super::messages::Output;
use crate::{
    connector::{Endpoint, Failure, Item, RestRequest},
    model::{Gap, GapReason},
    protocol::session::SessionId,
};

/// One output of the connection side. The coordinator handles them in order.
#[derive(Debug)]
pub(in crate::protocol::stream) enum LinkOutput {
    /// An output of the stream, unchanged.
    Emit(Output),
    /// Open a socket. The coordinator adds the position.
    Dial(DialRequest),
    /// A session received these items.
    Received { session: SessionId, items: Vec<Item> },
    /// The only session is about to start. A position that is too old must be abandoned now.
    Starting,
    /// The only session is live.
    Connected(SessionId),
    /// A frame ended a session. `was_live`: the session was live before.
    BadFrame { frame: BadFrame, was_live: bool },
    /// A change that the data path must apply.
    Path(PathInput),
}

/// A socket to open.
#[derive(Debug)]
pub(in crate::protocol::stream) struct DialRequest {
    pub(in crate::protocol::stream) session: SessionId,
    pub(in crate::protocol::stream) generation: u64,
    pub(in crate::protocol::stream) endpoint: Endpoint,
    /// False after the platform refused the position.
    pub(in crate::protocol::stream) with_position: bool,
}

/// A change of the sessions that affects their events.
#[derive(Debug)]
pub(in crate::protocol::stream) enum PathInput {
    /// A successor is starting. From here on two sessions may bring the same events.
    OverlapStarted,
    /// This successor is live in addition to the old session.
    SuccessorLive(SessionId),
    /// The old session was sent a probe. The successor's events wait for the answer.
    SuccessorHeld(SessionId),
    /// This successor was lost during the overlap.
    SuccessorLost(SessionId),
    /// At most one session is left.
    OverlapEnded,
    /// The old session ended before it answered its probe. `only_if_held`: this is a gap only if events of a successor
    /// wait for it.
    Unflushed {
        session: SessionId,
        gap: Gap,
        only_if_held: bool,
    },
    /// Events are lost between the sessions up to this one and later ones.
    Discontinuity(SessionId),
    /// No session is live, and the platform does not repeat what it sends now.
    Outage(GapReason),
    /// The position must not be used again.
    PositionAbandoned(GapReason),
    Gap(Gap),
    /// The REST calls whose answers show the state of the subscribed topics.
    SnapshotRequests(Vec<RestRequest>),
}

/// A frame that cannot be stored, and that the platform repeats when the stream resumes in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::protocol::stream) enum BadFrame {
    Oversize,
    /// It breaks the protocol or is never complete.
    Unreadable,
}

impl BadFrame {
    /// The bad frame that caused this failure. A close is a lost connection whatever its code.
    pub(super) fn of(failure: &Failure) -> Option<Self> {
        match failure {
            Failure::Oversize => Some(Self::Oversize),
            Failure::Unfinished { .. } | Failure::Unreadable(_) => Some(Self::Unreadable),
            Failure::Handshake { .. }
            | Failure::Call { .. }
            | Failure::Unreachable(_)
            | Failure::Closed { .. }
            | Failure::Silent
            | Failure::Notice(_)
            | Failure::Unsubscribed { .. } => None,
        }
    }
}
