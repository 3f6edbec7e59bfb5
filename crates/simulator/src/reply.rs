//! Answers in the format of the platform: error bodies, correlation ids, refusals of faults. The callers decide when
//! to use them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::platform::SimulatedPlatform;
use super::tokens::TokenRejection;
use super::world::uuid;

const CORRELATION: HeaderName = HeaderName::from_static("inin-correlation-id");

/// An error of the API.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(error_body(status, code, message))).into_response()
}

/// Its body.
pub(super) fn error_body(status: StatusCode, code: &str, message: &str) -> Value {
    json!({
        "message": message, "code": code, "status": status.as_u16(), "contextId": "", "messageParams": {},
        "messageWithParams": message, "entityId": null, "entityName": null, "details": [], "errors": [],
    })
}

pub(super) fn bad_request(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "bad.request", message)
}

pub(super) fn upgrade_required() -> Response {
    let answer = error(StatusCode::UPGRADE_REQUIRED, "bad.request", "This is a WebSocket endpoint.");
    ([(header::UPGRADE, "websocket")], answer).into_response()
}

pub(super) fn not_found(platform: &SimulatedPlatform, message: &str) -> Response {
    correlated(platform, error(StatusCode::NOT_FOUND, "not.found", message))
}

/// The answer to an unknown path.
pub(super) async fn unknown(State(platform): State<Arc<SimulatedPlatform>>) -> Response {
    not_found(&platform, "The requested resource was not found.")
}

pub(super) fn unauthorized(platform: &SimulatedPlatform, rejection: TokenRejection) -> Response {
    let (code, message) = match rejection {
        TokenRejection::Missing => {
            ("authentication.required", "No authentication bearer token specified in authorization header.")
        }
        TokenRejection::Unknown => ("bad.credentials", "Invalid login credentials."),
        TokenRejection::Expired => ("credentials.expired", "The supplied credentials are expired."),
    };
    correlated(platform, error(StatusCode::UNAUTHORIZED, code, message))
}

/// An error of the API for the status of a fault.
pub(super) fn refused(status: u16) -> Response {
    let code = match status {
        401 => "bad.credentials",
        403 => "missing.permissions",
        404 => "not.found",
        429 => "too.many.requests",
        503 => "service.unavailable",
        504 => "request.timeout",
        _other => "internal.server.error",
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    error(status, code, "A simulated failure.")
}

/// Writes `Retry-After` unchanged.
pub(super) fn retry_after(mut answer: Response, value: Option<&str>) -> Response {
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
        answer.headers_mut().insert(header::RETRY_AFTER, value);
    }
    answer
}

/// Adds the correlation id that every answer of the API has.
pub(super) fn correlated(platform: &SimulatedPlatform, mut answer: Response<Body>) -> Response<Body> {
    let id = uuid(&mut platform.lock().rng);
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers_mut().insert(CORRELATION, id);
    }
    answer
}

/// The token of `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
