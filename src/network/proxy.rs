//! Selects the proxy of a connection: the account's, else the environment's. Pure: it reads no environment.

use std::{fmt, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::Peer;
use crate::{listener::IpNetwork, model::Secret};

/// The setting for direct connections; it overrides the environment.
pub const NO_PROXY: &str = "none";

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Without login and path.
    url: Url,
    login: Option<ProxyLogin>,
}

/// User and password, percent-encoded as in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProxyLogin {
    user: String,
    password: Secret,
}

/// The proxies of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http` and `ws`.
    plain: Option<Proxy>,
    /// For `https` and `wss`.
    encrypted: Option<Proxy>,
    bypass: Vec<BypassRule>,
}

/// A destination that is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BypassRule {
    host: HostPattern,
    /// None: every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Every,
    /// The domain and all below it, in lower case.
    Domain(String),
    Network(IpNetwork),
}

/// Why a text is not a proxy. It does not contain the text, which may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("expected the URL of an HTTP proxy such as \"http://proxy.example.com:3128\"")]
    NotAUrl,
    #[error("only http:// and https:// proxies are supported; expected one such as \"http://proxy.example.com:3128\"")]
    Scheme,
}

/// An environment variable that is not a valid proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {cause}")]
pub struct EnvironmentError {
    pub variable: &'static str,
    pub cause: ProxyError,
}

impl Proxy {
    /// Parses `http://[USER:PASSWORD@]HOST[:PORT]`. The default scheme is `http`.
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim();
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let mut url = Url::parse(&with_scheme).map_err(|_| ProxyError::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ProxyError::Scheme);
        }
        let login = ProxyLogin::of(&url);
        url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| ProxyError::NotAUrl)?;
        url.set_path("");
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self { url, login })
    }

    pub(super) fn peer(&self) -> Peer {
        Peer::of(&self.url).expect("a URL of http has a host and a port")
    }

    /// The value of `Proxy-Authorization`.
    pub fn authorization(&self) -> Option<String> {
        let ProxyLogin { user, password } = self.login.as_ref()?;
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
        let login = format!("{}:{}", decoded(user), decoded(password.expose()));
        Some(format!("Basic {}", STANDARD.encode(login)))
    }

    /// The URL with its encoded login, for the HTTP client.
    pub fn url_with_login(&self) -> Url {
        let mut url = self.url.clone();
        if let Some(ProxyLogin { user, password }) = &self.login {
            let set = url.set_username(user).and_then(|()| url.set_password(Some(password.expose())));
            set.expect("a URL of http can have a login");
        }
        url
    }
}

impl ProxyLogin {
    fn of(url: &Url) -> Option<Self> {
        let password = url.password().unwrap_or_default();
        let given = !url.username().is_empty() || !password.is_empty();
        given.then(|| Self { user: url.username().to_owned(), password: Secret::new(password) })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url.origin().ascii_serialization())
    }
}

impl Proxies {
    /// No proxy for anything.
    pub fn none() -> Self {
        Self::default()
    }

    /// One proxy for everything except these destinations.
    pub fn all(proxy: &Proxy, except: &[String]) -> Self {
        let (plain, encrypted) = (Some(proxy.clone()), Some(proxy.clone()));
        Self { plain, encrypted, bypass: except.iter().filter_map(|text| BypassRule::parse(text)).collect() }
    }

