//! Connection errors: the failed step, the peer, the proxy and the cause.

use std::{error::Error, fmt, time::Duration};

use reqwest::Url;

use super::Proxy;
use crate::telemetry::{Cause, printable};

/// A step of connecting, with its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConnectStep {
    Resolve(String),
    Tcp(String),
    Tunnel(String),
    Tls(String),
    /// The URL was rejected before anything was sent.
    Check(String),
}

/// A failed attempt to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    step: ConnectStep,
    cause: Cause,
    proxy: Option<String>,
}

impl ConnectError {
    pub(super) fn new(step: ConnectStep, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { step, cause: Cause::new(cause), proxy: None }
    }

    pub(super) fn timed_out(step: ConnectStep, waited: Duration) -> Self {
        Self::new(step, format!("not done within {:.1} s", waited.as_secs_f64()))
    }

    pub(super) fn plain_text(url: &Url) -> Self {
        let safe = if url.scheme().starts_with("ws") { "wss" } else { "https" };
        let cause = format!(
            "credentials would be sent to another machine in plain text; use {safe}://, or set \
             insecure = true for the account of a closed test network"
        );
        Self::new(ConnectStep::Check(origin(url)), cause)
    }

    pub(super) fn no_host(url: &Url) -> Self {
        Self::new(ConnectStep::Check(origin(url)), "the URL has no host and port")
    }

    pub(super) fn through(self, proxy: Option<&Proxy>) -> Self {
        Self { proxy: proxy.map(ToString::to_string), ..self }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            ConnectStep::Resolve(host) => write!(f, "name resolution of {host}")?,
            ConnectStep::Tcp(addresses) => write!(f, "TCP connection to {addresses}")?,
            ConnectStep::Tunnel(target) => write!(f, "CONNECT to {target}")?,
            ConnectStep::Tls(host) => write!(f, "TLS handshake with {host}")?,
            ConnectStep::Check(origin) => write!(f, "{origin}")?,
        }
        match &self.proxy {
            Some(proxy) => write!(f, " through the proxy {proxy}"),
            None => Ok(()),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

/// A URL without login, query and fragment, which may contain a secret.
pub fn without_secrets(url: &Url) -> String {
    format!("{}{}", origin(url), printable(url.path()))
}

/// Scheme, host and port of a URL whose path may contain a secret.
pub fn origin(url: &Url) -> String {
    let host = printable(url.host_str().unwrap_or_default());
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{host}{port}", url.scheme())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    #[test]
    fn an_error_names_step_peer_proxy_and_cause_on_one_line() {
        let step = ConnectStep::Tls("a.test".to_owned());
        let error = ConnectError::new(step, "invalid\r\ncertificate");
        assert_eq!(chain(&error), r"TLS handshake with a.test: invalid\r\ncertificate");
        let proxy = Proxy::parse("http://user:secret@proxy.test:3128").unwrap();
        let error = ConnectError::new(ConnectStep::Tunnel("a.test:443".to_owned()), "the proxy answered 407");
        let error = chain(&error.through(Some(&proxy)));
        assert_eq!(error, "CONNECT to a.test:443 through the proxy http://proxy.test:3128: the proxy answered 407");
    }

    #[test]
    fn a_url_in_an_error_has_no_login_and_no_query() {
        let url = Url::parse("https://user:secret@a.test:81/oauth/token?key=secret#secret").unwrap();
        assert_eq!(without_secrets(&url), "https://a.test:81/oauth/token");
        assert_eq!(origin(&url), "https://a.test:81");
    }

    #[test]
    fn an_error_about_a_url_hides_its_path_and_query() {
        let url = Url::parse("ws://a.test:81/channel?auth_token=secret").unwrap();
        let error = chain(&ConnectError::plain_text(&url));
        assert!(
            error.starts_with("ws://a.test:81: ") && error.contains("wss://") && !error.contains("secret"),
            "{error}"
        );
    }
}
