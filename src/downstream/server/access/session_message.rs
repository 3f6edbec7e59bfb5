//! The session messages that a client sends over its WebSocket: CloudEvents of which `type` and `data` are read. Pure.

use serde::Deserialize;

use crate::model::{Cursor, Secret};

/// A session message of a client.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::downstream::server) enum ClientMessage {
    /// The first message of a client whose upgrade had no credentials.
    Authenticate(Secret),
    /// A new token for the session.
    Refresh(Secret),
    /// The events up to the cursor are processed.
    Ack(Cursor),
    /// Another message; it has no effect.
    Other,
}

/// A session message without its required data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::downstream::server) enum MalformedMessage {
    Token,
    Cursor,
}

#[derive(Deserialize)]
struct MessageFields<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default)]
    data: MessageData,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MessageData {
    token: Option<String>,
    cursor: Option<String>,
}

impl ClientMessage {
    /// Reads a text message. A text that is no session message is [`ClientMessage::Other`].
    ///
    /// # Errors
    /// A session message without a token or a valid cursor.
    pub(in crate::downstream::server) fn read(text: &str) -> Result<Self, MalformedMessage> {
        let Ok(MessageFields { kind, data }) = serde_json::from_str(text) else { return Ok(Self::Other) };
        let token = data.token.filter(|token| !token.is_empty()).map(Secret::new).ok_or(MalformedMessage::Token);
        match &*kind {
            "trunkline.session.authenticate" => token.map(Self::Authenticate),
            "trunkline.session.refresh" => token.map(Self::Refresh),
            "trunkline.session.ack" => {
                let cursor = data.cursor.and_then(|cursor| cursor.parse().ok());
                cursor.map(Self::Ack).ok_or(MalformedMessage::Cursor)
            }
            _ => Ok(Self::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_clients_are_read() {
        let token = || Secret::new("a.b");
        for (text, expected) in [
            (
                r#"{"type":"trunkline.session.authenticate","data":{"token":"a.b"}}"#,
                Ok(ClientMessage::Authenticate(token())),
            ),
            (
                r#"{"specversion":"1.0","type":"trunkline.session.refresh","id":"1","data":{"token":"a.b"}}"#,
                Ok(ClientMessage::Refresh(token())),
            ),
            (
                r#"{"data":{"cursor":"4f2a-17"},"type":"trunkline.session.ack"}"#,
                Ok(ClientMessage::Ack("4f2a-17".parse().unwrap())),
            ),
            (r#"{"type":"trunkline.session.authenticate","data":{"token":""}}"#, Err(MalformedMessage::Token)),
            (r#"{"type":"trunkline.session.refresh"}"#, Err(MalformedMessage::Token)),
            (r#"{"type":"trunkline.session.ack","data":{"cursor":"17"}}"#, Err(MalformedMessage::Cursor)),
            (r#"{"type":"com.example.chat","data":{"token":"a"}}"#, Ok(ClientMessage::Other)),
            ("hello", Ok(ClientMessage::Other)),
            ("", Ok(ClientMessage::Other)),
            ("[1]", Ok(ClientMessage::Other)),
        ] {
            assert_eq!(ClientMessage::read(text), expected, "{text}");
        }
    }
}
