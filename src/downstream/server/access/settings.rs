//! The settings of `[http.auth]`: the keys that verify tokens, and how a session may present and use them.

use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    model::{ClaimRules, SecretRef, Size, Span},
    network::proxy::is_loopback,
    protocol::access::SubjectLimits,
};

/// How consumers authenticate. Without it, only this machine can connect.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The keys that verify the tokens of consumers.
    pub jwt: JwtSettings,
    /// The name of this daemon in the claim `aud`. Without it, tokens must have no `aud`.
    pub audience: Option<String>,
    /// The issuer in the claim `iss`. Without it, the issuer is not checked.
    pub issuer: Option<String>,
    /// Allows a WebSocket to authenticate by its first message, within 5 s.
    #[serde(default = "yes")]
    pub first_message: bool,
    /// The name of a cookie that may contain the token. Requires `allowed_origins`.
    pub cookie: Option<String>,
    /// What a session's token is bound to: `address`, `user-agent`. A renewal from elsewhere is rejected.
    #[serde(default)]
    pub bind: Vec<BindTarget>,
    /// A session without activity for this time is ended; `0s` for never.
    #[serde(default, with = "Span")]
    #[schemars(extend("x-maximum" = "30d"))]
    pub idle_max: Duration,
    /// Limits of each subject.
    #[serde(default)]
    pub limits: LimitSettings,
}

/// The keys that verify tokens: exactly one of `hmac`, `public_key` and `jwks_url`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtSettings {
    /// A secret of at least 32 bytes for HS256, 48 for HS384, 64 for HS512. Read again when its file changes.
    pub hmac: Option<SecretRef>,
    /// A public key in PEM: RSA of at least 2048 bits, EC P-256, EC P-384 or Ed25519. Read again when its file changes.
    pub public_key: Option<SecretRef>,
    /// The private key of `public_key` in PEM (PKCS#8), for `trunkline token mint` only.
    pub signing_key: Option<SecretRef>,
    /// The URL of the issuer's public keys (JWKS).
    #[schemars(extend("format" = "http-url"))]
    pub jwks_url: Option<String>,
    /// Allows plain `http` to `jwks_url` on another machine. For closed test networks only.
    #[serde(default)]
    pub insecure: bool,
}

/// The one source of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    Hmac(SecretRef),
    PublicKey { public: SecretRef, signing: Option<SecretRef> },
    Jwks { url: Url },
}

/// What a session's token is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BindTarget {
    /// The address of the client; behind a trusted proxy the address that the proxy names.
    Address,
    /// The header `User-Agent`.
    UserAgent,
}

/// Limits of each subject; 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Open connections.
    #[schemars(range(max = 1_000_000), extend("x-unit" = "connections"))]
    pub connections: u32,
    /// The sum over all connections of the streams that each reads.
    #[schemars(range(max = 1_000_000), extend("x-unit" = "streams"))]
    pub streams: u32,
    /// Bytes per second, over all connections.
    #[serde(with = "Size")]
    pub bytes_per_second: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { connections: 100, streams: 64, bytes_per_second: 0 }
    }
}

impl From<LimitSettings> for SubjectLimits {
    fn from(settings: LimitSettings) -> Self {
        let LimitSettings { connections, streams, bytes_per_second } = settings;
        Self {
            connections: Some(connections).filter(|max| *max > 0),
            streams: Some(streams).filter(|max| *max > 0),
            bytes_per_second: Some(bytes_per_second).filter(|max| *max > 0),
        }
    }
}

fn yes() -> bool {
    true
}

impl JwtSettings {
    /// The source of keys; none if the settings do not define exactly one.
    pub fn source(&self) -> Option<KeySource> {
        let Self { hmac, public_key, signing_key, jwks_url, insecure: _ } = self;
        match (hmac, public_key, jwks_url) {
            (Some(secret), None, None) => Some(KeySource::Hmac(secret.clone())),
            (None, Some(public), None) => {
                Some(KeySource::PublicKey { public: public.clone(), signing: signing_key.clone() })
            }
            (None, None, Some(url)) => Some(KeySource::Jwks { url: Url::parse(url).ok()? }),
            (Some(_) | None, Some(_) | None, Some(_) | None) => None,
        }
    }

