//! Token requests: one POST each, limited in time and bytes, to the configured URL only.
//!
//! It follows no redirects and does not retry. Errors never contain a body.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use form_urlencoded::byte_serialize;
use reqwest::{
    Response,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue},
};

use super::{
    ClientAuth, Grant, OAuthClient, Settings,
    refresh_token_store::{RefreshTokenStore, RotatedToken, ancestor},
    secrets::Secrets,
    token_response::{OAuthError, TokenResponse, TokenResponseBody, TokenResponseError},
};
use crate::{
    clock,
    model::{Exchange, Secret, StatusMeaning, Timestamp},
    network::{self, HttpLimits, NetworkPolicy, head},
    protocol::{
        refresh::{
            GrantFailure,
            lifetime::{Lifetime, LifetimeSource},
        },
        retry_after,
    },
    telemetry::chain,
};

/// Timeout of a whole token request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of it that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers are a few KiB; reading stops here.
const BODY_LEN_MAX: usize = 64 * 1024;

/// Requests tokens for one account.
#[derive(Debug)]
pub(super) struct TokenSource {
    grant: Grant,
    token_url: String,
    scope: String,
    lifetime_default: Duration,
    http: reqwest::Client,
    /// The URL without secrets and its configuration key, for errors.
    endpoint: String,
    /// The proxy of the token endpoint.
    proxy: Option<String>,
    secrets: Secrets,
    refresh_tokens: RefreshTokenStore,
}

/// A token and its lifetime; the lifetime of a static token is unknown.
#[derive(Debug)]
pub(super) struct GrantedToken {
    pub(super) secret: Secret,
    pub(super) lifetime: Option<Lifetime>,
}

