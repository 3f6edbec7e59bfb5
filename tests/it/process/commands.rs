//! The commands other than `run`, as users type them.

use std::{fs, path::Path, time::Duration};

use redis::cmd;
use serde_json::{Value, json};
use trunkline::simulator::Settings;

use super::{
    child::{Child, WAIT_MAX, eventually},
    log::LogEntry,
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};
use crate::harness::RedisServer;

/// Runs a command, which must succeed, and returns its output.
async fn output(folder: &Path, arguments: &[&str]) -> String {
    let mut child = Child::start(folder, arguments);
    assert_eq!(child.wait_for_exit(WAIT_MAX).await, 0, "{arguments:?}\n{}", child.printed_output());
    assert_eq!(child.stderr(), "", "{arguments:?}");
    child.stdout()
}

#[tokio::test]
async fn a_short_demo_rotates_and_verifies_its_logs() {
    let folder = tempfile::tempdir().unwrap();
    let line = "demo --duration 5s --http 127.0.0.1:0 --admin 127.0.0.1:0 --rate 200 --token-ttl 4s";
    let mut demo = Child::start(folder.path(), &line.split(' ').collect::<Vec<_>>());
    assert_eq!(demo.wait_for_exit(WAIT_MAX).await, 0, "{}", demo.printed_output());
    let out = demo.stdout();
    let verdicts: Vec<&str> = out.lines().filter(|line| line.contains("missing without a gap")).collect();
    assert_eq!(verdicts.len(), 2, "{out}");
    for verdict in verdicts {
        assert!(verdict.trim_start().starts_with("ok: "), "{out}");
        assert!(verdict.contains(" 0 duplicated, 0 missing without a gap"), "{out}");
    }
    for stream in ["conversations: rotations ", "queues: rotations "] {
        let rotations = out.lines().find_map(|line| line.strip_prefix(stream)?.split(',').next()?.parse::<u64>().ok());
        assert!(rotations.is_some_and(|count| count >= 1), "{stream}\n{out}");
    }
    for words in
        ["trunkline tail conversations --url http://127.0.0.1:", "curl -N ", "Ctrl-C stops the demo", ", reconnects "]
    {
        assert!(out.contains(words), "{out}");
    }
    assert!(!out.contains(" lost"), "a reconnect is no lost event: {out}");
    assert!(!demo.stderr().contains("the store's directory"), "{}", demo.stderr());
}

#[tokio::test]
async fn a_second_demo_on_the_same_directory_verifies_its_logs() {
    let folder = tempfile::tempdir().unwrap();
    let line = "demo --duration 3s --http 127.0.0.1:0 --admin 127.0.0.1:0 --rate 100 --data kept";
    for resets in ["gaps: ", "1 reset"] {
        let mut demo = Child::start(folder.path(), &line.split(' ').collect::<Vec<_>>());
        assert_eq!(demo.wait_for_exit(WAIT_MAX).await, 0, "{}", demo.printed_output());
        let out = demo.stdout();
        assert_eq!(out.matches("  ok: ").count(), 2, "{out}");
        assert_eq!(out.matches(resets).count(), 2, "{out}");
        assert!(!demo.stderr().contains("the store's directory"), "{}", demo.stderr());
    }
}

#[tokio::test]
async fn a_demo_leaves_nothing_behind_and_ends_on_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let line = ["demo", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut demo = Child::start(folder.path(), &line);
    demo.wait_for_output("Try in another terminal:").await;
    let kept = || fs::read_dir(folder.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(kept(), 1, "its logs are in the temporary folder");
    // The demo reports success only if the logs have entries.
    eventually("both streams have entries", WAIT_MAX, async || demo.stdout().contains("gaps 0").then_some(())).await;
    demo.signal("INT");
    assert_eq!(demo.wait_for_exit(WAIT_MAX).await, 0, "{}", demo.printed_output());
    assert_eq!(kept(), 0);
}

#[tokio::test]
async fn a_token_is_printed_alone_and_an_error_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = ("[http.auth]\njwt = { hmac = { env = \"TOKEN_KEY\" } }\n", "[http.auth]\njwt = {}\n");
    fs::write(folder.path().join("good.toml"), good).unwrap();
    fs::write(folder.path().join("bad.toml"), bad).unwrap();
    let line =
        |file| ["token", "mint", "--config", file, "--subject", "wall", "--stream", "queues", "acme.*", "--ttl", "10m"];
    let secret = "canary".repeat(6);
    let variables = [("TOKEN_KEY", secret.as_str())];
    let mut mint = Child::start_with(folder.path(), &line("good.toml"), &variables);
    assert_eq!(mint.wait_for_exit(WAIT_MAX).await, 0, "{}", mint.printed_output());
    let token = mint.stdout();
    assert!(token.lines().count() == 1 && token.trim_end().split('.').count() == 3, "{token}");
    assert_eq!(mint.stderr(), "");
    for (file, variables) in [("bad.toml", &variables[..]), ("good.toml", &[]), ("none.toml", &variables)] {
        let mut mint = Child::start_with(folder.path(), &line(file), variables);
        assert_eq!(mint.wait_for_exit(WAIT_MAX).await, 2, "{}", mint.printed_output());
        assert!(mint.stdout().is_empty() && mint.stderr().contains(file), "{}", mint.printed_output());
        assert!(!mint.stderr().contains("canary"));
    }
}

