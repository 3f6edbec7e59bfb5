//! `docker-compose.yml` and its mounted files.

use std::{fs, process::Command};

use serde_json::Value;

use super::files::{assert_good, document, drain_secs_max, free, path, seconds, strings, text};
use crate::process::{
    LogEntry, RelayProcess, STREAM, Site,
    child::{Child, WAIT_MAX, eventually},
};

const REPLICAS: [&str; 2] = ["replica-a", "replica-b"];

fn compose() -> Value {
    document("docker-compose.yml")
}

#[test]
fn every_service_has_a_read_only_root_no_rights_and_the_network_of_all() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        if name == "network" {
            assert_eq!(strings(&service["ports"]), ["127.0.0.1:9095:9095"], "nothing else is published");
            continue;
        }
        assert_eq!(service["network_mode"], "service:network", "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert!(service["ports"].is_null(), "{name}");
        for mount in strings(&service["volumes"]) {
            let (from, _) = mount.split_once(':').unwrap();
            match from.strip_prefix("./") {
                Some(file) => assert!(path(file).exists() && mount.ends_with(":ro"), "{name}: {mount}"),
                None => assert!(compose["volumes"].as_object().unwrap().contains_key(from), "{name}: {mount}"),
            }
        }
    }
}

#[test]
fn the_replicas_have_a_valid_configuration_separate_ports_and_time_to_drain() {
    let compose = compose();
    let mut targets = Vec::new();
    for name in REPLICAS {
        let replica = &compose["services"][name];
        let environment = replica["environment"].as_object().unwrap();
        let variables: Vec<_> =
            environment.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect();
        assert_good(name, &text("deploy/compose/trunkline.toml"), &variables);
        assert!(seconds(replica["stop_grace_period"].as_str().unwrap()) > drain_secs_max(), "{name}");
        assert!(strings(&replica["volumes"]).contains(&&*format!("{name}:/data")), "{name} has its own folder");

        let admin = environment["TRUNKLINE__ADMIN__LISTEN"].as_str().unwrap();
        let health = strings(&replica["healthcheck"]["test"]).join(" ");
        assert_eq!(health, format!("CMD /usr/local/bin/trunkline status --url http://{admin}"));
        targets.push(admin.to_owned());
        let consumers = format!("http://{}", environment["TRUNKLINE__HTTP__LISTEN"].as_str().unwrap());
        let asked = strings(&compose["services"]["consumer"]["command"]);
        assert!(asked.contains(&consumers.as_str()), "the consumer uses {name}");
        let written = text("docker-compose.yml");
        assert!(written.contains(&format!("{name} /usr/local/bin/trunkline status --url http://{admin}\n")), "{name}");
    }
    let scrape = document("deploy/compose/prometheus.yml");
    assert_eq!(strings(&scrape["scrape_configs"][0]["static_configs"][0]["targets"]), targets);
}

#[test]
fn redis_persists_and_evicts_nothing() {
    let redis = &compose()["services"]["redis"];
    let command = strings(&redis["command"]).join(" ");
    for words in ["--bind 127.0.0.1", "--appendonly yes", "--maxmemory-policy noeviction", "--maxmemory 512mb"] {
        assert!(command.contains(words), "{command}");
    }
    let config: toml::Table = text("deploy/compose/trunkline.toml").parse().unwrap();
    let port = command.split_once("--port ").unwrap().1.split(' ').next().unwrap();
    assert_eq!(config["store"]["url"].as_str(), Some(&*format!("redis://127.0.0.1:{port}")));
}

/// A real Redis accepts the command line of the file, except for port and folder.
#[tokio::test]
async fn redis_understands_how_it_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let compose = compose();
    let command = strings(&compose["services"]["redis"]["command"]);
    let port = free::<1>()[0].port().to_string();
    let own = |word: &&str| match *word {
        "6379" => port.clone(),
        "/data" => ".".to_owned(),
        word => word.to_owned(),
    };
    let mut server = Command::new(command[0]);
    server.args(command[1..].iter().map(own));
    let found = Command::new("redis-cli").arg("--version").output().is_ok();
    assert!(found, "Redis is not installed; sudo apt-get install -y redis-server");
    let _server = Child::spawn(folder.path(), server);
    let setting = |name: &str| {
        let output = Command::new("redis-cli").args(["-p", &port, "config", "get", name]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().nth(1).map(str::to_owned)
    };
    eventually("Redis answers", WAIT_MAX, async || setting("port")).await;
    for (name, value) in [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("maxmemory", "536870912")] {
        assert_eq!(setting(name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn the_platform_listens_at_the_address_of_the_configuration() {
    let compose = compose();
    let command = strings(&compose["services"]["platform"]["command"]);
    let listen = command.iter().skip_while(|word| **word != "--listen").nth(1).unwrap();
    let config: toml::Table = text("deploy/compose/trunkline.toml").parse().unwrap();
    let account = &config["accounts"]["demo"];
    for url in [&account["token_url"], &account["api_url"], &config["streams"]["conversations"]["url"]] {
        assert_eq!(url.as_str().unwrap().split('/').nth(2), Some(*listen));
    }
}

/// Runs the consumer's script against a relay that is killed and restarted at the other address.
#[tokio::test]
async fn the_consumer_continues_at_the_other_replica_without_a_hole() {
    let site = Site::start().await;
    let [first, second] = free::<2>().map(|address| address.to_string());
    let mut consume = Command::new("sh");
    consume.arg(path("deploy/compose/consume")).arg(STREAM).args([&first, &second].map(|at| format!("http://{at}")));
    let mut relay = RelayProcess::start_with(&site, &[("TRUNKLINE__HTTP__LISTEN", &first)]).await;
    relay.wait_until_live().await;
    site.platform.emit(20);
    relay.wait_for_number(20).await;
    let mut consumer = Child::spawn(site.folder.path(), consume);
    printed(&consumer, 20).await;

    relay.child.kill();
    site.platform.emit(20);
    let relay = RelayProcess::start_with(&site, &[("TRUNKLINE__HTTP__LISTEN", &second)]).await;
    relay.wait_until_live().await;
    relay.wait_for_number(40).await;
    let entries = printed(&consumer, 40).await;
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, (1..=40).collect::<Vec<_>>(), "each event once, in order");
    consumer.signal("TERM");
    assert_eq!(consumer.wait_for_exit(WAIT_MAX).await, 0, "{}", consumer.printed_output());
    let left = fs::read_dir(site.folder.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp."));
    assert_eq!(left.count(), 0, "no temporary file is left");
}

async fn printed(consumer: &Child, count: usize) -> Vec<LogEntry> {
    let lines = eventually("the consumer printed the events", WAIT_MAX, async || {
        let out = consumer.stdout();
        (out.lines().count() >= count && out.ends_with('\n')).then_some(out)
    })
    .await;
    lines.lines().map(LogEntry::read).collect()
}