    fn mistakes(&self) -> Vec<(&'static str, String)> {
        let sources = [self.hmac.is_some(), self.public_key.is_some(), self.jwks_url.is_some()];
        let mut mistakes = Vec::new();
        match sources.into_iter().filter(|set| *set).count() {
            0 => mistakes.push(("jwt", "needs one of hmac, public_key and jwks_url".to_owned())),
            1 => (),
            count => mistakes.push(("jwt", format!("has {count} of hmac, public_key and jwks_url; keep one of them"))),
        }
        if self.signing_key.is_some() && self.public_key.is_none() {
            mistakes.push(("jwt.signing_key", "has no effect without public_key; remove it".to_owned()));
        }
        let url = self.jwks_url.as_deref().and_then(|url| Url::parse(url).ok());
        if self.insecure && self.jwks_url.is_none() {
            mistakes.push(("jwt.insecure", "has no effect without jwks_url; remove it".to_owned()));
        } else if url.is_some_and(|url| url.scheme() == "http" && !is_loopback(&url) && !self.insecure) {
            let text = "http lets others on the network replace the keys; write https, or set insecure = true in jwt \
                        (closed test networks only)";
            mistakes.push(("jwt.jwks_url", text.to_owned()));
        }
        mistakes
    }
}

impl Settings {
    /// What the claims of tokens must state.
    pub fn claim_rules(&self) -> ClaimRules {
        ClaimRules { audience: self.audience.clone(), issuer: self.issuer.clone() }
    }

    /// The errors between these keys: the path below `http.auth`, and the text. `has_origins`: origins of web pages are
    /// configured.
    pub fn mistakes(&self, has_origins: bool) -> Vec<(&'static str, String)> {
        let mut mistakes = self.jwt.mistakes();
        for (key, name) in [("audience", &self.audience), ("issuer", &self.issuer)] {
            if name.as_deref().is_some_and(|name| name.trim().is_empty()) {
                mistakes.push((key, "is empty; remove it, or write a name".to_owned()));
            }
        }
        if let Some(name) = &self.cookie {
            if !is_cookie_name(name) {
                let text = format!("expected the name of a cookie: letters, digits, '-' and '_', found {name:?}");
                mistakes.push(("cookie", text));
            }
            if !has_origins {
                let text = "requires http.allowed_origins: a browser sends the cookie for every page that it shows";
                mistakes.push(("cookie", text.to_owned()));
            }
        }
        mistakes
    }
}

fn is_cookie_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let settings = settings(r#"{"jwt":{"hmac":{"env":"KEY"}}}"#);
        assert!(settings.first_message && settings.bind.is_empty() && settings.idle_max.is_zero());
        assert_eq!(settings.limits, LimitSettings { connections: 100, streams: 64, bytes_per_second: 0 });
        let limits = SubjectLimits::from(settings.limits);
        assert_eq!((limits.connections, limits.streams, limits.bytes_per_second), (Some(100), Some(64), None));
        assert_eq!(settings.jwt.source(), Some(KeySource::Hmac(SecretRef::Env("KEY".to_owned()))));
        assert!(settings.mistakes(false).is_empty());
    }

    #[test]
    fn keys_that_contradict_each_other_are_named() {
        for (json, has_origins, expected) in [
            (r#"{"jwt":{}}"#, false, "jwt: needs one of"),
            (r#"{"jwt":{"hmac":{"env":"A"},"jwks_url":"https://a.test/"}}"#, false, "jwt: has 2 of"),
            (r#"{"jwt":{"hmac":{"env":"A"},"signing_key":{"file":"k"}}}"#, false, "jwt.signing_key: has no effect"),
            (r#"{"jwt":{"hmac":{"env":"A"},"insecure":true}}"#, false, "jwt.insecure: has no effect"),
            (r#"{"jwt":{"jwks_url":"http://a.test/"}}"#, false, "jwt.jwks_url: http lets others"),
            (r#"{"jwt":{"jwks_url":"http://a.test/","insecure":true}}"#, false, ""),
            (r#"{"jwt":{"jwks_url":"http://127.0.0.1:1/"}}"#, false, ""),
            (r#"{"jwt":{"public_key":{"file":"k"},"signing_key":{"file":"k"}}}"#, false, ""),
            (r#"{"jwt":{"hmac":{"env":"A"}},"audience":" "}"#, false, "audience: is empty"),
            (r#"{"jwt":{"hmac":{"env":"A"}},"issuer":""}"#, false, "issuer: is empty"),
            (r#"{"jwt":{"hmac":{"env":"A"}},"cookie":"a"}"#, false, "cookie: requires http.allowed_origins"),
            (r#"{"jwt":{"hmac":{"env":"A"}},"cookie":"a"}"#, true, ""),
            (r#"{"jwt":{"hmac":{"env":"A"}},"cookie":"a=b"}"#, true, "cookie: expected the name of a cookie"),
        ] {
            let found = settings(json).mistakes(has_origins);
            let found: Vec<_> = found.iter().map(|(key, text)| format!("{key}: {text}")).collect();
            assert!(found.join("\n").starts_with(expected), "{json}: {found:?}");
            assert_eq!(found.len(), usize::from(!expected.is_empty()), "{json}: {found:?}");
        }
    }
}
