//! Connections to a platform: cancellation, proxies, and unusual but valid upgrade replies.

use trunkline::simulator::SocketDialect;

use crate::harness::{
    ForeignHost, ForwardProxy, ListingPlatform, Platform, Relay, RelayPlan, SilentPlatform, eventually,
};

const STREAM_PATH: &str = "/api/v2/analytics/conversations/summary/stream";
/// A topic of the platform that needs no look-up call.
fn topic(platform: &Platform) -> String {
    format!("v2.analytics.queues.{}.observations", platform.queue_ids()[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_connection_attempt_leaves_no_connection() {
    const ATTEMPTS: u64 = 20;
    let platform = Platform::start().await;
    let silent = SilentPlatform::start().await;
    let url = format!("ws://{}/stream", silent.address());
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", url)).await;
    for attempt in 1..=ATTEMPTS {
        eventually("it connects", async || silent.opened() >= attempt).await;
        relay.operator_request("pause").await;
        eventually("the attempt's connection is closed", async || silent.open() == 0).await;
        relay.operator_request("resume").await;
    }
    eventually("it connects", async || silent.opened() > ATTEMPTS).await;
    assert_eq!(silent.open(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canceled_call_leaves_no_connection() {
    let platform = Platform::start().await;
    let silent = SilentPlatform::start().await;
    let plan = RelayPlan::topics(platform.address(), &[&topic(&platform)])
        .account("api_url", format!("http://{}", silent.address()));
    let relay = Relay::launch(plan).await;
    for attempt in 1..=5 {
        eventually("it calls", async || silent.opened() >= attempt).await;
        relay.operator_request("pause").await;
        eventually("the call's connection is closed", async || silent.open() == 0).await;
        relay.operator_request("resume").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_answered_with_lists_after_an_interim_answer_is_live() {
    let platform = Platform::start().await;
    let listing = ListingPlatform::start().await;
    let url = format!("ws://{}/stream", listing.address());
    let relay = Relay::launch(RelayPlan::numbered(platform.address()).stream("url", url)).await;
    relay.live().await;
    relay.until("the event behind the reply is stored", |stream| stream["events"] == 1).await;
    assert_eq!(relay.count("reconnects").await, 0);
}

/// A plan with token, REST calls and both kinds of sockets of a platform that is reachable only through the proxy.
fn behind_a_proxy(platform: &Platform) -> RelayPlan {
    let host = format!("platform.test:{}", platform.address().port());
    RelayPlan::numbered(platform.address())
        .stream("url", format!("ws://{host}{STREAM_PATH}"))
        .stream("snapshot_url", format!("http://{host}/api/v2/analytics/conversations/summary"))
        .and_topics("queues", &[&topic(platform)])
        .account("token_url", format!("http://{host}/oauth/token"))
        .account("api_url", format!("http://{host}"))
        .account("insecure", true)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_calls_and_sockets_go_through_one_proxy() {
    for variable in [None, Some("HTTP_PROXY"), Some("http_proxy"), Some("ALL_PROXY")] {
        let platform = Platform::start().await;
        let proxy = ForwardProxy::to(platform.address()).await;
        let plan = behind_a_proxy(&platform);
        let plan = match variable {
            None => plan.account("proxy", proxy.url()).environment("HTTP_PROXY", "http://127.0.0.1:1"),
            Some(variable) => plan.environment(variable, &proxy.url()),
        };
        let relay = Relay::of(plan).await;
        platform.emit(2);
        relay.expect_log("1 2").await;
        let host = format!("platform.test:{}", platform.address().port());
        for request in [
            format!("POST http://{host}/oauth/token "),
            format!("POST http://{host}/api/v2/notifications/channels"),
            format!("CONNECT {host} "),
        ] {
            assert!(proxy.was_requested(&request), "{request} is not in {:?}", proxy.requests());
        }
        let status = relay.status().await;
        assert_eq!(
            (&status["accounts"][0]["proxy"], &status["streams"][0]["proxy"]),
            (&proxy.url().into(), &proxy.url().into())
        );
        assert_eq!(platform.open(SocketDialect::Notifications), 1, "a local socket uses no proxy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_addresses_bypass_the_proxy_and_everything_does_without_one() {
    let platform = Platform::start().await;
    let dead = "http://127.0.0.1:1";
    let relay = Relay::of(RelayPlan::numbered(platform.address()).account("proxy", dead)).await;
    assert_eq!(relay.stream().await["proxy"], serde_json::Value::Null);
    let plan = behind_a_proxy(&platform).account("proxy", "none").environment("ALL_PROXY", dead);
    let relay = Relay::launch(plan).await;
    eventually("the name is resolved locally", async || {
        let error = relay.account().await["last_error"].as_str().unwrap_or_default().to_owned();
        !error.is_empty() && !error.contains("proxy")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_is_reported_without_its_password() {
    let platform = Platform::start().await;
    let proxy = ForeignHost::start("HTTP/1.1 407 Proxy Authentication Required").await;
    let shown = format!("http://{}", proxy.address());
    let plan = behind_a_proxy(&platform)
        .account("token_url", format!("http://{}/oauth/token", platform.address()))
        .account("proxy", format!("http://user:hunter2@{}", proxy.address()));
    let relay = Relay::launch(plan).await;
    for index in [0, 1] {
        eventually("each stream names the proxy", async || {
            let status = relay.status().await;
            let error = status["streams"][index]["last_error"].as_str().unwrap_or_default();
            error.contains(&shown) && error.contains("407")
        })
        .await;
    }
    let plan = behind_a_proxy(&platform).account("proxy", format!("http://user:hunter2@{}", proxy.address()));
    let other = Relay::launch(plan).await;
    eventually("the account names the proxy", async || {
        let account = other.account().await;
        account["last_error"].as_str().is_some_and(|error| error.contains(&shown) && error.contains("407"))
    })
    .await;
    for relay in [relay, other] {
        assert!(!relay.status().await.to_string().contains("hunter2"));
    }
    assert!(
        proxy.received_requests().iter().all(|request| request.to_lowercase().contains("proxy-authorization: basic "))
    );
}
