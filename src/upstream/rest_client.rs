//! Requests of connectors, REST calls and polls: adds address and token, limits the response size.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};

use crate::{
    connector::{Credential, Method, RestRequest, RestResponse},
    model::Secret,
    network::{self, HttpLimits, NetworkPolicy, head},
    telemetry::chain,
};

/// Timeout from sending the request to the end of the response.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum response body. The snapshot of a large organisation has a few megabytes.
const BODY_LEN_MAX: usize = 16 << 20;

/// One account's API.
#[derive(Debug, Clone)]
pub(super) struct RestClient {
    client: Client,
    network: NetworkPolicy,
    api_url: String,
    /// The configuration key of the URL, for errors.
    api_key: String,
    /// Hosts that may receive the token: the account's API and the hosts of configured URLs.
    hosts: Vec<Url>,
}

/// The HTTP client of an account's API. It does not follow redirects: a token is sent to configured hosts only.
pub(super) fn client(network: &NetworkPolicy) -> reqwest::Result<Client> {
    let limits = HttpLimits { connect: CONNECT_TIMEOUT, total: CALL_TIMEOUT };
    network.http_client(limits).user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION"))).build()
}

impl RestClient {
    /// `configured` has the absolute URLs of the stream's configuration.
    pub(super) fn new(
        client: Client,
        network: NetworkPolicy,
        api_url: &str,
        api_key: String,
        configured: &[RestRequest],
    ) -> Self {
        let api_url = api_url.trim_end_matches('/').to_owned();
        let targets = configured.iter().map(|request| request.target.as_str()).chain([api_url.as_str()]);
        let hosts = targets.filter_map(|target| Url::parse(target).ok()).collect();
        Self { client, network, api_url, api_key, hosts }
    }

    /// Sends a request with a token and reads the response. The error is the reason as text.
    pub(super) async fn call(&self, request: RestRequest, token: Secret) -> Result<RestResponse, String> {
        let response = self.open(request, &Credential::Header, &token, CALL_TIMEOUT).await?;
        response.read(BODY_LEN_MAX).await.map_err(|unread| match unread {
            UnreadBody::TooLong => format!("the response body exceeds {BODY_LEN_MAX} bytes"),
            UnreadBody::Lost(why) => why,
        })
    }

    /// Sends a request with a token and reads the head of the response. `within` is the timeout until the end of the
    /// body.
    pub(super) async fn open(
        &self,
        request: RestRequest,
        credential: &Credential,
        token: &Secret,
        within: Duration,
    ) -> Result<OpenResponse, String> {
        let mut url = self.url(&request.target)?;
        let shown = self.display_url(&request.target, &url, credential);
        let place = RequestPlace { shown, proxy: self.network.proxy_suffix(&url) };
        if let Credential::Query(parameter) = credential {
            url.query_pairs_mut().append_pair(parameter, token.expose());
        }
        let header = (*credential == Credential::Header).then_some(token);
        let sent = self.build(url, request, header).timeout(within).send().await;
        let response = sent.map_err(|error| place.failed(error))?;
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(format!("407 Proxy Authentication Required{}", place.proxy));
        }
        Ok(OpenResponse { response, place })
    }

    /// The URL of a target. A target may come from a response of the platform, so its host must be a configured one.
    fn url(&self, target: &str) -> Result<Url, String> {
        let absolute = Url::parse(target).ok().filter(Url::has_host);
        let url = match absolute {
            Some(url) => url,
            None => {
                Url::parse(&format!("{}{target}", self.api_url)).map_err(|error| format!("invalid URL: {error}"))?
            }
        };
        let has_login = !url.username().is_empty() || url.password().is_some();
        if has_login || !self.hosts.iter().any(|host| host.origin() == url.origin()) {
            let origin = url.origin().ascii_serialization();
            return Err(format!("{origin} is not a host of the account's API; token not sent"));
        }
        self.network.check_encryption(&url).map_err(|error| chain(&error))?;
        Ok(url)
    }

    /// The URL in errors: scheme, host and path of an absolute target, else the API's origin and its configuration key. A
    /// URL that contains a credential is shown without its path.
    fn display_url(&self, target: &str, url: &Url, credential: &Credential) -> String {
        if *credential == Credential::InUrl {
            return network::origin(url);
        }
        if Url::parse(target).is_ok_and(|absolute| absolute.has_host()) {
            return network::without_secrets(url);
        }
        format!("{} ({})", network::origin(url), self.api_key)
    }

    fn build(&self, url: Url, request: RestRequest, token: Option<&Secret>) -> RequestBuilder {
        let RestRequest { method, body, .. } = request;
        let builder = match method {
            Method::Get => self.client.get(url),
            Method::Post => self.client.post(url),
            Method::Put => self.client.put(url),
        };
        let builder = match token {
            Some(token) => builder.bearer_auth(token.expose()),
            None => builder,
        };
        match body {
            Some(body) => builder.header(header::CONTENT_TYPE, "application/json").body(body),
            None => builder,
        }
    }
}

