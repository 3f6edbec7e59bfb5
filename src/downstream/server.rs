//! The consumers' listener: events of one or several streams over WebSocket, server-sent events, NDJSON and pages.
//!
//! It only reads. It refuses pages of foreign origins, unknown parameters, and cursors that it cannot honour.

mod accept;
mod error;
mod pages;
mod query;
pub mod render;
mod sse;
mod start;
mod ws;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response,
    body::Incoming,
    header::{
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY,
    },
};
use serde::Serialize;

use crate::{
    clock,
    downstream::feed::{CursorForm, Feed},
    event_log::EventLogs,
    listener::{Answer, Body, Limits, Listener, Site, Socket, origin::Origins, whole},
    model::{Mark, StreamName},
    tasks::Tasks,
    telemetry::metrics,
};
use accept::Form;
use error::Refusal;
use query::{Named, Query};
use sse::Endless;
use start::Loss;

/// How consumers are served.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Origins of pages that may read here, as browsers write them. Empty: pages of this host and of loopback.
    pub allowed_origins: Vec<String>,
    pub limits: Limits,
    /// A WebSocket client that says nothing for this long is pinged.
    pub ping_every: Duration,
    /// A server-sent stream that has nothing to say for this long says so.
    pub keep_alive: Duration,
}

impl Settings {
    /// The defaults on an address.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            allowed_origins: Vec::new(),
            limits: Limits::default(),
            ping_every: Duration::from_secs(25),
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// A bound server that does not accept yet.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    settings: Settings,
    address: SocketAddr,
}

impl Server {
    /// Binds the listener, within a runtime.
    pub fn bind(settings: Settings) -> std::io::Result<Self> {
        let listener = Listener::bind(settings.listen, settings.limits.clone())?;
        let address = listener.address()?;
        Ok(Self { listener, settings, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `logs` until the group's stop signal; then accepts nothing more and ends when its clients have: they do
    /// when their logs are closed. `live` tells whether a stream hears its platform.
    pub fn start<L>(self, tasks: &mut Tasks, logs: EventLogs, live: L)
    where
        L: Fn(&StreamName) -> bool + Send + Sync + 'static,
    {
        let origins =
            Origins { allowed: self.settings.allowed_origins.clone(), loopback: self.address.ip().is_loopback() };
        let consumers = Consumers { logs, live, origins, settings: self.settings };
        let stop = tasks.stop();
        tasks.start("consumers", async move {
            self.listener.serve(consumers, stop).await;
            Ok(())
        });
    }
}

struct Consumers<L> {
    logs: EventLogs,
    live: L,
    origins: Origins,
    settings: Settings,
}

type Answered = Answer<ws::Session>;

impl<L: Fn(&StreamName) -> bool + Send + Sync + 'static> Site for Consumers<L> {
    type Session = ws::Session;

    async fn answer(&self, request: Request<Incoming>) -> Answered {
        let mut answer = self.route(&request).await.unwrap_or_else(|refusal| Answer::Response(refusal.response()));
        if let (Answer::Response(response), Some(origin)) = (&mut answer, self.origins.named(request.headers())) {
            share(response, origin);
        }
        answer
    }

    async fn converse(session: ws::Session, socket: Socket, heard: Bytes) {
        ws::converse(session, socket, heard).await;
    }
}

/// Lets a page of an allowed origin read the answer.
fn share(response: &mut Response<Body>, origin: &str) {
    let Ok(origin) = HeaderValue::from_str(origin) else { return };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("link"));
    headers.insert(VARY, HeaderValue::from_static("origin"));
}

impl<L: Fn(&StreamName) -> bool + Send + Sync + 'static> Consumers<L> {
    async fn route(&self, request: &Request<Incoming>) -> Result<Answered, Refusal> {
        self.origins.admit(request.headers())?;
        let path = request.uri().path();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let known = matches!(segments[..], ["v1", "streams" | "events"] | ["v1", "streams", _, "events"]);
        if known && request.method() != Method::GET {
            return Err(Refusal::Method);
        }
        match segments[..] {
            ["v1", "streams"] => Ok(Answer::Response(self.streams())),
            ["v1", "streams", name, "events"] => {
                let stream = name.parse().map_err(|_| Refusal::NoStreamName(name.chars().take(80).collect()))?;
                self.events(request, Some(stream)).await
            }
            ["v1", "events"] => self.events(request, None).await,
            [..] => Err(Refusal::NoSuchPath(path.to_owned())),
        }
    }

