//! Parses the body of a token response (RFC 6749 section 5), tolerant of common deviations.
//!
//! Errors are fixed texts: they never contain parts of the body.

use std::collections::BTreeMap;

use serde_json::{Map, Value, value::RawValue};

use crate::{
    model::{Secret, Timestamp},
    protocol::refresh::lifetime::{Claims, LifetimeHints, seconds},
};

/// A successful token response.
#[derive(Debug)]
pub(super) struct TokenResponse {
    pub(super) access_token: Secret,
    /// The next refresh token, if the platform rotates it.
    pub(super) refresh_token: Option<Secret>,
    pub(super) lifetime_hints: LifetimeHints,
}

/// Why a body is not a token response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenResponseError {
    #[error("not a JSON object with access_token")]
    Shape,
    #[error("access_token is empty or has characters that a header cannot carry")]
    Token,
    #[error("token_type is not bearer")]
    TokenType,
}

/// Error codes of RFC 6749 section 5.2 and common extensions. Others are free text and are not shown.
const CODES: [&str; 9] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "access_denied",
    "server_error",
    "temporarily_unavailable",
];

/// The members of a JSON body of any content type.
#[derive(Debug)]
pub(super) struct TokenResponseBody(Map<String, Value>);

/// The error of a body (RFC 6749 section 5.2), independent of the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OAuthError {
    /// An error of the server.
    Server,
    /// The request is rejected. Has the code, if it is a known one.
    Request(Option<&'static str>),
}

impl TokenResponseBody {
    /// Parses a JSON object; none if the body is not one. Unreadable members are skipped.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes));
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(&text).ok()?;
        let read = |(name, value): (String, &RawValue)| Some((name, serde_json::from_str(value.get()).ok()?));
        Some(Self(members.into_iter().filter_map(read).collect()))
    }

    /// The `error` member; none if it is empty or not a string.
    pub(super) fn oauth_error(&self) -> Option<OAuthError> {
        let error = self.text("error")?;
        match CODES.into_iter().find(|code| *code == error) {
            Some("server_error" | "temporarily_unavailable") => Some(OAuthError::Server),
            code => Some(OAuthError::Request(code)),
        }
    }

    /// The token response. Members that are not needed may have any type.
    pub(super) fn token_response(&self, answered_at: Option<Timestamp>) -> Result<TokenResponse, TokenResponseError> {
        if !is_bearer(self.0.get("token_type")) {
            return Err(TokenResponseError::TokenType);
        }
        let token = self.0.get("access_token").and_then(Value::as_str).ok_or(TokenResponseError::Shape)?;
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenResponseError::Token);
        }
        let expires_in = self.0.get("expires_in").and_then(seconds);
        let lifetime_hints = LifetimeHints { expires_in, claims: Claims::of(token), answered_at };
        let refresh_token = self.text("refresh_token").map(Secret::new);
        Ok(TokenResponse { access_token: Secret::new(token), refresh_token, lifetime_hints })
    }

    fn text(&self, member: &str) -> Option<&str> {
        self.0.get(member)?.as_str().filter(|text| !text.is_empty())
    }
}

/// Some servers prefix the body with it.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether the token type is bearer in any case. A missing type, or one that is not a string, is accepted.
fn is_bearer(token_type: Option<&Value>) -> bool {
    token_type.and_then(Value::as_str).is_none_or(|word| word.trim().eq_ignore_ascii_case("bearer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_parsed_leniently_and_checked_strictly() {
        // body; token and expires_in, or why not
        let table = [
            (r#"{"access_token":"t","token_type":"bearer","expires_in":1800}"#, Ok(("t", Some(1800.0)))),
            (r#"{"access_token":"t","expires_in":1e400,"x":1e999,"scope":"\ud800"}"#, Ok(("t", None))),
            (
                &format!(r#"{{"access_token":"t","expires_in":60,"x":{}{}}}"#, "[".repeat(300), "]".repeat(300)),
                Ok(("t", Some(60.0))),
            ),
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":"60","more":[1]}"#, Ok(("t", Some(60.0)))),
            (r#"{"access_token":"t","token_type":null,"expires_in":null}"#, Ok(("t", None))),
            (r#"{"access_token":"t","expires_in":{}}"#, Ok(("t", None))),
            (r#"{"access_token":"t","token_type":"mac"}"#, Err(TokenResponseError::TokenType)),
            (r#"{"access_token":"t","token_type":1}"#, Ok(("t", None))),
            (r#"{"access_token":"t","refresh_token":7,"scope":["a"],"id":{}}"#, Ok(("t", None))),
            (r#"{"access_token":"old","access_token":"t","error":null}"#, Ok(("t", None))),
            ("\u{feff}{\"access_token\":\"t\"}", Ok(("t", None))),
            (r#"{"access_token":""}"#, Err(TokenResponseError::Token)),
            (r#"{"access_token":"a\r\nX-Evil: 1"}"#, Err(TokenResponseError::Token)),
            (r#"{"access_token":"tökén"}"#, Err(TokenResponseError::Token)),
            (r#"{"access_token":7}"#, Err(TokenResponseError::Shape)),
            (r#"{"token":"t"}"#, Err(TokenResponseError::Shape)),
            (r#"["t"]"#, Err(TokenResponseError::Shape)),
            ("<html>", Err(TokenResponseError::Shape)),
            ("", Err(TokenResponseError::Shape)),
        ];
        for (body, expected) in table {
            let read = TokenResponseBody::read(body.as_bytes())
                .ok_or(TokenResponseError::Shape)
                .and_then(|body| body.token_response(None));
            let found = read.as_ref().map(|answer| (answer.access_token.expose(), answer.lifetime_hints.expires_in));
            assert_eq!(found.map_err(|why| *why), expected, "{body}");
        }
    }

    #[test]
    fn an_error_is_read_and_only_known_codes_are_named() {
        let table = [
            (
                r#"{"error":"invalid_grant","error_description":"canary"}"#,
                Some(OAuthError::Request(Some("invalid_grant"))),
            ),
            (r#"{"error":"invalid_client","access_token":"t"}"#, Some(OAuthError::Request(Some("invalid_client")))),
            (r#"{"error":"canary"}"#, Some(OAuthError::Request(None))),
            (r#"{"error":"temporarily_unavailable"}"#, Some(OAuthError::Server)),
            (r#"{"error":"server_error"}"#, Some(OAuthError::Server)),
            (r#"{"error":""}"#, None),
            (r#"{"error":null}"#, None),
            (r#"{"error":{"code":"invalid_client"}}"#, None),
            ("{}", None),
        ];
        for (body, expected) in table {
            assert_eq!(TokenResponseBody::read(body.as_bytes()).unwrap().oauth_error(), expected, "{body}");
        }
        assert!(TokenResponseBody::read(b"<html>").is_none());
    }
}
