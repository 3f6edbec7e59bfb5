//! The layer before every call of the platform: a fault that waits for the request decides the answer. It changes
//! right answers, and does not make them.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::pending;
use serde_json::Value;
use tokio::time::sleep;

use super::clock::{http_date, wall};
use super::connection::ConnectionOptions;
use super::counters::SocketDialect;
use super::fault::{RequestKind, ResponseFault};
use super::pending_faults;
use super::platform::SimulatedPlatform;
use super::reply;
use super::server::TransportControl;

/// An interim answer (RFC 8297).
const INTERIM: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </>; rel=preload\r\n\r\n";
/// Largest answer of the simulator, in bytes.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// Answers a request with the fault that waits for it, or else passes it on.
pub(super) async fn layer(
    State(platform): State<Arc<SimulatedPlatform>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some((kind, dialect)) = kind(&request) else {
        return next.run(request).await;
    };
    let fault = take_fault(&platform, &request, kind, dialect);
    let mut options = ConnectionOptions {
        idle_timeout: dialect.and_then(|dialect| platform.idle_timeout(dialect)),
        close_after: None,
    };
    let Some(how) = fault else {
        request.extensions_mut().insert(options);
        return next.run(request).await;
    };
    let control = request.extensions().get::<TransportControl>().cloned().unwrap_or_default();
    if let ResponseFault::Closed { after, code, reason } = &how {
        options.close_after = Some((*after, *code, reason.clone()));
    }
    request.extensions_mut().insert(options);
    match replace_response(&platform, &control, &how).await {
        Some(answer) => {
            count_failure(&platform, kind);
            reply::correlated(&platform, answer)
        }
        None => modify_response(&how, next.run(request).await).await,
    }
}

/// The kind of the request; `None` for the simulator's own calls.
fn kind(request: &Request) -> Option<(RequestKind, Option<SocketDialect>)> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    match path {
        "/channels/{id}" => Some((RequestKind::Upgrade, Some(SocketDialect::Notifications))),
        "/api/v2/analytics/conversations/summary/stream" | "/api/v2/analytics/events/ws" => {
            Some((RequestKind::Upgrade, Some(SocketDialect::Sequenced)))
        }
        _own if path.starts_with("/simulate/") => None,
        _token if path.ends_with("/oauth/token") => Some((RequestKind::Token, None)),
        _api => Some((RequestKind::Rest, None)),
    }
}

/// Counts a REST call and takes the fault that waits for the request.
fn take_fault(
    platform: &SimulatedPlatform,
    request: &Request,
    kind: RequestKind,
    dialect: Option<SocketDialect>,
) -> Option<ResponseFault> {
    let url = request.uri().path_and_query().map_or("", |url| url.as_str());
    let mut state = platform.lock();
    if let (RequestKind::Rest, Some(pattern)) = (kind, request.extensions().get::<MatchedPath>()) {
        let call = format!("{} {}", request.method(), pattern.as_str());
        *state.counters.rest.entry(call).or_default() += 1;
    }
    state.faults.take_answer(pending_faults::RequestInfo { kind, dialect, url })
}

fn count_failure(platform: &SimulatedPlatform, kind: RequestKind) {
    let mut state = platform.lock();
    match kind {
        RequestKind::Upgrade => state.counters.handshakes_refused += 1,
        RequestKind::Token => state.counters.token_failures += 1,
        RequestKind::Rest | RequestKind::Connection => (),
    }
}

