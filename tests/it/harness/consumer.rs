//! A client of the daemon over WebSocket, server-sent events or NDJSON. All yield CloudEvents.

use std::{net::SocketAddr, ops::RangeInclusive};

use futures_util::{StreamExt, stream::BoxStream};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, protocol::frame::CloseFrame},
};

use super::{WAIT_MAX, http};

/// The transport of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConsumerTransport {
    WebSocket,
    Sse,
    Ndjson,
}

/// A connected client.
pub(crate) struct Consumer {
    source: ConsumerSource,
    /// The newest `id:` of server-sent events.
    pub(crate) last_id: Option<String>,
}

enum ConsumerSource {
    WebSocket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    Chunked { chunks: BoxStream<'static, Vec<u8>>, text: Vec<u8>, end: &'static str },
}

impl Consumer {
    pub(crate) async fn connect(at: SocketAddr, target: &str, transport: ConsumerTransport) -> Self {
        let source = match transport {
            ConsumerTransport::WebSocket => {
                let connected = timeout(WAIT_MAX, connect_async(format!("ws://{at}{target}"))).await;
                ConsumerSource::WebSocket(Box::new(connected.unwrap().unwrap().0))
            }
            ConsumerTransport::Sse => endless(at, target, "text/event-stream", None).await,
            ConsumerTransport::Ndjson => endless(at, target, "application/x-ndjson", None).await,
        };
        Self { source, last_id: None }
    }

    /// Reconnects as a browser does: to the same URL, with `Last-Event-ID`.
    pub(crate) async fn reconnect(at: SocketAddr, target: &str, last_id: &str) -> Self {
        let source = endless(at, target, "text/event-stream", Some(last_id)).await;
        Self { source, last_id: Some(last_id.to_owned()) }
    }

    /// The next event; `None` when the daemon has ended the response.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let Self { source, last_id } = self;
        timeout(WAIT_MAX, source.next(last_id)).await.expect("an event in time")
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("one more event"));
        }
        events
    }

    /// Takes events and checks that they have exactly these numbers of the platform.
    pub(crate) async fn expect(&mut self, numbers: RangeInclusive<u64>) {
        for number in numbers {
            let event = self.next().await.expect("one more event");
            assert_eq!(summarize_entry(&event), number.to_string(), "{event}");
        }
    }

    /// Skips events until the close frame, and returns its code and reason.
    pub(crate) async fn wait_for_close(mut self) -> (u16, String) {
        let ConsumerSource::WebSocket(socket) = &mut self.source else { panic!("only a WebSocket has a close code") };
        loop {
            let message = timeout(WAIT_MAX, socket.next()).await.expect("a close in time");
            if let Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) = message {
                return (code.into(), reason.to_string());
            }
            assert!(matches!(message, Some(Ok(_))), "expected a close, got {message:?}");
        }
    }
}

async fn endless(at: SocketAddr, target: &str, media_type: &str, last_id: Option<&str>) -> ConsumerSource {
    let mut request = http().get(format!("http://{at}{target}")).header("accept", media_type);
    if let Some(last_id) = last_id {
        request = request.header("last-event-id", last_id);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], media_type);
    let chunks = response.bytes_stream().filter_map(|chunk| async { chunk.ok().map(|bytes| bytes.to_vec()) });
    let end = if media_type == "text/event-stream" { "\n\n" } else { "\n" };
    ConsumerSource::Chunked { chunks: chunks.boxed(), text: Vec::new(), end }
}

impl ConsumerSource {
    async fn next(&mut self, last_id: &mut Option<String>) -> Option<Value> {
        match self {
            Self::WebSocket(socket) => loop {
                match socket.next().await? {
                    Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                    Ok(Message::Close(_)) => return None,
                    Ok(_) => (),
                    Err(error) => panic!("{error}"),
                }
            },
            Self::Chunked { chunks, text, end } => loop {
                let piece = piece(chunks, text, end).await?;
                let field = |name: &str| piece.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                if *end == "\n" {
                    return Some(serde_json::from_str(&piece).unwrap());
                }
                *last_id = field("id: ").or(last_id.take());
                if let Some(data) = field("data: ") {
                    return Some(serde_json::from_str(&data).unwrap());
                }
            },
        }
    }
}

/// The next part of a streamed text, up to `end`.
async fn piece(chunks: &mut BoxStream<'static, Vec<u8>>, text: &mut Vec<u8>, end: &str) -> Option<String> {
    loop {
        if let Some(at) = text.windows(end.len()).position(|window| window == end.as_bytes()) {
            let piece: Vec<u8> = text.drain(..at + end.len()).take(at).collect();
            return Some(String::from_utf8(piece).unwrap());
        }
        text.extend(chunks.next().await?);
    }
}

/// An entry as one word: its number, its kind, or `event`.
pub(crate) fn summarize_entry(entry: &Value) -> String {
    let data = &entry["data"];
    let part = |name: &str| data[name].as_str().unwrap_or("?");
    match entry["type"].as_str().unwrap() {
        "trunkline.gap.v1" if data["after"].is_null() => format!("gap({})", part("reason")),
        "trunkline.gap.v1" => format!("gap({} {}..{})", part("reason"), part("after"), part("before")),
        "trunkline.snapshot.v1" => format!("snapshot({})", part("reason")),
        "trunkline.undecoded.v1" => "undecoded".to_owned(),
        _ => entry["platformsequence"].as_str().unwrap_or("event").to_owned(),
    }
}

/// Entries as words. Their offsets must be dense from 1.
pub(crate) fn summarize_log(entries: &[Value]) -> String {
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry["sequence"], (index + 1).to_string(), "{entry}");
    }
    entries.iter().map(summarize_entry).collect::<Vec<_>>().join(" ")
}
