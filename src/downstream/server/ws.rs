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
    memory::{Copies, Memory},
    position::{self, Positions},
    render::{self, Kinds},
    turn::{Lost, Turn},
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Due, Feed, Progress},
    listener::Socket,
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// What a WebSocket goes on with after its handshake.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) feed: Feed,
    pub(super) kinds: Kinds,
    /// After this long without a word from the client it is asked for one.
    pub(super) ping_every: Duration,
    /// For a reader that does not see everything by itself, and wants to be told.
    pub(super) positions: Option<Box<Positions>>,
    /// How its cursor is written.
    pub(super) form: CursorForm,
    pub(super) memory: Memory,
    pub(super) subscriber: metrics::Subscriber,
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
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// What is read and thrown away during a close, so that the client sees the close and not a reset.
const FAREWELL_LEN_MAX: usize = 1024 * 1024;

/// Why a conversation ends.
#[derive(Debug)]
enum End {
    /// The log is closed and everything was said.
    Drained,
    /// The client closed, or is gone.
    Gone,
    /// It took nothing for too long; what is left of the frame that it has begun to get.
    TooSlow(Rest),
    /// It has begun to get a frame that cannot be finished.
    Cut,
    /// It sent what it must not.
    Violation(CloseCode, &'static str),
    Unreadable(ReadError),
}

impl End {
    /// The word of the metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Drained => "draining",
            Self::Gone => "gone",
            Self::TooSlow(_) | Self::Cut => "too_slow",
            Self::Violation(CloseCode::Size, _) => "limit",
            Self::Violation(..) => "protocol",
            Self::Unreadable(_) => "store",
        }
    }
}

/// What is left of a frame.
#[derive(Debug)]
enum Rest {
    Nothing,
    Text(Vec<u8>),
    Entry(Box<Turn>),
}

/// Speaks with one client to the end.
pub(super) async fn converse(session: Session, socket: Socket, heard: Bytes) {
    let mut conversation = Box::pin(Conversation::open(session, socket, heard)).await;
    let end = conversation.run().await;
    Box::pin(conversation.part(end)).await;
}

struct Conversation {
    socket: WebSocketStream<Socket>,
    feed: Feed,
    kinds: Kinds,
    pings: Interval,
    unanswered: u8,
    positions: Option<Box<Positions>>,
    form: CursorForm,
    memory: Memory,
    subscriber: metrics::Subscriber,
}

