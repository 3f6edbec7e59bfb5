//! The services of `docker-compose.yml` as local processes with the command lines and variables of the file, except for
//! ports and folders. One replica is stopped, another is killed, and the consumer continues.

use std::{fs, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use super::files::{document, free, path, strings, text};
use crate::process::{
    LogEntry, RelayProcess,
    child::{Child, WAIT_MAX, eventually},
};

/// The ports in the file.
const PORTS: [&str; 6] = ["6379", "8081", "8082", "9080", "9091", "9092"];
const REPLICAS: [&str; 2] = ["replica-a", "replica-b"];
/// The stream of the file's consumer.
const STREAM: &str = "conversations";
/// Number of new entries that proves that the consumer continues.
const MORE: usize = 40;

struct ComposeFixture {
    folder: TempDir,
    compose: Value,
    /// The local port for each port in the file.
    ports: [(&'static str, String); 6],
}

impl ComposeFixture {
    fn new() -> Self {
        let own = free::<6>().map(|address| address.port().to_string());
        let mut own = own.into_iter();
        let ports = PORTS.map(|port| (port, own.next().unwrap()));
        Self { folder: tempfile::tempdir().unwrap(), compose: document("docker-compose.yml"), ports }
    }

    /// Replaces ports and folders in a text of the files.
    fn localize(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |text, (port, own)| match text == *port {
            true => own.clone(),
            false => text.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{own}")),
        })
    }

    fn words(&self, service: &str, key: &str) -> Vec<String> {
        strings(&self.compose["services"][service][key]).into_iter().map(|word| self.localize(word)).collect()
    }

    fn spawn(&self, service: &str, program: &str, words: Vec<String>) -> Child {
        let folder = self.folder.path().join(service);
        fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(program);
        command.args(words);
        for (name, value) in self.compose["services"][service]["environment"].as_object().into_iter().flatten() {
            command.env(name, self.localize(value.as_str().unwrap()));
        }
        Child::spawn(&folder, command)
    }

    async fn redis(&self) -> Child {
        let words = self.words("redis", "command").into_iter();
        let mut words = words.map(|word| if word == "/data" { ".".to_owned() } else { word });
        let server = self.spawn("redis", &words.next().unwrap(), words.collect());
        let asked = strings(&self.compose["services"]["redis"]["healthcheck"]["test"]).into_iter().skip(1);
        let asked: Vec<String> = asked.map(str::to_owned).collect();
        eventually("Redis is healthy", WAIT_MAX, async || {
            let output = Command::new(&asked[0]).args(["-p", &self.ports[0].1]).args(&asked[1..]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains("PONG").then_some(())
        })
        .await;
        server
    }

    async fn platform(&self) -> Child {
        let mut platform = self.spawn("platform", env!("CARGO_BIN_EXE_trunkline"), self.words("platform", "command"));
        platform.wait_for_output("The simulated platform listens").await;
        platform
    }

    /// Starts a replica with the image's command and the mounted configuration.
    async fn replica(&self, name: &str) -> RelayProcess {
        let config = self.folder.path().join("trunkline.toml");
        fs::write(&config, self.localize(&text("deploy/compose/trunkline.toml"))).unwrap();
        let words = ["run", "--config", config.to_str().unwrap()].map(str::to_owned).to_vec();
        let relay = RelayProcess::of(self.spawn(name, env!("CARGO_BIN_EXE_trunkline"), words)).await;
        relay.wait_until_live().await;
        relay
    }

    fn consumer(&self) -> Child {
        assert_eq!(self.words("consumer", "entrypoint"), ["sh", "/consume"]);
        let script = path("deploy/compose/consume").display().to_string();
        let words = [vec![script], self.words("consumer", "command")].concat();
        self.spawn("consumer", "sh", words)
    }
}

/// Waits until each replica owns one stream, and returns the owner of the consumer's stream, from `trunkline status`.
async fn holder_index(relays: &[RelayProcess; 2]) -> usize {
    eventually("each replica owns one stream", WAIT_MAX, async || {
        let shown = [relays[0].status().await, relays[1].status().await];
        let kept = shown.each_ref().map(held_streams);
        (kept[0].len() == 1 && kept[1].len() == 1).then(|| usize::from(kept[1][0] == STREAM))
    })
    .await
}

/// The streams that the reporting replica owns.
fn held_streams(status: &Value) -> Vec<String> {
    let streams = status["streams"].as_array().unwrap().iter();
    let own = streams.filter(|stream| stream["holder"] == status["replica"]);
    own.map(|stream| stream["stream"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the consumer has printed enough new entries, and returns all.
async fn next_printed_entries(consumer: &Child) -> Vec<LogEntry> {
    let before = consumer.stdout().lines().count();
    let lines = eventually("the consumer continues", WAIT_MAX, async || {
        let out = consumer.stdout();
        (out.lines().count() >= before + MORE && out.ends_with('\n')).then_some(out)
    })
    .await;
    lines.lines().map(LogEntry::read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_consumer_continues_without_a_hole_when_replicas_are_stopped_and_killed() {
    let stage = ComposeFixture::new();
    let (_redis, _platform) = (stage.redis().await, stage.platform().await);
    let mut relays = [stage.replica(REPLICAS[0]).await, stage.replica(REPLICAS[1]).await];
    let consumer = stage.consumer();
    next_printed_entries(&consumer).await;

    let stopped = holder_index(&relays).await;
    relays[stopped].child.signal("TERM");
    assert_eq!(relays[stopped].child.wait_for_exit(WAIT_MAX).await, 0, "{}", relays[stopped].child.printed_output());
    assert_eq!(
        held_streams(&relays[1 - stopped].status().await).len(),
        2,
        "the replica got both streams before the other one ended"
    );
    next_printed_entries(&consumer).await;
    relays[stopped] = stage.replica(REPLICAS[stopped]).await;

    let killed = holder_index(&relays).await;
    relays[killed].child.kill();
    next_printed_entries(&consumer).await;
    relays[killed] = stage.replica(REPLICAS[killed]).await;
    holder_index(&relays).await;

    let entries = next_printed_entries(&consumer).await;
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, (1..=entries.len() as u64).collect::<Vec<_>>(), "each entry once, in order");
    let numbers: Option<Vec<u64>> = entries.iter().map(|entry| entry.number).collect();
    let numbers = numbers.expect("there is no gap entry");
    assert!(numbers.is_sorted_by(|before, after| before + 1 == *after), "{numbers:?}");
}
