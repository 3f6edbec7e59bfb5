//! How clients are treated: what is refused, who is given up, and how everybody is sent home.

use std::{io::ErrorKind, time::Duration};

use futures_util::SinkExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::harness::{Http, PATIENCE, Relay, Setup, sequences};

const QUEUES: &str = "/v1/streams/queues/events";

#[tokio::test]
async fn what_is_not_there_or_not_understood_is_told_as_a_problem() {
    let relay = Relay::start().await;
    for (method, path, status, kind) in [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/streams/queues", 404, "not-found"),
        ("GET", "/v1/streams/nobody/events", 404, "unknown-stream"),
        ("GET", "/v1/streams/NOBODY/events", 404, "unknown-stream"),
        ("GET", "/v1/events?stream=nobody", 404, "unknown-stream"),
        ("GET", "/v1/events", 400, "invalid-parameter"),
        ("POST", QUEUES, 405, "method-not-allowed"),
        ("DELETE", "/v1/streams", 405, "method-not-allowed"),
        ("GET", "/v1/streams/queues/events?form=first", 400, "unknown-parameter"),
        ("GET", "/v1/streams/queues/events?from=first&since=1m", 400, "conflicting-parameters"),
        ("GET", "/v1/streams/queues/events?after=17", 400, "invalid-cursor"),
        ("GET", "/v1/events?stream=queues&stream=agents&after=4f2a-1", 400, "invalid-cursor"),
    ] {
        let mut refused = Http::send(&relay.authority, method, path, &[]).await;
        assert_eq!((refused.status(), refused.problem().await.0.as_str()), (status, kind), "{method} {path}");
    }
    let mut image = relay.get(QUEUES, &[("Accept", "image/png")]).await;
    assert_eq!((image.status(), image.problem().await.0.as_str()), (406, "not-acceptable"));
    let post = Http::send(&relay.authority, "POST", QUEUES, &[]).await;
    assert_eq!(post.header("allow").as_deref(), Some("get"));
    relay.drain().await;
}

