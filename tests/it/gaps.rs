//! Gaps: each loss is marked with its place, reason and extent, and a snapshot follows.

use std::time::Duration;

use tokio::time::sleep;
use trunkline::simulator::{ALWAYS, FaultTarget, PlatformFault, RequestKind, ResponseFault, Settings, SocketDialect};

use crate::harness::{
    Platform, Relay, RelayPlan, ScriptedPlatform, UpgradeReply, eventually, frame, numbered, summarize_entry,
    throughout,
};

const SUMMARY: &str = "/api/v2/analytics/conversations/summary";
/// Limit of user pages of one snapshot.
const PAGES_MAX: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn skipped_numbers_are_a_gap_followed_by_a_snapshot() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(2);
    platform.inject(PlatformFault::Jump { n: 10 });
    platform.emit(3);
    relay.expect_log("1 2 gap(jump 2..13) snapshot(jump) 13 14 15").await;
    let entries = relay.entries().await;
    let (gap, snapshot) = (&entries[2], &entries[3]);
    assert_eq!(gap["data"]["lost"], 10);
    assert_eq!(snapshot["data"]["gap"], gap["id"]);
    assert_eq!(snapshot["data"]["status"], 200);
    assert!(snapshot["data"]["resource"].as_str().unwrap().ends_with(SUMMARY));
    assert!(snapshot["data"]["answer"]["queues"].is_array());
    assert_eq!(relay.metric("stream_lost_events_total", &[]).await, 10.0);
    assert_eq!(relay.metric("stream_gaps_total", &[("reason", "jump")]).await, 1.0);
    assert_eq!(relay.metric("stream_snapshots_total", &[("outcome", "taken")]).await, 1.0);
    assert_eq!(platform.opened(SocketDialect::Sequenced), 2, "the missing events are requested once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_without_a_snapshot_url_stays_a_gap() {
    let platform = Platform::start().await;
    let url = format!("ws://{}{SUMMARY}/stream", platform.address());
    let plan = RelayPlan::named(platform.address(), "acme-bare").and_numbered("bare", platform.address());
    let relay = Relay::of(plan.stream("url", url).stream_without("snapshot_url")).await;
    platform.emit(1);
    platform.inject(PlatformFault::Jump { n: 1 });
    platform.emit(1);
    relay.expect_log("1 gap(jump 1..3) 3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_older_than_the_platform_keeps_is_abandoned_with_a_gap() {
    let platform = Platform::with(Settings { retention: Duration::from_secs(1), ..Settings::default() }).await;
    let relay =
        Relay::of(RelayPlan::numbered(platform.address()).stream("retention", "1s").stream("silence_max", "900ms"))
            .await;
    platform.emit(3);
    relay.expect_log("1 2 3").await;
    let plan = relay.stop().await;
    platform.emit(2);
    sleep(Duration::from_millis(1_200)).await;
    let relay = Relay::of(plan).await;
    platform.emit(2);
    relay.expect_log("1 2 3 gap(retention 3..6) snapshot(retention) 6 7").await;
    assert_eq!(relay.entries().await[3]["data"]["lost"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_position_is_marked_even_if_no_event_follows() {
    let platform = Platform::with(Settings { retention: Duration::ZERO, ..Settings::default() }).await;
    let relay =
        Relay::of(RelayPlan::numbered(platform.address()).stream("retention", "1s").stream("silence_max", "900ms"))
            .await;
    platform.emit(1);
    relay.expect_log("1").await;
    let plan = relay.stop().await;
    sleep(Duration::from_millis(1_200)).await;
    let relay = Relay::of(plan).await;
    relay.expect_log("1 gap(retention 1..?) snapshot(retention)").await;
    platform.emit(1);
    relay.expect_log("1 gap(retention 1..?) snapshot(retention) 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_silently_ignores_a_recent_position_is_detected() {
    let platform = Platform::with(Settings { retention: Duration::ZERO, ..Settings::default() }).await;
    let relay = Relay::start(&platform).await;
    platform.emit(3);
    relay.expect_log("1 2 3").await;
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    platform.emit(4);
    relay.until("it is live again", |stream| stream["reconnects"] == 1 && stream["state"] == "live").await;
    platform.emit(2);
    relay.expect_log("1 2 3 gap(jump 3..8) snapshot(jump) 8 9").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_numbering_is_a_reset_that_loses_nothing() {
    for behind in [3, 150] {
        let platform = Platform::start().await;
        let relay = Relay::start(&platform).await;
        platform.emit(200);
        relay.consumer().await.expect(1..=200).await;
        platform.inject(PlatformFault::Reset {});
        platform.emit(behind);
        let mut consumer = relay.consumer().await;
        consumer.expect(1..=200).await;
        assert_eq!(summarize_entry(&consumer.next().await.unwrap()), "gap(reset 200..1)", "{behind} behind");
        assert_eq!(summarize_entry(&consumer.next().await.unwrap()), "snapshot(reset)");
        consumer.expect(1..=behind).await;
        platform.emit(1);
        consumer.expect(behind + 1..=behind + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_numbering_that_restarts_during_a_disconnection_is_detected() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(9);
    relay.consumer().await.expect(1..=9).await;
    let plan = relay.stop().await;
    platform.inject(PlatformFault::Reset {});
    let relay = Relay::of(plan).await;
    platform.emit(4);
    relay.expect_log("1 2 3 4 5 6 7 8 9 gap(reset 9..1) snapshot(reset) 1 2 3 4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_with_an_old_number_is_stored_without_it_and_causes_no_refetch() {
    let platform = Platform::start().await;
    for stray in [r#"{"sequenceId":0,"type":"stray"}"#, r#"{"sequenceId":2,"type":"stray"}"#] {
        let stray = || frame(0x81, stray.as_bytes());
        let continuing = [numbered(1..=3), stray(), numbered(4..=9)].concat();
        let ends = UpgradeReply::Ended([numbered(1..=3), stray()].concat());
        for script in [vec![UpgradeReply::Open(continuing)], vec![ends, UpgradeReply::Open(numbered(4..=9))]] {
            let scripted = ScriptedPlatform::start(script).await;
            let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
            let relay = Relay::launch(plan.stream("backoff.cap", "50ms")).await;
            relay.until("it continues", |stream| stream["position"] == "9").await;
            eventually("each event is there once, in either order", async || {
                let summary = relay.log_summary().await;
                let mut words: Vec<&str> = summary.split(' ').collect();
                words.sort_unstable();
                words == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "event"]
            })
            .await;
            assert!(scripted.targets().iter().all(|target| !target.ends_with("=0") && !target.ends_with("=2")));
            assert_eq!(relay.count("gaps").await, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unnumbered_events_after_an_abandoned_position_follow_the_gap() {
    let platform = Platform::start().await;
    let bad = || frame(0x81, b"\xff");
    let script = vec![
        UpgradeReply::Open([numbered(1..=2), bad()].concat()),
        UpgradeReply::Open(bad()),
        UpgradeReply::Open(bad()),
        UpgradeReply::Open(bad()),
        UpgradeReply::Open(numbered(9..=9)),
    ];
    let scripted = ScriptedPlatform::start(script).await;
    let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url()).stream_without("snapshot_url");
    let relay = Relay::launch(plan.stream("backoff.cap", "50ms")).await;
    // Events may also be missing between two sessions without a position.
    let expected = "1 2 undecoded undecoded gap(jump 2..?) undecoded gap(jump 2..?) undecoded gap(jump 2..9) 9";
    relay.expect_log(expected).await;
    assert_eq!(scripted.targets(), ["/", "/?sequenceId=2", "/", "/", "/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_snapshot_stays_pending_and_is_written_behind_live_events() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let path = Some(SUMMARY.to_owned());
    platform.inject(PlatformFault::Rest { status: 503, times: 1, retry_after: None, path });
    platform.emit(1);
    platform.inject(PlatformFault::Jump { n: 1 });
    platform.emit(2);
    relay.expect_log("1 gap(jump 1..3) 3 4").await;
    relay.until("the snapshot is pending", |stream| stream["snapshot_pending"] == true).await;
    let error = relay.stream().await["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(
        ["snapshot fetch failed", "GET ", SUMMARY, "answered with 503"].iter().all(|part| error.contains(part)),
        "{error}"
    );
    relay.expect_log("1 gap(jump 1..3) 3 4 snapshot(jump)").await;
    relay
        .until("no snapshot is pending", |stream| stream["snapshot_pending"] == false && stream["last_error"].is_null())
        .await;
    let entries = relay.entries().await;
    assert_eq!(entries[4]["data"]["gap"], entries[1]["id"]);
    assert_eq!(relay.metric("stream_snapshots_total", &[("outcome", "failed")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_snapshot_is_marked_in_its_place() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let path = Some(SUMMARY.to_owned());
    platform.inject(PlatformFault::Rest { status: 403, times: 1, retry_after: None, path });
    platform.emit(1);
    platform.inject(PlatformFault::Jump { n: 1 });
    platform.emit(1);
    relay.expect_log("1 gap(jump 1..3) snapshot(jump) 3").await;
    let data = &relay.entries().await[2]["data"];
    assert_eq!((&data["status"], &data["answer"]), (&403.into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_events_within_the_retention_are_refetched_after_the_last_good_number() {
    let platform = Platform::start().await;
    let script = vec![UpgradeReply::Open(numbered([1, 2, 5, 6])), UpgradeReply::Open(numbered(3..=8))];
    let scripted = ScriptedPlatform::start(script).await;
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", scripted.url())).await;
    relay.expect_log("1 2 3 4 5 6 7 8").await;
    assert_eq!(scripted.targets(), ["/", "/?sequenceId=2"]);
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "gap"), ("outcome", "completed")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_platform_no_longer_has_are_requested_once_and_then_marked_as_a_jump() {
    let platform = Platform::start().await;
    let script = vec![UpgradeReply::Open(numbered([1, 2, 5, 6])), UpgradeReply::Open(numbered(5..=8))];
    let scripted = ScriptedPlatform::start(script).await;
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", scripted.url())).await;
    relay.expect_log("1 2 gap(jump 2..5) snapshot(jump) 5 6 7 8").await;
    let twice = async || scripted.targets() == ["/", "/?sequenceId=2"];
    throughout(Duration::from_millis(500), "it is not requested again", twice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_feed_starts_behind_a_gap_and_so_does_the_first_feed_when_it_returns() {
    let (first, second) = (Platform::start().await, Platform::start().await);
    let relay = Relay::start(&first).await;
    first.emit(5);
    relay.expect_log("1 2 3 4 5").await;
    second.emit(8);
    let relay = Relay::of(relay.stop().await.with_platform(second.address())).await;
    second.emit(2);
    relay.expect_log("1 2 3 4 5 gap(reset) snapshot(reset) 9 10").await;
    // This feed now has its own position.
    let plan = relay.stop().await;
    second.emit(1);
    let relay = Relay::of(plan).await;
    relay.expect_log("1 2 3 4 5 gap(reset) snapshot(reset) 9 10 11").await;
    first.emit(4);
    let relay = Relay::of(relay.stop().await.with_platform(first.address())).await;
    first.emit(1);
    relay.expect_log("1 2 3 4 5 gap(reset) snapshot(reset) 9 10 11 gap(reset) snapshot(reset) 10").await;
    assert_eq!(relay.metric("stream_gaps_total", &[("reason", "reset")]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_without_events_does_not_affect_the_other_feed() {
    let (first, second) = (Platform::start().await, Platform::start().await);
    let relay = Relay::start(&first).await;
    first.emit(3);
    relay.expect_log("1 2 3").await;
    second.refuse(503, u32::MAX);
    let relay = Relay::launch(relay.stop().await.with_platform(second.address())).await;
    relay.until("it was tried", |stream| stream["state"] == "backing-off").await;
    let plan = relay.stop().await;
    first.emit(2);
    let relay = Relay::of(plan.with_platform(first.address())).await;
    relay.expect_log("1 2 3 4 5").await;
}

/// Checks that a snapshot requests exactly `pages` user pages when `times` pages have this response.
async fn snapshot_takes(pages: usize, times: u32, how: ResponseFault) {
    let platform = Platform::with(Settings { requests_per_minute: 10_000, ..Settings::default() }).await;
    let topic = format!("v2.users.{}.presence", platform.agent_ids()[0]);
    let url = Some("/api/v2/users?expand=presence".to_owned());
    platform.inject(PlatformFault::Answer {
        to: RequestKind::Rest,
        on: FaultTarget::All,
        url,
        resuming: false,
        times,
        how,
    });
    let relay = Relay::of(RelayPlan::topics(platform.address(), &[&topic])).await;
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    let taken = async || relay.log_summary().await.matches("snapshot(no-replay)").count() == pages;
    eventually(&format!("{pages} pages are requested"), &taken).await;
    relay.until("it is live", |stream| stream["state"] == "live" && stream["snapshot_pending"] == false).await;
    throughout(Duration::from_millis(300), "no more pages are requested", &taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_pages_with_unknown_members_end_and_repeated_pages_are_bounded() {
    let changed = |set: &str, without: &[&str]| ResponseFault::Changed {
        status: None,
        content_type: None,
        gzip: false,
        set: Some(set.to_owned()),
        without: without.iter().map(|pointer| (*pointer).to_owned()).collect(),
    };
    let nothing = ResponseFault::Body { status: 204, content_type: "application/json".to_owned(), text: String::new() };
    for (how, pages) in [
        (changed(r#"{"pageCount":null}"#, &[]), 1),
        (changed(r#"{"entities":null}"#, &[]), 1),
        (changed("{}", &["/entities/0/id"]), 1),
        (changed(r#"{"pageCount":1000000}"#, &[]), PAGES_MAX),
        (changed(r#"{"pageCount":null,"nextUri":"/api/v2/users?pageNumber=1"}"#, &[]), PAGES_MAX),
    ] {
        snapshot_takes(pages, ALWAYS, how).await;
    }
    // A response without a body is not a state, so the call is repeated.
    snapshot_takes(1, 1, nothing).await;
}
