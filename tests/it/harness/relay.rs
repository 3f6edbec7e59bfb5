//! The daemon under test, and what an operator sees of it.

use std::net::SocketAddr;

use reqwest::{Client, Response};
use serde_json::Value;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trunkline::{app::App, clock};

use super::{Consumer, ConsumerTransport, POLL_INTERVAL, Platform, RelayPlan, WAIT_MAX, http};

/// A running daemon. Dropped, it is cut off with its test.
pub(crate) struct Relay {
    plan: RelayPlan,
    consumers_at: SocketAddr,
    admin_at: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    http: Client,
}

impl Relay {
    /// One numbered stream, live.
    pub(crate) async fn start(platform: &Platform) -> Self {
        Self::of(RelayPlan::numbered(platform.address())).await
    }

    /// Everything of this plan, live.
    pub(crate) async fn of(plan: RelayPlan) -> Self {
        let relay = Self::launch(plan).await;
        relay.live().await;
        relay
    }

    /// Started, however far its streams are.
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
            assert!(clock::now() < end, "not every stream came alive: {}", self.status().await);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks it to end, and goes on at once.
    pub(crate) fn request_stop(&self) {
        self.stop.cancel();
    }

    /// Drains. What is left is what a restart finds.
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

    /// Whoever reads the first stream from its first entry, over a WebSocket.
    pub(crate) async fn consumer(&self) -> Consumer {
        self.consume(ConsumerTransport::WebSocket, "from=first").await
    }

    /// Whoever reads the first stream with this query.
    pub(crate) async fn consume(&self, transport: ConsumerTransport, query: &str) -> Consumer {
        Consumer::connect(self.consumers_at, &format!("/v1/streams/{}/events?{query}", self.name()), transport).await
    }

    /// One answer of the listener for consumers.
    pub(crate) async fn page(&self, target: &str) -> Response {
        let request = self.http.get(format!("http://{}{target}", self.consumers_at));
        request.header("accept", "application/cloudevents-batch+json").send().await.unwrap()
    }

    /// One answer of the admin listener.
    pub(crate) async fn get(&self, target: &str) -> Response {
        self.http.get(format!("http://{}{target}", self.admin_at)).send().await.unwrap()
    }

    /// The same for what changes something.
    pub(crate) async fn post(&self, target: &str) -> Response {
        self.http.post(format!("http://{}{target}", self.admin_at)).send().await.unwrap()
    }

    /// An operator's wish for the first stream.
    pub(crate) async fn operator_request(&self, wish: &str) {
        let answer = self.post(&format!("/admin/v1/streams/{}/{wish}", self.name())).await;
        assert_eq!(answer.status(), 202);
    }

    pub(crate) async fn status(&self) -> Value {
        self.get("/admin/v1/status").await.json().await.unwrap()
    }

    /// What the status says of the first stream.
    pub(crate) async fn stream(&self) -> Value {
        let status = self.status().await;
        let streams = status["streams"].as_array().unwrap();
        streams.iter().find(|stream| stream["stream"] == self.name()).unwrap().clone()
    }

    /// What the status says of the account.
    pub(crate) async fn account(&self) -> Value {
        self.status().await["accounts"][0].clone()
    }

    /// A count of the first stream's status.
    pub(crate) async fn count(&self, key: &str) -> u64 {
        self.stream().await[key].as_u64().unwrap()
    }

    /// The sum of a metric's series that belong to this relay's first stream or account and carry these labels.
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

    /// Waits until the first stream's status says so.
    pub(crate) async fn until(&self, what: &str, fact: impl Fn(&Value) -> bool) {
        let end = clock::now() + WAIT_MAX;
        loop {
            let stream = self.stream().await;
            if fact(&stream) {
                return;
            }
            assert!(clock::now() < end, "it never came true that {what}: {stream}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The story of the first stream's log so far.
    pub(crate) async fn log_summary(&self) -> String {
        super::summarize_log(&self.entries().await)
    }

    /// Every entry of the first stream's log so far.
    pub(crate) async fn entries(&self) -> Vec<Value> {
        let answer = self.page(&format!("/v1/streams/{}/events?from=first&limit=1000", self.name())).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Waits until the log tells this story, and nothing beyond it.
    pub(crate) async fn expect_log(&self, story: &str) {
        let mut told = String::new();
        let end = clock::now() + WAIT_MAX;
        while told != story {
            told = self.log_summary().await;
            assert!(clock::now() < end, "the log tells\n  {told}\nwhere it should tell\n  {story}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
