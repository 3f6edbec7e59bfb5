//! The WebSocket handshake. The socket is registered before the answer is sent, so that it misses no event from then
//! on. A request that is not a WebSocket handshake is rejected.

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

use super::connection::{ClientConnection, ConnectionCommand, ConnectionEnd, ConnectionOptions};
use super::counters::SocketDialect;
use super::platform::{SimulatedPlatform, SocketHandle, SocketRegistration};
use super::reply;
use super::server::{ControlledStream, TransportControl};

/// Commands in the queue of one socket.
const COMMANDS_MAX: usize = 64;
/// Largest message of a client, in bytes.
const MESSAGE_LEN_MAX: usize = 256 * 1024;

/// An accepted handshake; the socket opens when the answer is sent.
#[derive(Debug)]
pub(super) struct Handshake {
    upgrade: OnUpgrade,
    control: TransportControl,
    commands: mpsc::Receiver<ConnectionCommand>,
    registration: SocketRegistration,
    options: ConnectionOptions,
    answer: Response,
}

impl Handshake {
    /// Checks the upgrade and registers the socket.
    pub(super) fn accept(
        platform: &Arc<SimulatedPlatform>,
        request: &mut Request,
        dialect: SocketDialect,
        channel: Option<String>,
    ) -> Result<Self, Box<Response>> {
        let answer = switching_protocols(request.headers()).ok_or_else(|| Box::new(reply::upgrade_required()))?;
        let upgrade = hyper::upgrade::on(&mut *request);
        let control = request.extensions().get::<TransportControl>().cloned().unwrap_or_default();
        let options = request.extensions().get::<ConnectionOptions>().cloned().unwrap_or_default();
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let socket = SocketHandle { dialect, control: control.clone(), commands: sender, channel };
        Ok(Self { upgrade, control, commands, registration: platform.register(socket), options, answer })
    }

    pub(super) fn number(&self) -> u64 {
        self.registration.number
    }

    /// Answers the handshake and runs `protocol` on the socket.
    pub(super) fn start(
        self,
        platform: &Arc<SimulatedPlatform>,
        expires_at: Instant,
        protocol: impl SocketProtocol,
    ) -> Response {
        let Self { upgrade, control, commands, registration, options, answer } = self;
        let shared = platform.clone();
        platform.tasks.spawn(async move {
            let connection = run_connection(upgrade, commands, shared.clone(), (expires_at, options), protocol);
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => (),
                () = control.reset_requested() => (),
                _over = connection => (),
            }
            drop(registration);
        });
        answer
    }
}

/// The behaviour of a dialect on its connection until one side closes it.
pub(super) trait SocketProtocol: Send + 'static {
    fn run(self, connection: &mut ClientConnection) -> impl Future<Output = ConnectionEnd> + Send;
}

async fn run_connection(
    upgrade: OnUpgrade,
    commands: mpsc::Receiver<ConnectionCommand>,
    platform: Arc<SimulatedPlatform>,
    (expires_at, options): (Instant, ConnectionOptions),
    protocol: impl SocketProtocol,
) -> Option<ConnectionEnd> {
    let parts = upgrade.await.ok()?.downcast::<TokioIo<ControlledStream>>().ok()?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX))
        .accept_unmasked_frames(false);
    let wire = parts.io.into_inner();
    let socket = WebSocketStream::from_partially_read(wire, parts.read_buf.to_vec(), Role::Server, Some(config)).await;
    let mut connection = ClientConnection::new(socket, platform, commands, expires_at);
    connection.apply_options(options);
    Some(protocol.run(&mut connection).await)
}

/// The 101 answer; `None` if this is not a WebSocket handshake.
fn switching_protocols(headers: &HeaderMap) -> Option<Response> {
    let asks = headers.get(header::UPGRADE)?.to_str().ok()?.eq_ignore_ascii_case("websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks)?;
    let answer = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes())),
    ];
    Some((StatusCode::SWITCHING_PROTOCOLS, answer).into_response())
}
