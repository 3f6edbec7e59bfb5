//! What operators get before the store is open: that the process lives, that it is not ready, and why.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::Response,
    routing::get,
};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    routes::PAGES_MAX,
    shown::{self, Report, Status},
};
use crate::{
    clock,
    listener::{
        descriptors::Share,
        problem::Problem,
        resource::{READ, only},
    },
    model::StreamName,
    telemetry::metrics,
};

/// The state of every stream until the store is open.
const STARTING: &str = "starting";

/// Why the store is not open yet. Clones share it; whoever opens the store writes, the listener reads.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<String>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("it is being opened".to_owned())))
    }
}

impl Progress {
    /// The last attempt failed for this reason.
    pub fn failed(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    fn reason(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the handlers work on.
pub(super) struct Starting {
    progress: Progress,
    streams: Vec<StreamName>,
    connections: Share,
    started: Instant,
    pages: Arc<Semaphore>,
}

pub(super) fn router(progress: Progress, streams: Vec<StreamName>, connections: Share) -> Router {
    let pages = Arc::new(Semaphore::new(PAGES_MAX));
    let starting = Arc::new(Starting { progress, streams, connections, started: clock::now(), pages });
    Router::new()
        .route("/healthz", only(READ, get(async || shown::health())))
        .route("/readyz", only(READ, get(ready)))
        .route("/metrics", only(READ, get(page)))
        .route("/admin/v1/status", only(READ, get(status)))
        .fallback(async || not_yet())
        .with_state(starting)
}

async fn ready(State(starting): State<Arc<Starting>>) -> Response {
    starting.report().response(false)
}

async fn status(State(starting): State<Arc<Starting>>) -> Response {
    let uptime = clock::now().duration_since(starting.started);
    let (streams, accounts) = (Vec::new(), Vec::new());
    let connections = starting.connections;
    Status { uptime, report: starting.report(), streams, accounts, connections, among: None }.response()
}

async fn page(State(starting): State<Arc<Starting>>, headers: HeaderMap) -> Result<Response, Problem> {
    let gzip = shown::takes_gzip(&headers);
    let permit = Arc::clone(&starting.pages).acquire_owned().await.map_err(|_| not_yet())?;
    let made = spawn_blocking(move || if gzip { shown::compressed(&metrics::page()) } else { metrics::page().into() });
    Ok(shown::metrics(made.await.map_err(|_| not_yet())?, gzip, permit))
}

fn not_yet() -> Problem {
    let detail = "the store is not open yet; /readyz says why";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "Starting", detail).with(RETRY_AFTER, "1")
}

impl Starting {
    fn report(&self) -> Report {
        let streams: BTreeMap<StreamName, &'static str> =
            self.streams.iter().map(|stream| (stream.clone(), STARTING)).collect();
        Report {
            store: Err(self.progress.reason()),
            replica: None,
            warnings: Vec::new(),
            draining: false,
            streams,
            reasons: BTreeMap::new(),
        }
    }
}
