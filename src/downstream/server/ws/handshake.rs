//! The server handshake of a WebSocket (RFC 6455 section 4.2). Pure.
//!
//! It rejects other versions and malformed keys, and accepts no extension: compressed frames cannot be shared.

use axum::{
    http::{
        HeaderMap, StatusCode, Version,
        header::{
            CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_VERSION, UPGRADE,
        },
    },
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Why a handshake is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::downstream::server) enum HandshakeError {
    #[error("a WebSocket requires HTTP/1.1")]
    Protocol,
    #[error("the Connection header does not ask for an upgrade")]
    Connection,
    #[error("only Sec-WebSocket-Version 13 is supported")]
    Version,
    #[error("Sec-WebSocket-Key is not 16 bytes in base64")]
    Key,
}

/// The negotiated subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::downstream::server) enum Subprotocol {
    /// None: events, as with `cloudevents.json`.
    None,
    /// One CloudEvent in JSON per message.
    Events,
    /// Events and session messages.
    Session,
}

impl Subprotocol {
    const OFFERED: [Self; 2] = [Self::Events, Self::Session];

    fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Events => Some("cloudevents.json"),
            Self::Session => Some("trunkline.v1"),
        }
    }

    /// The first supported subprotocol of the client's list, which is ordered by preference.
    fn negotiate(headers: &HeaderMap) -> Self {
        let known =
            |word: &str| Self::OFFERED.into_iter().find(|offered| offered.name().is_some_and(|name| name == word));
        tokens(headers, &SEC_WEBSOCKET_PROTOCOL).find_map(known).unwrap_or(Self::None)
    }
}

/// Whether a request is a WebSocket upgrade.
pub(in crate::downstream::server) fn is_requested(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, "websocket")
}

/// The 101 that completes the handshake, and its subprotocol.
pub(in crate::downstream::server) fn accept(
    version: Version,
    headers: &HeaderMap,
) -> Result<(Response, Subprotocol), HandshakeError> {
    if version != Version::HTTP_11 {
        return Err(HandshakeError::Protocol);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(HandshakeError::Connection);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes())).ok_or(HandshakeError::Key)?;
    let subprotocol = Subprotocol::negotiate(headers);
    let agreed = subprotocol.name().map(|name| [(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name))]);
    let answer = [
        (UPGRADE, HeaderValue::from_static("websocket")),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (SEC_WEBSOCKET_ACCEPT, accept_value(key)),
    ];
    Ok(((StatusCode::SWITCHING_PROTOCOLS, agreed, answer).into_response(), subprotocol))
}

/// The value of `Sec-WebSocket-Accept`.
fn accept_value(key: &HeaderValue) -> HeaderValue {
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("base64 is plain text")
}

fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|word| word.eq_ignore_ascii_case(token))
}

/// The tokens of a list header.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: [(&str, &str); 4] = [
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(changed: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in ASKED.iter().chain(changed) {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_handshake_example_of_the_rfc_gets_the_response_of_the_rfc() {
        let (response, subprotocol) = accept(Version::HTTP_11, &headers(&[])).unwrap();
        assert_eq!(subprotocol, Subprotocol::None);
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!response.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn a_malformed_handshake_is_refused() {
        for (changed, refused) in [
            (("connection", "keep-alive"), HandshakeError::Connection),
            (("sec-websocket-version", "8"), HandshakeError::Version),
            (("sec-websocket-key", "c2hvcnQ="), HandshakeError::Key),
            (("sec-websocket-key", "not base64 at all!!!!!!="), HandshakeError::Key),
        ] {
            assert_eq!(accept(Version::HTTP_11, &headers(&[changed])).map(drop).unwrap_err(), refused, "{changed:?}");
        }
        assert_eq!(accept(Version::HTTP_10, &headers(&[])).map(drop).unwrap_err(), HandshakeError::Protocol);
    }

    #[test]
    fn only_a_known_subprotocol_and_no_extension_is_accepted() {
        for (offered, agreed) in [
            ("cloudevents.json", Some("cloudevents.json")),
            ("mqtt, cloudevents.json", Some("cloudevents.json")),
            ("trunkline.v1", Some("trunkline.v1")),
            ("trunkline.v1, cloudevents.json", Some("trunkline.v1")),
            ("cloudevents.json, trunkline.v1", Some("cloudevents.json")),
            ("mqtt", None),
        ] {
            let extended = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
            let asked = headers(&[("sec-websocket-protocol", offered), extended]);
            let (response, subprotocol) = accept(Version::HTTP_11, &asked).unwrap();
            assert_eq!(subprotocol.name(), agreed, "{offered}");
            let header = response.headers().get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap());
            assert_eq!(header, agreed, "{offered}");
            assert!(!response.headers().contains_key("sec-websocket-extensions"));
        }
    }
}
