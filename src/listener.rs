//! An HTTP/1.1 listener with connection limits. It ends after all its connections.
//!
//! It rejects HTTP/2, connections beyond the limits in total and per address, a request head that is late or has no host,
//! and a client that does not read. The router produces the responses.

pub mod bearer;
pub mod descriptors;
pub mod forwarded;
pub mod host;
pub mod json;
pub mod origin;
mod permits;
pub mod problem;
pub mod resource;
pub mod router_switch;
mod socket;
mod upgrade;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    http::{StatusCode, header::RETRY_AFTER},
    response::IntoResponse,
};
use bytes::Bytes;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::chain;
pub use forwarded::{IpNetwork, IpNetworkError};
pub(crate) use host::is_authority;
use permits::{ConnectionPermit, ConnectionPermits, PermitError};
use problem::HttpProblem;
use router_switch::RouterSwitch;
pub use socket::{AcceptedSocket, EndlessBody, StallFlag, notice_vanished_peer};
pub use upgrade::UpgradeExtension;
use upgrade::UpgradeHandler;

/// Limits and timeouts of a listener.
#[derive(Debug, Clone)]
pub struct HttpListener {
    /// Maximum open connections. Further ones get 503.
    pub connections_max: usize,
    /// Maximum open connections per address. Further ones get 429.
    pub connections_per_address_max: usize,
    /// Proxies whose forwarding headers are trusted. Their connections count for the forwarded client.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Timeout of a request head, and of an idle connection between requests.
    pub header_timeout: Duration,
    /// A connection is closed when its client does not read for this time while data is pending.
    pub stall_max: Duration,
}

impl Default for HttpListener {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_address_max: 2_500,
            trusted_proxies: Vec::new(),
            header_timeout: Duration::from_secs(10),
            stall_max: Duration::from_secs(60),
        }
    }
}

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    /// Not registered with a runtime until it is served.
    socket: std::net::TcpListener,
    limits: HttpListener,
}

/// Backlog of completed connections in the kernel.
const BACKLOG: u32 = 1024;

/// Send buffer of the kernel per client (the kernel doubles it).
const SEND_BUFFER: u32 = 256 * 1024;

/// Maximum size of a request head, and of the response buffer above the kernel.
const HTTP_BUFFER_MAX: usize = 32 * 1024;

/// Time that a rejected client has to read the response.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that a rejected client may send meanwhile. An unread byte would reset the connection and lose the response.
const REJECT_READ_MAX: usize = 16 * 1024;
/// Maximum concurrent rejections with a response. Further clients are closed immediately, to save descriptors.
const REJECTIONS_MAX: usize = 8;

/// Extra time before the kernel closes a peer that acknowledges nothing. The stall timeout expires first for a slow peer,
/// so that it gets a close reason.
const UNACKNOWLEDGED_MARGIN: Duration = Duration::from_secs(15);

/// `Retry-After` of a rejected client, in seconds.
const RETRY_AFTER_SECS: &str = "5";

/// Minimum and maximum backoff after a failed `accept` (out of file descriptors).
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl Listener {
    /// Binds `address`, within a runtime.
    pub fn bind(address: SocketAddr, limits: HttpListener) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?.into_std()?, limits })
    }

    /// The bound address, with the port chosen by the system for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`, then waits until all connections have ended. An upgrade handler in a response takes over the
    /// connection after it.
    pub async fn serve(self, site: RouterSwitch, stop: CancellationToken) -> io::Result<()> {
        let socket = TcpListener::from_std(self.socket)?;
        let mut host = ConnectionServer {
            site,
            permits: ConnectionPermits::new(self.limits.connections_max, self.limits.connections_per_address_max),
            trusted_proxies: self.limits.trusted_proxies.clone().into(),
            limits: self.limits,
            stop,
            connections: JoinSet::new(),
            rejections: Arc::new(Semaphore::new(REJECTIONS_MAX)),
        };
        host.accept_all(&socket).await;
        drop(socket);
        while let Some(ended) = host.connections.join_next().await {
            log_task_end(ended);
        }
        Ok(())
    }
}

