//! The output for answers of a daemon.

use super::*;
use crate::{
    auth::AccountStatus,
    cli::tests_server::{StubResponse, serve},
    model::{Epoch, Mark, Offset},
    upstream::{StreamStatus, TopicCounts},
};

/// Serialized from the daemon's structs, so that both sides stay consistent.
fn answered() -> String {
    let stream = StreamStatus {
        stream: "queues".parse().unwrap(),
        account: "acme".parse().unwrap(),
        connector: "genesys-notifications",
        holder: None,
        state: crate::protocol::stream::StreamState::Live,
        last: Mark { epoch: Epoch(0x4f2a), offset: Offset(17) },
        position: None,
        events: 17,
        gaps: 1,
        duplicates: 0,
        rotations: 3,
        reconnects: 2,
        buffered: 0,
        silent_seconds: Some(0.25),
        snapshot_pending: true,
        refused_topics: vec!["v2.users.x.presence (403)".to_owned()],
        topics: TopicCounts::default(),
        last_error: None,
        last_error_at: None,
        proxy: None,
    };
    let account = AccountStatus {
        account: "acme".parse().unwrap(),
        state: "rejected",
        generation: 4,
        remaining_seconds: Some(3599.9),
        next_refresh_seconds: None,
        refreshes: 3,
        waiting_for: Some("the next attempt after a failure"),
        waiting_seconds: Some(42.0),
        last_error: Some("invalid_client".to_owned()),
        last_error_at: Some("2026-05-04T13:31:49.570Z".to_owned()),
        proxy: Some("http://proxy.test:3128".to_owned()),
    };
    serde_json::json!({ "version": "0.1.0", "uptime_seconds": 90061.0, "streams": [stream], "accounts": [account] })
        .to_string()
}

fn args(url: &str, json: bool, watch: bool) -> StatusArgs {
    StatusArgs { url: url.parse().unwrap(), token: Some(Secret::new("t0ken")), json, watch }
}

#[tokio::test]
async fn the_status_is_a_table_followed_by_problems() {
    let server = serve(|_| StubResponse::json(answered())).await;
    let mut out = Vec::new();
    run(&args(&server.url, false, false), false, &mut out, std::future::pending()).await.unwrap();
    let expected = "\
trunkline 0.1.0, up 25h

STREAM  STATE  LAST     POSITION  EVENTS  ROTATIONS  RECONNECTS  GAPS  SILENT
queues  live   4f2a-17  -         17      3          2           1     0.2s

ACCOUNT  STATE     TOKEN  EXPIRES IN  NEXT REFRESH IN  REFRESHES
acme     rejected  #4     59m         -                3

queues: snapshot pending
queues: topic rejected: v2.users.x.presence (403)
acme: proxy http://proxy.test:3128
acme: next token refresh waits for the next attempt after a failure, at most 42s
acme: invalid_client (2026-05-04T13:31:49.570Z)
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let requests = server.requests();
    assert_eq!(requests[0].target, "/admin/v1/status");
    assert_eq!(requests[0].authorization.as_deref(), Some("Bearer t0ken"));
}

