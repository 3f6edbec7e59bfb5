//! The listener: plain HTTP/1.1 connections, each with a fate, so that a fault can reset one at any moment. It
//! refuses to know what is served.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::fault::{Answered, Asked};
use super::platform::Platform;
use super::trouble::Request;

/// How long the listener rests when it cannot accept, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What becomes of a connection. Requests carry the one of their connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sealed: CancellationToken,
    manner: Mutex<Manner>,
}

/// How a connection writes.
#[derive(Debug, Default)]
struct Manner {
    /// Goes out before anything else.
    before: Vec<u8>,
    /// Time between two bytes.
    pause: Option<Duration>,
}

impl Fate {
    /// The connection is reset: what was not sent is lost, and the peer hears no goodbye.
    pub(super) fn seal(&self) {
        self.0.sealed.cancel();
    }

    pub(super) fn sealed(&self) -> WaitForCancellationFuture<'_> {
        self.0.sealed.cancelled()
    }

    /// From now on one byte at a time.
    pub(super) fn trickle(&self, pause: Duration) {
        self.manner().pause = Some(pause);
    }

    /// These bytes go out before the answer.
    pub(super) fn put_before(&self, bytes: &[u8]) {
        self.manner().before.extend_from_slice(bytes);
    }

    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.0.manner.lock().expect("nobody panics while holding it")
    }
}

/// A TCP connection that ends by its fate: in order, or with a reset.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    fate: Fate,
    /// Until then nothing is written.
    resting: Option<Pin<Box<Sleep>>>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.fate.0.sealed.is_cancelled() {
            // Without lingering, closing sends a reset. Where it cannot be set, the peer has gone already.
            let _gone = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &mut *self;
        let mut manner = wire.fate.0.manner.lock().expect("nobody panics while holding it");
        while !manner.before.is_empty() {
            let written = ready!(Pin::new(&mut wire.stream).poll_write(cx, &manner.before))?;
            manner.before.drain(..written);
        }
        let Some(pause) = manner.pause else {
            return Pin::new(&mut wire.stream).poll_write(cx, buf);
        };
        if let Some(resting) = &mut wire.resting {
            ready!(resting.as_mut().poll(cx));
        }
        let written = ready!(Pin::new(&mut wire.stream).poll_write(cx, &buf[..buf.len().min(1)]))?;
        wire.resting = Some(Box::pin(sleep(pause)));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until the platform stops.
pub(super) async fn serve(listener: TcpListener, router: Router, platform: Arc<Platform>) {
    loop {
        tokio::select! {
            biased;
            () = platform.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    platform.tasks.spawn(converse(stream, router.clone(), platform.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn converse(stream: TcpStream, router: Router, platform: Arc<Platform>) {
    // Without it small frames wait for acknowledgements; where it cannot be set, the peer has gone already.
    let _gone = stream.set_nodelay(true);
    let fate = Fate::default();
    let mut wire = Wire { stream, fate: fate.clone(), resting: None };
    let request = Request { kind: Asked::Connection, dialect: None, url: "" };
    let waiting = platform.lock().trouble.for_request(request);
    match waiting {
        Some(Answered::Hang) => return silence(&mut wire, &platform).await,
        Some(Answered::Late { lasting }) => sleep(lasting).await,
        Some(Answered::Trickle { every }) => fate.trickle(every),
        Some(Answered::Reset) => return fate.seal(),
        // No other answer passes the check for a connection.
        Some(_) | None => (),
    }
    let app = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(fate.clone());
        app.call(request)
    });
    let io = TokioIo::new(wire);
    let connection = http1::Builder::new().serve_connection(io, service).with_upgrades();
    tokio::select! {
        biased;
        () = platform.stop.cancelled() => (),
        () = fate.sealed() => (),
        _ended = connection => (),
    }
}

/// Says nothing until the client has gone.
async fn silence(wire: &mut Wire, platform: &Platform) {
    let mut sink = tokio::io::sink();
    tokio::select! {
        biased;
        () = platform.stop.cancelled() => (),
        _gone = tokio::io::copy(wire, &mut sink) => (),
    }
}
