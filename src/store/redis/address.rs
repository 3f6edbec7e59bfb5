//! The address of Redis: parsed from a URL, and printed without its password.

use std::{borrow::Cow, fmt, str::FromStr};

use percent_encoding::percent_decode_str;

use crate::model::Secret;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A server, a primary that Sentinels find by name, or a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub topology: Topology,
    /// One server, or some of the Sentinels or of the cluster's nodes; the client finds the rest.
    pub hosts: Vec<RedisHost>,
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub database: i64,
    /// The login for the Sentinels, where it differs from the server's. Not part of a URL.
    pub sentinels: Option<RedisLogin>,
}

/// A password and its user; without a user, the default user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisLogin {
    pub user: Option<String>,
    pub password: Secret,
}

/// How the primary is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// The primary is the host.
    Single,
    /// The Sentinels name the primary of this name.
    Sentinel { primary: String },
    /// Each key has its own primary.
    Cluster,
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisHost {
    pub name: String,
    pub port: u16,
}

impl RedisHost {
    /// Whether traffic to this host stays on this machine.
    pub fn is_loopback(&self) -> bool {
        self.name == "localhost" || self.name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for RedisHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

/// The text is not a Redis address. The error never repeats the text, which may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "expected redis://, rediss://, redis+sentinel://, rediss+sentinel://, redis-cluster:// or rediss-cluster://"
    )]
    Scheme,
    #[error("expected HOST or HOST:PORT after the scheme{0}")]
    Host(&'static str),
    #[error("expected the name of the primary at the Sentinels, as in redis+sentinel://HOST:PORT/NAME")]
    Primary,
    #[error("expected the number of a database, such as redis://HOST/0 or ?db=0")]
    Database,
    #[error("a cluster has only one database; remove the path")]
    ClusterDatabase,
    #[error("a percent sign in user or password must be followed by two hexadecimal digits")]
    Percent,
    #[error("the only supported query parameter is db=NUMBER")]
    Query,
}

impl Address {
    /// Whether user or password would travel unencrypted over a network.
    pub fn exposes_credentials(&self) -> bool {
        self.password.is_some() && !self.tls && !self.is_loopback()
    }

    /// The login for the server.
    pub fn login(&self) -> Option<RedisLogin> {
        self.password.clone().map(|password| RedisLogin { user: self.user.clone(), password })
    }

    /// Whether both addresses lead to the same data, with any login.
    pub fn is_same_server(&self, other: &Self) -> bool {
        let place = |address: &Self| (address.topology.clone(), address.hosts.clone(), address.tls, address.database);
        place(self) == place(other)
    }

    /// Whether all configured hosts are on this machine.
    pub fn is_loopback(&self) -> bool {
        self.hosts.iter().all(RedisHost::is_loopback)
    }
}

/// The address without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        let hosts = self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.topology {
            Topology::Single => write!(f, "redis{s}://{hosts}/{}", self.database),
            Topology::Sentinel { primary } => write!(f, "redis{s}+sentinel://{hosts}/{primary}?db={}", self.database),
            Topology::Cluster => write!(f, "redis{s}-cluster://{hosts}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Scheme {
    Single,
    Sentinel,
    Cluster,
}

