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
    memory::Memory,
    position::{self, Positions},
    render::{self, Kinds},
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Due, Feed, Progress},
    listener::Socket,
    model::BatchView,
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
    TooSlow {
        rest: Vec<u8>,
    },
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
            Self::TooSlow { .. } => "too_slow",
            Self::Violation(CloseCode::Size, _) => "limit",
            Self::Violation(..) => "protocol",
            Self::Unreadable(_) => "store",
        }
    }
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
                    Ok(Some(due)) => self.say(&due).await,
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

    async fn say(&mut self, due: &Due) -> Result<(), End> {
        self.socket.flush().await.map_err(fault)?;
        match due {
            Due::Entries { views, .. } => {
                let _held = self.memory.hold(views);
                let chunks = wanted(views, &self.kinds, &mut self.positions, &self.subscriber);
                write_all(self.socket.get_mut(), &chunks).await?;
            }
            Due::Trimmed { lane, gap } => {
                let frame = render::frame(&gap.envelope(self.feed.source(*lane), clock::wall()));
                write_all(self.socket.get_mut(), &[&frame]).await?;
            }
        }
        let told = self.positions.as_ref().is_none_or(|positions| !positions.due());
        // On the heap: few subscribers ever come here, and all would keep room for it.
        if told { Ok(()) } else { Box::pin(self.tell_position()).await }
    }

    async fn tell_position(&mut self) -> Result<(), End> {
        let Some(positions) = &mut self.positions else { return Ok(()) };
        positions.told();
        let reached = Progress::of(&self.feed, self.form);
        let nonce = random::u64();
        let told = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
        self.socket.flush().await.map_err(fault)?;
        write_all(self.socket.get_mut(), &[&render::frame(&told)]).await
    }

    /// Tells the client why, if there is something to tell and it still takes it, and hangs up.
    async fn part(mut self, end: End) {
        self.subscriber.closes(end.reason());
        self.socket.get_mut().bear(FAREWELL_MAX);
        let (code, reason) = match end {
            End::Gone => return self.answer_close().await,
            End::Drained => (CloseCode::Away, "draining"),
            End::Violation(code, reason) => (code, reason),
            End::Unreadable(error) => {
                tracing::warn!(error = chain(&error), "a subscriber was closed");
                (CloseCode::Error, "store")
            }
            End::TooSlow { rest } => {
                tracing::info!("a subscriber took nothing for too long");
                let finished = timeout(FAREWELL_MAX, self.socket.get_mut().write_all(&rest)).await;
                if !matches!(finished, Ok(Ok(()))) {
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

    /// The library has its answer to the client's close ready; it only has to be sent.
    async fn answer_close(&mut self) {
        if let Ok(Err(error)) = timeout(FAREWELL_MAX, self.socket.flush()).await {
            tracing::debug!(error = chain(&error), "a subscriber was gone without a close");
        }
    }
}

/// The wanted frames of these views, as few slices as possible; counted, and what is passed over with them.
fn wanted<'a>(
    views: &'a [BatchView],
    kinds: &Kinds,
    positions: &mut Option<Box<Positions>>,
    subscriber: &metrics::Subscriber,
) -> Vec<&'a [u8]> {
    let (mut chunks, mut delivered) = (Vec::with_capacity(views.len()), 0);
    for view in views {
        let rendering = view.batch.frames(render::frames);
        let mut end = None;
        for run in kinds.runs(view) {
            chunks.push(&rendering.bytes[render::span(rendering, &run)]);
            delivered += run.len();
            end = Some(run.end);
        }
        if let Some(positions) = positions {
            positions.saw(view, end);
        }
    }
    subscriber.delivered(delivered);
    chunks
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
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => End::TooSlow { rest: Vec::new() },
        Error::WriteBufferFull(_) => End::TooSlow { rest: Vec::new() },
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

/// Gives everything to the kernel, as much as it takes at a time.
async fn write_all(socket: &mut Socket, chunks: &[&[u8]]) -> Result<(), End> {
    let (mut index, mut at) = (0, 0);
    while index < chunks.len() {
        let mut written = match write_some(socket, &chunks[index..], at).await {
            Ok(0) => return Err(End::Gone),
            Ok(written) => at + written,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(End::TooSlow { rest: rest_of_frame(chunks[index], at).to_vec() });
            }
            Err(_) => return Err(End::Gone),
        };
        while index < chunks.len() && written >= chunks[index].len() {
            written -= chunks[index].len();
            index += 1;
        }
        at = written;
    }
    Ok(())
}

/// One system call's worth, without the first `at` bytes. The list of slices lives only while the call is made: kept
/// across a wait it would be the largest part of an idle subscriber.
async fn write_some(socket: &mut Socket, chunks: &[&[u8]], at: usize) -> io::Result<usize> {
    poll_fn(|context| {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = chunks.len().min(SLICES_MAX);
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
        }
        slices[0].advance(at);
        Pin::new(&mut *socket).poll_write_vectored(context, &slices[..count])
    })
    .await
}

/// What is missing of the frame that is cut at `at`; nothing when a frame ends there.
fn rest_of_frame(frames: &[u8], at: usize) -> &[u8] {
    let mut end = 0;
    while end < at {
        let Some(len) = render::frame_len(&frames[end..]) else { return &[] };
        end += len;
    }
    frames.get(at..end).unwrap_or_default()
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

    #[test]
    fn a_frame_that_was_cut_is_finished_and_no_more() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let one = render::frame(&"x".repeat(len));
            assert_eq!(render::frame_len(&one), Some(one.len()), "{len}");
            let three = [one.as_slice(), &one, &one].concat();
            for at in [0, 1, one.len() - 1, one.len(), one.len() + 1, 2 * one.len()] {
                let done = at + rest_of_frame(&three, at).len();
                assert_eq!(done, at.div_ceil(one.len()) * one.len(), "{len} {at}");
            }
        }
    }
}
