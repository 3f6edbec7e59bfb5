//! Two relays whose wall clocks differ by an hour share one token, and each resumes at the other's position.

use std::time::Duration;

use trunkline::{clock, simulator::Settings};

use super::{rate, site, wait_for_progress};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_complete, pages},
        relay::RelayProcess,
        site::Site,
        wall_clock::faketime,
    },
};

/// Number of token lifetimes.
const TOKEN_LIFETIMES: u64 = 4;

async fn start(site: &Site, by: &str) -> RelayProcess {
    let library = faketime();
    let variables =
        [("LD_PRELOAD", library.to_str().unwrap()), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let relay = RelayProcess::start_with(site, &variables).await;
    relay.wait_until_live().await;
    relay
}

/// The generation of its token, and the number of its own token requests.
async fn token(relay: &RelayProcess) -> (u64, u64) {
    let account = relay.status().await["accounts"][0].clone();
    assert!(account["remaining_seconds"].as_f64().is_some_and(|left| left > 0.0), "{account}");
    (account["generation"].as_u64().unwrap(), account["refreshes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_an_hour_apart_cause_no_request_and_lose_no_event() {
    let server = RedisServer::durable();
    let site = Site::start_with(Settings { token_ttl: Duration::from_secs(4), ..Settings::default() }, &[]).await;
    site.use_redis(&server.url());
    let mut late = start(&site, "-30m").await;
    let mut early = start(&site, "+30m").await;
    let traffic = site.start_traffic(rate());
    let shown = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["timestamp"].to_string();
    let clocks = [&late, &early].map(|relay| shown(relay.child.stderr().lines().next().unwrap()));
    assert_ne!(clocks[0][..15], clocks[1][..15], "the clocks differ by an hour: {clocks:?}");
    let lived = async || (token(&late).await.0.min(token(&early).await.0) >= TOKEN_LIFETIMES).then_some(());
    eventually("tokens are renewed", WAIT_MAX, lived).await;
    let (generation, _) = token(&early).await;
    let granted = site.platform.counters().grants_total();
    println!("{clocks:?}: {generation} lives, {granted} grants");
    assert!((generation..=generation + 1).contains(&granted), "one request may be in flight");
    late.child.kill();
    let ahead = wait_for_progress(&site, &early, clock::now()).await;
    let late = start(&site, "-30m").await;
    early.child.kill();
    let behind = wait_for_progress(&site, &late, clock::now()).await;
    println!("takeover times: clock ahead {ahead:?}, clock behind {behind:?}");
    let last_sent = traffic.stop().await;
    late.wait_for_number(last_sent).await;
    assert_complete(&pages(&late.consumers).await, last_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_position_is_abandoned_even_if_the_clock_is_an_hour_behind() {
    let server = RedisServer::durable();
    let site = site(&server, &["retention = \"3s\"", "silence_max = \"2s\""]).await;
    let mut early = start(&site, "+30m").await;
    site.platform.emit(9);
    early.wait_for_number(site.platform.ledger().last_sequence()).await;
    early.child.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let late = start(&site, "-30m").await;
    let marked = async || {
        let log = pages(&late.consumers).await;
        log.iter().any(|entry| entry.kind == "trunkline.gap.v1" && entry.json.contains("\"retention\"")).then_some(())
    };
    eventually("the log has the gap", WAIT_MAX, marked).await;
}
