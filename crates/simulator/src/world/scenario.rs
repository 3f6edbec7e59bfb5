//! The scenario: conversations arrive, wait, alert, are answered, wrapped up and end; agents log in and out. A step
//! changes the state and lists its changes in the order of the platform's events. `shapes` has the format of
//! the events.

use std::collections::{BTreeMap, VecDeque};

use time::OffsetDateTime;

use super::model::{
    AgentPresence, AgentRouting, AgentState, ConversationStage, QueueGauges, ScenarioEvent, SimulatedConversation,
    agent_of,
};
use super::roster::{Roster, uuid};

/// Waiting conversations per agent; at this number no new ones arrive.
const WAITING_PER_AGENT: usize = 2;

#[derive(Clone, Copy, Debug)]
enum ScenarioStep {
    Arrive,
    Alert,
    Answer,
    End,
    WrapUp,
    Abandon,
    Leave,
    Return,
}

/// Relative weight of each move; an impossible move is skipped.
const WEIGHTED_STEPS: [(ScenarioStep, u32); 8] = [
    (ScenarioStep::Arrive, 22),
    (ScenarioStep::Alert, 30),
    (ScenarioStep::Answer, 30),
    (ScenarioStep::End, 16),
    (ScenarioStep::WrapUp, 16),
    (ScenarioStep::Abandon, 2),
    (ScenarioStep::Leave, 3),
    (ScenarioStep::Return, 4),
];

#[derive(Debug)]
pub(super) struct ScenarioEngine {
    roster: Roster,
    rng: fastrand::Rng,
    agent_states: Vec<AgentState>,
    live: BTreeMap<u64, SimulatedConversation>,
    arrived: u64,
}

impl ScenarioEngine {
    /// At the start every agent is on queue and idle.
    pub(super) fn start(seed: u64, roster: Roster, base: OffsetDateTime) -> Self {
        let state = AgentState {
            presence: AgentPresence::OnQueue,
            presence_since: base,
            routing: AgentRouting::Idle,
            routing_since: base,
        };
        let duties = vec![state; roster.agents.len()];
        Self { roster, rng: fastrand::Rng::with_seed(!seed), agent_states: duties, live: BTreeMap::new(), arrived: 0 }
    }

    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(super) fn agent_states(&self) -> &[AgentState] {
        &self.agent_states
    }

    /// Tries one move. An impossible move changes nothing.
    pub(super) fn step(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        match self.choose() {
            ScenarioStep::Arrive => self.arrive(at, out),
            ScenarioStep::Alert => self.alert(at, out),
            ScenarioStep::Answer => self.answer(at, out),
            ScenarioStep::End => self.end(at, out),
            ScenarioStep::WrapUp => self.wrap_up(at, out),
            ScenarioStep::Abandon => self.abandon(at, out),
            ScenarioStep::Leave => self.leave_queue(at, out),
            ScenarioStep::Return => self.return_to_queue(at, out),
        }
    }

    fn choose(&mut self) -> ScenarioStep {
        let total = WEIGHTED_STEPS.iter().map(|(_, weight)| weight).sum();
        let mut ticket = self.rng.u32(0..total);
        for (chosen, weight) in WEIGHTED_STEPS {
            if ticket < weight {
                return chosen;
            }
            ticket -= weight;
        }
        ScenarioStep::Arrive
    }

    fn arrive(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let waiting = self.live.values().filter(|live| live.stage == ConversationStage::Waiting).count();
        if waiting >= WAITING_PER_AGENT * self.agent_states.len() {
            return;
        }
        self.arrived += 1;
        let conversation = SimulatedConversation {
            id: uuid(&mut self.rng),
            session: uuid(&mut self.rng),
            customer_part: uuid(&mut self.rng),
            agent_part: uuid(&mut self.rng),
            caller: format!("tel:+1714555{:04}", self.rng.u32(0..10_000)),
            queue: self.rng.usize(0..self.roster.queues.len()),
            stage: ConversationStage::Waiting,
            started_at: at,
            since: at,
        };
        self.live.insert(self.arrived, conversation.clone());
        out.push_back(ScenarioEvent::CustomerStart(conversation.clone()));
        out.push_back(ScenarioEvent::QueueConversation(conversation.clone()));
        self.push_observations(conversation.queue, at, out);
    }

