//! What consumers can ask for, path by path.
//!
//! Every answer is to a page that may read here, or to no page at all. It refuses what it does not know: a path, a
//! method, a parameter, a form of the events.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{
        HeaderMap, Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_TYPE, HeaderName,
            HeaderValue, VARY,
        },
        request::Parts,
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use super::{
    accept::{self, Form},
    error::Refusal,
    memory::Memory,
    pages,
    position::Positions,
    query::{self, Named, Query},
    sse::{self, Endless, Manner},
    start::{self, Loss},
    ws,
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Feed},
    event_log::EventLogs,
    listener::{
        Upgrade,
        origin::Origins,
        resource::{Name, READ, nowhere, only},
    },
    model::{Mark, StreamName},
    telemetry::metrics,
};

/// What every handler works on.
pub(super) struct Consumers {
    pub(super) logs: EventLogs,
    /// Whether a stream hears its platform.
    pub(super) live: Box<dyn Fn(&StreamName) -> bool + Send + Sync>,
    pub(super) origins: Origins,
    pub(super) ping_every: Duration,
    pub(super) keep_alive: Duration,
    pub(super) position_every: Duration,
    pub(super) memory: Memory,
}

pub(super) fn router(consumers: Consumers) -> Router {
    let consumers = Arc::new(consumers);
    Router::new()
        .route("/v1/streams", only(READ, get(streams)))
        .route("/v1/streams/{stream}/events", only(READ, get(events_of_one)))
        .route("/v1/events", only(READ, get(events_of_several)))
        .fallback(nowhere)
        .layer(from_fn_with_state(Arc::clone(&consumers), guard))
        .with_state(consumers)
}

/// Lets in who may read here, and lets a page of a named origin read the answer.
async fn guard(State(consumers): State<Arc<Consumers>>, request: Request, next: Next) -> Response {
    let origins = &consumers.origins;
    let named = origins.named(request.headers()).and_then(|origin| HeaderValue::from_str(origin).ok());
    let mut answer = match origins.admit(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(foreign) => Refusal::from(foreign).into_response(),
    };
    // Browsers ask no such leave for a WebSocket.
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().extend(named.into_iter().flat_map(sharing));
    }
    answer
}

fn sharing(origin: HeaderValue) -> [(HeaderName, HeaderValue); 3] {
    [
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin),
        (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("link")),
        (VARY, HeaderValue::from_static("origin")),
    ]
}

/// The streams that can be read.
async fn streams(State(consumers): State<Arc<Consumers>>) -> impl IntoResponse {
    let streams = consumers.logs.iter().map(|(name, log)| {
        let end = log.end();
        let mark = |offset| Mark { epoch: end.lineage.current(), offset };
        let first = (end.first <= end.last).then(|| mark(end.first));
        StreamShown { name: name.clone(), first, last: mark(end.last), live: (consumers.live)(name) }
    });
    let shown = StreamsShown { streams: streams.collect() };
    let body = serde_json::to_string(&shown).expect("names and marks can always be written");
    ([(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, "application/json")], body + "\n")
}

#[derive(Serialize)]
struct StreamsShown {
    streams: Vec<StreamShown>,
}

#[derive(Serialize)]
struct StreamShown {
    name: StreamName,
    /// None while nothing is held.
    first: Option<Mark>,
    last: Mark,
    live: bool,
}

async fn events_of_one(
    State(consumers): State<Arc<Consumers>>,
    Name(name): Name,
    request: Request,
) -> Result<Response, Refusal> {
    let stream = name.parse().map_err(|_| Refusal::NoStreamName(name.chars().take(NAME_SHOWN_MAX).collect()))?;
    consumers.events(&request.into_parts().0, Some(stream)).await
}

/// What is repeated to the client of a name that is none.
const NAME_SHOWN_MAX: usize = 80;

async fn events_of_several(State(consumers): State<Arc<Consumers>>, request: Request) -> Result<Response, Refusal> {
    consumers.events(&request.into_parts().0, None).await
}

impl Consumers {
    /// Events in the form that the client asks for, of the stream that its path names or of those in its query.
    async fn events(&self, request: &Parts, stream: Option<StreamName>) -> Result<Response, Refusal> {
        let Parts { method, uri, headers, version, .. } = request;
        let wanted = wanted(method, headers)?;
        let (named, cursors) = match stream {
            Some(_) => (Named::InPath, CursorForm::Bare),
            None => (Named::InQuery, CursorForm::Named),
        };
        let resumed = if wanted == Wanted::Endless(Endless::Sse) { query::resumed(headers)? } else { None };
        let query = Query::read(uri, named, resumed, clock::wall())?;
        let streams = stream.map_or_else(|| query.streams.clone(), |stream| vec![stream]);
        let loss = if wanted == Wanted::Page { Loss::Refused } else { Loss::Told };
        let feed = start::feed(&self.logs, &streams, &query.start, loss).await?;
        match wanted {
            Wanted::WebSocket => {
                let (handshake, subprotocol) = ws::handshake::accept(*version, headers)?;
                let told = subprotocol == ws::handshake::Subprotocol::Session;
                Ok((Extension(self.conversation(feed, query, cursors, told)), handshake).into_response())
            }
            Wanted::Page => pages::response(feed, &query.kinds, query.limit, cursors, uri, &self.memory).await,
            Wanted::Endless(endless) => {
                let (keep_alive, position_every) = (self.keep_alive, self.position_every);
                let (positions, memory) = (query.positions, self.memory.clone());
                let stalled = request.extensions.get().cloned().unwrap_or_default();
                let manner = Manner { endless, form: cursors, keep_alive, position_every, positions, memory, stalled };
                Ok(sse::response(feed, query.kinds, &manner))
            }
        }
    }

    /// What follows the handshake; `told` whether the client wants to hear about its subscription, too.
    fn conversation(&self, feed: Feed, query: Query, form: CursorForm, told: bool) -> Upgrade {
        let subscriber = metrics::Subscriber::connected("websocket");
        let (kinds, one) = (query.kinds, feed.width() == 1);
        let partial = told && !(one && kinds.all());
        let positions = partial.then(|| Box::new(Positions::new(one, self.position_every)));
        let (ping_every, memory) = (self.ping_every, self.memory.clone());
        let session = ws::Session { feed, kinds, ping_every, positions, form, memory, subscriber };
        Upgrade::to(|socket, heard| ws::converse(session, socket, heard))
    }
}

/// How a client wants its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    WebSocket,
    Page,
    Endless(Endless),
}

fn wanted(method: &Method, headers: &HeaderMap) -> Result<Wanted, Refusal> {
    if method == Method::GET && ws::handshake::is_asked(headers) {
        return Ok(Wanted::WebSocket);
    }
    match accept::form(headers).ok_or(Refusal::NotAcceptable)? {
        Form::Page => Ok(Wanted::Page),
        Form::Sse => Ok(Wanted::Endless(Endless::Sse)),
        Form::Ndjson => Ok(Wanted::Endless(Endless::Ndjson)),
    }
}
