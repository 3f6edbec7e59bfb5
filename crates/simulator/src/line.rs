//! One WebSocket, seen from the platform: it says frames, hears the client, and obeys what faults order. What
//! the two dialects have in common is here; it refuses to know what they say.

use std::future::pending;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{self, Utf8Bytes};

use super::clock::{after, now};
use super::platform::Platform;
use super::sequence::Raw;
use super::server::Wire;

/// How long a closing server waits for the client's half of the goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// The close of a client that sends nothing.
const QUIET: u16 = 1001;
/// RFC 6455 section 5.5: a close reason fits into a control frame.
const REASON_MAX: usize = 123;

/// What a fault tells one socket to do.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Stall(Duration),
    Close {
        code: u16,
        reason: String,
    },
    CloseIn {
        lead: Duration,
        code: u16,
        reason: String,
    },
    /// The token or the channel behind the socket ends at this moment at the latest.
    EndAt(Instant),
    Say(Raw),
    SlowLoris(Duration),
    Fragments(usize),
    /// Close with this payload, well formed or not.
    CloseRaw(Vec<u8>),
    /// Close once the client has sent nothing for so long; zero: no longer.
    CloseQuiet(Duration),
    /// The next frames go out as binary ones.
    Binary(u64),
    /// The next frame is padded to this size.
    Pad(usize),
}

/// How a socket ends with its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The server closes with this code.
    Close(u16),
    /// Nothing more is said, and nobody is told.
    Silence,
}

/// The conversation is over.
#[derive(Debug)]
pub(super) struct Over;

/// Something for the dialect to answer.
#[derive(Debug)]
pub(super) enum Heard {
    Text(Utf8Bytes),
    /// The moment set with `ends_at` has come.
    Ended,
}

/// What faults ordered before a socket was there.
#[derive(Clone, Debug, Default)]
pub(super) struct Begin {
    pub(super) quiet: Option<Duration>,
    pub(super) closing: Option<(Duration, u16, String)>,
}

#[derive(Debug)]
pub(super) struct Line {
    socket: WebSocketStream<Wire>,
    platform: Arc<Platform>,
    orders: mpsc::Receiver<Order>,
    ends: Instant,
    closing: Option<(Instant, u16, String)>,
    /// Set for good when the token ended in silence.
    muted: bool,
    pieces: Option<usize>,
    byte_pause: Option<Duration>,
    /// How long the client may send nothing.
    quiet: Option<Duration>,
    heard_at: Instant,
    binary: u64,
    pad: usize,
}

/// Why a line woke up; `attend` deals with it.
#[derive(Debug)]
pub(super) enum Woken {
    Order(Option<Order>),
    Closing,
    Quiet,
    Ended,
    Frame(Option<Result<Message, tungstenite::Error>>),
}

impl Line {
    pub(super) fn new(
        socket: WebSocketStream<Wire>,
        platform: Arc<Platform>,
        orders: mpsc::Receiver<Order>,
        ends: Instant,
    ) -> Self {
        let heard_at = now();
        Self {
            socket,
            platform,
            orders,
            ends,
            closing: None,
            muted: false,
            pieces: None,
            byte_pause: None,
            quiet: None,
            heard_at,
            binary: 0,
            pad: 0,
        }
    }

    /// What a fault ordered before the socket was there.
    pub(super) fn begins(&mut self, begin: Begin) {
        self.quiet = begin.quiet;
        self.closing = begin.closing.map(|(wait, code, reason)| (after(now(), wait), code, reason));
    }

    /// Whether no more events may be said: the token or channel has ended, noticed or not.
    pub(super) fn is_muted(&self) -> bool {
        self.muted || self.ends <= now()
    }

    pub(super) fn ends_at(&mut self, ends: Instant) {
        self.ends = ends;
    }

