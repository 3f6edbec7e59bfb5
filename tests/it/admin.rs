//! The admin listener, over a real socket.

use std::time::Duration;

use serde_json::{Value, json};
use trunkline::simulator::{FaultTarget, PlatformFault, SocketDialect};

use crate::harness::{Platform, Relay, RelayPlan, eventually, throughout};

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_status_are_served() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let health = relay.get("/healthz").await;
    assert_eq!((health.status().as_u16(), health.text().await.unwrap().as_str()), (200, "ok\n"));
    let ready: Value = relay.get("/readyz").await.json().await.unwrap();
    let streams = json!({ relay.name(): "live" });
    let checks = json!({"store": "ok", "draining": false});
    assert_eq!(ready, json!({"ready": true, "checks": checks, "warnings": [], "streams": streams}));
    platform.emit(4);
    relay.expect_log("1 2 3 4").await;
    let stream = relay.stream().await;
    assert_eq!((&stream["position"], &stream["events"]), (&"4".into(), &4.into()));
    assert_eq!(stream["last"], relay.entries().await[3]["id"]);
    assert!(stream["silent_seconds"].as_f64().unwrap() < 5.0);
    assert_eq!(relay.status().await["version"], env!("CARGO_PKG_VERSION"));
    let metrics = relay.get("/metrics").await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_its_platform_is_healthy_and_ready_and_its_streams_are_not_live() {
    let plan = RelayPlan::numbered(([127, 0, 0, 1], 9).into());
    let relay = Relay::launch(plan).await;
    eventually("the account has an error", async || relay.account().await["last_error"].is_string()).await;
    assert_eq!(relay.get("/healthz").await.status(), 200);
    assert_eq!(relay.get("/readyz").await.status(), 200);
    assert_eq!(relay.get("/readyz?streams=all").await.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_process_is_healthy_and_not_ready() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    // The drain waits a moment for a platform that does not answer the close.
    platform.inject(PlatformFault::Stall { on: FaultTarget::All, duration: Duration::from_secs(60) });
    relay.request_stop();
    eventually("it is not ready", async || relay.get("/readyz").await.status() == 503).await;
    let ready: Value = relay.get("/readyz").await.json().await.unwrap();
    assert_eq!((&ready["ready"], &ready["checks"]["draining"]), (&false.into(), &true.into()));
    assert_eq!(relay.get("/healthz").await.status(), 200);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_stream_has_no_socket_and_resumes_at_its_position() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(2);
    relay.expect_log("1 2").await;
    relay.operator_request("pause").await;
    eventually("its socket is closed", async || platform.open(SocketDialect::Sequenced) == 0).await;
    assert_eq!(relay.stream().await["state"], "paused");
    platform.emit(2);
    relay.operator_request("pause").await;
    let rotate = format!("/admin/v1/streams/{}/rotate", relay.name());
    assert_eq!(relay.post(&rotate).await.status(), 409, "a paused stream has no socket to rotate");
    throughout(Duration::from_millis(200), "it stays so", async || platform.opened(SocketDialect::Sequenced) == 1)
        .await;
    relay.operator_request("resume").await;
    relay.operator_request("resume").await;
    relay.expect_log("1 2 3 4").await;
    assert_eq!(platform.opened(SocketDialect::Sequenced), 2);
    assert_eq!(relay.metric("stream_network_reconnects_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_request_a_new_token_and_a_new_socket() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    relay.operator_request("rotate").await;
    relay.until("it has rotated", |stream| stream["rotations"] == 1).await;
    let path = format!("/admin/v1/accounts/{}/refresh", relay.plan().account_name());
    assert_eq!(relay.post(&path).await.status(), 202);
    relay.until("it has rotated for the token", |stream| stream["rotations"] == 2).await;
    assert_eq!(relay.metric("stream_rotations_total", &[("trigger", "token"), ("outcome", "completed")]).await, 1.0);
    assert_eq!(platform.counters().grants_total(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_admin_path_answers_a_typed_problem() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let own = format!("/admin/v1/streams/{}/explode", relay.name());
    for (path, slug) in [
        ("/admin/v1/streams/unknown/rotate", "unknown-stream"),
        ("/admin/v1/accounts/unknown/refresh", "unknown-account"),
        (own.as_str(), "not-found"),
        ("/v1/streams", "not-found"),
        ("/healthz", "method-not-allowed"),
    ] {
        let answer = relay.post(path).await;
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        let status = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], format!("urn:trunkline:problem:{slug}"), "{path}");
        assert_eq!(
            (&problem["status"], status),
            (&status.into(), if slug == "method-not-allowed" { 405 } else { 404 })
        );
    }
}
