//! A numbered stream over its life: from its first connection over restarts to its silence.

use std::time::Duration;

use trunkline::simulator::{Dialect, Fault, Raw, Settings, Target};

use crate::harness::{Plan, Platform, Relay, Wire, throughout};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_says_arrives_once_and_in_order() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.say(100);
    consumer.expect(1..=100).await;
    platform.say(1);
    consumer.expect(101..=101).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_goes_on_where_it_stopped() {
    let platform = Platform::start().await;
    let wire = Wire::to(platform.address()).await;
    let relay = Relay::of(Plan::numbered(wire.address())).await;
    platform.say(5);
    relay.consumer().await.expect(1..=5).await;
    let plan = relay.stop().await;
    platform.say(4);
    let relay = Relay::of(plan).await;
    relay.consumer().await.expect(1..=9).await;
    platform.say(1);
    relay.tells("1 2 3 4 5 6 7 8 9 10").await;
    let asked: Vec<String> = wire.upgrades().iter().map(|target| query(target)).collect();
    assert_eq!(asked, ["", "sequenceId=5"], "the first connection asks for no position");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_that_heard_nothing_asks_for_no_position() {
    let platform = Platform::start().await;
    let wire = Wire::to(platform.address()).await;
    let relay = Relay::of(Plan::numbered(wire.address())).await.restart().await;
    platform.say(2);
    relay.tells("1 2").await;
    assert!(wire.upgrades().iter().all(|target| query(target).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_may_travel_in_the_query() {
    let platform = Platform::start().await;
    let url = format!("ws://{}/api/v2/analytics/events/ws?channel=queue_stats", platform.address());
    let plan = Plan::numbered(platform.address()).stream("url", url).stream("auth", "query");
    let relay = Relay::of(plan).await;
    platform.say(2);
    relay.tells("1 2").await;
    platform.say(1);
    platform.inject(Fault::Drop { on: Target::All });
    platform.say(3);
    relay.tells("1 2 3 4 5 6").await;
    platform.inject(Fault::TokenRevoked {});
    relay.until("it is live on another token", |stream| stream["state"] == "live" && stream["reconnects"] == 2).await;
    platform.say(1);
    relay.tells("1 2 3 4 5 6 7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_loses_no_event() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.say(1);
    consumer.expect(1..=1).await;
    for _ in 0..3 {
        platform.say(7);
        platform.inject(Fault::Drop { on: Target::All });
        platform.say(7);
    }
    consumer.expect(2..=43).await;
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_socket_is_noticed_by_its_silence() {
    let platform = Platform::start().await;
    let relay = Relay::of(Plan::numbered(platform.address()).stream("silence_max", "300ms")).await;
    platform.say(1);
    relay.tells("1").await;
    platform.inject(Fault::Stall { on: Target::All, lasting: Duration::from_secs(60) });
    platform.say(2);
    relay.tells("1 2 3").await;
    assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "silence")]).await, 1.0);
    assert_eq!(relay.metric("stream_rotations_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_socket_that_lives_is_left_alone() {
    let platform = Platform::start().await;
    let relay = Relay::of(Plan::numbered(platform.address()).stream("silence_max", "200ms")).await;
    throughout(Duration::from_secs(1), "it keeps its one socket", async || {
        platform.opened(Dialect::Sequenced) == 1 && relay.stream().await["state"] == "live"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_comes_byte_by_byte_is_not_waited_for_without_end() {
    let platform = Platform::start().await;
    let relay = Relay::of(Plan::numbered(platform.address()).stream("silence_max", "300ms")).await;
    platform.say(1);
    relay.tells("1").await;
    platform.inject(Fault::SlowLoris { on: Target::All, every: Duration::from_millis(50) });
    platform.say(1);
    relay.tells("1 2").await;
    assert_eq!(platform.opened(Dialect::Sequenced), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_is_dropped_and_what_is_out_of_order_is_put_in_order() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.say(4);
    platform.inject(Fault::Duplicate { n: 3 });
    platform.inject(Fault::Reorder { n: 5 });
    platform.say(6);
    relay.tells("1 2 3 4 5 6 7 8 9 10").await;
    assert_eq!(relay.count("duplicates").await, 3);
    assert_eq!(relay.metric("stream_duplicates_total", &[]).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_number_is_kept_among_the_numbered() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.say(1);
    platform.say_raw_sequenced(Raw::Text(r#"{"type":"note","text":"hello"}"#.to_owned()));
    platform.say(1);
    relay.tells("1 event 2").await;
    let note = &relay.entries().await[1];
    assert_eq!((&note["type"], &note["data"]["text"]), (&"note".into(), &"hello".into()));
    assert!(note.get("platformsequence").is_none());
    assert_eq!(relay.stream().await["position"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_of_one_account_share_its_token_and_nothing_else() {
    let platform = Platform::with(Settings { frame_max: 1, ..Settings::default() }).await;
    let address = platform.address();
    let relay = Relay::of(Plan::numbered(address).and_numbered("others", address)).await;
    platform.say(3);
    relay.tells("1 2 3").await;
    assert_eq!(platform.tally().grants_total(), 1);
    relay.wish("pause").await;
    relay.until("it is paused", |stream| stream["state"] == "paused").await;
    let others = relay.status().await["streams"].clone();
    let states: Vec<&str> = others.as_array().unwrap().iter().filter_map(|stream| stream["state"].as_str()).collect();
    assert_eq!(states, ["paused", "live"]);
}

fn query(target: &str) -> String {
    target.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default()
}
