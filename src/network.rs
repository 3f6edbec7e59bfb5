//! Connections to platforms, for sockets, REST calls and token requests.
//!
//! A policy per account has the proxy, the trusted roots and whether credentials may be sent in plain text. One deadline
//! covers name resolution, TCP, proxy and TLS; dropping the future cancels the attempt. Redirects are not followed.

mod error;
pub mod head;
pub mod proxy;
mod race;
mod resolver;
mod tls;

use std::{
    error::Error,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{ClientBuilder, Url, redirect, retry};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::TlsConnector;

use self::error::ConnectStep;
pub use self::{
    error::{ConnectError, origin, without_secrets},
    proxy::{Proxies, Proxy},
    resolver::Resolver,
    tls::TrustedRoots,
};
use crate::clock;

/// A connection is closed when sent data stays unacknowledged for this time.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle time before the first keep-alive probe, and interval of probes. Middleboxes drop idle connections after minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer, after which the connection is closed.
const KEEPALIVE_RETRIES: u32 = 3;

/// Network settings of an account.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub proxies: Proxies,
    /// Credentials may travel in plain text to other machines.
    pub insecure: bool,
}

/// Creates the connections of one account. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    settings: Arc<Settings>,
    trust: TrustedRoots,
    resolver: Resolver,
}

/// The timeouts of an HTTP client.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Timeout for name resolution, TCP, proxy and TLS, divided among the addresses of a name.
    pub connect: Duration,
    /// Timeout of the whole exchange, connecting included.
    pub total: Duration,
}

/// An open connection, encrypted if the URL requires it.
pub type NetworkStream = Box<dyn ByteStream>;

/// A bidirectional byte stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug> ByteStream for T {}

/// The remote host of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    /// Host name or address, without brackets.
    host: String,
    port: u16,
    encrypted: bool,
}

impl NetworkPolicy {
    pub fn new(settings: Settings, trust: TrustedRoots, resolver: Resolver) -> Self {
        Self { settings: Arc::new(settings), trust, resolver }
    }

    /// The proxy for connections to this URL.
    pub fn proxy_for(&self, url: &Url) -> Option<&Proxy> {
        self.settings.proxies.of(url)
    }

    /// The proxy for a URL, for display without its password.
    pub fn proxy_name(&self, url: &str) -> Option<String> {
        self.proxy_for(&Url::parse(url).ok()?).map(ToString::to_string)
    }

    /// The proxy for a URL as a suffix of an error text; empty without a proxy.
    pub fn proxy_suffix(&self, url: &Url) -> String {
        self.proxy_for(url).map_or_else(String::new, |proxy| format!(" (through the proxy {proxy})"))
    }

    /// Rejects a plain-text URL of another machine, unless the account allows it.
    pub fn check_encryption(&self, url: &Url) -> Result<(), ConnectError> {
        let encrypted = matches!(url.scheme(), "https" | "wss");
        match encrypted || self.settings.insecure || proxy::is_loopback(url) {
            true => Ok(()),
            false => Err(ConnectError::plain_text(url)),
        }
    }

    /// Connects to the host of a URL.
    pub async fn connect(&self, url: &Url, deadline: Instant) -> Result<NetworkStream, ConnectError> {
        self.check_encryption(url)?;
        let peer = Peer::of(url).ok_or_else(|| ConnectError::no_host(url))?;
        let proxy = self.proxy_for(url);
        let connected = match proxy {
            None => self.open(&peer, deadline).await,
            Some(proxy) => self.tunnel(proxy, &peer, deadline).await,
        };
        connected.map_err(|error| error.through(proxy))
    }

    /// Opens TCP to a peer, and TLS if the peer uses it.
    async fn open(&self, peer: &Peer, deadline: Instant) -> Result<NetworkStream, ConnectError> {
        let stream = self.tcp(peer, deadline).await?;
        match peer.encrypted {
            true => self.encrypt(stream, peer, deadline).await,
            false => Ok(Box::new(stream)),
        }
    }

