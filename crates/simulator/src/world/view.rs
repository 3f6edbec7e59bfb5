//! The state after the events so far: what a REST call of the platform answers now. It is built from events alone,
//! so a snapshot is never ahead of the stream.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::model::{AgentState, ConversationStage, QueueGauges, ScenarioEvent, SimulatedConversation};
use super::roster::Roster;
use super::scenario::ScenarioEngine;
use super::shapes;
use crate::clock::stamp;

#[derive(Debug)]
pub(crate) struct WorldView {
    agent_states: Vec<AgentState>,
    gauges: Vec<QueueGauges>,
    live: BTreeMap<String, SimulatedConversation>,
}

impl WorldView {
    pub(super) fn initial(scenario: &ScenarioEngine) -> Self {
        let duties = scenario.agent_states().to_vec();
        let gauges =
            (0..scenario.roster().queues.len()).map(|queue| initial_gauges(scenario.roster(), queue)).collect();
        Self { agent_states: duties, gauges, live: BTreeMap::new() }
    }

    pub(super) fn apply(&mut self, scenario_event: &ScenarioEvent) {
        match scenario_event {
            ScenarioEvent::CustomerStart(of)
            | ScenarioEvent::QueueConversation(of)
            | ScenarioEvent::UserConversation { of, .. } => {
                self.apply_conversation(of);
            }
            ScenarioEvent::PresenceSet { agent, state: duty } => {
                self.agent_states[*agent].presence = duty.presence;
                self.agent_states[*agent].presence_since = duty.presence_since;
            }
            ScenarioEvent::RoutingSet { agent, state: duty } => {
                self.agent_states[*agent].routing = duty.routing;
                self.agent_states[*agent].routing_since = duty.routing_since;
            }
            ScenarioEvent::Observations { queue, gauges } => self.gauges[*queue] = *gauges,
            ScenarioEvent::CustomerEnd(_)
            | ScenarioEvent::AcdEnd { .. }
            | ScenarioEvent::UserEnd { .. }
            | ScenarioEvent::Wrapup { .. }
            | ScenarioEvent::ActivitySet { .. }
            | ScenarioEvent::Membership { .. }
            | ScenarioEvent::QueueActivity { .. } => (),
        }
    }

    fn apply_conversation(&mut self, of: &SimulatedConversation) {
        match of.stage {
            ConversationStage::Waiting
            | ConversationStage::Alerting { .. }
            | ConversationStage::Talking { .. }
            | ConversationStage::WrappingUp { .. } => {
                self.live.insert(of.id.clone(), of.clone());
            }
            ConversationStage::Ended { .. } => {
                self.live.remove(&of.id);
            }
        }
    }

    /// Every user, fully expanded, in the order of the roster.
    pub(crate) fn users(&self, roster: &Roster) -> Vec<Value> {
        (0..roster.agents.len()).map(|agent| self.user(roster, agent)).collect()
    }

    fn user(&self, roster: &Roster, agent: usize) -> Value {
        let who = &roster.agents[agent];
        json!({
            "id": who.id, "name": who.name, "email": who.email, "state": "active", "version": 1,
            "routingStatus": self.routing_status(roster, agent), "presence": self.presence(agent),
            "conversationSummary": self.conversation_summary(roster, agent),
            "outOfOffice": {"active": false},
        })
    }

    pub(crate) fn routing_status(&self, roster: &Roster, agent: usize) -> Value {
        let mut status = shapes::routing_status(&self.agent_states[agent]);
        status["userId"] = json!(roster.agents[agent].id);
        status
    }

    pub(crate) fn presence(&self, agent: usize) -> Value {
        let mut presence = shapes::presence(&self.agent_states[agent]);
        presence["id"] = json!("PURECLOUD");
        presence
    }

    fn conversation_summary(&self, roster: &Roster, agent: usize) -> Value {
        let (mut active, mut acw) = (0, 0);
        for live in self.live.values() {
            match live.stage {
                ConversationStage::Talking { agent: with } if with == agent => active += 1,
                ConversationStage::WrappingUp { agent: with } if with == agent => acw += 1,
                ConversationStage::Waiting
                | ConversationStage::Alerting { .. }
                | ConversationStage::Talking { .. }
                | ConversationStage::WrappingUp { .. }
                | ConversationStage::Ended { .. } => (),
            }
        }
        let enterprise = json!({"active": 0, "acw": 0});
        json!({
            "userId": roster.agents[agent].id,
            "call": {"contactCenter": {"active": active, "acw": acw}, "enterprise": enterprise},
        })
    }

    /// One result group of the queue observations query.
    pub(crate) fn observation(&self, roster: &Roster, queue: usize, details: bool) -> Value {
        let mut data = shapes::metrics(&self.gauges[queue]);
        if details {
            let waiting = self.waiting(queue);
            data[0]["truncated"] = json!(false);
            data[0]["observations"] = json!(waiting);
        }
        json!({"group": {"queueId": roster.queues[queue].id, "mediaType": "voice"}, "data": data})
    }

    fn waiting(&self, queue: usize) -> Vec<Value> {
        let is_waiting =
            |live: &&SimulatedConversation| live.queue == queue && live.stage == ConversationStage::Waiting;
        self.live.values().filter(is_waiting).map(waiting_entry).collect()
    }

    /// The conversations in progress, in the format of the summary snapshot.
    pub(crate) fn conversations(&self, roster: &Roster) -> Vec<Value> {
        self.live.values().map(|live| summary(live, roster)).collect()
    }
}

/// Every agent is idle at the start.
fn initial_gauges(roster: &Roster, queue: usize) -> QueueGauges {
    let members = roster.agents.iter().filter(|agent| agent.queues.contains(&queue)).count() as u64;
    QueueGauges { on_queue: members, idle: members, ..QueueGauges::default() }
}

fn waiting_entry(live: &SimulatedConversation) -> Value {
    json!({
        "observationDate": stamp(live.since), "conversationId": live.id, "sessionId": live.session,
        "direction": "inbound", "ani": live.caller, "routingPriority": 0,
    })
}

fn summary(live: &SimulatedConversation, roster: &Roster) -> Value {
    let (state, agent) = match live.stage {
        ConversationStage::Waiting => ("waiting", None),
        ConversationStage::Alerting { agent } => ("alerting", Some(agent)),
        ConversationStage::Talking { agent } => ("interacting", Some(agent)),
        ConversationStage::WrappingUp { agent } => ("wrapup", Some(agent)),
        ConversationStage::Ended { agent } => ("ended", agent),
    };
    json!({
        "conversationId": live.id, "queueId": roster.queues[live.queue].id, "mediaType": "voice", "state": state,
        "userId": agent.map(|agent| roster.agents[agent].id.as_str()), "since": stamp(live.since),
    })
}