    /// The streams that can be read.
    fn streams(&self) -> Response<Body> {
        let streams = self.logs.iter().map(|(name, log)| {
            let end = log.end();
            let mark = |offset| Mark { epoch: end.lineage.current(), offset };
            let first = (end.first <= end.last).then(|| mark(end.first));
            StreamShown { name, first, last: mark(end.last), live: (self.live)(name) }
        });
        let shown = StreamsShown { streams: streams.collect() };
        let body = serde_json::to_vec(&shown).expect("names and marks always serialize");
        let mut response = Response::new(whole(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Events in the form that the client asks for.
    async fn events(&self, request: &Request<Incoming>, stream: Option<StreamName>) -> Result<Answered, Refusal> {
        let (uri, headers) = (request.uri(), request.headers());
        let wanted = wanted(headers)?;
        let (named, cursors) = match stream {
            Some(_) => (Named::InPath, CursorForm::Bare),
            None => (Named::InQuery, CursorForm::Named),
        };
        let resumed = if wanted == Wanted::Endless(Endless::Sse) { last_event_id(headers) } else { None };
        let query = Query::read(uri, named, resumed, clock::wall())?;
        let streams = stream.map_or_else(|| query.streams.clone(), |stream| vec![stream]);
        let loss = if wanted == Wanted::Page { Loss::Refused } else { Loss::Told };
        let feed = start::feed(&self.logs, &streams, &query.start, loss).await?;
        match wanted {
            Wanted::WebSocket => {
                let response = ws::handshake::accept(request.version(), headers)?;
                Ok(Answer::Upgrade(response, self.session(feed, query)))
            }
            Wanted::Page => {
                let page = pages::response(feed, &query.kinds, query.limit, cursors, uri).await?;
                Ok(Answer::Response(page))
            }
            Wanted::Endless(endless) => {
                let keep_alive = self.settings.keep_alive;
                Ok(Answer::Response(sse::response(feed, query.kinds, endless, cursors, keep_alive)))
            }
        }
    }

    fn session(&self, feed: Feed, query: Query) -> ws::Session {
        let subscriber = metrics::Subscriber::connected("websocket");
        ws::Session { feed, kinds: query.kinds, ping_every: self.settings.ping_every, subscriber }
    }
}

/// How a client wants its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    WebSocket,
    Page,
    Endless(Endless),
}

fn wanted(headers: &HeaderMap) -> Result<Wanted, Refusal> {
    if ws::handshake::is_asked(headers) {
        return Ok(Wanted::WebSocket);
    }
    match accept::form(headers).ok_or(Refusal::NotAcceptable)? {
        Form::Page => Ok(Wanted::Page),
        Form::Sse => Ok(Wanted::Endless(Endless::Sse)),
        Form::Ndjson => Ok(Wanted::Endless(Endless::Ndjson)),
    }
}

/// Where a browser's event source got to; it is empty before the first event.
fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty())
}

#[derive(Serialize)]
struct StreamsShown<'a> {
    streams: Vec<StreamShown<'a>>,
}

#[derive(Serialize)]
struct StreamShown<'a> {
    name: &'a StreamName,
    /// None while nothing is held.
    first: Option<Mark>,
    last: Mark,
    live: bool,
}

#[cfg(test)]
mod tests;
