//! The topic, kind and body of each event, as in the platform's documents.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::model::{
    AgentPresence, AgentRouting, AgentState, ConversationStage, QueueGauges, ScenarioEvent, SimulatedConversation,
    agent_of,
};
use super::roster::{DIVISION, Queue, Roster};
use crate::clock::stamp;

/// Every kind of event of this world.
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

/// The length of the interval in queue observations.
const OBSERVATION_INTERVAL: time::Duration = time::Duration::seconds(10);
const WRAPUP_TIMEOUT_MS: u64 = 60_000;
const ALERTING_TIMEOUT_MS: u64 = 8_000;
const DIALLED_NUMBER: &str = "tel:+13715550100";
const WRAPUP_CODE: &str = "7f2b0c1e-5a9d-4f64-8f4e-2a5c9d1b7e30";

pub(super) struct FormattedEvent {
    pub(super) topic: String,
    pub(super) kind: &'static str,
    pub(super) body: Value,
}

/// Prefixes of topics; an id follows.
const PREFIXES: [&str; 4] = ["v2.users", "v2.routing.queues", "v2.analytics.queues", "v2.detail.events.conversation"];

pub(super) fn format_event(scenario_event: &ScenarioEvent, roster: &Roster, at: OffsetDateTime) -> FormattedEvent {
    let kind = kind(scenario_event);
    FormattedEvent { topic: topic(kind, subject(scenario_event, roster)), kind, body: body(scenario_event, roster, at) }
}

/// The kind with the id after its prefix.
fn topic(kind: &str, id: &str) -> String {
    let split = PREFIXES.iter().find_map(|prefix| Some((prefix, kind.strip_prefix(prefix)?)));
    let (prefix, rest) = split.expect("every kind begins with one of the prefixes");
    format!("{prefix}.{id}{rest}")
}

fn kind(scenario_event: &ScenarioEvent) -> &'static str {
    match scenario_event {
        ScenarioEvent::CustomerStart(_) => "v2.detail.events.conversation.customer.start",
        ScenarioEvent::CustomerEnd(_) => "v2.detail.events.conversation.customer.end",
        ScenarioEvent::AcdEnd { .. } => "v2.detail.events.conversation.acd.end",
        ScenarioEvent::UserEnd { .. } => "v2.detail.events.conversation.user.end",
        ScenarioEvent::Wrapup { .. } => "v2.detail.events.conversation.wrapup",
        ScenarioEvent::QueueConversation(_) => "v2.routing.queues.conversations",
        ScenarioEvent::UserConversation { .. } => "v2.users.conversations",
        ScenarioEvent::PresenceSet { .. } => "v2.users.presence",
        ScenarioEvent::RoutingSet { .. } => "v2.users.routingStatus",
        ScenarioEvent::ActivitySet { .. } => "v2.users.activity",
        ScenarioEvent::Membership { .. } => "v2.routing.queues.users",
        ScenarioEvent::Observations { .. } => "v2.analytics.queues.observations",
        ScenarioEvent::QueueActivity { .. } => "v2.analytics.queues.activity",
    }
}

/// The id of its conversation, user or queue.
fn subject<'a>(scenario_event: &'a ScenarioEvent, roster: &'a Roster) -> &'a str {
    match scenario_event {
        ScenarioEvent::CustomerStart(of)
        | ScenarioEvent::CustomerEnd(of)
        | ScenarioEvent::AcdEnd { of, .. }
        | ScenarioEvent::UserEnd { of, .. }
        | ScenarioEvent::Wrapup { of, .. } => &of.id,
        ScenarioEvent::UserConversation { agent, .. }
        | ScenarioEvent::PresenceSet { agent, .. }
        | ScenarioEvent::RoutingSet { agent, .. }
        | ScenarioEvent::ActivitySet { agent, .. } => &roster.agents[*agent].id,
        ScenarioEvent::QueueConversation(SimulatedConversation { queue, .. })
        | ScenarioEvent::Membership { queue, .. }
        | ScenarioEvent::Observations { queue, .. }
        | ScenarioEvent::QueueActivity { queue, .. } => &roster.queues[*queue].id,
    }
}

