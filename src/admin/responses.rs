//! Responses of the admin listener as text and JSON. Pure.

use std::{collections::BTreeMap, convert::Infallible, io::Write, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, VARY},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    auth::AccountStatus,
    coordination::Replica,
    listener::{
        descriptors::ConnectionBudget,
        json::{APPLICATION_JSON, json_response},
    },
    model::{ReplicaId, StreamName},
    telemetry::metrics,
    upstream::StreamStatus,
};

/// The Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The states in which a stream receives all configured topics. `recovering` only waits for a snapshot.
const LIVE: [&str; 2] = ["live", "recovering"];

/// The checks of readiness.
#[derive(Debug)]
pub(super) struct ReadinessReport {
    /// Ok, or why the store is not writable.
    pub(super) store: Result<(), String>,
    /// Ok, or why this replica is not a member; none without replicas.
    pub(super) replica: Option<Result<(), String>>,
    /// Warnings about the store.
    pub(super) warnings: Vec<String>,
    pub(super) draining: bool,
    pub(super) streams: BTreeMap<StreamName, &'static str>,
    /// Why streams are not live or degraded.
    pub(super) reasons: BTreeMap<StreamName, String>,
}

impl ReadinessReport {
    /// 200 if consumers can be served, else 503, with all checks.
    pub(super) fn response(&self, every_stream_live: bool) -> Response {
        let live = !every_stream_live || self.streams.values().all(|state| LIVE.contains(state));
        let ready = self.ready() && live;
        let mut body = json!({
            "ready": ready,
            "checks": { "store": self.store_status(), "draining": self.draining },
            "warnings": self.warnings,
            "streams": self.streams,
        });
        if let Some(replica) = &self.replica {
            body["checks"]["replica"] = json!(replica.as_ref().map_or_else(String::as_str, |()| "ok"));
        }
        if !self.reasons.is_empty() {
            body["reasons"] = json!(self.reasons);
        }
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_response(status, APPLICATION_JSON, &body)
    }

    fn ready(&self) -> bool {
        self.store.is_ok() && !matches!(self.replica, Some(Err(_))) && !self.draining
    }

    /// Each reason why the process is not ready.
    fn not_ready(&self) -> Vec<String> {
        let store = self.store.as_ref().err().map(|why| format!("store: {why}"));
        let replica = self.replica.as_ref().and_then(|replica| replica.as_ref().err());
        let draining = self.draining.then(|| "draining".to_owned());
        [store, replica.map(|why| format!("replica: {why}")), draining].into_iter().flatten().collect()
    }

    fn store_status(&self) -> &str {
        self.store.as_ref().map_or_else(String::as_str, |()| "ok")
    }
}

/// The whole status.
#[derive(Debug)]
pub(super) struct AdminStatus {
    pub(super) uptime: Duration,
    pub(super) report: ReadinessReport,
    pub(super) streams: Vec<StreamStatus>,
    pub(super) accounts: Vec<AccountStatus>,
    pub(super) connections: ConnectionBudget,
    pub(super) replica: Option<ReplicaMembers>,
}

/// This replica and all live members that it sees.
#[derive(Debug)]
pub(super) struct ReplicaMembers {
    me: ReplicaId,
    members: Vec<ReplicaId>,
}

impl ReplicaMembers {
    pub(super) fn of(replica: &Replica) -> Self {
        let mut members = replica.members();
        members.sort_unstable();
        Self { me: replica.id(), members }
    }

    fn member_names(&self) -> Vec<String> {
        self.members.iter().map(ToString::to_string).collect()
    }
}

impl AdminStatus {
    pub(super) fn response(&self) -> Response {
        let mut body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.uptime.as_secs(),
            "ready": self.report.ready(),
            "not_ready": self.report.not_ready(),
            "draining": self.report.draining,
            "store": self.report.store_status(),
            "streams": self.streams,
            "accounts": self.accounts,
            "connections_max": { "consumers": self.connections.consumers, "operators": self.connections.operators },
            "subscribers": metrics::subscribers().into_iter().collect::<BTreeMap<_, _>>(),
        });
        if let Some(among) = &self.replica {
            body["replica"] = json!(among.me.to_string());
            body["members"] = json!(among.member_names());
        }
        json_response(StatusCode::OK, APPLICATION_JSON, &body)
    }
}

/// The metrics page. The permit is released after it was sent.
pub(super) fn metrics(page: Bytes, gzip: bool, permit: OwnedSemaphorePermit) -> Response {
    let len = page.len();
    let encoding = gzip.then_some([(CONTENT_ENCODING, "gzip")]);
    let body = stream::iter(pieces(page)).map(move |piece| {
        let _until_sent = &permit;
        Ok::<_, Infallible>(piece)
    });
    let headers = [(CONTENT_TYPE, METRICS_TYPE), NO_STORE, (VARY, "accept-encoding")];
    (headers, encoding, [(CONTENT_LENGTH, len)], Body::from_stream(body)).into_response()
}

/// Whether the client accepts gzip, which reduces the page to a twentieth.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// The page as gzip with fast compression.
pub(super) fn compressed(page: &str) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(page.as_bytes()).and_then(|()| encoder.finish());
    written.expect("writing to memory does not fail").into()
}

fn pieces(page: Bytes) -> impl Iterator<Item = Bytes> {
    let starts = (0..page.len()).step_by(PIECE_LEN);
    starts.map(move |start| page.slice(start..page.len().min(start + PIECE_LEN)))
}

/// Bytes passed to a connection at a time.
const PIECE_LEN: usize = 64 * 1024;

