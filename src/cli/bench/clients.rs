//! The clients: many subscribers on one thread, which count events and read nothing of them.
//!
//! WebSocket frames are skipped from head to head (a server does not mask); server-sent events are counted by a byte
//! that stands once in each. Connections are made once, and one large buffer is read into for all of them.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::io::{AsyncRead, ReadBuf};

use super::source::MARKER;
use crate::downstream::server::render;

/// An answer to a subscription takes no longer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// An answer's head takes no more.
const HEAD_LEN_MAX: usize = 8 * 1024;
/// Bytes asked of the kernel at once.
const READ_LEN: usize = 256 * 1024;
/// The longest head of a frame that a server sends.
const FRAME_HEAD_LEN_MAX: usize = 10;

/// How a subscriber is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientTransport {
    WebSocket,
    Sse,
}

/// Where a subscriber begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscribeFrom {
    First,
    Last,
}

/// Subscribers that have their answers; they count from here on.
#[derive(Debug)]
pub(super) struct BenchClients(Vec<BenchClient>);

#[derive(Debug)]
struct BenchClient {
    socket: TcpStream,
    counter: Counter,
    /// Events that came with the answer.
    early: u64,
}

impl BenchClients {
    /// Subscribes `count` times to the first stream of a daemon, or of a pipeline that looks like one.
    pub(super) fn subscribe(
        at: SocketAddr,
        transport: ClientTransport,
        from: SubscribeFrom,
        count: usize,
    ) -> anyhow::Result<Self> {
        let clients = (0..count).map(|_| BenchClient::subscribe(at, transport, from));
        Ok(Self(clients.collect::<anyhow::Result<_>>()?))
    }

    /// Counts until `heard`, told how many events all have had so far, says that it is enough, or until `end`.
    /// Returns how many that were.
    pub(super) fn count(self, end: Instant, on_total: impl FnMut(u64) -> bool) -> anyhow::Result<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let total = self.0.iter().map(|client| client.early).sum();
        let reader = EventReader {
            buffer: RefCell::new(vec![0; READ_LEN]),
            total: RefCell::new(EventTotal { total, on_total }),
        };
        runtime.block_on(async {
            let readers = self.0.into_iter().map(|client| reader.read_events(client));
            let mut readers = readers.collect::<FuturesUnordered<_>>();
            // When the time is over, what was counted up to then is what counts.
            match tokio::time::timeout_at(end.into(), readers.next()).await {
                Ok(Some(ended)) => ended.context("a subscriber was cut off"),
                Ok(None) | Err(_) => Ok(()),
            }
        })?;
        Ok(reader.total.into_inner().total)
    }
}

/// What all clients share while they count.
struct EventReader<F> {
    buffer: RefCell<Vec<u8>>,
    total: RefCell<EventTotal<F>>,
}

struct EventTotal<F> {
    total: u64,
    on_total: F,
}

impl<F: FnMut(u64) -> bool> EventReader<F> {
    /// Counts what one client hears; ends when all have heard enough.
    async fn read_events(&self, client: BenchClient) -> io::Result<()> {
        let BenchClient { socket, mut counter, .. } = client;
        socket.set_nonblocking(true)?;
        let mut socket = tokio::net::TcpStream::from_std(socket)?;
        let mut read = |cx: &mut Context<'_>| -> Poll<io::Result<u64>> {
            let mut buffer = self.buffer.borrow_mut();
            let mut space = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut socket).poll_read(cx, &mut space))?;
            match space.filled() {
                [] => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                piece => Poll::Ready(Ok(counter.count(piece))),
            }
        };
        loop {
            let events = poll_fn(&mut read).await?;
            if self.total.borrow_mut().add(events) {
                return Ok(());
            }
        }
    }
}

impl<F: FnMut(u64) -> bool> EventTotal<F> {
    fn add(&mut self, events: u64) -> bool {
        self.total += events;
        (self.on_total)(self.total)
    }
}

