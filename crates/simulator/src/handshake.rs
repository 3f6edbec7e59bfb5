//! The way from an HTTP request to a talking socket. The socket is registered before the answer goes out, so that
//! it misses nothing from there on. It refuses what is no WebSocket handshake.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::line::{Begin, Line, Order, Over};
use super::platform::{Platform, Registered, Socket};
use super::reply;
use super::server::{Fate, Wire};
use super::tally::Dialect;

/// Orders that wait for one socket.
const ORDERS_MAX: usize = 64;
/// Largest message a client may send.
const HEARD_MAX: usize = 256 * 1024;

/// A handshake that was accepted; the socket comes to life when the answer is out.
#[derive(Debug)]
pub(super) struct Handshake {
    upgrade: OnUpgrade,
    fate: Fate,
    orders: mpsc::Receiver<Order>,
    registered: Registered,
    begin: Begin,
    answer: Response,
}

impl Handshake {
    /// Checks the upgrade and registers the socket, so that it misses nothing from here on.
    pub(super) fn accept(
        platform: &Arc<Platform>,
        request: &mut Request,
        dialect: Dialect,
        channel: Option<String>,
    ) -> Result<Self, Box<Response>> {
        let answer = switching(request.headers()).ok_or_else(|| Box::new(reply::upgrade_required()))?;
        let upgrade = hyper::upgrade::on(&mut *request);
        let fate = request.extensions().get::<Fate>().cloned().unwrap_or_default();
        let begin = request.extensions().get::<Begin>().cloned().unwrap_or_default();
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let socket = Socket { dialect, fate: fate.clone(), orders: sender, channel };
        Ok(Self { upgrade, fate, orders, registered: platform.register(socket), begin, answer })
    }

    pub(super) fn number(&self) -> u64 {
        self.registered.number
    }

    /// Answers the handshake and lets `talk` have the socket.
    pub(super) fn start(self, platform: &Arc<Platform>, ends: Instant, talk: impl Talk) -> Response {
        let Self { upgrade, fate, orders, registered, begin, answer } = self;
        let shared = platform.clone();
        platform.tasks.spawn(async move {
            let life = live(upgrade, orders, shared.clone(), (ends, begin), talk);
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => (),
                () = fate.sealed() => (),
                _over = life => (),
            }
            drop(registered);
        });
        answer
    }
}

/// What a dialect does with its line until one side ends it.
pub(super) trait Talk: Send + 'static {
    fn talk(self, line: &mut Line) -> impl Future<Output = Over> + Send;
}

async fn live(
    upgrade: OnUpgrade,
    orders: mpsc::Receiver<Order>,
    platform: Arc<Platform>,
    (ends, begin): (Instant, Begin),
    talk: impl Talk,
) -> Option<Over> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<Wire>>().ok()?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(HEARD_MAX))
        .max_frame_size(Some(HEARD_MAX))
        .accept_unmasked_frames(false);
    let wire = parts.io.into_inner();
    let socket = WebSocketStream::from_partially_read(wire, parts.read_buf.to_vec(), Role::Server, Some(config)).await;
    let mut line = Line::new(socket, platform, orders, ends);
    line.begins(begin);
    Some(talk.talk(&mut line).await)
}

/// The 101 answer, if this is a WebSocket handshake.
fn switching(headers: &HeaderMap) -> Option<Response> {
    let asks = headers.get(header::UPGRADE)?.to_str().ok()?.eq_ignore_ascii_case("websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks)?;
    let answer = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes())),
    ];
    Some((StatusCode::SWITCHING_PROTOCOLS, answer).into_response())
}
