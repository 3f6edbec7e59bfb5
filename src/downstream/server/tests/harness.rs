//! A server over logs in a temporary directory, and clients of every transport.

use std::{collections::BTreeMap, time::Duration};

use bytestring::ByteString;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{
    downstream::{
        consumers::Consumers,
        server::{
            ConsumerServer, Settings,
            access::{AccessControl, Verifier},
        },
    },
    event_log::{EventLog, EventLogs, LogWriter, Settings as LogSettings},
    model::{Body, Checkpoint, Event, Mark, Offset, Source, StreamName, Timestamp},
    network::{self, NetworkPolicy, Resolver, TrustedRoots},
    store::{
        Retention, Store,
        embedded::{EmbeddedStore, Settings as StoreSettings},
    },
    tasks::Tasks,
};

/// Timeout of every wait.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
pub(super) const RECEIVED: Timestamp = Timestamp(1_777_901_509_570);

pub(super) struct RelayFixture {
    pub(super) logs: EventLogs,
    writers: BTreeMap<StreamName, LogWriter>,
    pub(super) authority: String,
    pub(super) access: Option<AccessControl>,
    pub(super) store: Store,
    tasks: Tasks,
    _directory: tempfile::TempDir,
}

/// The settings that a test changes from the defaults.
pub(super) struct RelaySetup {
    pub(super) server: Settings,
    pub(super) retention: u64,
    pub(super) tail_bytes: usize,
    /// The settings of authentication, as JSON.
    pub(super) access: Option<Value>,
}

impl Default for RelaySetup {
    fn default() -> Self {
        let server = Settings::new(([127, 0, 0, 1], 0).into());
        Self { server, retention: u64::MAX, tail_bytes: 1 << 20, access: None }
    }
}

impl RelayFixture {
    pub(super) async fn start() -> Self {
        Self::with(RelaySetup::default()).await
    }

    pub(super) async fn with(setup: RelaySetup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let retention = Retention { events: setup.retention, age: Duration::from_secs(1 << 30), bytes: u64::MAX };
        let store = EmbeddedStore::open(&StoreSettings { path: directory.path().join("data"), retention }).unwrap();
        let store = Store::Embedded(store);
        let streams = ["agents", "queues"].map(|name| {
            let stream: StreamName = name.parse().unwrap();
            let source = Source::new(&"acme".parse().unwrap(), &stream);
            (stream, source)
        });
        let settings = LogSettings { tail_bytes: setup.tail_bytes };
        let logs = EventLogs::open(store.clone(), &streams, &settings).await.unwrap();
        let mut writers = BTreeMap::new();
        for (stream, log) in logs.iter() {
            writers.insert(stream.clone(), log.claim(None).await.unwrap());
        }
        let server = ConsumerServer::bind(setup.server).unwrap();
        let authority = server.address().to_string();
        let mut tasks = Tasks::new("downstream");
        let access = match setup.access {
            Some(settings) => Some(access_control(settings, &store, &mut tasks).await),
            None => None,
        };
        let server = server.accept(&mut tasks).with_access(access.clone());
        let durable = Consumers::start(store.clone(), logs.clone(), BTreeMap::new(), &mut tasks);
        server.serve(logs.clone(), durable, |stream| stream.as_str() == "queues");
        Self { logs, writers, authority, access, store, tasks, _directory: directory }
    }

    pub(super) fn log(&self, stream: &str) -> &EventLog {
        self.logs.get(&stream.parse().unwrap()).unwrap()
    }

    /// The mark of an offset.
    pub(super) fn mark(&self, stream: &str, offset: u64) -> Mark {
        Mark { epoch: self.log(stream).end().lineage.current(), offset: Offset(offset) }
    }

    /// Appends one event for each body, each of type `test.{its first letter}`.
    pub(super) async fn append(&self, stream: &str, bodies: &[&str]) {
        let events: Vec<Event> = bodies.iter().map(|body| event(body)).collect();
        let checkpoint = Checkpoint { position: None, last_received_at: RECEIVED, feed: None };
        self.writers[&stream.parse::<StreamName>().unwrap()].append(&events, checkpoint).await.unwrap();
    }

