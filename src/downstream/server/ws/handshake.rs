//! The opening handshake of a WebSocket, server side (RFC 6455 section 4.2). Pure: headers in, headers out.
//!
//! It refuses other versions and malformed keys, and accepts no extension: compressed frames could not be shared.

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

/// Why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::downstream::server) enum HandshakeError {
    #[error("a WebSocket begins with HTTP/1.1")]
    Protocol,
    #[error("the Connection header does not ask for an upgrade")]
    Connection,
    #[error("Sec-WebSocket-Version 13 is spoken here")]
    Version,
    #[error("Sec-WebSocket-Key is not 16 bytes in base64")]
    Key,
}

/// The one subprotocol: an event in CloudEvents' JSON format a message.
const SUBPROTOCOL: &str = "cloudevents.json";

/// Whether a request asks to go on as a WebSocket.
pub(in crate::downstream::server) fn is_asked(headers: &HeaderMap) -> bool {
    has_token(headers, &UPGRADE, "websocket")
}

/// The 101 that completes the handshake.
pub(in crate::downstream::server) fn accept(version: Version, headers: &HeaderMap) -> Result<Response, HandshakeError> {
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
    let agreed = has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .then_some([(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL))]);
    let answer = [
        (UPGRADE, HeaderValue::from_static("websocket")),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (SEC_WEBSOCKET_ACCEPT, proof(key)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, agreed, answer).into_response())
}

/// What shows the client that its key was read.
fn proof(key: &HeaderValue) -> HeaderValue {
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("base64 is plain text")
}

fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
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
    fn the_handshake_of_the_standard_is_answered_as_the_standard_says() {
        let response = accept(Version::HTTP_11, &headers(&[])).unwrap();
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
            assert_eq!(accept(Version::HTTP_11, &headers(&[changed])).unwrap_err(), refused, "{changed:?}");
        }
        assert_eq!(accept(Version::HTTP_10, &headers(&[])).unwrap_err(), HandshakeError::Protocol);
    }

    #[test]
    fn only_the_known_subprotocol_and_no_extension_is_agreed_to() {
        for (offered, agreed) in [
            ("cloudevents.json", Some("cloudevents.json")),
            ("mqtt, cloudevents.json", Some("cloudevents.json")),
            ("mqtt", None),
        ] {
            let extended = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
            let asked = headers(&[("sec-websocket-protocol", offered), extended]);
            let response = accept(Version::HTTP_11, &asked).unwrap();
            let header = response.headers().get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap());
            assert_eq!(header, agreed, "{offered}");
            assert!(!response.headers().contains_key("sec-websocket-extensions"));
        }
    }
}
