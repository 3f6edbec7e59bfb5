//! The client address behind trusted proxies. Pure.
//!
//! Headers are read from their end, where the nearest proxy wrote, up to the first address that is not a trusted proxy.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use hyper::{
    HeaderMap,
    header::{FORWARDED, HeaderName},
};
use serde::{Deserialize, Serialize};

/// An IP address or a network such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNetwork {
    address: IpAddr,
    prefix: u8,
}

/// A text that is not an IP address or network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an address such as \"10.0.0.7\" or a block such as \"10.0.0.0/8\", found {0:?}")]
pub struct IpNetworkError(String);

impl IpNetwork {
    /// Whether it contains every address of its family.
    pub fn is_everything(self) -> bool {
        self.prefix == 0
    }

    /// Whether it contains an address. IPv4-mapped IPv6 counts as IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for IpNetwork {
    type Err = IpNetworkError;

    fn from_str(text: &str) -> Result<Self, IpNetworkError> {
        let wrong = || IpNetworkError(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), |prefix| prefix.parse().map_err(|_| wrong()))?;
        if prefix > most { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }
}

impl TryFrom<String> for IpNetwork {
    type Error = IpNetworkError;

    fn try_from(text: String) -> Result<Self, IpNetworkError> {
        text.parse()
    }
}

impl From<IpNetwork> for String {
    fn from(network: IpNetwork) -> Self {
        network.to_string()
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.prefix) {
            (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128) => self.address.fmt(f),
            (IpAddr::V4(_) | IpAddr::V6(_), prefix) => write!(f, "{}/{prefix}", self.address),
        }
    }
}

/// Whether this is a trusted proxy.
pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNetwork]) -> bool {
    trusted.iter().any(|network| network.contains(address))
}

/// The header of proxies that do not send `Forwarded`.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client of a request from `peer`. If the two headers disagree, the client sent one of them: both are ignored, and
/// the request counts for the proxy.
pub fn client(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNetwork]) -> IpAddr {
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let standard = headers.contains_key(FORWARDED).then(|| last_untrusted(&forwarded(headers), peer, trusted));
    let usual = headers.contains_key(X_FORWARDED_FOR).then(|| last_untrusted(&x_forwarded_for(headers), peer, trusted));
    match (standard, usual) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(client), _) | (None, Some(client)) => client,
        (None, None) => peer,
    }
}

/// Follows the hops from the nearest, up to the first that is not a trusted proxy. An invalid hop counts for the last
/// valid one.
fn last_untrusted(hops: &[Option<IpAddr>], peer: IpAddr, trusted: &[IpNetwork]) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        let Some(address) = hop else { return client };
        client = *address;
        if !is_trusted(client, trusted) {
            return client;
        }
    }
    client
}

/// The `for` of each element of `Forwarded` (RFC 7239), nearest hop first; none for one that is not an address.
fn forwarded(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let address = |element: &str| {
        let pairs = unquoted_split(element, ';');
        let mut pairs = pairs.into_iter().filter_map(|pair| pair.trim().split_once('='));
        let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
        node_address(node.trim().trim_matches('"'))
    };
    nearest_first(headers, FORWARDED).flat_map(|line| hops(&unquoted_split(&line, ','), address)).collect()
}

fn x_forwarded_for(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let address = |hop: &str| node_address(hop.trim());
    let lines = nearest_first(headers, X_FORWARDED_FOR);
    lines.flat_map(|line| hops(&line.rsplit(',').collect::<Vec<_>>(), address)).collect()
}

/// The lines of a header, last first. Invalid bytes of a farther hop do not affect nearer ones.
fn nearest_first(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Cow<'_, str>> {
    headers.get_all(name).into_iter().rev().map(|line| String::from_utf8_lossy(line.as_bytes()))
}

fn hops(elements: &[&str], address: impl Fn(&str) -> Option<IpAddr>) -> Vec<Option<IpAddr>> {
    elements.iter().map(|element| address(element)).collect()
}

