//! WebSocket: connect, read frames, send probes, close.

mod frame_tracker;
mod tracked_stream;
mod upgrade;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::{SinkExt, Stream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

use self::tracked_stream::TrackedStream;
pub use self::upgrade::UpgradeRequest;
pub use super::socket_event::SocketEvent;
use crate::{
    clock,
    connector::{Credential, Failure, Frame, Probe},
    model::Secret,
    network::{self, NetworkPolicy, NetworkStream},
    protocol::session::Dial,
    telemetry::chain,
};

/// Bytes per read; the frames of one read share an allocation.
const READ_BUFFER_LEN: usize = 64 * 1024;
/// Only probes and close frames are sent.
const WRITE_BUFFER_MAX: usize = 64 * 1024;
/// Timeout for sending a probe or close frame.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length in characters of a close reason or error text of a platform.
const REASON_LEN_MAX: usize = 200;

/// The reason of the close after a text message that is not UTF-8 (RFC 6455 section 8.1).
const NOT_UTF8: &str = "text is not UTF-8";

/// An open socket.
#[derive(Debug)]
pub struct UpstreamSocket {
    stream: WebSocketStream<TrackedStream>,
    /// Number of received messages.
    messages: u64,
    /// The message whose beginning was reported.
    partial_reported: Option<u64>,
    /// A text message was not UTF-8: no more frames are read.
    broken: bool,
}

/// Opens the sockets of one stream.
#[derive(Debug, Clone)]
pub(in crate::upstream) struct SocketDialler {
    network: NetworkPolicy,
    frame_max: usize,
    timeout: Duration,
    /// The configuration key of the URL; none if the platform provides the URL.
    key: Option<String>,
}

impl SocketDialler {
    /// `within` is the timeout of one attempt: name resolution, TCP, proxy, TLS and upgrade. `key` is the configuration
    /// key of the URL, for errors.
    pub(in crate::upstream) fn new(
        network: NetworkPolicy,
        frame_max: usize,
        within: Duration,
        key: Option<String>,
    ) -> Self {
        Self { network, frame_max, timeout: within, key }
    }

    /// Opens a socket. Dropping the future closes the connection. Redirects are not followed, so that the token reaches
    /// the configured host only.
    pub(super) async fn open(&self, dial: Dial, token: Secret) -> Result<UpstreamSocket, Failure> {
        let url = url(&dial, &token).map_err(Failure::Unreachable)?;
        let place = self.display_url(&url, &dial.credential);
        self.open_at(url, &dial, &token).await.map_err(|failure| failure.with_context(&place))
    }

    async fn open_at(&self, url: reqwest::Url, dial: &Dial, token: &Secret) -> Result<UpstreamSocket, Failure> {
        let deadline = clock::now() + self.timeout;
        let upgrade = UpgradeRequest::new(&url, &dial.credential, token).map_err(Failure::Unreachable)?;
        let connected = self.network.connect(&url, deadline).await;
        let stream = connected.map_err(|error| Failure::Unreachable(chain(&error)))?;
        let upgraded =
            tokio::time::timeout_at(deadline.into(), UpstreamSocket::upgrade(stream, upgrade, self.frame_max)).await;
        let late = || self.unreachable(&url, &format!("no response to the upgrade within {:?}", self.timeout));
        let upgraded = upgraded.map_err(|_| late())?;
        let lost = |error: io::Error| self.unreachable(&url, &format!("upgrade: {}", chain(&error)));
        upgraded.map_err(lost)?
    }

    /// The URL in errors. A URL that contains a credential is shown without its path.
    fn display_url(&self, url: &reqwest::Url, credential: &Credential) -> String {
        let shown = match credential {
            Credential::Header | Credential::Query(_) => network::without_secrets(url),
            Credential::InUrl => network::origin(url),
        };
        let key = self.key.as_ref().map_or_else(String::new, |key| format!(" ({key})"));
        format!("{shown}{key}")
    }

    fn unreachable(&self, url: &reqwest::Url, why: &str) -> Failure {
        Failure::Unreachable(format!("{}{}", bounded(why), self.network.proxy_suffix(url)))
    }
}

fn config(frame_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_LEN)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .write_buffer_size(0)
        .max_message_size(Some(frame_max))
        .max_frame_size(Some(frame_max))
}

/// The URL of the upgrade request, with the token in its query if the platform expects it there.
fn url(dial: &Dial, token: &Secret) -> Result<reqwest::Url, String> {
    let mut url = reqwest::Url::parse(&dial.url).map_err(|error| format!("invalid WebSocket URL: {error}"))?;
    if !matches!(url.scheme(), "ws" | "wss") {
        return Err(format!("WebSocket URL with scheme {}:, expected wss:", bounded(url.scheme())));
    }
    if let Credential::Query(parameter) = &dial.credential {
        url.query_pairs_mut().append_pair(parameter, token.expose());
    }
    Ok(url)
}