    /// Appends events `"{from}"` to `"{to}"`, a few at a time.
    pub(super) async fn say(&self, stream: &str, numbers: std::ops::RangeInclusive<u64>) {
        let bodies: Vec<String> = numbers.map(|number| format!("{number}")).collect();
        for some in bodies.chunks(7) {
            self.append(stream, &some.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
    }

    /// Shuts down in the daemon's order: the logs first.
    pub(super) async fn drain(self) {
        self.logs.close();
        self.tasks.drain(TIMEOUT).await.unwrap();
    }

    pub(super) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> TestHttpClient {
        TestHttpClient::send(&self.authority, "GET", path, headers).await
    }

    pub(super) async fn subscribe(&self, path: &str) -> TestWsClient {
        self.offer(path, &[]).await.0
    }

    /// A connection with a small receive buffer.
    pub(super) async fn connect_with_small_buffer(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.connect(self.authority.parse().unwrap()).await.unwrap()
    }

    pub(super) async fn subscribe_over(&self, stream: TcpStream, path: &str) -> TestWsClient {
        let request = format!("ws://{}{path}", self.authority).into_client_request().unwrap();
        let upgraded = client_async(request, MaybeTlsStream::Plain(stream));
        TestWsClient(timeout(TIMEOUT, upgraded).await.unwrap().unwrap().0)
    }

    pub(super) async fn offer(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (TestWsClient, tokio_tungstenite::tungstenite::handshake::client::Response) {
        let mut request = format!("ws://{}{path}", self.authority).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, response) = timeout(TIMEOUT, connect_async(request)).await.unwrap().unwrap();
        (TestWsClient(socket), response)
    }
}

async fn access_control(settings: Value, store: &Store, tasks: &mut Tasks) -> AccessControl {
    let settings = serde_json::from_value(settings).unwrap();
    let trust = TrustedRoots::of(rustls::RootCertStore::empty()).unwrap();
    let network = NetworkPolicy::new(network::Settings::default(), trust, Resolver::default());
    let verifier = Verifier::start(&settings, &network, tasks).await.unwrap();
    let access = AccessControl::start(&settings, verifier, store.clone(), 100, tasks);
    access.wait_until_ready().await;
    access
}

pub(super) fn event(body: &str) -> Event {
    let mut event = Event::internal("test.event", &(), RECEIVED);
    event.kind = ByteString::from(format!("test.{}", body.trim_matches('"').chars().next().unwrap_or('-')));
    event.body = Body::Json(ByteString::from(body.to_owned()));
    event
}

/// The offsets of events, from the `sequence` attribute.
pub(super) fn sequences(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["sequence"].as_str().unwrap().parse().unwrap()).collect()
}

pub(super) struct TestWsClient(pub(super) WebSocketStream<MaybeTlsStream<TcpStream>>);

impl TestWsClient {
    pub(super) async fn message(&mut self) -> Option<Message> {
        timeout(TIMEOUT, self.0.next()).await.expect("a message in time").and_then(Result::ok)
    }

    pub(super) async fn event(&mut self) -> Value {
        loop {
            match self.message().await {
                Some(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Some(Message::Ping(_)) => (),
                other => panic!("{other:?} where an event was expected"),
            }
        }
    }

    pub(super) async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Code and reason of the next close; skips earlier messages.
    pub(super) async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.message().await {
                Some(Message::Close(Some(frame))) => return (frame.code.into(), frame.reason.to_string()),
                Some(Message::Close(None)) | None => panic!("closed without a reason"),
                Some(_) => (),
            }
        }
    }
}

/// A plain HTTP exchange whose body is read piece by piece.
pub(super) struct TestHttpClient {
    stream: TcpStream,
    pub(super) head: String,
    raw: Vec<u8>,
    body: Vec<u8>,
    ended: bool,
}

impl TestHttpClient {
    pub(super) async fn send(authority: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::send_over(TcpStream::connect(authority).await.unwrap(), authority, method, path, headers).await
    }

    pub(super) async fn send_over(
        stream: TcpStream,
        authority: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        Self::exchange(stream, authority, method, path, headers, "").await
    }

