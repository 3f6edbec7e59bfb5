//! One subscriber over WebSocket: events out, one a text message; pings; a close that says why.
//!
//! The library reads, answers pings and closes. Events go around it: their frames are made once for all subscribers
//! and everything that is due is given to the kernel in one call. No frame of the library's may be half written then,
//! so it is flushed first. A text message from the client means nothing here and is ignored; binary is refused.

pub(super) mod handshake;

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
        self, Message,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
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
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// What a WebSocket goes on with after its handshake.
#[derive(Debug)]
pub(super) struct WsSubscription {
    pub(super) feed: MergedReader,
    pub(super) kinds: TypeFilter,
    /// After this long without a word from the client it is asked for one.
    pub(super) ping_every: Duration,
    /// For a reader that does not see everything by itself, and wants to be told.
    pub(super) positions: Option<Box<PositionReporter>>,
    /// How its cursor is written.
    pub(super) form: CursorForm,
    pub(super) memory: BufferPool,
    pub(super) subscriber: metrics::SubscriberMetrics,
}

/// The CloudEvents `type` of the message that tells a position.
const POSITION_KIND: &str = "trunkline.session.position";

/// Clients have little to say: a ping, a close, a short message.
const READ_BUFFER: usize = 512;
/// What the library may hold back when the client takes nothing: pongs and a close.
const WRITE_BUFFER_MAX: usize = 4 * 1024;
/// The longest message that a client may send.
const MESSAGE_LEN_MAX: usize = 64 * 1024;
/// What is read from a log for one write, so that one subscriber that is far behind does not hold a core for long.
const WRITE_LEN: usize = 256 * 1024;
/// Slices in one system call; Linux takes up to 1,024.
const SLICES_MAX: usize = 64;
/// Pings without an answer before the client counts as gone.
const PINGS_UNANSWERED_MAX: u8 = 2;
/// How long a close may take, until the client has hung up too.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read and thrown away during a close, so that the client sees the close and not a reset.
const CLOSE_READ_MAX: usize = 1024 * 1024;

/// Why a conversation ends.
#[derive(Debug)]
enum CloseCause {
    /// The log is closed and everything was said.
    Drained,
    /// The client closed, or is gone.
    Gone,
    /// It took nothing for too long; what is left of the frame that it has begun to get.
    TooSlow(RemainingFrame),
    /// It has begun to get a frame that cannot be finished.
    PartialFrame,
    /// It sent what it must not.
    Violation(CloseCode, &'static str),
    Unreadable(ReadError),
}

impl CloseCause {
    /// The word of the metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Drained => "draining",
            Self::Gone => "gone",
            Self::TooSlow(_) | Self::PartialFrame => "too_slow",
            Self::Violation(CloseCode::Size, _) => "limit",
            Self::Violation(..) => "protocol",
            Self::Unreadable(_) => "store",
        }
    }
}

/// What is left of a frame.
#[derive(Debug)]
enum RemainingFrame {
    Nothing,
    Text(Vec<u8>),
    Entry(Box<OutgoingBatch>),
}

/// Speaks with one client to the end.
pub(super) async fn run(session: WsSubscription, socket: AcceptedSocket, early_bytes: Bytes) {
    let mut conversation = Box::pin(WsConnection::open(session, socket, early_bytes)).await;
    let end = conversation.run().await;
    Box::pin(conversation.close(end)).await;
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
}

impl WsConnection {
    async fn open(session: WsSubscription, socket: AcceptedSocket, early_bytes: Bytes) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .max_message_size(Some(MESSAGE_LEN_MAX))
            .max_frame_size(Some(MESSAGE_LEN_MAX));
        let WsSubscription { feed, kinds, ping_every, positions, form, memory, subscriber } = session;
        let mut pings = interval_at(tokio::time::Instant::from_std(clock::now()) + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A copy, because the few bytes heard would keep the whole buffer of the HTTP head alive.
        let early_bytes = early_bytes.to_vec();
        let socket = WebSocketStream::from_partially_read(socket, early_bytes, Role::Server, Some(config)).await;
        Self { socket, feed, kinds, pings, pings_unanswered: 0, positions, form, memory, subscriber }
    }

