//! The calls on notification channels: create, list, check, subscribe. One bad topic fails its whole batch, unless the
//! client asks to ignore errors, as the platform does.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Caller, parameter};
use crate::channels::{ChannelError, SubscriptionChange, TopicParts};
use crate::clock::{now, stamp, wall};
use crate::notifications::closing;
use crate::platform::SimulatedPlatform;
use crate::reply;
use crate::topics::{self, TopicRejection};
use crate::world::{Roster, uuid};

#[derive(Deserialize)]
struct Topic {
    id: String,
}

/// The result of a batch of requested topics.
pub(crate) struct TopicSelection {
    pub(crate) permitted: TopicParts,
    /// In the order of the request. Permitted topics are listed as requested, rejected ones part by part.
    entities: Vec<Value>,
    rejected: usize,
}

/// Parses a batch of requested topics.
pub(crate) fn select_topics(requested: &[String], roster: &Roster, forbidden: &[String]) -> TopicSelection {
    let mut wanted = TopicSelection { permitted: TopicParts::new(), entities: Vec::new(), rejected: 0 };
    for topic in requested {
        let meaning = topics::resolve(topic, roster, forbidden);
        if !meaning.permitted.is_empty() {
            wanted.entities.push(permitted_entity(topic));
            wanted.permitted.insert(topic.clone(), meaning.permitted);
        }
        wanted.rejected += meaning.rejected.len();
        wanted.entities.extend(meaning.rejected.iter().map(|(part, reason)| rejected_entity(part, reason)));
    }
    wanted
}

/// `POST /api/v2/notifications/channels`
pub(super) async fn create(
    State(platform): State<Arc<SimulatedPlatform>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let at = now();
    let mut state = platform.lock();
    let id = format!("streaming-4-{}", uuid(&mut state.rng).replace('-', ""));
    let evicted = state.channels.create(id.clone(), caller.token.clone(), caller.token_expires_at, at);
    state.counters.channels_created += 1;
    if let Some(socket) = evicted {
        state.send_command(socket, closing("The channel was deleted"));
    }
    let expires = state.channels.get(&id, at).map_or(at, |channel| channel.expires_at);
    drop(state);
    Json(entity(&platform, &caller, &id, expires)).into_response()
}

/// `GET /api/v2/notifications/channels?includechannels=token|oauthclient`
pub(super) async fn list(
    State(platform): State<Arc<SimulatedPlatform>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Response {
    let whole_client = parameter(query.as_deref(), "includechannels").as_deref() == Some("oauthclient");
    let state = platform.lock();
    let own = state.channels.list(now()).filter(|(_, channel)| whole_client || channel.token == caller.token);
    let entities: Vec<Value> = own.map(|(id, channel)| entity(&platform, &caller, id, channel.expires_at)).collect();
    Json(json!({ "entities": entities })).into_response()
}

/// `HEAD /api/v2/notifications/channels/{id}`
pub(super) async fn exists(State(platform): State<Arc<SimulatedPlatform>>, Path(id): Path<String>) -> Response {
    let exists = platform.lock().channels.get(&id, now()).is_some();
    if exists { StatusCode::OK.into_response() } else { channel_not_found() }
}

/// `GET /api/v2/notifications/channels/{id}/subscriptions`
pub(super) async fn subscriptions(State(platform): State<Arc<SimulatedPlatform>>, Path(id): Path<String>) -> Response {
    let state = platform.lock();
    let Some(channel) = state.channels.get(&id, now()) else {
        return channel_not_found();
    };
    let entities: Vec<Value> = channel.topics.keys().map(|topic| permitted_entity(topic)).collect();
    Json(json!({ "entities": entities })).into_response()
}

/// `POST …/subscriptions`
pub(super) async fn add(
    state: State<Arc<SimulatedPlatform>>,
    path: Path<String>,
    query: RawQuery,
    body: Bytes,
) -> Response {
    change(&state, &path, &query, &body, SubscriptionChange::Add)
}

/// `PUT …/subscriptions`
pub(super) async fn replace(
    state: State<Arc<SimulatedPlatform>>,
    path: Path<String>,
    query: RawQuery,
    body: Bytes,
) -> Response {
    change(&state, &path, &query, &body, SubscriptionChange::Replace)
}

/// `DELETE …/subscriptions`
pub(super) async fn remove(State(platform): State<Arc<SimulatedPlatform>>, Path(id): Path<String>) -> Response {
    let cleared = platform.lock().channels.clear(&id, now());
    match cleared {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(ChannelError::Gone | ChannelError::TooManyTopics) => channel_not_found(),
    }
}

/// `GET /api/v2/notifications/availabletopics`
pub(super) async fn topics() -> Json<Value> {
    Json(topics::catalogue())
}

fn change(
    platform: &SimulatedPlatform,
    id: &str,
    query: &RawQuery,
    body: &Bytes,
    change: SubscriptionChange,
) -> Response {
    let Ok(requested) = serde_json::from_slice::<Vec<Topic>>(body) else {
        return reply::bad_request("An array of topics is expected.");
    };
    let requested: Vec<String> = requested.into_iter().map(|topic| topic.id).collect();
    let ignore_errors = parameter(query.0.as_deref(), "ignoreErrors").as_deref() == Some("true");
    let mut state = platform.lock();
    let wanted = select_topics(&requested, state.world.roster(), &platform.settings.forbidden_topics);
    if wanted.rejected > 0 && !ignore_errors {
        return reply::bad_request(&format!("{} of the topics cannot be subscribed to.", wanted.rejected));
    }
    match state.channels.subscribe(id, wanted.permitted, change, now()) {
        Ok(()) => Json(json!({ "entities": wanted.entities })).into_response(),
        Err(ChannelError::Gone) => channel_not_found(),
        Err(ChannelError::TooManyTopics) => reply::bad_request("A channel has at most 1000 topics."),
    }
}

fn channel_not_found() -> Response {
    reply::error(StatusCode::NOT_FOUND, "not.found", "The requested channel was not found.")
}

fn entity(platform: &SimulatedPlatform, caller: &Caller, id: &str, expires: Instant) -> Value {
    let left = time::Duration::try_from(expires.saturating_duration_since(now())).unwrap_or(time::Duration::MAX);
    let expires = wall(platform.settings.clock_offset).saturating_add(left);
    json!({"id": id, "connectUri": format!("ws://{}/channels/{id}", caller.host), "expires": stamp(expires)})
}

fn permitted_entity(topic: &str) -> Value {
    json!({"id": topic, "state": "Permitted", "selfUri": format!("/api/v2/notifications/availabletopics/{topic}")})
}

fn rejected_entity(part: &str, reason: &TopicRejection) -> Value {
    let text = match reason {
        TopicRejection::Unknown => "The topic is unknown.",
        TopicRejection::TooLong => "The topic is longer than 200 characters.",
        TopicRejection::NoSuchEntity => "The id does not exist.",
        TopicRejection::Forbidden { .. } => "Permissions are missing.",
    };
    let mut entity = json!({"id": part, "state": "Rejected", "rejectionReason": text});
    if let TopicRejection::Forbidden { permission } = reason {
        entity["missingPermissions"] = json!([permission]);
    }
    entity
}
