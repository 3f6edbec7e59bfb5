//! Messages between replicas over pub/sub. A lost message costs time, never an event.

use crate::{
    model::ReplicaId,
    protocol::lease::PeerMessage,
    store::redis::{
        connection::PubSubListener,
        lease_row::{parse_replica, read_fence},
    },
};

/// A message that this replica sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutgoingMessage {
    /// To all replicas: this one is alive.
    Heartbeat,
    /// To one replica.
    Direct { to: ReplicaId, note: PeerMessage },
}

/// A message from another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingMessage {
    Heartbeat { from: ReplicaId },
    Direct { from: ReplicaId, note: PeerMessage },
}

/// The channel of heartbeats, which all replicas subscribe to.
pub(super) fn heartbeat_channel(prefix: &str) -> String {
    format!("{prefix}:replicas:beats")
}

/// The channel of messages to one replica.
pub(super) fn direct_channel(prefix: &str, to: ReplicaId) -> String {
    format!("{prefix}:replicas:notes:{to}")
}

/// A subscription to the messages of other replicas.
#[derive(Debug)]
pub struct PeerSubscription {
    listener: PubSubListener,
    me: ReplicaId,
    heartbeat_channel: String,
}

impl PeerSubscription {
    /// Wraps a listener on both channels of the replica `me`.
    pub(super) fn new(listener: PubSubListener, me: ReplicaId, heartbeat_channel: String) -> Self {
        Self { listener, me, heartbeat_channel }
    }

    /// The next message of another replica. None when the connection is lost.
    pub async fn next(&mut self) -> Option<IncomingMessage> {
        loop {
            let (channel, bytes) = self.listener.next().await?;
            let text = String::from_utf8_lossy(&bytes);
            match parse_message(channel == self.heartbeat_channel, &text) {
                Some(IncomingMessage::Heartbeat { from } | IncomingMessage::Direct { from, .. }) if from == self.me => {
                }
                Some(message) => return Some(message),
                None => tracing::debug!(channel, "unknown message from another replica ignored"),
            }
        }
    }
}

/// A message as its channel carries it; none when this version does not know it.
pub(super) fn parse_message(is_heartbeat: bool, text: &str) -> Option<IncomingMessage> {
    if is_heartbeat {
        return Some(IncomingMessage::Heartbeat { from: parse_replica(text)? });
    }
    let (from, note) = text.split_once(' ')?;
    Some(IncomingMessage::Direct { from: parse_replica(from)?, note: decode_message(note)? })
}

/// The text of a message to one replica, without its sender.
pub(super) fn encode_message(note: &PeerMessage) -> String {
    match note {
        PeerMessage::RequestHandover { stream } => format!("ask {stream}"),
        PeerMessage::Ready { stream } => format!("ready {stream}"),
        PeerMessage::HandedOver { stream, fence } => format!("given {stream} {fence}"),
    }
}

fn decode_message(text: &str) -> Option<PeerMessage> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["ask", stream] => Some(PeerMessage::RequestHandover { stream: stream.parse().ok()? }),
        ["ready", stream] => Some(PeerMessage::Ready { stream: stream.parse().ok()? }),
        ["given", stream, fence] => {
            let (number, nonce) = fence.split_once('-')?;
            Some(PeerMessage::HandedOver { stream: stream.parse().ok()?, fence: read_fence(number, nonce)? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Fence, StreamName};

    #[test]
    fn a_message_round_trips() {
        let fence = Fence { number: 7, nonce: 0xabc };
        let stream: StreamName = "queues".parse().unwrap();
        for note in [
            PeerMessage::RequestHandover { stream: stream.clone() },
            PeerMessage::Ready { stream: stream.clone() },
            PeerMessage::HandedOver { stream, fence },
        ] {
            let text = format!("{} {}", ReplicaId(0x2a), encode_message(&note));
            assert_eq!(parse_message(false, &text), Some(IncomingMessage::Direct { from: ReplicaId(0x2a), note }));
        }
        assert_eq!(parse_message(true, "000000000000002a"), Some(IncomingMessage::Heartbeat { from: ReplicaId(0x2a) }));
    }

    #[test]
    fn an_invalid_message_is_ignored() {
        for text in ["", "2a", "2a ask", "x ask queues", "2a given queues 7", "2a given queues 7-x", "2a ask a b"] {
            assert_eq!(parse_message(false, text), None, "{text}");
        }
        assert_eq!(parse_message(true, "x"), None);
    }
}