struct ConnectionServer {
    site: RouterSwitch,
    permits: Arc<ConnectionPermits>,
    trusted_proxies: Arc<[IpNetwork]>,
    limits: HttpListener,
    stop: CancellationToken,
    connections: JoinSet<()>,
    rejections: Arc<Semaphore>,
}

impl ConnectionServer {
    async fn accept_all(&mut self, socket: &TcpListener) {
        let stop = self.stop.clone();
        let mut pause = ACCEPT_PAUSES.0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = self.connections.join_next() => log_task_end(ended),
                accepted = socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        pause = ACCEPT_PAUSES.0;
                        self.accept(stream, peer);
                    }
                    Err(error) if is_client_error(&error) => (),
                    Err(error) => {
                        tracing::warn!(error = chain(&error), ?pause, "cannot accept connections");
                        if timeout(pause, stop.cancelled()).await.is_ok() {
                            return;
                        }
                        pause = (pause * 2).min(ACCEPT_PAUSES.1);
                    }
                },
            }
        }
    }

    fn accept(&mut self, stream: TcpStream, peer: SocketAddr) {
        let of_proxy = forwarded::is_trusted(peer.ip(), &self.trusted_proxies);
        match self.permits.acquire((!of_proxy).then(|| forwarded::share_key(peer.ip()))) {
            Ok(permit) => self.start_connection(stream, peer, permit, of_proxy),
            Err(full) => self.reject(stream, peer, full),
        }
    }

    fn start_connection(&mut self, stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit, of_proxy: bool) {
        let stall_max = self.limits.stall_max;
        let prepared =
            stream.set_nodelay(true).and_then(|()| notice_vanished_peer(&stream, stall_max + UNACKNOWLEDGED_MARGIN));
        if let Err(error) = prepared {
            tracing::debug!(%peer, error = chain(&error), "client disconnected before its first request");
            return;
        }
        let socket = AcceptedSocket::new(stream, stall_max);
        let proxies = of_proxy.then(|| Arc::clone(&self.trusted_proxies));
        let admission = ConnectionAdmission { permit: Mutex::new(permit), peer: peer.ip(), proxies };
        let (site, stop) = (self.site.clone(), self.stop.clone());
        self.connections.spawn(serve_connection(site, admission, socket, self.limits.header_timeout, stop));
    }

    fn reject(&mut self, stream: TcpStream, peer: SocketAddr, full: PermitError) {
        tracing::debug!(%peer, ?full, "connection rejected: limit reached");
        let Ok(permit) = Arc::clone(&self.rejections).try_acquire_owned() else { return };
        self.connections.spawn(async move {
            if let Ok(Err(error)) = timeout(REJECT_TIMEOUT, send_rejection(stream, full)).await {
                tracing::debug!(error = chain(&error), "cannot send the rejection");
            }
            drop(permit);
        });
    }
}

/// Whether `accept` failed because of one client; the next one is not affected.
fn is_client_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

impl From<PermitError> for HttpProblem {
    fn from(full: PermitError) -> Self {
        let (status, slug, title, detail) = match full {
            PermitError::Total => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-connections",
                "Too many connections",
                "all connections of this listener are in use",
            ),
            PermitError::PerAddress => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-connections-per-address",
                "Too many connections from one address",
                "this address has reached its connection limit; close or reuse connections",
            ),
        };
        Self::new(status, slug, title, detail).with(RETRY_AFTER, RETRY_AFTER_SECS)
    }
}

