//! Every transport over real sockets, with a small platform, and with the session machine as the reader.

use std::{future::poll_fn, time::Duration};

use futures_util::SinkExt;
use rustls::RootCertStore;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::{
    clock,
    connector::{Credential, Frame, Item, RestRequest, Verdict, genesys_sequenced},
    network::{NetworkPolicy, Resolver, Settings, TrustedRoots},
    protocol::session::{Input, Output, Session, SessionId, StartOptions, Timeouts},
    upstream::{driver, rest_client, session_sockets::SessionSockets},
};

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(20);
const FRAME_MAX: usize = 1_000;
const EVENT: &str = r#"[{"sequenceId":1}]"#;
const POLLS: [Transport; 2] = [Transport::LongPoll, Transport::Poll { interval: Duration::from_millis(10) }];
const CLOSED: &str = "closed";

/// A platform that answers requests from a script.
struct Platform {
    port: u16,
    /// The head of each request, and [`CLOSED`] for the end of a connection.
    requests: mpsc::Receiver<String>,
    answers: mpsc::Sender<Answer>,
    tasks: JoinSet<()>,
}

enum Answer {
    Whole(String),
    /// The rest follows.
    Part(String),
}

fn answer(status: u16, body: &str) -> Answer {
    Answer::Whole(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

impl Platform {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, requests) = mpsc::channel(64);
        let (answers, mut script) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                while let Some(head) = read_head(&mut stream).await {
                    seen.send(head).await.unwrap();
                    if !respond(&mut stream, &mut script).await {
                        break;
                    }
                }
                seen.send(CLOSED.to_owned()).await.unwrap();
            }
        });
        Self { port, requests, answers, tasks }
    }

    /// A connection of a session to this platform.
    async fn connect(&self, transport: Transport, credential: Credential) -> UpstreamConnection {
        let url = format!("http://127.0.0.1:{}/events", self.port);
        dialler(transport, &url).open(Dial { url, credential }, Secret::new("t")).await.unwrap()
    }

    async fn answer(&self, answer: Answer) {
        self.answers.send(answer).await.unwrap();
    }

    async fn request(&mut self) -> String {
        soon(self.requests.recv()).await.unwrap()
    }
}

/// Writes one answer. False if the client has closed the connection.
async fn respond(stream: &mut TcpStream, script: &mut mpsc::Receiver<Answer>) -> bool {
    loop {
        let mut byte = [0];
        tokio::select! {
            answer = script.recv() => match answer {
                Some(Answer::Whole(bytes)) => return stream.write_all(bytes.as_bytes()).await.is_ok(),
                Some(Answer::Part(bytes)) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                None => return false,
            },
            _ = stream.read(&mut byte) => return false,
        }
    }
}

fn connector() -> Connector {
    Connector::Sequenced(genesys_sequenced::Settings {
        url: "wss://platform.test".to_owned(),
        placement: genesys_sequenced::Placement::Header,
        snapshot_url: None,
    })
}

fn dialler(transport: Transport, configured: &str) -> Dialler {
    let trust = TrustedRoots::of(RootCertStore::empty()).unwrap();
    let network = NetworkPolicy::new(Settings::default(), trust, Resolver::default());
    let client = rest_client::client(&network).unwrap();
    let configured = [RestRequest::get(configured)];
    let rest =
        RestClient::new(client, network.clone(), "https://api.test", "accounts.a.api_url".to_owned(), &configured);
    let sockets = SocketDialler::new(network, FRAME_MAX, TIMEOUT, None);
    Dialler { connector: connector(), transport, sockets, rest, frame_max: FRAME_MAX }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, work).await.expect("in time")
}

async fn next(connection: &mut UpstreamConnection) -> Result<SocketEvent, Failure> {
    soon(poll_fn(|cx| connection.poll_frame(cx))).await
}

/// The next frame or end, without the reports of its beginning.
async fn next_frame(connection: &mut UpstreamConnection) -> Result<Frame, Failure> {
    loop {
        if let SocketEvent::Frame(frame) = next(connection).await? {
            return Ok(frame);
        }
    }
}

