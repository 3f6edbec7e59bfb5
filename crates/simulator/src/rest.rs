//! The REST API: the checks before every call (the bearer, the request limit) and the routes.
//! Calls without a valid token are rejected, as the platform does.

pub(super) mod notifications;
mod snapshots;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::clock::{after, now};
use super::form;
use super::platform::SimulatedPlatform;
use super::reply;
use super::tokens::{RateUsage, TokenRejection};

const COUNT: HeaderName = HeaderName::from_static("inin-ratelimit-count");
const ALLOWED: HeaderName = HeaderName::from_static("inin-ratelimit-allowed");
const RESET: HeaderName = HeaderName::from_static("inin-ratelimit-reset");

/// The caller of a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) token: String,
    /// The end of the token plus the grace.
    pub(super) token_expires_at: Instant,
    /// The host of the request, for links.
    pub(super) host: String,
}

pub(super) fn router(platform: &Arc<SimulatedPlatform>) -> Router<Arc<SimulatedPlatform>> {
    use notifications as n;
    use snapshots as s;
    Router::new()
        .route("/api/v2/notifications/channels", post(n::create).get(n::list))
        // axum answers HEAD with the GET route, without its body.
        .route("/api/v2/notifications/channels/{id}", get(n::exists))
        .route(
            "/api/v2/notifications/channels/{id}/subscriptions",
            get(n::subscriptions).post(n::add).put(n::replace).delete(n::remove),
        )
        .route("/api/v2/notifications/availabletopics", get(n::topics))
        .route("/api/v2/users", get(s::users))
        .route("/api/v2/users/{id}/presences/purecloud", get(s::presence))
        .route("/api/v2/users/{id}/routingstatus", get(s::routing_status))
        .route("/api/v2/routing/queues", get(s::queues))
        .route("/api/v2/analytics/queues/observations/query", post(s::observations))
        .route("/api/v2/analytics/conversations/summary", get(s::summary))
        .route_layer(from_fn_with_state(platform.clone(), guard))
}

/// Passes a call on, or rejects it: the bearer is checked first, then the limit.
async fn guard(State(platform): State<Arc<SimulatedPlatform>>, mut request: Request, next: Next) -> Response {
    let caller = match identify(&platform, request.headers()) {
        Ok(caller) => caller,
        Err(unwelcome) => return reply::unauthorized(&platform, unwelcome),
    };
    let usage = platform.lock().tokens.count(&caller.token, now());
    let allowed = platform.settings.requests_per_minute;
    request.extensions_mut().insert(caller);
    let answer = if usage.count > allowed { too_many(allowed, usage) } else { next.run(request).await };
    limited(reply::correlated(&platform, answer), allowed, usage)
}

fn identify(platform: &SimulatedPlatform, headers: &HeaderMap) -> Result<Caller, TokenRejection> {
    let token = reply::bearer(headers).ok_or(TokenRejection::Missing)?;
    let token_ends = platform.lock().tokens.check(Some(token), now())?;
    let ends = after(token_ends, platform.settings.grace);
    Ok(Caller { token: token.to_owned(), token_expires_at: ends, host: host(headers) })
}

fn host(headers: &HeaderMap) -> String {
    let host = headers.get(axum::http::header::HOST).and_then(|host| host.to_str().ok());
    host.unwrap_or("127.0.0.1").to_owned()
}

