//! HTTP client of the commands for a running daemon.
//!
//! It follows no redirect and uses no proxy, so that the token is sent only to the given URL.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::Value;

use crate::model::{Secret, Span};

/// Timeout for a connection to the daemon.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// TCP keep-alive interval, which detects a lost peer on an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The maximum length of an error response in bytes.
const REFUSAL_LEN_MAX: usize = 16 * 1024;

/// A running daemon.
#[derive(Debug)]
pub(super) struct DaemonClient {
    client: Client,
    url: Url,
    token: Option<Secret>,
}

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonRequestError {
    #[error("could not reach {url}")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} did not answer within {within}")]
    TimedOut { url: String, within: Span },
    #[error("{url} returned {status}: {why}")]
    Refused { url: String, status: StatusCode, why: String },
}

impl DaemonRequestError {
    /// Whether a retry of the request may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

impl From<DaemonRequestError> for super::CliError {
    fn from(unanswered: DaemonRequestError) -> Self {
        match unanswered {
            DaemonRequestError::Refused { .. } => Self::Refused(unanswered.to_string()),
            DaemonRequestError::Unreachable { .. } | DaemonRequestError::TimedOut { .. } => {
                Self::Failed(unanswered.into())
            }
        }
    }
}

/// A problem document (RFC 9457): the fields for people.
#[derive(Deserialize)]
struct ProblemBody {
    title: Option<String>,
    detail: Option<String>,
}

impl DaemonClient {
    pub(super) fn new(url: &Url, token: Option<&Secret>) -> anyhow::Result<Self> {
        let builder = Client::builder().connect_timeout(CONNECT_MAX).tcp_keepalive(KEEPALIVE);
        let client = builder.redirect(redirect::Policy::none()).no_proxy().build()?;
        Ok(Self { client, url: url.clone(), token: token.cloned() })
    }

    /// The URL of the daemon, as given.
    pub(super) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Sends a GET request. The response body may be endless.
    ///
    /// # Errors
    ///
    /// The daemon is unreachable, or its status is not a success.
    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        accept: &str,
    ) -> Result<Response, DaemonRequestError> {
        let mut request = self.client.get(format!("{}{path}", self.url())).query(query).header("accept", accept);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await.map_err(|error| self.unreachable_error(error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refused_error(answer).await) }
    }

    /// Sends a request with an optional JSON body. Returns the body of the response, null if it is empty.
    ///
    /// # Errors
    ///
    /// The daemon is unreachable, or its status is not a success.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, DaemonRequestError> {
        let mut request = self.client.request(method, format!("{}{path}", self.url()));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await.map_err(|error| self.unreachable_error(error))?;
        if !answer.status().is_success() {
            return Err(self.refused_error(answer).await);
        }
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        answer.json().await.map_err(|error| self.unreachable_error(error))
    }

    pub(super) fn unreachable_error(&self, error: reqwest::Error) -> DaemonRequestError {
        DaemonRequestError::Unreachable { url: self.url().to_owned(), source: error.without_url() }
    }

    pub(super) fn timeout_error(&self, within: Duration) -> DaemonRequestError {
        DaemonRequestError::TimedOut { url: self.url().to_owned(), within: Span(within) }
    }

    async fn refused_error(&self, mut answer: Response) -> DaemonRequestError {
        let status = answer.status();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > REFUSAL_LEN_MAX {
                break;
            }
        }
        let problem = serde_json::from_slice::<ProblemBody>(&body).ok();
        let detail = problem.and_then(|problem| problem.detail.or(problem.title));
        let why = detail.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
        DaemonRequestError::Refused { url: self.url().to_owned(), status, why: super::tail::printable(&why) }
    }
}

/// Parses the value of `--url`.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| "expected a URL such as http://127.0.0.1:8080".to_owned())
}

/// Parses the value of `--token`.
#[expect(clippy::unnecessary_wraps, reason = "clap requires a parser to return a Result")]
pub(super) fn token(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(Secret::trimmed(text)))
}