    /// Attends to what woke the line. `None`: it has been dealt with here.
    pub(super) async fn attend(&mut self, woken: Woken) -> ControlFlow<Over, Option<Heard>> {
        match woken {
            Woken::Order(Some(order)) => self.obey(order).await.map_continue(|()| None),
            Woken::Order(None) => ControlFlow::Break(Over),
            Woken::Closing => {
                let (_, code, reason) = self.closing.take().expect("only a set moment comes");
                ControlFlow::Break(self.close(code, &reason).await)
            }
            Woken::Quiet => ControlFlow::Break(self.close(QUIET, "Nothing was heard of you").await),
            Woken::Ended => ControlFlow::Continue(Some(Heard::Ended)),
            Woken::Frame(Some(Ok(Message::Text(text)))) => ControlFlow::Continue(Some(Heard::Text(text))),
            // Pings are answered by the protocol, and a close is completed by reading on.
            Woken::Frame(Some(Ok(
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_),
            ))) => ControlFlow::Continue(None),
            Woken::Frame(Some(Err(_)) | None) => ControlFlow::Break(Over),
        }
    }

    /// Waits for what the client or a fault wants. Cancel safe: every arm only receives or sleeps.
    pub(super) async fn wake(&mut self) -> Woken {
        let closing = self.closing.as_ref().map(|(at, _, _)| *at);
        let ends = (!self.muted).then_some(self.ends);
        let quiet = self.quiet.map(|quiet| after(self.heard_at, quiet));
        tokio::select! {
            biased;
            order = self.orders.recv() => Woken::Order(order),
            () = moment(closing) => Woken::Closing,
            () = moment(ends) => Woken::Ended,
            frame = self.socket.next() => {
                self.heard_at = now();
                Woken::Frame(frame)
            }
            () = moment(quiet) => Woken::Quiet,
        }
    }

    async fn obey(&mut self, order: Order) -> ControlFlow<Over> {
        match order {
            Order::Stall(lasting) => sleep(lasting).await,
            Order::Close { code, reason } => {
                return ControlFlow::Break(self.close(code, &reason).await);
            }
            Order::CloseIn { lead, code, reason } => {
                self.closing = Some((after(now(), lead), code, reason));
            }
            Order::EndAt(at) => self.ends = self.ends.min(at),
            Order::Say(raw) => return self.say(raw).await,
            Order::SlowLoris(every) => self.byte_pause = Some(every),
            Order::Fragments(pieces) => self.pieces = Some(pieces),
            Order::CloseRaw(payload) => return ControlFlow::Break(self.close_raw(payload).await),
            Order::CloseQuiet(quiet) => {
                self.quiet = Some(quiet).filter(|quiet| !quiet.is_zero());
                self.heard_at = now();
            }
            Order::Binary(n) => self.binary = n,
            Order::Pad(size) => self.pad = size,
        }
        ControlFlow::Continue(())
    }

    /// What becomes of the socket when its token or channel has ended.
    pub(super) async fn expire(&mut self) -> ControlFlow<Over> {
        match self.platform.settings.expiry {
            Expiry::Close(code) => ControlFlow::Break(self.close(code, "Authentication expired").await),
            Expiry::Silence => {
                self.muted = true;
                ControlFlow::Continue(())
            }
        }
    }

    /// Says one frame and sees it off.
    pub(super) async fn say(&mut self, raw: Raw) -> ControlFlow<Over> {
        self.put(raw).await?;
        self.flush().await
    }

    /// Puts one frame into the write buffer; a fault may take its time over it.
    pub(super) async fn put(&mut self, raw: Raw) -> ControlFlow<Over> {
        let latency = self.platform.latency();
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let raw = self.disguised(raw);
        let frames = frames(raw, self.pieces.take());
        if let Some(pause) = self.byte_pause.take() {
            return self.put_slowly(frames, pause).await;
        }
        for frame in frames {
            go_on(self.socket.feed(Message::Frame(frame)).await)?;
        }
        ControlFlow::Continue(())
    }

    /// A text as a binary frame or with padding, where a fault wants it so.
    fn disguised(&mut self, raw: Raw) -> Raw {
        let Raw::Text(mut text) = raw else { return raw };
        let missing = std::mem::take(&mut self.pad).saturating_sub(text.len());
        text.push_str(&" ".repeat(missing));
        match self.binary.checked_sub(1) {
            None => Raw::Text(text),
            Some(left) => {
                self.binary = left;
                Raw::Binary(text.into_bytes())
            }
        }
    }

    pub(super) async fn flush(&mut self) -> ControlFlow<Over> {
        go_on(self.socket.flush().await)
    }

    async fn put_slowly(&mut self, frames: Vec<Frame>, pause: Duration) -> ControlFlow<Over> {
        self.flush().await?;
        let mut bytes = Vec::new();
        for frame in frames {
            go_on(frame.format(&mut bytes))?;
        }
        for byte in bytes {
            go_on(self.socket.get_mut().write_all(&[byte]).await)?;
            sleep(pause).await;
        }
        ControlFlow::Continue(())
    }

    /// Closes with a payload that need not be well formed, and reads until the client has gone.
    async fn close_raw(&mut self, payload: Vec<u8>) -> Over {
        let bytes = close_frame(&payload);
        if self.flush().await.is_continue() {
            let wire = self.socket.get_mut();
            let goodbye = async {
                wire.write_all(&bytes).await?;
                tokio::io::copy(wire, &mut tokio::io::sink()).await
            };
            // A client that stays is left.
            let _gone = timeout(GOODBYE_MAX, goodbye).await;
        }
        Over
    }

    /// Says goodbye and gives the client a moment to say so too.
    pub(super) async fn close(&mut self, code: u16, reason: &str) -> Over {
        let frame = CloseFrame { code: code.into(), reason: fitting(reason).into() };
        if self.socket.close(Some(frame)).await.is_ok() {
            let goodbye = async { while let Some(Ok(_)) = self.socket.next().await {} };
            // A client that does not answer is left.
            let _answered = timeout(GOODBYE_MAX, goodbye).await;
        }
        Over
    }
}

