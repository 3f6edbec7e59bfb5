//! A listener of ours: accepts connections within limits, speaks HTTP/1.1 on each, and ends only when they have.
//!
//! It refuses HTTP/2, more connections than it was given seats for, a request head that does not arrive in time, and
//! a client that takes nothing of what is written to it. What is answered is the router's business.

pub mod origin;
pub mod problem;
pub mod resource;
mod seats;
mod socket;
mod upgrade;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::chain;
use seats::{Seat, Seats};
pub use socket::Socket;
use upgrade::Conversation;
pub use upgrade::Upgrade;

/// What a listener grants and for how long it waits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections in all. One more is told 503 and closed.
    pub connections_max: usize,
    /// Open connections of one address. One more is told 503 and closed.
    pub connections_per_address_max: usize,
    /// A request head must be complete within this time; also how long a connection may idle between requests.
    pub header_timeout: Duration,
    /// A client that takes nothing for this long while something is due to it is given up.
    pub stall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_address_max: 10_000,
            header_timeout: Duration::from_secs(10),
            stall_max: Duration::from_secs(60),
        }
    }
}

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    limits: Limits,
}

/// Connections that the kernel completes ahead of `accept`; further clients wait for their handshake.
const BACKLOG: u32 = 1024;

/// What the kernel may hold for one client (it counts double); beyond that a slow client is merely behind.
const SEND_BUFFER: u32 = 256 * 1024;

/// A request head larger than this is refused; also how much of an answer is buffered above the kernel.
const HTTP_BUFFER_MAX: usize = 32 * 1024;

/// Pauses after a failed `accept` (out of file descriptors): they double from the first to the second.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Listener {
    /// Binds `address`, within a runtime.
    pub fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?, limits })
    }

    /// Where it listens, with the port that the system chose if 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`, then waits until every open connection has come to its own end. An answer that carries an
    /// [`Upgrade`] is followed by it.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let mut host = Host {
            site: TowerToHyperService::new(router),
            seats: Seats::new(self.limits.connections_max, self.limits.connections_per_address_max),
            limits: self.limits,
            stop,
            connections: JoinSet::new(),
        };
        host.accept_all(&self.socket).await;
        drop(self.socket);
        while let Some(ended) = host.connections.join_next().await {
            note_end(ended);
        }
    }
}

/// The router, as hyper calls it.
type Site = TowerToHyperService<Router>;

struct Host {
    site: Site,
    seats: Arc<Seats>,
    limits: Limits,
    stop: CancellationToken,
    connections: JoinSet<()>,
}

impl Host {
    async fn accept_all(&mut self, socket: &TcpListener) {
        let stop = self.stop.clone();
        let mut pause = ACCEPT_PAUSES.0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = self.connections.join_next() => note_end(ended),
                accepted = socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        pause = ACCEPT_PAUSES.0;
                        self.welcome(stream, peer);
                    }
                    Err(error) if of_one_client(&error) => (),
                    Err(error) => {
                        tracing::warn!(error = chain(&error), ?pause, "cannot accept connections");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(ACCEPT_PAUSES.1);
                    }
                },
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Some(seat) = self.seats.take(peer.ip()) else {
            tracing::debug!(%peer, "no seat left");
            refuse(&stream);
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, error = chain(&error), "gone before it was served");
            return;
        }
        let socket = Socket::new(stream, self.limits.stall_max);
        let (site, stop) = (self.site.clone(), self.stop.clone());
        self.connections.spawn(attend(site, seat, socket, self.limits.header_timeout, stop));
    }
}

/// A connection that broke between the kernel's handshake and ours: the next one is unaffected.
fn of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

const NO_SEAT: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 84\r\n\r\n\
    {\"type\":\"urn:trunkline:problem:no-seat\",\"title\":\"Too many connections\",\"status\":503}";

/// Says why on a fresh socket, whose buffer is empty; nothing is waited for.
fn refuse(stream: &TcpStream) {
    if let Err(error) = stream.try_write(NO_SEAT) {
        tracing::debug!(error = chain(&error), "could not say that there is no seat left");
    }
}

fn note_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = chain(&error), "a connection's task panicked; the others are unaffected");
    }
}

/// One connection from its first request to its end. Each phase is boxed, so that what the first needed is freed
/// before the second begins: an idle upgraded socket keeps no HTTP buffers.
async fn attend(site: Site, seat: Seat, socket: Socket, header_timeout: Duration, stop: CancellationToken) {
    let _seat = seat;
    let Some((upgrade, converse)) = Box::pin(speak_http(site, socket, header_timeout, stop)).await else { return };
    match upgrade.await {
        Ok(upgraded) => {
            let (socket, heard) = take_over(upgraded);
            converse(socket, heard).await;
        }
        Err(error) => tracing::debug!(error = chain(&error), "upgrade not completed"),
    }
}

fn take_over(upgraded: Upgraded) -> (Socket, Bytes) {
    let parts = upgraded.downcast::<TokioIo<Socket>>().expect("every connection is made from a Socket");
    (parts.io.into_inner(), parts.read_buf)
}

async fn speak_http(
    site: Site,
    socket: Socket,
    header_timeout: Duration,
    stop: CancellationToken,
) -> Option<(OnUpgrade, Conversation)> {
    let agreed = Mutex::new(None);
    let service = service_fn(|mut request: Request<Incoming>| {
        let upgrade = hyper::upgrade::on(&mut request);
        let (answer, agreed) = (site.call(request), &agreed);
        async move {
            let mut answer = answer.await?;
            if let Some(conversation) = Upgrade::agreed(&mut answer) {
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, conversation));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(HTTP_BUFFER_MAX)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(error = chain(&error), "connection ended early");
    }
    agreed.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests;
