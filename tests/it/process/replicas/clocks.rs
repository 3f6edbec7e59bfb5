//! Two relays whose wall clocks are an hour apart share one token, and one of them is followed by the other.

use std::{path::PathBuf, time::Duration};

use trunkline::{clock, simulator::Settings};

use super::{goes_on, rate};
use crate::{
    harness::Redis,
    process::{
        child::{PATIENCE, eventually},
        log::{Entry, pages},
        relay::Relay,
        site::Site,
    },
};

/// Lives of a token before it is enough.
const LIVES: u64 = 4;

/// What lies about the wall clock, and about no other.
fn liar() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|file| file.exists());
    found.expect("there is no libfaketime; sudo apt-get install -y libfaketime")
}

async fn start(site: &Site, by: &str) -> Relay {
    let liar = liar();
    let lies = [("LD_PRELOAD", liar.to_str().unwrap()), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let relay = Relay::start_with(site, &lies).await;
    relay.goes_live().await;
    relay
}

/// The number of its token, and how many it asked for itself.
async fn token(relay: &Relay) -> (u64, u64) {
    let account = relay.status().await["accounts"][0].clone();
    assert!(account["remaining_seconds"].as_f64().is_some_and(|left| left > 0.0), "{account}");
    (account["generation"].as_u64().unwrap(), account["refreshes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_an_hour_apart_cost_no_request_and_hide_no_event() {
    let server = Redis::durable();
    let site = Site::start_with(Settings { token_ttl: Duration::from_secs(4), ..Settings::default() }, &[]).await;
    site.use_redis(&server.url());
    let mut late = start(&site, "-30m").await;
    let early = start(&site, "+30m").await;
    let talk = site.talk(rate());
    let shown = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["timestamp"].to_string();
    let clocks = [&late, &early].map(|relay| shown(relay.child.stderr().lines().next().unwrap()));
    assert_ne!(clocks[0][..15], clocks[1][..15], "they are an hour apart: {clocks:?}");
    let lived = async || (token(&late).await.0.min(token(&early).await.0) >= LIVES).then_some(());
    eventually("tokens come and go", PATIENCE, lived).await;
    let (generation, _) = token(&early).await;
    let granted = site.platform.tally().grants_total();
    println!("{clocks:?}: {generation} lives, {granted} grants");
    assert!((generation..=generation + 1).contains(&granted), "one may just be on its way");
    late.child.kill();
    let back = goes_on(&site, &early, clock::now()).await;
    let last_said = talk.hush().await;
    early.holds(last_said).await;
    let log = pages(&early.consumers).await;
    let gaps = log.iter().filter(|entry| entry.number.is_none()).count();
    println!("the one that is an hour ahead went on after {back:?}, with {gaps} gaps");
    assert_marked(&log);
}

/// Numbers follow one another, or a gap stands between them: whose clock is far ahead takes a position for too old.
fn assert_marked(log: &[Entry]) {
    for pair in log.windows(2) {
        let (Some(before), Some(number)) = (pair[0].number, pair[1].number) else { continue };
        assert_eq!(number, before + 1, "{}", pair[1].json);
    }
}
