//! Tokens: when they are renewed, how failures are handled, and that streams keep their sessions.

use std::time::Duration;

use serde_json::Value;
use trunkline::{
    clock,
    simulator::{
        ALWAYS, FaultTarget, PlatformFault, RequestKind, ResponseFault, Settings, SocketDialect, TokenFailure,
        TokenKind,
    },
};

use crate::harness::{ForeignHost, Platform, Relay, RelayPlan, TcpProxy, eventually, http, settled, throughout};

async fn refresh(relay: &Relay) {
    let path = format!("/admin/v1/accounts/{}/refresh", relay.plan().account_name());
    assert_eq!(relay.post(&path).await.status(), 202);
}

fn next_refresh(account: &Value) -> f64 {
    account["next_refresh_seconds"].as_f64().unwrap_or_else(|| panic!("{account}"))
}

fn remaining(account: &Value) -> f64 {
    account["remaining_seconds"].as_f64().unwrap_or_else(|| panic!("{account}"))
}

fn near(found: f64, expected: f64) -> bool {
    (expected - 3.0..=expected).contains(&found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_its_buffer_or_a_quarter_of_its_lifetime_before_it_expires() {
    for (life, buffer, due) in
        [(3_600, "300s", 3_300.0), (1_200, "300s", 900.0), (100, "300s", 75.0), (100, "10s", 90.0)]
    {
        let platform = Platform::with(Settings { token_ttl: Duration::from_secs(life), ..Settings::default() }).await;
        let relay = Relay::of(RelayPlan::numbered(platform.address()).account("refresh_buffer", buffer)).await;
        let account = relay.account().await;
        assert!(near(next_refresh(&account), due), "{life} {buffer}: {account}");
        assert!(near(remaining(&account), life as f64), "{life} {buffer}: {account}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_off_changes_nothing() {
    for clock_offset in [-3_600, 0, 3_600] {
        for stated in [None, Some(TokenFailure::NoExpiresIn)] {
            let settings = Settings {
                clock_offset,
                token_kind: TokenKind::Jwt,
                token_ttl: Duration::from_secs(1_800),
                ..Settings::default()
            };
            let platform = Platform::with(settings).await;
            if let Some(failure) = stated {
                platform.inject(PlatformFault::Token { failure, times: 1 });
            }
            let relay = Relay::of(RelayPlan::numbered(platform.address())).await;
            let account = relay.account().await;
            assert!(near(next_refresh(&account), 1_500.0), "{clock_offset}: {account}");
            assert_eq!(relay.metric("token_lifetime_seconds", &[]).await, 1_800.0);
            assert_eq!(relay.metric("token_claimed_lifetime_seconds", &[]).await, 1_800.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_token_lifetime_is_bounded() {
    let table = [
        (TokenFailure::ExpiresIn { json: "\"1800\"".to_owned() }, 1_800.0),
        (TokenFailure::ExpiresIn { json: "1e300".to_owned() }, 172_800.0),
        (TokenFailure::ExpiresIn { json: "null".to_owned() }, 600.0),
        (TokenFailure::NoExpiresIn, 600.0),
    ];
    for (failure, life) in table {
        let platform = Platform::start().await;
        platform.inject(PlatformFault::Token { failure: failure.clone(), times: 1 });
        let relay = Relay::of(RelayPlan::numbered(platform.address())).await;
        let account = relay.account().await;
        assert!(near(remaining(&account), life), "{failure:?}: {account}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lifetime_below_two_seconds_is_ignored() {
    // The lifetime in the response, and the lifetime that counts.
    for (json, life) in [("0", 600.0), ("1", 600.0), ("-5", 600.0), ("\"0\"", 600.0), ("1.5", 600.0), ("2.5", 2.5)] {
        let platform = Platform::start().await;
        platform.inject(PlatformFault::Token { failure: TokenFailure::ExpiresIn { json: json.to_owned() }, times: 1 });
        let relay = Relay::launch(RelayPlan::numbered(platform.address())).await;
        eventually("it has a token", async || relay.account().await["generation"] != 0).await;
        assert_eq!(relay.metric("token_lifetime_seconds", &[]).await, life, "{json}");
        if life == 600.0 {
            relay.live().await;
            assert!(next_refresh(&relay.account().await) > 400.0, "{json}");
            assert_eq!(platform.counters().grants_total(), 1, "{json}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_token_endpoint_does_not_disturb_the_sockets() {
    let thief = ForeignHost::start("HTTP/1.1 200 OK").await;
    let wait = |text: &str| TokenFailure::TooManyRequests { retry_after: Some(text.to_owned()) };
    // The failure, its outcome in the metrics, and the delay of the retry; without a delay, the retry is soon.
    let table = [
        (wait("20"), "throttled", Some(10.0..=24.0)),
        (wait("99999999"), "throttled", Some(3_580.0..=4_320.0)),
        (wait("soon"), "throttled", None),
        (TokenFailure::Status { status: 500 }, "unreachable", None),
        (TokenFailure::Reset, "unreachable", None),
        (TokenFailure::Html, "unreachable", None),
        (TokenFailure::Huge, "unreachable", None),
        (TokenFailure::Redirect { to: format!("http://{}/", thief.address()) }, "unreachable", None),
        (TokenFailure::InvalidClient, "rejected", Some(15.0..=36.0)),
        (TokenFailure::InvalidGrant, "rejected", Some(15.0..=36.0)),
    ];
    for (failure, outcome, next) in table {
        let platform = Platform::start().await;
        let relay = Relay::start(&platform).await;
        platform.inject(PlatformFault::Token { failure: failure.clone(), times: ALWAYS });
        refresh(&relay).await;
        eventually("it has failed", async || relay.account().await["last_error"].is_string()).await;
        let account = relay.account().await;
        assert_eq!(account["state"], if outcome == "rejected" { "rejected" } else { "renewing" }, "{failure:?}");
        assert_eq!(account["generation"], 1, "{failure:?}");
        let failed = async || relay.metric("token_refreshes_total", &[("outcome", outcome)]).await;
        match next {
            Some(next) => {
                assert!(next.contains(&next_refresh(&account)), "{failure:?}: {account}");
                assert_eq!(failed().await, 1.0, "{failure:?}");
            }
            None => eventually("it is tried again soon", async || failed().await >= 2.0).await,
        }
        platform.emit(1);
        relay.expect_log("1").await;
        assert_eq!(platform.opened(SocketDialect::Sequenced), 1, "{failure:?}");
    }
    assert_eq!(thief.received_requests(), [""; 0], "a redirect is not followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_token_request_is_retried_and_the_stream_rotates() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.inject(PlatformFault::Token { failure: TokenFailure::Status { status: 503 }, times: 1 });
    refresh(&relay).await;
    eventually("there is a new token", async || relay.account().await["generation"] == 2).await;
    relay.until("the stream uses it", |stream| stream["rotations"] == 1).await;
    let account = relay.account().await;
    assert_eq!((&account["state"], &account["last_error"]), (&"valid".into(), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_token_is_waited_for_as_long_as_the_endpoint_asks() {
    let platform = Platform::start().await;
    let failure = TokenFailure::TooManyRequests { retry_after: Some("1".to_owned()) };
    platform.inject(PlatformFault::Token { failure, times: 1 });
    let begin = clock::now();
    let relay = Relay::launch(RelayPlan::numbered(platform.address())).await;
    assert_eq!(relay.get("/readyz").await.status(), 200, "consumers are served while it waits");
    relay.live().await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_raise_an_alarm_and_corrected_ones_are_tried_at_once() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).secret("client_secret", "wrong");
    let file = plan.secret_file("client_secret");
    let relay = Relay::launch(plan).await;
    eventually("they are rejected", async || relay.account().await["state"] == "rejected").await;
    let account = relay.account().await;
    assert!(account["last_error"].as_str().unwrap().contains("invalid_client"), "{account}");
    assert_eq!(relay.stream().await["state"], "starting");
    std::fs::write(file, "demo-secret\n").unwrap();
    relay.live().await;
    assert_eq!(platform.counters().token_failures, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_cannot_refresh_an_account_more_often_than_its_interval() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).account("refresh_interval_min", "60s");
    let relay = Relay::of(plan).await;
    for _ in 0..5 {
        refresh(&relay).await;
    }
    throughout(Duration::from_millis(300), "it waits", async || platform.counters().grants_total() == 1).await;
    assert!(next_refresh(&relay.account().await) <= 60.0);
    platform.emit(1);
    relay.expect_log("1").await;
    platform.close(1008);
    platform.emit(1);
    relay.expect_log("1 2").await;
    assert_eq!(platform.counters().grants_total(), 2, "the first one after a rejection does not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_closed_repeatedly_for_authentication_get_a_new_token_at_once() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).account("refresh_interval_min", "600s")).await;
    let mut consumer = relay.consumer().await;
    platform.emit(1);
    consumer.expect(1..=1).await;
    for closed in 1..=3 {
        relay.live().await;
        platform.close(1008);
        platform.emit(1);
        consumer.expect(closed + 1..=closed + 1).await;
        assert_eq!(platform.counters().grants_total(), closed + 1);
        assert_eq!(relay.account().await["generation"], closed + 1);
    }
    assert_eq!(relay.account().await["state"], "degraded");
    assert_eq!(relay.metric("token_refusals_total", &[]).await, 3.0);
    // The next request waits for seconds, not for the interval.
    relay.live().await;
    platform.close(1008);
    let waits = async || relay.account().await["waiting_seconds"].as_f64().is_some_and(|seconds| seconds <= 5.0);
    eventually("the status shows the wait", waits).await;
    platform.emit(1);
    consumer.expect(5..=5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_alone_is_refused_the_token_backs_off_and_other_streams_stay() {
    let platform = Platform::start().await;
    let refusing = ForeignHost::start("HTTP/1.1 401 Unauthorized").await;
    let plan = RelayPlan::numbered(platform.address()).account("refresh_interval_min", "5s");
    let relay = Relay::launch(plan.and_numbered("agents", refusing.address())).await;
    relay.until("its neighbour is live", |stream| stream["state"] == "live").await;
    eventually("it is tried again and again", async || refusing.received_requests().len() >= 4).await;
    let status = relay.status().await;
    let refused = status["streams"].as_array().unwrap().iter().find(|stream| stream["stream"] != relay.name()).unwrap();
    assert!(refused["last_error"].as_str().unwrap().contains("401"), "{refused}");
    assert_ne!(refused["state"], "live", "{refused}");
    assert_eq!(status["accounts"][0]["state"], "valid");
    // Longer than the minimal interval between requests.
    throughout(Duration::from_secs(6), "the token stays", async || platform.counters().grants_total() == 1).await;
    assert_eq!((relay.count("rotations").await, relay.count("reconnects").await), (0, 0));
    platform.emit(1);
    relay.expect_log("1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_that_is_refused_for_seconds_is_tried_again_before_the_next_may_be_requested() {
    let platform = Platform::start().await;
    let relay = Relay::of(RelayPlan::numbered(platform.address()).account("refresh_interval_min", "600s")).await;
    platform.emit(1);
    relay.expect_log("1").await;
    platform.refuse(401, 2);
    platform.close(1008);
    platform.emit(1);
    relay.expect_log("1 2").await;
    assert_eq!(platform.counters().grants_total(), 2);
    eventually("it is not refused any longer", async || relay.account().await["state"] == "valid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_alone_is_closed_for_authentication_repeatedly_backs_off_and_other_streams_stay() {
    for millis in [0, 300] {
        let platform = Platform::start().await;
        let queues = ["v2.analytics.queues.*.observations"];
        let relay = Relay::of(RelayPlan::numbered(platform.address()).and_topics("queues", &queues)).await;
        let neighbour = async || {
            let status = relay.status().await;
            let mut streams = status["streams"].as_array().unwrap().iter();
            streams.find(|stream| stream["stream"] != relay.name()).unwrap().clone()
        };
        eventually("its neighbour is live", async || neighbour().await["state"] == "live").await;
        let (to, on) = (RequestKind::Upgrade, FaultTarget::Sequenced);
        let how = ResponseFault::Closed { after: Duration::from_millis(millis), code: 1008, reason: String::new() };
        platform.inject(PlatformFault::Answer { to, on, url: None, resuming: false, times: ALWAYS, how });
        platform.inject(PlatformFault::Drop { on });
        eventually("it is tried again and again", async || relay.count("reconnects").await >= 5).await;
        // A token under which the neighbour is not live yet is renewed once more. After three rejections the account
        // requests a token every 5 s only.
        let grants = async || platform.counters().grants_total();
        let grants = settled(Duration::from_secs(6), "the token stays", grants).await;
        assert!(grants <= 7, "{millis}: {grants}");
        let rotations = neighbour().await["rotations"].clone();
        let reconnects = relay.count("reconnects").await;
        eventually("it is tried twice more", async || relay.count("reconnects").await >= reconnects + 2).await;
        assert_eq!(platform.counters().grants_total(), grants, "{millis}");
        let is_named = |stream: &Value| stream["last_error"].as_str().is_some_and(|error| error.contains("1008"));
        relay.until("the error names the reason", is_named).await;
        let neighbour = neighbour().await;
        assert_eq!((&neighbour["rotations"], &neighbour["reconnects"]), (&rotations, &0.into()), "{millis}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_refresh_token_survives_a_restart() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).account("grant", "refresh_token");
    let relay = Relay::of(plan.secret("refresh_token", "demo-refresh")).await;
    refresh(&relay).await;
    relay.until("the stream uses the second token", |stream| stream["rotations"] == 1).await;
    let relay = relay.restart().await;
    platform.emit(1);
    relay.expect_log("1").await;
    let counters = platform.counters();
    assert_eq!((counters.grants["refresh_token"], counters.token_failures), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_be_named_in_the_body() {
    let settings =
        Settings { client_id: "a b:c".to_owned(), client_secret: "s+e%c&r=é".to_owned(), ..Settings::default() };
    let platform = Platform::with(settings).await;
    for client_auth in ["basic", "body"] {
        let plan = RelayPlan::numbered(platform.address()).account("client_auth", client_auth);
        let relay = Relay::of(plan.secret("client_id", "a b:c").secret("client_secret", "s+e%c&r=é")).await;
        assert_eq!(relay.account().await["state"], "valid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_token_is_read_again_when_its_file_changes() {
    let platform = Platform::start().await;
    let grant = async || {
        let request = http().post(format!("{}/oauth/token", platform.url()));
        let request = request.basic_auth("demo", Some("demo-secret")).form(&[("grant_type", "client_credentials")]);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    };
    let wire = TcpProxy::to(platform.address()).await;
    let first = grant().await;
    let plan = RelayPlan::numbered(wire.address()).account("grant", "static").secret("token", &first);
    let plan = plan.without(&["client_id", "client_secret", "token_url"]);
    let file = plan.secret_file("token");
    let relay = Relay::of(plan).await;
    platform.emit(1);
    relay.expect_log("1").await;
    let second = grant().await;
    std::fs::write(&file, &second).unwrap();
    relay.until("the stream uses it", |stream| stream["rotations"] == 1).await;
    assert_eq!(wire.bearer_tokens(), [first, second]);
    platform.inject(PlatformFault::TokenRevoked {});
    eventually("an operator has to replace it", async || relay.account().await["state"] == "rejected").await;
    std::fs::write(&file, grant().await).unwrap();
    platform.emit(1);
    relay.live().await;
    relay.expect_log("1 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_status_or_metric_contains_a_secret() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    platform.inject(PlatformFault::Token { failure: TokenFailure::InvalidGrant, times: 1 });
    refresh(&relay).await;
    eventually("it has failed", async || relay.account().await["last_error"].is_string()).await;
    let shown = [
        relay.status().await.to_string(),
        relay.get("/metrics").await.text().await.unwrap(),
        relay.get("/readyz").await.text().await.unwrap(),
    ]
    .concat();
    for secret in wire.bearer_tokens().iter().map(String::as_str).chain(["demo-secret"]) {
        assert!(!secret.is_empty() && !shown.contains(secret));
    }
}
