//! Reads the body of a token endpoint's answer (RFC 6749 section 5), as servers really write it.
//!
//! What it cannot believe is refused by a fixed word: nothing of a body ever gets into an error.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    model::{Secret, Timestamp},
    protocol::refresh::lifetime::{Claims, Stated, seconds},
};

/// What a successful answer brought.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) access_token: Secret,
    /// The next refresh token, where the platform rotates it.
    pub(super) refresh_token: Option<Secret>,
    pub(super) stated: Stated,
}

/// Why a body is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is no JSON object with an access_token")]
    Shape,
    #[error("its token is empty or has characters that no header may carry")]
    Token,
    #[error("its token_type is not bearer")]
    TokenType,
}

#[derive(Deserialize)]
struct Wire {
    access_token: String,
    token_type: Option<Value>,
    expires_in: Option<Value>,
    refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// The codes of RFC 6749 section 5.2 and of its common extensions: others stay unnamed, since they are free text.
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

impl Answer {
    /// Reads the body of a 200. `answered` is the answer's `Date`.
    pub(super) fn read(body: &[u8], answered: Option<Timestamp>) -> Result<Self, Unusable> {
        let wire: Wire = serde_json::from_slice(body).map_err(|_| Unusable::Shape)?;
        if !is_bearer(wire.token_type.as_ref()) {
            return Err(Unusable::TokenType);
        }
        if wire.access_token.is_empty() || !wire.access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unusable::Token);
        }
        let expires_in = wire.expires_in.as_ref().and_then(seconds);
        let stated = Stated { expires_in, claims: Claims::of(&wire.access_token), answered };
        let refresh_token = wire.refresh_token.filter(|token| !token.is_empty()).map(Secret::new);
        Ok(Self { access_token: Secret::new(wire.access_token), refresh_token, stated })
    }
}

/// The error code of a refusal, if it is a known one.
pub(super) fn error_code(body: &[u8]) -> Option<&'static str> {
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    CODES.into_iter().find(|code| *code == refusal.error)
}

/// Some servers leave the type out, and each writes it in its own case.
fn is_bearer(token_type: Option<&Value>) -> bool {
    token_type.is_none_or(|value| value.as_str().is_some_and(|word| word.eq_ignore_ascii_case("bearer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_leniently_and_believed_narrowly() {
        // body; token and expires_in, or why not
        let table = [
            (r#"{"access_token":"t","token_type":"bearer","expires_in":1800}"#, Ok(("t", Some(1800.0)))),
            (r#"{"access_token":"t","token_type":"Bearer","expires_in":"60","more":[1]}"#, Ok(("t", Some(60.0)))),
            (r#"{"access_token":"t","token_type":null,"expires_in":null}"#, Ok(("t", None))),
            (r#"{"access_token":"t","expires_in":{}}"#, Ok(("t", None))),
            (r#"{"access_token":"t","token_type":"mac"}"#, Err(Unusable::TokenType)),
            (r#"{"access_token":"t","token_type":1}"#, Err(Unusable::TokenType)),
            (r#"{"access_token":""}"#, Err(Unusable::Token)),
            (r#"{"access_token":"a\r\nX-Evil: 1"}"#, Err(Unusable::Token)),
            (r#"{"access_token":"tökén"}"#, Err(Unusable::Token)),
            (r#"{"access_token":7}"#, Err(Unusable::Shape)),
            (r#"{"token":"t"}"#, Err(Unusable::Shape)),
            (r#"["t"]"#, Err(Unusable::Shape)),
            ("<html>", Err(Unusable::Shape)),
            ("", Err(Unusable::Shape)),
        ];
        for (body, expected) in table {
            let read = Answer::read(body.as_bytes(), None);
            let found = read.as_ref().map(|answer| (answer.access_token.expose(), answer.stated.expires_in));
            assert_eq!(found.map_err(|why| *why), expected, "{body}");
        }
    }

    #[test]
    fn only_known_error_codes_are_named() {
        assert_eq!(error_code(br#"{"error":"invalid_grant","error_description":"canary"}"#), Some("invalid_grant"));
        assert_eq!(error_code(br#"{"error":"canary"}"#), None);
        assert_eq!(error_code(b"<html>"), None);
    }
}
