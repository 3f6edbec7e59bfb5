//! Inputs, outputs and settings of a session.

use std::time::{Duration, Instant};

use crate::connector::{Credential, Endpoint, Failure, Frame, Item, OpeningMessage, Probe, RestRequest, RestResponse};

/// The number of a session within its stream, in the order of their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The timeouts of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From dialling until the socket is open, and again until the session is live.
    pub connect: Duration,
    /// A live session ends if no frame arrives in this time.
    pub silence: Duration,
    /// A frame must be complete within this time after its first bytes.
    pub frame: Duration,
    /// From our close frame until the socket is dropped.
    pub close: Duration,
}

/// An input of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The answer to the REST call, or the reason why there is none.
    Response(Result<RestResponse, String>),
    /// The socket is open.
    Opened,
    /// The socket could not be opened.
    ConnectFailed(Failure),
    /// A frame has begun and is not complete.
    PartialFrame,
    Frame(Frame),
    /// The socket was closed.
    Closed(Failure),
}

/// An output of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Call(RestRequest),
    /// Open the endpoint's socket. The stream adds the position to its URL.
    Dial(Endpoint),
    /// Send a message of the opening exchange, with the token at its place.
    Send(OpeningMessage),
    Probe(Probe),
    /// The session is live.
    Live,
    Received(Vec<Item>),
    /// The endpoint of a live session changed: other topics are subscribed or refused.
    EndpointChanged(Endpoint),
    /// The endpoint expires soon.
    EndpointExpiring,
    /// The session has ended. The socket, if there is one, must be dropped.
    Ended(Failure),
}

/// An endpoint, and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionedEndpoint {
    pub endpoint: Endpoint,
    /// The generation of the token that created it.
    pub generation: u64,
    /// When it must be replaced; none if it does not expire.
    pub expires_at: Option<Instant>,
}

/// The options of a new session.
#[derive(Debug)]
pub struct StartOptions<'a> {
    /// An endpoint that is still usable.
    pub reuse: Option<ProvisionedEndpoint>,
    /// The topics of the previous session.
    pub subscribed: &'a [String],
}

/// The address of the socket, and where the token is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub url: String,
    pub credential: Credential,
}