#[tokio::test]
async fn tail_prints_one_event_a_line_and_continues_after_a_restart() {
    let site = Site::start().await;
    fix_ports(&site);
    let mut relay = RelayProcess::live(&site).await;
    let mut tail = Child::start(site.folder.path(), &["tail", STREAM, "--url", &relay.consumers]);
    eventually("tail is connected", WAIT_MAX, async || {
        (relay.status().await["subscribers"]["ndjson"] == json!(1)).then_some(())
    })
    .await;
    site.platform.emit(5);
    printed(&tail, 5).await;
    relay.child.kill();
    tail.wait_for_output("connection lost; retrying").await;
    site.platform.emit(5);
    let relay = RelayProcess::live(&site).await;
    relay.wait_for_number(10).await;
    let entries = printed(&tail, 10).await;
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, (1..=10).collect::<Vec<_>>(), "each event once, in order");

    let after = &entries[6].id;
    let mut again = Child::start(site.folder.path(), &["tail", STREAM, "--after", after, "--url", &relay.consumers]);
    assert_eq!(printed(&again, 3).await, entries[7..]);
    for tail in [&mut tail, &mut again] {
        tail.signal("INT");
        assert_eq!(tail.wait_for_exit(WAIT_MAX).await, 0, "{}", tail.printed_output());
    }
}

/// Fixes the ports, so that a restarted relay has the same addresses.
fn fix_ports(site: &Site) {
    let mut text = fs::read_to_string(site.config()).unwrap();
    let free = [(), ()].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    for port in free.map(|listener| listener.local_addr().unwrap().port()) {
        text = text.replacen("127.0.0.1:0\"", &format!("127.0.0.1:{port}\""), 1);
    }
    fs::write(site.config(), text).unwrap();
}

async fn printed(tail: &Child, count: usize) -> Vec<LogEntry> {
    let lines = eventually("tail printed the events", WAIT_MAX, async || {
        let out = tail.stdout();
        (out.lines().count() >= count && out.ends_with('\n')).then_some(out)
    })
    .await;
    lines.lines().map(LogEntry::read).collect()
}

#[tokio::test]
async fn tail_of_an_unknown_stream_names_the_known_ones() {
    let site = Site::start().await;
    let relay = RelayProcess::start(&site).await;
    let mut tail = Child::start(site.folder.path(), &["tail", "nothing", "--url", &relay.consumers]);
    assert_eq!(tail.wait_for_exit(WAIT_MAX).await, 3);
    assert_eq!(tail.stderr(), format!("error: unknown stream nothing; known streams: {STREAM}\n"));
}

#[tokio::test]
async fn status_is_a_table_for_people_and_json_for_programs() {
    let site = Site::start().await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(7);
    relay.wait_for_number(7).await;
    eventually("seven events are counted", WAIT_MAX, async || {
        (relay.stream().await["events"] == json!(7)).then_some(())
    })
    .await;
    let table = output(site.folder.path(), &["status", "--url", &relay.admin]).await;
    let row = table.lines().find(|line| line.starts_with(STREAM)).expect(&table);
    assert!(row.contains("live"), "{table}");
    let text = output(site.folder.path(), &["status", "--json", "--url", &relay.admin]).await;
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["streams"][0]["stream"], STREAM);
    assert_eq!((&status["streams"][0]["events"], &status["ready"]), (&json!(7), &json!(true)));
    assert_eq!(status["accounts"][0]["state"], "valid");

    let mut watch = Child::start(site.folder.path(), &["status", "--watch", "--url", &relay.admin]);
    watch.wait_for_output(STREAM).await;
    watch.signal("INT");
    assert_eq!(watch.wait_for_exit(WAIT_MAX).await, 0, "{}", watch.printed_output());
}

