//! Formats of single strings: addresses, URLs, origins, domains.
//!
//! Messages never contain a string that may hold a password.

use reqwest::Url;

use super::listen::ListenAddress;
use crate::{
    listener::{IpNetwork, is_authority},
    model::StreamName,
    network::proxy::{self, Proxy},
    store::redis::address::Address,
};

/// The prefix is part of every Redis key.
const PREFIX_LEN_MAX: usize = 64;

/// Checks a string against its format; the error states what is expected. A format without a rule accepts any string.
pub(super) fn validate(format: &str, text: &str) -> Result<(), String> {
    match format {
        "address" => ListenAddress::try_from(text.to_owned()).map(drop),
        "name" => text.parse::<StreamName>().map(drop).map_err(|error| error.to_string()),
        "host" => host(text),
        "network" => text.parse::<IpNetwork>().map(drop).map_err(|error| error.to_string()),
        "http-url" => url(text, ["http", "https"]),
        "ws-url" => url(text, ["ws", "wss"]),
        "origin" => origin(text),
        "domain" => domain(text),
        "redis-url" => text.parse::<Address>().map(drop).map_err(|error| error.to_string()),
        "prefix" => prefix(text),
        "proxy-url" => proxy(text),
        "proxy-exception" => proxy_exception(text),
        _ => Ok(()),
    }
}

fn host(text: &str) -> Result<(), String> {
    let plain = is_authority(text) && !text.contains('*');
    plain
        .then_some(())
        .ok_or_else(|| format!("expected a host such as \"relay.example.com\", with or without a port, found {text:?}"))
}

fn url(text: &str, schemes: [&str; 2]) -> Result<(), String> {
    let expected = || format!("expected a URL that begins with {}:// or {}://", schemes[1], schemes[0]);
    let url = Url::parse(text).map_err(|_| expected())?;
    if !schemes.contains(&url.scheme()) {
        return Err(format!("{}, found {}:", expected(), url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("contains a user name or password; set the credentials in the account".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a fragment (#…), which is never sent; remove it".to_owned());
    }
    Ok(())
}

fn origin(text: &str) -> Result<(), String> {
    let plain = Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    let web = text.starts_with("http://") || text.starts_with("https://");
    if plain && web {
        return Ok(());
    }
    Err(format!(
        "expected an origin such as \"https://dash.example.com\", without path and without default port, found {text:?}"
    ))
}

fn domain(text: &str) -> Result<(), String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if text.contains('.') && text.split('.').all(label) {
        return Ok(());
    }
    Err(format!("expected a domain such as \"mypurecloud.com\" or \"usw2.pure.cloud\", found {text:?}"))
}

fn proxy(text: &str) -> Result<(), String> {
    match text == proxy::NO_PROXY {
        true => Ok(()),
        false => Proxy::parse(text).map(drop).map_err(|error| format!("{error}, or \"none\"")),
    }
}

fn proxy_exception(text: &str) -> Result<(), String> {
    match proxy::is_bypass_rule(text) {
        true => Ok(()),
        false => {
            Err(format!("expected a domain, an address, a network such as \"10.0.0.0/8\", or \"*\", found {text:?}"))
        }
    }
}

/// Braces would set the cluster slot of a key, and a space would end an ACL pattern.
fn prefix(text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    if (1..=PREFIX_LEN_MAX).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("expected 1 to {PREFIX_LEN_MAX} letters, digits, '.', '_', '-' or ':', found {text:?}"))
}

/// The URL of a Redis or of a proxy without its credentials.
pub(super) fn redact_credentials(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        (Some(_) | None, _) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_validated_by_their_format() {
        for (format, good) in [
            ("address", "[::1]:0"),
            ("address", "localhost:8080"),
            ("host", "relay.example.com"),
            ("host", "relay.example.com:8443"),
            ("network", "10.0.0.0/8"),
            ("network", "::1"),
            ("http-url", "https://api.mypurecloud.com/base"),
            ("ws-url", "ws://127.0.0.1:1/x?y=z"),
            ("origin", "http://localhost:3000"),
            ("domain", "usw2.pure.cloud"),
            ("redis-url", "rediss+sentinel://u:p@a,b:5/main"),
            ("prefix", "acme:trunkline"),
            ("proxy-url", "http://user:pass@proxy.test:3128"),
            ("proxy-url", "none"),
            ("proxy-exception", "10.0.0.0/8"),
            ("proxy-exception", ".corp.test"),
        ] {
            assert_eq!(validate(format, good), Ok(()), "{format} {good}");
        }
        for (format, bad) in [
            ("address", "localhost"),
            ("host", "https://relay.example.com"),
            ("host", "*.example.com"),
            ("host", ""),
            ("network", "10.0.0.0/33"),
            ("network", "localhost"),
            ("http-url", "wss://x"),
            ("http-url", "x"),
            ("http-url", "https://user:secret@x/"),
            ("ws-url", "wss://x/#part"),
            ("origin", "https://x/"),
            ("origin", "https://x:443"),
            ("origin", "*"),
            ("domain", "us_east_1"),
            ("domain", "https://mypurecloud.com"),
            ("redis-url", "redis://:secret@a:x"),
            ("redis-url", "secret"),
            ("prefix", "{a}"),
            ("prefix", ""),
            ("proxy-url", "socks5://secret@proxy.test"),
            ("proxy-url", ""),
            ("proxy-exception", "10.0.0.0/99"),
            ("proxy-exception", ""),
        ] {
            assert!(validate(format, bad).is_err_and(|text| !text.contains("secret")), "{format} {bad}");
        }
    }
}
