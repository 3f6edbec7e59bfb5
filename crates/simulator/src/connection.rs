//! One WebSocket on the platform's side: it sends frames, reads the client and executes the commands of faults. It has
//! what the two dialects share, and nothing of their messages.

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
use super::platform::SimulatedPlatform;
use super::sequence::RawFrame;
use super::server::ControlledStream;

/// How long the server waits for the client's half of the close handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The close code for a client that sends nothing.
const IDLE_CLOSE_CODE: u16 = 1001;
/// RFC 6455 section 5.5: a close reason must fit into a control frame.
const REASON_LEN_MAX: usize = 123;

/// A command from a fault to one socket.
#[derive(Clone, Debug)]
pub(super) enum ConnectionCommand {
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
    ExpireAt(Instant),
    Send(RawFrame),
    SlowLoris(Duration),
    Fragments(usize),
    /// Close with this payload, well formed or not.
    CloseRaw(Vec<u8>),
    /// Close when the client has sent nothing for this time; zero turns it off.
    CloseIdle(Duration),
    /// Send the next frames as binary frames.
    Binary(u64),
    /// Pad the next frame to this size.
    Pad(usize),
}

/// The effect of an expired token on its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The server closes with this code.
    Close(u16),
    /// The socket stays open and sends nothing more.
    Silence,
}

/// The connection has ended.
#[derive(Debug)]
pub(super) struct ConnectionEnd;

/// An input that the dialect must answer.
#[derive(Debug)]
pub(super) enum ClientInput {
    Text(Utf8Bytes),
    /// The moment of `set_expiry` has passed.
    Expired,
}

/// Options that faults set before the socket was open.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) close_after: Option<(Duration, u16, String)>,
}

#[derive(Debug)]
pub(super) struct ClientConnection {
    socket: WebSocketStream<ControlledStream>,
    platform: Arc<SimulatedPlatform>,
    commands: mpsc::Receiver<ConnectionCommand>,
    expires_at: Instant,
    scheduled_close: Option<(Instant, u16, String)>,
    /// Set when the token ends under [`Expiry::Silence`].
    sends_suspended: bool,
    pieces: Option<usize>,
    byte_pause: Option<Duration>,
    /// How long the client may send nothing before it is closed.
    idle_timeout: Option<Duration>,
    last_received_at: Instant,
    binary_frames: u64,
    pad_len: usize,
}

/// Why the connection woke up; input of [`ClientConnection::handle`].
#[derive(Debug)]
pub(super) enum ConnectionEvent {
    Command(Option<ConnectionCommand>),
    CloseDue,
    IdleTimeout,
    Expired,
    Frame(Option<Result<Message, tungstenite::Error>>),
}

impl ClientConnection {
    pub(super) fn new(
        socket: WebSocketStream<ControlledStream>,
        platform: Arc<SimulatedPlatform>,
        commands: mpsc::Receiver<ConnectionCommand>,
        expires_at: Instant,
    ) -> Self {
        let opened_at = now();
        Self {
            socket,
            platform,
            commands,
            expires_at,
            scheduled_close: None,
            sends_suspended: false,
            pieces: None,
            byte_pause: None,
            idle_timeout: None,
            last_received_at: opened_at,
            binary_frames: 0,
            pad_len: 0,
        }
    }

    /// Applies the options that faults set before the socket was open.
    pub(super) fn apply_options(&mut self, options: ConnectionOptions) {
        self.idle_timeout = options.idle_timeout;
        self.scheduled_close = options.close_after.map(|(wait, code, reason)| (after(now(), wait), code, reason));
    }

    /// Whether no more events may be sent because the token or channel has ended.
    pub(super) fn sends_suspended(&self) -> bool {
        self.sends_suspended || self.expires_at <= now()
    }

    pub(super) fn set_expiry(&mut self, expires_at: Instant) {
        self.expires_at = expires_at;
    }