/// Why a token request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GrantError {
    #[error("cannot read a secret of the account")]
    Secret(#[from] crate::secrets::SecretError),
    #[error("cannot reach the token endpoint")]
    Unreachable(#[source] reqwest::Error),
    #[error("POST {endpoint}")]
    Request { endpoint: String, source: Box<Self> },
    #[error("answered {0} without an OAuth error code; check that the URL is a token endpoint")]
    NoEndpoint(u16),
    #[error("token request through the proxy {proxy}")]
    Proxied { proxy: String, source: Box<Self> },
    #[error("the token endpoint answered {0}")]
    Status(u16),
    #[error("the token endpoint limits the request rate ({status}{})", pause_text(*.pause))]
    Throttled { status: u16, pause: Option<Duration> },
    #[error("the token endpoint's answer is longer than {BODY_LEN_MAX} bytes")]
    TooLong,
    #[error("the token endpoint's answer ({status}, content type {content_type}) cannot be used")]
    Unusable {
        status: u16,
        content_type: String,
        #[source]
        cause: TokenResponseError,
    },
    #[error("the token endpoint rejects the credentials ({status} {code})")]
    Rejected { status: u16, code: &'static str },
    #[error("the platform rejects the static token; replace it")]
    StaticRefused,
}

impl GrantError {
    /// Adds the URL of the request.
    fn at(self, endpoint: &str) -> Self {
        Self::Request { endpoint: endpoint.to_owned(), source: Box::new(self) }
    }

    /// Adds the proxy of the request.
    fn through(self, proxy: Option<&str>) -> Self {
        match proxy {
            Some(proxy) => Self::Proxied { proxy: proxy.to_owned(), source: Box::new(self) },
            None => self,
        }
    }

    fn uncoded(status: u16) -> Self {
        Self::Rejected { status, code: "without a known code" }
    }

    pub(super) fn failure(&self) -> GrantFailure {
        match self {
            Self::Throttled { pause, .. } => GrantFailure::Throttled(*pause),
            Self::Proxied { source, .. } | Self::Request { source, .. } => source.failure(),
            Self::Rejected { .. } | Self::StaticRefused => GrantFailure::Rejected,
            Self::Secret(_)
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::NoEndpoint(_)
            | Self::TooLong
            | Self::Unusable { .. } => GrantFailure::Unreachable,
        }
    }
}

impl TokenSource {
    /// Builds the HTTP client. Opens no connection.
    pub(super) fn new(
        settings: &Settings,
        network: &NetworkPolicy,
        request_max: Duration,
    ) -> Result<Self, reqwest::Error> {
        let limits = HttpLimits { connect: CONNECT_TIMEOUT, total: request_max };
        // Some servers send gzip although it is not requested.
        let http = network.http_client(limits).gzip(true).pool_max_idle_per_host(0).build()?;
        Ok(Self {
            grant: settings.grant.clone(),
            token_url: settings.token_url.clone(),
            scope: settings.scope.clone(),
            lifetime_default: settings.lifetime_default,
            http,
            endpoint: endpoint_name(settings),
            proxy: network.proxy_name(&settings.token_url),
            secrets: Secrets::default(),
            refresh_tokens: RefreshTokenStore::new(&settings.refresh_token_dir, &settings.account),
        })
    }

    /// Sends one token request. `refused` is the current token, if the platform rejects it.
    pub(super) async fn fetch(&mut self, refused: Option<Secret>) -> Result<GrantedToken, GrantError> {
        match self.grant.clone() {
            Grant::ClientCredentials(client) => {
                let answer = self.request_token(&client, vec![("grant_type", "client_credentials".to_owned())]).await?;
                Ok(self.granted_token(answer))
            }
            Grant::RefreshToken { client, refresh_token } => {
                let configured = self.secrets.read(&refresh_token).await?;
                self.exchange(&client, &configured).await
            }
            Grant::Static { token } => {
                let secret = self.secrets.read(&token).await?;
                if refused.as_ref() == Some(&secret) {
                    return Err(GrantError::StaticRefused);
                }
                Ok(GrantedToken { secret, lifetime: None })
            }
        }
    }

    /// Whether a secret file has changed since it was used.
    pub(super) async fn have_changed(&mut self) -> bool {
        self.secrets.have_changed().await
    }

    /// Whether a sent request must be awaited: it may have consumed the refresh token.
    pub(super) fn must_finish(&self) -> bool {
        matches!(self.grant, Grant::RefreshToken { .. })
    }

    /// The digest that identifies the configured refresh token among replicas; none for other grants.
    pub(super) async fn refresh_token_id(&mut self) -> Option<String> {
        Some(ancestor(&self.configured().await?))
    }

    /// The newest rotated refresh token.
    pub(super) async fn rotated(&mut self) -> Option<RotatedToken> {
        let configured = self.configured().await?;
        self.refresh_tokens.current(&configured).await.cloned()
    }

    /// Stores a refresh token that another replica received.
    pub(super) async fn store_shared_token(&mut self, rotated: RotatedToken) {
        let Some(configured) = self.configured().await else { return };
        if let Err(error) = self.refresh_tokens.store_if_newer(&configured, rotated).await {
            tracing::error!(
                error = chain(&error),
                "cannot store the refresh token of another replica; kept in memory only"
            );
        }
    }

    async fn configured(&mut self) -> Option<Secret> {
        match self.grant.clone() {
            Grant::RefreshToken { refresh_token, .. } => self.secrets.read(&refresh_token).await.ok(),
            Grant::ClientCredentials(_) | Grant::Static { .. } => None,
        }
    }

    async fn exchange(&mut self, client: &OAuthClient, configured: &Secret) -> Result<GrantedToken, GrantError> {
        let newest = self.refresh_tokens.newest(configured).await;
        let form = vec![("grant_type", "refresh_token".to_owned()), ("refresh_token", newest.expose().to_owned())];
        let mut answer = self.request_token(client, form).await?;
        if let Some(rotated) = answer.refresh_token.take().filter(|rotated| *rotated != newest) {
            // Store it before the access token is used: a crash in between would lose the only valid refresh token.
            if let Err(error) = self.refresh_tokens.store_rotated(configured, rotated).await {
                tracing::error!(
                    error = chain(&error),
                    "cannot store the rotated refresh token; it is lost when this process ends"
                );
            }
        }
        Ok(self.granted_token(answer))
    }

    async fn request_token(
        &mut self,
        client: &OAuthClient,
        mut form: Vec<(&'static str, String)>,
    ) -> Result<TokenResponse, GrantError> {
        let id = self.secrets.read(&client.id).await?;
        let secret = self.secrets.read(&client.secret).await?;
        if !self.scope.is_empty() {
            form.push(("scope", self.scope.clone()));
        }
        let request = self.http.post(&self.token_url);
        let request = match client.placement {
            ClientAuth::Basic => request.header(AUTHORIZATION, basic(&id, &secret)),
            ClientAuth::Body => {
                form.push(("client_id", id.expose().to_owned()));
                form.push(("client_secret", secret.expose().to_owned()));
                request
            }
        };
        let request = request.header(ACCEPT, "application/json").header(ACCEPT_ENCODING, "identity");
        let response = match request.form(&form).send().await {
            Ok(response) => parse_response(response).await,
            Err(error) => Err(unreachable(error)),
        };
        response.map_err(|error| error.at(&self.endpoint).through(self.proxy.as_deref()))
    }

    fn granted_token(&self, answer: TokenResponse) -> GrantedToken {
        let lifetime = Lifetime::resolve(&answer.lifetime_hints, self.lifetime_default);
        let lifetime_secs = lifetime.scheduled.as_secs();
        match (answer.lifetime_hints.expires_in, lifetime.source) {
            (_, LifetimeSource::Answer) | (None, LifetimeSource::Claims) => (),
            (Some(expires_in), LifetimeSource::Claims | LifetimeSource::Default) => {
                let source = lifetime.source.as_str();
                tracing::warn!(
                    expires_in,
                    lifetime_secs,
                    lifetime_from = source,
                    "expires_in below two seconds ignored"
                );
            }
            (None, LifetimeSource::Default) => {
                tracing::warn!(lifetime_secs, "token lifetime unknown; using the default");
            }
        }
        GrantedToken { secret: answer.access_token, lifetime: Some(lifetime) }
    }
}

/// The token URL in errors.
fn endpoint_name(settings: &Settings) -> String {
    let url = reqwest::Url::parse(&settings.token_url).map(|url| network::without_secrets(&url));
    format!("{} (accounts.{}.token_url)", url.unwrap_or_default(), settings.account)
}

/// The value of `Authorization`. Id and secret are form-encoded first (RFC 6749 section 2.3.1): either may have a colon.
fn basic(id: &Secret, secret: &Secret) -> HeaderValue {
    let encoded = |secret: &Secret| byte_serialize(secret.expose().as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encoded(id), encoded(secret));
    let mut value =
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).expect("base64 is a header's text");
    value.set_sensitive(true);
    value
}

/// Parses a response. An `error` in the body takes precedence over the status.
async fn parse_response(response: Response) -> Result<TokenResponse, GrantError> {
    let status = response.status().as_u16();
    let server_date = header(&response, &DATE).and_then(retry_after::http_date);
    log_skew(server_date);
    let pause = head::retry_after(response.headers());
    let meaning = StatusMeaning::of(Exchange::TokenRequest, status, pause);
    let content_type = content_type(&response);
    let body = match read_body(response).await {
        Ok(body) => TokenResponseBody::read(&body),
        Err(error) if meaning == StatusMeaning::Success => return Err(error),
        // The status is sufficient.
        Err(_) => None,
    };
    if let Some(error) = failure(status, meaning, body.as_ref().and_then(TokenResponseBody::oauth_error), pause) {
        return Err(error);
    }
    let answer = body.ok_or(TokenResponseError::Shape).and_then(|body| body.token_response(server_date));
    answer.map_err(|cause| GrantError::Unusable { status, content_type, cause })
}

/// Why the response has no token. None if it should have one.
fn failure(
    status: u16,
    meaning: StatusMeaning,
    refusal: Option<OAuthError>,
    pause: Option<Duration>,
) -> Option<GrantError> {
    match (refusal, meaning) {
        (Some(OAuthError::Request(Some(code))), _) => Some(GrantError::Rejected { status, code }),
        (_, StatusMeaning::Throttled(pause)) => Some(GrantError::Throttled { status, pause }),
        (Some(OAuthError::Server), _) if pause.is_some() => Some(GrantError::Throttled { status, pause }),
        (_, StatusMeaning::Transient) | (Some(OAuthError::Server), _) => Some(GrantError::Status(status)),
        (None, StatusMeaning::Success) => None,
        (Some(OAuthError::Request(None)), StatusMeaning::Success) => Some(GrantError::uncoded(status)),
        (None | Some(OAuthError::Request(None)), StatusMeaning::Unauthenticated) => Some(GrantError::uncoded(status)),
        // A token endpoint would send an error code.
        (None | Some(OAuthError::Request(None)), StatusMeaning::Refused) => Some(GrantError::NoEndpoint(status)),
    }
}

/// The content type in errors, printable and bounded.
fn content_type(response: &Response) -> String {
    let Some(stated) = header(response, &CONTENT_TYPE) else { return "not stated".to_owned() };
    let printable = stated.chars().filter(|letter| letter.is_ascii_graphic() || *letter == ' ');
    printable.take(CONTENT_TYPE_LEN_MAX).collect()
}

/// Maximum length of a content type in an error.
const CONTENT_TYPE_LEN_MAX: usize = 80;

fn pause_text(pause: Option<Duration>) -> String {
    pause.map(|pause| format!(", Retry-After {} s", pause.as_secs())).unwrap_or_default()
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, GrantError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > BODY_LEN_MAX {
            return Err(GrantError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unreachable(error: reqwest::Error) -> GrantError {
    GrantError::Unreachable(error.without_url())
}

fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Logs the clock skew to the platform, to relate the logs of both systems.
fn log_skew(date: Option<Timestamp>) {
    if let Some(date) = date {
        let skew_ms = clock::wall().0.saturating_sub(date.0);
        tracing::debug!(skew_ms, "clock skew to the platform");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_secret_are_form_encoded_before_they_are_joined() {
        let value = basic(&Secret::new("app:1 ä"), &Secret::new("s%c+r&t=*-._~"));
        assert!(value.is_sensitive());
        let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
        assert_eq!(pair, "app%3A1+%C3%A4:s%25c%2Br%26t%3D*-._%7E");
    }
}
