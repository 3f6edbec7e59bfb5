//! The identity of a feed, which is stored with a position.

use std::fmt;

/// The hash of a connector's name and the URL of its events. Topics, credentials and the stream's name do not count.
///
/// It is stored, so it must not change between versions: FNV-1a over the name and the URL. Only ids of one stream are
/// compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedId(pub u64);

impl FeedId {
    /// The feed of this connector and URL.
    pub fn of(connector: &str, url: &str) -> Self {
        let url = normalised(url);
        Self(stable_hash(connector.bytes().chain([0]).chain(url.bytes())))
    }

    /// Parses the output of `Display`.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_hex).map(Self)
    }
}

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// FNV-1a with 64 bits: equal on every machine and in every version.
pub fn stable_hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Scheme and host in lower case, without login, default port and fragment. Path and query are unchanged.
fn normalised(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let scheme = scheme.to_ascii_lowercase();
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let host = host.strip_suffix(default_port(&scheme)).unwrap_or(&host);
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}{slash}{path}")
}

fn default_port(scheme: &str) -> &'static str {
    match scheme {
        "ws" | "http" => ":80",
        "wss" | "https" => ":443",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCED: &str = "genesys-sequenced";
    const URL: &str = "wss://stream.acme.test/v1/feed?group=7";

    /// The value is stored: a change would invalidate every stored position.
    #[test]
    fn the_id_of_a_feed_never_changes() {
        assert_eq!(FeedId::of(SEQUENCED, URL).to_string(), "1d4a1aa9e9cf424b");
    }

    #[test]
    fn a_feed_is_its_connector_and_normalised_url() {
        let feed = FeedId::of(SEQUENCED, URL);
        for (connector, url, is_same) in [
            (SEQUENCED, "WSS://Stream.ACME.test/v1/feed?group=7", true),
            (SEQUENCED, "wss://stream.acme.test:443/v1/feed?group=7", true),
            (SEQUENCED, "wss://user:secret@stream.acme.test/v1/feed?group=7#top", true),
            (SEQUENCED, "ws://stream.acme.test/v1/feed?group=7", false),
            (SEQUENCED, "wss://stream.acme.test:8443/v1/feed?group=7", false),
            (SEQUENCED, "wss://other.acme.test/v1/feed?group=7", false),
            (SEQUENCED, "wss://stream.acme.test/v2/feed?group=7", false),
            (SEQUENCED, "wss://stream.acme.test/v1/feed?group=8", false),
            (SEQUENCED, "wss://stream.acme.test/v1/Feed?group=7", false),
            ("genesys-notifications", URL, false),
        ] {
            assert_eq!(FeedId::of(connector, url) == feed, is_same, "{connector} {url}");
        }
    }

    #[test]
    fn an_empty_path_is_the_root() {
        let root = FeedId::of(SEQUENCED, "https://api.acme.test/");
        assert_eq!(FeedId::of(SEQUENCED, "https://api.acme.test"), root);
        assert_eq!(
            FeedId::of(SEQUENCED, "https://api.acme.test?a=b"),
            FeedId::of(SEQUENCED, "https://api.acme.test/?a=b")
        );
    }

    #[test]
    fn a_stored_id_is_read_as_it_was_written() {
        for feed in [FeedId(0), FeedId(0x2a), FeedId(u64::MAX)] {
            assert_eq!(FeedId::parse(&feed.to_string()), Some(feed));
        }
        for text in ["", "2a", "+00000000000002a", "00000000000000002a", "000000000000002x"] {
            assert_eq!(FeedId::parse(text), None, "{text}");
        }
    }
}