    /// The proxies of the environment. `variable` reads a variable. A lower-case name takes precedence, and an empty value
    /// counts as unset.
    pub fn of_environment<'a>(
        variable: impl Fn(&str) -> Option<&'a str>,
        except: &[String],
    ) -> Result<Self, EnvironmentError> {
        let value = |name: &str| {
            let found = variable(&name.to_lowercase()).or_else(|| variable(name));
            found.map(str::trim).filter(|text| !text.is_empty())
        };
        let proxy = |name: &'static str| {
            let parsed = value(name).map(Proxy::parse).transpose();
            parsed.map_err(|cause| EnvironmentError { variable: name, cause })
        };
        let all = proxy("ALL_PROXY")?;
        let plain = proxy("HTTP_PROXY")?.or_else(|| all.clone());
        let encrypted = proxy("HTTPS_PROXY")?.or(all);
        let listed = value("NO_PROXY").unwrap_or_default().split([',', ' ', '\t']);
        let except = listed.chain(except.iter().map(String::as_str)).filter_map(BypassRule::parse);
        Ok(Self { plain, encrypted, bypass: except.collect() })
    }

    /// The proxy for a URL; none for loopback.
    pub fn of(&self, url: &Url) -> Option<&Proxy> {
        let proxy = match url.scheme() {
            "https" | "wss" => self.encrypted.as_ref(),
            _ => self.plain.as_ref(),
        };
        let proxy = proxy?;
        let peer = Peer::of(url)?;
        let direct = is_loopback(url) || self.bypass.iter().any(|except| except.covers(&peer));
        (!direct).then_some(proxy)
    }
}

impl BypassRule {
    /// `*`, a domain, an address or a network, with or without a port; none for an empty text.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
                Ok(port) => (host, Some(port)),
                Err(_) => (text, None),
            },
            Some(_) | None => (text, None),
        };
        HostPattern::parse(host.trim_matches(['[', ']'])).map(|host| Self { host, port })
    }

    fn covers(&self, peer: &Peer) -> bool {
        self.port.is_none_or(|port| port == peer.port) && self.host.covers(&peer.host)
    }
}

impl HostPattern {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(network) = text.parse() {
            return Some(Self::Network(network));
        }
        // A text with a slash is an invalid network, not a domain.
        if text.contains('/') {
            return None;
        }
        match text.strip_prefix('*').unwrap_or(text).trim_matches('.') {
            "" if text == "*" => Some(Self::Every),
            "" => None,
            domain => Some(Self::Domain(domain.to_ascii_lowercase())),
        }
    }

    fn covers(&self, host: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Domain(domain) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Network(network) => host.parse().is_ok_and(|address| network.contains(address)),
        }
    }
}

/// Whether a text is a valid `no_proxy` entry.
pub fn is_bypass_rule(text: &str) -> bool {
    BypassRule::parse(text).is_some()
}