    async fn run(&mut self) -> CloseCause {
        loop {
            let done = tokio::select! {
                biased;
                message = self.socket.next() => self.on_message(message),
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

    fn on_message(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Result<(), CloseCause> {
        self.pings_unanswered = 0;
        self.pings.reset();
        match message {
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_))) => Ok(()),
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
                let (kinds, subscriber, positions) = (&self.kinds, &self.subscriber, &mut self.positions);
                let turn = OutgoingBatch::of(lane, views, CopyKind::WithFrames, kinds, subscriber, positions);
                self.send_batch(turn).await?;
            }
            ReadItem::Trimmed { lane, gap } => {
                let frame = render::frame(&gap.envelope(self.feed.source(lane), clock::wall()));
                write_all(self.socket.get_mut(), &frame).await?;
            }
        }
        let position_current = self.positions.as_ref().is_none_or(|positions| !positions.is_due());
        // On the heap: few subscribers ever come here, and all would keep room for it.
        if position_current { Ok(()) } else { Box::pin(self.send_position()).await }
    }

    /// Gives every frame of a turn to the kernel.
    async fn send_batch(&mut self, mut turn: OutgoingBatch) -> Result<(), CloseCause> {
        loop {
            let sent = poll_fn(|context| self.poll_send(&mut turn, context)).await;
            match sent {
                Ok(()) if turn.unsent.is_done() => return Ok(()),
                // On the heap: few subscribers ever come here, and all would keep room for it.
                Ok(()) => Box::pin(self.reload(&mut turn)).await?,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(CloseCause::TooSlow(RemainingFrame::Entry(Box::new(turn))));
                }
                Err(_) => return Err(CloseCause::Gone),
            }
        }
    }

    async fn reload(&self, turn: &mut OutgoingBatch) -> Result<(), CloseCause> {
        turn.reload(&self.memory, &self.feed).await.map_err(|lost| match lost {
            _ if turn.unsent.sent > 0 => CloseCause::PartialFrame,
            RecallError::Trimmed => CloseCause::TooSlow(RemainingFrame::Nothing),
            RecallError::Unreadable(error) => CloseCause::Unreadable(error),
        })
    }

    /// Sends what is at hand; that may be less than there is.
    fn poll_send(&mut self, turn: &mut OutgoingBatch, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let views = turn.entries.views();
            // The list of slices lives only while the call is made: kept across a wait it would be the largest part of
            // an idle subscriber.
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
        let told = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
        self.socket.flush().await.map_err(close_cause)?;
        write_all(self.socket.get_mut(), &render::frame(&told)).await
    }

    /// Tells the client why, if there is something to tell and it still takes it, and hangs up.
    async fn close(mut self, end: CloseCause) {
        self.subscriber.set_close_reason(end.reason());
        self.socket.get_mut().set_stall_timeout(CLOSE_TIMEOUT);
        let (code, reason) = match end {
            CloseCause::Gone => return self.answer_close().await,
            CloseCause::PartialFrame => return tracing::info!("subscriber too slow, closed"),
            CloseCause::Drained => (CloseCode::Away, "draining"),
            CloseCause::Violation(code, reason) => (code, reason),
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

    /// Sends what is left of a frame.
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

    /// The library has its answer to the client's close ready; it only has to be sent.
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

/// Gives a frame to the kernel, as much as it takes at a time.
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

/// Says why, ends our side, and reads until the client has ended its own: an unread byte would turn the close into a
/// reset, and the client would never know.
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
        // About 1.5 KiB; how the compiler lays it out differs a little. What is in boxes would be some KiB more.
        assert!(kept <= 1_792, "{kept} bytes for a conversation");
    }
}