/// A close frame (RFC 6455, 5.2) whose payload may be longer than a control frame's may be.
fn close_frame(payload: &[u8]) -> Vec<u8> {
    const FINAL_CLOSE: u8 = 0x88;
    let size = match u8::try_from(payload.len()) {
        Ok(size @ ..126) => vec![size],
        Ok(_) | Err(_) => [&[126][..], &(payload.len() as u16).to_be_bytes()].concat(),
    };
    [&[FINAL_CLOSE][..], &size, payload].concat()
}

async fn moment(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

fn go_on<T, E>(result: Result<T, E>) -> ControlFlow<Over, T> {
    match result {
        Ok(value) => ControlFlow::Continue(value),
        Err(_) => ControlFlow::Break(Over),
    }
}

fn fitting(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_MAX)]
}

/// One message as frames: one of them, or as many as were asked for.
fn frames(raw: Raw, pieces: Option<usize>) -> Vec<Frame> {
    match raw {
        Raw::Text(text) => split(text.into_bytes(), Data::Text, pieces.unwrap_or(1)),
        Raw::Binary(bytes) => split(bytes, Data::Binary, pieces.unwrap_or(1)),
        Raw::InvalidText(bytes) => split(bytes, Data::Text, pieces.unwrap_or(1)),
        Raw::Fragments { text, pieces } => split(text.into_bytes(), Data::Text, pieces),
    }
}

fn split(bytes: Vec<u8>, data: Data, pieces: usize) -> Vec<Frame> {
    let size = bytes.len().div_ceil(pieces.max(1)).max(1);
    let last = bytes.len().div_ceil(size).max(1) - 1;
    let all = bytes::Bytes::from(bytes);
    let piece = |index: usize| {
        let opcode = OpCode::Data(if index == 0 { data } else { Data::Continue });
        let end = (size * (index + 1)).min(all.len());
        Frame::message(all.slice(size * index..end), opcode, index == last)
    };
    (0..=last).map(piece).collect()
}