fn scheme(text: &str) -> Result<(Scheme, bool), AddressError> {
    match text {
        "redis" => Ok((Scheme::Single, false)),
        "rediss" => Ok((Scheme::Single, true)),
        "redis+sentinel" => Ok((Scheme::Sentinel, false)),
        "rediss+sentinel" => Ok((Scheme::Sentinel, true)),
        "redis-cluster" => Ok((Scheme::Cluster, false)),
        "rediss-cluster" => Ok((Scheme::Cluster, true)),
        _ => Err(AddressError::Scheme),
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (before, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
        let (scheme, tls) = scheme(before)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let port = match scheme {
            Scheme::Single | Scheme::Cluster => PORT,
            Scheme::Sentinel => SENTINEL_PORT,
        };
        let hosts = hosts.split(',').map(|text| host(text, port)).collect::<Result<Vec<_>, _>>()?;
        let requested = database(query)?;
        let (kind, database) = match scheme {
            Scheme::Single if hosts.len() > 1 => return Err(AddressError::Host("; a single server has one host")),
            Scheme::Single => (Topology::Single, if path.is_empty() { requested } else { Some(number(path)?) }),
            Scheme::Sentinel if path.is_empty() => return Err(AddressError::Primary),
            Scheme::Sentinel => (Topology::Sentinel { primary: unescape(path)? }, requested),
            Scheme::Cluster if !path.is_empty() || requested.is_some() => return Err(AddressError::ClusterDatabase),
            Scheme::Cluster => (Topology::Cluster, None),
        };
        Ok(Self {
            topology: kind,
            hosts,
            tls,
            user: (!user.is_empty()).then(|| unescape(user)).transpose()?,
            password: (!password.is_empty()).then(|| unescape(password)).transpose()?.map(Secret::new),
            database: database.unwrap_or(0),
            sentinels: None,
        })
    }
}

fn host(text: &str, port: u16) -> Result<RedisHost, AddressError> {
    let refused = || AddressError::Host("");
    let (name, digits) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, after) = rest.split_once(']').ok_or_else(refused)?;
            (name, after.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(name, digits)| (name, Some(digits))),
    };
    let port = digits.map_or(Ok(port), str::parse).map_err(|_| AddressError::Host("; a port is 1 to 65535"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if name.is_empty() || port == 0 || !name.chars().all(plain) {
        return Err(refused());
    }
    Ok(RedisHost { name: name.to_owned(), port })
}

fn database(query: &str) -> Result<Option<i64>, AddressError> {
    match query.split_once('=') {
        None if query.is_empty() => Ok(None),
        Some(("db", digits)) => number(digits).map(Some),
        None | Some(_) => Err(AddressError::Query),
    }
}

fn number(digits: &str) -> Result<i64, AddressError> {
    digits.parse().ok().filter(|number| *number >= 0).ok_or(AddressError::Database)
}

/// Decodes percent-encoding: `%41` is `A`. A percent sign without two digits is refused.
fn unescape(text: &str) -> Result<String, AddressError> {
    let is_digit = |digit: Option<&u8>| digit.is_some_and(u8::is_ascii_hexdigit);
    let is_code = |after: &[u8]| is_digit(after.first()) && is_digit(after.get(1));
    let mut codes = text.split('%').skip(1).map(str::as_bytes);
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| codes.all(is_code));
    decoded.map(Cow::into_owned).ok_or(AddressError::Percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_printed_without_its_login() {
        for (text, printed) in [
            ("redis://localhost", "redis://localhost:6379/0"),
            ("rediss://ann:p%40ss@redis.acme.example:6390/3", "rediss://redis.acme.example:6390/3"),
            ("redis://:secret@[::1]:7000", "redis://[::1]:7000/0"),
            ("redis+sentinel://u:p@s1,s2:5000/main?db=2", "redis+sentinel://s1:26379,s2:5000/main?db=2"),
            ("rediss-cluster://a:1,b:2", "rediss-cluster://a:1,b:2"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn a_login_may_hold_any_character() {
        let address: Address = "redis://ann%3A:p@ss%2Fw%C3%B6rd@localhost".parse().unwrap();
        assert_eq!(address.user.as_deref(), Some("ann:"));
        assert_eq!(address.password, Some(Secret::new("p@ss/w\u{f6}rd")));
    }

    #[test]
    fn an_invalid_address_is_refused_with_its_reason() {
        for (text, error) in [
            ("localhost:6379", AddressError::Scheme),
            ("http://localhost", AddressError::Scheme),
            ("redis://", AddressError::Host("")),
            ("redis://a b", AddressError::Host("")),
            ("redis://a:99999", AddressError::Host("; a port is 1 to 65535")),
            ("redis://a,b", AddressError::Host("; a single server has one host")),
            ("redis://a/main", AddressError::Database),
            ("redis://a?protocol=3", AddressError::Query),
            ("redis+sentinel://a:1", AddressError::Primary),
            ("redis-cluster://a/1", AddressError::ClusterDatabase),
            ("redis://u:%4@a", AddressError::Percent),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_password_is_exposed_by_a_plain_connection_that_leaves_the_machine() {
        let exposes = |text: &str| text.parse::<Address>().unwrap().exposes_credentials();
        assert!(exposes("redis://:secret@redis.acme.example"));
        assert!(exposes("redis-cluster://:secret@localhost,redis.acme.example"));
        assert!(!exposes("redis://:secret@127.0.0.1"));
        assert!(!exposes("rediss://:secret@redis.acme.example"));
        assert!(!exposes("redis://redis.acme.example"));
    }
}
