//! Checks `Origin` and `Host` of requests from browsers. Pure text comparison: no lookup, no wildcard.
//!
//! Two attacks are prevented: a foreign page that opens a socket or sends a form (by `Origin`), and DNS rebinding of a
//! foreign name to a loopback address (by `Host`).

use hyper::{
    HeaderMap, StatusCode, Uri,
    header::{HOST, HeaderName, ORIGIN},
};

use super::problem::{HttpProblem, excerpt};

/// The accepted origins and hosts of a listener.
#[derive(Debug, Clone)]
pub struct Origins {
    /// Allowed origins, compared exactly. Empty: pages of this host and of loopback only.
    pub allowed: Vec<String>,
    /// Allowed hosts in addition to loopback; one without a port matches every port.
    pub hosts: Vec<String>,
    /// The configuration key of the hosts.
    pub hosts_key: &'static str,
    /// The configuration key of the origins; none if no other origin can be allowed.
    pub origins_key: Option<&'static str>,
    /// The listener has a loopback address, so that only loopback names are valid.
    pub loopback: bool,
}

/// Why a request is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("origin not allowed{}", listed_in(*.key))]
    Origin { key: Option<&'static str> },
    #[error("Host header {host:?} not allowed; add the host to {key}")]
    Host { host: String, key: &'static str },
}

fn listed_in(key: Option<&str>) -> String {
    key.map(|key| format!("; add the origin to {key}")).unwrap_or_default()
}

impl OriginError {
    /// The response to the request.
    pub fn problem(&self) -> HttpProblem {
        let (slug, title) = match self {
            Self::Origin { .. } => CROSS_ORIGIN,
            Self::Host { .. } => ("unknown-host", "Host not served"),
        };
        HttpProblem::new(StatusCode::FORBIDDEN, slug, title, self.to_string())
    }
}

/// The response to a state-changing request from a page of another origin.
pub fn cross_origin_problem() -> HttpProblem {
    let (slug, title) = CROSS_ORIGIN;
    HttpProblem::new(StatusCode::FORBIDDEN, slug, title, "this request is not allowed from a page of another origin")
}

const CROSS_ORIGIN: (&str, &str) = ("cross-origin", "Cross-origin request refused");

impl Origins {
    /// Checks a request.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), OriginError> {
        let authority = single_value(headers, HOST);
        if let Some(authority) = authority.filter(|authority| self.loopback && !self.serves_host(authority)) {
            return Err(OriginError::Host { host: excerpt(authority), key: self.hosts_key });
        }
        let host = authority.map(host_name);
        let refused = OriginError::Origin { key: self.origins_key };
        if !headers.contains_key(ORIGIN) {
            return Ok(());
        }
        let origin = single_value(headers, ORIGIN).ok_or(refused.clone())?;
        let admitted = if self.allowed.is_empty() {
            origin_name(origin).is_some_and(|name| is_loopback(name) || Some(name) == host)
        } else {
            self.allowed.iter().any(|allowed| allowed == origin)
        };
        admitted.then_some(()).ok_or(refused)
    }

    /// Whether this host, with or without a port, is valid for the listener.
    fn serves_host(&self, authority: &str) -> bool {
        let name = host_name(authority);
        let is = |listed: &String| listed.eq_ignore_ascii_case(authority) || listed.eq_ignore_ascii_case(name);
        is_loopback(name)
            || self.hosts.iter().any(is)
            || self.allowed.iter().any(|allowed| origin_name(allowed) == Some(name))
    }

    /// The origin of a request, if it is in the list of allowed origins.
    pub fn allowed_origin<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        single_value(headers, ORIGIN).filter(|origin| self.allowed.iter().any(|allowed| allowed == origin))
    }
}

/// The relation of the page that sent a request to its target (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a request comes from a page of this listener or from no page.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    // A browser that sends no origin still states whether the page is of another site.
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "same-origin" && site != "none") {
        return false;
    }
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    let authority =
        single_value(headers, ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    authority.is_some() && authority == single_value(headers, HOST)
}

/// The single value of a header; none if it is missing, repeated or not ASCII.
fn single_value(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// The host of an authority, without its port.
fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => authority,
    }
}