impl Conversation {
    async fn open(session: Session, socket: Socket, heard: Bytes) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .max_message_size(Some(MESSAGE_LEN_MAX))
            .max_frame_size(Some(MESSAGE_LEN_MAX));
        let Session { feed, kinds, ping_every, positions, form, memory, subscriber } = session;
        let mut pings = interval_at(tokio::time::Instant::from_std(clock::now()) + ping_every, ping_every);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A copy, because the few bytes heard would keep the whole buffer of the HTTP head alive.
        let heard = heard.to_vec();
        let socket = WebSocketStream::from_partially_read(socket, heard, Role::Server, Some(config)).await;
        Self { socket, feed, kinds, pings, unanswered: 0, positions, form, memory, subscriber }
    }

    async fn run(&mut self) -> End {
        loop {
            let done = tokio::select! {
                biased;
                message = self.socket.next() => self.hear(message),
                due = self.feed.next(self.memory.read_len(WRITE_LEN)) => match due {
                    Ok(Some(due)) => self.say(due).await,
                    Ok(None) => Err(End::Drained),
                    Err(error) => Err(End::Unreadable(error)),
                },
                () = position::time(&mut self.positions) => Box::pin(self.tell_position()).await,
                _ = self.pings.tick() => self.ping().await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn hear(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Result<(), End> {
        self.unanswered = 0;
        self.pings.reset();
        match message {
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_))) => Ok(()),
            Some(Ok(Message::Binary(_))) => Err(End::Violation(CloseCode::Unsupported, "text only")),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone),
            Some(Err(error)) => Err(fault(error)),
        }
    }

    async fn ping(&mut self) -> Result<(), End> {
        if self.unanswered == PINGS_UNANSWERED_MAX {
            tracing::debug!("a subscriber no longer answers");
            return Err(End::Gone);
        }
        self.unanswered += 1;
        self.socket.send(Message::Ping(Bytes::new())).await.map_err(fault)
    }

    async fn say(&mut self, due: Due) -> Result<(), End> {
        self.socket.flush().await.map_err(fault)?;
        match due {
            Due::Entries { lane, views } => {
                let (kinds, subscriber, positions) = (&self.kinds, &self.subscriber, &mut self.positions);
                let turn = Turn::of(lane, views, Copies::WithFrames, kinds, subscriber, positions);
                self.send(turn).await?;
            }
            Due::Trimmed { lane, gap } => {
                let frame = render::frame(&gap.envelope(self.feed.source(lane), clock::wall()));
                write_all(self.socket.get_mut(), &frame).await?;
            }
        }
        let told = self.positions.as_ref().is_none_or(|positions| !positions.due());
        // On the heap: few subscribers ever come here, and all would keep room for it.
        if told { Ok(()) } else { Box::pin(self.tell_position()).await }
    }

    /// Gives every frame of a turn to the kernel.
    async fn send(&mut self, mut turn: Turn) -> Result<(), End> {
        loop {
            let sent = poll_fn(|context| self.poll_send(&mut turn, context)).await;
            match sent {
                Ok(()) if turn.course.is_done() => return Ok(()),
                // On the heap: few subscribers ever come here, and all would keep room for it.
                Ok(()) => Box::pin(self.recall(&mut turn)).await?,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(End::TooSlow(Rest::Entry(Box::new(turn))));
                }
                Err(_) => return Err(End::Gone),
            }
        }
    }

    async fn recall(&self, turn: &mut Turn) -> Result<(), End> {
        turn.recall(&self.memory, &self.feed).await.map_err(|lost| match lost {
            _ if turn.course.sent > 0 => End::Cut,
            Lost::Trimmed => End::TooSlow(Rest::Nothing),
            Lost::Unreadable(error) => End::Unreadable(error),
        })
    }

    /// Sends what is at hand; that may be less than there is.
    fn poll_send(&mut self, turn: &mut Turn, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let views = turn.stock.views();
            // The list of slices lives only while the call is made: kept across a wait it would be the largest part of
            // an idle subscriber.
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = turn.course.frames(&views, &mut slices);
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            let socket = Pin::new(self.socket.get_mut());
            match socket.poll_write_vectored(context, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => turn.course.frames_sent(&views, written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    drop(views);
                    turn.wait(&self.memory, &self.feed);
                    return Poll::Pending;
                }
            }
        }
    }

    async fn tell_position(&mut self) -> Result<(), End> {
        let Some(positions) = &mut self.positions else { return Ok(()) };
        positions.told();
        let reached = Progress::of(&self.feed, self.form);
        let nonce = random::u64();
        let told = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
        self.socket.flush().await.map_err(fault)?;
        write_all(self.socket.get_mut(), &render::frame(&told)).await
    }

    /// Tells the client why, if there is something to tell and it still takes it, and hangs up.
    async fn part(mut self, end: End) {
        self.subscriber.closes(end.reason());
        self.socket.get_mut().bear(FAREWELL_MAX);
        let (code, reason) = match end {
            End::Gone => return self.answer_close().await,
            End::Cut => return tracing::info!("a subscriber took nothing for too long"),
            End::Drained => (CloseCode::Away, "draining"),
            End::Violation(code, reason) => (code, reason),
            End::Unreadable(error) => {
                tracing::warn!(error = chain(&error), "a subscriber was closed");
                (CloseCode::Error, "store")
            }
            End::TooSlow(rest) => {
                tracing::info!("a subscriber took nothing for too long");
                if !matches!(timeout(FAREWELL_MAX, self.finish(rest)).await, Ok(Ok(()))) {
                    return;
                }
                (CloseCode::Policy, "too_slow")
            }
        };
        let farewell = CloseFrame { code, reason: reason.into() };
        let said = timeout(FAREWELL_MAX, hang_up(&mut self.socket, farewell)).await;
        if !matches!(said, Ok(Ok(()))) {
            tracing::debug!(reason, "a subscriber did not hear the close");
        }
    }

    /// Sends what is left of a frame.
    async fn finish(&mut self, rest: Rest) -> Result<(), End> {
        match rest {
            Rest::Nothing => Ok(()),
            Rest::Text(rest) => write_all(self.socket.get_mut(), &rest).await,
            Rest::Entry(mut turn) => {
                turn.course.cut();
                self.send(*turn).await
            }
        }
    }

    /// The library has its answer to the client's close ready; it only has to be sent.
    async fn answer_close(&mut self) {
        if let Ok(Err(error)) = timeout(FAREWELL_MAX, self.socket.flush()).await {
            tracing::debug!(error = chain(&error), "a subscriber was gone without a close");
        }
    }
}

fn fault(error: tungstenite::Error) -> End {
    use tungstenite::Error;
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => End::Violation(CloseCode::Size, "limit"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
        Error::Capacity(CapacityError::TooManyHeaders) | Error::Protocol(_) => {
            End::Violation(CloseCode::Protocol, "protocol")
        }
        Error::Utf8(_) => End::Violation(CloseCode::Invalid, "text must be UTF-8"),
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => End::TooSlow(Rest::Nothing),
        Error::WriteBufferFull(_) => End::TooSlow(Rest::Nothing),
        Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Tls(_)
        | Error::AttackAttempt
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => End::Gone,
    }
}

/// Gives a frame to the kernel, as much as it takes at a time.
async fn write_all(socket: &mut Socket, mut frame: &[u8]) -> Result<(), End> {
    while !frame.is_empty() {
        match socket.write(frame).await {
            Ok(0) => return Err(End::Gone),
            Ok(written) => frame = &frame[written..],
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(End::TooSlow(Rest::Text(frame.to_vec())));
            }
            Err(_) => return Err(End::Gone),
        }
    }
    Ok(())
}

/// Says why, ends our side, and reads until the client has ended its own: an unread byte would turn the close into a
/// reset, and the client would never know.
async fn hang_up(socket: &mut WebSocketStream<Socket>, farewell: CloseFrame) -> Result<(), tungstenite::Error> {
    socket.close(Some(farewell)).await?;
    let socket = socket.get_mut();
    socket.shutdown().await?;
    let mut ignored = [0; 512];
    let mut left = FAREWELL_LEN_MAX;
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
    fn what_an_idle_subscriber_keeps_is_small() {
        fn kept<F: Future>(_: impl FnOnce(Session, Socket, Bytes) -> F) -> usize {
            size_of::<F>()
        }
        let kept = kept(converse);
        // About 1.5 KiB; how the compiler lays it out differs a little. What is in boxes would be some KiB more.
        assert!(kept <= 1_792, "{kept} bytes for a conversation");
    }
}
