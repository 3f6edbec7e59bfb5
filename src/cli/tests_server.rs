//! A stub of the daemon for tests of the commands: scripted responses over real loopback sockets.
//!
//! It shares no code with the daemon's listeners.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;

use crate::tasks::Tasks;

/// A request of a command.
#[derive(Debug, Clone)]
pub(super) struct RecordedRequest {
    /// Path and query.
    pub(super) target: String,
    pub(super) accept: Option<String>,
    pub(super) authorization: Option<String>,
}

/// One scripted response.
pub(super) struct StubResponse {
    status: u16,
    body: Body,
}

impl StubResponse {
    pub(super) fn json(body: impl Into<String>) -> Self {
        Self { status: 200, body: Body::from(body.into()) }
    }

    pub(super) fn status(status: u16, body: &'static str) -> Self {
        Self { status, body: Body::from(body) }
    }

    /// A body in pieces, after which the connection breaks.
    pub(super) fn broken_off(pieces: Vec<&'static str>) -> Self {
        let pieces = pieces.into_iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let end = futures_util::stream::once(async {
            // The pieces are flushed while the body waits.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("connection broken"))
        });
        Self { status: 200, body: Body::from_stream(futures_util::stream::iter(pieces).chain(end)) }
    }

    /// A body in pieces that never ends.
    pub(super) fn endless(pieces: Vec<&'static str>) -> Self {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
        let body = futures_util::stream::iter(pieces).chain(futures_util::stream::pending());
        Self { status: 200, body: Body::from_stream(body) }
    }
}

/// The running stub; it stops with the test.
pub(super) struct StubServer {
    pub(super) url: String,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
    _tasks: Tasks,
}

impl StubServer {
    pub(super) fn requests(&self) -> Vec<RecordedRequest> {
        self.requests.lock().clone()
    }
}

type StubHandler = Arc<dyn Fn(&RecordedRequest) -> StubResponse + Send + Sync>;

/// Starts a server that replies to each request with the result of `script`.
pub(super) async fn serve(script: impl Fn(&RecordedRequest) -> StubResponse + Send + Sync + 'static) -> StubServer {
    // Another test of this process may have installed it.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let state: (StubHandler, _) = (Arc::new(script), Arc::clone(&requests));
    let router = Router::new().fallback(answer).with_state(state);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = Tasks::new("test");
    tasks.start("server", async move { Ok(axum::serve(listener, router).await?) });
    StubServer { url, requests, _tasks: tasks }
}

async fn answer(
    State((script, log)): State<(StubHandler, Arc<Mutex<Vec<RecordedRequest>>>)>,
    request: Request,
) -> Response {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let target = request.uri().to_string();
    let recorded = RecordedRequest { target, accept: header("accept"), authorization: header("authorization") };
    let served = script(&recorded);
    log.lock().push(recorded);
    Response::builder().status(served.status).body(served.body).unwrap()
}
