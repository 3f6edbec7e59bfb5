//! Finds the credential of a request. Pure.
//!
//! Only a ticket may be in the query: other credentials there end up in logs and histories, so they are rejected.

use axum::extract::Query as Pairs;
use hyper::{
    HeaderMap, Uri,
    header::{COOKIE, ORIGIN},
};

use crate::{listener::bearer::bearer_token, model::Secret};

/// How a request authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::downstream::server) enum ClientCredential {
    /// A token in the `Authorization` header.
    Bearer(Secret),
    /// A single-use ticket in the query.
    Ticket(Secret),
    /// A token in the configured cookie.
    Cookie(Secret),
    None,
}

/// Why the credentials of a request are rejected before they are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::downstream::server) enum ClientCredentialError {
    #[error("the Authorization header is not one \"Bearer\" token")]
    Authorization,
    #[error("a token in the query is not accepted; send it in the Authorization header, or request a ticket")]
    TokenInQuery,
    #[error("the request has a ticket and an Authorization header; send one of them")]
    Several,
    #[error("the parameter ticket occurs more than once")]
    TicketRepeated,
    #[error("the cookie is accepted for an upgrade only with an Origin header")]
    CookieWithoutOrigin,
    #[error("this listener has no authentication; remove the parameter ticket")]
    NoAuthentication,
    #[error("the cookie with the token occurs more than once")]
    CookieRepeated,
}

/// Parameters under which clients of other services send a token.
const TOKEN_PARAMETERS: [&str; 4] = ["access_token", "token", "jwt", "authorization"];

/// The name of the parameter with a ticket.
pub(in crate::downstream::server) const TICKET: &str = "ticket";

impl ClientCredential {
    /// The credential of a request. `cookie`: the name of the cookie that may have the token.
    pub(in crate::downstream::server) fn of(
        headers: &HeaderMap,
        uri: &Uri,
        cookie: Option<&str>,
        is_upgrade: bool,
    ) -> Result<Self, ClientCredentialError> {
        let ticket = ticket(uri)?;
        let bearer = bearer(headers)?;
        match (bearer, ticket) {
            (Some(_), Some(_)) => return Err(ClientCredentialError::Several),
            (Some(token), None) => return Ok(Self::Bearer(token)),
            (None, Some(ticket)) => return Ok(Self::Ticket(ticket)),
            (None, None) => (),
        }
        let Some(token) = cookie.map(|name| cookie_value(headers, name)).transpose()?.flatten() else {
            return Ok(Self::None);
        };
        if is_upgrade && !headers.contains_key(ORIGIN) {
            return Err(ClientCredentialError::CookieWithoutOrigin);
        }
        Ok(Self::Cookie(token))
    }
}

/// Rejects a ticket at a listener without authentication: its client expects to be protected.
pub(in crate::downstream::server) fn reject_ticket(uri: &Uri) -> Result<(), ClientCredentialError> {
    if ticket(uri)?.is_some() { Err(ClientCredentialError::NoAuthentication) } else { Ok(()) }
}

fn ticket(uri: &Uri) -> Result<Option<Secret>, ClientCredentialError> {
    // A query that cannot be read is rejected by the parameters' own parser.
    let Ok(Pairs(pairs)) = Pairs::<Vec<(String, String)>>::try_from_uri(uri) else { return Ok(None) };
    let is_token = |name: &str| TOKEN_PARAMETERS.iter().any(|token| token.eq_ignore_ascii_case(name));
    if pairs.iter().any(|(name, value)| is_token(name) || (name == TICKET && is_jwt(value))) {
        return Err(ClientCredentialError::TokenInQuery);
    }
    let mut tickets = pairs.into_iter().filter(|(name, _)| name == TICKET);
    let first = tickets.next();
    if tickets.next().is_some() {
        Err(ClientCredentialError::TicketRepeated)
    } else {
        Ok(first.map(|(_, value)| Secret::new(value)))
    }
}

/// Whether a text has the three parts of a signed JWT, the first of which is a JSON object in base64.
fn is_jwt(text: &str) -> bool {
    text.starts_with("eyJ") && text.split('.').count() == 3
}

