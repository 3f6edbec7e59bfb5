//! The authenticated session of a WebSocket: renewal by a message of the client, warnings, and its end.

use std::{future::poll_fn, task::Poll, time::Duration};

use futures_util::SinkExt;
use serde::Serialize;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{CloseCause, WsConnection, close_cause, consumer::CURSOR_INVALID, write_all};
use crate::{
    clock,
    downstream::{
        merged_reader::session_message,
        server::{
            access::{AccessControl, Client, ClientMessage, ConsumerSession, MalformedMessage},
            render,
        },
    },
    model::{BatchView, Secret},
    protocol::access::{AccessMessage, CloseReason},
    random,
};

/// The session of a socket, and what renews it.
#[derive(Debug)]
pub(in crate::downstream::server) struct WsAccess {
    pub(in crate::downstream::server) session: Box<ConsumerSession>,
    pub(in crate::downstream::server) control: AccessControl,
    pub(in crate::downstream::server) client: Client,
    /// Whether the client negotiated session messages that it did not request.
    pub(in crate::downstream::server) has_messages: bool,
}

/// The data of a message about a session, in whole seconds.
#[derive(Serialize)]
struct SessionData {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    expires_in: u64,
}

/// Waits for what is due in the session; without a session it never ends. Cancel-safe.
pub(super) async fn due(access: &mut Option<Box<WsAccess>>) -> AccessMessage {
    poll_fn(|context| match access {
        Some(access) => access.session.poll_due(context),
        None => Poll::Pending,
    })
    .await
}

impl WsConnection {
    /// Sends the id of the session to a client that negotiated session messages.
    pub(super) async fn send_opened(&mut self) -> Result<(), CloseCause> {
        let Some(access) = self.access.as_ref().filter(|access| access.has_messages) else { return Ok(()) };
        let (session, remaining) = (access.session.id().to_string(), access.session.remaining());
        self.send_session_message("trunkline.session.opened", Some(session), remaining).await
    }

    /// Handles a text message. It has no effect without authentication and without a durable consumer.
    pub(super) async fn on_text(&mut self, text: &str) -> Result<(), CloseCause> {
        if let Some(access) = &mut self.access {
            access.session.record_activity(0).map_err(CloseCause::Access)?;
        }
        match ClientMessage::read(text) {
            Ok(ClientMessage::Authenticate(token) | ClientMessage::Refresh(token)) => self.renew(&token).await,
            Ok(ClientMessage::Ack(cursor)) => match &mut self.consumer {
                Some(consumer) => consumer.acknowledge(&cursor),
                None => Ok(()),
            },
            Ok(ClientMessage::Other) => Ok(()),
            Err(MalformedMessage::Token) if self.access.is_none() => Ok(()),
            Err(MalformedMessage::Cursor) if self.consumer.is_none() => Ok(()),
            Err(MalformedMessage::Token) => Err(CloseCause::Access(CloseReason::TokenInvalid)),
            Err(MalformedMessage::Cursor) => Err(CloseCause::Violation(CloseCode::Policy, CURSOR_INVALID)),
        }
    }

    async fn renew(&mut self, token: &Secret) -> Result<(), CloseCause> {
        let Some(access) = &mut self.access else { return Ok(()) };
        let verified = access.control.authenticate_message(token, &access.client).await;
        let grant = verified.map_err(|error| CloseCause::Access(error.close_reason()))?;
        access.session.renew(&grant).map_err(CloseCause::Access)?;
        let remaining = access.session.remaining();
        self.send_session_message("trunkline.session.refreshed", None, remaining).await
    }

    pub(super) async fn on_access_message(&mut self, message: AccessMessage) -> Result<(), CloseCause> {
        match message {
            AccessMessage::Close(reason) => Err(CloseCause::Access(reason)),
            AccessMessage::Expiring(remaining) => {
                if !self.access.as_ref().is_some_and(|access| access.has_messages) {
                    return Ok(());
                }
                self.send_session_message("trunkline.session.expiring", None, remaining).await
            }
        }
    }

    /// Counts the entries that are sent next.
    pub(super) fn record_delivery(&mut self, views: &[BatchView]) -> Result<(), CloseCause> {
        let Some(access) = &mut self.access else { return Ok(()) };
        let bytes = views.iter().map(|view| view.batch.bytes().len() as u64).sum();
        access.session.record_activity(bytes).map_err(CloseCause::Access)
    }

    async fn send_session_message(
        &mut self,
        kind: &'static str,
        session: Option<String>,
        remaining: Duration,
    ) -> Result<(), CloseCause> {
        let data = SessionData { session, expires_in: remaining.as_secs() };
        let (id, source) = (format!("{:016x}", random::u64()), self.feed.source(0).as_str());
        let envelope = session_message(kind, id, source, data, clock::wall());
        self.socket.flush().await.map_err(close_cause)?;
        write_all(self.socket.get_mut(), &render::frame(&envelope)).await
    }
}
