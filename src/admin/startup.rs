//! The admin listener before the store is open: alive, not ready, and the reason.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::Response,
    routing::get,
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{
    responses::{self, AdminStatus, ReadinessReport},
    routes::PAGES_MAX,
};
use crate::{
    clock,
    listener::{
        descriptors::ConnectionBudget,
        problem::HttpProblem,
        resource::{READ, allow_methods},
    },
    model::StreamName,
    telemetry::metrics,
};

/// The state of every stream until the store is open.
const STARTING: &str = "starting";

/// Why the store is not open yet. Clones share the reason.
#[derive(Debug, Clone)]
pub struct StartupProgress(Arc<Mutex<String>>);

impl Default for StartupProgress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("the store is opening".to_owned())))
    }
}

impl StartupProgress {
    /// Sets the reason of the last failed attempt.
    pub fn failed(&self, reason: String) {
        *self.0.lock() = reason;
    }

    fn reason(&self) -> String {
        self.0.lock().clone()
    }
}

/// The state of the handlers.
pub(super) struct StartupState {
    progress: StartupProgress,
    streams: Vec<StreamName>,
    connections: ConnectionBudget,
    started: Instant,
    pages: Arc<Semaphore>,
}

pub(super) fn router(progress: StartupProgress, streams: Vec<StreamName>, connections: ConnectionBudget) -> Router {
    let pages = Arc::new(Semaphore::new(PAGES_MAX));
    let starting = Arc::new(StartupState { progress, streams, connections, started: clock::now(), pages });
    Router::new()
        .route("/healthz", allow_methods(READ, get(async || responses::health())))
        .route("/readyz", allow_methods(READ, get(ready)))
        .route("/metrics", allow_methods(READ, get(metrics_page)))
        .route("/admin/v1/status", allow_methods(READ, get(status)))
        .fallback(async || starting_problem())
        .with_state(starting)
}

async fn ready(State(starting): State<Arc<StartupState>>) -> Response {
    starting.report().response(false)
}

async fn status(State(starting): State<Arc<StartupState>>) -> Response {
    let uptime = clock::now().duration_since(starting.started);
    let (streams, accounts) = (Vec::new(), Vec::new());
    let connections = starting.connections;
    AdminStatus { uptime, report: starting.report(), streams, accounts, connections, replica: None }.response()
}

async fn metrics_page(State(starting): State<Arc<StartupState>>, headers: HeaderMap) -> Result<Response, HttpProblem> {
    let gzip = responses::accepts_gzip(&headers);
    let permit = Arc::clone(&starting.pages).acquire_owned().await.map_err(|_| starting_problem())?;
    let made =
        spawn_blocking(move || if gzip { responses::compressed(&metrics::page()) } else { metrics::page().into() });
    Ok(responses::metrics(made.await.map_err(|_| starting_problem())?, gzip, permit))
}

fn starting_problem() -> HttpProblem {
    let detail = "the store is not open yet; /readyz shows the reason";
    HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "Starting", detail).with(RETRY_AFTER, "1")
}

impl StartupState {
    fn report(&self) -> ReadinessReport {
        let streams: BTreeMap<StreamName, &'static str> =
            self.streams.iter().map(|stream| (stream.clone(), STARTING)).collect();
        ReadinessReport {
            store: Err(self.progress.reason()),
            replica: None,
            warnings: Vec::new(),
            draining: false,
            streams,
            reasons: BTreeMap::new(),
        }
    }
}
