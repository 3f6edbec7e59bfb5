//! How the platform writes each thing that happens: topic, kind and body, by the platform's documents.
//! It refuses to decide anything.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::cast::{Cast, DIVISION, Queue};
use super::happening::{Conversation, Duty, Gauges, Happening, Presence, Routing, Stage, agent_of};
use crate::clock::stamp;

/// Every kind of event this world tells.
#[cfg(test)]
pub(super) const KINDS: [&str; 13] = [
    "v2.analytics.queues.activity",
    "v2.analytics.queues.observations",
    "v2.detail.events.conversation.acd.end",
    "v2.detail.events.conversation.customer.end",
    "v2.detail.events.conversation.customer.start",
    "v2.detail.events.conversation.user.end",
    "v2.detail.events.conversation.wrapup",
    "v2.routing.queues.conversations",
    "v2.routing.queues.users",
    "v2.users.activity",
    "v2.users.conversations",
    "v2.users.presence",
    "v2.users.routingStatus",
];

/// The width of the interval that queue observations speak of.
const OBSERVED: time::Duration = time::Duration::seconds(10);
const WRAPUP_TIMEOUT_MS: u64 = 60_000;
const ALERTING_TIMEOUT_MS: u64 = 8_000;
const DIALLED: &str = "tel:+13715550100";
const WRAPUP_CODE: &str = "7f2b0c1e-5a9d-4f64-8f4e-2a5c9d1b7e30";

pub(super) struct Told {
    pub(super) topic: String,
    pub(super) kind: &'static str,
    pub(super) body: Value,
}

/// What a kind of topic begins with; the id stands behind it.
const PREFIXES: [&str; 4] = ["v2.users", "v2.routing.queues", "v2.analytics.queues", "v2.detail.events.conversation"];

pub(super) fn tell(happening: &Happening, cast: &Cast, at: OffsetDateTime) -> Told {
    let kind = kind(happening);
    Told { topic: topic(kind, subject(happening, cast)), kind, body: body(happening, cast, at) }
}

/// The kind with the id put behind its prefix.
fn topic(kind: &str, id: &str) -> String {
    let split = PREFIXES.iter().find_map(|prefix| Some((prefix, kind.strip_prefix(prefix)?)));
    let (prefix, rest) = split.expect("every kind begins with one of the prefixes");
    format!("{prefix}.{id}{rest}")
}

fn kind(happening: &Happening) -> &'static str {
    match happening {
        Happening::CustomerStart(_) => "v2.detail.events.conversation.customer.start",
        Happening::CustomerEnd(_) => "v2.detail.events.conversation.customer.end",
        Happening::AcdEnd { .. } => "v2.detail.events.conversation.acd.end",
        Happening::UserEnd { .. } => "v2.detail.events.conversation.user.end",
        Happening::Wrapup { .. } => "v2.detail.events.conversation.wrapup",
        Happening::QueueConversation(_) => "v2.routing.queues.conversations",
        Happening::UserConversation { .. } => "v2.users.conversations",
        Happening::PresenceSet { .. } => "v2.users.presence",
        Happening::RoutingSet { .. } => "v2.users.routingStatus",
        Happening::ActivitySet { .. } => "v2.users.activity",
        Happening::Membership { .. } => "v2.routing.queues.users",
        Happening::Observations { .. } => "v2.analytics.queues.observations",
        Happening::QueueActivity { .. } => "v2.analytics.queues.activity",
    }
}

/// The id of the conversation, user or queue that it is about.
fn subject<'a>(happening: &'a Happening, cast: &'a Cast) -> &'a str {
    match happening {
        Happening::CustomerStart(of)
        | Happening::CustomerEnd(of)
        | Happening::AcdEnd { of, .. }
        | Happening::UserEnd { of, .. }
        | Happening::Wrapup { of, .. } => &of.id,
        Happening::UserConversation { agent, .. }
        | Happening::PresenceSet { agent, .. }
        | Happening::RoutingSet { agent, .. }
        | Happening::ActivitySet { agent, .. } => &cast.agents[*agent].id,
        Happening::QueueConversation(Conversation { queue, .. })
        | Happening::Membership { queue, .. }
        | Happening::Observations { queue, .. }
        | Happening::QueueActivity { queue, .. } => &cast.queues[*queue].id,
    }
}

fn body(happening: &Happening, cast: &Cast, at: OffsetDateTime) -> Value {
    let user = |agent: &usize| cast.agents[*agent].id.as_str();
    match happening {
        Happening::CustomerStart(of) => customer_start(of),
        Happening::CustomerEnd(of) => customer_end(of, at),
        Happening::AcdEnd { of, answered_by, waited_ms } => {
            acd_end(of, answered_by.as_ref().map(user), *waited_ms, cast)
        }
        Happening::UserEnd { of, agent, talked_ms } => user_end(of, user(agent), *talked_ms, cast),
        Happening::Wrapup { of, agent, lasted_ms } => wrapup(of, user(agent), *lasted_ms, cast),
        Happening::QueueConversation(of) | Happening::UserConversation { of, .. } => conversation(of, cast),
        Happening::PresenceSet { duty, .. } => presence(duty),
        Happening::RoutingSet { agent, duty } => {
            json!({"id": user(agent), "routingStatus": routing_status(duty)})
        }
        Happening::ActivitySet { agent, duty } => activity(*agent, duty, cast),
        Happening::Membership { agent, queue, joined } => membership(user(agent), &cast.queues[*queue].id, *joined),
        Happening::Observations { queue, gauges } => observations(&cast.queues[*queue], gauges, at),
        Happening::QueueActivity { gauges, .. } => queue_activity(gauges),
    }
}

