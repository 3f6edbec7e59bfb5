//! A client for the tests of the simulator, over real sockets.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{Settings, Simulator, start};

/// Longest wait for a fact.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a socket must be silent to count as silent.
const SILENCE_MIN: Duration = Duration::from_millis(150);

pub(super) struct SimulatorProbe {
    pub(super) simulator: Simulator,
    pub(super) http: reqwest::Client,
    pub(super) token: String,
}

pub(super) struct ProbeSocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl SimulatorProbe {
    /// Starts a platform and a client that has a token.
    pub(super) async fn start(settings: Settings) -> Self {
        let mut probe = Self::without_token(settings).await;
        probe.renew_token().await;
        probe
    }

    pub(super) async fn without_token(settings: Settings) -> Self {
        // Another test may have installed it already.
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let simulator = start(settings).await.unwrap();
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { simulator, http, token: String::new() }
    }

    pub(super) async fn renew_token(&mut self) {
        let answer: Value = self.token_request().send().await.unwrap().json().await.unwrap();
        self.token = answer["access_token"].as_str().unwrap().to_owned();
    }

    pub(super) fn token_request(&self) -> reqwest::RequestBuilder {
        let url = format!("{}/oauth/token", self.simulator.url());
        let form = [("grant_type", "client_credentials")];
        self.http.post(url).basic_auth("demo", Some("demo-secret")).form(&form)
    }

    pub(super) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self.http.request(method, self.simulator.url() + path).bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.json().await.unwrap()
    }

    /// Creates a channel. Returns its id and its address.
    pub(super) async fn channel(&self) -> (String, String) {
        let channel: Value =
            self.call(Method::POST, "/api/v2/notifications/channels", None).await.json().await.unwrap();
        (channel["id"].as_str().unwrap().to_owned(), channel["connectUri"].as_str().unwrap().to_owned())
    }

    pub(super) async fn subscribe(&self, channel: &str, topics: &[String]) -> Response {
        let path = format!("/api/v2/notifications/channels/{channel}/subscriptions");
        let body = topics.iter().map(|topic| json!({"id": topic})).collect();
        self.call(Method::POST, &path, Some(body)).await
    }

    /// Creates a channel with these topics and opens its socket.
    pub(super) async fn open_channel(&self, topics: &[String]) -> (String, ProbeSocket) {
        let (channel, uri) = self.channel().await;
        assert_eq!(self.subscribe(&channel, topics).await.status(), 200);
        (channel, ProbeSocket::open(&uri, None).await.unwrap())
    }

    /// Every topic of the world that has a fixed id.
    pub(super) fn all_topics(&self) -> Vec<String> {
        let users = ["presence", "routingStatus", "activity", "conversations"];
        let queues = ["v2.routing.queues.{}.users", "v2.routing.queues.{}.conversations"];
        let gauges = ["v2.analytics.queues.{}.observations", "v2.analytics.queues.{}.activity"];
        let agents = self.simulator.agent_ids().into_iter();
        let of_users = agents.flat_map(|id| users.map(|kind| format!("v2.users.{id}.{kind}")));
        let ids = self.simulator.queue_ids().into_iter();
        let of_queues =
            ids.flat_map(|id| [queues, gauges].concat().into_iter().map(move |text| text.replace("{}", &id)));
        of_users.chain(of_queues).collect()
    }

    /// Waits until the platform rejects the token.
    pub(super) async fn wait_until_expired(&self) {
        let wait = async { while self.get("/api/v2/routing/queues").await["code"] != "credentials.expired" {} };
        timeout(WAIT_MAX, wait).await.expect("the token should end");
    }

    pub(super) fn ws(&self, path: &str) -> String {
        format!("ws://{}{path}", self.simulator.address())
    }

    /// Opens the numbered stream after a position.
    pub(super) async fn stream(&self, after: Option<u64>) -> Result<ProbeSocket, tungstenite::Error> {
        let resume = after.map(|after| format!("?sequenceId={after}")).unwrap_or_default();
        let path = format!("/api/v2/analytics/conversations/summary/stream{resume}");
        ProbeSocket::open(&self.ws(&path), Some(&self.token)).await
    }
}

impl ProbeSocket {
    pub(super) async fn open(uri: &str, token: Option<&str>) -> Result<Self, tungstenite::Error> {
        let mut request = uri.into_client_request()?;
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        timeout(WAIT_MAX, connect_async(request)).await.unwrap().map(|(socket, _)| Self(socket))
    }

    pub(super) async fn message(&mut self) -> Option<Result<Message, tungstenite::Error>> {
        timeout(WAIT_MAX, self.0.next()).await.expect("something should come")
    }

    pub(super) async fn text(&mut self) -> String {
        loop {
            match self.message().await {
                Some(Ok(Message::Text(text))) => return text.to_string(),
                Some(Ok(Message::Pong(_))) => (),
                other => panic!("no text: {other:?}"),
            }
        }
    }

    pub(super) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The numbers of the next `count` sequenced events, in any frames.
    pub(super) async fn events(&mut self, count: usize) -> Vec<Value> {
        let events = self.events_at_least(count).await;
        assert_eq!(events.len(), count);
        events
    }

    pub(super) async fn events_at_least(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < count {
            let frame = self.json().await;
            match frame.as_array() {
                Some(array) => events.extend_from_slice(array),
                None => events.push(frame),
            }
        }
        events
    }

    /// The numbers of the next events, up to the end of the frame with event `count`.
    pub(super) async fn sequences_at_least(&mut self, count: usize) -> Vec<u64> {
        let events = self.events_at_least(count).await;
        events.iter().map(|event| event["sequenceId"].as_u64().unwrap()).collect()
    }

    pub(super) async fn sequences(&mut self, count: usize) -> Vec<u64> {
        self.events(count).await.iter().map(|event| event["sequenceId"].as_u64().unwrap()).collect()
    }

    pub(super) async fn send(&mut self, value: Value) {
        self.0.send(Message::text(value.to_string())).await.unwrap();
    }

    pub(super) async fn ping(&mut self) {
        self.0.send(Message::Ping(bytes::Bytes::new())).await.unwrap();
    }

    /// Whether nothing arrives for a fixed time.
    pub(super) async fn is_silent(&mut self) -> bool {
        timeout(SILENCE_MIN, self.0.next()).await.is_err()
    }

    /// Reads to the end. True if the connection was reset.
    pub(super) async fn is_reset(&mut self) -> bool {
        loop {
            match self.message().await {
                Some(Ok(_)) => (),
                Some(Err(tungstenite::Error::Io(error))) => {
                    return error.kind() == std::io::ErrorKind::ConnectionReset;
                }
                Some(Err(_)) | None => return false,
            }
        }
    }

    /// Reads to the end. Returns the close code, or `None` when the connection was lost.
    pub(super) async fn closed(&mut self) -> Option<u16> {
        loop {
            match self.message().await {
                Some(Ok(Message::Close(Some(frame)))) => return Some(frame.code.into()),
                Some(Ok(_)) => (),
                Some(Err(_)) | None => return None,
            }
        }
    }
}

/// The status of a refused handshake.
pub(super) fn refused(result: Result<ProbeSocket, tungstenite::Error>) -> u16 {
    match result {
        Err(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the handshake was accepted"),
    }
}

/// Waits until a condition is true.
pub(super) async fn eventually(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(WAIT_MAX, wait).await.expect("it should become so");
}
