//! Lost and refused sessions: each cause has its own recovery, and none counts as a rotation.

use std::time::Duration;

use serde_json::Value;
use trunkline::{
    clock,
    simulator::{ALWAYS, FaultTarget, PlatformFault, RequestKind, ResponseFault, Settings, SocketDialect},
};

use crate::harness::{
    ForeignHost, Platform, Relay, RelayPlan, ScriptedPlatform, TcpProxy, UpgradeReply, eventually, numbered, throughout,
};

const TOPICS: [&str; 1] = ["v2.analytics.queues.*.observations"];

#[tokio::test(flavor = "multi_thread")]
async fn after_each_network_close_code_the_stream_resumes_without_loss() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).stream("backoff.breaker_after", 1_000)).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    let table = [
        (1000, "clean"),
        (1001, "network"),
        (1002, "protocol"),
        (1003, "protocol"),
        (1007, "protocol"),
        (1009, "protocol"),
        (1011, "restart"),
        (1012, "restart"),
        (3000, "network"),
        (4000, "network"),
        (4999, "network"),
    ];
    for (lost, (code, class)) in (1..).zip(table) {
        let before = relay.metric("stream_network_reconnects_total", &[("class", class)]).await;
        platform.close(code);
        platform.emit(2);
        consumer.expect(2 * lost..=2 * lost + 1).await;
        assert_eq!(relay.count("reconnects").await, lost, "{code}");
        assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", class)]).await, before + 1.0, "{code}");
    }
    assert_eq!(platform.counters().grants_total(), 1, "none of them is a reason for a new token");
    assert_eq!(relay.metric("stream_rotations_total", &[]).await, 0.0);
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_platform_is_retried_after_a_delay() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.close(1013);
    relay.until("it backs off", |stream| stream["state"] == "backing-off").await;
    throughout(Duration::from_millis(700), "it waits", async || platform.opened(SocketDialect::Sequenced) == 1).await;
    assert_eq!(relay.get("/readyz?streams=all").await.status(), 503);
    assert_eq!(relay.get("/readyz").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_for_authentication_brings_a_new_token_and_no_backoff() {
    for code in [1008, 4001] {
        let platform = Platform::start().await;
        let wire = TcpProxy::to(platform.address()).await;
        let relay =
            Relay::of(RelayPlan::numbered(wire.address()).stream("backoff.first", "30s").stream("backoff.cap", "60s"))
                .await;
        platform.emit(1);
        relay.expect_log("1").await;
        platform.close(code);
        platform.emit(1);
        relay.expect_log("1 2").await;
        let bearers = wire.bearer_tokens();
        assert!(bearers.len() == 2 && bearers[0] != bearers[1], "{code}: the rejected token is not presented again");
        assert_eq!(relay.account().await["generation"], 2);
        assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "refused")]).await, 1.0);
        assert_eq!(relay.metric("stream_network_reconnects_total", &[("class", "network")]).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_answered_with_401_brings_a_new_token() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.refuse(401, 1);
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    platform.emit(1);
    relay.expect_log("1 2").await;
    let bearers = wire.bearer_tokens();
    let [first, refused, later @ ..] = &bearers[..] else { panic!("not three upgrades: {bearers:?}") };
    assert_eq!(first, refused);
    assert!(!later.is_empty() && later.iter().all(|bearer| bearer != refused), "a refused token is used again");
    assert_eq!(platform.counters().grants_total(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_rejects_every_token_gets_no_request_storm() {
    let platform = Platform::start().await;
    platform.refuse(401, 1_000);
    let relay = Relay::launch(
        RelayPlan::numbered(platform.address()).stream("backoff.first", "30s").stream("backoff.cap", "60s"),
    )
    .await;
    // The next token request follows after at least five seconds.
    eventually("four tokens are refused", async || platform.counters().handshakes_refused == 4).await;
    relay.until("it backs off", |stream| stream["state"] == "backing-off").await;
    throughout(Duration::from_millis(500), "it keeps waiting", async || platform.counters().handshakes_refused == 4)
        .await;
    assert!(platform.counters().grants_total() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_forbidden_upgrade_is_tried_again_and_loses_nothing() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).and_topics("queues", &TOPICS);
    let relay = Relay::of(plan).await;
    platform.emit(1);
    relay.expect_log("1").await;
    let on = FaultTarget::Sequenced;
    for status in [200, 302, 403, 404, 421] {
        let lost = relay.count("reconnects").await;
        platform.inject(PlatformFault::Refuse { on, status, times: 1, retry_after: None });
        platform.inject(PlatformFault::Drop { on });
        eventually("it is live again", async || {
            relay.count("reconnects").await > lost && relay.stream().await["state"] == "live"
        })
        .await;
        assert_eq!(relay.status().await["streams"][1]["state"], "live", "{status}");
        platform.emit(1);
    }
    relay.expect_log("1 2 3 4 5 6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_retried_and_reports_why() {
    let platform = Platform::start().await;
    let url = format!("ws://{}/no/such/stream", platform.address());
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", url)).await;
    relay
        .until("the status is shown", |stream| stream["last_error"].as_str().is_some_and(|text| text.contains("404")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_honors_retry_after() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(1);
    relay.expect_log("1").await;
    for status in [429, 503] {
        let (on, retry_after) = (FaultTarget::All, Some("1".to_owned()));
        platform.inject(PlatformFault::Refuse { on, status, times: 1, retry_after });
        let begin = clock::now();
        platform.inject(PlatformFault::Drop { on });
        relay.until("it backs off", |stream| stream["state"] == "backing-off").await;
        relay.live().await;
        assert!(begin.elapsed() >= Duration::from_secs(1), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_a_row_open_the_breaker_and_a_stable_session_closes_it() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address())
        .stream("backoff.cap", "50ms")
        .stream("backoff.breaker_after", 2)
        .stream("backoff.stable_after", "300ms");
    let relay = Relay::of(plan).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.refuse(500, 20);
    platform.inject(PlatformFault::Drop { on: FaultTarget::All });
    eventually("the breaker opens", async || relay.metric("stream_breaker_open", &[]).await == 1.0).await;
    platform.emit(1);
    relay.expect_log("1 2").await;
    eventually("the breaker closes", async || relay.metric("stream_breaker_open", &[]).await == 0.0).await;
    assert_eq!(relay.metric("stream_rotations_total", &[]).await, 0.0);
    assert_eq!(platform.counters().grants_total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_of_six_seconds_a_stream_is_live_within_five() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let plan = RelayPlan::numbered(wire.address())
        .stream("backoff.first", "1s")
        .stream("backoff.cap", "30s")
        .stream("backoff.stable_after", "100ms");
    let relay = Relay::of(plan).await;
    platform.emit(1);
    relay.expect_log("1").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    wire.disconnect();
    tokio::time::sleep(Duration::from_secs(6)).await;
    platform.emit(5);
    wire.restore();
    let restored = clock::now();
    relay.live().await;
    assert!(restored.elapsed() < Duration::from_secs(5), "live {:?} after the network is restored", restored.elapsed());
    relay.expect_log("1 2 3 4 5 6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_upgrade_is_not_followed_and_the_token_goes_nowhere() {
    let platform = Platform::start().await;
    let thief = ForeignHost::start("HTTP/1.1 200 OK").await;
    let response = format!("HTTP/1.1 302 Found\r\nlocation: ws://{}/stream", thief.address());
    let redirect = ForeignHost::start(&response).await;
    let url = format!("ws://{}/stream", redirect.address());
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", url)).await;
    eventually("it was tried again", async || redirect.received_requests().len() > 1).await;
    relay
        .until("the status is shown", |stream| stream["last_error"].as_str().is_some_and(|text| text.contains("302")))
        .await;
    assert!(redirect.received_requests()[0].to_lowercase().contains("authorization: bearer "));
    assert_eq!(thief.received_requests(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_call_is_not_followed_and_the_token_goes_nowhere() {
    let platform = Platform::start().await;
    let thief = ForeignHost::start("HTTP/1.1 200 OK").await;
    let response = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{}/", thief.address());
    let redirect = ForeignHost::start(&response).await;
    let api_url = format!("http://{}", redirect.address());
    let relay = Relay::launch(RelayPlan::topics(platform.address(), &TOPICS).account("api_url", api_url)).await;
    eventually("it was tried again", async || redirect.received_requests().len() > 1).await;
    relay
        .until("the status is shown", |stream| stream["last_error"].as_str().is_some_and(|text| text.contains("307")))
        .await;
    assert!(redirect.received_requests()[0].to_lowercase().contains("authorization: bearer "));
    assert_eq!(thief.received_requests(), [""; 0]);
}

/// A fault that changes members of a successful response.
fn changed(url: &str, members: &str) -> PlatformFault {
    let (set, without) = (Some(members.to_owned()), Vec::new());
    let how = ResponseFault::Changed { status: None, content_type: None, gzip: false, set, without };
    PlatformFault::Answer {
        to: RequestKind::Rest,
        on: FaultTarget::All,
        url: Some(url.to_owned()),
        resuming: false,
        times: ALWAYS,
        how,
    }
}

/// Waits until the last error of the first stream contains this text.
async fn reports(relay: &Relay, words: &str) {
    let fact = |stream: &Value| stream["last_error"].as_str().is_some_and(|text| text.contains(words));
    relay.until(&format!("the error contains {words:?}"), fact).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_page_on_another_host_is_refused_and_the_token_goes_nowhere() {
    let platform = Platform::start().await;
    let thief = ForeignHost::start("HTTP/1.1 200 OK").await;
    let next = format!(r#"{{"pageCount":null,"nextUri":"http://{}/api/v2/users?pageNumber=2"}}"#, thief.address());
    platform.inject(changed("/api/v2/users", &next));
    let relay = Relay::launch(RelayPlan::topics(platform.address(), &["v2.users.*.presence"])).await;
    reports(&relay, &format!("http://{} is not a host of the account's API; token not sent", thief.address())).await;
    assert_eq!(thief.received_requests(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_on_another_host_is_reached_without_the_token_and_never_in_plain_text_off_this_machine() {
    let platform = Platform::start().await;
    let other = ForeignHost::start("HTTP/1.1 503 Service Unavailable").await;
    let connect_uri = |host: &str| changed("/notifications/channels", &format!(r#"{{"connectUri":"ws://{host}/c"}}"#));
    platform.inject(connect_uri(&other.address().to_string()));
    let relay = Relay::launch(RelayPlan::topics(platform.address(), &TOPICS)).await;
    eventually("the channel is tried", async || !other.received_requests().is_empty()).await;
    for upgrade in other.received_requests() {
        assert!(upgrade.starts_with("GET /c "), "{upgrade}");
        assert!(!upgrade.to_lowercase().contains("authorization"), "{upgrade}");
    }
    drop(relay);

    let platform = Platform::start().await;
    platform.inject(connect_uri("192.0.2.1:9"));
    let relay = Relay::launch(RelayPlan::topics(platform.address(), &TOPICS)).await;
    reports(&relay, "ws://192.0.2.1:9: credentials would be sent to another machine in plain text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_date_is_relative_to_the_platforms_clock() {
    const WAIT: u32 = 2;
    for (to, skew) in [RequestKind::Token, RequestKind::Rest, RequestKind::Upgrade]
        .into_iter()
        .flat_map(|to| [(to, -3_600), (to, 3_600)])
    {
        let platform = Platform::start().await;
        let what = format!("{to:?} {skew}");
        let how = ResponseFault::Status { status: 429, retry_after: None, retry_in: Some(WAIT), clock: Some(skew) };
        platform.inject(PlatformFault::Answer { to, on: FaultTarget::All, url: None, resuming: false, times: 1, how });
        let begin = clock::now();
        let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
        assert!(begin.elapsed() >= Duration::from_secs(WAIT.into()), "{what}: {:?}", begin.elapsed());
        assert_eq!(relay.count("gaps").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_channel_is_created_again() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    for (lost, status) in (1..).zip([401, 403, 404]) {
        platform.refuse(status, 1);
        platform.inject(PlatformFault::Drop { on: FaultTarget::All });
        relay.until("it is live again", |stream| stream["state"] == "live" && stream["gaps"] == lost).await;
        assert_eq!(platform.counters().channels_created, lost + 1, "{status}");
    }
    assert_eq!(platform.counters().grants_total(), 1, "a new channel needs no new token");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_fail_while_a_stream_starts_are_tried_again() {
    let platform = Platform::start().await;
    let fail = |status, retry_after: Option<&str>| {
        let retry_after = retry_after.map(str::to_owned);
        platform.inject(PlatformFault::Rest { status, times: 1, retry_after, path: None });
    };
    fail(500, None);
    fail(503, None);
    fail(401, None);
    fail(429, Some("1"));
    let begin = clock::now();
    let relay = Relay::of(RelayPlan::topics(platform.address(), &TOPICS)).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(platform.counters().grants_total(), 2);
    assert_eq!(relay.count("gaps").await, 0, "no event is missed before the first session");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_fall_silent_with_their_token_are_replaced_before_its_end() {
    let settings = Settings {
        token_ttl: Duration::from_secs(3),
        expiry: trunkline::simulator::Expiry::Silence,
        ..Settings::default()
    };
    // Such a socket still answers probes. Only the end of the token's lifetime shows that it is dead.
    let platform = Platform::with(settings).await;
    let relay = Relay::start(&platform).await;
    let mut consumer = relay.consumer().await;
    for rotation in 1..=3 {
        relay.until("the stream has moved on", |stream| stream["rotations"].as_u64() >= Some(rotation)).await;
        platform.emit(1);
        consumer.expect(rotation..=rotation).await;
    }
    assert_eq!((relay.count("gaps").await, relay.count("reconnects").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_position_is_retried_at_once_without_it_and_marked() {
    for status in [400, 409, 410, 416] {
        let platform = Platform::start().await;
        let script = vec![
            UpgradeReply::Ended(numbered(1..=2)),
            UpgradeReply::Refused(status),
            UpgradeReply::Open(numbered(8..=9)),
        ];
        let scripted = ScriptedPlatform::start(script).await;
        let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
        let relay = Relay::launch(plan.stream("backoff.stable_after", "1ms")).await;
        relay.expect_log("1 2 gap(retention 2..8) snapshot(retention) 8 9").await;
        assert_eq!(scripted.targets(), ["/", "/?sequenceId=2", "/"], "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_refused_three_times_in_a_row_has_failed_and_retries_at_the_cap() {
    let platform = Platform::start().await;
    let refused = [(); 5].map(|()| UpgradeReply::Refused(403));
    let script =
        [vec![UpgradeReply::Ended(numbered(1..=2))], refused.to_vec(), vec![UpgradeReply::Open(numbered(3..=4))]];
    let scripted = ScriptedPlatform::start(script.concat()).await;
    let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
    let relay = Relay::launch(plan.stream("backoff.cap", "500ms")).await;
    relay.until("it has failed", |stream| stream["state"] == "failed").await;
    assert!(relay.stream().await["last_error"].as_str().unwrap().contains("403"));
    relay.expect_log("1 2 3 4").await;
    assert!(scripted.targets()[1..].iter().all(|target| target == "/?sequenceId=2"));
    assert_eq!(relay.count("gaps").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_retry_a_failed_stream_at_once_or_gets_an_error() {
    let platform = Platform::start().await;
    let refused = [(); 3].map(|()| UpgradeReply::Refused(403)).to_vec();
    let script = [refused, vec![UpgradeReply::Open(numbered(1..=2))]].concat();
    let scripted = ScriptedPlatform::start(script).await;
    let plan = RelayPlan::numbered(platform.address()).stream("url", scripted.url());
    let relay = Relay::launch(plan.stream("backoff.first", "10ms").stream("backoff.cap", "1h")).await;
    relay.until("it has failed", |stream| stream["state"] == "failed").await;
    relay.operator_request("rotate").await;
    relay.live().await;
    relay.operator_request("pause").await;
    let rotate = format!("/admin/v1/streams/{}/rotate", relay.name());
    let refused = relay.post(&rotate).await;
    assert_eq!(refused.status(), 409);
    let problem: serde_json::Value = refused.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("paused"), "{problem}");
    relay.operator_request("resume").await;
    relay.live().await;
}
