//! Unusual and malformed frames: none is lost, and none stops a stream.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use trunkline::simulator::{FaultTarget, PlatformFault, RawFrame, SocketDialect, UndecodableFrame};

use crate::harness::{
    GarbageServer, Platform, Relay, RelayPlan, ScriptedPlatform, UpgradeReply, eventually, frame, numbered, throughout,
};

const UNREADABLE: [UndecodableFrame; 4] =
    [UndecodableFrame::Binary, UndecodableFrame::InvalidJson, UndecodableFrame::WrongShape, UndecodableFrame::Deep];

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_frame_is_stored_verbatim() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    for what in UNREADABLE {
        platform.inject(PlatformFault::Undecodable { on: FaultTarget::All, what });
        platform.emit(1);
    }
    relay.expect_log("undecoded 1 undecoded 2 undecoded 3 undecoded 4").await;
    let entries = relay.entries().await;
    let binary = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";
    assert_eq!(entries[0]["data_base64"], binary);
    assert!(entries.iter().all(|entry| entry.get("data").is_none() || entry.get("data_base64").is_none()));
    assert_eq!(relay.metric("stream_undecoded_total", &[]).await, 4.0);
    assert_eq!(platform.opened(SocketDialect::Sequenced), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_notification_is_stored_verbatim() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &["v2.users.*.presence"])).await;
    for what in UNREADABLE {
        platform.inject(PlatformFault::Undecodable { on: FaultTarget::All, what });
    }
    relay.expect_log("undecoded undecoded undecoded undecoded").await;
    assert_eq!(platform.opened(SocketDialect::Notifications), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_frame_that_is_not_utf8_is_stored_and_ends_only_the_session() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.inject(PlatformFault::Undecodable { on: FaultTarget::All, what: UndecodableFrame::InvalidUtf8 });
    platform.emit(1);
    relay.expect_log("1 undecoded 2").await;
    assert_eq!(relay.entries().await[1]["data_base64"], BASE64_STANDARD.encode([0xff; 64]));
    assert_eq!(relay.metric("stream_undecoded_total", &[]).await, 1.0);
    assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "protocol")]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_is_not_utf8_is_stored_even_if_fragmented() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &["v2.users.*.presence"])).await;
    platform.inject(PlatformFault::Fragments { on: FaultTarget::All, n: 3 });
    platform.emit_raw_notification(RawFrame::InvalidText(b"{\"topicName\": \"Zo\xeb\"}".to_vec()));
    relay.expect_log("undecoded gap(no-replay) snapshot(no-replay)").await;
    assert_eq!(relay.entries().await[0]["data_base64"], BASE64_STANDARD.encode(b"{\"topicName\": \"Zo\xeb\"}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn json_in_a_binary_frame_is_read_and_an_empty_frame_is_a_keep_alive() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit_raw_sequenced(RawFrame::Binary(br#"{"sequenceId":1}"#.to_vec()));
    platform.emit_raw_sequenced(RawFrame::Text(String::new()));
    platform.emit_raw_sequenced(RawFrame::Binary(b"\xff".to_vec()));
    platform.emit_raw_sequenced(RawFrame::Text(
        r#"{"sequenceId":2.0,"timestamp":"2026-05-04T13:31:49.570+0000"}"#.to_owned(),
    ));
    relay.expect_log("1 undecoded 2").await;
    assert_eq!(relay.entries().await[2]["time"], "2026-05-04T13:31:49.570+00:00");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_fragments_is_one_message() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.inject(PlatformFault::Fragments { on: FaultTarget::All, n: 7 });
    platform.emit(2);
    let text = r#"{"type":"split","name":"Zoë €"}"#.to_owned();
    platform.emit_raw_sequenced(RawFrame::Fragments { text, pieces: 31 });
    relay.expect_log("1 2 event").await;
    assert_eq!(relay.entries().await[2]["data"]["name"], "Zoë €");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_never_ends_times_out_even_if_pings_arrive() {
    let (platform, babbler) = (Platform::start().await, GarbageServer::start().await);
    // A long backoff, so that no live session clears the error before the check.
    let plan = RelayPlan::numbered(platform.address())
        .stream("url", format!("ws://{}/", babbler.address()))
        .stream("backoff.first", "30s")
        .stream("backoff.cap", "60s");
    let relay = Relay::launch(plan.frame_time_max(SHORT)).await;
    relay.until("its session is lost", |stream| stream["last_error"] == "a message not complete in 0.3 s").await;
    eventually("it is counted", async || {
        relay.metric("stream_network_reconnects_total", &[("class", "protocol")]).await == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_frame_times_out_and_the_next_session_receives_it() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).frame_time_max(SHORT)).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.inject(PlatformFault::SlowLoris { on: FaultTarget::All, every: Duration::from_millis(20) });
    platform.emit(2);
    relay.expect_log("1 2 3").await;
    assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "protocol")]).await, 1.0);
    let quiet = async || relay.count("reconnects").await == 1;
    throughout(2 * SHORT, "a complete frame ends the frame timeout", quiet).await;
}

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_frame_is_marked_and_skipped_afterwards() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).stream("frame_max", "16KiB")).await;
    platform.emit(2);
    relay.expect_log("1 2").await;
    platform.inject(PlatformFault::Oversize { on: FaultTarget::All, bytes: 40_000 });
    relay.until("it is live again", |stream| stream["reconnects"] == 1 && stream["state"] == "live").await;
    platform.emit(2);
    relay.expect_log("1 2 gap(oversize 2..4) snapshot(oversize) 4 5").await;
    assert_eq!(relay.entries().await[2]["data"]["lost"], 1);
    assert_eq!(platform.opened(SocketDialect::Sequenced), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_notification_is_marked() {
    let platform = Platform::start().await;
    let queue = format!("v2.analytics.queues.{}.observations", platform.queue_ids()[0]);
    let plan = RelayPlan::topics(platform.address(), &[&queue]).stream("frame_max", "64KiB");
    let relay = Relay::of(plan).await;
    platform.inject(PlatformFault::Oversize { on: FaultTarget::All, bytes: 100_000 });
    relay.expect_log("gap(oversize) snapshot(oversize)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_an_event_are_unchanged() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let odd = r#"{"sequenceId": 1,  "n":1.0e2, "n":12345678901234567890123, "text":"\u00e9\/é", "deep":[[{}]] }"#;
    platform.emit_raw_sequenced(RawFrame::Text(odd.to_owned()));
    relay.expect_log("1").await;
    let page = relay.page(&format!("/v1/streams/{}/events?from=first", relay.name())).await.text().await.unwrap();
    assert!(page.contains(odd), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_event_never_looks_like_an_entry_of_trunkline() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let kinds = ["trunkline.gap.v1", "trunkline.undecoded.v1", "a\\r\\n\\u001b[31m", " a b "];
    for (index, kind) in kinds.iter().enumerate() {
        let text = format!(r#"{{"sequenceId":{},"type":"{kind}","topicName":"q\n","reason":"jump"}}"#, index + 1);
        platform.emit_raw_sequenced(RawFrame::Text(text));
    }
    relay.expect_log("1 2 3 4").await;
    for entry in relay.entries().await {
        assert_eq!((&entry["type"], &entry["subject"]), (&"genesys-sequenced.event".into(), &r"q\u000a".into()));
    }
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_close_is_a_lost_connection_and_keeps_the_position() {
    let cut = [&1000_u16.to_be_bytes()[..], b"Zo\xc3"].concat();
    let codes = [0_u16, 999, 1002, 1003, 1005, 1006, 1007, 1015, 5000];
    let closes = codes.map(|code| code.to_be_bytes().to_vec()).into_iter().chain([vec![3], cut]);
    let normal = 1000_u16.to_be_bytes();
    let (masked, too_long) = ([CLOSE, 0x80, 1, 2, 3, 4], [CLOSE, 127, 1, 0, 0, 0, 0, 0, 0, 0]);
    let frames = [frame(0x08, &normal), frame(0xc8, &normal), frame(0x8b, &normal), masked.into(), too_long.into()];
    for bad in closes.map(|close| frame(CLOSE, &close)).chain(frames) {
        let platform = Platform::start().await;
        let script = vec![
            UpgradeReply::Ended([numbered(1..=2), bad.clone()].concat()),
            UpgradeReply::Ended(bad.clone()),
            UpgradeReply::Ended(bad.clone()),
            UpgradeReply::Open(numbered(3..=4)),
        ];
        let scripted = ScriptedPlatform::start(script).await;
        let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
        let relay = Relay::launch(plan.stream("backoff.cap", "50ms")).await;
        relay.expect_log("1 2 3 4").await;
        let targets = scripted.targets();
        assert_eq!(targets, ["/", "/?sequenceId=2", "/?sequenceId=2", "/?sequenceId=2"], "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_frame_that_breaks_the_protocol_twice_is_skipped() {
    let platform = Platform::start().await;
    let reserved = frame(0x83, b"?");
    let script = vec![
        UpgradeReply::Open([numbered(1..=2), reserved.clone()].concat()),
        UpgradeReply::Open(reserved),
        UpgradeReply::Open(numbered(4..=5)),
    ];
    let scripted = ScriptedPlatform::start(script).await;
    let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
    let relay = Relay::launch(plan.stream("backoff.cap", "50ms")).await;
    relay.until("it continues", |stream| stream["position"] == "5").await;
    assert_eq!(scripted.targets(), ["/", "/?sequenceId=2", "/"]);
    assert_eq!(relay.count("gaps").await, 1);
}

const CLOSE: u8 = 0x88;
