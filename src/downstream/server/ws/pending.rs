//! A socket that is open and reads no stream yet: it waits for a first message that authenticates it.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{CLOSE_TIMEOUT, close_socket};
use crate::{
    downstream::server::access::{ClientMessage, FIRST_MESSAGE_TIMEOUT, FirstMessage},
    listener::AcceptedSocket,
    model::Secret,
    protocol::access::CloseReason,
};

/// Read buffer: clients send only pings, closes and short messages.
const READ_BUFFER: usize = 512;
/// Write buffer of the library for pongs and a close.
const WRITE_BUFFER_MAX: usize = 4 * 1024;
/// Maximum length of a client message.
const MESSAGE_LEN_MAX: usize = 64 * 1024;

/// An open socket without a subscription.
pub(in crate::downstream::server) struct PendingSocket {
    pub(super) socket: WebSocketStream<AcceptedSocket>,
}

impl PendingSocket {
    /// Takes over the connection after its 101.
    pub(in crate::downstream::server) async fn open(socket: AcceptedSocket, early_bytes: Bytes) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .max_message_size(Some(MESSAGE_LEN_MAX))
            .max_frame_size(Some(MESSAGE_LEN_MAX));
        // Copied, so that these few bytes do not keep the buffer of the HTTP head alive.
        let early_bytes = early_bytes.to_vec();
        Self { socket: WebSocketStream::from_partially_read(socket, early_bytes, Role::Server, Some(config)).await }
    }

    /// The token of the first message.
    pub(in crate::downstream::server) async fn first_token(&mut self) -> Result<Secret, FirstMessage> {
        timeout(FIRST_MESSAGE_TIMEOUT, self.read_token()).await.unwrap_or(Err(FirstMessage::Timeout))
    }

    async fn read_token(&mut self) -> Result<Secret, FirstMessage> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return match ClientMessage::read(&text) {
                        Ok(ClientMessage::Authenticate(token)) => Ok(token),
                        Ok(ClientMessage::Refresh(_) | ClientMessage::Ack(_) | ClientMessage::Other) | Err(_) => {
                            Err(FirstMessage::Malformed)
                        }
                    };
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => (),
                Some(Ok(Message::Binary(_))) => return Err(FirstMessage::Malformed),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(FirstMessage::Gone),
            }
        }
    }

    /// Closes the socket with the reason.
    pub(in crate::downstream::server) async fn close(mut self, end: FirstMessage) {
        let reason = match end {
            FirstMessage::Gone => return,
            FirstMessage::Timeout => CloseReason::AuthTimeout.as_str(),
            FirstMessage::Malformed => CloseReason::TokenInvalid.as_str(),
            FirstMessage::Access(error) => error.close_reason().as_str(),
            FirstMessage::Rejected(reason) => reason,
        };
        self.socket.get_mut().set_stall_timeout(CLOSE_TIMEOUT);
        let close_frame = CloseFrame { code: CloseCode::Policy, reason: reason.into() };
        if !matches!(timeout(CLOSE_TIMEOUT, close_socket(&mut self.socket, close_frame)).await, Ok(Ok(()))) {
            tracing::debug!(reason, "cannot send the close to an unauthenticated client");
        }
    }
}
