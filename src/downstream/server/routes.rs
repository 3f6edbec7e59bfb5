//! The routes of the consumer server.
//!
//! Requests from pages need an allowed origin. Unknown paths, methods, parameters and media types are rejected.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

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
    routing::{get, post, put},
};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    accept::{self, ResponseForm},
    access::{
        AccessControl, AccessError, Admission, Client, ConsumerSession, FirstMessage, SessionRequest, permits,
        reject_ticket,
    },
    buffer_pool::BufferPool,
    consumers,
    error::ConsumerRequestError,
    pages,
    position::PositionReporter,
    query::{self, EventQuery, QueryError, StartPoint, StreamNameLocation},
    read_start::{self, OnTrimmed},
    sse::{self, EndlessOptions, StreamFormat},
    tickets, ws,
};
use crate::{
    clock,
    downstream::{
        consumers::{ConsumerReader, Consumers},
        merged_reader::{CursorForm, MergedReader},
    },
    event_log::EventLogs,
    listener::{
        ClientAddress, UpgradeExtension,
        json::{APPLICATION_JSON, json_response},
        origin::Origins,
        resource::{PathName, READ, allow_methods, not_found},
    },
    model::{ConsumerGrant, Mark, StreamName},
    telemetry::metrics,
};

/// The state of the handlers.
pub(super) struct ConsumerState {
    pub(super) logs: EventLogs,
    pub(super) durable: Consumers,
    /// Returns whether a stream is live.
    pub(super) live: Box<dyn Fn(&StreamName) -> bool + Send + Sync>,
    /// None: every client of the listener may read everything.
    pub(super) access: Option<AccessControl>,
    pub(super) origins: Origins,
    pub(super) ping_every: Duration,
    pub(super) keep_alive: Duration,
    pub(super) position_every: Duration,
    pub(super) memory: BufferPool,
}

