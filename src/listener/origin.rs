//! Who a browser may act for. Pure text comparison: no lookup, no wildcard.
//!
//! Two attacks are refused: a foreign page that opens a socket or sends a form to us (its `Origin` tells), and a
//! foreign name that was re-bound to a loopback address (its `Host` tells).

use hyper::{
    HeaderMap, Uri,
    header::{HOST, HeaderName, ORIGIN},
};

/// What is let in.
#[derive(Debug, Clone)]
pub struct Origins {
    /// Origins as browsers write them, compared exactly. Empty: pages of this host and of loopback only.
    pub allowed: Vec<String>,
    /// The listener is on a loopback address, so only a loopback name can rightly lead to it.
    pub loopback: bool,
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    #[error("pages of this origin may not use this listener")]
    Origin,
    #[error("this listener does not go by that host name")]
    Host,
}

impl Origins {
    /// Lets a request in, or tells why not.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Foreign> {
        let host = text(headers, HOST).map(name_of);
        let known =
            |host: &str| is_loopback(host) || self.allowed.iter().any(|allowed| origin_name(allowed) == Some(host));
        if self.loopback && host.is_some_and(|host| !known(host)) {
            return Err(Foreign::Host);
        }
        if !headers.contains_key(ORIGIN) {
            return Ok(());
        }
        let origin = text(headers, ORIGIN).ok_or(Foreign::Origin)?;
        let admitted = if self.allowed.is_empty() {
            origin_name(origin).is_some_and(|name| is_loopback(name) || Some(name) == host)
        } else {
            self.allowed.iter().any(|allowed| allowed == origin)
        };
        admitted.then_some(()).ok_or(Foreign::Origin)
    }

    /// The origin of a request, where it is one that is named as allowed.
    pub fn named<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        text(headers, ORIGIN).filter(|origin| self.allowed.iter().any(|allowed| allowed == origin))
    }
}

/// Whether a request that changes something comes from a page of this very listener, or from no page at all.
pub fn is_own(headers: &HeaderMap) -> bool {
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    let authority = text(headers, ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    authority.is_some() && authority == text(headers, HOST)
}

/// The one value of a header; none when it is missing, repeated or not plain text.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// The host of an authority, without its port.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => authority,
    }
}

/// The host of an origin; none for `null` and for what no browser sends.
fn origin_name(origin: &str) -> Option<&str> {
    let (scheme, authority) = origin.split_once("://")?;
    let plain = matches!(scheme, "http" | "https") && !authority.contains(['/', '@', '?', '#']);
    let valid = plain && origin.parse::<Uri>().is_ok();
    valid.then(|| name_of(authority))
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

    #[test]
    fn only_listed_origins_are_let_in_and_exactly() {
        let origins = Origins { allowed: vec!["https://dash.example.com".to_owned()], loopback: false };
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
            assert_eq!(origins.admit(&headers("relay.example.com", origin)).is_ok(), admitted, "{origin:?}");
        }
    }

    #[test]
    fn without_a_list_a_page_must_be_of_this_host_or_of_loopback() {
        let origins = Origins { allowed: Vec::new(), loopback: true };
        for (host, origin, admitted) in [
            ("127.0.0.1:8080", None, Ok(())),
            ("localhost:8080", Some("http://localhost:3000"), Ok(())),
            ("127.0.0.1:8080", Some("http://[::1]:3000"), Ok(())),
            ("[::1]:8080", Some("http://127.9.9.9"), Ok(())),
            ("127.0.0.1:8080", Some("http://127.0.0.1.evil.test"), Err(Foreign::Origin)),
            ("127.0.0.1:8080", Some("http://evil.test@localhost"), Err(Foreign::Origin)),
            ("127.0.0.1:8080", Some("https://evil.test"), Err(Foreign::Origin)),
            ("127.0.0.1:8080", Some("null"), Err(Foreign::Origin)),
            ("evil.test:8080", Some("http://evil.test:8080"), Err(Foreign::Host)),
            ("evil.test:8080", None, Err(Foreign::Host)),
        ] {
            assert_eq!(origins.admit(&headers(host, origin)), admitted, "{host} {origin:?}");
        }
    }

    #[test]
    fn a_second_origin_header_is_refused() {
        let mut twice = headers("localhost", Some("http://localhost"));
        twice.append(ORIGIN, "https://evil.test".parse().unwrap());
        let origins = Origins { allowed: Vec::new(), loopback: true };
        assert_eq!(origins.admit(&twice), Err(Foreign::Origin));
        assert!(!is_own(&twice));
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
            assert_eq!(is_own(&headers("127.0.0.1:9090", origin)), own, "{origin:?}");
        }
    }
}
