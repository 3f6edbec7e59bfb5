//! The environment of a relay: a simulated platform, a folder, and a configuration as a user writes it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{task::JoinSet, time::MissedTickBehavior};
use trunkline::simulator::{self, Settings, Simulator};

/// The name of a site's numbered stream.
pub(crate) const STREAM: &str = "calls";

/// A folder with a configuration, and its platform.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) platform: Arc<Simulator>,
    pub(crate) config: PathBuf,
}

impl Site {
    /// A site with a platform without traffic and one numbered stream.
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default(), &[]).await
    }

    /// A site with these simulator settings and additional lines in the stream's table.
    pub(crate) async fn start_with(settings: Settings, keys: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (id, secret) = (settings.client_id.clone(), settings.client_secret.clone());
        let platform = Arc::new(simulator::start(settings).await.unwrap());
        fs::write(folder.path().join("client-id"), id).unwrap();
        fs::write(folder.path().join("client-secret"), secret).unwrap();
        let site = Self { config: folder.path().join("trunkline.toml"), folder, platform };
        site.write(&site.store(), keys);
        site
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Rewrites the configuration with this store folder and additional lines in the stream's table.
    pub(crate) fn write(&self, store: &Path, keys: &[&str]) {
        let mut text = self.base(store);
        text.push_str(&format!(
            "[streams.{STREAM}]\naccount = \"demo\"\nconnector = \"genesys-sequenced\"\n\
             url = \"ws://{}/api/v2/analytics/conversations/summary/stream\"\n{}\n",
            self.platform.address(),
            keys.join("\n")
        ));
        fs::write(&self.config, text).unwrap();
    }

    /// Changes the configuration to a store in this Redis.
    pub(crate) fn use_redis(&self, url: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        let text = text.replace("[store]\n", &format!("[store]\nkind = \"redis\"\nurl = \"{url}\"\n"));
        fs::write(&self.config, text).unwrap();
    }

    /// The configuration without its streams.
    pub(crate) fn base(&self, store: &Path) -> String {
        let (address, folder) = (self.platform.address(), self.folder.path().display());
        let store = store.display();
        format!(
            r#"
[http]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[store]
path = "{store}"
[accounts.demo]
platform = "generic"
token_url = "http://{address}/oauth/token"
api_url = "http://{address}"
client_id = {{ file = "{folder}/client-id" }}
client_secret = {{ file = "{folder}/client-secret" }}
refresh_interval_min = "1s"
refresh_jitter = "0s"
"#
        )
    }

    pub(crate) fn config(&self) -> &str {
        self.config.to_str().unwrap()
    }

    /// Sends events at this rate, or slower on a busy machine, until the traffic is stopped or dropped.
    pub(crate) fn start_traffic(&self, events_a_second: u64) -> Traffic {
        const TICK: Duration = Duration::from_millis(10);
        let (platform, mut tasks) = (Arc::clone(&self.platform), JoinSet::new());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tasks.spawn(async move {
            loop {
                tick.tick().await;
                platform.emit(events_a_second / 100);
            }
        });
        Traffic { tasks, platform: Arc::clone(&self.platform) }
    }
}

/// Continuous traffic. Drop stops it.
pub(crate) struct Traffic {
    tasks: JoinSet<()>,
    platform: Arc<Simulator>,
}

impl Traffic {
    /// Stops the traffic and returns the last number.
    pub(crate) async fn stop(mut self) -> u64 {
        self.tasks.shutdown().await;
        self.platform.ledger().last_sequence()
    }
}
