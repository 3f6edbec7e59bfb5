//! The daemon under test, and its operator interface.

use std::net::SocketAddr;

use reqwest::{Client, Response};
use serde_json::Value;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline::{app::App, clock};

use super::{Consumer, ConsumerTransport, POLL_INTERVAL, Platform, RelayPlan, WAIT_MAX, http};

/// A running daemon. Drop stops it without a drain.
pub(crate) struct Relay {
    plan: RelayPlan,
    consumers_at: SocketAddr,
    admin_at: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    http: Client,
}

impl Relay {
    /// Starts a relay with one numbered stream and waits until it is live.
    pub(crate) async fn start(platform: &Platform) -> Self {
        Self::of(RelayPlan::numbered(platform.address())).await
    }

    /// Starts a relay with this plan and waits until all streams are live.
    pub(crate) async fn of(plan: RelayPlan) -> Self {
        let relay = Self::launch(plan).await;
        relay.live().await;
        relay
    }

    /// Starts a relay without a wait for its streams.
    pub(crate) async fn launch(plan: RelayPlan) -> Self {
        let app = App::start(plan.config()).await.unwrap();
        let (consumers_at, admin_at) = (app.consumers_at(), app.admin_at());
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(app.run(stop.clone().cancelled_owned()));
        Self { plan, consumers_at, admin_at, stop, running, http: http() }
    }

    /// Waits until every stream is live.
    pub(crate) async fn live(&self) {
        let end = clock::now() + WAIT_MAX;
        while self.get("/readyz?streams=all").await.status() != 200 {
            assert!(clock::now() < end, "not every stream is live: {}", self.status().await);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Requests a drain and does not wait.
    pub(crate) fn request_stop(&self) {
        self.stop.cancel();
    }

    /// Drains. The plan keeps the folder for a restart.
    pub(crate) async fn stop(self) -> RelayPlan {
        self.stop.cancel();
        timeout(WAIT_MAX, self.running).await.expect("it drains in time").unwrap().unwrap();
        self.plan
    }

    /// Drains and starts on the same folder.
    pub(crate) async fn restart(self) -> Self {
        Self::of(self.stop().await).await
    }

    pub(crate) fn plan(&self) -> &RelayPlan {
        &self.plan
    }

    /// The name of the first stream.
    pub(crate) fn name(&self) -> &str {
        &self.plan.stream_names()[0]
    }

    pub(crate) fn consumers_at(&self) -> SocketAddr {
        self.consumers_at
    }

    /// A WebSocket consumer of the first stream from its first entry.
    pub(crate) async fn consumer(&self) -> Consumer {
        self.consume(ConsumerTransport::WebSocket, "from=first").await
    }

    /// A consumer of the first stream with this query.
    pub(crate) async fn consume(&self, transport: ConsumerTransport, query: &str) -> Consumer {
        Consumer::connect(self.consumers_at, &format!("/v1/streams/{}/events?{query}", self.name()), transport).await
    }

    /// A GET response of the consumer listener.
    pub(crate) async fn page(&self, target: &str) -> Response {
        let request = self.http.get(format!("http://{}{target}", self.consumers_at));
        request.header("accept", "application/cloudevents-batch+json").send().await.unwrap()
    }

    /// A GET response of the admin listener.
    pub(crate) async fn get(&self, target: &str) -> Response {
        self.http.get(format!("http://{}{target}", self.admin_at)).send().await.unwrap()
    }

    /// A POST response of the admin listener.
    pub(crate) async fn post(&self, target: &str) -> Response {
        self.http.post(format!("http://{}{target}", self.admin_at)).send().await.unwrap()
    }

    /// Sends an operator command for the first stream.
    pub(crate) async fn operator_request(&self, command: &str) {
        let answer = self.post(&format!("/admin/v1/streams/{}/{command}", self.name())).await;
        assert_eq!(answer.status(), 202);
    }

    pub(crate) async fn status(&self) -> Value {
        self.get("/admin/v1/status").await.json().await.unwrap()
    }

    /// The status of the first stream.
    pub(crate) async fn stream(&self) -> Value {
        let status = self.status().await;
        let streams = status["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["stream"] == self.name()).unwrap().clone()
    }

    /// The status of the account.
    pub(crate) async fn account(&self) -> Value {
        self.status().await["accounts"][0].clone()
    }

    /// A number in the first stream's status.
    pub(crate) async fn count(&self, key: &str) -> u64 {
        self.stream().await[key].as_u64().unwrap()
    }

    /// The sum of a metric's series with these labels for this relay's first stream or account.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self.get("/metrics").await.text().await.unwrap();
        let own = [format!("stream=\"{}\"", self.name()), format!("account=\"{}\"", self.plan.account_name())];
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let series =
            page.lines().filter_map(|line| line.strip_prefix("trunkline_")?.strip_prefix(name)?.strip_prefix('{'));
        let series = series.filter(|line| own.iter().any(|own| line.contains(own.as_str())));
        let series: Vec<f64> = series
            .filter(|line| wanted.iter().all(|label| line.contains(label.as_str())))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(!series.is_empty(), "there is no {name} {labels:?}");
        series.iter().sum()
    }

    /// Waits until the first stream's status meets the condition.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) {
        let end = clock::now() + WAIT_MAX;
        loop {
            let stream = self.stream().await;
            if condition(&stream) {
                return;
            }
            assert!(clock::now() < end, "not within {WAIT_MAX:?}: {what}: {stream}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The first stream's log as words.
    pub(crate) async fn log_summary(&self) -> String {
        super::summarize_log(&self.entries().await)
    }

    /// All entries of the first stream's log.
    pub(crate) async fn entries(&self) -> Vec<Value> {
        let answer = self.page(&format!("/v1/streams/{}/events?from=first&limit=1000", self.name())).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Waits until the first stream's log consists of exactly these words.
    pub(crate) async fn expect_log(&self, expected: &str) {
        let mut found = String::new();
        let end = clock::now() + WAIT_MAX;
        while found != expected {
            found = self.log_summary().await;
            assert!(clock::now() < end, "the log is\n  {found}\nexpected\n  {expected}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