/// The answer that replaces the right one; `None` where the right one follows.
async fn replace_response(
    platform: &SimulatedPlatform,
    control: &TransportControl,
    how: &ResponseFault,
) -> Option<Response> {
    match how {
        ResponseFault::Status { status, retry_after, retry_in, clock } => {
            let answer = reply::retry_after(reply::refused(*status), retry_after.as_deref());
            Some(with_date(platform, answer, *clock, *retry_in))
        }
        ResponseFault::Body { status, content_type, text } => {
            let kind = [(header::CONTENT_TYPE, content_type.clone())];
            Some((code(*status), kind, text.clone()).into_response())
        }
        ResponseFault::Hang => pending().await,
        ResponseFault::Reset => {
            control.reset();
            pending().await
        }
        ResponseFault::Late { duration: lasting } => {
            sleep(*lasting).await;
            None
        }
        ResponseFault::Trickle { every } => {
            control.trickle(*every);
            None
        }
        ResponseFault::Interim => {
            control.prepend(INTERIM);
            None
        }
        ResponseFault::Changed { .. } | ResponseFault::ConnectionList | ResponseFault::Closed { .. } => None,
    }
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Writes the `Date` of a wrong clock, and `Retry-After` by that clock.
fn with_date(
    platform: &SimulatedPlatform,
    mut answer: Response,
    clock: Option<i64>,
    retry_in: Option<u32>,
) -> Response {
    let at = wall(platform.settings.clock_offset.saturating_add(clock.unwrap_or(0)));
    if let Ok(date) = HeaderValue::from_str(&http_date(at)) {
        answer.headers_mut().insert(header::DATE, date);
    }
    let until = retry_in.map(|seconds| http_date(at.saturating_add(time::Duration::seconds(seconds.into()))));
    reply::retry_after(answer, until.as_deref())
}

/// The right answer with the changes of the fault.
async fn modify_response(how: &ResponseFault, mut answer: Response) -> Response {
    match how {
        ResponseFault::Changed { status, content_type, gzip, set, without } => {
            let set = set.as_deref().and_then(|set| serde_json::from_str(set).ok());
            let (mut parts, body) = answer.into_parts();
            let bytes = to_bytes(body, BODY_MAX).await.unwrap_or_default();
            let bytes = edit_body(&bytes, set, without);
            parts.headers.remove(header::CONTENT_LENGTH);
            if let Some(kind) = content_type.as_deref().and_then(|kind| HeaderValue::from_str(kind).ok()) {
                parts.headers.insert(header::CONTENT_TYPE, kind);
            }
            parts.status = status.map_or(parts.status, code);
            if *gzip {
                parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                return Response::from_parts(parts, Body::from(gzipped(&bytes)));
            }
            Response::from_parts(parts, Body::from(bytes))
        }
        ResponseFault::ConnectionList => {
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                let list = HeaderValue::from_static("keep-alive, Upgrade");
                answer.headers_mut().insert(header::CONNECTION, list);
            }
            answer
        }
        ResponseFault::Status { .. }
        | ResponseFault::Body { .. }
        | ResponseFault::Hang
        | ResponseFault::Late { .. }
        | ResponseFault::Trickle { .. }
        | ResponseFault::Reset
        | ResponseFault::Interim
        | ResponseFault::Closed { .. } => answer,
    }
}

/// A JSON body with members merged in and others removed. Any other body is not changed.
fn edit_body(bytes: &[u8], set: Option<Value>, without: &[String]) -> Vec<u8> {
    let Ok(mut body) = serde_json::from_slice::<Value>(bytes) else {
        return bytes.to_vec();
    };
    if let Some(set) = set {
        merge(&mut body, set);
    }
    for pointer in without {
        if let Some((parent, name)) = pointer.rsplit_once('/')
            && let Some(Value::Object(parent)) = body.pointer_mut(parent)
        {
            parent.remove(name);
        }
    }
    body.to_string().into_bytes()
}

/// Merges objects member by member and an object into each element of an array; any other value is replaced.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Object(from)) => {
            into.iter_mut().for_each(|element| merge(element, Value::Object(from.clone())));
        }
        (into, from) => *into = from,
    }
}

