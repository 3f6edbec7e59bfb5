//! The upgrade to a WebSocket: the request and the check of the response (RFC 6455 section 4.1).
//!
//! It handles list headers and interim responses, which the WebSocket library does not.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::{
    client::IntoClientRequest,
    handshake::{client::generate_request, derive_accept_key},
    http::{HeaderName, HeaderValue, header},
};

use crate::{
    connector::{Credential, Failure},
    model::Secret,
    network::{
        NetworkStream,
        head::{self, HttpVersion, ResponseHead},
    },
};

/// An upgrade request.
#[derive(Debug)]
pub struct UpgradeRequest {
    bytes: Vec<u8>,
    /// The expected `Sec-WebSocket-Accept`.
    accept: String,
}

impl UpgradeRequest {
    /// The request for a URL, with the token where the platform expects it.
    pub fn new(url: &reqwest::Url, credential: &Credential, token: &Secret) -> Result<Self, String> {
        let refused = |_| "invalid WebSocket URL".to_owned();
        let mut request = url.as_str().into_client_request().map_err(refused)?;
        if *credential == Credential::Header {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| "the token has characters that a header cannot carry".to_owned())?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let (bytes, key) = generate_request(request).map_err(refused)?;
        Ok(Self { bytes, accept: derive_accept_key(key.as_bytes()) })
    }

    /// Sends the request and reads the response. Returns the bytes after a 101, or why the upgrade failed.
    pub(super) async fn perform(self, stream: &mut NetworkStream) -> io::Result<Result<Vec<u8>, Failure>> {
        stream.write_all(&self.bytes).await?;
        stream.flush().await?;
        let (answer, rest) = head::read(stream).await?;
        if answer.status != 101 {
            let retry_after = head::retry_after(&answer.headers);
            return Ok(Err(Failure::Handshake { status: answer.status, retry_after, place: None }));
        }
        Ok(self
            .check_response(&answer)
            .map(|()| rest)
            .map_err(|why| Failure::Unreachable(format!("invalid upgrade response: {why}"))))
    }

    /// Checks that a 101 accepts this request.
    fn check_response(&self, answer: &ResponseHead) -> Result<(), &'static str> {
        if answer.version != HttpVersion::Http11 {
            return Err("HTTP/1.0 does not support an upgrade");
        }
        if !answer.has_token(header::UPGRADE, "websocket") {
            return Err("no \"Upgrade: websocket\" header");
        }
        if !answer.has_token(header::CONNECTION, "upgrade") {
            return Err("no \"Connection: Upgrade\" header");
        }
        let accept = answer.headers.get(header::SEC_WEBSOCKET_ACCEPT).and_then(|value| value.to_str().ok());
        if accept.map(str::trim) != Some(self.accept.as_str()) {
            return Err("Sec-WebSocket-Accept does not match the request");
        }
        let is_empty = |name: HeaderName| {
            answer.headers.get_all(name).iter().all(|value| value.as_bytes().trim_ascii().is_empty())
        };
        if !is_empty(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err("it selects an extension that was not offered");
        }
        if !is_empty(header::SEC_WEBSOCKET_PROTOCOL) {
            return Err("it selects a subprotocol that was not offered");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;

    #[test]
    fn upgrade_headers_are_matched_in_any_case_and_list() {
        let url = reqwest::Url::parse("wss://a.test/x").unwrap();
        let upgrade = UpgradeRequest::new(&url, &Credential::InUrl, &Secret::new("t")).unwrap();
        let accept = upgrade.accept.as_str();
        let good = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept)];
        let with = |name: &'static str, value: &'static str| {
            let kept = good.into_iter().filter(move |(known, _)| *known != name);
            kept.chain([(name, value)]).collect::<Vec<_>>()
        };
        let table = [
            (good.to_vec(), None),
            (with("connection", "keep-alive, Upgrade"), None),
            (with("connection", "UPGRADE,keep-alive"), None),
            ([good.to_vec(), vec![("connection", "keep-alive")]].concat(), None),
            (with("upgrade", "h2c, WebSocket"), None),
            (with("sec-websocket-extensions", " "), None),
            (with("connection", "keep-alive"), Some("Connection")),
            (with("upgrade", "h2c"), Some("Upgrade")),
            (with("sec-websocket-accept", "x"), Some("Sec-WebSocket-Accept")),
            (with("sec-websocket-extensions", "permessage-deflate"), Some("extension")),
            (with("sec-websocket-protocol", "chat"), Some("subprotocol")),
        ];
        for (lines, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in &lines {
                let value = HeaderValue::from_str(value).unwrap();
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
            let mut answer = ResponseHead { version: HttpVersion::Http11, status: 101, headers };
            match (upgrade.check_response(&answer), expected) {
                (Ok(()), None) => (),
                (Err(why), Some(word)) => assert!(why.contains(word), "{lines:?}: {why}"),
                (found, _) => panic!("{lines:?}: {found:?}"),
            }
            answer.version = HttpVersion::Http10;
            assert!(upgrade.check_response(&answer).is_err_and(|why| why.contains("HTTP/1.0") || expected.is_some()));
        }
    }
}
