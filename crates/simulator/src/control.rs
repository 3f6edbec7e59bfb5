//! The simulator's own calls, under `/simulate/v1`: make something go wrong, say something, count. They belong to
//! no platform and ask for no token; the simulator listens where its owner lets it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::fault::Fault;
use super::platform::Platform;
use super::tally::Tally;

/// Most events one call may ask for.
const SAY_MAX: u64 = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Say {
    events: u64,
}

pub(super) fn router() -> Router<Arc<Platform>> {
    Router::new()
        .route("/simulate/v1/faults", post(faults))
        .route("/simulate/v1/say", post(say))
        .route("/simulate/v1/tally", get(tally))
}

async fn faults(State(platform): State<Arc<Platform>>, body: Bytes) -> Response {
    let fault: Fault = match serde_json::from_slice(&body) {
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

async fn say(State(platform): State<Arc<Platform>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Say>(&body) {
        Ok(Say { events }) if events <= SAY_MAX => {
            platform.say(events);
            StatusCode::ACCEPTED.into_response()
        }
        Ok(Say { events }) => problem(&format!("events is at most {SAY_MAX}, not {events}")),
        Err(error) => problem(&error),
    }
}

async fn tally(State(platform): State<Arc<Platform>>) -> Json<Tally> {
    Json(platform.tally())
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
    use crate::probe::Probe;

    #[tokio::test]
    async fn faults_events_and_figures_are_there_for_scripts() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        let say = probe.call(Method::POST, "/simulate/v1/say", Some(json!({"events": 3}))).await;
        assert_eq!(say.status(), 202);
        assert_eq!(ear.sequences(3).await, [1, 2, 3]);
        let drop = json!({"fault": "drop", "on": "sequenced"});
        assert_eq!(probe.call(Method::POST, "/simulate/v1/faults", Some(drop)).await.status(), 202);
        assert_eq!(ear.closed().await, None);
        let tally = probe.get("/simulate/v1/tally").await;
        assert_eq!((&tally["events_said"], &tally["last_sequence"]), (&json!(3), &json!(3)));
        assert_eq!(tally["sockets"]["sequenced"]["total"], 1);
    }

    #[tokio::test]
    async fn a_fault_that_is_unknown_or_impossible_is_a_problem() {
        let probe = Probe::start(Settings::default()).await;
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
