//! Notifications: channels, topics, and losses without a replay.

use std::time::Duration;

use serde_json::json;
use trunkline::simulator::{FaultTarget, PlatformFault, RawFrame, RequestKind, ResponseFault, Settings, SocketDialect};

use crate::harness::{Platform, Relay, RelayPlan, eventually, throughout};

const QUEUES: &str = "v2.analytics.queues.*.observations";

#[tokio::test(flavor = "multi_thread")]
async fn a_star_stands_for_every_queue_and_every_user() {
    let platform = Platform::with(Settings { agents: 120, queues: 3, ..Settings::default() }).await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES, "v2.users.*.presence"])).await;
    let mark = platform.ledger().mark();
    platform.emit(400);
    let sent = platform.sent_since(mark);
    let (queues, users) = (platform.queue_ids(), platform.agent_ids());
    let wanted = |topic: &str| {
        queues.iter().any(|id| topic == format!("v2.analytics.queues.{id}.observations"))
            || users.iter().any(|id| topic == format!("v2.users.{id}.presence"))
    };
    let meant: Vec<String> = platform
        .ledger()
        .emitted_since(mark)
        .into_iter()
        .filter(|sent| wanted(&sent.topic))
        .map(|sent| sent.correlation)
        .collect();
    assert_eq!(sent, meant);
    let received = relay.consumer().await.take(sent.len()).await;
    let received: Vec<&str> = received.iter().map(|event| event["correlationid"].as_str().unwrap()).collect();
    assert_eq!(received, sent);
    assert!(platform.counters().rest["GET /api/v2/users"] >= 2, "the list of users has pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_topic_is_reported_and_the_others_flow() {
    let settings = Settings { forbidden_topics: vec!["v2.users.".to_owned()], ..Settings::default() };
    let platform = Platform::with(settings).await;
    let agent = platform.agent_ids().remove(0);
    let refused = [format!("v2.users.{agent}.presence"), "v2.routing.queues.unknown.users".to_owned()];
    let relay = Relay::launch(RelayPlan::topics(platform.address(), &[QUEUES, &refused[0], &refused[1]])).await;
    relay.until("it is degraded", |stream| stream["state"] == "degraded").await;
    let reported = relay.stream().await["refused_topics"].clone();
    let reported: Vec<&str> = reported.as_array().unwrap().iter().map(|topic| topic.as_str().unwrap()).collect();
    assert!(
        reported.len() == 2 && refused.iter().all(|topic| reported.iter().any(|reported| reported.starts_with(topic))),
        "{reported:?}"
    );
    assert!(reported.iter().any(|reported| reported.contains("directory:user:view")), "{reported:?}");
    platform.emit(50);
    assert!(relay.consumer().await.next().await.unwrap()["type"] == "v2.analytics.queues.observations");
}

