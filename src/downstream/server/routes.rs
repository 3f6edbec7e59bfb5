//! The routes of the consumer server.
//!
//! Requests from pages need an allowed origin. Unknown paths, methods, parameters and media types are rejected.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{
        HeaderMap, Method, StatusCode,
        header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderName, HeaderValue, VARY},
        request::Parts,
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use super::{
    accept::{self, ResponseForm},
    buffer_pool::BufferPool,
    error::ConsumerRequestError,
    pages,
    position::PositionReporter,
    query::{self, EventQuery, StreamNameLocation},
    read_start::{self, OnTrimmed},
    sse::{self, EndlessOptions, StreamFormat},
    ws,
};
use crate::{
    clock,
    downstream::merged_reader::{CursorForm, MergedReader},
    event_log::EventLogs,
    listener::{
        UpgradeExtension,
        json::{APPLICATION_JSON, json_response},
        origin::Origins,
        resource::{PathName, READ, allow_methods, not_found},
    },
    model::{Mark, StreamName},
    telemetry::metrics,
};

/// The state of the handlers.
pub(super) struct ConsumerState {
    pub(super) logs: EventLogs,
    /// Returns whether a stream is live.
    pub(super) live: Box<dyn Fn(&StreamName) -> bool + Send + Sync>,
    pub(super) origins: Origins,
    pub(super) ping_every: Duration,
    pub(super) keep_alive: Duration,
    pub(super) position_every: Duration,
    pub(super) memory: BufferPool,
}

pub(super) fn router(consumers: ConsumerState) -> Router {
    let consumers = Arc::new(consumers);
    Router::new()
        .route("/v1/streams", allow_methods(READ, get(streams)))
        .route("/v1/streams/{stream}/events", allow_methods(READ, get(events_of_one)))
        .route("/v1/events", allow_methods(READ, get(events_of_several)))
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&consumers), guard))
        .with_state(consumers)
}

/// Checks the origin and adds CORS headers for an allowed one.
async fn guard(State(consumers): State<Arc<ConsumerState>>, request: Request, next: Next) -> Response {
    let origins = &consumers.origins;
    let named = origins.allowed_origin(request.headers()).and_then(|origin| HeaderValue::from_str(origin).ok());
    let mut answer = match origins.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(foreign) => ConsumerRequestError::from(foreign).into_response(),
    };
    // CORS does not apply to WebSockets.
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().extend(named.into_iter().flat_map(cors_headers));
    }
    answer
}

fn cors_headers(origin: HeaderValue) -> [(HeaderName, HeaderValue); 3] {
    [
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("link")),
        (VARY, HeaderValue::from_static("origin")),
    ]
}

/// The list of streams.
async fn streams(State(consumers): State<Arc<ConsumerState>>) -> impl IntoResponse {
    let streams = consumers.logs.iter().map(|(name, log)| {
        let end = log.end();
        let mark = |offset| Mark { epoch: end.lineage.current(), offset };
        let first = (end.first <= end.last).then(|| mark(end.first));
        StreamListEntry { name: name.clone(), first, last: mark(end.last), live: (consumers.live)(name) }
    });
    let shown = StreamListResponse { streams: streams.collect() };
    json_response(StatusCode::OK, APPLICATION_JSON, &shown)
}

#[derive(Serialize)]
struct StreamListResponse {
    streams: Vec<StreamListEntry>,
}

#[derive(Serialize)]
struct StreamListEntry {
    name: StreamName,
    /// None while no entry is stored.
    first: Option<Mark>,
    last: Mark,
    live: bool,
}

async fn events_of_one(
    State(consumers): State<Arc<ConsumerState>>,
    PathName(name): PathName,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    let stream = name
        .parse()
        .map_err(|_| ConsumerRequestError::InvalidStreamName(name.chars().take(NAME_SHOWN_MAX).collect()))?;
    consumers.events(&request.into_parts().0, Some(stream)).await
}

/// Maximum length of an invalid name quoted in an error.
const NAME_SHOWN_MAX: usize = 80;

async fn events_of_several(
    State(consumers): State<Arc<ConsumerState>>,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    consumers.events(&request.into_parts().0, None).await
}

impl ConsumerState {
    /// Events of the stream in the path or the streams in the query, in the requested form.
    async fn events(&self, request: &Parts, stream: Option<StreamName>) -> Result<Response, ConsumerRequestError> {
        let Parts { method, uri, headers, version, .. } = request;
        let wanted = wanted(method, headers)?;
        let (named, cursors) = match stream {
            Some(_) => (StreamNameLocation::InPath, CursorForm::Bare),
            None => (StreamNameLocation::InQuery, CursorForm::Named),
        };
        let resumed =
            if wanted == DeliveryMode::Endless(StreamFormat::Sse) { query::last_event_id(headers)? } else { None };
        let query = EventQuery::read(uri, named, resumed, clock::wall())?;
        let streams = stream.map_or_else(|| query.streams.clone(), |stream| vec![stream]);
        let on_trimmed = if wanted == DeliveryMode::Page { OnTrimmed::Reject } else { OnTrimmed::EmitGap };
        let feed = read_start::feed(&self.logs, &streams, &query.start, on_trimmed).await?;
        match wanted {
            DeliveryMode::WebSocket => {
                let (handshake, subprotocol) = ws::handshake::accept(*version, headers)?;
                let wants_positions = subprotocol == ws::handshake::Subprotocol::Session;
                Ok((Extension(self.upgrade(feed, query, cursors, wants_positions)), handshake).into_response())
            }
            DeliveryMode::Page => {
                pages::response(feed, &query.type_filter, query.limit, cursors, uri, &self.memory).await
            }
            DeliveryMode::Endless(endless) => {
                let (keep_alive, position_every) = (self.keep_alive, self.position_every);
                let (positions, memory) = (query.positions, self.memory.clone());
                let stalled = request.extensions.get().cloned().unwrap_or_default();
                let options =
                    EndlessOptions { endless, form: cursors, keep_alive, position_every, positions, memory, stalled };
                Ok(sse::response(feed, query.type_filter, &options))
            }
        }
    }

    /// The upgrade response with its handler.
    fn upgrade(
        &self,
        feed: MergedReader,
        query: EventQuery,
        form: CursorForm,
        wants_positions: bool,
    ) -> UpgradeExtension {
        let subscriber = metrics::SubscriberMetrics::connected("websocket");
        let (kinds, one) = (query.type_filter, feed.stream_count() == 1);
        let partial = wants_positions && !(one && kinds.matches_all());
        let positions = partial.then(|| Box::new(PositionReporter::new(one, self.position_every)));
        let (ping_every, memory) = (self.ping_every, self.memory.clone());
        let session = ws::WsSubscription { feed, kinds, ping_every, positions, form, memory, subscriber };
        UpgradeExtension::new(|socket, early_bytes| ws::run(session, socket, early_bytes))
    }
}

/// The delivery that a request selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryMode {
    WebSocket,
    Page,
    Endless(StreamFormat),
}

fn wanted(method: &Method, headers: &HeaderMap) -> Result<DeliveryMode, ConsumerRequestError> {
    if method == Method::GET && ws::handshake::is_requested(headers) {
        return Ok(DeliveryMode::WebSocket);
    }
    match accept::form(headers).ok_or(ConsumerRequestError::NotAcceptable)? {
        ResponseForm::Page => Ok(DeliveryMode::Page),
        ResponseForm::Sse => Ok(DeliveryMode::Endless(StreamFormat::Sse)),
        ResponseForm::Ndjson => Ok(DeliveryMode::Endless(StreamFormat::Ndjson)),
    }
}
