//! How a command talks to a running daemon: plain HTTP requests, and a refusal as a person can read it.
//!
//! It follows no redirect and uses no proxy: the token goes where the operator said, and nowhere else.

use std::time::Duration;

use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::model::{Secret, Span};

/// A daemon that does not take a connection within this is not there.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A peer that vanished is noticed although nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How much of a refusal is read.
const REFUSAL_LEN_MAX: usize = 16 * 1024;

/// A running daemon.
#[derive(Debug)]
pub(super) struct DaemonClient {
    client: Client,
    url: Url,
    token: Option<Secret>,
}

/// A request was not answered as it was meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonRequestError {
    #[error("could not reach {url}")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} did not answer within {within}")]
    TimedOut { url: String, within: Span },
    #[error("{url} answered {status}: {why}")]
    Refused { url: String, status: StatusCode, why: String },
}

impl DaemonRequestError {
    /// Whether the same request may be answered later.
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

/// RFC 9457: the parts that a person reads.
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

    /// Where it is, as it was given.
    pub(super) fn url(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// A request whose answer may go on for ever.
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

/// A URL as `--url` takes it.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| "expected a URL such as http://127.0.0.1:8080".to_owned())
}

/// A token as `--token` takes it.
#[expect(clippy::unnecessary_wraps, reason = "the shape that the command line's parsers have")]
pub(super) fn token(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(Secret::trimmed(text)))
}