/// Milliseconds since 1970, as detail events write moments.
fn epoch_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn customer_start(of: &Conversation) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.customer_part,
        "sessionId": of.session, "mediaType": "VOICE", "provider": "Edge", "direction": "INBOUND",
        "ani": of.caller, "dnis": DIALLED,
    })
}

fn customer_end(of: &Conversation, at: OffsetDateTime) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.customer_part,
        "sessionId": of.session, "disconnectType": "PEER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED,
        "interactingDurationMs": epoch_ms(at) - epoch_ms(of.began),
    })
}

fn acd_end(of: &Conversation, answered_by: Option<&str>, waited_ms: u64, cast: &Cast) -> Value {
    let mut body = json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "disconnectType": "TRANSFER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED, "queueId": cast.queues[of.queue].id,
        "divisionId": DIVISION, "acdOutcome": "ANSWERED", "requestedRoutings": ["STANDARD"],
        "usedRouting": "STANDARD", "requestedRoutingSkillIds": [], "routingPriority": 0,
        "connectedDurationMs": waited_ms,
    });
    match answered_by {
        Some(user) => body["answeredUserId"] = json!(user),
        None => {
            body["acdOutcome"] = json!("ABANDON");
            body["disconnectType"] = json!("PEER");
        }
    }
    body
}

fn user_end(of: &Conversation, user: &str, talked_ms: u64, cast: &Cast) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "disconnectType": "PEER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED, "userId": user,
        "queueId": cast.queues[of.queue].id, "divisionId": DIVISION, "interactingDurationMs": talked_ms,
        "heldDurationMs": 0, "alertingDurationMs": 0, "contactingDurationMs": 0, "dialingDurationMs": 0,
        "callbackDurationMs": 0,
    })
}

fn wrapup(of: &Conversation, user: &str, lasted_ms: u64, cast: &Cast) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "mediaType": "VOICE", "provider": "Edge", "direction": "INBOUND",
        "userId": user, "queueId": cast.queues[of.queue].id, "divisionId": DIVISION,
        "wrapupCode": WRAPUP_CODE, "wrapupNotes": "", "wrapupDurationMs": lasted_ms,
    })
}

fn conversation(of: &Conversation, cast: &Cast) -> Value {
    let queue = &cast.queues[of.queue].id;
    let mut participants = vec![customer(of, queue)];
    participants.extend(agent_of(of.stage).map(|agent| attendant(of, &cast.agents[agent].id, queue)));
    json!({
        "id": of.id, "address": of.caller, "recordingState": "none", "participants": participants,
        "divisions": [{"division": {"id": DIVISION}, "entities": [{"id": queue}]}],
    })
}

fn customer(of: &Conversation, queue: &str) -> Value {
    let over = matches!(of.stage, Stage::WrappingUp { .. } | Stage::Ended { .. });
    let mut part = json!({
        "id": of.customer_part, "connectedTime": stamp(of.began), "name": "Mobile Caller", "queueId": queue,
        "purpose": "customer", "address": of.caller, "wrapupRequired": false, "mediaRoles": ["full"],
        "attributes": {},
        "calls": [{
            "id": of.session, "state": if over { "disconnected" } else { "connected" },
            "initialState": "offering", "direction": "inbound", "recording": false, "recordingState": "none",
            "muted": false, "held": false, "confined": false, "connectedTime": stamp(of.began),
            "provider": "Edge", "self": {"nameRaw": "", "addressNormalized": DIALLED},
            "other": {"nameRaw": "", "addressNormalized": of.caller},
        }],
        "callbacks": [], "chats": [], "cobrowsesessions": [], "emails": [], "messages": [], "screenshares": [],
        "socialExpressions": [], "videos": [], "internalMessages": [],
    });
    if over {
        part["endTime"] = json!(stamp(of.since));
    }
    part
}

