//! The listener for consumers: events over WebSocket, server-sent events, NDJSON and pages.
//!
//! It rejects foreign origins, unknown parameters and invalid cursors.

mod accept;
pub mod access;
mod buffer_pool;
mod consumers;
mod error;
mod outgoing;
mod pages;
mod position;
mod query;
mod read_start;
pub mod render;
mod request_body;
mod routes;
mod sse;
mod tickets;
mod ws;

use std::{net::SocketAddr, time::Duration};

use axum::Router;

use crate::{
    downstream::consumers::Consumers,
    event_log::EventLogs,
    listener::{HttpListener, Listener, origin::Origins, router_switch::RouterSwitch},
    model::StreamName,
    tasks::Tasks,
};
use access::AccessControl;
use buffer_pool::BufferPool;
use routes::ConsumerState;

/// Settings of the consumer server.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Allowed origins. Empty: pages of this host and of loopback.
    pub allowed_origins: Vec<String>,
    /// Allowed hosts in addition to its own addresses.
    pub allowed_hosts: Vec<String>,
    pub limits: HttpListener,
    /// Idle time before a WebSocket client is pinged.
    pub ping_interval: Duration,
    /// Interval of keep-alives in an idle endless response.
    pub keep_alive_interval: Duration,
    /// Maximum bytes of all pages and entries that clients have not read yet.
    pub held_len_max: usize,
    /// Interval of positions for a filtered reader.
    pub position_interval: Duration,
}

impl Settings {
    /// The defaults on an address.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            limits: HttpListener::default(),
            ping_interval: Duration::from_secs(25),
            keep_alive_interval: Duration::from_secs(15),
            position_interval: Duration::from_secs(30),
            held_len_max: buffer_pool::HELD_LEN_MAX,
        }
    }
}

/// A bound consumer server that does not accept yet.
#[derive(Debug)]
pub struct ConsumerServer {
    listener: Listener,
    settings: Settings,
    address: SocketAddr,
}

impl ConsumerServer {
    /// Binds the listener, within a runtime.
    pub fn bind(settings: Settings) -> std::io::Result<Self> {
        let listener = Listener::bind(settings.listen, settings.limits.clone())?;
        let address = listener.address()?;
        Ok(Self { listener, settings, address })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `logs` until the stop signal of the tasks, then ends after its clients, which end when their logs are closed.
    /// `live` returns whether a stream is live.
    pub fn start<L>(self, tasks: &mut Tasks, logs: EventLogs, durable: Consumers, live: L)
    where
        L: Fn(&StreamName) -> bool + Send + Sync + 'static,
    {
        self.accept(tasks).serve(logs, durable, live);
    }

    /// Accepts until the stop signal of the tasks. Responds with 503 until [`ConsumerServerHandle::serve`].
    pub fn accept(self, tasks: &mut Tasks) -> ConsumerServerHandle {
        let Self { listener, settings, address } = self;
        let site = RouterSwitch::new(Router::new().fallback(async || error::ConsumerRequestError::Starting));
        let (switch, stop) = (site.clone(), tasks.stop());
        tasks.start("consumers", async move { Ok(listener.serve(switch, stop).await?) });
        ConsumerServerHandle { site, settings, address, access: None }
    }
}

/// A running consumer server.
#[derive(Debug)]
pub struct ConsumerServerHandle {
    site: RouterSwitch,
    settings: Settings,
    address: SocketAddr,
    access: Option<AccessControl>,
}

impl ConsumerServerHandle {
    /// Requires that consumers authenticate. Without it every client of the listener has access.
    #[must_use]
    pub fn with_access(self, access: Option<AccessControl>) -> Self {
        Self { access, ..self }
    }

    /// Serves `logs` from now on.
    pub fn serve<L>(self, logs: EventLogs, durable: Consumers, live: L)
    where
        L: Fn(&StreamName) -> bool + Send + Sync + 'static,
    {
        let Settings {
            allowed_origins,
            allowed_hosts,
            ping_interval: ping_every,
            keep_alive_interval: keep_alive,
            position_interval: position_every,
            held_len_max,
            ..
        } = self.settings;
        let origins = Origins {
            allowed: allowed_origins,
            hosts: allowed_hosts,
            hosts_key: "http.allowed_hosts",
            origins_key: Some("http.allowed_origins"),
            loopback: self.address.ip().is_loopback(),
        };
        let (live, access) = (Box::new(live), self.access);
        let memory = BufferPool::of(held_len_max);
        let site = routes::router(ConsumerState {
            logs,
            durable,
            live,
            access,
            origins,
            ping_every,
            keep_alive,
            position_every,
            memory,
        });
        self.site.replace(site);
    }
}

#[cfg(test)]
mod tests;