/// The liveness response.
pub(super) fn health() -> Response {
    ([NO_STORE], "ok\n").into_response()
}

/// The response to an accepted command, which may not be completed yet.
pub(super) fn accepted() -> Response {
    json_response(StatusCode::ACCEPTED, APPLICATION_JSON, &json!({ "accepted": true }))
}

/// Responses are valid only at the time of the request.
const NO_STORE: (HeaderName, &str) = (CACHE_CONTROL, "no-store");

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::Value;

    use super::*;

    fn report(store: Result<(), String>, draining: bool, states: [&'static str; 2]) -> ReadinessReport {
        let names = ["agents", "queues"].map(|name| name.parse().unwrap());
        ReadinessReport {
            store,
            replica: None,
            warnings: Vec::new(),
            draining,
            streams: names.into_iter().zip(states).collect(),
            reasons: BTreeMap::new(),
        }
    }

    #[test]
    fn gzip_needs_accept_encoding() {
        for (accepted, taken) in [
            ("gzip", true),
            ("deflate, GZIP ; q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("gzipped", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, accepted.parse().unwrap())]);
            assert_eq!(accepts_gzip(&headers), taken, "{accepted}");
        }
    }

    async fn body(response: Response) -> Value {
        serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap()
    }

    #[test]
    fn readiness_does_not_depend_on_the_platform() {
        let full = || Err("no room".to_owned());
        for (store, draining, states, ready, all_live) in [
            (Ok(()), false, ["live", "live"], 200, 200),
            (Ok(()), false, ["live", "recovering"], 200, 200),
            (Ok(()), false, ["live", "backing-off"], 200, 503),
            (Ok(()), false, ["live", "degraded"], 200, 503),
            (Ok(()), true, ["live", "live"], 503, 503),
            (full(), false, ["live", "live"], 503, 503),
        ] {
            let report = report(store, draining, states);
            assert_eq!(report.response(false).status(), ready, "{report:?}");
            assert_eq!(report.response(true).status(), all_live, "{report:?}");
        }
    }

    #[tokio::test]
    async fn an_unrenewed_replica_is_not_ready() {
        let report = |replica| ReadinessReport { replica: Some(replica), ..report(Ok(()), false, ["live", "live"]) };
        let failing = report(Err("no answer".to_owned()));
        assert_eq!(failing.response(false).status(), 503);
        assert_eq!(body(failing.response(false)).await["checks"]["replica"], "no answer");
        assert_eq!(report(Ok(())).response(false).status(), 200);
    }

    #[tokio::test]
    async fn readiness_lists_its_checks() {
        let shown = body(report(Err("no room".to_owned()), false, ["live", "paused"]).response(false)).await;
        assert_eq!(
            shown,
            json!({
                "ready": false,
                "checks": { "store": "no room", "draining": false },
                "warnings": [],
                "streams": { "agents": "live", "queues": "paused" },
            })
        );
    }

    #[tokio::test]
    async fn status_names_each_reason_why_it_is_not_ready() {
        let ready = status(report(Ok(()), false, ["live", "live"]), None);
        assert_eq!(body(ready.response()).await["not_ready"], json!([]));
        let all = ReadinessReport {
            replica: Some(Err("no answer".to_owned())),
            ..report(Err("no room".to_owned()), true, ["live", "live"])
        };
        let shown = body(status(all, None).response()).await;
        let expected = json!(["store: no room", "replica: no answer", "draining"]);
        assert_eq!((&shown["ready"], &shown["not_ready"]), (&json!(false), &expected));
    }

    #[tokio::test]
    async fn json_ends_with_a_newline_so_that_a_shell_prompt_begins_a_line() {
        let report = || report(Ok(()), false, ["live", "live"]);
        for answer in [report().response(false), status(report(), None).response(), accepted()] {
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
            let text = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert!(text.ends_with(b"}\n"), "{text:?}");
        }
    }

    #[tokio::test]
    async fn status_counts_subscribers_by_transport() {
        let before = shown_subscribers().await;
        let held = metrics::SubscriberMetrics::connected("page");
        let after = shown_subscribers().await;
        drop(held);
        assert!(after["page"].as_i64() > before["page"].as_i64());
        assert_eq!(after.as_object().unwrap().len(), 4);
    }

    async fn shown_subscribers() -> Value {
        let report = report(Ok(()), false, ["live", "live"]);
        let mut shown = body(status(report, None).response()).await;
        assert_eq!(shown["uptime_seconds"], 61);
        assert_eq!(shown["connections_max"], json!({ "consumers": 10, "operators": 8 }));
        assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
        shown["subscribers"].take()
    }

    fn status(report: ReadinessReport, among: Option<ReplicaMembers>) -> AdminStatus {
        let connections = ConnectionBudget { consumers: 10, operators: 8 };
        let (streams, accounts) = (Vec::new(), Vec::new());
        AdminStatus { uptime: Duration::from_secs(61), report, streams, accounts, connections, replica: among }
    }

    #[tokio::test]
    async fn status_shows_the_replica_and_its_members() {
        let live = || report(Ok(()), false, ["live", "live"]);
        let alone = body(status(live(), None).response()).await;
        assert!(alone["replica"].is_null() && alone["members"].is_null());
        let among = ReplicaMembers { me: ReplicaId(0x2a), members: vec![ReplicaId(0x1b), ReplicaId(0x2a)] };
        let shown = body(status(live(), Some(among)).response()).await;
        assert_eq!(shown["replica"], "000000000000002a");
        assert_eq!(shown["members"], json!(["000000000000001b", "000000000000002a"]));
    }
}
