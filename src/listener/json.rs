//! JSON responses of both listeners.

use axum::{
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// A response that is valid only at the time of the request. It ends with a newline, so that a shell prompt begins a line.
pub fn json_response(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("a response can always be written");
    (status, [(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, media_type)], body + "\n").into_response()
}

/// The media type of a response without an error.
pub const APPLICATION_JSON: &str = "application/json";
