//! Health, metrics, status, and an operator's wishes: the second listener.
//!
//! It serves no events and never waits for a platform or the store: what it tells is what the parts already know.

mod routes;
mod shown;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use hyper::{Request, Response, body::Incoming};

use crate::{
    auth::Tokens,
    clock,
    listener::{Answer, Body, Limits, Listener, Site, Socket, origin::Origins, problem::Problem},
    store::Store,
    tasks::Tasks,
    upstream::Streams,
};
use shown::{Report, Status};

/// Where operators and orchestrators are served.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    pub limits: Limits,
}

impl Settings {
    /// The defaults on an address.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, limits: Limits::default() }
    }
}

/// Whether the process takes new consumers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From here on the process is not ready; there is no way back.
    pub fn drain(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn draining(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What the listener tells about, and whom it passes wishes to.
#[derive(Debug, Clone)]
pub struct Parts {
    pub store: Store,
    pub streams: Streams,
    pub accounts: Vec<Tokens>,
    pub readiness: Readiness,
}

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
    address: SocketAddr,
}

impl Admin {
    /// Binds the listener, within a runtime.
    pub fn bind(settings: Settings) -> io::Result<Self> {
        let listener = Listener::bind(settings.listen, settings.limits)?;
        let address = listener.address()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the group's stop signal.
    pub fn start(self, tasks: &mut Tasks, parts: Parts) {
        let origins = Origins { allowed: Vec::new(), loopback: self.address.ip().is_loopback() };
        let site = Operators { parts, origins, started: clock::now() };
        let stop = tasks.stop();
        tasks.start("admin", async move {
            self.listener.serve(site, stop).await;
            Ok(())
        });
    }
}

struct Operators {
    parts: Parts,
    origins: Origins,
    started: Instant,
}

/// A connection of this listener is never upgraded.
enum NoSession {}

impl Site for Operators {
    type Session = NoSession;

    async fn answer(&self, request: Request<Incoming>) -> Answer<NoSession> {
        Answer::Response(self.serve(&request).unwrap_or_else(Problem::response))
    }

    async fn converse(session: NoSession, _: Socket, _: Bytes) {
        match session {}
    }
}

impl Operators {
    fn serve(&self, request: &Request<Incoming>) -> Result<Response<Body>, Problem> {
        use routes::Route;
        match routes::route(request.method(), request.uri(), request.headers(), &self.origins)? {
            Route::Health => Ok(shown::text("ok\n")),
            Route::Ready { every_stream_live } => Ok(self.report().response(every_stream_live)),
            Route::Metrics => Ok(shown::metrics()),
            Route::Status => Ok(self.status().response()),
            Route::Wish { stream, wish } => {
                self.parts.streams.wish(&stream, wish).map_err(|_| routes::unknown("stream", &stream))?;
                tracing::info!(%stream, ?wish, "an operator's wish");
                Ok(shown::accepted())
            }
            Route::Refresh { account } => {
                let tokens = self.parts.accounts.iter().find(|tokens| *tokens.account() == account);
                tokens.ok_or_else(|| routes::unknown("account", &account))?.refresh();
                tracing::info!(%account, "an operator wants a new token");
                Ok(shown::accepted())
            }
        }
    }

    fn report(&self) -> Report {
        let streams = self.parts.streams.statuses().into_iter().map(|status| (status.stream, status.state));
        Report {
            store: self.parts.store.health(),
            draining: self.parts.readiness.draining(),
            streams: streams.collect(),
        }
    }

    fn status(&self) -> Status {
        Status {
            uptime: clock::now().duration_since(self.started),
            report: self.report(),
            streams: self.parts.streams.statuses(),
            accounts: self.parts.accounts.iter().map(Tokens::status).collect(),
        }
    }
}