    /// Handles an event. `None`: the dialect has nothing to answer.
    pub(super) async fn handle(&mut self, event: ConnectionEvent) -> ControlFlow<ConnectionEnd, Option<ClientInput>> {
        match event {
            ConnectionEvent::Command(Some(command)) => self.execute(command).await.map_continue(|()| None),
            ConnectionEvent::Command(None) => ControlFlow::Break(ConnectionEnd),
            ConnectionEvent::CloseDue => {
                let (_, code, reason) = self.scheduled_close.take().expect("only a set moment comes");
                ControlFlow::Break(self.close(code, &reason).await)
            }
            ConnectionEvent::IdleTimeout => ControlFlow::Break(self.close(IDLE_CLOSE_CODE, "Idle timeout").await),
            ConnectionEvent::Expired => ControlFlow::Continue(Some(ClientInput::Expired)),
            ConnectionEvent::Frame(Some(Ok(Message::Text(text)))) => {
                ControlFlow::Continue(Some(ClientInput::Text(text)))
            }
            // The library answers pings, and completes a close while the socket is read.
            ConnectionEvent::Frame(Some(Ok(
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_),
            ))) => ControlFlow::Continue(None),
            ConnectionEvent::Frame(Some(Err(_)) | None) => ControlFlow::Break(ConnectionEnd),
        }
    }

    /// Waits for the next event. Cancel safe: every arm only receives or sleeps.
    pub(super) async fn next_event(&mut self) -> ConnectionEvent {
        let close_at = self.scheduled_close.as_ref().map(|(at, _, _)| *at);
        let expires_at = (!self.sends_suspended).then_some(self.expires_at);
        let idle_at = self.idle_timeout.map(|timeout| after(self.last_received_at, timeout));
        tokio::select! {
            biased;
            command = self.commands.recv() => ConnectionEvent::Command(command),
            () = sleep_until_or_never(close_at) => ConnectionEvent::CloseDue,
            () = sleep_until_or_never(expires_at) => ConnectionEvent::Expired,
            frame = self.socket.next() => {
                self.last_received_at = now();
                ConnectionEvent::Frame(frame)
            }
            () = sleep_until_or_never(idle_at) => ConnectionEvent::IdleTimeout,
        }
    }

    async fn execute(&mut self, command: ConnectionCommand) -> ControlFlow<ConnectionEnd> {
        match command {
            ConnectionCommand::Stall(duration) => sleep(duration).await,
            ConnectionCommand::Close { code, reason } => {
                return ControlFlow::Break(self.close(code, &reason).await);
            }
            ConnectionCommand::CloseIn { lead, code, reason } => {
                self.scheduled_close = Some((after(now(), lead), code, reason));
            }
            ConnectionCommand::ExpireAt(at) => self.expires_at = self.expires_at.min(at),
            ConnectionCommand::Send(raw) => return self.send(raw).await,
            ConnectionCommand::SlowLoris(every) => self.byte_pause = Some(every),
            ConnectionCommand::Fragments(pieces) => self.pieces = Some(pieces),
            ConnectionCommand::CloseRaw(payload) => return ControlFlow::Break(self.close_raw(payload).await),
            ConnectionCommand::CloseIdle(timeout) => {
                self.idle_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
                self.last_received_at = now();
            }
            ConnectionCommand::Binary(n) => self.binary_frames = n,
            ConnectionCommand::Pad(size) => self.pad_len = size,
        }
        ControlFlow::Continue(())
    }

    /// Ends the socket, or its output, after its token or channel has ended.
    pub(super) async fn expire(&mut self) -> ControlFlow<ConnectionEnd> {
        match self.platform.settings.expiry {
            Expiry::Close(code) => ControlFlow::Break(self.close(code, "Authentication expired").await),
            Expiry::Silence => {
                self.sends_suspended = true;
                ControlFlow::Continue(())
            }
        }
    }

    /// Sends and flushes one frame.
    pub(super) async fn send(&mut self, raw: RawFrame) -> ControlFlow<ConnectionEnd> {
        self.feed(raw).await?;
        self.flush().await
    }

    /// Puts one frame into the write buffer, after the delays of active faults.
    pub(super) async fn feed(&mut self, raw: RawFrame) -> ControlFlow<ConnectionEnd> {
        let latency = self.platform.latency();
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let raw = self.transform(raw);
        let frames = frames(raw, self.pieces.take());
        if let Some(pause) = self.byte_pause.take() {
            return self.write_slowly(frames, pause).await;
        }
        for frame in frames {
            to_control_flow(self.socket.feed(Message::Frame(frame)).await)?;
        }
        ControlFlow::Continue(())
    }

    /// Applies the faults `binary` and `pad` to a text frame.
    fn transform(&mut self, raw: RawFrame) -> RawFrame {
        let RawFrame::Text(mut text) = raw else { return raw };
        let missing = std::mem::take(&mut self.pad_len).saturating_sub(text.len());
        text.push_str(&" ".repeat(missing));
        match self.binary_frames.checked_sub(1) {
            None => RawFrame::Text(text),
            Some(left) => {
                self.binary_frames = left;
                RawFrame::Binary(text.into_bytes())
            }
        }
    }

    pub(super) async fn flush(&mut self) -> ControlFlow<ConnectionEnd> {
        to_control_flow(self.socket.flush().await)
    }

    async fn write_slowly(&mut self, frames: Vec<Frame>, pause: Duration) -> ControlFlow<ConnectionEnd> {
        self.flush().await?;
        let mut bytes = Vec::new();
        for frame in frames {
            to_control_flow(frame.format(&mut bytes))?;
        }
        for byte in bytes {
            to_control_flow(self.socket.get_mut().write_all(&[byte]).await)?;
            sleep(pause).await;
        }
        ControlFlow::Continue(())
    }

    /// Closes with a payload that may be malformed, and reads until the client disconnects.
    async fn close_raw(&mut self, payload: Vec<u8>) -> ConnectionEnd {
        let bytes = close_frame(&payload);
        if self.flush().await.is_continue() {
            let wire = self.socket.get_mut();
            let close_handshake = async {
                wire.write_all(&bytes).await?;
                tokio::io::copy(wire, &mut tokio::io::sink()).await
            };
            // A client that does not disconnect is dropped.
            let _gone = timeout(CLOSE_TIMEOUT, close_handshake).await;
        }
        ConnectionEnd
    }

    /// Sends a close frame and waits up to [`CLOSE_TIMEOUT`] for the client's.
    pub(super) async fn close(&mut self, code: u16, reason: &str) -> ConnectionEnd {
        let frame = CloseFrame { code: code.into(), reason: truncate_reason(reason).into() };
        if self.socket.close(Some(frame)).await.is_ok() {
            let close_handshake = async { while let Some(Ok(_)) = self.socket.next().await {} };
            // A client that does not answer is dropped.
            let _answered = timeout(CLOSE_TIMEOUT, close_handshake).await;
        }
        ConnectionEnd
    }
}