/// A response whose body is not read yet.
#[derive(Debug)]
pub(super) struct OpenResponse {
    response: Response,
    place: RequestPlace,
}

/// Where a request went, for errors.
#[derive(Debug)]
struct RequestPlace {
    shown: String,
    /// The suffix that names the proxy.
    proxy: String,
}

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum UnreadBody {
    TooLong,
    Lost(String),
}

impl OpenResponse {
    /// Reads the body, up to a limit in bytes.
    pub(super) async fn read(self, len_max: usize) -> Result<RestResponse, UnreadBody> {
        let Self { response, place } = self;
        let status = response.status().as_u16();
        let retry_after = head::retry_after(response.headers());
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| UnreadBody::Lost(place.failed(error)))?;
            if body.len() + chunk.len() > len_max {
                return Err(UnreadBody::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(RestResponse { status, retry_after, body: body.into() })
    }
}

impl RequestPlace {
    fn failed(&self, error: reqwest::Error) -> String {
        format!("{}: {}{}", self.shown, chain(&error.without_url()), self.proxy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Resolver, Settings, TrustedRoots};

    fn rest(api_url: &str, snapshot_url: &str, insecure: bool) -> RestClient {
        let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
        let network = NetworkPolicy::new(Settings { insecure, ..Settings::default() }, trust, Resolver::default());
        let configured = RestRequest::get(snapshot_url);
        RestClient::new(client(&network).unwrap(), network, api_url, "accounts.a.api_url".to_owned(), &[configured])
    }

    #[test]
    fn a_token_goes_to_configured_hosts_only() {
        let rest = rest("https://api.test/base/", "https://snapshots.test/all", false);
        for (target, expected) in [
            ("/v2/users?page=2", Some("https://api.test/base/v2/users?page=2")),
            ("https://api.test/v2/users", Some("https://api.test/v2/users")),
            ("HTTPS://API.TEST/v2", Some("https://api.test/v2")),
            ("https://snapshots.test/all?x", Some("https://snapshots.test/all?x")),
            ("https://evil.test/v2/users", None),
            ("https://api.test:8443/v2/users", None),
            ("https://user@api.test/v2/users", None),
            ("http://api.test/v2/users", None),
            ("httpx://evil.test/", None),
            ("//evil.test/", Some("https://api.test/base//evil.test/")),
            ("@evil.test/", None),
            (".evil.test/", None),
            (":1/", None),
        ] {
            // A target can change the host only if the base URL has no path.
            let found = if target.starts_with(['@', '.', ':']) {
                self::rest("https://api.test", "", false)
            } else {
                rest.clone()
            };
            assert_eq!(found.url(target).ok().as_ref().map(Url::as_str), expected, "{target}");
        }
    }

    #[test]
    fn an_error_names_the_host_of_a_call_its_key_and_no_query() {
        let rest = rest("https://api.test/base/", "https://snapshots.test/all", false);
        for (target, place) in [
            ("/v2/users?page=2", "https://api.test (accounts.a.api_url)"),
            ("https://snapshots.test/all?x=secret", "https://snapshots.test/all"),
        ] {
            assert_eq!(rest.display_url(target, &rest.url(target).unwrap(), &Credential::Header), place);
        }
        let secret = rest.url("https://snapshots.test/secret").unwrap();
        assert_eq!(rest.display_url(secret.as_str(), &secret, &Credential::InUrl), "https://snapshots.test");
    }

    #[test]
    fn plain_text_tokens_need_loopback_or_insecure() {
        assert!(rest("http://127.0.0.1:1", "", false).url("/x").is_ok());
        assert!(rest("http://10.0.0.1:1", "", true).url("/x").is_ok());
        let refused = rest("http://10.0.0.1:1", "", false).url("/x").unwrap_err();
        assert!(refused.contains("plain text") && refused.contains("insecure = true"), "{refused}");
    }
}