    fn alert(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let waiting = self.pick_conversation(|stage| matches!(stage, ConversationStage::Waiting));
        let Some(key) = waiting else { return };
        let Some(agent) = self.idle_agent(self.live[&key].queue) else {
            return;
        };
        let conversation = self.advance(key, ConversationStage::Alerting { agent }, at);
        out.push_back(ScenarioEvent::UserConversation { agent, of: conversation.clone() });
        self.push_observations(conversation.queue, at, out);
    }

    fn answer(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let alerting = self.pick_conversation(|stage| matches!(stage, ConversationStage::Alerting { .. }));
        let Some((key, agent)) = alerting.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let waited_ms = millis(at - self.live[&key].started_at);
        let conversation = self.advance(key, ConversationStage::Talking { agent }, at);
        out.push_back(ScenarioEvent::AcdEnd { of: conversation.clone(), answered_by: Some(agent), waited_ms });
        self.set_routing(agent, AgentRouting::Interacting, at, out);
        out.push_back(ScenarioEvent::UserConversation { agent, of: conversation.clone() });
        out.push_back(ScenarioEvent::QueueConversation(conversation.clone()));
        self.push_observations(conversation.queue, at, out);
    }

    fn end(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let talking = self.pick_conversation(|stage| matches!(stage, ConversationStage::Talking { .. }));
        let Some((key, agent)) = talking.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let talked_ms = millis(at - self.live[&key].since);
        let conversation = self.advance(key, ConversationStage::WrappingUp { agent }, at);
        out.push_back(ScenarioEvent::CustomerEnd(conversation.clone()));
        out.push_back(ScenarioEvent::UserEnd { of: conversation.clone(), agent, talked_ms });
        out.push_back(ScenarioEvent::UserConversation { agent, of: conversation.clone() });
        self.push_observations(conversation.queue, at, out);
    }

    fn wrap_up(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let wrapping = self.pick_conversation(|stage| matches!(stage, ConversationStage::WrappingUp { .. }));
        let Some((key, agent)) = wrapping.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let lasted_ms = millis(at - self.live[&key].since);
        let conversation = self.finish(key, Some(agent), at);
        out.push_back(ScenarioEvent::Wrapup { of: conversation.clone(), agent, lasted_ms });
        self.set_routing(agent, AgentRouting::Idle, at, out);
        out.push_back(ScenarioEvent::UserConversation { agent, of: conversation.clone() });
        out.push_back(ScenarioEvent::QueueConversation(conversation.clone()));
        self.push_observations(conversation.queue, at, out);
    }

    fn abandon(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let Some(key) = self.pick_conversation(|stage| matches!(stage, ConversationStage::Waiting)) else {
            return;
        };
        let waited_ms = millis(at - self.live[&key].started_at);
        let conversation = self.finish(key, None, at);
        out.push_back(ScenarioEvent::CustomerEnd(conversation.clone()));
        out.push_back(ScenarioEvent::AcdEnd { of: conversation.clone(), answered_by: None, waited_ms });
        out.push_back(ScenarioEvent::QueueConversation(conversation.clone()));
        self.push_observations(conversation.queue, at, out);
    }

    fn leave_queue(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let Some(agent) = self.pick_agent(|duty| duty.routing == AgentRouting::Idle) else {
            return;
        };
        // An agent with an alerting conversation stays on queue.
        if self.live.values().any(|live| live.stage == ConversationStage::Alerting { agent }) {
            return;
        }
        let away = [AgentPresence::Available, AgentPresence::Break, AgentPresence::Meal, AgentPresence::Meeting];
        let presence = away[self.rng.usize(0..away.len())];
        self.set_presence(agent, presence, AgentRouting::OffQueue, at, out);
    }

    fn return_to_queue(&mut self, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        if let Some(agent) = self.pick_agent(|duty| duty.routing == AgentRouting::OffQueue) {
            self.set_presence(agent, AgentPresence::OnQueue, AgentRouting::Idle, at, out);
        }
    }

