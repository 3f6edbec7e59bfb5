//! The capabilities of a platform, as values.
//!
//! Texts are owned, so that a configured connector can fill every shape.

use std::time::Duration;

use crate::model::Position;

/// The properties of a platform that the rules of a stream depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The transport of frames.
    pub transport: Transport,
    /// The messages on an open connection before the session can be live.
    pub opening: Opening,
    /// Whether and how the platform resumes after a position.
    pub resume: Resume,
    /// The effect of a second socket on the first.
    pub overlap: Overlap,
    /// The message on a silent connection that the platform must answer.
    pub probe: Probe,
    /// When a new socket is live. A successor of a live session also needs one received frame.
    pub liveness: Liveness,
    /// How long one endpoint is used before it is replaced.
    pub endpoint_lifetime: Option<Duration>,
    /// How often the subscriptions of a live endpoint are refreshed (new topics, refused topics).
    pub refresh_interval: Option<Duration>,
}

/// The transport of frames. The session is the same for every transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One socket of RFC 6455.
    WebSocket,
    /// An HTTP request that the platform holds open until it has events. The next request follows at once.
    LongPoll,
    /// An HTTP request at a fixed interval, or at once for a probe.
    Poll {
        /// From one request to the next.
        interval: Duration,
    },
}

/// The exchange on an open connection before the session can be live. The default sends nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opening {
    /// Sent in this order when the connection is open. A poll transport has no connection and sends none.
    pub messages: Vec<OpeningMessage>,
    pub verdict: OpeningVerdict,
}

/// How the platform answers the opening exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpeningVerdict {
    /// Not at all. [`Liveness`] decides when the session is live.
    #[default]
    None,
    /// One frame accepts it ([`Item::Accepted`](super::Item::Accepted)) or refuses it with a notice. No other frame
    /// makes the session live.
    Frame,
}

/// A text message of the opening exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpeningMessage {
    Text(String),
    /// First-message authentication: the shell puts the token between the two parts, as content of a JSON string.
    WithToken {
        before: String,
        after: String,
    },
}

impl OpeningMessage {
    /// The text to send.
    pub fn text(&self, token: &str) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::WithToken { before, after } => {
                let quoted = serde_json::Value::from(token).to_string();
                format!("{before}{}{after}", &quoted[1..quoted.len() - 1])
            }
        }
    }
}

/// Whether a position can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Events are lost while no socket is open.
    None,
    /// Events have dense numbers. The platform replays them from a number for a limited time.
    Sequence,
    /// The platform sends texts ([`Item::Position`](super::Item::Position)), and replays what follows such a text for a
    /// limited time. Events have no order that Trunkline knows.
    Opaque,
}

impl Resume {
    /// Whether a session can resume after this position.
    pub fn accepts(self, position: &Position) -> bool {
        match position {
            Position::Numbered(_) => self == Self::Sequence,
            Position::Opaque(_) => self == Self::Opaque,
        }
    }
}

/// The effect of a second socket on the first. It decides the order of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Both get every event: open, verify, drop duplicates, close the old one.
    Duplicate,
    /// The platform allows only one: close, then open.
    None,
}

/// The message that a platform must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A ping of RFC 6455 section 5.5.2.
    Ping,
    /// A text message that the platform defines.
    Text(String),
}

/// When an open socket is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// After a frame that is not a refusal. The probe is sent at once.
    Reply,
    /// After a frame that is not a refusal, or after this time without any frame: the upgrade authenticates. The probe is
    /// sent at once.
    ReplyOrQuietFor(Duration),
    /// After a frame that is not a refusal, or after this time without any frame. No probe is sent.
    QuietFor(Duration),
}

/// The place of the token in the upgrade request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// `Authorization: Bearer …`
    Header,
    /// A query parameter of this name.
    Query(String),
    /// The URL itself is the credential, or the opening exchange carries it.
    InUrl,
}
