//! REST calls of connectors: the shell adds address and token, bounds the answer, and judges nothing.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, header};

use crate::{
    connector::{Method, RestRequest, RestResponse},
    model::Secret,
    network::{self, HttpLimits, NetworkPolicy, head},
    telemetry::chain,
};

/// From sending to the whole answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A snapshot of a large organisation has a few megabytes.
const BODY_LEN_MAX: usize = 16 << 20;

/// One account's API.
#[derive(Debug, Clone)]
pub(super) struct RestClient {
    client: Client,
    network: NetworkPolicy,
    api_url: String,
    /// The configuration's key of it, for errors.
    api_key: String,
    /// Who may be sent the token: the account's API, and the hosts of URLs in the configuration.
    hosts: Vec<Url>,
}

/// The client of one account's API. It follows no redirects: a token goes to the configured hosts only.
pub(super) fn client(network: &NetworkPolicy) -> reqwest::Result<Client> {
    let limits = HttpLimits { connect: CONNECT_TIMEOUT, total: CALL_TIMEOUT };
    network.http_client(limits).user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION"))).build()
}

impl RestClient {
    /// `configured` are the absolute URLs that the stream's configuration names beside the account's.
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

    /// Carries out a call under a token.
    pub(super) async fn call(&self, request: RestRequest, token: Secret) -> Result<RestResponse, String> {
        let url = self.url(&request.target)?;
        let place = self.display_url(&request.target, &url);
        let request_failed = |error: reqwest::Error| {
            format!("{place}: {}{}", chain(&error.without_url()), self.network.proxy_suffix(&url))
        };
        let response = self.build(url.clone(), request, &token).send().await.map_err(request_failed)?;
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(format!("407 Proxy Authentication Required{}", self.network.proxy_suffix(&url)));
        }
        let too_long = || format!("the response body exceeds {BODY_LEN_MAX} bytes");
        read_response(response).await.map_err(|unread| unread.map_or_else(too_long, request_failed))
    }

    /// Where a call goes. A target may come from the platform's answers: whatever it spells, the token goes to no other
    /// host than configured.
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
        self.network.check_encryption(&url).map_err(|error| error.to_string())?;
        Ok(url)
    }

    /// Where a call goes, as an error names it: the path of a target that is none of its own is named beside it.
    fn display_url(&self, target: &str, url: &Url) -> String {
        if Url::parse(target).is_ok_and(|absolute| absolute.has_host()) {
            return network::without_secrets(url);
        }
        format!("{} ({})", network::origin(url), self.api_key)
    }

    fn build(&self, url: Url, request: RestRequest, token: &Secret) -> RequestBuilder {
        let RestRequest { method, body, .. } = request;
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

/// Reads an answer to its end; the error is none where it is longer than is taken.
async fn read_response(response: Response) -> Result<RestResponse, Option<reqwest::Error>> {
    let status = response.status().as_u16();
    let retry_after = head::retry_after(response.headers());
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Some)?;
        if body.len() + chunk.len() > BODY_LEN_MAX {
            return Err(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(RestResponse { status, retry_after, body: body.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Resolver, Settings, TrustedRoots};

    fn rest(api_url: &str, snapshot_url: &str, insecure: bool) -> RestClient {
        let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
        let network = NetworkPolicy::new(Settings { insecure, ..Settings::default() }, trust, Resolver::default());
        let configured = RestRequest { method: Method::Get, target: snapshot_url.to_owned(), body: None };
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
            // Only where there is no path before it can a target change the host.
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
            assert_eq!(rest.display_url(target, &rest.url(target).unwrap()), place);
        }
    }

    #[test]
    fn plain_text_tokens_need_loopback_or_insecure() {
        assert!(rest("http://127.0.0.1:1", "", false).url("/x").is_ok());
        assert!(rest("http://10.0.0.1:1", "", true).url("/x").is_ok());
        let refused = rest("http://10.0.0.1:1", "", false).url("/x").unwrap_err();
        assert!(refused.contains("plain text") && refused.contains("insecure = true"), "{refused}");
    }
}