/// Splits at separators outside of quotes, last piece first. It reads from the end, so that an unclosed quote of a client
/// does not affect what the proxy appended.
fn unquoted_split(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    let split = text.rsplit(|found: char| {
        quoted ^= found == '"';
        found == separator && !quoted
    });
    split.collect()
}

/// An address with or without a port and brackets.
fn node_address(node: &str) -> Option<IpAddr> {
    let bracketed = node.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _)| address);
    let address = node.parse().ok().or_else(|| bracketed?.parse().ok());
    let address = address.or_else(|| node.parse().ok().map(|socket: SocketAddr| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// The unit of the per-address limit: an IPv4 address, or the /64 network of an IPv6 address.
pub(super) fn share_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted() -> Vec<IpNetwork> {
        ["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap()).into()
    }

    fn client_of(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        client(&map, peer.parse().unwrap(), &trusted()).to_string()
    }

    #[test]
    fn the_nearest_trusted_proxy_names_the_client() {
        for (peer, headers, client) in [
            ("127.0.0.1", vec![], "127.0.0.1"),
            ("127.0.0.1", vec![("x-forwarded-for", "192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "192.0.2.7:4711")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "[2a00::1]:4711")], "2a00::1"),
            ("127.0.0.1", vec![("x-forwarded-for", "2a00::1")], "2a00::1"),
            ("127.0.0.1", vec![("x-forwarded-for", "6.6.6.6, 192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "192.0.2.7, 10.1.1.1")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "192.0.2.7, unknown")], "127.0.0.1"),
            ("127.0.0.1", vec![("x-forwarded-for", "")], "127.0.0.1"),
            ("127.0.0.1", vec![("forwarded", "for=192.0.2.7;proto=http;by=10.0.0.1")], "192.0.2.7"),
            ("127.0.0.1", vec![("forwarded", "proto=http; For=\"[2a00::1]:4711\"")], "2a00::1"),
            ("127.0.0.1", vec![("forwarded", "for=\"6.6.6.6, for=7.7.7.7\", for=192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("forwarded", "for=192.0.2.7, for=_hidden")], "127.0.0.1"),
            // An unclosed quote of a client does not affect what the proxy appended.
            ("127.0.0.1", vec![("forwarded", "for=6.6.6.6;x=\", for=192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("forwarded", "for=6.6.6.6\";x=é, for=192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("x-forwarded-for", "é, 192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("forwarded", "for=192.0.2.7"), ("x-forwarded-for", "192.0.2.7")], "192.0.2.7"),
            ("127.0.0.1", vec![("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.7")], "127.0.0.1"),
            ("2001:db8::5", vec![("x-forwarded-for", "192.0.2.7")], "192.0.2.7"),
            ("::ffff:10.9.9.9", vec![("x-forwarded-for", "192.0.2.7")], "192.0.2.7"),
            ("192.0.2.99", vec![("x-forwarded-for", "6.6.6.6")], "192.0.2.99"),
        ] {
            assert_eq!(client_of(peer, &headers), client, "{peer} {headers:?}");
        }
    }

    #[test]
    fn a_network_is_an_address_or_a_block() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.6", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("::1", "::1", true),
            ("fd00::/8", "fd12::1", true),
        ] {
            let network: IpNetwork = network.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), inside, "{network} {address}");
        }
        for wrong in ["", "localhost", "10.0.0.0/33", "10.0.0.0/", "::1/129", "10.0.0.0/8/8", "10.0.0/8"] {
            assert!(wrong.parse::<IpNetwork>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_addresses_of_an_ipv6_host_share_one_limit() {
        let share = |text: &str| share_key(text.parse().unwrap()).to_string();
        assert_eq!(share("2a00:1:2:3:4:5:6:7"), "2a00:1:2:3::");
        assert_eq!(share("2a00:1:2:3::1"), "2a00:1:2:3::");
        assert_eq!(share("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
