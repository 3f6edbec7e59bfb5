//! OAuth grants and the tokens they issued. It rejects what RFC 6749 rejects, and it does not read a clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;

use super::clock::after;
use super::form;
use super::world::uuid;

/// Tokens held. Beyond it, expired tokens are removed and then count as unknown.
const TOKENS_MAX: usize = 10_000;
/// The window of the request limit.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// A separate seed, so that the strings of tokens do not change the scenario.
const TOKEN_SEED: u64 = 0x74_6f_6b_65_6e;
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The format of an access token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKind {
    /// An opaque string.
    #[default]
    Opaque,
    /// A JWT with `iat` and `exp`; the signature is not valid.
    Jwt,
}

/// The one OAuth client of the platform.
#[derive(Clone, Debug)]
pub(super) struct ClientCredentials {
    pub(super) id: String,
    pub(super) secret: String,
}

/// The grant of a token request.
#[derive(Clone, Debug)]
pub(super) struct TokenRequest {
    pub(super) client: Option<ClientCredentials>,
    pub(super) form: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenGrant {
    pub(super) kind: &'static str,
    pub(super) access_token: String,
    pub(super) expires_in: u64,
    pub(super) refresh_token: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantRejection {
    ClientNotFound,
    ClientSecret,
    InvalidGrant,
    UnsupportedGrant,
}

/// Why a bearer is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenRejection {
    Missing,
    Unknown,
    Expired,
}

/// The requests of a token in the current window of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateUsage {
    pub(super) count: u32,
    pub(super) reset: Duration,
}

#[derive(Debug)]
struct TokenRecord {
    expires_at: Instant,
    window_start: Instant,
    count: u32,
}

#[derive(Debug)]
pub(super) struct TokenRegistry {
    client: ClientCredentials,
    kind: TokenKind,
    ttl: Duration,
    refresh_token: String,
    records: HashMap<String, TokenRecord>,
    rng: fastrand::Rng,
}

impl TokenRegistry {
    pub(super) fn new(
        client: ClientCredentials,
        kind: TokenKind,
        ttl: Duration,
        refresh_token: String,
        seed: u64,
    ) -> Self {
        let rng = fastrand::Rng::with_seed(seed ^ TOKEN_SEED);
        Self { client, kind, ttl, refresh_token, records: HashMap::new(), rng }
    }

    /// Issues a token. `epoch` is the platform's wall clock in seconds, for the claims of a JWT.
    pub(super) fn grant(
        &mut self,
        request: &TokenRequest,
        now: Instant,
        epoch: i64,
    ) -> Result<TokenGrant, GrantRejection> {
        let kind = form::value(&request.form, "grant_type").unwrap_or_default();
        let kind = match kind {
            "client_credentials" => "client_credentials",
            "refresh_token" => "refresh_token",
            JWT_BEARER => "jwt_bearer",
            _other => return Err(GrantRejection::UnsupportedGrant),
        };
        self.check_client(request.client.as_ref(), kind)?;
        let refresh_token = match kind {
            "refresh_token" => Some(self.rotate(form::value(&request.form, "refresh_token"))?),
            "jwt_bearer" => check_assertion(form::value(&request.form, "assertion")).map(|()| None)?,
            _client_credentials => None,
        };
        let access_token = self.issue(now, epoch);
        Ok(TokenGrant { kind, access_token, expires_in: self.ttl.as_secs(), refresh_token })
    }

    /// When the token ends; an error if it is not valid.
    pub(super) fn check(&self, token: Option<&str>, now: Instant) -> Result<Instant, TokenRejection> {
        let record = self.records.get(token.ok_or(TokenRejection::Missing)?).ok_or(TokenRejection::Unknown)?;
        if now < record.expires_at { Ok(record.expires_at) } else { Err(TokenRejection::Expired) }
    }

    /// Counts one request of a valid token.
    pub(super) fn count(&mut self, token: &str, now: Instant) -> RateUsage {
        let Some(record) = self.records.get_mut(token) else {
            return RateUsage { count: 0, reset: RATE_WINDOW };
        };
        if now.duration_since(record.window_start) >= RATE_WINDOW {
            record.window_start = now;
            record.count = 0;
        }
        record.count += 1;
        RateUsage { count: record.count, reset: RATE_WINDOW.saturating_sub(now.duration_since(record.window_start)) }
    }

    /// Ends every token now.
    pub(super) fn revoke_all(&mut self, now: Instant) {
        for life in self.records.values_mut() {
            life.expires_at = life.expires_at.min(now);
        }
    }

    fn check_client(&self, client: Option<&ClientCredentials>, kind: &str) -> Result<(), GrantRejection> {
        match client {
            Some(client) if client.id != self.client.id => Err(GrantRejection::ClientNotFound),
            Some(client) if client.secret != self.client.secret => Err(GrantRejection::ClientSecret),
            Some(_) => Ok(()),
            // An assertion identifies its client (RFC 7523 section 3.1).
            None if kind == "jwt_bearer" => Ok(()),
            None => Err(GrantRejection::ClientNotFound),
        }
    }

    fn rotate(&mut self, refresh_token: Option<&str>) -> Result<String, GrantRejection> {
        if refresh_token != Some(self.refresh_token.as_str()) {
            return Err(GrantRejection::InvalidGrant);
        }
        self.refresh_token = uuid(&mut self.rng);
        Ok(self.refresh_token.clone())
    }