#[tokio::test]
async fn status_of_an_unreachable_relay_fails_with_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut status = Child::start(folder.path(), &["status", "--url", &format!("http://{unused}")]);
    assert_eq!(status.wait_for_exit(WAIT_MAX).await, 1);
    assert!(status.stderr().starts_with(&format!("error: could not reach http://{unused}\n")), "{}", status.stderr());
    assert!(status.stderr().contains("refused"), "{}", status.stderr());
}

#[tokio::test]
async fn completions_and_the_schema_can_be_used_by_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let completions = output(folder.path(), &["completions", "bash"]).await;
    fs::write(folder.path().join("completions"), &completions).unwrap();
    let checked = std::process::Command::new("bash").arg("-n").arg(folder.path().join("completions")).status().unwrap();
    assert!(checked.success() && completions.contains("_trunkline"), "{completions}");
    let schema: Value = serde_json::from_str(&output(folder.path(), &["config", "schema"]).await).unwrap();
    assert!(schema["properties"]["streams"].is_object(), "{schema}");
}

#[tokio::test]
async fn the_effective_configuration_is_a_configuration_without_its_secrets() {
    let settings = Settings { client_secret: "canary-in-a-file".to_owned(), ..Settings::default() };
    let site = Site::start_with(settings, &[]).await;
    let shown = output(site.folder.path(), &["config", "show", "--config", site.config()]).await;
    assert!(shown.contains("silence_max = \"35s\""), "defaults are shown: {shown}");
    assert!(shown.contains("***") && !shown.contains("canary"), "{shown}");
    let table: toml::Table = toml::from_str(&shown).unwrap_or_else(|error| panic!("{error}\n{shown}"));
    assert!(table["streams"][STREAM].is_table());
}

#[tokio::test]
async fn the_simulated_platform_serves_tokens_and_takes_faults() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Child::start(folder.path(), &["simulate", "--listen", "127.0.0.1:0", "--rate", "50"]);
    child.wait_for_output("token URL http://").await;
    let out = child.stdout();
    let url = out.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    let form = [("grant_type", "client_credentials"), ("client_id", "demo"), ("client_secret", "demo-secret")];
    let answer = client().post(format!("{url}/oauth/token")).form(&form).send().await.unwrap();
    let token: Value = answer.json().await.unwrap();
    assert!(token["access_token"].is_string() && token["expires_in"] == json!(600), "{token}");
    let fault = json!({"fault": "token", "failure": "invalid_client"});
    let taken = client().post(format!("{url}/simulate/v1/faults")).json(&fault).send().await.unwrap();
    assert_eq!(taken.status(), 202);
    let refused = client().post(format!("{url}/oauth/token")).form(&form).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    child.signal("TERM");
    assert_eq!(child.wait_for_exit(Duration::from_secs(5)).await, 0, "{}", child.printed_output());
    assert!(child.stdout().contains("tokens granted: 1"), "{}", child.stdout());
}

#[tokio::test]
async fn a_bench_with_a_given_redis_measures_there_and_leaves_no_keys() {
    let (folder, server) = (tempfile::tempdir().unwrap(), RedisServer::volatile());
    let line = format!("bench --quick --json --only redis --redis {}", server.url());
    let mut bench = Child::start(folder.path(), &line.split(' ').collect::<Vec<_>>());
    // It measures for ten seconds and starts the measured parts four times.
    assert_eq!(bench.wait_for_exit(3 * WAIT_MAX).await, 0, "{}", bench.printed_output());
    let report: Value = serde_json::from_str(&bench.stdout()).unwrap();
    let port = server.port().to_string();
    assert!(report["conditions"]["redis"].as_str().is_some_and(|redis| redis.contains(&port)), "{report}");
    let figures = report["figures"].as_array().unwrap();
    for name in ["redis, source to acknowledged append", "redis, to another replica, p50"] {
        let figure = figures.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("{report}"));
        assert!(figure["value"].as_f64().is_some_and(|value| value > 0.0), "{figure}");
    }
    eventually("no key is left", WAIT_MAX, async || {
        let keys: Vec<String> = server.connection().run(cmd("KEYS").arg("*")).await.ok()?;
        keys.is_empty().then_some(())
    })
    .await;
}
