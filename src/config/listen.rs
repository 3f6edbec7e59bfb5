//! The address of a listener: an address and port, or a host name and port, which is resolved once.
//!
//! A name that cannot be resolved in time is an error: a configuration is either valid or invalid.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    sync::mpsc::sync_channel,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The timeout of a name lookup.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// An address and port as written, and the resolved addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress {
    text: String,
    /// Never empty; IPv4 first.
    addresses: Vec<SocketAddr>,
}

impl ListenAddress {
    /// The address to bind: the first IPv4 address, else the first address.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The first address that other machines can reach.
    pub(super) fn exposed(&self) -> Option<SocketAddr> {
        self.addresses.iter().copied().find(|address| !address.ip().is_loopback())
    }

    /// Whether both would use the same port of the same address.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (own, other) = (self.address(), other.address());
        let same = own.ip() == other.ip() || own.ip().is_unspecified() || other.ip().is_unspecified();
        own.port() == other.port() && own.port() != 0 && same
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self { text: address.to_string(), addresses: vec![address] }
    }
}

impl From<ListenAddress> for String {
    fn from(listen: ListenAddress) -> Self {
        listen.text
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { text, addresses: vec![address] });
        }
        let named = text.rsplit_once(':').filter(|(name, port)| is_host_name(name) && port.parse::<u16>().is_ok());
        if named.is_none() {
            return Err(format!("expected an address and port such as \"127.0.0.1:8080\", found {text:?}"));
        }
        let mut addresses = resolve(&text).map_err(|why| {
            format!("the name in {text:?} could not be resolved ({why}); write an address such as \"127.0.0.1:8080\"")
        })?;
        addresses.sort_by_key(|address| !address.is_ipv4());
        Ok(Self { text, addresses })
    }
}

fn is_host_name(text: &str) -> bool {
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    // Only digits and dots: a mistyped address.
    text.bytes().any(|byte| byte.is_ascii_alphabetic()) && text.trim_end_matches('.').split('.').all(label)
}

/// Resolves a name on a separate thread, because the system's resolver has no timeout.
fn resolve(text: &str) -> Result<Vec<SocketAddr>, String> {
    let (sender, found) = sync_channel(1);
    let asked = text.to_owned();
    let thread = thread::Builder::new().name("look-up".to_owned());
    let asking = thread.spawn(move || {
        let addresses = asked.to_socket_addrs().map(Vec::from_iter);
        // After the timeout there is no receiver.
        sender.send(addresses.map_err(|error| error.to_string())).ok();
    });
    asking.map_err(|error| error.to_string())?;
    let addresses = found.recv_timeout(LOOKUP_MAX).map_err(|_| format!("no answer within {LOOKUP_MAX:?}"))??;
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Result<ListenAddress, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn an_address_or_a_name_with_a_port_is_accepted() {
        assert_eq!(listen("127.0.0.1:8080").unwrap().address(), ([127, 0, 0, 1], 8080).into());
        assert_eq!(listen("[::1]:0").unwrap().to_string(), "[::1]:0");
        let local = listen("localhost:8080").unwrap();
        assert!(local.address().ip().is_loopback() && local.address().port() == 8080);
        assert_eq!((local.to_string().as_str(), local.exposed()), ("localhost:8080", None));
    }

    #[test]
    fn an_invalid_address_is_rejected_with_an_example() {
        for text in ["", "localhost", "localhost:", "localhost:x", "127.0.0.1", "1.2.3:80", "127.0.0.1:99999", "a b:80"]
        {
            let wrong = listen(text).unwrap_err();
            assert!(wrong.contains("127.0.0.1:8080"), "{text}: {wrong}");
        }
        let unknown = listen("no-such-host.invalid:80").unwrap_err();
        assert!(unknown.contains("no-such-host.invalid") && unknown.contains("127.0.0.1:8080"), "{unknown}");
    }

    #[test]
    fn listeners_overlap_when_they_use_the_same_port() {
        for (one, other, overlaps) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "localhost:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(listen(one).unwrap().overlaps(&listen(other).unwrap()), overlaps, "{one} {other}");
        }
    }
}
