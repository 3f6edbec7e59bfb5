//! The clients: many subscribers on one thread, which count events without parsing them.
//!
//! WebSocket frames are counted by their headers (a server does not mask); server-sent events by a byte that occurs
//! once in each. All connections share one large read buffer.

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

/// Timeout of the response to a subscription.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The maximum length of a response head in bytes.
const HEAD_LEN_MAX: usize = 8 * 1024;
/// The size of the read buffer in bytes.
const READ_LEN: usize = 256 * 1024;
/// The maximum length of a frame header from a server.
const FRAME_HEAD_LEN_MAX: usize = 10;

/// The transport of a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientTransport {
    WebSocket,
    Sse,
}

/// The start position of a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubscribeFrom {
    First,
    Last,
}

/// Connected subscribers, ready to count.
#[derive(Debug)]
pub(super) struct BenchClients(Vec<BenchClient>);

#[derive(Debug)]
struct BenchClient {
    socket: TcpStream,
    counter: Counter,
    /// Events that arrived with the response.
    early: u64,
}

impl BenchClients {
    /// Opens `count` subscriptions to the first stream of a daemon or of a pipeline.
    pub(super) fn subscribe(
        at: SocketAddr,
        transport: ClientTransport,
        from: SubscribeFrom,
        count: usize,
    ) -> anyhow::Result<Self> {
        let clients = (0..count).map(|_| BenchClient::subscribe(at, transport, from));
        Ok(Self(clients.collect::<anyhow::Result<_>>()?))
    }

    /// Counts until `on_total` returns true for the total number of events, or until `end`. Returns the total.
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
            // After the timeout the count so far is the result.
            match tokio::time::timeout_at(end.into(), readers.next()).await {
                Ok(Some(ended)) => ended.context("a subscriber was disconnected"),
                Ok(None) | Err(_) => Ok(()),
            }
        })?;
        Ok(reader.total.into_inner().total)
    }
}

/// The shared state of all clients.
struct EventReader<F> {
    buffer: RefCell<Vec<u8>>,
    total: RefCell<EventTotal<F>>,
}

struct EventTotal<F> {
    total: u64,
    on_total: F,
}

impl<F: FnMut(u64) -> bool> EventReader<F> {
    /// Counts the events of one client until all have received enough.
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
        let (head, rest) = read_head(&mut socket).context("no response to a subscription")?;
        ensure!(head.starts_with(status.as_bytes()), "a subscription was rejected: {}", head.escape_ascii());
        let mut counter = Counter::new(transport);
        let early = counter.count(&rest);
        Ok(Self { socket, counter, early })
    }
}

/// Reads the head of a response and the bytes after it.
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

/// Counts events in a byte stream.
#[derive(Debug)]
enum Counter {
    Frames {
        /// Missing bytes of the current frame.
        skip: usize,
        /// An incomplete frame header.
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

    /// The number of events whose header ends in these bytes.
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
