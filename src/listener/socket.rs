//! A client's socket that does not wait for ever on a client who takes nothing. It refuses to queue: what the kernel
//! does not take stays with the writer.

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

/// A peer that says nothing for this long is asked whether it is still there …
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// … this often …
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// … and so many times without an answer.
#[cfg(target_os = "linux")]
const PROBES_MAX: u32 = 3;

/// Has the kernel notice a peer that vanished without a word: by probes while nothing is sent, and where something is,
/// when it is not acknowledged within `unacknowledged_max`. That also ends a peer that takes nothing for so long.
#[cfg(target_os = "linux")]
pub fn notice_vanished_peer(stream: &TcpStream, unacknowledged_max: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES_MAX)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(unacknowledged_max.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Elsewhere the deadlines of the relay itself have to do.
#[cfg(not(target_os = "linux"))]
pub fn notice_vanished_peer(_: &TcpStream, _: Duration) -> io::Result<()> {
    Ok(())
}

/// Whether a connection's client was given up for taking nothing; an extension of each of its requests. Whoever makes an
/// endless body sees it dropped, and finds the reason here.
#[derive(Debug, Clone, Default)]
pub struct Stalled(Arc<Marks>);

/// What is known of a connection beside its bytes.
#[derive(Debug, Default)]
struct Marks {
    stalled: AtomicBool,
    endless: AtomicBool,
}

impl Stalled {
    pub fn is_true(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// Whether the answer that is given now has an end. A client that ended its side gets an answer that has one.
    pub(super) fn answers(&self, endless: bool) {
        self.0.endless.store(endless, Ordering::Relaxed);
    }
}

/// An extension of an answer whose body goes on until its client hangs up.
#[derive(Debug, Clone, Copy)]
pub struct Endless;

/// A TCP stream whose writes fail with [`io::ErrorKind::TimedOut`] after a while without any progress.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    stall_max: Duration,
    stalled_out: Stalled,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, stall_max: Duration) -> Self {
        Self { stream, stall_max, stalled_out: Stalled::default(), stalled: None }
    }

    /// What becomes true when the client is given up for taking nothing.
    pub(super) fn stalled_out(&self) -> Stalled {
        self.stalled_out.clone()
    }

    /// From here on a stall is borne for this long.
    pub fn bear(&mut self, stall_max: Duration) {
        self.stall_max = stall_max;
        self.stalled = None;
    }

    /// Whether the client has ended its side: nobody reads meanwhile. What it sent stays to be read.
    fn has_hung_up(&self, context: &mut Context<'_>) -> bool {
        let mut first = [0];
        let peeked = self.stream.poll_peek(context, &mut ReadBuf::new(&mut first));
        matches!(peeked, Poll::Ready(Ok(0)))
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let patience = self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.stalled = None;
                self.stalled_out.0.stalled.store(true, Ordering::Relaxed);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stalled_out.0.endless.load(Ordering::Relaxed) && self.has_hung_up(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has hung up")));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
