//! What a client is told when it does not get what it asked for: `application/problem+json` (RFC 9457).
//!
//! The text is for the client; what an operator must know goes into the log, not here.

use axum::{
    http::{
        StatusCode,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// The stable last part of its `type`, `urn:trunkline:problem:{slug}`.
    pub slug: &'static str,
    /// What kind of problem it is; the same text each time.
    pub title: &'static str,
    /// What was wrong this time and what would be right.
    pub detail: String,
    /// A header that the status asks for, such as `Allow`.
    pub header: Option<(HeaderName, &'static str)>,
}

impl Problem {
    pub fn new(status: StatusCode, slug: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, slug, title, detail: detail.into(), header: None }
    }

    /// The same with a header that its status asks for.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// There is nothing at this path.
    pub fn no_such_path(path: &str) -> Self {
        let shown: String = path.chars().take(PATH_SHOWN_MAX).collect();
        Self::new(StatusCode::NOT_FOUND, "not-found", "No such resource", format!("there is nothing at {shown}"))
    }

    /// The path is there, but not for this method.
    pub fn wrong_method(allowed: &'static str) -> Self {
        let detail = format!("this resource answers {allowed} only");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
            .with(ALLOW, allowed)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status.as_u16();
        tracing::debug!(status, reason = self.slug, "request refused");
        let body = json!({
            "type": format!("urn:trunkline:problem:{}", self.slug),
            "title": self.title,
            "status": status,
            "detail": self.detail,
        });
        let headers = [(CONTENT_TYPE, "application/problem+json"), (CACHE_CONTROL, "no-store")];
        (self.status, headers, self.header.map(|header| [header]), body.to_string()).into_response()
    }
}

/// A path is repeated to the client up to this many characters.
const PATH_SHOWN_MAX: usize = 200;