/// The host of an origin; none for `null` and invalid ones.
fn origin_name(origin: &str) -> Option<&str> {
    let (scheme, authority) = origin.split_once("://")?;
    let plain = matches!(scheme, "http" | "https") && !authority.contains(['/', '@', '?', '#']);
    let valid = plain && origin.parse::<Uri>().is_ok();
    valid.then(|| host_name(authority))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    fn origins(hosts: &[&str]) -> Origins {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Origins {
            allowed: Vec::new(),
            hosts,
            hosts_key: "http.allowed_hosts",
            origins_key: Some("http.allowed_origins"),
            loopback: false,
        }
    }

    const NOT_LISTED: OriginError = OriginError::Origin { key: Some("http.allowed_origins") };

    fn not_ours(host: &str) -> OriginError {
        OriginError::Host { host: host.to_owned(), key: "http.allowed_hosts" }
    }

    #[test]
    fn a_listed_host_is_accepted_in_any_case_and_with_its_listed_port() {
        let origins = Origins { loopback: true, ..origins(&["relay.example.com", "other.example.com:8443"]) };
        for (host, admitted) in [
            ("relay.example.com", true),
            ("relay.example.com:443", true),
            ("Relay.Example.COM", true),
            ("other.example.com:8443", true),
            ("other.example.com", false),
            ("other.example.com:443", false),
            ("relay.example.com.evil.test", false),
            ("localhost:9", true),
        ] {
            assert_eq!(origins.check(&headers(host, None)).is_ok(), admitted, "{host}");
        }
        let own_page = headers("relay.example.com", Some("https://relay.example.com"));
        assert_eq!(origins.check(&own_page), Ok(()), "a page of the host that the proxy keeps");
        let foreign = origins.check(&headers("relay.example.com", Some("https://evil.test"))).unwrap_err().to_string();
        assert!(foreign.contains("http.allowed_origins"), "{foreign}");
        let refused = origins.check(&headers("evil.test", None)).unwrap_err().to_string();
        assert!(refused.contains("\"evil.test\"") && refused.contains("http.allowed_hosts"), "{refused}");
    }

    #[test]
    fn only_exactly_listed_origins_are_allowed() {
        let origins = Origins { allowed: vec!["https://dash.example.com".to_owned()], ..origins(&[]) };
        for (origin, admitted) in [
            (None, true),
            (Some("https://dash.example.com"), true),
            (Some("null"), false),
            (Some(""), false),
            (Some("http://dash.example.com"), false),
            (Some("https://dash.example.com:8443"), false),
            (Some("https://dash.example.com.evil.test"), false),
            (Some("https://evil-dash.example.com"), false),
            (Some("https://dash.example.com/"), false),
            (Some("https://DASH.example.com"), false),
            (Some("https://xn--dsh-zna.example.com"), false),
            (Some("http://localhost"), false),
        ] {
            assert_eq!(origins.check(&headers("relay.example.com", origin)).is_ok(), admitted, "{origin:?}");
        }
    }

    #[test]
    fn without_a_list_a_page_must_be_of_this_host_or_of_loopback() {
        let origins = Origins { loopback: true, ..origins(&[]) };
        for (host, origin, admitted) in [
            ("127.0.0.1:8080", None, Ok(())),
            ("localhost:8080", Some("http://localhost:3000"), Ok(())),
            ("127.0.0.1:8080", Some("http://[::1]:3000"), Ok(())),
            ("[::1]:8080", Some("http://127.9.9.9"), Ok(())),
            ("127.0.0.1:8080", Some("http://127.0.0.1.evil.test"), Err(NOT_LISTED)),
            ("127.0.0.1:8080", Some("http://evil.test@localhost"), Err(NOT_LISTED)),
            ("127.0.0.1:8080", Some("https://evil.test"), Err(NOT_LISTED)),
            ("127.0.0.1:8080", Some("null"), Err(NOT_LISTED)),
            ("evil.test:8080", Some("http://evil.test:8080"), Err(not_ours("evil.test:8080"))),
            ("evil.test:8080", None, Err(not_ours("evil.test:8080"))),
        ] {
            assert_eq!(origins.check(&headers(host, origin)), admitted, "{host} {origin:?}");
        }
    }

    #[test]
    fn a_second_origin_header_is_refused() {
        let mut twice = headers("localhost", Some("http://localhost"));
        twice.append(ORIGIN, "https://evil.test".parse().unwrap());
        let origins = Origins { loopback: true, ..origins(&[]) };
        assert_eq!(origins.check(&twice), Err(NOT_LISTED));
        assert!(!is_same_origin(&twice));
    }

    #[test]
    fn a_page_is_our_own_only_with_host_and_port() {
        for (origin, own) in [
            (None, true),
            (Some("http://127.0.0.1:9090"), true),
            (Some("http://127.0.0.1:8080"), false),
            (Some("http://localhost:9090"), false),
            (Some("null"), false),
        ] {
            assert_eq!(is_same_origin(&headers("127.0.0.1:9090", origin)), own, "{origin:?}");
        }
    }
}
