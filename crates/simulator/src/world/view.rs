//! The state that the events told so far add up to: what a REST call of the platform would answer right now.
//! It learns from events alone, so a snapshot can never be ahead of the stream.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cast::Cast;
use super::happening::{Conversation, Duty, Gauges, Happening, Stage};
use super::shapes;
use super::story::Story;
use crate::clock::stamp;

#[derive(Debug)]
pub(crate) struct View {
    duties: Vec<Duty>,
    gauges: Vec<Gauges>,
    live: BTreeMap<String, Conversation>,
}

impl View {
    pub(super) fn of(story: &Story) -> Self {
        let duties = story.duties().to_vec();
        let gauges = (0..story.cast().queues.len()).map(|queue| opening(story.cast(), queue)).collect();
        Self { duties, gauges, live: BTreeMap::new() }
    }

    pub(super) fn learn(&mut self, happening: &Happening) {
        match happening {
            Happening::CustomerStart(of)
            | Happening::QueueConversation(of)
            | Happening::UserConversation { of, .. } => {
                self.learn_conversation(of);
            }
            Happening::PresenceSet { agent, duty } => {
                self.duties[*agent].presence = duty.presence;
                self.duties[*agent].present_since = duty.present_since;
            }
            Happening::RoutingSet { agent, duty } => {
                self.duties[*agent].routing = duty.routing;
                self.duties[*agent].routing_since = duty.routing_since;
            }
            Happening::Observations { queue, gauges } => self.gauges[*queue] = *gauges,
            Happening::CustomerEnd(_)
            | Happening::AcdEnd { .. }
            | Happening::UserEnd { .. }
            | Happening::Wrapup { .. }
            | Happening::ActivitySet { .. }
            | Happening::Membership { .. }
            | Happening::QueueActivity { .. } => (),
        }
    }

    fn learn_conversation(&mut self, of: &Conversation) {
        match of.stage {
            Stage::Waiting | Stage::Alerting { .. } | Stage::Talking { .. } | Stage::WrappingUp { .. } => {
                self.live.insert(of.id.clone(), of.clone());
            }
            Stage::Ended { .. } => {
                self.live.remove(&of.id);
            }
        }
    }

    /// Every user, fully expanded, in the order of the cast.
    pub(crate) fn users(&self, cast: &Cast) -> Vec<Value> {
        (0..cast.agents.len()).map(|agent| self.user(cast, agent)).collect()
    }

    fn user(&self, cast: &Cast, agent: usize) -> Value {
        let who = &cast.agents[agent];
        json!({
            "id": who.id, "name": who.name, "email": who.email, "state": "active", "version": 1,
            "routingStatus": self.routing_status(cast, agent), "presence": self.presence(agent),
            "conversationSummary": self.conversation_summary(cast, agent),
            "outOfOffice": {"active": false},
        })
    }

    pub(crate) fn routing_status(&self, cast: &Cast, agent: usize) -> Value {
        let mut status = shapes::routing_status(&self.duties[agent]);
        status["userId"] = json!(cast.agents[agent].id);
        status
    }

    pub(crate) fn presence(&self, agent: usize) -> Value {
        let mut presence = shapes::presence(&self.duties[agent]);
        presence["id"] = json!("PURECLOUD");
        presence
    }

    fn conversation_summary(&self, cast: &Cast, agent: usize) -> Value {
        let (mut active, mut acw) = (0, 0);
        for live in self.live.values() {
            match live.stage {
                Stage::Talking { agent: with } if with == agent => active += 1,
                Stage::WrappingUp { agent: with } if with == agent => acw += 1,
                Stage::Waiting
                | Stage::Alerting { .. }
                | Stage::Talking { .. }
                | Stage::WrappingUp { .. }
                | Stage::Ended { .. } => (),
            }
        }
        let enterprise = json!({"active": 0, "acw": 0});
        json!({
            "userId": cast.agents[agent].id,
            "call": {"contactCenter": {"active": active, "acw": acw}, "enterprise": enterprise},
        })
    }

    /// One result group of the queue observations query.
    pub(crate) fn observation(&self, cast: &Cast, queue: usize, details: bool) -> Value {
        let mut data = shapes::metrics(&self.gauges[queue]);
        if details {
            let waiting = self.waiting(queue);
            data[0]["truncated"] = json!(false);
            data[0]["observations"] = json!(waiting);
        }
        json!({"group": {"queueId": cast.queues[queue].id, "mediaType": "voice"}, "data": data})
    }

    fn waiting(&self, queue: usize) -> Vec<Value> {
        let waits = |live: &&Conversation| live.queue == queue && live.stage == Stage::Waiting;
        self.live.values().filter(waits).map(waiting_entry).collect()
    }

    /// The conversations in progress, as the summary snapshot lists them.
    pub(crate) fn conversations(&self, cast: &Cast) -> Vec<Value> {
        self.live.values().map(|live| summary(live, cast)).collect()
    }
}

/// Everybody is idle at the start.
fn opening(cast: &Cast, queue: usize) -> Gauges {
    let members = cast.agents.iter().filter(|agent| agent.queues.contains(&queue)).count() as u64;
    Gauges { on_queue: members, idle: members, ..Gauges::default() }
}

fn waiting_entry(live: &Conversation) -> Value {
    json!({
        "observationDate": stamp(live.since), "conversationId": live.id, "sessionId": live.session,
        "direction": "inbound", "ani": live.caller, "routingPriority": 0,
    })
}

fn summary(live: &Conversation, cast: &Cast) -> Value {
    let (state, agent) = match live.stage {
        Stage::Waiting => ("waiting", None),
        Stage::Alerting { agent } => ("alerting", Some(agent)),
        Stage::Talking { agent } => ("interacting", Some(agent)),
        Stage::WrappingUp { agent } => ("wrapup", Some(agent)),
        Stage::Ended { agent } => ("ended", agent),
    };
    json!({
        "conversationId": live.id, "queueId": cast.queues[live.queue].id, "mediaType": "voice", "state": state,
        "userId": agent.map(|agent| cast.agents[agent].id.as_str()), "since": stamp(live.since),
    })
}