#[tokio::test]
async fn with_replicas_the_holder_of_each_stream_is_shown() {
    let mut report: serde_json::Value = serde_json::from_str(&answered()).unwrap();
    let of = |name: &str, holder: Option<&str>| {
        let mut stream = report["streams"][0].clone();
        stream["stream"] = name.into();
        stream["holder"] = holder.into();
        stream["snapshot_pending"] = false.into();
        stream["refused_topics"] = serde_json::json!([]);
        stream
    };
    let streams = [of("agents", Some("000000000000001b")), of("calls", None), of("queues", Some("000000000000002a"))];
    report["streams"] = streams.into();
    report["accounts"] = serde_json::json!([]);
    report["replica"] = "000000000000002a".into();
    report["members"] = ["000000000000001b", "000000000000002a"].as_slice().into();
    let server = serve(move |_| StubResponse::json(report.to_string())).await;
    let mut out = Vec::new();
    run(&args(&server.url, false, false), false, &mut out, std::future::pending()).await.unwrap();
    let expected = "\
trunkline 0.1.0, up 25h
replica 000000000000002a, others: 000000000000001b

STREAM  STATE  OWNER             LAST     POSITION  EVENTS  ROTATIONS  RECONNECTS  GAPS  SILENT
agents  live   000000000000001b  4f2a-17  -         17      3          2           1     0.2s
calls   live   -                 4f2a-17  -         17      3          2           1     0.2s
queues  live   here              4f2a-17  -         17      3          2           1     0.2s

ACCOUNT  STATE  TOKEN  EXPIRES IN  NEXT REFRESH IN  REFRESHES
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[tokio::test]
async fn a_daemon_that_is_not_ready_is_shown_with_each_reason() {
    for (given, shown) in [
        (
            "\"ready\":false,\"not_ready\":[\"store: redis://h is away\",\"replica: x\"]",
            ["store: redis://h is away", "replica: x"],
        ),
        ("\"ready\":false", ["see /readyz for the reason", ""]),
        ("\"ready\":true,\"not_ready\":[]", ["", ""]),
    ] {
        let text = format!("{{\"version\":\"0\",\"uptime_seconds\":1,\"streams\":[],\"accounts\":[],{given}}}");
        let server = serve(move |_| StubResponse::json(text.clone())).await;
        let mut out = Vec::new();
        run(&args(&server.url, false, false), false, &mut out, std::future::pending()).await.unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("NOT READY: ")).collect();
        assert_eq!(lines, shown.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>(), "{out}");
    }
}

#[tokio::test]
async fn json_output_is_the_daemons_response_unchanged() {
    let server = serve(|_| StubResponse::json(answered())).await;
    let mut out = Vec::new();
    run(&args(&server.url, true, false), false, &mut out, std::future::pending()).await.unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), answered() + "\n");
}

#[tokio::test]
async fn a_refusal_and_an_unreachable_daemon_have_distinct_errors() {
    let problem = r#"{"title":"Unauthorized","detail":"the token has expired"}"#;
    let server = serve(move |_| StubResponse::status(401, problem)).await;
    let failed = run(&args(&server.url, false, false), false, &mut Vec::new(), std::future::pending()).await;
    let failure = failed.unwrap_err();
    assert_eq!(failure.exit(), crate::cli::Exit::Refused);
    assert!(failure.to_string().ends_with("the token has expired"), "{failure}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let absent = args(&format!("http://{closed}"), false, false);
    let failure = run(&absent, false, &mut Vec::new(), std::future::pending()).await.unwrap_err();
    assert_eq!(failure.exit(), crate::cli::Exit::Failed);
    assert!(failure.to_string().contains("could not reach"), "{failure}");
}

#[tokio::test]
async fn watching_survives_a_temporary_outage_of_the_daemon() {
    let requests = std::sync::atomic::AtomicUsize::new(0);
    let server = serve(move |_| match requests.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => StubResponse::json(answered()),
        1 => StubResponse::status(503, "{}"),
        2 => StubResponse::json(answered().replace("\"live\"", "\"paused\"")),
        _ => StubResponse::status(401, "{}"),
    })
    .await;
    let args = args(&server.url, false, true);
    let daemon = DaemonClient::new(&args.url, None).unwrap();
    let mut out = Vec::new();
    let ended = watch(&daemon, &args, Duration::from_millis(1), true, &mut out).await;
    assert_eq!(ended.unwrap_err().exit(), crate::cli::Exit::Refused, "a rejection is permanent");
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.matches(CLEAR).count(), 3, "{out}");
    assert!(out.contains("the table is outdated") && out.contains("paused"), "{out}");
}

#[test]
fn times_are_short() {
    for (count, shown) in [(0.0, "0.0s"), (9.94, "9.9s"), (61.0, "61s"), (601.0, "10m"), (86_400.0, "24h")] {
        assert_eq!(seconds(count), shown);
    }
    assert_eq!(seconds(f64::NAN), "0.0s");
}