fn body(scenario_event: &ScenarioEvent, roster: &Roster, at: OffsetDateTime) -> Value {
    let user = |agent: &usize| roster.agents[*agent].id.as_str();
    match scenario_event {
        ScenarioEvent::CustomerStart(of) => customer_start(of),
        ScenarioEvent::CustomerEnd(of) => customer_end(of, at),
        ScenarioEvent::AcdEnd { of, answered_by, waited_ms } => {
            acd_end(of, answered_by.as_ref().map(user), *waited_ms, roster)
        }
        ScenarioEvent::UserEnd { of, agent, talked_ms } => user_end(of, user(agent), *talked_ms, roster),
        ScenarioEvent::Wrapup { of, agent, lasted_ms } => wrapup(of, user(agent), *lasted_ms, roster),
        ScenarioEvent::QueueConversation(of) | ScenarioEvent::UserConversation { of, .. } => conversation(of, roster),
        ScenarioEvent::PresenceSet { state: duty, .. } => presence(duty),
        ScenarioEvent::RoutingSet { agent, state: duty } => {
            json!({"id": user(agent), "routingStatus": routing_status(duty)})
        }
        ScenarioEvent::ActivitySet { agent, state: duty } => activity(*agent, duty, roster),
        ScenarioEvent::Membership { agent, queue, joined } => {
            membership(user(agent), &roster.queues[*queue].id, *joined)
        }
        ScenarioEvent::Observations { queue, gauges } => observations(&roster.queues[*queue], gauges, at),
        ScenarioEvent::QueueActivity { gauges, .. } => queue_activity(gauges),
    }
}

/// Milliseconds since 1970, the time format of detail events.
fn epoch_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn customer_start(of: &SimulatedConversation) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.customer_part,
        "sessionId": of.session, "mediaType": "VOICE", "provider": "Edge", "direction": "INBOUND",
        "ani": of.caller, "dnis": DIALLED_NUMBER,
    })
}

fn customer_end(of: &SimulatedConversation, at: OffsetDateTime) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.customer_part,
        "sessionId": of.session, "disconnectType": "PEER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED_NUMBER,
        "interactingDurationMs": epoch_ms(at) - epoch_ms(of.started_at),
    })
}

fn acd_end(of: &SimulatedConversation, answered_by: Option<&str>, waited_ms: u64, roster: &Roster) -> Value {
    let mut body = json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "disconnectType": "TRANSFER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED_NUMBER, "queueId": roster.queues[of.queue].id,
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

fn user_end(of: &SimulatedConversation, user: &str, talked_ms: u64, roster: &Roster) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "disconnectType": "PEER", "mediaType": "VOICE", "provider": "Edge",
        "direction": "INBOUND", "ani": of.caller, "dnis": DIALLED_NUMBER, "userId": user,
        "queueId": roster.queues[of.queue].id, "divisionId": DIVISION, "interactingDurationMs": talked_ms,
        "heldDurationMs": 0, "alertingDurationMs": 0, "contactingDurationMs": 0, "dialingDurationMs": 0,
        "callbackDurationMs": 0,
    })
}

fn wrapup(of: &SimulatedConversation, user: &str, lasted_ms: u64, roster: &Roster) -> Value {
    json!({
        "eventTime": epoch_ms(of.since), "conversationId": of.id, "participantId": of.agent_part,
        "sessionId": of.session, "mediaType": "VOICE", "provider": "Edge", "direction": "INBOUND",
        "userId": user, "queueId": roster.queues[of.queue].id, "divisionId": DIVISION,
        "wrapupCode": WRAPUP_CODE, "wrapupNotes": "", "wrapupDurationMs": lasted_ms,
    })
}

fn conversation(of: &SimulatedConversation, roster: &Roster) -> Value {
    let queue = &roster.queues[of.queue].id;
    let mut participants = vec![customer_participant(of, queue)];
    participants.extend(agent_of(of.stage).map(|agent| agent_participant(of, &roster.agents[agent].id, queue)));
    json!({
        "id": of.id, "address": of.caller, "recordingState": "none", "participants": participants,
        "divisions": [{"division": {"id": DIVISION}, "entities": [{"id": queue}]}],
    })
}