fn attendant(of: &Conversation, user: &str, queue: &str) -> Value {
    let state = match of.stage {
        Stage::Waiting | Stage::Alerting { .. } => "alerting",
        Stage::Talking { .. } => "connected",
        Stage::WrappingUp { .. } => "disconnected",
        Stage::Ended { .. } => "terminated",
    };
    let mut part = json!({
        "id": of.agent_part, "userId": user, "queueId": queue, "purpose": "agent", "wrapupRequired": true,
        "wrapupPrompt": "timeout", "wrapupTimeoutMs": WRAPUP_TIMEOUT_MS, "alertingTimeoutMs": ALERTING_TIMEOUT_MS,
        "conversationRoutingData": {"queue": {"id": queue}, "priority": 0, "skills": []},
        "calls": [{
            "id": of.agent_part, "state": state, "direction": "inbound", "muted": false, "held": false,
            "provider": "Edge", "peerId": of.session,
        }],
    });
    match of.stage {
        Stage::Waiting | Stage::Alerting { .. } => (),
        Stage::Talking { .. } => part["connectedTime"] = json!(stamp(of.since)),
        Stage::WrappingUp { .. } | Stage::Ended { .. } => part["endTime"] = json!(stamp(of.since)),
    }
    part
}

/// The organisation's presence definition of a system presence: id and name.
pub(super) fn definition(presence: Presence) -> (&'static str, &'static str) {
    match presence {
        Presence::OnQueue => ("e08eaf1b-ee47-4fa9-a231-1200e284798f", "ON_QUEUE"),
        Presence::Available => ("6a3af858-942f-489d-9700-5f9bcdcdae9b", "AVAILABLE"),
        Presence::Break => ("227b37e2-f1d0-4dd0-8f50-badd7cf6d158", "BREAK"),
        Presence::Meal => ("3fd96123-badb-4f69-bc03-1b1ccc6d8014", "MEAL"),
        Presence::Meeting => ("efdf7e28-5f10-4ce2-8d55-3f0c2a2f7a10", "MEETING"),
    }
}

pub(super) fn routing_name(routing: Routing) -> &'static str {
    match routing {
        Routing::OffQueue => "OFF_QUEUE",
        Routing::Idle => "IDLE",
        Routing::Interacting => "INTERACTING",
    }
}

pub(super) fn presence(duty: &Duty) -> Value {
    let (id, name) = definition(duty.presence);
    json!({
        "source": "PURECLOUD", "presenceDefinition": {"id": id, "systemPresence": name}, "primary": true,
        "message": "", "modifiedDate": stamp(duty.present_since),
    })
}

pub(super) fn routing_status(duty: &Duty) -> Value {
    json!({"status": routing_name(duty.routing), "startTime": stamp(duty.routing_since)})
}

fn activity(agent: usize, duty: &Duty, cast: &Cast) -> Value {
    let (id, name) = definition(duty.presence);
    let active: Vec<&str> = match duty.routing {
        Routing::OffQueue => Vec::new(),
        Routing::Idle | Routing::Interacting => {
            cast.agents[agent].queues.iter().map(|queue| cast.queues[*queue].id.as_str()).collect()
        }
    };
    json!({
        "id": cast.agents[agent].id, "routingStatus": routing_status(duty),
        "presence": {
            "presenceDefinition": {"id": id, "systemPresence": name}, "presenceMessage": "",
            "modifiedDate": stamp(duty.present_since),
        },
        "outOfOffice": {"active": false, "modifiedDate": "2026-04-01T08:00:00.000Z"},
        "activeQueueIds": active, "dateActiveQueuesChanged": stamp(duty.present_since),
    })
}

fn membership(user: &str, queue: &str, joined: bool) -> Value {
    json!({"id": user, "user": {"id": user}, "queueId": queue, "joined": joined, "additionalProperties": {}})
}

fn observations(queue: &Queue, gauges: &Gauges, at: OffsetDateTime) -> Value {
    json!({
        "group": {"queueId": queue.id, "mediaType": "voice"},
        "data": [{
            "interval": format!("{}/{}", stamp(at - OBSERVED), stamp(at)),
            "metrics": metrics(gauges),
        }],
    })
}

/// The figures of a queue; the notification and the REST query write them alike.
pub(super) fn metrics(gauges: &Gauges) -> Value {
    json!([
        {"metric": "oWaiting", "stats": {"count": gauges.waiting}},
        {"metric": "oAlerting", "stats": {"count": gauges.alerting}},
        {"metric": "oInteracting", "stats": {"count": gauges.interacting}},
        {"metric": "oOnQueueUsers", "stats": {"count": gauges.on_queue}},
        {"metric": "oOffQueueUsers", "stats": {"count": gauges.off_queue}},
        {"metric": "oUserRoutingStatuses", "qualifier": "IDLE", "stats": {"count": gauges.idle}},
        {"metric": "oUserRoutingStatuses", "qualifier": "INTERACTING", "stats": {"count": gauges.busy}},
        {"metric": "oUserRoutingStatuses", "qualifier": "OFF_QUEUE", "stats": {"count": gauges.off_queue}},
    ])
}

fn queue_activity(gauges: &Gauges) -> Value {
    let waiting_longest = u64::from(gauges.waiting > 0);
    json!({"results": [{"mediaType": "voice", "data": [
        {"metric": "oWaiting", "count": gauges.waiting},
        {"metric": "oAlerting", "count": gauges.alerting},
        {"metric": "oInteracting", "count": gauges.interacting},
        {"metric": "oLongestWaiting", "count": waiting_longest, "calculatedMetricValue": gauges.longest_wait_ms},
    ]}]})
}
