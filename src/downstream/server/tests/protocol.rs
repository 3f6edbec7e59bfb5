//! The protocol with clients: rejected requests, stalled clients, close and drain.

use std::{io::ErrorKind, time::Duration};

use futures_util::SinkExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::harness::{RelayFixture, RelaySetup, TIMEOUT, TestHttpClient, sequences};
use crate::telemetry::metrics;

const QUEUES: &str = "/v1/streams/queues/events";

#[tokio::test]
async fn unknown_paths_and_invalid_queries_get_problem_documents() {
    let relay = RelayFixture::start().await;
    for (method, path, status, kind) in [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/streams/queues", 404, "not-found"),
        ("GET", "/v1/streams/unknown/events", 404, "unknown-stream"),
        ("GET", "/v1/streams/UNKNOWN/events", 404, "unknown-stream"),
        ("GET", "/v1/events?stream=unknown", 404, "unknown-stream"),
        ("GET", "/v1/events", 400, "invalid-parameter"),
        ("POST", QUEUES, 405, "method-not-allowed"),
        ("DELETE", "/v1/streams", 405, "method-not-allowed"),
        ("GET", "/v1/streams/queues/events?form=first", 400, "unknown-parameter"),
        ("GET", "/v1/streams/queues/events?from=first&since=1m", 400, "conflicting-parameters"),
        ("GET", "/v1/streams/queues/events?after=17", 400, "invalid-cursor"),
        ("GET", "/v1/events?stream=queues&stream=agents&after=4f2a-1", 400, "invalid-cursor"),
    ] {
        let mut refused = TestHttpClient::send(&relay.authority, method, path, &[]).await;
        assert_eq!((refused.status(), refused.problem().await.0.as_str()), (status, kind), "{method} {path}");
    }
    let mut image = relay.get(QUEUES, &[("Accept", "image/png")]).await;
    assert_eq!((image.status(), image.problem().await.0.as_str()), (406, "not-acceptable"));
    let post = TestHttpClient::send(&relay.authority, "POST", QUEUES, &[]).await;
    assert_eq!(post.header("allow").as_deref(), Some("get, head"));
    relay.drain().await;
}

