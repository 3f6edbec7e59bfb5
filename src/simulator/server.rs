//! The listener: plain HTTP/1.1 connections, each with a fate, so that a fault can reset one at any moment. It
//! refuses to know what is served.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::platform::Platform;

/// How long the listener rests when it cannot accept, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a connection is to be reset. Requests carry the one of their connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate(CancellationToken);

impl Fate {
    /// The connection is reset: what was not sent is lost, and the peer hears no goodbye.
    pub(super) fn seal(&self) {
        self.0.cancel();
    }

    pub(super) fn sealed(&self) -> WaitForCancellationFuture<'_> {
        self.0.cancelled()
    }
}

/// A TCP connection that ends by its fate: in order, or with a reset.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    fate: Fate,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.fate.0.is_cancelled() {
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
    let app = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(fate.clone());
        app.call(request)
    });
    let io = TokioIo::new(Wire { stream, fate: fate.clone() });
    let connection = http1::Builder::new().serve_connection(io, service).with_upgrades();
    tokio::select! {
        biased;
        () = platform.stop.cancelled() => (),
        () = fate.sealed() => (),
        _ended = connection => (),
    }
}
