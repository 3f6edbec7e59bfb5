//! The routes of the admin listener.
//!
//! A command from a page of another origin is rejected.

use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{MethodRouter, delete, get, post},
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    AdminContext, operator_token,
    responses::{self, AdminStatus, ReadinessReport, ReplicaMembers},
    sessions,
};
use crate::{
    auth::Tokens,
    clock,
    coordination::Replica,
    listener::{
        origin::{self, Origins},
        problem::HttpProblem,
        resource::{PathName, READ, allow_methods, not_found},
    },
    model::{AccountName, NameError, SecretRef, StreamName},
    telemetry::{chain, metrics},
    upstream::{OperatorCommand, OperatorCommandError, StreamStatus},
};

/// The state of the handlers.
pub(super) struct AdminState {
    pub(super) parts: AdminContext,
    pub(super) origins: Origins,
    /// The token of operators; none on loopback without one.
    pub(super) token: Option<SecretRef>,
    pub(super) started: Instant,
    /// Permits for metrics pages in flight.
    pub(super) pages: Arc<Semaphore>,
}

/// Maximum metrics pages in flight; a page can have several megabytes.
pub(super) const PAGES_MAX: usize = 4;
/// Time that a request waits for a permit before it gets 503.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(operators: AdminState) -> Router {
    let operators = Arc::new(operators);
    let guarded = Router::new()
        .route("/admin/v1/status", allow_methods(READ, get(status)))
        .route("/admin/v1/streams/{stream}/rotate", command_route(OperatorCommand::Rotate))
        .route("/admin/v1/streams/{stream}/pause", command_route(OperatorCommand::Pause))
        .route("/admin/v1/streams/{stream}/resume", command_route(OperatorCommand::Resume))
        .route("/admin/v1/sessions", allow_methods(READ, get(sessions::list)))
        .route("/admin/v1/sessions/{session}", allow_methods("DELETE", delete(sessions::end)))
        .route("/admin/v1/subjects/{subject}", allow_methods("DELETE", delete(sessions::refuse)))
        .route("/admin/v1/accounts/{account}/refresh", allow_methods("POST", post(refresh)))
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&operators), guard));
    // Probes and scrapers may use any host name; these resources are not secret.
    let open = Router::new()
        .route("/healthz", allow_methods(READ, get(async || responses::health())))
        .route("/readyz", allow_methods(READ, get(ready)))
        .route("/metrics", allow_methods(READ, get(metrics_page)));
    guarded.merge(open).with_state(operators)
}