fn too_many(allowed: u32, usage: RateUsage) -> Response {
    let message = format!("Rate limit exceeded the maximum [{allowed}] requests within [60] seconds");
    let mut body = reply::error_body(StatusCode::TOO_MANY_REQUESTS, "too.many.requests", &message);
    body["limit"] = json!({"key": "token.rate.per.minute", "namespace": "platform.api", "value": allowed});
    let answer = (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response();
    reply::retry_after(answer, Some(&(usage.reset.as_secs() + 1).to_string()))
}

fn limited(mut answer: Response, allowed: u32, usage: RateUsage) -> Response {
    let headers = answer.headers_mut();
    headers.insert(COUNT, HeaderValue::from(usage.count));
    headers.insert(ALLOWED, HeaderValue::from(allowed));
    headers.insert(RESET, HeaderValue::from(usage.reset.as_secs()));
    answer
}

/// One parameter of a query.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = form::pairs(query?)?;
    form::value(&pairs, name).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use reqwest::Method;
    use serde_json::{Value, json};

    use crate::probe::{ProbeSocket, SimulatorProbe};
    use crate::{PlatformFault, Settings};

    const CHANNELS: &str = "/api/v2/notifications/channels";

    #[tokio::test]
    async fn a_call_without_a_valid_token_gets_the_platforms_error() {
        let mut probe = SimulatorProbe::start(Settings::default()).await;
        let bare = probe.http.get(probe.simulator.url() + "/api/v2/users").send().await.unwrap();
        assert_eq!(bare.status(), 401);
        assert!(bare.headers().contains_key("inin-correlation-id"));
        let body: Value = bare.json().await.unwrap();
        assert_eq!(body["code"], "authentication.required");
        assert_eq!(body["message"], "No authentication bearer token specified in authorization header.");
        probe.token = "nonsense".to_owned();
        assert_eq!(probe.get("/api/v2/users").await["code"], "bad.credentials");
    }

    #[tokio::test]
    async fn every_response_has_rate_limit_headers_and_excess_calls_get_429() {
        let probe = SimulatorProbe::start(Settings { requests_per_minute: 2, ..Settings::default() }).await;
        for count in ["1", "2"] {
            let answer = probe.call(Method::GET, "/api/v2/routing/queues", None).await;
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["inin-ratelimit-count"]),
                (200, &count.parse().unwrap())
            );
            assert_eq!(answer.headers()["inin-ratelimit-allowed"], "2");
        }
        let answer = probe.call(Method::GET, "/api/v2/routing/queues", None).await;
        assert_eq!(answer.status(), 429);
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=61).contains(&wait));
    }

    #[tokio::test]
    async fn a_fault_applies_to_matching_calls_only() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let path = Some("/api/v2/routing".to_owned());
        probe.simulator.inject(PlatformFault::Rest { status: 503, times: 1, retry_after: Some("3".to_owned()), path });
        assert_eq!(probe.call(Method::GET, "/api/v2/users", None).await.status(), 200);
        let failed = probe.call(Method::GET, "/api/v2/routing/queues", None).await;
        assert_eq!((failed.status().as_u16(), &failed.headers()["retry-after"]), (503, &"3".parse().unwrap()));
        assert_eq!(probe.call(Method::GET, "/api/v2/routing/queues", None).await.status(), 200);
        assert_eq!(probe.simulator.counters().rest["GET /api/v2/routing/queues"], 2);
    }

    #[tokio::test]
    async fn a_channel_can_be_created_read_and_listed() {
        let mut probe = SimulatorProbe::start(Settings::default()).await;
        let (id, uri) = probe.channel().await;
        assert_eq!(uri, probe.ws(&format!("/channels/{id}")));
        assert_eq!(probe.call(Method::HEAD, &format!("{CHANNELS}/{id}"), None).await.status(), 200);
        assert_eq!(probe.call(Method::HEAD, &format!("{CHANNELS}/other"), None).await.status(), 404);
        let listed = probe.get(&format!("{CHANNELS}?includechannels=token")).await;
        assert_eq!(listed["entities"][0]["id"], *id);
        assert!(listed["entities"][0]["expires"].as_str().unwrap().ends_with('Z'));
        probe.renew_token().await;
        let of_token = probe.get(&format!("{CHANNELS}?includechannels=token")).await;
        let of_client = probe.get(&format!("{CHANNELS}?includechannels=oauthclient")).await;
        let count = |list: &Value| list["entities"].as_array().unwrap().len();
        assert_eq!((count(&of_token), count(&of_client)), (0, 1));
    }

    #[tokio::test]
    async fn the_21st_channel_deletes_an_unconnected_one() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (first, uri) = probe.channel().await;
        let _ear = ProbeSocket::open(&uri, None).await.unwrap();
        let (second, _) = probe.channel().await;
        for _ in 0..19 {
            probe.channel().await;
        }
        assert_eq!(probe.call(Method::HEAD, &format!("{CHANNELS}/{first}"), None).await.status(), 200);
        assert_eq!(probe.call(Method::HEAD, &format!("{CHANNELS}/{second}"), None).await.status(), 404);
        assert_eq!(probe.simulator.counters().channels_created, 21);
    }

    #[tokio::test]
    async fn subscriptions_are_added_replaced_and_removed() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, _) = probe.channel().await;
        let topics = probe.all_topics();
        let path = format!("{CHANNELS}/{id}/subscriptions");
        probe.subscribe(&id, &topics[..1]).await;
        let answer: Value = probe.subscribe(&id, &topics[1..3]).await.json().await.unwrap();
        assert_eq!(
            (&answer["entities"][0]["id"], &answer["entities"][0]["state"]),
            (&json!(topics[1]), &json!("Permitted"))
        );
        let count = async || probe.get(&path).await["entities"].as_array().unwrap().len();
        assert_eq!(count().await, 3);
        probe.call(Method::PUT, &path, Some(json!([{"id": topics[4]}]))).await;
        assert_eq!(count().await, 1);
        probe.call(Method::DELETE, &path, None).await;
        assert_eq!(count().await, 0);
    }

    #[tokio::test]
    async fn one_bad_topic_fails_the_batch_unless_errors_are_ignored() {
        let settings = Settings { forbidden_topics: vec!["v2.analytics.".to_owned()], ..Settings::default() };
        let probe = SimulatorProbe::start(settings).await;
        let (id, _) = probe.channel().await;
        let user = &probe.simulator.agent_ids()[0];
        let queue = &probe.simulator.queue_ids()[0];
        let forbidden = format!("v2.analytics.queues.{queue}.observations");
        let batch = [format!("v2.users.{user}?presence&shoeSize"), forbidden.clone()];
        assert_eq!(probe.subscribe(&id, &batch).await.status(), 400);
        let path = format!("{CHANNELS}/{id}/subscriptions");
        let body = batch.iter().map(|topic| json!({"id": topic})).collect();
        let answer = probe.call(Method::POST, &format!("{path}?ignoreErrors=true"), Some(body)).await;
        let answer: Value = answer.json().await.unwrap();
        let states: Vec<(&str, &str)> = answer["entities"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entity| (entity["id"].as_str().unwrap(), entity["state"].as_str().unwrap()))
            .collect();
        let part = format!("v2.users.{user}.shoeSize");
        assert_eq!(states, [(batch[0].as_str(), "Permitted"), (&part, "Rejected"), (&forbidden, "Rejected")]);
        assert_eq!(answer["entities"][2]["missingPermissions"], json!(["analytics:queueObservation:view"]));
        assert_eq!(probe.get(&path).await["entities"].as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_channel_takes_a_thousand_topics_and_no_more() {
        let probe = SimulatorProbe::start(Settings { agents: 260, ..Settings::default() }).await;
        let (id, _) = probe.channel().await;
        let topics = probe.all_topics();
        assert!(topics.len() > 1_001);
        assert_eq!(probe.subscribe(&id, &topics[..1_001]).await.status(), 400);
        assert_eq!(probe.subscribe(&id, &topics[..1_000]).await.status(), 200);
    }

    #[tokio::test]
    async fn users_and_queues_are_paged_with_requested_expansions() {
        let probe = SimulatorProbe::start(Settings { agents: 30, queues: 4, ..Settings::default() }).await;
        let first = probe.get("/api/v2/users?expand=presence,routingStatus").await;
        assert_eq!((&first["total"], &first["pageCount"], &first["pageSize"]), (&json!(30), &json!(2), &json!(25)));
        assert_eq!(first["nextUri"], "/api/v2/users?pageSize=25&pageNumber=2");
        let user = &first["entities"][0];
        assert_eq!(user["routingStatus"]["status"], "IDLE");
        assert_eq!(user["presence"]["presenceDefinition"]["systemPresence"], "ON_QUEUE");
        assert!(user.get("conversationSummary").is_none());
        let second = probe.get("/api/v2/users?pageNumber=2").await;
        assert_eq!(second["entities"].as_array().unwrap().len(), 5);
        assert!(second.get("nextUri").is_none() && second["entities"][0].get("presence").is_none());
        let queues = probe.get("/api/v2/routing/queues?pageSize=3").await;
        assert_eq!(queues["entities"].as_array().unwrap().len(), 3);
        assert_eq!(probe.call(Method::GET, "/api/v2/users?pageSize=1000", None).await.status(), 400);
    }

    #[tokio::test]
    async fn a_snapshot_agrees_with_the_events_before_it() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        for _ in 0..5 {
            probe.simulator.emit(97);
            let events = socket.events(97).await;
            let last = |kind: &str| events.iter().rev().find(|event| event["eventType"] == kind).cloned().unwrap();
            let status = last("v2.users.routingStatus");
            let user = status["eventBody"]["id"].as_str().unwrap();
            let answer = probe.get(&format!("/api/v2/users/{user}/routingstatus")).await;
            assert_eq!(answer["status"], status["eventBody"]["routingStatus"]["status"]);
            let gauges = last("v2.analytics.queues.observations");
            let queue = &gauges["eventBody"]["group"]["queueId"];
            let filter = json!({"type": "or", "predicates": [{"dimension": "queueId", "value": queue}]});
            let query = json!({"filter": filter, "detailMetrics": ["oWaiting"]});
            let path = "/api/v2/analytics/queues/observations/query";
            let answer: Value = probe.call(Method::POST, path, Some(query)).await.json().await.unwrap();
            let (sent, queried) = (&gauges["eventBody"]["data"][0]["metrics"], &answer["results"][0]["data"]);
            for index in 0..8 {
                assert_eq!(sent[index]["stats"], queried[index]["stats"]);
            }
            let waiting = queried[0]["observations"].as_array().unwrap().len();
            assert_eq!(json!(waiting), queried[0]["stats"]["count"]);
        }
        let summary = probe.get("/api/v2/analytics/conversations/summary").await;
        assert_eq!(summary["sequenceId"], 5 * 97);
    }

    #[tokio::test]
    async fn the_catalogue_and_a_users_presence_can_be_read() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let catalogue = probe.get("/api/v2/notifications/availabletopics?expand=permissionDetails").await;
        assert!(catalogue["entities"].as_array().unwrap().len() > 10);
        let user = &probe.simulator.agent_ids()[0];
        let presence = probe.get(&format!("/api/v2/users/{user}/presences/purecloud")).await;
        assert_eq!(presence["presenceDefinition"]["systemPresence"], "ON_QUEUE");
        assert_eq!(probe.get("/api/v2/users/unknown/presences/purecloud").await["code"], "not.found");
    }
}
