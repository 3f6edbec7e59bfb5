//! The calls that read the state: users, queues, conversations. Their answers match exactly the events so far. They
//! change nothing.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::parameter;
use crate::clock::stamp;
use crate::platform::SimulatedPlatform;
use crate::reply;

const PAGE_SIZE: usize = 25;
const PAGE_SIZE_MAX: usize = 100;

/// Parts of a user that are sent only on request.
const EXPANSIONS: [&str; 4] = ["presence", "routingStatus", "conversationSummary", "outOfOffice"];

/// `GET /api/v2/users?expand=…&pageSize&pageNumber`
pub(super) async fn users(State(platform): State<Arc<SimulatedPlatform>>, RawQuery(query): RawQuery) -> Response {
    let expand = parameter(query.as_deref(), "expand").unwrap_or_default();
    let requested: Vec<&str> = expand.split(',').collect();
    let mut users = {
        let state = platform.lock();
        state.world.view().users(state.world.roster())
    };
    for user in &mut users {
        let Some(user) = user.as_object_mut() else {
            continue;
        };
        user.retain(|key, _| !EXPANSIONS.contains(&key.as_str()) || requested.contains(&key.as_str()));
    }
    page("/api/v2/users", users, query.as_deref())
}

/// `GET /api/v2/routing/queues?pageSize&pageNumber`
pub(super) async fn queues(State(platform): State<Arc<SimulatedPlatform>>, RawQuery(query): RawQuery) -> Response {
    let state = platform.lock();
    let entity = |queue: &crate::world::Queue| json!({"id": queue.id, "name": queue.name});
    let queues = state.world.roster().queues.iter().map(entity).collect();
    drop(state);
    page("/api/v2/routing/queues", queues, query.as_deref())
}

/// `GET /api/v2/users/{id}/presences/purecloud`
pub(super) async fn presence(State(platform): State<Arc<SimulatedPlatform>>, Path(id): Path<String>) -> Response {
    let state = platform.lock();
    match state.world.roster().agent(&id) {
        Some(agent) => Json(state.world.view().presence(agent)).into_response(),
        None => no_user(),
    }
}

/// `GET /api/v2/users/{id}/routingstatus`
pub(super) async fn routing_status(State(platform): State<Arc<SimulatedPlatform>>, Path(id): Path<String>) -> Response {
    let state = platform.lock();
    let roster = state.world.roster();
    match roster.agent(&id) {
        Some(agent) => Json(state.world.view().routing_status(roster, agent)).into_response(),
        None => no_user(),
    }
}

/// `POST /api/v2/analytics/queues/observations/query`
pub(super) async fn observations(State(platform): State<Arc<SimulatedPlatform>>, body: Bytes) -> Response {
    let Ok(query) = serde_json::from_slice::<Value>(&body) else {
        return reply::bad_request("The query is no JSON.");
    };
    let wanted = queues_in(&query["filter"]);
    let details = query["detailMetrics"].as_array().is_some_and(|metrics| !metrics.is_empty());
    let state = platform.lock();
    let (roster, view) = (state.world.roster(), state.world.view());
    let results: Vec<Value> = (0..roster.queues.len())
        .filter(|queue| wanted.is_empty() || wanted.contains(&roster.queues[*queue].id))
        .map(|queue| chosen(view.observation(roster, queue, details), &query["metrics"]))
        .collect();
    let mappings = json!({
        "AVAILABLE": ["6a3af858-942f-489d-9700-5f9bcdcdae9b"],
        "ON_QUEUE": ["e08eaf1b-ee47-4fa9-a231-1200e284798f"],
    });
    Json(json!({"systemToOrganizationMappings": mappings, "results": results})).into_response()
}

/// `GET /api/v2/analytics/conversations/summary`: the snapshot of the numbered stream, and its position.
pub(super) async fn summary(State(platform): State<Arc<SimulatedPlatform>>) -> Response {
    let state = platform.lock();
    let (roster, view) = (state.world.roster(), state.world.view());
    let queues: Vec<Value> = (0..roster.queues.len()).map(|queue| view.observation(roster, queue, false)).collect();
    let body = json!({
        "sequenceId": state.sequence.last(), "asOf": stamp(state.world.scenario_time()),
        "conversations": view.conversations(roster), "queues": queues,
    });
    Json(body).into_response()
}

fn no_user() -> Response {
    reply::error(StatusCode::NOT_FOUND, "not.found", "The requested user was not found.")
}

/// The queue ids that a filter's predicates name; clauses nest.
fn queues_in(filter: &Value) -> Vec<String> {
    let list = |name: &str| filter[name].as_array().into_iter().flatten();
    let named = list("predicates").filter(|predicate| predicate["dimension"] == "queueId");
    let mut queues: Vec<String> =
        named.filter_map(|predicate| predicate["value"].as_str().map(str::to_owned)).collect();
    for clause in list("clauses") {
        queues.extend(queues_in(clause));
    }
    queues
}

/// Only the requested metrics; all of them if the request has none.
fn chosen(mut result: Value, metrics: &Value) -> Value {
    if let (Some(data), Some(metrics)) = (result["data"].as_array_mut(), metrics.as_array()) {
        data.retain(|entry| metrics.contains(&entry["metric"]));
    }
    result
}

fn page(path: &str, all: Vec<Value>, query: Option<&str>) -> Response {
    let number = |name| parameter(query, name).map(|text| text.parse::<usize>());
    let (Ok(size), Ok(number)) = (number("pageSize").transpose(), number("pageNumber").transpose()) else {
        return reply::bad_request("pageSize and pageNumber are numbers.");
    };
    let (size, number) = (size.unwrap_or(PAGE_SIZE), number.unwrap_or(1));
    if !(1..=PAGE_SIZE_MAX).contains(&size) || number == 0 {
        return reply::bad_request("pageSize is 1 to 100, pageNumber at least 1.");
    }
    let (total, pages) = (all.len(), all.len().div_ceil(size));
    let uri = |number: usize| format!("{path}?pageSize={size}&pageNumber={number}");
    let entities: Vec<Value> = all.into_iter().skip((number - 1).saturating_mul(size)).take(size).collect();
    let mut body = json!({
        "entities": entities, "pageSize": size, "pageNumber": number, "total": total, "pageCount": pages,
        "selfUri": uri(number), "firstUri": uri(1), "lastUri": uri(pages.max(1)),
    });
    if number < pages {
        body["nextUri"] = json!(uri(number + 1));
    }
    Json(body).into_response()
}