impl BenchClient {
    fn subscribe(at: SocketAddr, transport: ClientTransport, from: SubscribeFrom) -> anyhow::Result<Self> {
        let from = match from {
            SubscribeFrom::First => "first",
            SubscribeFrom::Last => "last",
        };
        let (headers, status) = match transport {
            ClientTransport::WebSocket => (
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "HTTP/1.1 101 ",
            ),
            ClientTransport::Sse => ("Accept: text/event-stream", "HTTP/1.1 200 "),
        };
        let mut socket = TcpStream::connect(at).context("cannot connect")?;
        socket.set_read_timeout(Some(ANSWER_MAX))?;
        let request = format!("GET /v1/streams/s0/events?from={from} HTTP/1.1\r\nHost: {at}\r\n{headers}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let (head, rest) = read_head(&mut socket).context("a subscription was not answered")?;
        ensure!(head.starts_with(status.as_bytes()), "a subscription was refused: {}", head.escape_ascii());
        let mut counter = Counter::new(transport);
        let early = counter.count(&rest);
        Ok(Self { socket, counter, early })
    }
}

/// The head of an answer, and what came behind it.
fn read_head(socket: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut answer = vec![0; HEAD_LEN_MAX];
    let mut len = 0;
    loop {
        match socket.read(&mut answer[len..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => len += read,
        }
        if let Some(end) = answer[..len].windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = answer[end + 4..len].to_vec();
            answer.truncate(end);
            return Ok((answer, rest));
        }
    }
}

/// Counts events in bytes that come in pieces.
#[derive(Debug)]
enum Counter {
    Frames {
        /// Bytes of the frame under way that are still to come.
        skip: usize,
        /// A head that was cut.
        head: Vec<u8>,
    },
    Markers,
}

impl Counter {
    fn new(transport: ClientTransport) -> Self {
        match transport {
            ClientTransport::WebSocket => Self::Frames { skip: 0, head: Vec::new() },
            ClientTransport::Sse => Self::Markers,
        }
    }

    /// The events that begin in this piece, or end a head that was cut before it.
    fn count(&mut self, piece: &[u8]) -> u64 {
        match self {
            Self::Frames { skip, head } => count_frames(skip, head, piece),
            Self::Markers => memchr::memchr_iter(MARKER, piece).count() as u64,
        }
    }
}

fn count_frames(skip: &mut usize, head: &mut Vec<u8>, piece: &[u8]) -> u64 {
    let (mut at, mut frames) = (0, 0);
    loop {
        let skipped = (*skip).min(piece.len() - at);
        *skip -= skipped;
        at += skipped;
        if at == piece.len() {
            return frames;
        }
        let held = head.len();
        let taken = (FRAME_HEAD_LEN_MAX - held).min(piece.len() - at);
        head.extend_from_slice(&piece[at..at + taken]);
        let Some(len) = render::frame_len(head) else { return frames };
        *skip = len - held;
        head.clear();
        frames += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let lens = [0, 1, 125, 126, 1_024, 65_535, 65_536, 3];
        let bytes: Vec<u8> = lens.iter().flat_map(|len| render::frame(&"x".repeat(*len))).collect();
        for cut in [1, 2, 3, 7, 1_000, bytes.len()] {
            let mut counter = Counter::new(ClientTransport::WebSocket);
            let frames: u64 = bytes.chunks(cut).map(|piece| counter.count(piece)).sum();
            assert_eq!(frames, lens.len() as u64, "{cut}");
        }
    }

    #[test]
    fn server_sent_events_are_counted_by_their_marker() {
        let text = format!("retry: 1000\nid: 1\n\nid: 2\ndata: {{\"mark\":\"{}\"}}\n\n", char::from(MARKER));
        assert_eq!(Counter::new(ClientTransport::Sse).count(text.repeat(3).as_bytes()), 3);
    }
}
