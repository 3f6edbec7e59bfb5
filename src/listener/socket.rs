//! A client socket with a write stall timeout. It has no queue: unsent data stays with the writer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// Idle time before the first keep-alive probe.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Interval of keep-alive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Unanswered keep-alive probes before the connection is closed.
#[cfg(target_os = "linux")]
const KEEPALIVE_PROBES_MAX: u32 = 3;

/// Makes the kernel detect a dead peer: by keep-alive probes on an idle connection, and by data that stays unacknowledged
/// or unread for `unacknowledged_max`.
#[cfg(target_os = "linux")]
pub fn notice_vanished_peer(stream: &TcpStream, unacknowledged_max: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES_MAX)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unacknowledged_max.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// On other systems only the timeouts of the relay apply.
#[cfg(not(target_os = "linux"))]
pub fn notice_vanished_peer(_: &TcpStream, _: Duration) -> io::Result<()> {
    Ok(())
}

/// Whether a connection was closed because its client did not read. It is an extension of each request, so that a dropped
/// endless body can get the reason.
#[derive(Debug, Clone, Default)]
pub struct StallFlag(Arc<ConnectionFlags>);

/// Shared flags of a connection.
#[derive(Debug, Default)]
struct ConnectionFlags {
    stalled: AtomicBool,
    endless: AtomicBool,
}

impl StallFlag {
    pub fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// Sets whether the current response is endless. A client that closed its sending side gets finite responses only.
    pub(super) fn set_endless(&self, endless: bool) {
        self.0.endless.store(endless, Ordering::Relaxed);
    }
}

/// An extension of a response with an endless body.
#[derive(Debug, Clone, Copy)]
pub struct EndlessBody;

/// A TCP stream whose writes fail with [`io::ErrorKind::TimedOut`] after the stall timeout without progress.
#[derive(Debug)]
pub struct AcceptedSocket {
    stream: TcpStream,
    stall_max: Duration,
    stall_flag: StallFlag,
    /// Runs while the client does not read.
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl AcceptedSocket {
    pub(super) fn new(stream: TcpStream, stall_max: Duration) -> Self {
        Self { stream, stall_max, stall_flag: StallFlag::default(), stall_timer: None }
    }

    /// The flag that is set when the stall timeout expires.
    pub(super) fn stall_flag(&self) -> StallFlag {
        self.stall_flag.clone()
    }

    /// Sets the stall timeout.
    pub fn set_stall_timeout(&mut self, stall_max: Duration) {
        self.stall_max = stall_max;
        self.stall_timer = None;
    }

    /// Whether the client has closed its sending side. Received bytes stay unread.
    fn peer_closed(&self, context: &mut Context<'_>) -> bool {
        let mut first = [0];
        let peeked = self.stream.poll_peek(context, &mut ReadBuf::new(&mut first));
        matches!(peeked, Poll::Ready(Ok(0)))
    }

    fn check_stall<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall_timer = None;
            return outcome;
        }
        let stall_timeout = self.stall_max;
        let stalled = self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall_timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.stall_timer = None;
                self.stall_flag.0.stalled.store(true, Ordering::Relaxed);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
            }
        }
    }
}

impl AsyncRead for AcceptedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for AcceptedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_stall(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check_stall(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stall_flag.0.endless.load(Ordering::Relaxed) && self.peer_closed(cx) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the client closed the connection",
            )));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
