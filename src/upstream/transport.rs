//! The transports of frames: WebSocket, long poll and poll. The session machine sees the same events of each.

mod polling;
mod socket_event;
#[cfg(test)]
mod tests;
pub mod websocket;

use std::task::{Context, Poll};

pub use self::socket_event::SocketEvent;
use self::{
    polling::PollConnection,
    websocket::{SocketDialler, UpstreamSocket},
};
use super::rest_client::RestClient;
use crate::{
    connector::{Connector, Failure, PollExchange, Probe, Transport},
    model::Secret,
    protocol::session::Dial,
};

/// Opens the connections of one stream.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    pub(super) connector: Connector,
    pub(super) transport: Transport,
    pub(super) sockets: SocketDialler,
    pub(super) rest: RestClient,
    /// A frame beyond this number of bytes ends its connection.
    pub(super) frame_max: usize,
}

/// How the frames of one session arrive.
pub(super) enum UpstreamConnection {
    WebSocket(Box<UpstreamSocket>),
    Poll(Box<PollConnection>),
}

impl Dialler {
    /// Opens a connection. A poll transport has none: its first request is sent when the first frame is read, and its
    /// failure is the end of the session.
    pub(super) async fn open(&self, dial: Dial, token: Secret) -> Result<UpstreamConnection, Failure> {
        match self.transport {
            Transport::WebSocket => {
                self.sockets.open(dial, token).await.map(|socket| UpstreamConnection::WebSocket(Box::new(socket)))
            }
            Transport::LongPoll | Transport::Poll { .. } => Ok(self.poll(dial, token)),
        }
    }

    fn poll(&self, Dial { url, credential }: Dial, token: Secret) -> UpstreamConnection {
        let exchange = PollExchange::new(self.connector.clone(), self.transport, url);
        let polling = PollConnection::new(self.rest.clone(), exchange, credential, token, self.frame_max);
        UpstreamConnection::Poll(Box::new(polling))
    }
}

impl UpstreamConnection {
    /// The next frame, or the failure that ended the connection.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketEvent, Failure>> {
        match self {
            Self::WebSocket(socket) => socket.poll_frame(cx),
            Self::Poll(polling) => polling.poll_frame(cx),
        }
    }

    /// Sends a message of the opening exchange, which poll transports do not have.
    pub(super) async fn send_text(&mut self, text: String) {
        match self {
            Self::WebSocket(socket) => socket.send_text(text).await,
            Self::Poll(_) => (),
        }
    }

    /// Sends a probe. An error shows up in the next read.
    pub(super) async fn probe(&mut self, probe: Probe) {
        match self {
            Self::WebSocket(socket) => socket.probe(probe).await,
            Self::Poll(polling) => polling.probe(),
        }
    }

    /// Begins to close the connection. Frames may still arrive.
    pub(super) async fn close(&mut self, code: u16, reason: &'static str) {
        match self {
            Self::WebSocket(socket) => socket.close(code, reason).await,
            Self::Poll(polling) => polling.close(),
        }
    }

    /// Ends the connection after its failure.
    pub(super) async fn finish(self, failure: Failure) {
        match self {
            Self::WebSocket(socket) => socket.finish(failure).await,
            Self::Poll(_) => (),
        }
    }
}