    fn issue(&mut self, now: Instant, epoch: i64) -> String {
        if self.records.len() >= TOKENS_MAX {
            self.records.retain(|_, life| now < life.expires_at);
        }
        let token = match self.kind {
            TokenKind::Opaque => BASE64_URL_SAFE_NO_PAD.encode(uuid(&mut self.rng)),
            TokenKind::Jwt => self.jwt(epoch),
        };
        self.records
            .insert(token.clone(), TokenRecord { expires_at: after(now, self.ttl), window_start: now, count: 0 });
        token
    }

    fn jwt(&mut self, epoch: i64) -> String {
        let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": "simulated"});
        let claims = json!({
            "iss": "https://login.simulated.example", "sub": self.client.id, "jti": uuid(&mut self.rng),
            "iat": epoch, "exp": epoch.saturating_add(ttl),
        });
        let signature: Vec<u8> = (0..256).map(|_| self.rng.u8(..)).collect();
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(&header), part(&claims), BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

fn check_assertion(assertion: Option<&str>) -> Result<(), GrantRejection> {
    let parts: Vec<&str> = assertion.unwrap_or_default().split('.').collect();
    if parts.len() == 3 && parts.iter().all(|part| !part.is_empty()) {
        Ok(())
    } else {
        Err(GrantRejection::InvalidGrant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn a_token_expires_after_its_lifetime() {
        let begin = now();
        let mut tokens = tokens(TokenKind::Opaque);
        let grant = tokens.grant(&presented("demo", "secret", "client_credentials", None), begin, 0).unwrap();
        assert_eq!((grant.expires_in, grant.refresh_token), (60, None));
        let check = |seconds| tokens.check(Some(&grant.access_token), begin + Duration::from_secs(seconds));
        assert!(check(59).is_ok());
        assert_eq!(check(60), Err(TokenRejection::Expired));
        assert_eq!(tokens.check(Some("other"), begin), Err(TokenRejection::Unknown));
        assert_eq!(tokens.check(None, begin), Err(TokenRejection::Missing));
    }

    #[test]
    fn wrong_clients_and_grants_have_distinct_errors() {
        let table = [
            (presented("demo", "wrong", "client_credentials", None), GrantRejection::ClientSecret),
            (presented("other", "secret", "client_credentials", None), GrantRejection::ClientNotFound),
            (presented("demo", "secret", "password", None), GrantRejection::UnsupportedGrant),
            (
                presented("demo", "secret", "refresh_token", Some(("refresh_token", "old"))),
                GrantRejection::InvalidGrant,
            ),
            (presented("demo", "secret", JWT_BEARER, Some(("assertion", "a.b"))), GrantRejection::InvalidGrant),
        ];
        for (request, denied) in table {
            assert_eq!(tokens(TokenKind::Opaque).grant(&request, now(), 0), Err(denied), "{request:?}");
        }
    }

    #[test]
    fn each_refresh_token_works_once() {
        let mut tokens = tokens(TokenKind::Opaque);
        let request = |token: &str| presented("demo", "secret", "refresh_token", Some(("refresh_token", token)));
        let second = tokens.grant(&request("first"), now(), 0).unwrap().refresh_token.unwrap();
        assert_eq!(tokens.grant(&request("first"), now(), 0), Err(GrantRejection::InvalidGrant));
        let third = tokens.grant(&request(&second), now(), 0).unwrap().refresh_token.unwrap();
        assert_ne!(second, third);
    }

    #[test]
    fn a_jwt_carries_its_lifetime_by_the_platforms_clock() {
        let mut tokens = tokens(TokenKind::Jwt);
        let grant = tokens.grant(&presented("demo", "secret", "client_credentials", None), now(), 5_000).unwrap();
        let parts: Vec<&str> = grant.access_token.split('.').collect();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!((parts.len(), claims["iat"].as_i64(), claims["exp"].as_i64()), (3, Some(5_000), Some(5_060)));
    }

    #[test]
    fn revocation_ends_every_token() {
        let begin = now();
        let mut tokens = tokens(TokenKind::Opaque);
        let request = presented("demo", "secret", "client_credentials", None);
        let token = tokens.grant(&request, begin, 0).unwrap().access_token;
        tokens.revoke_all(begin);
        assert_eq!(tokens.check(Some(&token), begin), Err(TokenRejection::Expired));
    }

    #[test]
    fn requests_are_counted_by_the_minute() {
        let begin = now();
        let mut tokens = tokens(TokenKind::Opaque);
        let request = presented("demo", "secret", "client_credentials", None);
        let token = tokens.grant(&request, begin, 0).unwrap().access_token;
        tokens.count(&token, begin);
        let usage = tokens.count(&token, begin + Duration::from_secs(20));
        assert_eq!(usage, RateUsage { count: 2, reset: Duration::from_secs(40) });
        assert_eq!(tokens.count(&token, begin + Duration::from_secs(60)).count, 1);
    }

    fn tokens(kind: TokenKind) -> TokenRegistry {
        let client = ClientCredentials { id: "demo".to_owned(), secret: "secret".to_owned() };
        TokenRegistry::new(client, kind, Duration::from_secs(60), "first".to_owned(), 1)
    }

    fn presented(id: &str, secret: &str, grant: &str, more: Option<(&str, &str)>) -> TokenRequest {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let form = [Some(("grant_type", grant)), more].into_iter().flatten().map(pair).collect();
        TokenRequest { client: Some(ClientCredentials { id: id.to_owned(), secret: secret.to_owned() }), form }
    }
}
