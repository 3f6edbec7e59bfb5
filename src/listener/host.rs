//! Validates the `Host` of a request (RFC 9112 section 3.2). Pure.
//!
//! It rejects HTTP/1.1 without a `Host`, several `Host` headers, and an invalid one: a proxy might read them differently.
//! `origin` checks whether the host is served here.

use std::net::Ipv6Addr;

use hyper::{
    HeaderMap, StatusCode, Version,
    header::{HOST, HeaderValue},
};

use super::problem::{HttpProblem, excerpt};

/// A request without exactly one valid host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("HTTP/1.1 requires a Host header, such as Host: 127.0.0.1:8080")]
    Missing,
    #[error("the Host header occurs {0} times; send it once")]
    Repeated(usize),
    #[error("the Host header is empty; send a host with an optional port, such as 127.0.0.1:8080")]
    Empty,
    #[error("the Host header {0:?} is not a host with an optional port, such as 127.0.0.1:8080")]
    Malformed(String),
    #[error("the host {0:?} of the request target is not a host with an optional port")]
    Target(String),
}

impl From<HostError> for HttpProblem {
    fn from(error: HostError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-host", "Invalid Host header", error.to_string())
    }
}

/// Checks that the request has one valid host.
pub fn check(version: Version, headers: &HeaderMap) -> Result<(), HostError> {
    let mut values = headers.get_all(HOST).iter();
    match (values.next(), values.count()) {
        (None, _) if version < Version::HTTP_11 => Ok(()),
        (None, _) => Err(HostError::Missing),
        (Some(value), 0) if value.is_empty() => Err(HostError::Empty),
        (Some(value), 0) => {
            let text = value.to_str().ok().filter(|text| is_authority(text));
            text.map(drop).ok_or_else(|| HostError::Malformed(excerpt(&String::from_utf8_lossy(value.as_bytes()))))
        }
        (Some(_), others) => Err(HostError::Repeated(others + 1)),
    }
}

/// Replaces the header by the host of an absolute request target (RFC 9112 section 3.2.2).
pub fn replace(headers: &mut HeaderMap, target: &str) -> Result<(), HostError> {
    let host = HeaderValue::from_str(target).ok().filter(|_| is_authority(target));
    headers.insert(HOST, host.ok_or_else(|| HostError::Target(excerpt(target)))?);
    Ok(())
}

/// `uri-host [ ":" port ]` of RFC 3986, without `IPvFuture`.
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<Ipv6Addr>().is_ok() => (address, rest),
            Some(_) | None => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
    let named = text.starts_with('[') || host.bytes().all(plain);
    let numbered = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    !host.is_empty() && named && numbered
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && (text.is_empty() || text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(version: Version, hosts: &[&[u8]]) -> Result<(), HostError> {
        check(version, &headers(hosts))
    }

    fn headers(hosts: &[&[u8]]) -> HeaderMap {
        let value = |host: &&[u8]| (HOST, hyper::header::HeaderValue::from_bytes(host).unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in hosts.iter().map(value) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_request_names_one_well_formed_host() {
        let good: [&[u8]; 9] = [
            b"localhost",
            b"localhost:8080",
            b"localhost:",
            b"127.0.0.1:0",
            b"[::1]",
            b"[::1]:65535",
            b"relay_1.example.com",
            b"relay.example.com.",
            b"a%20b",
        ];
        for host in good {
            assert_eq!(checked(Version::HTTP_11, &[host]), Ok(()), "{}", String::from_utf8_lossy(host));
        }
        let bad: [&[u8]; 13] = [
            b"a b",
            b"a/b",
            b"user@a",
            b"a:b",
            b"a:1:2",
            b"a:65536",
            b":80",
            b"[::1",
            b"[::1]x",
            b"[local]",
            b"::1",
            b"http://a",
            b"\xc3\xbc",
        ];
        for host in bad {
            let refused = checked(Version::HTTP_11, &[host]);
            assert!(matches!(refused, Err(HostError::Malformed(_))), "{}: {refused:?}", String::from_utf8_lossy(host));
        }
    }

    #[test]
    fn a_missing_a_repeated_and_an_empty_host_are_refused() {
        assert_eq!(checked(Version::HTTP_11, &[]), Err(HostError::Missing));
        assert_eq!(checked(Version::HTTP_10, &[]), Ok(()), "HTTP/1.0 does not require it");
        assert_eq!(checked(Version::HTTP_11, &[b""]), Err(HostError::Empty));
        assert_eq!(checked(Version::HTTP_11, &[b"a", b"a"]), Err(HostError::Repeated(2)));
        assert_eq!(checked(Version::HTTP_10, &[b"a", b"b", b"c"]), Err(HostError::Repeated(3)));
    }

    #[test]
    fn the_host_of_an_absolute_target_replaces_the_header() {
        let mut replaced = headers(&[b"localhost"]);
        assert_eq!(replace(&mut replaced, "evil.test:80"), Ok(()));
        assert_eq!(replaced.get_all(HOST).iter().collect::<Vec<_>>(), ["evil.test:80"]);
        assert_eq!(replace(&mut replaced, "user@localhost"), Err(HostError::Target("user@localhost".to_owned())));
    }

    #[test]
    fn a_malformed_host_is_quoted_bounded_and_escaped() {
        let refused = checked(Version::HTTP_11, &[&[b"a\" ".as_slice(), &[b'x'; 5_000]].concat()]).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("a\\\" xxx") && text.len() < 300, "{text}");
    }
}