fn bearer(headers: &HeaderMap) -> Result<Option<Secret>, ClientCredentialError> {
    let malformed = |_| ClientCredentialError::Authorization;
    let Some(token) = bearer_token(headers).map_err(malformed)? else { return Ok(None) };
    let is_valid = !token.is_empty() && !token.contains([' ', ',']);
    is_valid.then(|| Some(Secret::new(token))).ok_or(ClientCredentialError::Authorization)
}

fn cookie_value(headers: &HeaderMap, name: &str) -> Result<Option<Secret>, ClientCredentialError> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(found, _)| *found == name).map(|(_, value)| value.trim_matches('"'));
    let first = values.next().filter(|value| !value.is_empty());
    // A page of a sibling domain can add a cookie of the same name.
    if values.next().is_some() { Err(ClientCredentialError::CookieRepeated) } else { Ok(first.map(Secret::new)) }
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    #[expect(clippy::unwrap_in_result, reason = "a broken fixture ends the test")]
    fn find(headers: &[(&str, &str)], uri: &str, is_upgrade: bool) -> Result<ClientCredential, ClientCredentialError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        ClientCredential::of(&map, &uri.parse().unwrap(), Some("session"), is_upgrade)
    }

    #[test]
    fn a_credential_is_found_in_one_place() {
        let secret = Secret::new;
        let bearer = || Ok(ClientCredential::Bearer(secret("a.b.c")));
        let cookie = || Ok(ClientCredential::Cookie(secret("x")));
        let origin = ("origin", "https://a.test");
        for (headers, uri, expected) in [
            (vec![], "/v1/events?stream=a", Ok(ClientCredential::None)),
            (vec![("authorization", "Bearer a.b.c")], "/", bearer()),
            (vec![("authorization", "bearer  a.b.c ")], "/", bearer()),
            (vec![("authorization", "Bearer a.b.c"), ("cookie", "session=x")], "/", bearer()),
            (vec![], "/?ticket=t%2B1", Ok(ClientCredential::Ticket(secret("t+1")))),
            (vec![("cookie", "session=x"), origin], "/?ticket=t", Ok(ClientCredential::Ticket(secret("t")))),
            (vec![("cookie", "a=1; session=x; b=2"), origin], "/", cookie()),
            (vec![("cookie", "a=1"), ("cookie", "session=\"x\""), origin], "/", cookie()),
            (vec![("cookie", "mysession=x; session="), origin], "/", Ok(ClientCredential::None)),
        ] {
            assert_eq!(find(&headers, uri, true), expected, "{headers:?} {uri}");
        }
        assert_eq!(find(&[("cookie", "session=x")], "/", false), cookie(), "a plain request needs no origin");
    }

    #[test]
    fn a_credential_in_a_wrong_place_is_rejected() {
        use ClientCredentialError::{
            Authorization, CookieRepeated, CookieWithoutOrigin, Several, TicketRepeated, TokenInQuery,
        };
        for (headers, uri, expected) in [
            (vec![("authorization", "Basic YTpi")], "/", Authorization),
            (vec![("authorization", "Bearer")], "/", Authorization),
            (vec![("authorization", "Bearer a b")], "/", Authorization),
            (vec![("authorization", "Bearer a, Bearer b")], "/", Authorization),
            (vec![("authorization", "Bearer a"), ("authorization", "Bearer b")], "/", Authorization),
            (vec![("authorization", "Bearer a")], "/?ticket=t", Several),
            (vec![], "/?ticket=a&ticket=b", TicketRepeated),
            (vec![], "/?ticket=eyJhbGciOiJIUzI1NiJ9.e30.c2ln", TokenInQuery),
            (vec![], "/?access_token=x", TokenInQuery),
            (vec![], "/?Token=x", TokenInQuery),
            (vec![("cookie", "session=x")], "/", CookieWithoutOrigin),
            (vec![("cookie", "session=x; session=y"), ("origin", "https://a.test")], "/", CookieRepeated),
        ] {
            assert_eq!(find(&headers, uri, true), Err(expected), "{headers:?} {uri}");
        }
    }
}
