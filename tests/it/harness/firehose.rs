//! A platform at full speed: its first socket always has unread data, its later sockets only answer probes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{Bytes, Message},
};
use tokio_util::sync::DropGuard;

use super::tcp::listen;

const PONG: &str = r#"{"topicName":"channel.metadata","eventBody":{"message":"pong"}}"#;
/// Notifications between two reads of client frames.
const BURST: u64 = 64;

/// A server whose first socket sends notifications of one topic without pause.
pub(crate) struct Firehose {
    address: SocketAddr,
    opened: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Firehose {
    pub(crate) async fn start(topic: String) -> Self {
        let opened = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&opened);
        let (address, stop) = listen(move |client| serve(client, topic.clone(), Arc::clone(&count))).await;
        Self { address, opened, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Sockets that were opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn serve(client: TcpStream, topic: String, opened: Arc<AtomicU64>) {
    let Ok(mut socket) = accept_async(client).await else { return };
    let is_first = opened.fetch_add(1, Ordering::Relaxed) == 0;
    let mut number = 0;
    while answer(&mut socket, is_first).await.is_some() {
        if is_first && burst(&mut socket, &topic, &mut number).await.is_none() {
            return;
        }
    }
}

/// Answers client frames; `None` when the client is gone. With `at_once` it does not wait for a frame.
async fn answer(socket: &mut WebSocketStream<TcpStream>, at_once: bool) -> Option<()> {
    loop {
        let next = if at_once { socket.next().now_or_never() } else { Some(socket.next().await) };
        match next {
            None => return Some(()),
            Some(Some(Ok(Message::Text(_)))) => socket.send(Message::text(PONG)).await.ok()?,
            Some(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_)))) => (),
            Some(Some(Ok(Message::Close(_))) | Some(Err(_)) | None) => return None,
        }
        if !at_once {
            return Some(());
        }
    }
}

async fn burst(socket: &mut WebSocketStream<TcpStream>, topic: &str, number: &mut u64) -> Option<()> {
    for _ in 0..BURST {
        *number += 1;
        let text = format!(
            r#"{{"topicName":"{topic}","version":"2","eventBody":{{"number":{number}}},"metadata":{{"CorrelationId":"{number}"}}}}"#
        );
        socket.feed(Message::Text(Bytes::from(text).try_into().unwrap())).await.ok()?;
    }
    socket.flush().await.ok()
}