/// Reads until a request has arrived, and returns it.
async fn requested(connection: &mut UpstreamConnection, platform: &mut Platform) -> String {
    tokio::select! {
        request = platform.request() => request,
        event = next(connection) => panic!("{event:?}"),
    }
}

fn frame(text: &str) -> Frame {
    Frame::Binary(text.to_owned().into())
}

#[tokio::test]
async fn a_session_receives_the_same_over_every_transport() {
    let mut items = Vec::new();
    for transport in [Transport::WebSocket, POLLS[0], POLLS[1]] {
        let platform = Platform::start().await;
        let connection = match transport {
            Transport::WebSocket => web_socket(EVENT).await,
            Transport::LongPoll | Transport::Poll { .. } => {
                platform.answer(answer(304, "")).await;
                platform.answer(answer(200, EVENT)).await;
                platform.connect(transport, Credential::Header).await
            }
        };
        items.push(soon(received(connection)).await);
    }
    let [socket, long_poll, poll] = &items[..] else { panic!("{items:?}") };
    assert_eq!((socket.len(), socket), (1, long_poll));
    assert_eq!(socket, poll);
}

/// An open WebSocket whose platform has sent this text.
async fn web_socket(text: &'static str) -> UpstreamConnection {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Message::text(text)).await.unwrap();
        socket
    };
    let dialler = dialler(Transport::WebSocket, &url);
    let dial = Dial { url: url.clone(), credential: Credential::Header };
    let (_socket, connection) = soon(async { tokio::join!(serving, dialler.open(dial, Secret::new("t"))) }).await;
    connection.unwrap()
}

/// The first items that a session receives. It must be live.
async fn received(connection: UpstreamConnection) -> Vec<Item> {
    let timeouts = Timeouts { connect: TIMEOUT, silence: TIMEOUT, frame: TIMEOUT, close: TIMEOUT };
    let options = StartOptions { reuse: None, subscribed: &[] };
    let (id, now) = (SessionId(1), driver::now);
    let mut session = Session::start(id, 1, &connector(), timeouts, options, now());
    session.handle(Input::Opened, now());
    let mut sockets = SessionSockets::new();
    sockets.add(id, connection);
    loop {
        while let Some(output) = session.poll_output() {
            if let Output::Received(mut items) = output {
                assert!(session.is_live());
                for item in &mut items {
                    let Item::Event(event) = item else { panic!("{item:?}") };
                    event.received = crate::model::Timestamp(0);
                }
                return items;
            }
        }
        session.handle(
            match sockets.next().await.1 {
                Ok(SocketEvent::Frame(frame)) => Input::Frame(frame),
                Ok(SocketEvent::PartialFrame) => Input::PartialFrame,
                Err(failure) => Input::Closed(failure),
            },
            now(),
        );
    }
}

#[tokio::test]
async fn an_empty_answer_is_a_heartbeat_and_the_token_is_where_the_platform_expects_it() {
    for transport in POLLS {
        for (credential, in_query) in [(Credential::Header, false), (Credential::Query("key".to_owned()), true)] {
            let mut platform = Platform::start().await;
            let mut connection = platform.connect(transport, credential).await;
            for (sent, expected) in [
                (answer(304, ""), Frame::Answered { probes: 0 }),
                (answer(200, EVENT), frame(EVENT)),
                (answer(204, ""), Frame::Answered { probes: 0 }),
                (answer(200, "x"), frame("x")),
            ] {
                platform.answer(sent).await;
                assert_eq!(next_frame(&mut connection).await, Ok(expected));
                let request = platform.request().await.to_ascii_lowercase();
                let target = if in_query { "get /events?key=t http" } else { "get /events http" };
                assert!(request.starts_with(target), "{request}");
                assert_eq!(request.contains("authorization: bearer t\r\n"), !in_query, "{request}");
            }
        }
    }
}

#[tokio::test]
async fn an_error_ends_the_session_with_its_verdict_and_nothing_more_is_sent() {
    for transport in POLLS {
        for (status, verdict) in [(401, Verdict::RefreshToken), (403, Verdict::Refused), (500, Verdict::BackOff)] {
            let mut platform = Platform::start().await;
            let mut connection = platform.connect(transport, Credential::Header).await;
            platform.answer(answer(status, "")).await;
            let failure = next_frame(&mut connection).await.unwrap_err();
            assert_eq!(connector().classify(&failure), verdict, "{failure}");
            assert_eq!(next(&mut connection).await, Err(failure));
            platform.request().await;
            assert!(platform.requests.try_recv().is_err());
        }
    }
}

