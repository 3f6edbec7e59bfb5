//! Rotations: a planned change of socket loses nothing, duplicates nothing and causes no silence.

use std::{collections::BTreeSet, time::Duration};

use trunkline::{
    clock,
    simulator::{ALWAYS, FaultTarget, PlatformFault, RequestKind, ResponseFault, Settings, SocketDialect},
};

use crate::harness::{
    Firehose, Platform, Relay, RelayPlan, ScriptedPlatform, TcpProxy, UpgradeReply, eventually, numbered,
};

const TOPICS: [&str; 3] = ["v2.analytics.queues.*.observations", "v2.users.*.presence", "v2.users.*.routingStatus"];

/// Sends events until the condition is true.
async fn emit_until(platform: &Platform, what: &str, condition: impl AsyncFn() -> bool) {
    eventually(what, async || {
        platform.emit(3);
        condition().await
    })
    .await;
}

/// Checks that every subscribed event since `mark` is in the log once.
async fn all_notifications_arrive_once(platform: &Platform, relay: &Relay, mark: u64) {
    let sent: BTreeSet<String> = platform.sent_since(mark).into_iter().collect();
    let mut consumer = relay.consumer().await;
    let mut received = BTreeSet::new();
    while received.len() < sent.len() {
        let event = consumer.next().await.unwrap();
        let correlation = event["correlationid"].as_str().unwrap_or_else(|| panic!("{event}")).to_owned();
        assert!(received.insert(correlation), "twice: {event}");
    }
    assert_eq!(received, sent);
}

