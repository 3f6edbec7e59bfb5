//! Public formats compared with the files in `tests/golden`: the envelope and the metrics page.
//!
//! `UPDATE_GOLDEN=1` rewrites the files. Review the changes before a commit.

use std::{collections::BTreeSet, fs, path::Path};

use time::macros::datetime;
use trunkline::simulator::{FaultTarget, PlatformFault, RawFrame, Settings, UndecodableFrame};

use crate::harness::{Platform, Relay, RelayPlan};

#[tokio::test(flavor = "multi_thread")]
async fn the_envelope_matches_the_golden_file() {
    let scenario_start = Some(datetime!(2026-05-04 12:00 UTC));
    let platform = Platform::with(Settings { scenario_start, frame_max: 1, ..Settings::default() }).await;
    let queue = format!("v2.analytics.queues.{}.observations", platform.queue_ids()[0]);
    let plan = RelayPlan::named(platform.address(), "acme-golden").and_numbered("calls", platform.address());
    let numbered = Relay::of(plan.stream_without("snapshot_url")).await;
    platform.inject(PlatformFault::Undecodable { on: FaultTarget::All, what: UndecodableFrame::InvalidJson });
    platform.emit(1);
    platform.inject(PlatformFault::Jump { n: 4 });
    platform.emit(1);
    numbered.expect_log("undecoded 1 gap(jump 1..6) 6").await;
    let plan = RelayPlan::named(platform.address(), "acme-golden").and_topics("queues", &[&queue]);
    let notified = Relay::of(plan).await;
    let body = r#"{"group":{"queueId":"9c1e"},"eventTime":"2026-05-04T12:00:01.000Z"}"#;
    let topic = "v2.analytics.queues.9c1e.observations";
    let text =
        format!(r#"{{"topicName":"{topic}","version":"2","eventBody":{body},"metadata":{{"CorrelationId":"c-1"}}}}"#);
    platform.emit_raw_notification(RawFrame::Text(text));
    notified.expect_log("event").await;
    let text = [lines(&numbered).await, lines(&notified).await].concat();
    compare_with_file("envelope.json", &text);
}

/// The entries of the first stream, one per line, without values that differ between runs.
async fn lines(relay: &Relay) -> String {
    let target = format!("/v1/streams/{}/events?from=first", relay.name());
    let mut page = relay.page(&target).await.text().await.unwrap();
    for entry in relay.entries().await {
        let (epoch, _) = entry["id"].as_str().unwrap().split_once('-').unwrap();
        page = page.replace(&format!("\"{epoch}-"), "\"EPOCH-");
        page = page.replace(entry["receivedtime"].as_str().unwrap(), "RECEIVED");
    }
    let page = page.strip_prefix('[').unwrap().strip_suffix(']').unwrap();
    page.replace("},{\"specversion\"", "}\n{\"specversion\"") + "\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_page_matches_the_golden_file() {
    let platform = Platform::start().await;
    let plan = RelayPlan::named(platform.address(), "acme-page").and_numbered("calls", platform.address());
    let relay = Relay::of(plan.and_topics("queues", &["v2.users.*.presence"])).await;
    platform.emit(1);
    relay.expect_log("1").await;
    relay.page(&format!("/v1/streams/{}/events?consumer=billing-page", relay.name())).await;
    let page = relay.get("/metrics").await.text().await.unwrap();
    let own = ["calls-page", "queues-page", "acme-page"].map(|name| format!("\"{name}\""));
    let others = |line: &&str| {
        let labelled = line.contains("stream=\"") || line.contains("account=\"");
        !labelled || own.iter().any(|own| line.contains(own.as_str()))
    };
    let mut seen = BTreeSet::new();
    let lines = page.lines().filter(others).map(without_value).filter(|line| seen.insert(line.clone()));
    compare_with_file("metrics.txt", &(lines.collect::<Vec<_>>().join("\n") + "\n"));
}

/// A line of the page without values that differ between runs and without histogram bounds.
fn without_value(line: &str) -> String {
    if line.starts_with('#') {
        return line.to_owned();
    }
    let (series, _) = line.rsplit_once(' ').unwrap();
    let mut series = series.to_owned();
    for label in ["le=\"", "version=\"", "commit=\""] {
        if let Some(at) = series.find(label) {
            let value = at + label.len();
            let end = value + series[value..].find('"').unwrap();
            series.replace_range(value..end, "*");
        }
    }
    series
}

/// Every metric of the daemon has its series from the start.
#[tokio::test(flavor = "multi_thread")]
async fn all_series_exist_before_the_first_event() {
    let plan = RelayPlan::numbered(([127, 0, 0, 1], 9).into());
    let relay = Relay::launch(plan).await;
    for (name, labels) in [
        ("stream_events_total", vec![]),
        ("stream_gaps_total", vec![("reason", "store")]),
        ("stream_rotations_total", vec![("trigger", "token"), ("outcome", "failed")]),
        ("stream_network_reconnects_total", vec![("class", "silence")]),
        ("stream_snapshots_total", vec![("outcome", "taken")]),
        ("stream_shed_total", vec![]),
        ("token_refreshes_total", vec![("outcome", "granted")]),
    ] {
        assert_eq!(relay.metric(name, &labels).await, 0.0, "{name}");
    }
    assert_eq!(relay.metric("stream_lease_owner", &[]).await, 1.0);
}

fn compare_with_file(name: &str, found: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, found).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let (mut found, mut expected) = (found.lines(), expected.lines());
    loop {
        let pair = (expected.next(), found.next());
        assert_eq!(pair.0, pair.1, "tests/golden/{name} differs");
        if pair == (None, None) {
            return;
        }
    }
}
