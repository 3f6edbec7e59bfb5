//! Error responses: `application/problem+json` (RFC 9457).
//!
//! The text is for the client. Details for operators are logged.

use axum::{
    http::{
        StatusCode,
        header::{ALLOW, HeaderName},
    },
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::json::json_response;

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProblem {
    pub status: StatusCode,
    /// The stable last part of the `type`, `urn:trunkline:problem:{slug}`.
    pub slug: &'static str,
    /// The fixed title of this type of problem.
    pub title: &'static str,
    /// The error of this request and how to correct it.
    pub detail: String,
    /// A header that the status requires, such as `Allow`.
    pub header: Option<(HeaderName, &'static str)>,
}

impl HttpProblem {
    pub fn new(status: StatusCode, slug: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, title, detail: detail.into(), header: None }
    }

    /// Adds a header that the status requires.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// The problem of an unknown path.
    pub fn no_such_path(path: &str) -> Self {
        let detail = format!("no resource has the path {}", excerpt(path));
        Self::new(StatusCode::NOT_FOUND, "not-found", "No such resource", detail)
    }

    /// The problem of a method that the resource does not support.
    pub fn wrong_method(allowed: &'static str) -> Self {
        let detail = format!("this resource supports {allowed} only");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
            .with(ALLOW, allowed)
    }
}

/// The media type of a problem.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

impl HttpProblem {
    /// The problem as JSON.
    pub(super) fn body(&self) -> Value {
        json!({
            "type": format!("urn:trunkline:problem:{}", self.slug),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        })
    }
}

impl IntoResponse for HttpProblem {
    fn into_response(self) -> Response {
        tracing::debug!(status = self.status.as_u16(), reason = self.slug, "request refused");
        let response = json_response(self.status, MEDIA_TYPE, &self.body());
        (self.header.map(|header| [header]), response).into_response()
    }
}

/// Maximum number of characters quoted from a request.
const EXCERPT_LEN_MAX: usize = 200;

/// The beginning of a text from a request, for a quote in a response.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_LEN_MAX).collect()
}
