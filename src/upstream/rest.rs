//! REST calls of connectors: the shell adds address and token, bounds the answer, and judges nothing.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response, header, redirect};

use crate::{
    clock,
    connector::{Answer, Method, Request},
    model::Secret,
    protocol::retry_after,
    telemetry::chain,
};

/// From sending to the whole answer.
const CALL_MAX: Duration = Duration::from_secs(15);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A snapshot of a large organisation has a few megabytes.
const BODY_LEN_MAX: usize = 16 << 20;

/// One account's API.
#[derive(Debug, Clone)]
pub(super) struct Rest {
    client: Client,
    api_url: String,
}

/// The client that all streams share. It follows no redirects: a token goes to the configured host only.
pub(super) fn client() -> reqwest::Result<Client> {
    Client::builder()
        .connect_timeout(CONNECT_MAX)
        .timeout(CALL_MAX)
        .redirect(redirect::Policy::none())
        .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Rest {
    pub(super) fn new(client: Client, api_url: &str) -> Self {
        Self { client, api_url: api_url.trim_end_matches('/').to_owned() }
    }

    /// Carries out a call under a token.
    pub(super) async fn call(&self, request: Request, token: Secret) -> Result<Answer, String> {
        let response = self.build(request, &token).send().await.map_err(|error| chain(&error.without_url()))?;
        answer(response).await
    }

    fn build(&self, request: Request, token: &Secret) -> RequestBuilder {
        let Request { method, target, body } = request;
        let url = if target.starts_with("http") { target } else { format!("{}{target}", self.api_url) };
        let builder = match method {
            Method::Get => self.client.get(url),
            Method::Post => self.client.post(url),
            Method::Put => self.client.put(url),
        };
        let builder = builder.bearer_auth(token.expose());
        match body {
            Some(body) => builder.header(header::CONTENT_TYPE, "application/json").body(body),
            None => builder,
        }
    }
}

async fn answer(response: Response) -> Result<Answer, String> {
    let status = response.status().as_u16();
    let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = wait.and_then(|text| retry_after::parse(text, clock::wall()));
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| chain(&error.without_url()))?;
        if body.len() + chunk.len() > BODY_LEN_MAX {
            return Err(format!("an answer of more than {BODY_LEN_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, body: body.into() })
}