fn bounded(text: &str) -> String {
    text.chars().take(REASON_LEN_MAX).collect()
}

impl UpstreamSocket {
    /// Upgrades an open connection to a WebSocket. A message of more than `frame_max` bytes ends it.
    pub async fn upgrade(
        mut connection: NetworkStream,
        upgrade: UpgradeRequest,
        frame_max: usize,
    ) -> io::Result<Result<Self, Failure>> {
        let mut read = match upgrade.perform(&mut connection).await? {
            Ok(read) => read,
            Err(failure) => return Ok(Err(failure)),
        };
        let wire = TrackedStream::new(connection, &mut read);
        let stream = WebSocketStream::from_partially_read(wire, read, Role::Client, Some(config(frame_max))).await;
        Ok(Ok(Self { stream, messages: 0, partial_reported: None, broken: false }))
    }

    /// The next frame, or the failure that ended the socket.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketEvent, Failure>> {
        if self.broken {
            return Poll::Ready(Err(Failure::Unreadable(NOT_UTF8.to_owned())));
        }
        match Pin::new(&mut self.stream).poll_next(cx) {
            Poll::Pending => self.poll_partial(),
            Poll::Ready(None) => Poll::Ready(Err(closed(1006, ""))),
            Poll::Ready(Some(Ok(message))) => Poll::Ready(self.frame(message).map(SocketEvent::Frame)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(failure(&error))),
        }
    }

    /// Reports a partial frame, after all complete frames were returned.
    fn poll_partial(&mut self) -> Poll<Result<SocketEvent, Failure>> {
        let partial = self.stream.get_ref().tracker.partial_message();
        if partial.is_none() || partial == self.partial_reported {
            return Poll::Pending;
        }
        self.partial_reported = partial;
        Poll::Ready(Ok(SocketEvent::PartialFrame))
    }

    /// Sends a text message. A send error shows up in the next read.
    pub async fn send_text(&mut self, text: String) {
        self.send(Message::text(text)).await;
    }

    /// Sends a probe. A send error shows up in the next read.
    pub async fn probe(&mut self, probe: Probe) {
        let message = match probe {
            Probe::Ping => Message::Ping(Bytes::new()),
            Probe::Text(text) => Message::text(text),
        };
        self.send(message).await;
    }

    /// Sends a close frame. Frames may still arrive until the platform answers.
    pub async fn close(&mut self, code: u16, reason: &'static str) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))).await;
    }

    async fn send(&mut self, message: Message) {
        // A failed send shows up as a read error or a liveness timeout.
        drop(tokio::time::timeout(SEND_TIMEOUT, self.stream.send(message)).await);
    }

    /// Ends the socket: answers the platform's close frame, or sends one with the reason.
    pub async fn finish(mut self, failure: Failure) {
        if failure == Failure::Oversize {
            self.close(1009, "frame_max").await;
        }
        if self.broken {
            self.close(1007, NOT_UTF8).await;
        }
        drop(tokio::time::timeout(Duration::from_secs(1), self.stream.flush()).await);
    }

    fn frame(&mut self, message: Message) -> Result<Frame, Failure> {
        match message {
            Message::Text(text) => Ok(self.data(text.into())),
            Message::Binary(bytes) => Ok(self.data(bytes)),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Frame::Pong),
            Message::Close(None) => Err(closed(1005, "")),
            Message::Close(Some(CloseFrame { code, reason })) => Err(closed(code.into(), &reason)),
        }
    }

    /// A text or binary frame. A text that is not UTF-8 is returned as binary and is the last frame of its session.
    fn data(&mut self, bytes: Bytes) -> Frame {
        let message = self.messages;
        self.messages += 1;
        if !self.stream.get_mut().tracker.was_text(message) {
            return Frame::Binary(bytes);
        }
        ByteString::try_from(bytes.clone()).map_or_else(
            |_| {
                self.broken = true;
                Frame::Binary(bytes)
            },
            Frame::Text,
        )
    }
}

fn closed(code: u16, reason: &str) -> Failure {
    Failure::Closed { code, reason: bounded(reason) }
}

/// Maps an error of the library. Only an invalid data frame is unreadable. Texts are checked in [`UpstreamSocket::data`],
/// so a UTF-8 error here is about a close reason. An invalid control frame counts as a lost connection.
fn failure(error: &Error) -> Failure {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Failure::Oversize,
        Error::Protocol(
            ProtocolError::NonZeroReservedBits
            | ProtocolError::MaskedFrameFromServer
            | ProtocolError::UnexpectedContinueFrame
            | ProtocolError::ExpectedFragment(_)
            | ProtocolError::UnknownDataFrameType(_)
            | ProtocolError::InvalidOpcode(_),
        ) => Failure::Unreadable(bounded(&error.to_string())),
        Error::Utf8(_)
        | Error::Protocol(_)
        | Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Tls(_)
        | Error::Capacity(_)
        | Error::WriteBufferFull(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => closed(1006, &error.to_string()),
    }
}
