//! A subscriber over WebSocket: one event per text message, pings, and a close with a reason.
//!
//! The library reads, answers pings and closes. Events bypass it: their frames are rendered once for all subscribers and
//! written with one system call. The library is flushed first, so that none of its frames is partially written. Text
//! messages of the client are session messages; binary ones are rejected.

mod access;
mod consumer;
pub(super) mod handshake;
mod pending;

pub(super) use self::{access::WsAccess, consumer::WsConsumer, pending::PendingSocket};

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Interval, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    buffer_pool::{BufferPool, CopyKind},
    outgoing::{OutgoingBatch, RecallError},
    position::{self, PositionReporter},
    render::{self, TypeFilter},
};
use crate::{
    clock,
    downstream::merged_reader::{CursorForm, MergedReader, ReadItem, ReadProgress},
    listener::AcceptedSocket,
    protocol::access::CloseReason,
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// A subscription after its handshake.
#[derive(Debug)]
pub(super) struct WsSubscription {
    pub(super) feed: MergedReader,
    pub(super) kinds: TypeFilter,
    /// Idle time before the client is pinged.
    pub(super) ping_every: Duration,
    /// Positions of a filtered reader that requested them.
    pub(super) positions: Option<Box<PositionReporter>>,
    /// The form of its cursor.
    pub(super) form: CursorForm,
    pub(super) memory: BufferPool,
    pub(super) subscriber: metrics::SubscriberMetrics,
    /// The authenticated session; none where no authentication is configured.
    pub(super) access: Option<Box<WsAccess>>,
    /// The durable consumer that reads.
    pub(super) consumer: Option<Box<WsConsumer>>,
}

/// The CloudEvents `type` of a position message.
const POSITION_KIND: &str = "trunkline.session.position";

/// Bytes read from a log per write, so that one lagging subscriber does not occupy a core for long.
const WRITE_LEN: usize = 256 * 1024;
/// Slices per system call; Linux accepts up to 1,024.
const SLICES_MAX: usize = 64;
/// Unanswered pings before the client counts as gone.
const PINGS_UNANSWERED_MAX: u8 = 2;
/// Timeout of a close, until the client has closed too.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes discarded during a close, so that the client gets the close and not a reset.
const CLOSE_READ_MAX: usize = 1024 * 1024;

/// Why a connection ends.
#[derive(Debug)]
enum CloseCause {
    /// The log is closed and all entries were sent.
    Drained,
    /// The client closed or disconnected.
    Gone,
    /// The client did not read for too long. Has the rest of a partially sent frame.
    TooSlow(RemainingFrame),
    /// A partially sent frame cannot be completed.
    PartialFrame,
    /// The client violated the protocol.
    Violation(CloseCode, &'static str),
    /// The session ends.
    Access(CloseReason),
    Unreadable(ReadError),
}

impl CloseCause {
    /// The reason label of the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Drained => "draining",
            Self::Gone => "gone",
            Self::TooSlow(_) | Self::PartialFrame => "too_slow",
            Self::Violation(CloseCode::Size, _) => "limit",
            Self::Violation(..) => "protocol",
            Self::Access(reason) => reason.as_str(),
            Self::Unreadable(_) => "store",
        }
    }
}

/// The rest of a frame.
#[derive(Debug)]
enum RemainingFrame {
    Nothing,
    Text(Vec<u8>),
    Entry(Box<OutgoingBatch>),
}

/// Serves one client until its end.
pub(super) async fn run(session: WsSubscription, socket: AcceptedSocket, early_bytes: Bytes) {
    let socket = Box::pin(PendingSocket::open(socket, early_bytes)).await;
    run_authenticated(session, socket).await;
}

/// Serves one client whose socket is open.
pub(super) async fn run_authenticated(session: WsSubscription, socket: PendingSocket) {
    let mut connection = Box::new(WsConnection::new(session, socket));
    let end = match Box::pin(connection.send_opened()).await {
        Ok(()) => connection.run().await,
        Err(end) => end,
    };
    Box::pin(connection.finish_acknowledgements()).await;
    Box::pin(connection.close(end)).await;
}

struct WsConnection {
    socket: WebSocketStream<AcceptedSocket>,
    feed: MergedReader,
    kinds: TypeFilter,
    pings: Interval,
    pings_unanswered: u8,
    positions: Option<Box<PositionReporter>>,
    form: CursorForm,
    memory: BufferPool,
    subscriber: metrics::SubscriberMetrics,
    access: Option<Box<WsAccess>>,
    consumer: Option<Box<WsConsumer>>,
}