    async fn tunnel(&self, proxy: &Proxy, peer: &Peer, deadline: Instant) -> Result<NetworkStream, ConnectError> {
        let mut stream = self.open(&proxy.peer(), deadline).await?;
        let target = peer.authority();
        let step = ConnectStep::Tunnel(target.clone());
        let request = connect_request(&mut stream, &target, proxy.authorization());
        let (head, early) = with_deadline(deadline, &step, request).await?;
        if !(200..300).contains(&head.status) {
            return Err(ConnectError::new(step, format!("the proxy answered {}", head.status)));
        }
        let stream = prepend(early, stream);
        match peer.encrypted {
            true => self.encrypt(stream, peer, deadline).await,
            false => Ok(stream),
        }
    }

    async fn tcp(&self, peer: &Peer, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let step = ConnectStep::Resolve(peer.host.clone());
        let addresses = with_deadline(deadline, &step, self.resolver.lookup(&peer.host, peer.port)).await?;
        let addresses = race::interleave(&addresses);
        let step = ConnectStep::Tcp(race::display_list(&addresses));
        with_deadline(deadline, &step, race::connect_first(&addresses, dial)).await
    }

    async fn encrypt<S: ByteStream + 'static>(
        &self,
        stream: S,
        peer: &Peer,
        deadline: Instant,
    ) -> Result<NetworkStream, ConnectError> {
        let step = ConnectStep::Tls(peer.host.clone());
        let name = ServerName::try_from(peer.host.clone());
        let name = name.map_err(|error| ConnectError::new(step.clone(), error))?;
        let connector = TlsConnector::from(self.trust.for_sockets());
        Ok(Box::new(with_deadline(deadline, &step, connector.connect(name, stream)).await?))
    }

    /// An HTTP client with the proxy, trusted roots, resolver and keep-alive of this policy. It follows no redirects and
    /// does not retry.
    pub fn http_client(&self, limits: HttpLimits) -> ClientBuilder {
        let settings = Arc::clone(&self.settings);
        let through = move |url: &Url| settings.proxies.of(url).map(Proxy::url_with_login);
        reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .tls_backend_preconfigured(self.trust.for_http())
            .dns_resolver(Arc::new(self.resolver.clone()))
            .no_proxy()
            .proxy(reqwest::Proxy::custom(through))
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE_IDLE)
            .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
            .tcp_keepalive_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(USER_TIMEOUT)
            .connect_timeout(limits.connect)
            .timeout(limits.total)
    }
}

impl Peer {
    fn of(url: &Url) -> Option<Self> {
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default()?;
        Some(Self { host, port, encrypted: matches!(url.scheme(), "https" | "wss") })
    }

    /// `HOST:PORT`, for `CONNECT`.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Runs a step until the deadline. A late step is dropped with its sockets.
async fn with_deadline<T, E: Into<Box<dyn Error + Send + Sync>>>(
    deadline: Instant,
    step: &ConnectStep,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, ConnectError> {
    let started = clock::now();
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(done) => done.map_err(|error| ConnectError::new(step.clone(), error)),
        Err(_) => Err(ConnectError::timed_out(step.clone(), clock::now().saturating_duration_since(started))),
    }
}

async fn dial(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let options = socket2::SockRef::from(&socket);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    options.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// Requests a tunnel from a proxy (RFC 9110 section 9.3.6). The bytes after a 2xx head belong to the tunnel, whatever its
/// headers state.
async fn connect_request(
    stream: &mut NetworkStream,
    target: &str,
    authorization: Option<String>,
) -> std::io::Result<(head::ResponseHead, Vec<u8>)> {
    let login = authorization.map_or_else(String::new, |value| format!("Proxy-Authorization: {value}\r\n"));
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n");
    stream.write_all(request.as_bytes()).await?;
    head::read(stream).await
}

/// Puts bytes that were already read in front of a connection.
fn prepend(early: Vec<u8>, stream: NetworkStream) -> NetworkStream {
    if early.is_empty() {
        return stream;
    }
    let (read, write) = tokio::io::split(stream);
    Box::new(tokio::io::join(std::io::Cursor::new(early).chain(read), write))
}

#[cfg(test)]
mod tests;
