//! The socket to a platform: opening it, one frame after the other, farewell. It decides nothing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::{SinkExt, Stream};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        error::{CapacityError, ProtocolError},
        handshake::client::Request,
        http::{HeaderValue, Response, header},
        protocol::{CloseFrame, WebSocketConfig},
    },
};

use crate::{
    clock,
    connector::{Credential, Failure, Frame, Probe},
    model::Secret,
    protocol::{retry_after, session::Dial},
};

/// Bytes asked of the kernel at once; one allocation holds the frames of one read.
const READ_BUFFER_LEN: usize = 64 * 1024;
/// We only ever send probes and farewells.
const WRITE_BUFFER_MAX: usize = 64 * 1024;
/// A peer that does not take a probe in this time is as good as gone.
const SEND_MAX: Duration = Duration::from_secs(5);
/// Reasons and error texts of a platform are kept up to this length.
const REASON_LEN_MAX: usize = 200;

/// An open socket.
#[derive(Debug)]
pub(super) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What every socket of this process shares.
#[derive(Clone)]
pub(super) struct Dialler {
    tls: Arc<rustls::ClientConfig>,
    frame_max: usize,
}

impl Dialler {
    pub(super) fn new(tls: Arc<rustls::ClientConfig>, frame_max: usize) -> Self {
        Self { tls, frame_max }
    }

    /// Opens a socket. Redirects are not followed: a token is never sent to another host than the configured one.
    pub(super) async fn open(&self, dial: Dial, token: Secret) -> Result<Socket, Failure> {
        let request = request(&dial, &token).map_err(Failure::Unreachable)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_LEN)
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .write_buffer_size(0)
            .max_message_size(Some(self.frame_max))
            .max_frame_size(Some(self.frame_max));
        let connector = Connector::Rustls(Arc::clone(&self.tls));
        match connect_async_tls_with_config(request, Some(config), true, Some(connector)).await {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(Error::Http(response)) => Err(refusal(&response)),
            Err(error) => Err(Failure::Unreachable(bounded(&error.to_string()))),
        }
    }
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler").field("frame_max", &self.frame_max).finish_non_exhaustive()
    }
}

/// The upgrade request, with the token where the platform wants it.
fn request(dial: &Dial, token: &Secret) -> Result<Request, String> {
    let mut url = reqwest::Url::parse(&dial.url).map_err(|error| format!("the socket's address is none: {error}"))?;
    if let Credential::Query(parameter) = dial.credential {
        url.query_pairs_mut().append_pair(parameter, token.expose());
    }
    let refused = |_| "the socket's address is none".to_owned();
    let mut request = url.as_str().into_client_request().map_err(refused)?;
    if dial.credential == Credential::Header {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
            .map_err(|_| "the token has characters that no header may have".to_owned())?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

fn refusal<T>(response: &Response<T>) -> Failure {
    let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    Failure::Handshake {
        status: response.status().as_u16(),
        retry_after: wait.and_then(|text| retry_after::parse(text, clock::wall())),
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(REASON_LEN_MAX).collect()
}

impl Socket {
    /// The next frame, or why there are no more.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Failure>> {
        match Pin::new(&mut self.0).poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Err(closed(1006, ""))),
            Poll::Ready(Some(Ok(message))) => Poll::Ready(frame(message)),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(failure(&error))),
        }
    }

    /// Puts the connector's question. An error shows when the socket is read next.
    pub(super) async fn probe(&mut self, probe: Probe) {
        let message = match probe {
            Probe::Ping => Message::Ping(Bytes::new()),
            Probe::Text(text) => Message::text(text),
        };
        self.send(message).await;
    }

    /// Says farewell. Frames may still arrive until the platform answers.
    pub(super) async fn leave(&mut self, code: u16, reason: &'static str) {
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))).await;
    }

    async fn send(&mut self, message: Message) {
        // What cannot be sent is heard as silence or as a lost socket: there is nothing else to decide here.
        drop(tokio::time::timeout(SEND_MAX, self.0.send(message)).await);
    }

    /// Ends the socket politely where the platform is still there: answers its farewell, or says why we go.
    pub(super) async fn finish(mut self, failure: Failure) {
        if failure == Failure::Oversize {
            self.leave(1009, "frame_max").await;
        }
        drop(tokio::time::timeout(Duration::from_secs(1), self.0.flush()).await);
    }
}

fn frame(message: Message) -> Result<Frame, Failure> {
    match message {
        Message::Text(text) => {
            let bytes = Bytes::from(text);
            // Checked a second time: a tenth of what parsing costs, and no unsafe code.
            Ok(ByteString::try_from(bytes.clone()).map_or(Frame::Binary(bytes), Frame::Text))
        }
        Message::Binary(bytes) => Ok(Frame::Binary(bytes)),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Frame::Pong),
        Message::Close(None) => Err(closed(1005, "")),
        Message::Close(Some(CloseFrame { code, reason })) => Err(closed(code.into(), &reason)),
    }
}

fn closed(code: u16, reason: &str) -> Failure {
    Failure::Closed { code, reason: bounded(reason) }
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Failure::Oversize,
        Error::Utf8(_) => closed(1007, "a text that is not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => closed(1006, &error.to_string()),
        Error::Protocol(_) => closed(1002, &error.to_string()),
        Error::ConnectionClosed
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