/// Sends the rejection and waits until the client has closed.
async fn send_rejection(mut stream: TcpStream, full: PermitError) -> io::Result<()> {
    let problem = HttpProblem::from(full);
    let body = problem.body().to_string();
    let answer = format!(
        "HTTP/1.1 {}\r\nRetry-After: {RETRY_AFTER_SECS}\r\nConnection: close\r\nCache-Control: no-store\r\n\
         Content-Type: {}\r\nContent-Length: {}\r\n\r\n{body}",
        problem.status,
        problem::MEDIA_TYPE,
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let (mut ignored, mut left) = ([0; 512], REJECT_READ_MAX);
    while left > 0 {
        match stream.read(&mut ignored).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

fn log_task_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = chain(&error), "task of one connection panicked; other connections are not affected");
    }
}

/// The address of the client of a request; behind a trusted proxy the address that the proxy names. An extension of each
/// request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// The permit of a connection, and the checks of its requests before the router.
struct ConnectionAdmission {
    permit: Mutex<ConnectionPermit>,
    peer: IpAddr,
    /// All trusted proxies, if the peer is one.
    proxies: Option<Arc<[IpNetwork]>>,
}

impl ConnectionAdmission {
    /// Checks a request and adds the [`ClientAddress`] to it.
    fn check<B>(&self, request: &mut Request<B>) -> Result<(), HttpProblem> {
        request.extensions_mut().insert(ClientAddress(self.peer));
        host::check(request.version(), request.headers())?;
        let target = request.uri().authority().cloned();
        if let Some(target) = target {
            host::replace(request.headers_mut(), target.as_str())?;
        }
        let Some(proxies) = &self.proxies else { return Ok(()) };
        let client = forwarded::client(request.headers(), self.peer, proxies);
        request.extensions_mut().insert(ClientAddress(client));
        let mut permit = self.permit.lock();
        Ok(permit.assign_to(forwarded::share_key(client))?)
    }
}

/// Serves one connection. Each phase is boxed and freed before the next, so that an idle upgraded socket has no HTTP
/// buffers.
async fn serve_connection(
    site: RouterSwitch,
    admission: ConnectionAdmission,
    socket: AcceptedSocket,
    header_timeout: Duration,
    stop: CancellationToken,
) {
    let upgraded = Box::pin(serve_http(site, &admission, socket, header_timeout, stop)).await;
    let Some((upgrade, handler)) = upgraded else { return };
    match upgrade.await {
        Ok(upgraded) => {
            let (socket, early_bytes) = into_socket(upgraded);
            handler(socket, early_bytes).await;
        }
        Err(error) => tracing::debug!(error = chain(&error), "upgrade failed"),
    }
}

fn into_socket(upgraded: Upgraded) -> (AcceptedSocket, Bytes) {
    let parts = upgraded.downcast::<TokioIo<AcceptedSocket>>().expect("every connection is made from a Socket");
    (parts.io.into_inner(), parts.read_buf)
}

async fn serve_http(
    site: RouterSwitch,
    admission: &ConnectionAdmission,
    socket: AcceptedSocket,
    header_timeout: Duration,
    stop: CancellationToken,
) -> Option<(OnUpgrade, UpgradeHandler)> {
    let (agreed, stalled) = (Mutex::new(None), socket.stall_flag());
    let service = service_fn(|mut request: Request<Incoming>| {
        let upgrade = hyper::upgrade::on(&mut request);
        request.extensions_mut().insert(stalled.clone());
        let (answer, agreed, stalled) =
            (admission.check(&mut request).map(|()| site.current().call(request)), &agreed, &stalled);
        async move {
            let mut answer = match answer {
                Ok(answer) => answer.await?,
                Err(problem) => problem.into_response(),
            };
            stalled.set_endless(answer.extensions().get::<EndlessBody>().is_some());
            if let Some(conversation) = UpgradeExtension::take(&mut answer) {
                *agreed.lock() = Some((upgrade, conversation));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            // A client may close its sending side after a request. For endless responses the socket detects it.
            .half_close(true)
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
    agreed.lock().take()
}

#[cfg(test)]
mod tests;