#[tokio::test]
async fn a_lost_connection_and_a_foreign_host_are_unreachable() {
    for transport in POLLS {
        let mut platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        requested(&mut connection, &mut platform).await;
        platform.tasks.shutdown().await;
        let failure = next_frame(&mut connection).await.unwrap_err();
        assert!(failure.to_string().starts_with("unreachable: http://127.0.0.1"), "{failure}");
        let dial = Dial { url: "https://foreign.test/".to_owned(), credential: Credential::Header };
        let mut connection = dialler(transport, "https://platform.test").open(dial, Secret::new("t")).await.unwrap();
        let failure = next_frame(&mut connection).await.unwrap_err();
        assert!(failure.to_string().contains("token not sent"), "{failure}");
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    for transport in POLLS {
        let platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        let longest = "x".repeat(FRAME_MAX);
        platform.answer(answer(200, &longest)).await;
        assert_eq!(next_frame(&mut connection).await, Ok(frame(&longest)));
        platform.answer(answer(200, &format!("{longest}x"))).await;
        assert_eq!(next_frame(&mut connection).await, Err(Failure::Oversize));
    }
}

#[tokio::test]
async fn nothing_is_requested_while_no_frames_are_read_and_no_answer_is_lost() {
    for transport in POLLS {
        let mut platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(platform.requests.try_recv().is_err(), "before the first read");
        requested(&mut connection, &mut platform).await;
        platform.answer(answer(200, EVENT)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(next_frame(&mut connection).await, Ok(frame(EVENT)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(platform.requests.try_recv().is_err(), "after a frame");
        requested(&mut connection, &mut platform).await;
    }
}

#[tokio::test]
async fn a_close_ends_a_request_in_flight_at_once() {
    for transport in POLLS {
        let mut platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        requested(&mut connection, &mut platform).await;
        connection.close(1000, "stop").await;
        let closed = Failure::Closed { code: 1000, reason: String::new() };
        let at = clock::now();
        assert_eq!(next(&mut connection).await, Err(closed));
        assert!(clock::now() - at < Duration::from_secs(1));
        assert_eq!(platform.request().await, CLOSED);
    }
}

#[tokio::test]
async fn a_dropped_connection_ends_its_request() {
    for transport in POLLS {
        let mut platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        requested(&mut connection, &mut platform).await;
        drop(connection);
        assert_eq!(platform.request().await, CLOSED);
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_is_reported_once_and_completed_after_a_close() {
    for transport in POLLS {
        let mut platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        requested(&mut connection, &mut platform).await;
        platform.answer(Answer::Part("HTTP/1.1 200 X\r\ncontent-length: 6\r\n\r\nabc".to_owned())).await;
        assert_eq!(next(&mut connection).await, Ok(SocketEvent::PartialFrame));
        connection.close(1000, "stop").await;
        platform.answer(Answer::Whole("def".to_owned())).await;
        assert_eq!(next(&mut connection).await, Ok(SocketEvent::Frame(frame("abcdef"))));
        assert_eq!(next(&mut connection).await, Err(Failure::Closed { code: 1000, reason: String::new() }));
    }
}

#[tokio::test]
async fn a_probe_is_answered_by_the_next_request() {
    for transport in [Transport::LongPoll, Transport::Poll { interval: TIMEOUT * 2 }] {
        let platform = Platform::start().await;
        let mut connection = platform.connect(transport, Credential::Header).await;
        platform.answer(answer(200, EVENT)).await;
        assert_eq!(next_frame(&mut connection).await, Ok(frame(EVENT)));
        connection.probe(Probe::Ping).await;
        platform.answer(answer(200, EVENT)).await;
        assert_eq!(next_frame(&mut connection).await, Ok(frame(EVENT)));
        assert_eq!(next_frame(&mut connection).await, Ok(Frame::Answered { probes: 1 }));
    }
}
