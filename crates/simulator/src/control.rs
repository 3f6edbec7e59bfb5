//! The simulator's own calls under `/simulate/v1`: inject a fault, emit events, read counters. They are not part of a
//! platform and need no token.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::counters::SimulatorCounters;
use super::fault::PlatformFault;
use super::platform::SimulatedPlatform;

/// Most events of one call.
const EMIT_MAX: u64 = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmitRequest {
    events: u64,
}

pub(super) fn router() -> Router<Arc<SimulatedPlatform>> {
    Router::new()
        .route("/simulate/v1/faults", post(faults))
        .route("/simulate/v1/say", post(emit))
        .route("/simulate/v1/tally", get(counters))
}

async fn faults(State(platform): State<Arc<SimulatedPlatform>>, body: Bytes) -> Response {
    let fault: PlatformFault = match serde_json::from_slice(&body) {
        Ok(fault) => fault,
        Err(error) => return problem(&error),
    };
    match fault.check() {
        Ok(()) => {
            platform.inject(fault);
            StatusCode::ACCEPTED.into_response()
        }
        Err(error) => problem(&error),
    }
}

async fn emit(State(platform): State<Arc<SimulatedPlatform>>, body: Bytes) -> Response {
    match serde_json::from_slice::<EmitRequest>(&body) {
        Ok(EmitRequest { events }) if events <= EMIT_MAX => {
            platform.emit(events);
            StatusCode::ACCEPTED.into_response()
        }
        Ok(EmitRequest { events }) => problem(&format!("events is at most {EMIT_MAX}, not {events}")),
        Err(error) => problem(&error),
    }
}

async fn counters(State(platform): State<Arc<SimulatedPlatform>>) -> Json<SimulatorCounters> {
    Json(platform.counters())
}

fn problem(detail: &impl ToString) -> Response {
    let body = json!({
        "type": "about:blank", "title": "Bad Request", "status": 400, "detail": detail.to_string(),
    });
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::BAD_REQUEST, kind, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use reqwest::Method;
    use serde_json::{Value, json};

    use crate::Settings;
    use crate::probe::SimulatorProbe;

    #[tokio::test]
    async fn scripts_can_inject_faults_emit_events_and_read_counters() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        let emit = probe.call(Method::POST, "/simulate/v1/say", Some(json!({"events": 3}))).await;
        assert_eq!(emit.status(), 202);
        assert_eq!(socket.sequences(3).await, [1, 2, 3]);
        let drop = json!({"fault": "drop", "on": "sequenced"});
        assert_eq!(probe.call(Method::POST, "/simulate/v1/faults", Some(drop)).await.status(), 202);
        assert_eq!(socket.closed().await, None);
        let counters = probe.get("/simulate/v1/tally").await;
        assert_eq!((&counters["events_said"], &counters["last_sequence"]), (&json!(3), &json!(3)));
        assert_eq!(counters["sockets"]["sequenced"]["total"], 1);
    }

    #[tokio::test]
    async fn an_unknown_or_impossible_fault_is_rejected_with_a_problem() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        for (fault, word) in [
            (json!({"fault": "dorp"}), "dorp"),
            (json!({"fault": "drop", "hwo": 1}), "hwo"),
            (json!({"fault": "jump", "n": 0}), "n must be"),
        ] {
            let answer = probe.call(Method::POST, "/simulate/v1/faults", Some(fault)).await;
            assert_eq!(answer.status(), 400);
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let body: Value = answer.json().await.unwrap();
            assert!(body["detail"].as_str().unwrap().contains(word), "{body}");
        }
    }
}
