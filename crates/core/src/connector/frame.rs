//! The content of a frame.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;

use crate::model::{Event, Position};

/// A frame as the transport received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(ByteString),
    Binary(Bytes),
    /// The answer to [`Probe::Ping`](super::Probe::Ping), or a ping from the platform.
    Pong,
    /// The end of an answer to a poll: it has no events, or its request was sent after this number of probes.
    Answered {
        probes: u32,
    },
}

/// One part of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    /// An opaque position after all events in front of it, of this frame and of earlier ones. It needs no event: the
    /// answer to a poll has one also if nothing happened.
    Position(Position),
    /// A sign of life without content.
    Heartbeat,
    /// The answer to a [`Probe::Text`](super::Probe::Text). Each probe gets one answer, in order.
    ProbeAck,
    /// The platform accepted the opening exchange.
    Accepted,
    Notice(Notice),
    /// A part that cannot be read.
    Undecoded(Bytes),
}

/// A message from the platform about the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The platform will close this socket soon.
    Closing,
    /// The platform revoked the token.
    TokenRevoked,
    /// The platform refused the token.
    TokenInvalid,
    /// The endpoint no longer exists (expired or evicted).
    EndpointGone,
    /// Another channel took over the subscriptions.
    Displaced,
    /// The platform refused the opening exchange for another reason than the token.
    OpeningRefused,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closing => "the platform announced that it closes the socket",
            Self::TokenRevoked => "the platform revoked the token",
            Self::TokenInvalid => "the platform refused the token on the open socket",
            Self::EndpointGone => "the channel does not exist at the platform any more (expired or evicted)",
            Self::Displaced => "another channel took the subscriptions over",
            Self::OpeningRefused => "the platform refused the opening messages",
        })
    }
}