impl WsConnection {
    fn new(session: WsSubscription, PendingSocket { socket }: PendingSocket) -> Self {
        let WsSubscription { feed, kinds, ping_every, positions, form, memory, subscriber, access, consumer } = session;
        let mut pings = interval_at(tokio::time::Instant::from_std(clock::now()) + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { socket, feed, kinds, pings, pings_unanswered: 0, positions, form, memory, subscriber, access, consumer }
    }

    async fn run(&mut self) -> CloseCause {
        loop {
            let done = tokio::select! {
                biased;
                message = self.socket.next() => match self.on_message(message) {
                    // Boxed: few messages need this future, and its size would count for every subscriber.
                    Ok(Some(text)) => Box::pin(self.on_text(&text)).await,
                    Ok(None) => Ok(()),
                    Err(end) => Err(end),
                },
                message = access::due(&mut self.access) => Box::pin(self.on_access_message(message)).await,
                end = consumer::due(&mut self.consumer) => Err(end),
                due = self.feed.next(self.memory.read_len(WRITE_LEN)) => match due {
                    Ok(Some(due)) => self.send_item(due).await,
                    Ok(None) => Err(CloseCause::Drained),
                    Err(error) => Err(CloseCause::Unreadable(error)),
                },
                () = position::wait_until_due(&mut self.positions) => Box::pin(self.send_position()).await,
                _ = self.pings.tick() => self.ping().await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Returns the text of a text message.
    fn on_message(
        &mut self,
        message: Option<Result<Message, tungstenite::Error>>,
    ) -> Result<Option<Utf8Bytes>, CloseCause> {
        self.pings_unanswered = 0;
        self.pings.reset();
        match message {
            Some(Ok(Message::Text(text))) => Ok(Some(text)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Binary(_))) => Err(CloseCause::Violation(CloseCode::Unsupported, "text only")),
            Some(Ok(Message::Close(_))) | None => Err(CloseCause::Gone),
            Some(Err(error)) => Err(close_cause(error)),
        }
    }

    async fn ping(&mut self) -> Result<(), CloseCause> {
        if self.pings_unanswered == PINGS_UNANSWERED_MAX {
            tracing::debug!("subscriber does not answer pings");
            return Err(CloseCause::Gone);
        }
        self.pings_unanswered += 1;
        self.socket.send(Message::Ping(Bytes::new())).await.map_err(close_cause)
    }

    async fn send_item(&mut self, due: ReadItem) -> Result<(), CloseCause> {
        self.socket.flush().await.map_err(close_cause)?;
        match due {
            ReadItem::Entries { lane, views } => {
                self.record_delivery(&views)?;
                let (kinds, subscriber, positions) = (&self.kinds, &self.subscriber, &mut self.positions);
                let consumer = self.consumer.as_ref().map(|consumer| consumer.reader());
                let turn = OutgoingBatch::of(lane, views, CopyKind::WithFrames, kinds, subscriber, consumer, positions);
                self.send_batch(turn).await?;
            }
            ReadItem::Trimmed { lane, gap } => {
                let frame = render::frame(&gap.envelope(self.feed.source(lane), clock::wall()));
                write_all(self.socket.get_mut(), &frame).await?;
            }
        }
        let position_current = self.positions.as_ref().is_none_or(|positions| !positions.is_due());
        // Boxed: few subscribers need this future, and its size would count for every subscriber.
        if position_current { Ok(()) } else { Box::pin(self.send_position()).await }
    }

    /// Sends every frame of a batch.
    async fn send_batch(&mut self, mut turn: OutgoingBatch) -> Result<(), CloseCause> {
        loop {
            let sent = poll_fn(|context| self.poll_send(&mut turn, context)).await;
            match sent {
                Ok(()) if turn.unsent.is_done() => return Ok(()),
                // Boxed: few subscribers need this future, and its size would count for every subscriber.
                Ok(()) => Box::pin(self.reload(&mut turn)).await?,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(CloseCause::TooSlow(RemainingFrame::Entry(Box::new(turn))));
                }
                Err(_) => return Err(CloseCause::Gone),
            }
        }
    }

    async fn reload(&mut self, turn: &mut OutgoingBatch) -> Result<(), CloseCause> {
        turn.reload(&self.memory, &self.feed).await.map_err(|lost| match lost {
            _ if turn.unsent.sent > 0 => CloseCause::PartialFrame,
            RecallError::Trimmed => CloseCause::TooSlow(RemainingFrame::Nothing),
            RecallError::Unreadable(error) => CloseCause::Unreadable(error),
        })
    }

    /// Sends the entries in memory, which may be fewer than are unsent.
    fn poll_send(&mut self, turn: &mut OutgoingBatch, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let views = turn.entries.views();
            // The slices exist only during the call: kept across an await, they would dominate the memory of an idle
            // subscriber.
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = turn.unsent.frames(&views, &mut slices);
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            let socket = Pin::new(self.socket.get_mut());
            match socket.poll_write_vectored(context, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => turn.unsent.frames_sent(&views, written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    drop(views);
                    turn.hold(&self.memory, &self.feed);
                    return Poll::Pending;
                }
            }
        }
    }

    async fn send_position(&mut self) -> Result<(), CloseCause> {
        let Some(positions) = &mut self.positions else { return Ok(()) };
        positions.on_reported();
        let reached = ReadProgress::of(&self.feed, self.form);
        let nonce = random::u64();
        let envelope = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
        self.socket.flush().await.map_err(close_cause)?;
        write_all(self.socket.get_mut(), &render::frame(&envelope)).await
    }

    /// Sends a close with the reason, if the client still reads, and closes the connection.
    async fn close(mut self, end: CloseCause) {
        self.subscriber.set_close_reason(end.reason());
        self.socket.get_mut().set_stall_timeout(CLOSE_TIMEOUT);
        let (code, reason) = match end {
            CloseCause::Gone => return self.answer_close().await,
            CloseCause::PartialFrame => return tracing::info!("subscriber too slow, closed"),
            CloseCause::Drained => (CloseCode::Away, "draining"),
            CloseCause::Violation(code, reason) => (code, reason),
            CloseCause::Access(reason) => (CloseCode::Policy, reason.as_str()),
            CloseCause::Unreadable(error) => {
                tracing::warn!(error = chain(&error), "subscriber closed");
                (CloseCode::Error, "store")
            }
            CloseCause::TooSlow(rest) => {
                tracing::info!("subscriber too slow, closed");
                if !matches!(timeout(CLOSE_TIMEOUT, self.finish(rest)).await, Ok(Ok(()))) {
                    return;
                }
                (CloseCode::Policy, "too_slow")
            }
        };
        let close_frame = CloseFrame { code, reason: reason.into() };
        let closed = timeout(CLOSE_TIMEOUT, close_socket(&mut self.socket, close_frame)).await;
        if !matches!(closed, Ok(Ok(()))) {
            tracing::debug!(reason, "cannot send the close to the subscriber");
        }
    }

    /// Sends the rest of a frame.
    async fn finish(&mut self, rest: RemainingFrame) -> Result<(), CloseCause> {
        match rest {
            RemainingFrame::Nothing => Ok(()),
            RemainingFrame::Text(rest) => write_all(self.socket.get_mut(), &rest).await,
            RemainingFrame::Entry(mut turn) => {
                turn.unsent.keep_partial_entry();
                self.send_batch(*turn).await
            }
        }
    }

    /// Flushes the library's answer to the client's close.
    async fn answer_close(&mut self) {
        if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, self.socket.flush()).await {
            tracing::debug!(error = chain(&error), "subscriber disconnected without a close");
        }
    }
}

