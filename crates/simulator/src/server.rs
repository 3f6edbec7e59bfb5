//! The listener: plain HTTP/1.1 connections, each with a control, so that a fault can reset it at any moment. The
//! router decides what is served.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::fault::{RequestKind, ResponseFault};
use super::pending_faults::RequestInfo;
use super::platform::SimulatedPlatform;

/// How long the listener pauses when it cannot accept, for instance without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The control of a connection. Each request has that of its connection as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct TransportControl(Arc<TransportState>);

#[derive(Debug, Default)]
struct TransportState {
    reset_token: CancellationToken,
    write_behaviour: Mutex<WriteBehaviour>,
}

/// How faults change the writes of a connection.
#[derive(Debug, Default)]
struct WriteBehaviour {
    /// Sent before everything else.
    prefix: Vec<u8>,
    /// Time between two bytes.
    byte_pause: Option<Duration>,
}

impl TransportControl {
    /// Resets the connection: unsent data is lost, and the peer gets no close.
    pub(super) fn reset(&self) {
        self.0.reset_token.cancel();
    }

    pub(super) fn reset_requested(&self) -> WaitForCancellationFuture<'_> {
        self.0.reset_token.cancelled()
    }

    /// From now on the connection writes one byte at a time.
    pub(super) fn trickle(&self, pause: Duration) {
        self.0.write_behaviour.lock().byte_pause = Some(pause);
    }

    /// Sends these bytes before the answer.
    pub(super) fn prepend(&self, bytes: &[u8]) {
        self.0.write_behaviour.lock().prefix.extend_from_slice(bytes);
    }
}

/// A TCP connection that its control can slow down or reset.
#[derive(Debug)]
pub(super) struct ControlledStream {
    stream: TcpStream,
    control: TransportControl,
    /// Until then nothing is written.
    pause_timer: Option<Pin<Box<Sleep>>>,
}

impl Drop for ControlledStream {
    fn drop(&mut self) {
        if self.control.0.reset_token.is_cancelled() {
            // Without lingering, closing sends a reset. Setting it fails only if the peer has disconnected.
            let _gone = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ControlledStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ControlledStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &mut *self;
        let mut behaviour = wire.control.0.write_behaviour.lock();
        while !behaviour.prefix.is_empty() {
            let written = ready!(Pin::new(&mut wire.stream).poll_write(cx, &behaviour.prefix))?;
            behaviour.prefix.drain(..written);
        }
        let Some(pause) = behaviour.byte_pause else {
            return Pin::new(&mut wire.stream).poll_write(cx, buf);
        };
        if let Some(resting) = &mut wire.pause_timer {
            ready!(resting.as_mut().poll(cx));
        }
        let written = ready!(Pin::new(&mut wire.stream).poll_write(cx, &buf[..buf.len().min(1)]))?;
        wire.pause_timer = Some(Box::pin(sleep(pause)));
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
pub(super) async fn serve(listener: TcpListener, router: Router, platform: Arc<SimulatedPlatform>) {
    loop {
        tokio::select! {
            biased;
            () = platform.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    platform.tasks.spawn(serve_connection(stream, router.clone(), platform.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router, platform: Arc<SimulatedPlatform>) {
    // Without it, small frames wait for acknowledgements. Setting it fails only if the peer has disconnected.
    let _gone = stream.set_nodelay(true);
    let control = TransportControl::default();
    let mut wire = ControlledStream { stream, control: control.clone(), pause_timer: None };
    let request = RequestInfo { kind: RequestKind::Connection, dialect: None, url: "" };
    let waiting = platform.lock().faults.take_answer(request);
    match waiting {
        Some(ResponseFault::Hang) => return hang(&mut wire, &platform).await,
        Some(ResponseFault::Late { duration: lasting }) => sleep(lasting).await,
        Some(ResponseFault::Trickle { every }) => control.trickle(every),
        Some(ResponseFault::Reset) => return control.reset(),
        // `check` accepts no other answer for a connection.
        Some(_) | None => (),
    }
    let app = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(control.clone());
        app.call(request)
    });
    let io = TokioIo::new(wire);
    let connection = http1::Builder::new().serve_connection(io, service).with_upgrades();
    tokio::select! {
        biased;
        () = platform.stop.cancelled() => (),
        () = control.reset_requested() => (),
        _ended = connection => (),
    }
}

/// Sends nothing until the client disconnects.
async fn hang(wire: &mut ControlledStream, platform: &SimulatedPlatform) {
    let mut sink = tokio::io::sink();
    tokio::select! {
        biased;
        () = platform.stop.cancelled() => (),
        _gone = tokio::io::copy(wire, &mut sink) => (),
    }
}