/// Checks the host and the token of a request. A state-changing request must also be of the same origin.
async fn guard(
    State(operators): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Result<Response, HttpProblem> {
    let headers = request.headers();
    operators.origins.check(headers).map_err(|foreign| foreign.problem())?;
    if !request.method().is_safe() && !origin::is_same_origin(headers) {
        return Err(origin::cross_origin_problem());
    }
    operator_token::check(operators.token.as_ref(), headers).await?;
    Ok(next.run(request).await)
}

/// The metrics page. It is large with many streams, so few are rendered at a time, on a blocking thread.
async fn metrics_page(State(operators): State<Arc<AdminState>>, headers: HeaderMap) -> Result<Response, HttpProblem> {
    let gzip = responses::accepts_gzip(&headers);
    let permit = timeout(PAGE_TIMEOUT, Arc::clone(&operators.pages).acquire_owned()).await;
    let permit = permit.ok().and_then(Result::ok).ok_or_else(busy)?;
    let made = spawn_blocking(move || {
        if let Some(access) = &operators.parts.access {
            access.update_metrics();
        }
        for (stream, log) in operators.parts.logs.iter() {
            metrics::subscribers_lag(stream, log.lag_max());
        }
        if gzip { responses::compressed(&metrics::page()) } else { metrics::page().into() }
    });
    let page = made.await.map_err(|error| {
        tracing::error!(error = chain(&error), "cannot render the metrics page");
        busy()
    })?;
    Ok(responses::metrics(page, gzip, permit))
}

fn busy() -> HttpProblem {
    let detail = format!("{PAGES_MAX} scrapes are in progress; retry later");
    HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy", detail).with(RETRY_AFTER, "5")
}

async fn ready(State(operators): State<Arc<AdminState>>, RawQuery(query): RawQuery) -> Result<Response, HttpProblem> {
    let every_stream_live = match query.as_deref() {
        None | Some("") => false,
        Some("streams=all") => true,
        Some(_) => {
            let detail = "the only parameter here is streams=all";
            return Err(HttpProblem::new(StatusCode::BAD_REQUEST, "unknown-parameter", "Unknown parameter", detail));
        }
    };
    Ok(operators.report().response(every_stream_live))
}

async fn status(State(operators): State<Arc<AdminState>>) -> Response {
    operators.status().response()
}

/// The resource that sends a command to the stream in its path.
fn command_route(command: OperatorCommand) -> MethodRouter<Arc<AdminState>> {
    let handler = async move |State(operators): State<Arc<AdminState>>, PathName(name): PathName| {
        let stream: StreamName = parse_name("stream", &name)?;
        operators.parts.streams.command(&stream, command).await.map_err(|error| command_problem(&stream, error))?;
        tracing::info!(%stream, command = command.as_str(), "admin request");
        Ok::<_, HttpProblem>(responses::accepted())
    };
    allow_methods("POST", post(handler))
}

async fn refresh(State(operators): State<Arc<AdminState>>, PathName(name): PathName) -> Result<Response, HttpProblem> {
    let account: AccountName = parse_name("account", &name)?;
    let tokens = operators.parts.accounts.iter().find(|tokens| *tokens.account() == account);
    tokens.ok_or_else(|| unknown("account", &account))?.refresh();
    tracing::info!(%account, command = "refresh", "admin request");
    Ok(responses::accepted())
}

impl AdminState {
    fn report(&self) -> ReadinessReport {
        let statuses = self.parts.streams.statuses();
        let streams = statuses.iter().map(|status| (status.stream.clone(), status.state.as_str())).collect();
        let reason = |status: StreamStatus| Some((status.stream, status.last_error?));
        ReadinessReport {
            store: self.parts.store.health(),
            replica: self.parts.replica.as_ref().map(Replica::health),
            warnings: self.warnings(),
            draining: self.parts.readiness.draining(),
            streams,
            reasons: statuses.into_iter().filter_map(reason).collect(),
        }
    }

    /// Warnings about the store and about unreadable data of other replicas.
    fn warnings(&self) -> Vec<String> {
        let unreadable = self.parts.replica.as_ref().map(Replica::unreadable_members).unwrap_or_default();
        self.parts.store.warnings().iter().cloned().chain(unreadable).collect()
    }

    fn status(&self) -> AdminStatus {
        AdminStatus {
            uptime: clock::now().duration_since(self.started),
            report: self.report(),
            streams: self.parts.streams.statuses(),
            accounts: self.parts.accounts.iter().map(Tokens::status).collect(),
            connections: self.parts.connections,
            replica: self.parts.replica.as_ref().map(ReplicaMembers::of),
        }
    }
}

fn parse_name<T: FromStr<Err = NameError>>(what: &str, name: &str) -> Result<T, HttpProblem> {
    name.parse().map_err(|error: NameError| name_not_found(what, error.to_string()))
}

/// The response to a rejected command.
fn command_problem(stream: &StreamName, error: OperatorCommandError) -> HttpProblem {
    let detail = match error {
        OperatorCommandError::UnknownStream => return unknown("stream", stream),
        OperatorCommandError::NotHolder { holder: Some(holder) } => {
            format!("replica {holder} owns {stream}; send the request to it")
        }
        OperatorCommandError::NoEffect(why) => {
            let detail = format!("the command has no effect on {stream} now: {why}");
            return HttpProblem::new(StatusCode::CONFLICT, "no-effect", "The command has no effect now", detail);
        }
        OperatorCommandError::Busy => {
            let detail = format!("{stream} did not accept the command in time; nothing was done, retry");
            return HttpProblem::new(StatusCode::CONFLICT, "busy", "The stream is busy", detail);
        }
        OperatorCommandError::NotHolder { holder: None } => {
            format!("no replica owns {stream} at the moment; retry")
        }
    };
    HttpProblem::new(StatusCode::CONFLICT, "not-owner", "This replica does not own the stream", detail)
}

/// The response to an unknown name in the path.
fn unknown(what: &str, name: &impl fmt::Display) -> HttpProblem {
    name_not_found(what, format!("no {what} has the name {name}"))
}

fn name_not_found(what: &str, detail: String) -> HttpProblem {
    let (slug, title) =
        if what == "stream" { ("unknown-stream", "No such stream") } else { ("unknown-account", "No such account") };
    HttpProblem::new(StatusCode::NOT_FOUND, slug, title, detail)
}

#[cfg(test)]
mod tests;
