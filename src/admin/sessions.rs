//! The sessions of consumers: listed, ended, and refused by subject.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::routes::AdminState;
use crate::{
    downstream::server::access::{AccessControl, SessionStatus},
    listener::{
        json::{APPLICATION_JSON, json_response},
        problem::HttpProblem,
        resource::PathName,
    },
    model::{RevocationTarget, Subject},
    store::AppendError,
    telemetry::chain,
};

#[derive(Serialize)]
struct SessionList {
    sessions: Vec<SessionStatus>,
}

/// The sessions that are open on this replica.
pub(super) async fn list(State(operators): State<Arc<AdminState>>) -> Result<Response, HttpProblem> {
    let sessions = access(&operators)?.sessions().status();
    Ok(json_response(StatusCode::OK, APPLICATION_JSON, &SessionList { sessions }))
}

/// Ends one session, on whichever replica it is.
pub(super) async fn end(
    State(operators): State<Arc<AdminState>>,
    PathName(id): PathName,
) -> Result<Response, HttpProblem> {
    let is_id = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        let detail = "expected the id of a session, as GET /admin/v1/sessions shows it";
        return Err(HttpProblem::new(StatusCode::NOT_FOUND, "unknown-session", "No such session", detail));
    }
    revoke(&operators, RevocationTarget::Session(id.to_ascii_lowercase())).await
}

/// Refuses every token of a subject that was issued up to now, and ends its sessions.
pub(super) async fn refuse(
    State(operators): State<Arc<AdminState>>,
    PathName(subject): PathName,
) -> Result<Response, HttpProblem> {
    let subject: Subject = subject.parse().map_err(|error: crate::model::SubjectError| {
        HttpProblem::new(StatusCode::BAD_REQUEST, "invalid-subject", "Invalid subject", error.to_string())
    })?;
    revoke(&operators, RevocationTarget::Subject(subject.to_string())).await
}

async fn revoke(operators: &AdminState, target: RevocationTarget) -> Result<Response, HttpProblem> {
    access(operators)?.revoke(target.clone()).await.map_err(|error| unavailable(&error))?;
    tracing::info!(%target, "admin request: access revoked");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn unavailable(error: &AppendError) -> HttpProblem {
    let detail = format!("the revocation is not stored and has no effect after a restart: {}", chain(error));
    HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable", detail)
        .with(RETRY_AFTER, "5")
}

fn access(operators: &AdminState) -> Result<&AccessControl, HttpProblem> {
    operators.parts.access.as_ref().ok_or_else(|| {
        let detail = "consumers do not authenticate: http.auth is not configured";
        HttpProblem::new(StatusCode::NOT_FOUND, "no-authentication", "No authentication", detail)
    })
}
