//! The consumers' listener: events of one or several streams over WebSocket, server-sent events, NDJSON and pages.
//!
//! It only reads. It refuses pages of foreign origins, unknown parameters, and cursors that it cannot honour.

mod accept;
mod buffer_pool;
mod error;
mod outgoing;
mod pages;
mod position;
mod query;
mod read_start;
pub mod render;
mod routes;
mod sse;
mod ws;

use std::{net::SocketAddr, time::Duration};

use axum::Router;

use crate::{
    event_log::EventLogs,
    listener::{HttpListener, Listener, origin::Origins, router_switch::RouterSwitch},
    model::StreamName,
    tasks::Tasks,
};
use buffer_pool::BufferPool;
use routes::ConsumerState;

/// How consumers are served.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Origins of pages that may read here, as browsers write them. Empty: pages of this host and of loopback.
    pub allowed_origins: Vec<String>,
    /// Hosts that it answers to beside its own addresses.
    pub allowed_hosts: Vec<String>,
    pub limits: HttpListener,
    /// A WebSocket client that says nothing for this long is pinged.
    pub ping_interval: Duration,
    /// An endless answer that has nothing to say for this long says so.
    pub keep_alive_interval: Duration,
    /// What all clients together may not have taken of what was read and rendered for them.
    pub held_len_max: usize,
    /// A reader of a part is told at least this often how far the whole has gone.
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

/// A bound server that does not accept yet.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `logs` until the group's stop signal; then accepts nothing more and ends when its clients have: they do
    /// when their logs are closed. `live` tells whether a stream hears its platform.
    pub fn start<L>(self, tasks: &mut Tasks, logs: EventLogs, live: L)
    where
        L: Fn(&StreamName) -> bool + Send + Sync + 'static,
    {
        self.accept(tasks).serve(logs, live);
    }

    /// Accepts until the group's stop signal, and answers 503 until [`Serving::serve`].
    pub fn accept(self, tasks: &mut Tasks) -> ConsumerServerHandle {
        let Self { listener, settings, address } = self;
        let site = RouterSwitch::new(Router::new().fallback(async || error::ConsumerRequestError::Starting));
        let (switch, stop) = (site.clone(), tasks.stop());
        tasks.start("consumers", async move { Ok(listener.serve(switch, stop).await?) });
        ConsumerServerHandle { site, settings, address }
    }
}

/// A server that accepts.
#[derive(Debug)]
pub struct ConsumerServerHandle {
    site: RouterSwitch,
    settings: Settings,
    address: SocketAddr,
}

impl ConsumerServerHandle {
    /// Serves `logs` from now on.
    pub fn serve<L>(self, logs: EventLogs, live: L)
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
        let live = Box::new(live);
        let memory = BufferPool::of(held_len_max);
        let site =
            routes::router(ConsumerState { logs, live, origins, ping_every, keep_alive, position_every, memory });
        self.site.replace(site);
    }
}

#[cfg(test)]
mod tests;