    pub(super) async fn send_with_body(
        authority: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Self {
        Self::exchange(TcpStream::connect(authority).await.unwrap(), authority, method, path, headers, body).await
    }

    async fn exchange(
        stream: TcpStream,
        authority: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Self {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: {authority}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request.push_str(body);
        let mut http = Self { stream, head: String::new(), raw: Vec::new(), body: Vec::new(), ended: false };
        http.stream.write_all(request.as_bytes()).await.unwrap();
        http.read_head().await;
        http
    }

    async fn read_head(&mut self) {
        loop {
            if let Some(at) = self.raw.windows(4).position(|end| end == b"\r\n\r\n") {
                self.head = String::from_utf8(self.raw.drain(..at + 4).collect()).unwrap().to_lowercase();
                return;
            }
            assert!(self.more().await, "the head is cut off");
        }
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let read = timeout(TIMEOUT, self.stream.read(&mut buffer)).await.expect("bytes in time").unwrap_or(0);
        self.raw.extend_from_slice(&buffer[..read]);
        read > 0
    }

    pub(super) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.map(str::to_owned)
    }

    /// Reads one chunk of the body; false at its end.
    async fn chunk(&mut self) -> bool {
        loop {
            if let Some(at) = self.raw.windows(2).position(|end| end == b"\r\n") {
                let len = usize::from_str_radix(std::str::from_utf8(&self.raw[..at]).unwrap(), 16).unwrap();
                if self.raw.len() >= at + 2 + len + 2 {
                    self.body.extend_from_slice(&self.raw[at + 2..at + 2 + len]);
                    self.raw.drain(..at + 2 + len + 2);
                    self.ended = len == 0;
                    return len > 0;
                }
            }
            if !self.more().await {
                return false;
            }
        }
    }

    /// The whole body of a finite response.
    pub(super) async fn body(&mut self) -> String {
        if let Some(len) = self.header("content-length") {
            let len: usize = len.parse().unwrap();
            while self.raw.len() < len {
                assert!(self.more().await, "the body is cut off");
            }
            return String::from_utf8(self.raw[..len].to_vec()).unwrap();
        }
        while self.chunk().await {}
        assert!(self.ended, "the body is cut off");
        String::from_utf8(std::mem::take(&mut self.body)).unwrap()
    }

    pub(super) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.body().await).unwrap()
    }

    /// The last part of the problem's `type`, and its detail.
    pub(super) async fn problem(&mut self) -> (String, String) {
        assert_eq!(self.header("content-type").as_deref(), Some("application/problem+json"));
        let problem = self.json().await;
        assert_eq!(problem["status"], self.status());
        let kind = problem["type"].as_str().unwrap().strip_prefix("urn:trunkline:problem:").unwrap().to_owned();
        (kind, problem["detail"].as_str().unwrap().to_owned())
    }

    /// The next piece of an endless body before `end`, without `end`.
    pub(super) async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.body.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let piece: Vec<u8> = self.body.drain(..at + end.len()).take(at).collect();
                return Some(String::from_utf8(piece).unwrap());
            }
            if !self.chunk().await {
                return None;
            }
        }
    }

    /// The next `id` of a server-sent stream, with or without an event.
    pub(super) async fn sse_id(&mut self) -> Option<String> {
        loop {
            let block = self.until("\n\n").await?;
            let id = block.lines().find_map(|line| line.strip_prefix("id: "));
            if let Some(id) = id {
                return Some(id.to_owned());
            }
        }
    }

    /// The next server-sent event: its id and its data. Skips comments and blocks without data.
    pub(super) async fn sse(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.until("\n\n").await?;
            let field = |name: &str| block.lines().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>();
            let data = field("data: ");
            if !data.is_empty() {
                return Some((field("id: ").concat(), serde_json::from_str(&data.join("\n")).unwrap()));
            }
        }
    }

    pub(super) async fn sse_events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.sse().await.expect("one more event").1);
        }
        events
    }

    /// The next line that is not empty.
    pub(super) async fn line(&mut self) -> Option<Value> {
        loop {
            let line = self.until("\n").await?;
            if !line.is_empty() {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    }

    pub(super) async fn lines(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.line().await.expect("one more line"));
        }
        events
    }

    /// The URI of the next page.
    pub(super) fn next_page(&self) -> String {
        let link = self.header("link").expect("every page links to the next");
        link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap().to_owned()
    }
}
