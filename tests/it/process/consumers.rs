//! Durable consumers of a running daemon: one of the configuration, and the commands for them.

use std::fs;

use serde_json::{Value, json};

use super::{
    child::{Child, WAIT_MAX, eventually},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// The output of a command that succeeds.
async fn output(site: &Site, relay: &RelayProcess, words: &[&str]) -> String {
    let words = [&["consumer"], words, &["--url", &relay.consumers]].concat();
    let mut child = Child::start(site.folder.path(), &words);
    assert_eq!(child.wait_for_exit(WAIT_MAX).await, 0, "{}", child.printed_output());
    child.stdout()
}

async fn page(relay: &RelayProcess) -> Vec<String> {
    let page = relay.text(&relay.consumers, &format!("/v1/streams/{STREAM}/events?consumer=wallboard")).await;
    let page: Vec<Value> = serde_json::from_str(&page).unwrap();
    page.iter().map(|event| event["sequence"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_consumer_misses_nothing_before_its_first_connection() {
    let site = Site::start().await;
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, format!("{text}[consumers.wallboard]\nstreams = [\"{STREAM}\"]\nexpires = \"1d\"\n"))
        .unwrap();
    let relay = RelayProcess::live(&site).await;
    let start = output(&site, &relay, &["list"]).await;
    assert!(start.starts_with(&format!("wallboard  {STREAM} at ")) && start.contains("-0, lag 0  used "), "{start}");
    let metrics = async || relay.text(&relay.admin, "/metrics").await;
    let series = |name: &str, value: u64| {
        format!("trunkline_consumer_{name}{{consumer=\"wallboard\",stream=\"{STREAM}\"}} {value}\n")
    };
    assert!(metrics().await.contains(&series("delivered_total", 0)));
    site.platform.emit(4);
    relay.wait_for_number(site.platform.ledger().last_sequence()).await;
    assert_eq!(page(&relay).await, ["1", "2", "3", "4"]);
    eventually("the metrics show the lag", WAIT_MAX, async || {
        let page = metrics().await;
        (page.contains(&series("lag_events", 4)) && page.contains(&series("delivered_total", 4))).then_some(())
    })
    .await;
    let cursor = relay.stream().await["last"].as_str().unwrap().replace("-4", "-3");
    let moved = output(&site, &relay, &["seek", "wallboard", STREAM, &cursor]).await;
    assert_eq!(moved, format!("wallboard is at {cursor} in {STREAM}\n"));
    let RelayProcess { mut child, .. } = relay;
    child.kill();
    let relay = RelayProcess::live(&site).await;
    assert_eq!(page(&relay).await, ["4"], "the cursor survives a kill, and the configuration does not reset it");
    let shown: Value = serde_json::from_str(&output(&site, &relay, &["show", "wallboard"]).await).unwrap();
    assert_eq!(shown["streams"][STREAM], json!({ "cursor": cursor, "lag": 1 }));
    assert_eq!(output(&site, &relay, &["delete", "wallboard"]).await, "wallboard is deleted\n");
    let gone = client().get(format!("{}/v1/consumers/wallboard", relay.consumers)).send().await.unwrap();
    assert_eq!(gone.status(), 404);
}