/// A close frame (RFC 6455 section 5.2). Its payload may be longer than a control frame allows.
fn close_frame(payload: &[u8]) -> Vec<u8> {
    const FINAL_CLOSE: u8 = 0x88;
    let size = match u8::try_from(payload.len()) {
        Ok(size @ ..126) => vec![size],
        Ok(_) | Err(_) => [&[126][..], &(payload.len() as u16).to_be_bytes()].concat(),
    };
    [&[FINAL_CLOSE][..], &size, payload].concat()
}

async fn sleep_until_or_never(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

fn to_control_flow<T, E>(result: Result<T, E>) -> ControlFlow<ConnectionEnd, T> {
    match result {
        Ok(value) => ControlFlow::Continue(value),
        Err(_) => ControlFlow::Break(ConnectionEnd),
    }
}

fn truncate_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_LEN_MAX)]
}

/// One message as one frame, or as `pieces` fragments.
fn frames(raw: RawFrame, pieces: Option<usize>) -> Vec<Frame> {
    match raw {
        RawFrame::Text(text) => split(text.into_bytes(), Data::Text, pieces.unwrap_or(1)),
        RawFrame::Binary(bytes) => split(bytes, Data::Binary, pieces.unwrap_or(1)),
        RawFrame::InvalidText(bytes) => split(bytes, Data::Text, pieces.unwrap_or(1)),
        RawFrame::Fragments { text, pieces } => split(text.into_bytes(), Data::Text, pieces),
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