#[tokio::test(flavor = "multi_thread")]
async fn families_fail_independently_and_the_stream_is_degraded_until_recovery() {
    let platform = Platform::start().await;
    let path = Some("/api/v2/users".to_owned());
    platform.inject(PlatformFault::Rest { status: 403, times: 2, retry_after: None, path });
    let plan = RelayPlan::topics(platform.address(), &[QUEUES, "v2.users.*.presence"]).stream("discovery", "2s");
    let relay = Relay::launch(plan).await;
    relay.until("it is degraded", |stream| stream["state"] == "degraded").await;
    let stream = relay.stream().await;
    let error = stream["last_error"].as_str().unwrap().to_owned();
    assert!(["GET /api/v2/users", "403", "v2.users.*.presence"].iter().all(|part| error.contains(part)), "{error}");
    assert!(stream["last_error_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&stream["topics"]["refused"], &stream["topics"]["unserved"]), (&json!(1), &json!(0)));
    assert!(stream["topics"]["subscribed"].as_u64() > Some(0), "the queues are subscribed");
    assert_eq!(relay.get("/readyz").await.status(), 200);
    let ready = relay.get("/readyz?streams=all").await;
    assert_eq!(ready.status(), 503);
    let ready: serde_json::Value = ready.json().await.unwrap();
    assert!(ready["streams"].as_object().unwrap().values().all(|state| state == "degraded"), "{ready}");
    assert!(ready["reasons"].as_object().unwrap().values().all(|why| why.as_str().unwrap().contains("403")), "{ready}");
    let series = format!("trunkline_stream_topics{{state=\"refused\",stream=\"{}\"}} 1", relay.name());
    assert!(relay.get("/metrics").await.text().await.unwrap().contains(&series));
    relay.live().await;
    let stream = relay.stream().await;
    assert_eq!((&stream["last_error"], &stream["last_error_at"]), (&json!(null), &json!(null)));
    assert_eq!((&stream["state"], &stream["topics"]["refused"]), (&json!("live"), &json!(0)));
    assert_eq!(platform.counters().channels_created, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_that_is_rejected_or_throttled_degrades_the_stream_and_stops_nothing_else() {
    for (status, retry_after) in [(401, None), (429, Some("1".to_owned())), (503, Some("1".to_owned()))] {
        let platform = Platform::start().await;
        let path = Some("/api/v2/users".to_owned());
        platform.inject(PlatformFault::Rest { status, times: 2, retry_after: retry_after.clone(), path });
        // With `Retry-After`, the look-up follows at that time instead of the usual one.
        let discovery = if retry_after.is_some() { "60s" } else { "2s" };
        let plan =
            RelayPlan::topics(platform.address(), &[QUEUES, "v2.users.*.presence"]).stream("discovery", discovery);
        let relay = Relay::launch(plan).await;
        relay.until("the other family is subscribed", |stream| stream["state"] == "degraded").await;
        let error = relay.stream().await["last_error"].as_str().unwrap().to_owned();
        assert!(error.contains("GET /api/v2/users") && error.contains(&status.to_string()), "{error}");
        relay.live().await;
        assert_eq!((platform.counters().channels_created, relay.count("reconnects").await), (1, 0));
        assert_eq!(relay.account().await["refreshes"], 1, "no new token is requested");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_a_reply_does_not_confirm_are_reported_and_requested_again() {
    let subscriptions = |how| PlatformFault::Answer {
        to: RequestKind::Rest,
        on: FaultTarget::All,
        url: Some("/subscriptions".to_owned()),
        resuming: false,
        times: 2,
        how,
    };
    let changed = |set: &str| {
        let (set, without) = (Some(set.to_owned()), Vec::new());
        ResponseFault::Changed { status: None, content_type: None, gzip: false, set, without }
    };
    let html = ResponseFault::Body { status: 200, content_type: "text/html".to_owned(), text: "<html>".to_owned() };
    for (how, state, word) in [
        (changed(r#"{"entities": []}"#), "degraded", "does not name it"),
        (changed(r#"{"entities": {"state": "Pending"}}"#), "degraded", "its state is"),
        (html, "backing-off", "no JSON object"),
    ] {
        let platform = Platform::start().await;
        platform.inject(subscriptions(how));
        let plan = RelayPlan::topics(platform.address(), &[QUEUES]).stream("discovery", "2s");
        let relay = Relay::launch(plan.stream("backoff.cap", "2s").stream("backoff.first", "1s")).await;
        relay
            .until("it is reported", |stream| {
                stream["state"] == state && stream["last_error"].as_str().is_some_and(|error| error.contains(word))
            })
            .await;
        relay
            .until("it is requested again", |stream| {
                stream["state"] == "live" && stream["topics"]["subscribed"].as_u64() > Some(0)
            })
            .await;
        assert_eq!(platform.counters().channels_created, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_cannot_be_subscribed_is_used_again_and_not_leaked() {
    let platform = Platform::start().await;
    let path = Some("/api/v2/notifications/channels/".to_owned());
    platform.inject(PlatformFault::Rest { status: 500, times: 3, retry_after: None, path });
    let _relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES])).await;
    assert_eq!(platform.counters().channels_created, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_during_a_disconnection_are_a_gap_followed_by_snapshots() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES, "v2.users.*.presence"])).await;
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    relay.expect_log("gap(no-replay) snapshot(no-replay) snapshot(no-replay)").await;
    let entries = relay.entries().await;
    assert!(entries[0]["data"]["silence_ms"].as_u64().is_some());
    assert!(entries[1..].iter().all(|snapshot| snapshot["data"]["gap"] == entries[0]["id"]));
    let resources: Vec<&str> = entries[1..].iter().map(|entry| entry["data"]["resource"].as_str().unwrap()).collect();
    assert_eq!(resources[0], "/api/v2/analytics/queues/observations/query");
    assert!(resources[1].starts_with("/api/v2/users?"));
    assert_eq!(platform.counters().channels_created, 1, "the channel outlives its socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_a_gap_if_the_platform_replays_nothing() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES])).await;
    platform.emit(60);
    relay.until("something was received", |stream| stream["events"].as_u64() > Some(0)).await;
    let relay = relay.restart().await;
    eventually("the gap is marked", async || {
        relay.log_summary().await.ends_with("event gap(no-replay) snapshot(no-replay)")
    })
    .await;
    let relay = relay.restart().await;
    eventually("each process has its own count", async || relay.count("gaps").await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_a_quiet_stream_connected() {
    let heartbeat = Duration::from_millis(50);
    let platform = Platform::with(Settings { heartbeat, ..Settings::default() }).await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES]).stream("silence_max", "200ms")).await;
    throughout(Duration::from_secs(1), "it keeps its socket", async || {
        platform.opened(SocketDialect::Notifications) == 1
    })
    .await;
    platform.inject(PlatformFault::Stall { on: FaultTarget::All, duration: Duration::from_secs(60) });
    relay.expect_log("gap(no-replay) snapshot(no-replay)").await;
    assert!(relay.entries().await[0]["data"]["silence_ms"].as_u64().unwrap() >= 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_notifications_are_both_stored_on_one_socket_and_deduplicated_across_two() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES])).await;
    let same = || RawFrame::Text(json!({"topicName": "v2.test.equal", "eventBody": {"n": 1}}).to_string());
    platform.emit_raw_notification(same());
    platform.emit_raw_notification(same());
    relay.expect_log("event event").await;
    relay.operator_request("rotate").await;
    eventually("two sockets overlap", async || {
        relay.count("rotations").await == 1 && platform.open(SocketDialect::Notifications) == 2
    })
    .await;
    platform.emit_raw_notification(same());
    relay.until("the duplicate is dropped", |stream| stream["duplicates"] == 1).await;
    relay.expect_log("event event event").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_taken_by_another_client_are_restored_after_a_pause_and_reported() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[QUEUES])).await;
    platform.inject(PlatformFault::NoLongerSubscribed {});
    relay
        .until("it names the cause", |stream| stream["last_error"] == "another channel took the subscriptions over")
        .await;
    relay.live().await;
    relay.expect_log("gap(no-replay) snapshot(no-replay)").await;
    assert_eq!(platform.counters().channels_created, 2);
}
