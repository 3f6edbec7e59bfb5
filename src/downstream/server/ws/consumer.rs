//! The durable consumer of a WebSocket: acknowledgements by message, applied one after the other while events are sent, and
//! the end by a newer reader.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{CLOSE_TIMEOUT, CloseCause, WsConnection};
use crate::{
    downstream::consumers::{ConsumerError, ConsumerReader},
    model::{Cursor, Mark, StreamName},
    protocol::access::CloseReason,
    store::ReadError,
    telemetry::chain,
};

/// An acknowledgement in progress.
type Acknowledging = Pin<Box<dyn Future<Output = Result<(), ConsumerError>> + Send>>;

/// The consumer that reads over a socket.
pub(in crate::downstream::server) struct WsConsumer {
    reader: Arc<ConsumerReader>,
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The acknowledgement that is applied now.
    applying: Option<Acknowledging>,
    /// The latest acknowledged entries that are applied next.
    latest: BTreeMap<StreamName, Mark>,
}

impl std::fmt::Debug for WsConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WsConsumer").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl WsConsumer {
    pub(in crate::downstream::server) fn new(reader: Arc<ConsumerReader>) -> Self {
        let superseded = Box::pin(reader.superseded().cancelled_owned());
        Self { reader, superseded, applying: None, latest: BTreeMap::new() }
    }

    /// Takes an acknowledgement of the client.
    pub(super) fn acknowledge(&mut self, cursor: &Cursor) -> Result<(), CloseCause> {
        for (stream, mark) in self.reader.marks(cursor).map_err(close_cause)? {
            let latest = self.latest.entry(stream).or_insert(mark);
            // An acknowledgement never moves back, also before it is applied.
            if latest.epoch != mark.epoch || latest.offset < mark.offset {
                *latest = mark;
            }
        }
        Ok(())
    }

    pub(super) fn reader(&self) -> &ConsumerReader {
        &self.reader
    }

    /// Why the connection ends. Applies acknowledgements meanwhile.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<CloseCause> {
        if self.superseded.as_mut().poll(context).is_ready() {
            return Poll::Ready(CloseCause::Access(CloseReason::Superseded));
        }
        match self.poll_applied(context) {
            Poll::Ready(Err(error)) => Poll::Ready(close_cause(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Ready when all acknowledgements are applied.
    fn poll_applied(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConsumerError>> {
        loop {
            if let Some(applying) = &mut self.applying {
                let applied = std::task::ready!(applying.as_mut().poll(context));
                self.applying = None;
                applied?;
            }
            if self.latest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let (reader, marks) = (Arc::clone(&self.reader), std::mem::take(&mut self.latest));
            self.applying = Some(Box::pin(async move { reader.acknowledge(&marks).await }));
        }
    }
}

/// Waits for the end of the consumer's reader; without one it never ends. Cancel-safe.
pub(super) async fn due(consumer: &mut Option<Box<WsConsumer>>) -> CloseCause {
    poll_fn(|context| match consumer {
        Some(consumer) => consumer.poll_due(context),
        None => Poll::Pending,
    })
    .await
}

impl WsConnection {
    /// Applies the acknowledgements that a client sent before it left.
    pub(super) async fn finish_acknowledgements(&mut self) {
        let Some(consumer) = &mut self.consumer else { return };
        let applied = timeout(CLOSE_TIMEOUT, poll_fn(|context| consumer.poll_applied(context))).await;
        if let Ok(Err(error)) = applied {
            tracing::debug!(error = chain(&error), "acknowledgement of a closed reader not applied");
        }
    }
}

fn close_cause(error: ConsumerError) -> CloseCause {
    match error {
        ConsumerError::Superseded | ConsumerError::Unknown(_) => CloseCause::Access(CloseReason::Superseded),
        ConsumerError::Behind { .. }
        | ConsumerError::AheadOfLog { .. }
        | ConsumerError::UnknownEpoch { .. }
        | ConsumerError::NotRead(_)
        | ConsumerError::NamesRequired => CloseCause::Violation(CloseCode::Policy, CURSOR_INVALID),
        ConsumerError::Store(error) => CloseCause::Unreadable(ReadError::new(error)),
        ConsumerError::Unreadable(error) => CloseCause::Unreadable(error),
    }
}

/// The close reason after an acknowledgement that the reader cannot make.
pub(super) const CURSOR_INVALID: &str = "cursor_invalid";