#[tokio::test]
async fn every_resource_is_read_only() {
    let relay = RelayFixture::start().await;
    for path in ["/v1/streams", "/v1/events?stream=queues", QUEUES] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let refused = TestHttpClient::send(&relay.authority, method, path, &[]).await;
            let allowed = refused.header("allow");
            assert_eq!((refused.status(), allowed.as_deref()), (405, Some("get, head")), "{method} {path}");
        }
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_name_in_a_path_may_be_percent_encoded() {
    let relay = RelayFixture::start().await;
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
async fn an_allowed_origin_can_read_refusals() {
    let mut setup = RelaySetup::default();
    setup.server.allowed_origins = vec!["https://dash.example.com".to_owned()];
    let relay = RelayFixture::with(setup).await;
    for (path, status) in [("/", 404), ("/v1/events", 400), ("/v1/streams/unknown/events", 404)] {
        let refused = relay.get(path, &[("Origin", "https://dash.example.com")]).await;
        let shared = refused.header("access-control-allow-origin");
        assert_eq!((refused.status(), shared.as_deref()), (status, Some("https://dash.example.com")), "{path}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_foreign_page_is_refused_before_anything_else() {
    let mut setup = RelaySetup::default();
    setup.server.allowed_origins = vec!["https://dash.example.com".to_owned()];
    let relay = RelayFixture::with(setup).await;
    for (origin, status) in [("https://dash.example.com", 200), ("https://evil.test", 403), ("null", 403)] {
        let answer = relay.get("/v1/streams", &[("Origin", origin)]).await;
        assert_eq!(answer.status(), status, "{origin}");
        let shared = answer.header("access-control-allow-origin");
        assert_eq!(shared.is_some(), status == 200, "{origin}");
    }
    let mut rebound = relay.get("/v1/streams", &[("Host", "evil.test")]).await;
    assert_eq!(rebound.status(), 403);
    let (slug, detail) = rebound.problem().await;
    assert_eq!(slug, "unknown-host");
    assert!(detail.contains("evil.test") && detail.contains("http.allowed_hosts"), "{detail}");
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Origin", "https://evil.test"),
    ];
    let mut refused = relay.get(QUEUES, &upgrade).await;
    let (slug, detail) = refused.problem().await;
    assert_eq!((refused.status(), slug.as_str()), (403, "cross-origin"));
    assert!(detail.contains("http.allowed_origins"), "{detail}");
    relay.drain().await;
}

#[tokio::test]
async fn a_websocket_handshake_follows_the_rfc_and_is_never_compressed() {
    let relay = RelayFixture::start().await;
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
async fn a_protocol_violation_is_answered_with_its_close_code() {
    let relay = RelayFixture::start().await;
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
async fn an_unknown_message_is_ignored_and_a_ping_is_answered() {
    let relay = RelayFixture::start().await;
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
async fn pings_between_events_never_split_a_frame() {
    let relay = RelayFixture::start().await;
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

impl super::harness::TestWsClient {
    /// The next events; skips pongs between them.
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
async fn a_silent_client_is_pinged_and_closed_if_it_does_not_answer() {
    let mut setup = RelaySetup::default();
    setup.server.ping_interval = Duration::from_millis(50);
    let relay = RelayFixture::with(setup).await;
    let mut answering = relay.subscribe(QUEUES).await;
    let mut silent = relay.subscribe(QUEUES).await;
    // Reads below the library, so that it does not answer pings.
    let silent = silent.0.get_mut();
    let answers = async {
        for _ in 0..5 {
            assert!(matches!(answering.message().await, Some(Message::Ping(_))));
        }
    };
    let silence = async {
        let mut received = Vec::new();
        timeout(TIMEOUT, silent.read_to_end(&mut received)).await.expect("closed in time").unwrap();
        assert_eq!(received, [0x89, 0, 0x89, 0], "two pings, then the end");
    };
    tokio::join!(answers, silence);
    drop(answering);
    relay.drain().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_as_too_slow_between_two_frames() {
    let mut setup = RelaySetup::default();
    setup.server.limits.stall_max = Duration::from_millis(300);
    let relay = RelayFixture::with(setup).await;
    let mut ws = relay.subscribe(QUEUES).await;
    let body = format!("\"{}\"", "x".repeat(50_000));
    let some = vec![body.as_str(); 100];
    for _ in 0..8 {
        relay.append("queues", &some).await;
    }
    // The stall is not visible from outside; the close timeout is longer than this.
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
async fn a_drain_sends_received_events_and_then_closes() {
    let relay = RelayFixture::start().await;
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
        assert_eq!(timeout(TIMEOUT, idle.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
    };
    tokio::join!(relay.drain(), clients);
    assert_eq!(TcpStream::connect(&authority).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_request_head_that_does_not_arrive_is_not_waited_for() {
    let mut setup = RelaySetup::default();
    setup.server.limits.header_timeout = Duration::from_millis(100);
    let relay = RelayFixture::with(setup).await;
    let mut loris = TcpStream::connect(&relay.authority).await.unwrap();
    loris.write_all(b"GET /v1/streams HTTP/1.1\r\nHost: ").await.unwrap();
    let mut answer = Vec::new();
    timeout(TIMEOUT, loris.read_to_end(&mut answer)).await.expect("closed in time").unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    relay.drain().await;
}

#[tokio::test]
async fn a_listed_host_header_is_accepted() {
    let mut setup = RelaySetup::default();
    setup.server.allowed_hosts = vec!["relay.example.com".to_owned()];
    let relay = RelayFixture::with(setup).await;
    for (host, status) in [("relay.example.com", 200), ("relay.example.com:443", 200), ("evil.test", 403)] {
        assert_eq!(relay.get("/v1/streams", &[("Host", host)]).await.status(), status, "{host}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn head_is_answered_as_get_is_without_a_body() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=3).await;
    let from_first = format!("{QUEUES}?from=first");
    for (path, accept, status) in [
        ("/v1/streams", "*/*", 200),
        (from_first.as_str(), "*/*", 200),
        (from_first.as_str(), "text/event-stream", 200),
        (from_first.as_str(), "application/x-ndjson", 200),
        ("/v1/streams/unknown/events", "*/*", 404),
    ] {
        let get = relay.get(path, &[("Accept", accept)]).await;
        let mut stream = TcpStream::connect(&relay.authority).await.unwrap();
        let authority = &relay.authority;
        let request =
            format!("HEAD {path} HTTP/1.1\r\nHost: {authority}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.expect("the response ends in time").unwrap();
        let head = answer.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")) && head.ends_with("\r\n\r\n"), "{path}: {answer}");
        assert_eq!(head.matches("\r\n\r\n").count(), 1, "no body: {answer}");
        for name in ["content-type", "content-length", "cache-control", "link"] {
            let line = get.header(name).map(|value| format!("\r\n{name}: {value}\r\n"));
            match line {
                Some(line) => assert!(head.contains(&line), "{path} {accept}: {line:?} is not in {answer}"),
                None => assert!(!head.contains(&format!("\r\n{name}: ")), "{path} {accept}: {name} in {answer}"),
            }
        }
    }
    relay.drain().await;
}

#[tokio::test]
async fn a_request_without_a_clear_host_is_refused() {
    let relay = RelayFixture::start().await;
    for (lines, status) in [
        ("HTTP/1.1\r\n", 400),
        ("HTTP/1.1\r\nHost:\r\n", 400),
        ("HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("HTTP/1.1\r\nHost: localhost\r\nhost: evil.test\r\n", 400),
        ("HTTP/1.1\r\nHost: local host\r\n", 400),
        ("HTTP/1.1\r\nHost: localhost:99999\r\n", 400),
        ("HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("HTTP/1.0\r\n", 200),
    ] {
        let mut stream = TcpStream::connect(&relay.authority).await.unwrap();
        stream.write_all(format!("GET /v1/streams {lines}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.expect("the response ends in time").unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{lines:?}: {answer}");
        assert_eq!(answer.contains("urn:trunkline:problem:invalid-host"), status == 400, "{lines:?}: {answer}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn an_address_at_its_limit_does_not_block_others() {
    let mut setup = RelaySetup::default();
    setup.server.limits.connections_max = 3;
    setup.server.limits.connections_per_address_max = 2;
    let relay = RelayFixture::with(setup).await;
    let from = async |address: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        socket.connect(relay.authority.parse().unwrap()).await.unwrap()
    };
    let held = [from([127, 0, 0, 1]).await, from([127, 0, 0, 1]).await];
    let status = async |mut stream: TcpStream| {
        stream.write_all(b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(TIMEOUT, stream.read_to_string(&mut answer)).await.expect("the response ends in time").unwrap();
        assert_ne!(answer.starts_with("HTTP/1.1 2"), answer.contains("Retry-After: 5"), "{answer}");
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(from([127, 0, 0, 1]).await).await, "429");
    assert_eq!(status(from([127, 0, 0, 2]).await).await, "200");
    // The last permit stays in use; a rejected connection may release its own later.
    let third = loop {
        let mut third = from([127, 0, 0, 3]).await;
        third.write_all(b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        timeout(TIMEOUT, third.read_exact(&mut answer)).await.expect("a response in time").unwrap();
        if &answer == b"HTTP/1.1 200" {
            break third;
        }
    };
    assert_eq!(status(from([127, 0, 0, 4]).await).await, "503", "no permit is left");
    drop((held, third));
    relay.drain().await;
}

#[tokio::test]
async fn each_client_behind_a_trusted_proxy_has_its_own_limit() {
    let mut setup = RelaySetup::default();
    setup.server.limits.connections_per_address_max = 1;
    setup.server.limits.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let relay = RelayFixture::with(setup).await;
    let sse = ("Accept", "text/event-stream");
    let first = relay.get(QUEUES, &[sse, ("X-Forwarded-For", "192.0.2.1")]).await;
    assert_eq!(first.status(), 200);
    let mut over = relay.get(QUEUES, &[sse, ("X-Forwarded-For", "192.0.2.1")]).await;
    assert_eq!((over.status(), over.header("retry-after").as_deref()), (429, Some("5")));
    assert_eq!(over.problem().await.0, "too-many-connections-per-address");
    let other = relay.get(QUEUES, &[sse, ("Forwarded", "for=192.0.2.2")]).await;
    assert_eq!(other.status(), 200);
    drop((first, other));
    relay.drain().await;
}

#[tokio::test]
async fn one_connection_too_many_is_rejected_and_a_freed_permit_is_reused() {
    let mut setup = RelaySetup::default();
    setup.server.limits.connections_per_address_max = 2;
    let relay = RelayFixture::with(setup).await;
    let first = relay.subscribe(QUEUES).await;
    let second = relay.subscribe(QUEUES).await;
    let mut third = relay.get("/v1/streams", &[]).await;
    assert_eq!((third.status(), third.header("retry-after").as_deref()), (429, Some("5")));
    assert_eq!(third.problem().await.0, "too-many-connections-per-address");
    drop(first);
    for _ in 0..1_000 {
        if relay.get("/v1/streams", &[]).await.status() == 200 {
            drop(second);
            return relay.drain().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the permit was not released");
}

#[tokio::test]
async fn an_idle_endless_answer_sends_keep_alives() {
    let mut setup = RelaySetup::default();
    setup.server.keep_alive_interval = Duration::from_millis(20);
    let relay = RelayFixture::with(setup).await;
    let mut lines = relay.get(QUEUES, &[("Accept", "application/x-ndjson")]).await;
    let mut sse = relay.get(QUEUES, &[("Accept", "text/event-stream")]).await;
    sse.sse_id().await.expect("it begins with its cursor");
    for _ in 0..3 {
        assert_eq!(lines.until("\n").await.as_deref(), Some(""));
        assert_eq!(sse.until("\n\n").await.as_deref(), Some(":"));
    }
    relay.say("queues", 1..=1).await;
    assert_eq!(sequences(&lines.lines(1).await), [1]);
    drop((lines, sse));
    relay.drain().await;
}

#[tokio::test]
async fn unread_pages_are_bounded() {
    let mut setup = RelaySetup::default();
    setup.server.held_len_max = 3 * 1024 * 1024;
    let relay = RelayFixture::with(setup).await;
    let body = format!("\"{}\"", "x".repeat(4_000));
    for _ in 0..10 {
        relay.append("queues", &vec![body.as_str(); 100]).await;
    }
    let page = format!("{QUEUES}?from=first&limit=1000");
    let mut whole = relay.get(&page, &[]).await;
    assert_eq!(whole.json().await.as_array().unwrap().len(), 1_000, "a page above the limit uses the whole budget");
    // The client reads heads and no bodies, so that each response has more unsent bytes than the kernel buffers.
    let mut held = Vec::new();
    let mut refused = loop {
        let answer = relay.get(&page, &[]).await;
        if answer.status() != 200 {
            break answer;
        }
        held.push(answer);
        assert!(held.len() < 30, "the memory is not limited");
    };
    assert_eq!((refused.status(), refused.header("retry-after").as_deref()), (503, Some("5")));
    assert_eq!(refused.problem().await.0, "busy");
    assert_eq!(relay.get("/v1/streams", &[]).await.status(), 200, "other resources are served");
    drop(held);
    let mut again = relay.get(&page, &[]).await;
    assert_eq!((again.status(), again.json().await.as_array().unwrap().len()), (200, 1_000));
    relay.drain().await;
}

#[tokio::test]
async fn a_subscription_that_ends_is_counted_with_its_reason() {
    let mut setup = RelaySetup::default();
    setup.server.limits.stall_max = Duration::from_millis(300);
    let relay = RelayFixture::with(setup).await;
    let count = |reason: &str| -> f64 {
        let series = format!("trunkline_subscribers_closed_total{{reason=\"{reason}\"}} ");
        let page = metrics::page();
        let line = page.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned));
        line.map_or(0.0, |value| value.parse().unwrap())
    };
    // Other tests of the process also close subscriptions, so counts only rise.
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let before = count("too_slow");
        let slow = relay.get(QUEUES, &[("Accept", accept)]).await;
        let body = format!("\"{}\"", "x".repeat(50_000));
        for _ in 0..8 {
            relay.append("queues", &vec![body.as_str(); 100]).await;
        }
        let counted = async {
            while count("too_slow") <= before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TIMEOUT, counted).await.expect("it is counted as too slow");
        drop(slow);
    }
    let before = count("protocol");
    let mut ws = relay.subscribe(QUEUES).await;
    ws.0.send(Message::binary(vec![1])).await.unwrap();
    ws.closed().await;
    let counted = async {
        while count("protocol") <= before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TIMEOUT, counted).await.expect("it is counted");
    relay.drain().await;
}