/// A gzip member (RFC 1952) of stored blocks (RFC 1951, 3.2.4): no compression, but every reader must decode it.
fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let chunks: Vec<&[u8]> = bytes.chunks(usize::from(u16::MAX)).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let size = chunk.len() as u16;
        out.push(u8::from(index + 1 == chunks.len()));
        out.extend(size.to_le_bytes());
        out.extend((!size).to_le_bytes());
        out.extend(*chunk);
    }
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use reqwest::Method;
    use serde_json::{Value, json};

    use crate::fault::{PlatformFault, ResponseFault};
    use crate::probe::{SimulatorProbe, eventually, refused};
    use crate::{Settings, SocketDialect};

    /// The fault in the JSON of a script or a call.
    fn inject(probe: &SimulatorProbe, fault: &Value) {
        let fault: PlatformFault = serde_json::from_value(fault.clone()).unwrap();
        fault.check().unwrap();
        probe.simulator.inject(fault);
    }

    fn answer(to: &str, how: &Value) -> Value {
        json!({"fault": "answer", "to": to, "how": how})
    }

    /// The response to a request within this time, on a separate connection.
    fn raw(probe: &SimulatorProbe, request: &str, within: Duration) -> String {
        let mut stream = TcpStream::connect(probe.simulator.address()).unwrap();
        stream.set_read_timeout(Some(within)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut piece = [0; 512];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            text.extend_from_slice(&piece[..count]);
            if text.ends_with(b"\r\n\r\n") && !text.starts_with(b"HTTP/1.1 103") {
                break;
            }
        }
        let _gone = stream.shutdown(Shutdown::Both);
        String::from_utf8_lossy(&text).into_owned()
    }

    fn handshake(probe: &SimulatorProbe) -> String {
        format!(
            "GET /api/v2/analytics/conversations/summary/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            probe.token
        )
    }

    #[tokio::test]
    async fn requests_get_the_injected_status_a_given_number_of_times() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        for status in [200, 302, 403, 404, 421, 429, 503] {
            inject(&probe, &answer("upgrade", &json!({"status": {"status": status}})));
            assert_eq!(refused(probe.stream(None).await), status);
        }
        assert!(probe.stream(None).await.is_ok());
        let late = json!({"status": {"status": 429, "retry_in": 7, "clock": -3600}});
        for to in ["token", "rest"] {
            inject(&probe, &answer(to, &late));
            let request = probe.http.get(probe.simulator.url() + "/api/v2/users").bearer_auth(&probe.token);
            let request = if to == "token" { probe.token_request() } else { request };
            let refusal = request.send().await.unwrap();
            assert_eq!(refusal.status(), 429);
            let at = |name| humantime_date(refusal.headers()[name].to_str().unwrap());
            assert_eq!(at("retry-after") - at("date"), time::Duration::seconds(7));
        }
        assert_eq!(probe.call(Method::GET, "/api/v2/users", None).await.status(), 200);
    }

    fn humantime_date(text: &str) -> time::OffsetDateTime {
        let format = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        time::PrimitiveDateTime::parse(text, format).unwrap().assume_utc()
    }

    #[tokio::test]
    async fn a_refusal_can_apply_to_resumes_only_or_to_one_url_always() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let status = |status: u16| json!({"status": {"status": status}});
        let mut fault = answer("upgrade", &status(410));
        fault["resuming"] = json!(true);
        inject(&probe, &fault);
        assert!(probe.stream(None).await.is_ok());
        assert_eq!(refused(probe.stream(Some(3)).await), 410);
        assert!(probe.stream(Some(3)).await.is_ok());
        let mut fault = answer("upgrade", &status(401));
        fault["url"] = json!("sequenceId=99");
        fault["times"] = json!("always");
        inject(&probe, &fault);
        for _ in 0..3 {
            assert_eq!(refused(probe.stream(Some(99)).await), 401);
        }
        assert!(probe.stream(Some(1)).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn responses_can_hang_be_late_or_trickle_at_each_stage() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let request = handshake(&probe);
        let short = Duration::from_millis(200);
        for to in ["connection", "upgrade"] {
            inject(&probe, &answer(to, &json!("hang")));
            assert_eq!(raw(&probe, &request, short), "", "{to}");
            inject(&probe, &answer(to, &json!({"trickle": {"every": "20s"}})));
            assert_eq!(raw(&probe, &request, 4 * short), "H", "{to}");
            inject(&probe, &answer(to, &json!({"late": {"for": "600ms"}})));
            assert_eq!(raw(&probe, &request, short), "", "{to}");
            assert!(raw(&probe, &request, Duration::from_secs(5)).contains("101"), "{to}");
        }
        for (to, path) in [("rest", "/api/v2/users"), ("token", "/oauth/token")] {
            let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
            inject(&probe, &answer(to, &json!("hang")));
            assert_eq!(raw(&probe, &request, short), "", "{to}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_101_may_have_a_list_in_its_connection_or_an_interim_answer_before_it() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        inject(&probe, &answer("upgrade", &json!("connection_list")));
        let switched = raw(&probe, &handshake(&probe), Duration::from_secs(5));
        assert!(switched.to_lowercase().contains("connection: keep-alive, upgrade"), "{switched}");
        inject(&probe, &answer("upgrade", &json!("interim")));
        let switched = raw(&probe, &handshake(&probe), Duration::from_secs(5));
        assert!(switched.starts_with("HTTP/1.1 103 ") && switched.contains("HTTP/1.1 101 "), "{switched}");
    }

    #[tokio::test]
    async fn sockets_are_closed_after_opening_a_given_number_of_times() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let closed = answer("upgrade", &json!({"closed": {"after": "10ms", "code": 1008}}));
        inject(&probe, &closed);
        assert_eq!(probe.stream(None).await.unwrap().closed().await, Some(1008));
        assert!(probe.stream(None).await.unwrap().is_silent().await);
    }

    #[tokio::test]
    async fn members_of_a_rest_response_are_changed_as_injected() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let odd = async |how: Value| {
            inject(&probe, &answer("rest", &how));
            probe.call(Method::GET, "/api/v2/routing/queues", None).await
        };
        let body = odd(json!({"changed": {"set": r#"{"pageCount":null}"#, "without": ["/entities/1/id"]}})).await;
        let body: Value = body.json().await.unwrap();
        assert!(body["pageCount"].is_null() && body["entities"][0]["id"].is_string());
        assert!(body["entities"][1].get("id").is_none() && body["entities"][1]["name"].is_string());
        let body = odd(json!({"changed": {"set": r#"{"entities":{"state":"Rejected"}}"#}})).await;
        let body: Value = body.json().await.unwrap();
        assert!(body["entities"].as_array().unwrap().iter().all(|entity| entity["state"] == "Rejected"));
        let answer = odd(json!({"body": {"status": 204, "text": ""}})).await;
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (204, ""));
        let only_next = json!({"changed": {"without": ["/pageCount", "/total", "/lastUri"]}});
        let body: Value = odd(only_next).await.json().await.unwrap();
        assert!(body.get("pageCount").is_none() && body["entities"].is_array());
    }

    #[tokio::test]
    async fn a_token_response_is_changed_as_injected() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let how = json!({"changed": {"status": 201, "content_type": "text/plain", "set": r#"{"scope":7}"#}});
        inject(&probe, &answer("token", &how));
        let odd = probe.token_request().send().await.unwrap();
        assert_eq!((odd.status().as_u16(), &odd.headers()["content-type"]), (201, &"text/plain".parse().unwrap()));
        let body: Value = odd.json().await.unwrap();
        assert!(body["scope"] == 7 && body["access_token"].is_string());
        inject(&probe, &answer("token", &json!({"body": {"text": r#"{"error":"invalid_client"}"#}})));
        let odd = probe.token_request().send().await.unwrap();
        assert_eq!(
            (odd.status().as_u16(), odd.json::<Value>().await.unwrap()["error"].clone()),
            (200, json!("invalid_client"))
        );
        inject(&probe, &answer("token", &json!({"changed": {"gzip": true}})));
        // The client decodes it, so the gzip is valid.
        let odd = probe.token_request().send().await.unwrap();
        assert!(odd.json::<Value>().await.unwrap()["access_token"].is_string());
        assert_eq!(super::gzipped(b"abc")[..3], [0x1f, 0x8b, 8]);
    }

    #[tokio::test]
    async fn a_close_frame_holds_exactly_the_injected_bytes() {
        for hex in ["", "03", "0000", "03e7", "03ed", "03f7", "1388", "03e9e282", "03ea"] {
            let probe = SimulatorProbe::start(Settings::default()).await;
            let mut stream = TcpStream::connect(probe.simulator.address()).unwrap();
            stream.write_all(handshake(&probe).as_bytes()).unwrap();
            eventually(|| probe.simulator.counters().sockets(SocketDialect::Sequenced).open == 1).await;
            let fault: PlatformFault = serde_json::from_value(json!({"fault": "close_raw", "hex": hex})).unwrap();
            probe.simulator.inject(fault);
            let bytes = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let _ended = stream.read_to_end(&mut bytes);
                bytes
            });
            let bytes = bytes.await.unwrap();
            let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            let payload = crate::fault::bytes(hex).unwrap();
            assert_eq!(bytes[end..], [&[0x88, payload.len() as u8], &payload[..]].concat(), "{hex}");
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_is_closed_while_the_platform_sends() {
        let probe = SimulatorProbe::start(Settings { rate: 500.0, ..Settings::default() }).await;
        inject(&probe, &json!({"fault": "close_quiet", "after": "100ms"}));
        assert_eq!(probe.stream(None).await.unwrap().closed().await, Some(1001));
        inject(&probe, &json!({"fault": "close_quiet", "after": "0s"}));
        let mut socket = probe.stream(None).await.unwrap();
        assert!(socket.sequences_at_least(200).await.len() >= 200);
    }

    #[tokio::test]
    async fn a_flood_comes_at_once_or_when_a_second_socket_opens() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut first = probe.stream(None).await.unwrap();
        inject(&probe, &json!({"fault": "flood", "n": 300}));
        assert_eq!(first.events_at_least(300).await.len(), 300);
        inject(&probe, &json!({"fault": "flood", "n": 200, "when": "overlap"}));
        assert!(first.is_silent().await);
        let _second = probe.stream(None).await.unwrap();
        assert_eq!(first.events_at_least(200).await.len(), 200);
    }

    #[tokio::test]
    async fn events_are_changed_as_injected() {
        let probe = SimulatorProbe::start(Settings { frame_max: 1, ..Settings::default() }).await;
        let mut socket = probe.stream(None).await.unwrap();
        inject(&probe, &json!({"fault": "binary", "n": 1}));
        probe.simulator.emit(1);
        let frame = socket.message().await.unwrap().unwrap();
        assert!(frame.is_binary() && serde_json::from_slice::<Value>(&frame.into_data()).is_ok());
        inject(&probe, &json!({"fault": "empty_text"}));
        assert_eq!(socket.text().await, "");
        inject(&probe, &json!({"fault": "pad", "bytes": 70_000}));
        probe.simulator.emit(1);
        assert_eq!(socket.text().await.len(), 70_000);
        let time = "2026-05-04T13:31:49.570+0000";
        inject(&probe, &json!({"fault": "reword", "n": 1, "decimal": true, "time": time}));
        probe.simulator.emit(1);
        let text = socket.text().await;
        assert!(text.contains("\"sequenceId\":3.0,") && text.contains(time), "{text}");
        inject(&probe, &json!({"fault": "unsent", "n": 1}));
        probe.simulator.emit(2);
        assert_eq!(socket.sequences(1).await, [5]);
        assert_eq!(probe.stream(Some(3)).await.unwrap().sequences(2).await, [4, 5]);
    }

    #[tokio::test]
    async fn more_users_than_places_are_a_matter_of_the_script() {
        let script = crate::FaultScript::parse("agents = 1203\nqueues = 5").unwrap();
        let probe = SimulatorProbe::start(Settings { script, ..Settings::default() }).await;
        assert_eq!((probe.simulator.agent_ids().len(), probe.simulator.queue_ids().len()), (1_203, 5));
    }

    #[test]
    fn a_status_answer_reads_back_as_it_was_written() {
        let how = ResponseFault::Late { duration: Duration::from_secs(3) };
        assert_eq!(serde_json::to_value(how).unwrap(), json!({"late": {"for": "3s"}}));
    }
}
