//! What the admin listener shows, as text and JSON. Pure: the parts have been asked already.

use std::{collections::BTreeMap, time::Duration};

use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    auth::AccountStatus,
    listener::{Body, whole},
    model::StreamName,
    telemetry::metrics,
    upstream::StreamStatus,
};

/// The Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The state in which a stream hears its platform.
const LIVE: &str = "live";

/// What readiness rests on.
#[derive(Debug)]
pub(super) struct Report {
    /// Why the store cannot be written, if it cannot.
    pub(super) store: Result<(), String>,
    pub(super) draining: bool,
    pub(super) streams: BTreeMap<StreamName, &'static str>,
}

impl Report {
    /// 200 when consumers can be served, else 503; either way with what was found.
    pub(super) fn response(&self, every_stream_live: bool) -> Response<Body> {
        let live = !every_stream_live || self.streams.values().all(|state| *state == LIVE);
        let ready = self.ready() && live;
        let body = json!({
            "ready": ready,
            "checks": { "store": self.store_shown(), "draining": self.draining },
            "streams": self.streams,
        });
        let mut response = json(&body);
        if !ready {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }

    fn ready(&self) -> bool {
        self.store.is_ok() && !self.draining
    }

    fn store_shown(&self) -> &str {
        self.store.as_ref().map_or_else(String::as_str, |()| "ok")
    }
}

/// Everything that an operator wants to see at once.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) uptime: Duration,
    pub(super) report: Report,
    pub(super) streams: Vec<StreamStatus>,
    pub(super) accounts: Vec<AccountStatus>,
}

impl Status {
    pub(super) fn response(&self) -> Response<Body> {
        json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.uptime.as_secs(),
            "ready": self.report.ready(),
            "draining": self.report.draining,
            "store": self.report.store_shown(),
            "streams": self.streams,
            "accounts": self.accounts,
            "subscribers": metrics::subscribers().into_iter().collect::<BTreeMap<_, _>>(),
        }))
    }
}

/// The whole metrics page.
pub(super) fn metrics() -> Response<Body> {
    answer(METRICS_TYPE, metrics::page())
}

pub(super) fn text(text: &'static str) -> Response<Body> {
    answer("text/plain; charset=utf-8", text.to_owned())
}

/// A wish was passed on; it is not fulfilled yet.
pub(super) fn accepted() -> Response<Body> {
    let mut response = json(&json!({ "accepted": true }));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

fn json(value: &impl Serialize) -> Response<Body> {
    answer("application/json", serde_json::to_string(value).expect("our own values always serialize"))
}

fn answer(media_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(whole(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    fn report(store: Result<(), String>, draining: bool, states: [&'static str; 2]) -> Report {
        let names = ["agents", "queues"].map(|name| name.parse().unwrap());
        Report { store, draining, streams: names.into_iter().zip(states).collect() }
    }

    async fn body(response: Response<Body>) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[test]
    fn ready_means_that_consumers_can_be_served_whatever_the_platform_does() {
        let full = || Err("no room".to_owned());
        for (store, draining, states, ready, all_live) in [
            (Ok(()), false, ["live", "live"], 200, 200),
            (Ok(()), false, ["live", "backing-off"], 200, 503),
            (Ok(()), true, ["live", "live"], 503, 503),
            (full(), false, ["live", "live"], 503, 503),
        ] {
            let report = report(store, draining, states);
            assert_eq!(report.response(false).status(), ready, "{report:?}");
            assert_eq!(report.response(true).status(), all_live, "{report:?}");
        }
    }

    #[tokio::test]
    async fn readiness_says_what_it_rests_on() {
        let shown = body(report(Err("no room".to_owned()), false, ["live", "paused"]).response(false)).await;
        assert_eq!(
            shown,
            json!({
                "ready": false,
                "checks": { "store": "no room", "draining": false },
                "streams": { "agents": "live", "queues": "paused" },
            })
        );
    }

    #[tokio::test]
    async fn status_counts_subscribers_by_transport() {
        let before = shown_subscribers().await;
        let held = metrics::Subscriber::connected("page");
        let after = shown_subscribers().await;
        drop(held);
        assert!(after["page"].as_i64() > before["page"].as_i64());
        assert_eq!(after.as_object().unwrap().len(), 4);
    }

    async fn shown_subscribers() -> Value {
        let report = report(Ok(()), false, ["live", "live"]);
        let status = Status { uptime: Duration::from_secs(61), report, streams: Vec::new(), accounts: Vec::new() };
        let mut shown = body(status.response()).await;
        assert_eq!(shown["uptime_seconds"], 61);
        assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
        shown["subscribers"].take()
    }
}