/// Whether the host of a URL is loopback, without name resolution.
pub fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.of(&Url::parse(url).unwrap()).map(ToString::to_string)
    }

    fn environment(variables: &[(&'static str, &'static str)]) -> Proxies {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        Proxies::of_environment(find, &[]).unwrap()
    }

    #[test]
    fn each_scheme_has_its_variable_in_either_case() {
        let all = [("ALL_PROXY", "http://all:1")];
        let each = [("https_proxy", "http://s:1"), ("HTTP_PROXY", "p:2"), ("ALL_PROXY", "http://all:1")];
        let both = [("https_proxy", "http://small:1"), ("HTTPS_PROXY", "http://capital:1"), ("http_proxy", " ")];
        // variables; for https, wss, http, ws
        let table = [
            (&each[..], [Some("http://s:1"), Some("http://s:1"), Some("http://p:2"), Some("http://p:2")]),
            (&all, [Some("http://all:1"); 4]),
            (&both, [Some("http://small:1"), Some("http://small:1"), None, None]),
            (&[], [None; 4]),
        ];
        for (variables, expected) in table {
            let proxies = environment(variables);
            let found = ["https://a.test/", "wss://a.test/", "http://a.test/", "ws://a.test/"]
                .map(|url| through(&proxies, url));
            assert_eq!(found.each_ref().map(Option::as_deref), expected, "{variables:?}");
        }
    }

    #[test]
    fn exceptions_and_this_machine_are_reached_directly() {
        let listed = "internal.test,.corp.test *.dev.test,10.1.0.0/16,192.168.1.7,[fd00::1],port.test:8443,,bad/99";
        let proxies = environment(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", listed)]);
        for direct in [
            "https://internal.test/",
            "https://a.INTERNAL.test/",
            "wss://corp.test/",
            "wss://x.corp.test:99/",
            "https://a.dev.test/",
            "https://10.1.255.1/",
            "https://192.168.1.7:8443/",
            "https://[fd00::1]/",
            "https://port.test:8443/",
            "https://localhost:1/",
            "https://app.localhost/",
            "http://127.9.9.9/",
            "ws://[::1]:80/",
            "ws://[::ffff:127.0.0.1]/",
        ] {
            assert_eq!(through(&proxies, direct), None, "{direct}");
        }
        for proxied in [
            "https://notinternal.test/",
            "https://internal.test.evil.test/",
            "https://10.2.0.1/",
            "https://192.168.1.8/",
            "https://[fd00::2]/",
            "https://port.test/",
            "https://localhost.evil.test/",
        ] {
            assert_eq!(through(&proxies, proxied).as_deref(), Some("http://p:1"), "{proxied}");
        }
        let everything = environment(&[("ALL_PROXY", "http://p:1"), ("no_proxy", "*")]);
        assert_eq!(through(&everything, "https://a.test/"), None);
    }

    #[test]
    fn an_account_proxy_skips_loopback_and_bypass_rules() {
        let proxy = Proxy::parse("https://user:p%40ss+w@proxy.test").unwrap();
        let proxies = Proxies::all(&proxy, &["api.test".to_owned()]);
        assert_eq!(through(&proxies, "wss://a.test/").as_deref(), Some("https://proxy.test"));
        assert_eq!(through(&proxies, "https://api.test/"), None);
        assert_eq!(through(&proxies, "http://127.0.0.1:1/"), None);
        assert_eq!(through(&Proxies::none(), "https://a.test/"), None);
    }

    #[test]
    fn a_proxys_password_is_sent_and_never_shown() {
        let proxy = Proxy::parse("http://user:p%40ss+w@proxy.test:3128/ignored?x").unwrap();
        // "user:p@ss+w"
        assert_eq!(proxy.authorization().as_deref(), Some("Basic dXNlcjpwQHNzK3c="));
        assert_eq!(proxy.to_string(), "http://proxy.test:3128");
        assert!(!format!("{proxy:?}").contains("ss+w"), "{proxy:?}");
        assert_eq!(proxy.url_with_login().as_str(), "http://user:p%40ss+w@proxy.test:3128/");
    }

    #[test]
    fn a_login_is_decoded_once_wherever_it_is_sent() {
        for (written, login) in [("u%2541:p%2540", "u%41:p%40"), ("u:p%+a", "u:p%+a"), ("u:50%", "u:50%")] {
            let proxy = Proxy::parse(&format!("http://{written}@proxy.test")).unwrap();
            assert_eq!(proxy.authorization(), Some(format!("Basic {}", STANDARD.encode(login))), "{written}");
            assert_eq!(Proxy::parse(proxy.url_with_login().as_str()), Ok(proxy), "{written}");
        }
    }

    #[test]
    fn an_invalid_proxy_is_rejected_without_being_quoted() {
        for (text, expected) in [
            ("socks5://user:secret@proxy:1080", ProxyError::Scheme),
            ("http://", ProxyError::NotAUrl),
            ("http://user:secret@:1", ProxyError::NotAUrl),
            ("a b", ProxyError::NotAUrl),
            ("", ProxyError::NotAUrl),
        ] {
            assert_eq!(Proxy::parse(text), Err(expected), "{text}");
            assert!(!expected.to_string().contains("secret"));
        }
        let find = |name: &str| (name == "HTTPS_PROXY").then_some("socks5://p:1");
        let error = Proxies::of_environment(find, &[]).unwrap_err();
        assert!(error.to_string().starts_with("HTTPS_PROXY: only http:// and https:// proxies"), "{error}");
    }
}
