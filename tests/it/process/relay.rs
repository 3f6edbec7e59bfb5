//! `trunkline run` as a child process, with its HTTP interfaces.

use std::path::Path;

use serde_json::{Value, value::RawValue};

use super::{
    child::{Child, WAIT_MAX, eventually},
    log::LogEntry,
    site::{STREAM, Site},
};

/// A running daemon and its URLs.
pub(crate) struct RelayProcess {
    pub(crate) child: Child,
    /// URL of the consumer listener, `http://127.0.0.1:…`.
    pub(crate) consumers: String,
    /// URL of the admin listener, `http://127.0.0.1:…`.
    pub(crate) admin: String,
}

impl RelayProcess {
    /// Starts it and waits until it listens.
    pub(crate) async fn start(site: &Site) -> Self {
        Self::start_with(site, &[]).await
    }

    pub(crate) async fn start_with(site: &Site, variables: &[(&str, &str)]) -> Self {
        Self::of(Self::spawn(site.folder.path(), site.config(), variables)).await
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn spawn(folder: &Path, config: &str, variables: &[(&str, &str)]) -> Child {
        Child::start_with(folder, &["run", "--config", config], variables)
    }

    /// Waits until a started daemon listens.
    pub(crate) async fn of(mut child: Child) -> Self {
        child.wait_for_output("\"trunkline started\"").await;
        let log = child.stderr();
        let runs = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let runs = runs.into_iter().find(|line| line["message"] == "trunkline started").unwrap();
        let address = |name: &str| format!("http://{}", runs[name].as_str().unwrap());
        Self { consumers: address("consumers"), admin: address("admin"), child }
    }

    /// Starts it and waits until every stream is live.
    pub(crate) async fn live(site: &Site) -> Self {
        let relay = Self::start(site).await;
        relay.wait_until_live().await;
        relay
    }

    pub(crate) async fn wait_until_live(&self) {
        let all = format!("{}/readyz?streams=all", self.admin);
        eventually("every stream is live", WAIT_MAX, async || {
            let answer = client().get(&all).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Status and body of `/readyz`; `None` without a response.
    pub(crate) async fn ready(&self) -> Option<(u16, Value)> {
        let answer = client().get(format!("{}/readyz", self.admin)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    pub(crate) async fn status(&self) -> Value {
        self.text(&self.admin, "/admin/v1/status").await.parse().unwrap()
    }

    /// The status of the stream.
    pub(crate) async fn stream(&self) -> Value {
        self.status().await["streams"].as_array().unwrap().iter().find(|s| s["stream"] == STREAM).unwrap().clone()
    }

    pub(crate) async fn text(&self, listener: &str, path: &str) -> String {
        let answer = client().get(format!("{listener}{path}")).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("{error}\n{}", self.child.printed_output()));
        answer.text().await.unwrap()
    }

    /// Sends an operator command.
    pub(crate) async fn operator_request(&self, path: &str) {
        let answer = client().post(format!("{}/admin/v1/{path}", self.admin)).send().await.unwrap();
        assert_eq!(answer.status(), 202, "{path}");
    }

    /// Waits until the newest entry of the log has this sequence number.
    pub(crate) async fn wait_for_number(&self, number: u64) {
        eventually(&format!("number {number} is in the log"), WAIT_MAX, async || {
            (self.newest().await?.number? == number).then_some(())
        })
        .await;
    }

    /// The newest entry of the log as a consumer gets it.
    pub(crate) async fn newest(&self) -> Option<LogEntry> {
        let last = self.stream().await["last"].as_str()?.to_owned();
        let (epoch, offset) = last.split_once('-')?;
        let before = offset.parse::<u64>().ok()?.checked_sub(1)?;
        let path = format!("/v1/streams/{STREAM}/events?limit=1&after={epoch}-{before}");
        let page: Vec<Box<RawValue>> = serde_json::from_str(&self.text(&self.consumers, &path).await).ok()?;
        page.last().map(|event| LogEntry::read(event.get()))
    }
}

/// A client without redirects and without idle connections.
pub(crate) fn client() -> reqwest::Client {
    trunkline::app::install_crypto();
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(WAIT_MAX).build().unwrap()
}