async fn silence(relay: &Relay) -> f64 {
    relay.metric("stream_rotation_silence_seconds_sum", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_under_load_leaves_no_gap_no_duplicate_and_no_silence() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    for rotations in 1..=4 {
        relay.operator_request("rotate").await;
        emit_until(&platform, "it has rotated", async || relay.count("rotations").await == rotations).await;
    }
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    assert_eq!(silence(&relay).await, 0.0);
    assert_eq!(relay.metric("stream_rotation_silence_seconds_count", &[]).await, 4.0);
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "operator"), ("outcome", "completed")]).await, 4.0);
    assert_eq!(relay.metric("stream_network_reconnects_total", &[]).await, 0.0);
    assert_eq!(relay.count("gaps").await, 0);
    assert_eq!(platform.opened(SocketDialect::Sequenced), 5);
    eventually("one socket is left", async || platform.open(SocketDialect::Sequenced) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_moves_the_stream_before_the_old_one_ends() {
    let platform = Platform::with(Settings { token_ttl: Duration::from_secs(2), ..Settings::default() }).await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "token"), ("outcome", "completed")]).await, 1.0);
    assert_eq!(relay.count("reconnects").await, 0);
    assert_eq!(silence(&relay).await, 0.0);
    let bearers = wire.bearer_tokens();
    assert!(bearers.len() == 2 && bearers[0] != bearers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_move_to_a_channel_of_the_new_token_without_loss() {
    let settings = Settings { token_ttl: Duration::from_secs(2), ..Settings::default() };
    let platform = Platform::with(settings).await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    let mark = platform.ledger().mark();
    emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
    emit_until(&platform, "the old socket is closed", async || platform.open(SocketDialect::Notifications) == 1).await;
    all_notifications_arrive_once(&platform, &relay, mark).await;
    assert_eq!(platform.counters().channels_created, 2, "a channel per token");
    assert_eq!(relay.count("gaps").await, 0);
    assert_eq!(relay.count("reconnects").await, 0);
    assert_eq!(silence(&relay).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_notice_is_handled_before_the_platform_closes() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    let mark = platform.ledger().mark();
    platform.inject(PlatformFault::SocketClosing { lead: Duration::from_millis(600) });
    emit_until(&platform, "the old socket is closed", async || {
        relay.count("rotations").await == 1 && platform.open(SocketDialect::Notifications) == 1
    })
    .await;
    all_notifications_arrive_once(&platform, &relay, mark).await;
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "notice"), ("outcome", "completed")]).await, 1.0);
    assert_eq!(relay.metric("stream_network_reconnects_total", &[]).await, 0.0);
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_while_its_socket_still_serves() {
    let platform = Platform::with(Settings { grace: Duration::from_secs(5), ..Settings::default() }).await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    let mark = platform.ledger().mark();
    platform.inject(PlatformFault::TokenRevoked {});
    emit_until(&platform, "the old socket is closed", async || {
        relay.count("rotations").await == 1 && platform.open(SocketDialect::Notifications) == 1
    })
    .await;
    all_notifications_arrive_once(&platform, &relay, mark).await;
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
    assert_eq!(relay.account().await["generation"], 2);
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "revoked"), ("outcome", "completed")]).await, 1.0);
    assert_eq!(relay.metric("stream_rotations_total", &[]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_near_its_end_is_replaced() {
    let platform = Platform::with(Settings { channel_lifetime: Duration::from_secs(60), ..Settings::default() }).await;
    let relay =
        Relay::of(RelayPlan::topics(platform.address(), &TOPICS).stream("channel_life", CHANNEL_LIFETIME)).await;
    let mark = platform.ledger().mark();
    emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
    all_notifications_arrive_once(&platform, &relay, mark).await;
    let completed = [("trigger", "channel-end"), ("outcome", "completed")];
    assert_eq!(relay.metric("stream_rotations_total", &completed).await, 1.0);
}

const CHANNEL_LIFETIME: &str = "1s";

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_successor_is_retried_while_the_old_session_serves() {
    let platform = Platform::start().await;
    let relay =
        Relay::of(RelayPlan::numbered(platform.address()).stream("backoff.first", "30s").stream("backoff.cap", "60s"))
            .await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    platform.refuse(503, 2);
    relay.operator_request("rotate").await;
    emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    assert_eq!(relay.metric("stream_rotations_total", &[("outcome", "failed")]).await, 2.0);
    assert_eq!(relay.metric("stream_network_reconnects_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_closed_right_after_its_upgrade_loses_nothing() {
    let platform = Platform::start().await;
    let closed = || UpgradeReply::Ended(Vec::new());
    let script = vec![UpgradeReply::Open(numbered([1])), closed(), closed(), UpgradeReply::Open(numbered(2..=3))];
    let scripted = ScriptedPlatform::start(script).await;
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", scripted.url())).await;
    relay.expect_log("1").await;
    relay.operator_request("rotate").await;
    relay.expect_log("1 2 3").await;
    assert_eq!(relay.count("rotations").await, 1);
    assert_eq!(scripted.targets().len(), 4);
    assert_eq!(relay.metric("stream_rotations_total", &[("outcome", "failed")]).await, 2.0);
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
    assert_eq!(silence(&relay).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_whose_topics_are_refused_does_not_replace_the_subscribed_channel() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    let mark = platform.ledger().mark();
    let how = ResponseFault::Changed {
        status: None,
        content_type: None,
        gzip: false,
        set: Some(r#"{"entities":{"state":"Rejected","rejectionReason":"not now"}}"#.to_owned()),
        without: Vec::new(),
    };
    let (to, on, url) = (RequestKind::Rest, FaultTarget::All, Some("/subscriptions".to_owned()));
    platform.inject(PlatformFault::Answer { to, on, url, resuming: false, times: 1, how });
    relay.operator_request("rotate").await;
    emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
    emit_until(&platform, "the old socket is closed", async || platform.open(SocketDialect::Notifications) == 1).await;
    all_notifications_arrive_once(&platform, &relay, mark).await;
    assert_eq!(relay.metric("stream_rotations_total", &[("outcome", "failed")]).await, 1.0);
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
    assert_eq!(platform.counters().channels_created, 2, "no additional channel is created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_is_empty_truncated_or_refused_during_a_rotation_drops_no_topic() {
    let changed = |set: &str| {
        let (set, without) = (Some(set.to_owned()), Vec::new());
        ResponseFault::Changed { status: None, content_type: None, gzip: false, set, without }
    };
    let refused = ResponseFault::Status { status: 500, retry_after: None, retry_in: None, clock: None };
    for how in [changed(r#"{"entities":[],"total":0}"#), changed(r#"{"entities":[],"total":3,"pageCount":1}"#), refused]
    {
        let platform = Platform::start().await;
        let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS).stream("discovery", "2s")).await;
        let subscribed = relay.stream().await["topics"]["subscribed"].clone();
        let mark = platform.ledger().mark();
        let (to, on, url) = (RequestKind::Rest, FaultTarget::All, Some("/routing/queues".to_owned()));
        platform.inject(PlatformFault::Answer { to, on, url, resuming: false, times: 1, how });
        relay.operator_request("rotate").await;
        emit_until(&platform, "it has rotated", async || relay.count("rotations").await == 1).await;
        assert_eq!(relay.stream().await["topics"]["subscribed"], subscribed);
        emit_until(&platform, "the old socket is closed", async || platform.open(SocketDialect::Notifications) == 1)
            .await;
        all_notifications_arrive_once(&platform, &relay, mark).await;
        assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
        emit_until(&platform, "it is looked up again", async || relay.stream().await["state"] == "live").await;
    }
}

/// Age from which a command replaces an attempt.
const HANGS_AFTER: Duration = Duration::from_secs(2);
/// Less than the remaining time of the attempt.
const ACTED: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_an_attempt_that_hangs_in_its_upgrade() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let (to, on) = (RequestKind::Upgrade, FaultTarget::Sequenced);
    platform.inject(PlatformFault::Answer { to, on, url: None, resuming: false, times: 1, how: ResponseFault::Hang });
    platform.inject(PlatformFault::Drop { on });
    relay.until("an attempt hangs", |stream| stream["state"] == "connecting").await;
    tokio::time::sleep(HANGS_AFTER).await;
    let begin = clock::now();
    relay.operator_request("rotate").await;
    relay.live().await;
    assert!(begin.elapsed() < ACTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_socket_may_be_lost_while_its_successor_comes() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    for round in 0..5 {
        relay.operator_request("rotate").await;
        tokio::time::sleep(Duration::from_millis(8 + 4 * round)).await;
        platform.inject(PlatformFault::Drop { on: FaultTarget::All });
        platform.emit(5);
        relay.live().await;
    }
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successors_reply_is_read_while_the_old_socket_is_busy() {
    let platform = Platform::start().await;
    let queue = format!("v2.analytics.queues.{}.observations", platform.queue_ids()[0]);
    let firehose = Firehose::start(queue.clone()).await;
    platform.inject(PlatformFault::Answer {
        to: RequestKind::Rest,
        on: FaultTarget::All,
        url: Some("/api/v2/notifications/channels".to_owned()),
        resuming: false,
        times: ALWAYS,
        how: ResponseFault::Changed {
            status: None,
            content_type: None,
            gzip: false,
            set: Some(format!(r#"{{"connectUri":"{}"}}"#, firehose.url())),
            without: Vec::new(),
        },
    });
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[&queue]).stream("overflow", "backpressure")).await;
    for _ in 0..2 {
        let events = relay.count("events").await;
        relay.until("the old socket has more", |stream| stream["events"].as_u64() > Some(events + 1_000)).await;
    }
    relay.operator_request("rotate").await;
    relay.until("it has rotated", |stream| stream["rotations"] == 1).await;
    assert_eq!(firehose.opened(), 2, "at the first attempt");
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
}

/// Bound for an upgrade over a round trip of 60 ms.
const BREAK_FIRST_SILENCE_MAX: f64 = 0.3;
/// Number of rotations, because load may delay some of them.
const BREAKS_MAX: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn breaking_first_keeps_order_and_position() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    wire.add_round_trip(Duration::from_millis(60));
    let relay = Relay::of(RelayPlan::numbered(wire.address()).stream("rotation", "break-first")).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    let mut silences: Vec<f64> = Vec::new();
    // Take the best, because load may delay some of them.
    for rotations in 1..=BREAKS_MAX {
        if silences.iter().any(|silence| *silence < BREAK_FIRST_SILENCE_MAX) {
            break;
        }
        let before = silence(&relay).await;
        relay.operator_request("rotate").await;
        emit_until(&platform, "it has rotated", async || relay.count("rotations").await == rotations).await;
        silences.push(silence(&relay).await - before);
    }
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    println!("silence of break-first over a 60 ms round trip: {silences:?} s");
    let best = silences.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best < BREAK_FIRST_SILENCE_MAX, "{silences:?}");
    assert!(best >= 0.06, "the upgrade takes a round trip: {silences:?}");
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlap_over_a_slow_network_interrupts_nothing() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    wire.add_round_trip(Duration::from_millis(60));
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    for rotations in 1..=3 {
        relay.operator_request("rotate").await;
        emit_until(&platform, "it has rotated", async || relay.count("rotations").await == rotations).await;
    }
    consumer.expect(2..=platform.ledger().last_sequence()).await;
    assert_eq!(silence(&relay).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn breaking_first_on_a_platform_without_replay_is_marked() {
    let platform = Platform::start().await;
    let queue = format!("v2.analytics.queues.{}.observations", platform.queue_ids()[0]);
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[&queue]).stream("rotation", "break-first")).await;
    relay.operator_request("rotate").await;
    relay.expect_log("gap(no-replay) snapshot(no-replay)").await;
    assert_eq!(relay.count("rotations").await, 1);
    assert!(relay.entries().await[0]["data"]["silence_ms"].as_u64().is_some());
}