pub(super) fn router(state: ConsumerState) -> Router {
    let state = Arc::new(state);
    Router::new()
        .route("/v1/streams", allow_methods(READ, get(streams)))
        .route("/v1/streams/{stream}/events", allow_methods(READ, get(events_of_one)))
        .route("/v1/events", allow_methods(READ, get(events_of_several)))
        .route("/v1/consumers", allow_methods(READ, get(consumers::list)))
        .route(
            "/v1/consumers/{consumer}",
            allow_methods("GET, HEAD, DELETE", get(consumers::show).delete(consumers::delete)),
        )
        .route("/v1/consumers/{consumer}/cursor", allow_methods("PUT", put(consumers::acknowledge)))
        .route("/v1/consumers/{consumer}/seek", allow_methods("POST", post(consumers::seek)))
        .route("/v1/tickets", allow_methods("POST", post(tickets::issue)))
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
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

/// The list of streams that the caller may read.
async fn streams(
    State(consumers): State<Arc<ConsumerState>>,
    request: Request,
) -> Result<impl IntoResponse, ConsumerRequestError> {
    let grant = consumers.grant(&request.into_parts().0).await?;
    let readable = |name: &StreamName| grant.as_ref().is_none_or(|grant| grant.may_read(name));
    let streams = consumers.logs.iter().filter(|(name, _)| readable(name)).map(|(name, log)| {
        let end = log.end();
        let mark = |offset| Mark { epoch: end.lineage.current(), offset };
        let first = (end.first <= end.last).then(|| mark(end.first));
        StreamListEntry { name: name.clone(), first, last: mark(end.last), live: (consumers.live)(name) }
    });
    let shown = StreamListResponse { streams: streams.collect() };
    Ok(json_response(StatusCode::OK, APPLICATION_JSON, &shown))
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
    let stream = name.parse().map_err(|_| ConsumerRequestError::InvalidStreamName(query::shown(&name)))?;
    consumers.events(&request.into_parts().0, Some(stream)).await
}

async fn events_of_several(
    State(consumers): State<Arc<ConsumerState>>,
    request: Request,
) -> Result<Response, ConsumerRequestError> {
    consumers.events(&request.into_parts().0, None).await
}

impl ConsumerState {
    /// What the caller of a request that is no upgrade may do; none where no authentication is configured.
    pub(super) async fn grant(&self, request: &Parts) -> Result<Option<ConsumerGrant>, ConsumerRequestError> {
        match self.admit(request, false, self.client(request).as_ref()).await? {
            None => Ok(None),
            Some(Admission::Granted(grant)) => Ok(Some(grant)),
            Some(Admission::FirstMessage(_)) => Err(AccessError::Missing.into()),
        }
    }

    async fn admit(
        &self,
        request: &Parts,
        is_upgrade: bool,
        client: Option<&Client>,
    ) -> Result<Option<Admission>, AccessError> {
        match self.access.as_ref().zip(client) {
            None => reject_ticket(&request.uri).map(|()| None).map_err(AccessError::from),
            Some((access, client)) => access.authenticate(request, is_upgrade, client).await.map(Some),
        }
    }

    /// The client of a request; none where no authentication is configured.
    pub(super) fn client(&self, request: &Parts) -> Option<Client> {
        self.access.as_ref().map(|access| access.client(address(request), &request.headers))
    }

    /// Events of the stream in the path or the streams in the query, in the requested form.
    async fn events(
        self: &Arc<Self>,
        request: &Parts,
        stream: Option<StreamName>,
    ) -> Result<Response, ConsumerRequestError> {
        let mode = wanted(&request.method, &request.headers)?;
        let client = self.client(request);
        let admission = self.admit(request, mode == DeliveryMode::WebSocket, client.as_ref()).await?;
        let read = EventRead::of(request, mode, stream)?;
        match admission {
            Some(Admission::FirstMessage(permit)) => self.upgrade_unauthenticated(request, read, client, permit),
            Some(Admission::Granted(grant)) => self.deliver(request, read, mode, Some(grant), client).await,
            None => self.deliver(request, read, mode, None, client).await,
        }
    }

    /// A reader of the requested streams, if the grant permits them, and the session of its connection.
    async fn open(
        &self,
        read: &EventRead,
        mode: DeliveryMode,
        grant: Option<ConsumerGrant>,
        client: IpAddr,
    ) -> Result<OpenedRead, ConsumerRequestError> {
        if grant.as_ref().is_some_and(|grant| !permits(grant, &read.streams)) {
            return Err(AccessError::Forbidden.into());
        }
        let on_trimmed = if mode == DeliveryMode::Page { OnTrimmed::Reject } else { OnTrimmed::EmitGap };
        if let Some(unknown) = read.streams.iter().find(|stream| self.logs.get(stream).is_none()) {
            return Err(unknown_stream(unknown, grant.as_ref()));
        }
        let (feed, consumer) = match &read.query.consumer {
            Some(consumer) => {
                consumers::check_readable(self, consumer, grant.as_ref()).await?;
                let (feed, consumer) = Box::pin(consumers::open(self, read, consumer, on_trimmed)).await?;
                (feed, Some(Arc::new(consumer)))
            }
            None => {
                let (streams, start) = (&read.streams, &read.query.start);
                (read_start::feed(&self.logs, streams, start, &BTreeMap::new(), on_trimmed).await?, None)
            }
        };
        let session = match (&self.access, grant, mode.transport()) {
            (Some(access), Some(grant), Some(transport)) => {
                let request = SessionRequest { grant, streams: read.streams.clone(), address: client, transport };
                Some(Box::new(access.open(request)?))
            }
            (None, _, _) | (_, None, _) | (_, _, None) => None,
        };
        Ok(OpenedRead { feed, session, consumer })
    }

    async fn deliver(
        &self,
        request: &Parts,
        read: EventRead,
        mode: DeliveryMode,
        grant: Option<ConsumerGrant>,
        client: Option<Client>,
    ) -> Result<Response, ConsumerRequestError> {
        let opened = self.open(&read, mode, grant, address(request)).await?;
        let EventRead { query, cursors, .. } = read;
        match mode {
            DeliveryMode::WebSocket => {
                let (handshake, subprotocol) = ws::handshake::accept(request.version, &request.headers)?;
                let subscription = self.subscription(opened, query, cursors, subprotocol, client);
                let upgrade = UpgradeExtension::new(|socket, early_bytes| ws::run(subscription, socket, early_bytes));
                Ok((Extension(upgrade), handshake).into_response())
            }
            DeliveryMode::Page => {
                let OpenedRead { feed, consumer, .. } = opened;
                let (kinds, limit) = (&query.type_filter, query.limit);
                pages::response(feed, kinds, limit, cursors, &request.uri, &self.memory, consumer.as_deref()).await
            }
            DeliveryMode::Endless(endless) => {
                let (keep_alive, position_every) = (self.keep_alive, self.position_every);
                let (positions, memory) = (query.positions, self.memory.clone());
                let stalled = request.extensions.get().cloned().unwrap_or_default();
                let options =
                    EndlessOptions { endless, form: cursors, keep_alive, position_every, positions, memory, stalled };
                Ok(sse::response(opened, query.type_filter, &options))
            }
        }
    }

    /// The upgrade of a client that authenticates with its first message. Until then it has no reader and no buffer.
    fn upgrade_unauthenticated(
        self: &Arc<Self>,
        request: &Parts,
        read: EventRead,
        client: Option<Client>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Response, ConsumerRequestError> {
        let (handshake, subprotocol) = ws::handshake::accept(request.version, &request.headers)?;
        let consumers = Arc::clone(self);
        let upgrade = UpgradeExtension::new(move |socket, early_bytes| async move {
            let mut pending = Box::pin(ws::PendingSocket::open(socket, early_bytes)).await;
            let opened = Box::pin(consumers.authenticate_socket(&mut pending, &read, client.as_ref())).await;
            drop(permit);
            match opened {
                Ok(opened) => {
                    let EventRead { query, cursors, .. } = read;
                    let subscription = consumers.subscription(opened, query, cursors, subprotocol, client);
                    drop(consumers);
                    ws::run_authenticated(subscription, pending).await;
                }
                Err(end) => pending.close(end).await,
            }
        });
        Ok((Extension(upgrade), handshake).into_response())
    }

    /// Reads the first message of a socket and opens what it requested.
    async fn authenticate_socket(
        &self,
        socket: &mut ws::PendingSocket,
        read: &EventRead,
        client: Option<&Client>,
    ) -> Result<OpenedRead, FirstMessage> {
        let (access, client) =
            self.access.as_ref().zip(client).expect("only a listener with authentication has pending sockets");
        let token = socket.first_token().await?;
        let grant = access.authenticate_message(&token, client).await?;
        let opened = self.open(read, DeliveryMode::WebSocket, Some(grant), client.address).await;
        opened.map_err(|error| {
            if let ConsumerRequestError::Access(error) = error {
                error.into()
            } else {
                FirstMessage::Rejected(error.slug())
            }
        })
    }

    fn subscription(
        &self,
        opened: OpenedRead,
        query: EventQuery,
        form: CursorForm,
        subprotocol: ws::handshake::Subprotocol,
        client: Option<Client>,
    ) -> ws::WsSubscription {
        let OpenedRead { feed, session, consumer } = opened;
        let subscriber = metrics::SubscriberMetrics::connected("websocket");
        let (kinds, one) = (query.type_filter, feed.stream_count() == 1);
        let has_messages = subprotocol == ws::handshake::Subprotocol::Session;
        let partial = has_messages && !(one && kinds.matches_all());
        let positions = partial.then(|| Box::new(PositionReporter::new(one, self.position_every)));
        let (ping_every, memory) = (self.ping_every, self.memory.clone());
        let access = session.zip(self.access.clone()).zip(client);
        let access = access
            .map(|((session, control), client)| Box::new(ws::WsAccess { session, control, client, has_messages }));
        let consumer = consumer.map(|reader| Box::new(ws::WsConsumer::new(reader)));
        ws::WsSubscription { feed, kinds, ping_every, positions, form, memory, subscriber, access, consumer }
    }
}

/// The address of the client of a request.
fn address(request: &Parts) -> IpAddr {
    request.extensions.get().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ClientAddress(address)| *address)
}

/// A caller who may not read everything does not learn which streams exist.
fn unknown_stream(stream: &StreamName, grant: Option<&ConsumerGrant>) -> ConsumerRequestError {
    if grant.is_none_or(ConsumerGrant::reads_all) {
        ConsumerRequestError::UnknownStream(stream.clone())
    } else {
        AccessError::Forbidden.into()
    }
}

/// A reader with the session of its connection, and the durable consumer whose name it has.
pub(super) struct OpenedRead {
    pub(super) feed: MergedReader,
    pub(super) session: Option<Box<ConsumerSession>>,
    pub(super) consumer: Option<Arc<ConsumerReader>>,
}

/// What a request reads.
pub(super) struct EventRead {
    pub(super) streams: Vec<StreamName>,
    pub(super) query: EventQuery,
    cursors: CursorForm,
}

impl EventRead {
    fn of(request: &Parts, mode: DeliveryMode, stream: Option<StreamName>) -> Result<Self, ConsumerRequestError> {
        let (named, cursors) = match stream {
            Some(_) => (StreamNameLocation::InPath, CursorForm::Bare),
            None => (StreamNameLocation::InQuery, CursorForm::Named),
        };
        let is_sse = mode == DeliveryMode::Endless(StreamFormat::Sse);
        let resumed = if is_sse { query::last_event_id(&request.headers)? } else { None };
        let query = EventQuery::read(&request.uri, named, resumed, clock::wall())?;
        if query.consumer.is_some() && mode != DeliveryMode::Page && matches!(query.start, StartPoint::After(_)) {
            return Err(QueryError::Conflict("after", "consumer").into());
        }
        let streams = stream.map_or_else(|| query.streams.clone(), |stream| vec![stream]);
        Ok(Self { streams, query, cursors })
    }
}

/// The delivery that a request selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeliveryMode {
    WebSocket,
    Page,
    Endless(StreamFormat),
}

impl DeliveryMode {
    /// The transport of a session; none for a page, which ends at once.
    fn transport(self) -> Option<&'static str> {
        match self {
            Self::WebSocket => Some("websocket"),
            Self::Page => None,
            Self::Endless(format) => Some(format.transport()),
        }
    }
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