#[tokio::test]
async fn every_resource_answers_one_method_and_tells_which() {
    let relay = Relay::start().await;
    for path in ["/v1/streams", "/v1/events?stream=queues", QUEUES] {
        for method in ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
            let refused = Http::send(&relay.authority, method, path, &[]).await;
            let allowed = refused.header("allow");
            assert_eq!((refused.status(), allowed.as_deref()), (405, Some("get")), "{method} {path}");
        }
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_name_in_a_path_may_be_percent_encoded() {
    let relay = Relay::start().await;
    for (path, status) in [
        ("/v1/streams/%71ueue%73/events", 200),
        ("/v1/streams/queues%2Fevents/events", 404),
        ("/v1/streams/%ff/events", 404),
    ] {
        let mut answer = relay.get(path, &[]).await;
        assert_eq!(answer.status(), status, "{path}");
        if status == 404 {
            assert_eq!(answer.problem().await.0, "unknown-stream", "{path}");
        }
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_read_why_it_is_refused() {
    let mut setup = Setup::default();
    setup.server.allowed_origins = vec!["https://dash.example.com".to_owned()];
    let relay = Relay::with(setup).await;
    for (path, status) in [("/", 404), ("/v1/events", 400), ("/v1/streams/nobody/events", 404)] {
        let refused = relay.get(path, &[("Origin", "https://dash.example.com")]).await;
        let shared = refused.header("access-control-allow-origin");
        assert_eq!((refused.status(), shared.as_deref()), (status, Some("https://dash.example.com")), "{path}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_foreign_page_is_refused_before_anything_else() {
    let mut setup = Setup::default();
    setup.server.allowed_origins = vec!["https://dash.example.com".to_owned()];
    let relay = Relay::with(setup).await;
    for (origin, status) in [("https://dash.example.com", 200), ("https://evil.test", 403), ("null", 403)] {
        let answer = relay.get("/v1/streams", &[("Origin", origin)]).await;
        assert_eq!(answer.status(), status, "{origin}");
        let shared = answer.header("access-control-allow-origin");
        assert_eq!(shared.is_some(), status == 200, "{origin}");
    }
    let rebound = relay.get("/v1/streams", &[("Host", "evil.test")]).await;
    assert_eq!(rebound.status(), 403);
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Origin", "https://evil.test"),
    ];
    let mut refused = relay.get(QUEUES, &upgrade).await;
    assert_eq!((refused.status(), refused.problem().await.0.as_str()), (403, "cross-origin"));
    relay.drain().await;
}

#[tokio::test]
async fn a_websocket_is_opened_as_the_standard_says_and_never_compressed() {
    let relay = Relay::start().await;
    let offer = [
        ("sec-websocket-protocol", "mqtt, cloudevents.json"),
        ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
    ];
    let (ws, response) = relay.offer(QUEUES, &offer).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "cloudevents.json");
    assert!(!response.headers().contains_key("sec-websocket-extensions"));
    let old = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "8"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let refused = relay.get(QUEUES, &old).await;
    assert_eq!((refused.status(), refused.header("sec-websocket-version").as_deref()), (426, Some("13")));
    drop(ws);
    relay.drain().await;
}

#[tokio::test]
async fn a_client_that_breaks_the_rules_is_told_which() {
    let relay = Relay::start().await;
    for (message, code) in [
        (Message::binary(vec![1, 2, 3]), CloseCode::Unsupported),
        (Message::text("x".repeat(64 * 1024 + 1)), CloseCode::Size),
    ] {
        let mut ws = relay.subscribe(QUEUES).await;
        ws.0.send(message).await.unwrap();
        assert_eq!(ws.closed().await.0, u16::from(code), "{code}");
    }
    for (bytes, code) in [
        (&b"\x81\x02hi"[..], CloseCode::Protocol),
        (&b"\xc1\x80\x00\x00\x00\x00"[..], CloseCode::Protocol),
        (&b"\x81\x81\x00\x00\x00\x00\xff"[..], CloseCode::Invalid),
        (&b"\x83\x80\x00\x00\x00\x00"[..], CloseCode::Protocol),
    ] {
        let mut ws = relay.subscribe(QUEUES).await;
        ws.0.get_mut().write_all(bytes).await.unwrap();
        assert_eq!(ws.closed().await.0, u16::from(code), "{bytes:x?}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_message_that_means_nothing_is_ignored_and_a_ping_is_answered() {
    let relay = Relay::start().await;
    let mut ws = relay.subscribe(QUEUES).await;
    ws.0.send(Message::text("hello?")).await.unwrap();
    ws.0.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(ws.message().await, Some(Message::Pong("are you there".into())));
    relay.say("queues", 1..=3).await;
    assert_eq!(sequences(&ws.events(3).await), [1, 2, 3]);
    ws.0.close(None).await.unwrap();
    assert!(matches!(ws.message().await, Some(Message::Close(_))), "a close is answered");
    relay.drain().await;
}

#[tokio::test]
async fn pings_under_a_stream_of_events_never_break_a_frame() {
    let relay = Relay::start().await;
    let mut ws = relay.subscribe(QUEUES).await;
    let body = format!("\"{}\"", "x".repeat(3_000));
    let some = vec![body.as_str(); 50];
    let mut seen = Vec::new();
    for round in 0..20_u8 {
        relay.append("queues", &some).await;
        ws.0.send(Message::Ping(vec![round; 100].into())).await.unwrap();
        seen.extend(ws.events_and_pongs(50).await);
    }
    assert_eq!(sequences(&seen), (1..=1_000).collect::<Vec<_>>());
    drop(ws);
    relay.drain().await;
}

impl super::harness::Ws {
    /// The next events; pongs may stand between them.
    async fn events_and_pongs(&mut self, count: usize) -> Vec<serde_json::Value> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.message().await {
                Some(Message::Text(text)) => events.push(serde_json::from_str(&text).unwrap()),
                Some(Message::Pong(_)) => (),
                other => panic!("{other:?}"),
            }
        }
        events
    }
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_given_up_when_it_does_not_answer() {
    let mut setup = Setup::default();
    setup.server.ping_every = Duration::from_millis(50);
    let relay = Relay::with(setup).await;
    let mut answering = relay.subscribe(QUEUES).await;
    let mut mute = relay.subscribe(QUEUES).await;
    // Below the library, so that it does not answer by itself.
    let mute = mute.0.get_mut();
    let answers = async {
        for _ in 0..5 {
            assert!(matches!(answering.message().await, Some(Message::Ping(_))));
        }
    };
    let silence = async {
        let mut heard = Vec::new();
        timeout(PATIENCE, mute.read_to_end(&mut heard)).await.expect("given up in time").unwrap();
        assert_eq!(heard, [0x89, 0, 0x89, 0], "two pings, then the end");
    };
    tokio::join!(answers, silence);
    drop(answering);
    relay.drain().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_closed_as_too_slow_between_two_frames() {
    let mut setup = Setup::default();
    setup.server.limits.stall_max = Duration::from_millis(300);
    let relay = Relay::with(setup).await;
    let mut ws = relay.subscribe(QUEUES).await;
    let body = format!("\"{}\"", "x".repeat(50_000));
    let some = vec![body.as_str(); 100];
    for _ in 0..8 {
        relay.append("queues", &some).await;
    }
    // The stall cannot be seen from outside; the farewell waits longer than this.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut events = Vec::new();
    let (code, reason) = loop {
        match ws.message().await {
            Some(Message::Text(text)) => events.push(serde_json::from_str(&text).unwrap()),
            Some(Message::Close(Some(frame))) => break (u16::from(frame.code), frame.reason.to_string()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((code, reason.as_str()), (1008, "too_slow"));
    let seen = sequences(&events);
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>(), "whole frames only");
    assert!(seen.len() < 800, "nothing was queued for it");
    drop(ws);
    relay.drain().await;
}

#[tokio::test]
async fn a_drain_says_what_was_heard_and_then_goodbye() {
    let relay = Relay::start().await;
    let mut ws = relay.subscribe(QUEUES).await;
    let mut sse = relay.get(QUEUES, &[("Accept", "text/event-stream")]).await;
    let mut lines = relay.get(QUEUES, &[("Accept", "application/x-ndjson")]).await;
    let mut idle = TcpStream::connect(&relay.authority).await.unwrap();
    relay.say("queues", 1..=100).await;
    let authority = relay.authority.clone();
    let clients = async move {
        let expected: Vec<u64> = (1..=100).collect();
        assert_eq!(sequences(&ws.events(100).await), expected);
        assert_eq!(ws.closed().await, (1001, "draining".to_owned()));
        assert_eq!(sequences(&sse.sse_events(100).await), expected);
        assert_eq!(sse.sse().await, None);
        assert_eq!(sequences(&lines.lines(100).await), expected);
        assert_eq!(lines.line().await, None);
        assert_eq!(timeout(PATIENCE, idle.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
    };
    tokio::join!(relay.drain(), clients);
    assert_eq!(TcpStream::connect(&authority).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_request_head_that_does_not_arrive_is_not_waited_for() {
    let mut setup = Setup::default();
    setup.server.limits.header_timeout = Duration::from_millis(100);
    let relay = Relay::with(setup).await;
    let mut loris = TcpStream::connect(&relay.authority).await.unwrap();
    loris.write_all(b"GET /v1/streams HTTP/1.1\r\nHost: ").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, loris.read_to_end(&mut answer)).await.expect("closed in time").unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    relay.drain().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_a_freed_seat_is_given_again() {
    let mut setup = Setup::default();
    setup.server.limits.connections_per_address_max = 2;
    let relay = Relay::with(setup).await;
    let first = relay.subscribe(QUEUES).await;
    let second = relay.subscribe(QUEUES).await;
    let mut third = relay.get("/v1/streams", &[]).await;
    assert_eq!((third.status(), third.header("retry-after").as_deref()), (503, Some("5")));
    let problem = third.json().await;
    assert_eq!(problem["type"], "urn:trunkline:problem:no-seat");
    drop(first);
    for _ in 0..1_000 {
        if relay.get("/v1/streams", &[]).await.status() == 200 {
            drop(second);
            return relay.drain().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the seat stayed taken");
}
