//! Numbered streams: first connection, restarts, lost connections and silence.

use std::time::Duration;

use trunkline::simulator::{FaultTarget, PlatformFault, RawFrame, Settings, SocketDialect};

use crate::harness::{Platform, Relay, RelayPlan, TcpProxy, throughout};

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_once_and_in_order() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.emit(100);
    consumer.expect(1..=100).await;
    platform.emit(1);
    consumer.expect(101..=101).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_resumes_where_it_stopped() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    platform.emit(5);
    relay.consumer().await.expect(1..=5).await;
    let plan = relay.stop().await;
    platform.emit(4);
    let relay = Relay::of(plan).await;
    relay.consumer().await.expect(1..=9).await;
    platform.emit(1);
    relay.expect_log("1 2 3 4 5 6 7 8 9 10").await;
    let asked: Vec<String> = wire.upgrades().iter().map(|target| query(target)).collect();
    assert_eq!(asked, ["", "sequenceId=5"], "the first connection asks for no position");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_that_received_nothing_requests_no_position() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await.restart().await;
    platform.emit(2);
    relay.expect_log("1 2").await;
    assert!(wire.upgrades().iter().all(|target| query(target).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_can_be_sent_in_the_query() {
    let platform = Platform::start().await;
    let url = format!("ws://{}/api/v2/analytics/events/ws?channel=queue_stats", platform.address());
    let plan = RelayPlan::numbered(platform.address()).stream("url", url).stream("auth", "query");
    let relay = Relay::of(plan).await;
    platform.emit(2);
    relay.expect_log("1 2").await;
    platform.emit(1);
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    platform.emit(3);
    relay.expect_log("1 2 3 4 5 6").await;
    platform.inject(PlatformFault::TokenRevoked {});
    relay.until("it is live on another token", |stream| stream["state"] == "live" && stream["reconnects"] == 2).await;
    platform.emit(1);
    relay.expect_log("1 2 3 4 5 6 7").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_loses_no_event() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    for _ in 0..3 {
        platform.emit(7);
        platform.inject(PlatformFault::Drop { on: FaultTarget::All });
        platform.emit(7);
    }
    consumer.expect(2..=43).await;
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_socket_is_detected_by_its_silence() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).stream("silence_max", "300ms")).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.inject(PlatformFault::Stall { on: FaultTarget::All, duration: Duration::from_secs(60) });
    platform.emit(2);
    relay.expect_log("1 2 3").await;
    assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "silence")]).await, 1.0);
    assert_eq!(relay.metric("stream_rotations_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_live_socket_stays_connected() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).stream("silence_max", "200ms")).await;
    throughout(Duration::from_secs(1), "it keeps its one socket", async || {
        platform.opened(SocketDialect::Sequenced) == 1 && relay.stream().await["state"] == "live"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_arrives_byte_by_byte_times_out() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).stream("silence_max", "300ms")).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.inject(PlatformFault::SlowLoris { on: FaultTarget::All, every: Duration::from_millis(50) });
    platform.emit(1);
    relay.expect_log("1 2").await;
    assert_eq!(platform.opened(SocketDialect::Sequenced), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_events_are_dropped_and_disordered_events_are_sorted() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(4);
    platform.inject(PlatformFault::Duplicate { n: 3 });
    platform.inject(PlatformFault::Reorder { n: 5 });
    platform.emit(6);
    relay.expect_log("1 2 3 4 5 6 7 8 9 10").await;
    assert_eq!(relay.count("duplicates").await, 3);
    assert_eq!(relay.metric("stream_duplicates_total", &[]).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_number_is_stored_among_numbered_events() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(1);
    platform.emit_raw_sequenced(RawFrame::Text(r#"{"type":"note","text":"hello"}"#.to_owned()));
    platform.emit(1);
    relay.expect_log("1 event 2").await;
    let note = &relay.entries().await[1];
    assert_eq!((&note["type"], &note["data"]["text"]), (&"note".into(), &"hello".into()));
    assert!(note.get("platformsequence").is_none());
    assert_eq!(relay.stream().await["position"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_of_one_account_share_its_token_and_nothing_else() {
    let platform = Platform::with(Settings { frame_max: 1, ..Settings::default() }).await;
    let address = platform.address();
    let relay = Relay::of(RelayPlan::numbered(address).and_numbered("others", address)).await;
    platform.emit(3);
    relay.expect_log("1 2 3").await;
    assert_eq!(platform.counters().grants_total(), 1);
    relay.operator_request("pause").await;
    relay.until("it is paused", |stream| stream["state"] == "paused").await;
    let others = relay.status().await["streams"].clone();
    let states: Vec<&str> = others.as_array().unwrap().iter().filter_map(|stream| stream["state"].as_str()).collect();
    assert_eq!(states, ["paused", "live"]);
}

fn query(target: &str) -> String {
    target.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default()
}