fn customer_participant(of: &SimulatedConversation, queue: &str) -> Value {
    let over = matches!(of.stage, ConversationStage::WrappingUp { .. } | ConversationStage::Ended { .. });
    let mut part = json!({
        "id": of.customer_part, "connectedTime": stamp(of.started_at), "name": "Mobile Caller", "queueId": queue,
        "purpose": "customer", "address": of.caller, "wrapupRequired": false, "mediaRoles": ["full"],
        "attributes": {},
        "calls": [{
            "id": of.session, "state": if over { "disconnected" } else { "connected" },
            "initialState": "offering", "direction": "inbound", "recording": false, "recordingState": "none",
            "muted": false, "held": false, "confined": false, "connectedTime": stamp(of.started_at),
            "provider": "Edge", "self": {"nameRaw": "", "addressNormalized": DIALLED_NUMBER},
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

fn agent_participant(of: &SimulatedConversation, user: &str, queue: &str) -> Value {
    let state = match of.stage {
        ConversationStage::Waiting | ConversationStage::Alerting { .. } => "alerting",
        ConversationStage::Talking { .. } => "connected",
        ConversationStage::WrappingUp { .. } => "disconnected",
        ConversationStage::Ended { .. } => "terminated",
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
        ConversationStage::Waiting | ConversationStage::Alerting { .. } => (),
        ConversationStage::Talking { .. } => part["connectedTime"] = json!(stamp(of.since)),
        ConversationStage::WrappingUp { .. } | ConversationStage::Ended { .. } => {
            part["endTime"] = json!(stamp(of.since));
        }
    }
    part
}

/// The organisation's presence definition of a system presence: id and name.
pub(super) fn presence_definition(presence: AgentPresence) -> (&'static str, &'static str) {
    match presence {
        AgentPresence::OnQueue => ("e08eaf1b-ee47-4fa9-a231-1200e284798f", "ON_QUEUE"),
        AgentPresence::Available => ("6a3af858-942f-489d-9700-5f9bcdcdae9b", "AVAILABLE"),
        AgentPresence::Break => ("227b37e2-f1d0-4dd0-8f50-badd7cf6d158", "BREAK"),
        AgentPresence::Meal => ("3fd96123-badb-4f69-bc03-1b1ccc6d8014", "MEAL"),
        AgentPresence::Meeting => ("efdf7e28-5f10-4ce2-8d55-3f0c2a2f7a10", "MEETING"),
    }
}

pub(super) fn routing_name(routing: AgentRouting) -> &'static str {
    match routing {
        AgentRouting::OffQueue => "OFF_QUEUE",
        AgentRouting::Idle => "IDLE",
        AgentRouting::Interacting => "INTERACTING",
    }
}

pub(super) fn presence(state: &AgentState) -> Value {
    let (id, name) = presence_definition(state.presence);
    json!({
        "source": "PURECLOUD", "presenceDefinition": {"id": id, "systemPresence": name}, "primary": true,
        "message": "", "modifiedDate": stamp(state.presence_since),
    })
}

pub(super) fn routing_status(state: &AgentState) -> Value {
    json!({"status": routing_name(state.routing), "startTime": stamp(state.routing_since)})
}

fn activity(agent: usize, state: &AgentState, roster: &Roster) -> Value {
    let (id, name) = presence_definition(state.presence);
    let active: Vec<&str> = match state.routing {
        AgentRouting::OffQueue => Vec::new(),
        AgentRouting::Idle | AgentRouting::Interacting => {
            roster.agents[agent].queues.iter().map(|queue| roster.queues[*queue].id.as_str()).collect()
        }
    };
    json!({
        "id": roster.agents[agent].id, "routingStatus": routing_status(state),
        "presence": {
            "presenceDefinition": {"id": id, "systemPresence": name}, "presenceMessage": "",
            "modifiedDate": stamp(state.presence_since),
        },
        "outOfOffice": {"active": false, "modifiedDate": "2026-04-01T08:00:00.000Z"},
        "activeQueueIds": active, "dateActiveQueuesChanged": stamp(state.presence_since),
    })
}

fn membership(user: &str, queue: &str, joined: bool) -> Value {
    json!({"id": user, "user": {"id": user}, "queueId": queue, "joined": joined, "additionalProperties": {}})
}

fn observations(queue: &Queue, gauges: &QueueGauges, at: OffsetDateTime) -> Value {
    json!({
        "group": {"queueId": queue.id, "mediaType": "voice"},
        "data": [{
            "interval": format!("{}/{}", stamp(at - OBSERVATION_INTERVAL), stamp(at)),
            "metrics": metrics(gauges),
        }],
    })
}

/// The figures of a queue, in the format of both the notification and the REST query.
pub(super) fn metrics(gauges: &QueueGauges) -> Value {
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

fn queue_activity(gauges: &QueueGauges) -> Value {
    let waiting_longest = u64::from(gauges.waiting > 0);
    json!({"results": [{"mediaType": "voice", "data": [
        {"metric": "oWaiting", "count": gauges.waiting},
        {"metric": "oAlerting", "count": gauges.alerting},
        {"metric": "oInteracting", "count": gauges.interacting},
        {"metric": "oLongestWaiting", "count": waiting_longest, "calculatedMetricValue": gauges.longest_wait_ms},
    ]}]})
}