    fn set_presence(
        &mut self,
        agent: usize,
        presence: AgentPresence,
        routing: AgentRouting,
        at: OffsetDateTime,
        out: &mut VecDeque<ScenarioEvent>,
    ) {
        self.agent_states[agent].presence = presence;
        self.agent_states[agent].presence_since = at;
        out.push_back(ScenarioEvent::PresenceSet { agent, state: self.agent_states[agent] });
        self.set_routing(agent, routing, at, out);
        for queue in self.roster.agents[agent].queues.clone() {
            let joined = routing != AgentRouting::OffQueue;
            out.push_back(ScenarioEvent::Membership { agent, queue, joined });
            self.push_observations(queue, at, out);
        }
    }

    fn set_routing(
        &mut self,
        agent: usize,
        routing: AgentRouting,
        at: OffsetDateTime,
        out: &mut VecDeque<ScenarioEvent>,
    ) {
        self.agent_states[agent].routing = routing;
        self.agent_states[agent].routing_since = at;
        let state = self.agent_states[agent];
        out.push_back(ScenarioEvent::RoutingSet { agent, state });
        out.push_back(ScenarioEvent::ActivitySet { agent, state });
    }

    fn push_observations(&mut self, queue: usize, at: OffsetDateTime, out: &mut VecDeque<ScenarioEvent>) {
        let gauges = self.gauges(queue, at);
        out.push_back(ScenarioEvent::Observations { queue, gauges });
        // The compact form is sent sometimes, in addition.
        if self.rng.u8(0..4) == 0 {
            out.push_back(ScenarioEvent::QueueActivity { queue, gauges });
        }
    }

    fn gauges(&self, queue: usize, at: OffsetDateTime) -> QueueGauges {
        let mut gauges = QueueGauges::default();
        for live in self.live.values().filter(|live| live.queue == queue) {
            match live.stage {
                ConversationStage::Waiting => {
                    gauges.waiting += 1;
                    gauges.longest_wait_ms = gauges.longest_wait_ms.max(millis(at - live.started_at));
                }
                ConversationStage::Alerting { .. } => gauges.alerting += 1,
                ConversationStage::Talking { .. } => gauges.interacting += 1,
                ConversationStage::WrappingUp { .. } | ConversationStage::Ended { .. } => (),
            }
        }
        for (agent, duty) in self.roster.agents.iter().zip(&self.agent_states) {
            if !agent.queues.contains(&queue) {
                continue;
            }
            match duty.routing {
                AgentRouting::OffQueue => gauges.off_queue += 1,
                AgentRouting::Idle => gauges.idle += 1,
                AgentRouting::Interacting => gauges.busy += 1,
            }
        }
        gauges.on_queue = gauges.idle + gauges.busy;
        gauges
    }

    fn advance(&mut self, key: u64, stage: ConversationStage, at: OffsetDateTime) -> SimulatedConversation {
        let live = self.live.get_mut(&key).expect("the key was picked from the live ones");
        live.stage = stage;
        live.since = at;
        live.clone()
    }

    fn finish(&mut self, key: u64, agent: Option<usize>, at: OffsetDateTime) -> SimulatedConversation {
        let ended = self.advance(key, ConversationStage::Ended { agent }, at);
        self.live.remove(&key);
        ended
    }

    fn pick_conversation(&mut self, wanted: impl Fn(ConversationStage) -> bool) -> Option<u64> {
        let keys: Vec<u64> = self.live.iter().filter(|(_, live)| wanted(live.stage)).map(|(&key, _)| key).collect();
        self.rng.choice(keys)
    }

    /// Agents of the queue that are idle and have no alerting conversation.
    fn idle_agent(&mut self, queue: usize) -> Option<usize> {
        let ringing: Vec<usize> = self.live.values().filter_map(|live| agent_of(live.stage)).collect();
        let free: Vec<usize> = (0..self.agent_states.len())
            .filter(|agent| self.agent_states[*agent].routing == AgentRouting::Idle)
            .filter(|agent| self.roster.agents[*agent].queues.contains(&queue) && !ringing.contains(agent))
            .collect();
        self.rng.choice(free)
    }

    fn pick_agent(&mut self, wanted: impl Fn(&AgentState) -> bool) -> Option<usize> {
        let found: Vec<usize> =
            self.agent_states.iter().enumerate().filter(|(_, duty)| wanted(duty)).map(|(agent, _)| agent).collect();
        self.rng.choice(found)
    }
}

fn millis(span: time::Duration) -> u64 {
    u64::try_from(span.whole_milliseconds()).unwrap_or(0)
}