fn close_cause(error: tungstenite::Error) -> CloseCause {
    use tungstenite::Error;
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseCause::Violation(CloseCode::Size, "limit"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => CloseCause::Gone,
        Error::Capacity(CapacityError::TooManyHeaders) | Error::Protocol(_) => {
            CloseCause::Violation(CloseCode::Protocol, "protocol")
        }
        Error::Utf8(_) => CloseCause::Violation(CloseCode::Invalid, "text must be UTF-8"),
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => CloseCause::TooSlow(RemainingFrame::Nothing),
        Error::WriteBufferFull(_) => CloseCause::TooSlow(RemainingFrame::Nothing),
        Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Tls(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => CloseCause::Gone,
    }
}

/// Writes a whole frame.
async fn write_all(socket: &mut AcceptedSocket, mut frame: &[u8]) -> Result<(), CloseCause> {
    while !frame.is_empty() {
        match socket.write(frame).await {
            Ok(0) => return Err(CloseCause::Gone),
            Ok(written) => frame = &frame[written..],
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(CloseCause::TooSlow(RemainingFrame::Text(frame.to_vec())));
            }
            Err(_) => return Err(CloseCause::Gone),
        }
    }
    Ok(())
}

/// Sends the close, shuts down writing, and reads until the client closes: an unread byte would reset the connection and
/// lose the close.
async fn close_socket(
    socket: &mut WebSocketStream<AcceptedSocket>,
    close_frame: CloseFrame,
) -> Result<(), tungstenite::Error> {
    socket.close(Some(close_frame)).await?;
    let socket = socket.get_mut();
    socket.shutdown().await?;
    let mut ignored = [0; 512];
    let mut left = CLOSE_READ_MAX;
    while left > 0 {
        match socket.read(&mut ignored).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_subscriber_holds_little_memory() {
        fn kept<F: Future>(_: impl FnOnce(WsSubscription, AcceptedSocket, Bytes) -> F) -> usize {
            size_of::<F>()
        }
        let kept = kept(run);
        // About 1.5 KiB; the layout varies slightly. The boxed futures would add some KiB.
        assert!(kept <= 1_792, "{kept} bytes for a conversation");
    }
}
