//! Connection errors: the failed step, the peer, the proxy and the cause.

use std::{fmt, time::Duration};

use reqwest::Url;

use super::Proxy;

/// Maximum length of a cause, which is text from outside.
const CAUSE_LEN_MAX: usize = 300;

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
    cause: String,
    proxy: Option<String>,
}

impl ConnectError {
    pub(super) fn new(step: ConnectStep, cause: impl AsRef<str>) -> Self {
        Self { step, cause: printable(cause.as_ref()), proxy: None }
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
        if let Some(proxy) = &self.proxy {
            write!(f, " through the proxy {proxy}")?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for ConnectError {}

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

/// Text from outside, without control characters and of bounded length.
pub(super) fn printable(text: &str) -> String {
    let shown = text.chars().take(CAUSE_LEN_MAX);
    shown.flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_step_peer_proxy_and_cause_on_one_line() {
        let step = ConnectStep::Tls("a.test".to_owned());
        let error = ConnectError::new(step, "invalid\r\ncertificate");
        assert_eq!(error.to_string(), r"TLS handshake with a.test: invalid\r\ncertificate");
        let proxy = Proxy::parse("http://user:secret@proxy.test:3128").unwrap();
        let error = ConnectError::new(ConnectStep::Tunnel("a.test:443".to_owned()), "the proxy answered 407");
        let error = error.through(Some(&proxy)).to_string();
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
        let error = ConnectError::plain_text(&url).to_string();
        assert!(
            error.starts_with("ws://a.test:81: ") && error.contains("wss://") && !error.contains("secret"),
            "{error}"
        );
    }
}
