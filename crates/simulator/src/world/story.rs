//! What happens next: conversations arrive, wait, alert, are answered, wrapped up and end; agents come and go.
//! A step changes the story and lists what it caused, in the order in which the platform would tell it.
//! It refuses to know how an event is written.

use std::collections::{BTreeMap, VecDeque};

use time::OffsetDateTime;

use super::cast::{Cast, uuid};
use super::happening::{Conversation, Duty, Gauges, Happening, Presence, Routing, Stage, agent_of};

/// Conversations that may wait for each agent before nobody else calls.
const WAITING_PER_AGENT: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Move {
    Arrive,
    Alert,
    Answer,
    End,
    WrapUp,
    Abandon,
    Leave,
    Return,
}

/// How often each move is tried against the others; one that is not possible is passed over.
const MOVES: [(Move, u32); 8] = [
    (Move::Arrive, 22),
    (Move::Alert, 30),
    (Move::Answer, 30),
    (Move::End, 16),
    (Move::WrapUp, 16),
    (Move::Abandon, 2),
    (Move::Leave, 3),
    (Move::Return, 4),
];

#[derive(Debug)]
pub(super) struct Story {
    cast: Cast,
    rng: fastrand::Rng,
    duties: Vec<Duty>,
    live: BTreeMap<u64, Conversation>,
    arrived: u64,
}

impl Story {
    /// Everybody is on queue and idle when the doors open.
    pub(super) fn begin(seed: u64, cast: Cast, base: OffsetDateTime) -> Self {
        let duty =
            Duty { presence: Presence::OnQueue, present_since: base, routing: Routing::Idle, routing_since: base };
        let duties = vec![duty; cast.agents.len()];
        Self { cast, rng: fastrand::Rng::with_seed(!seed), duties, live: BTreeMap::new(), arrived: 0 }
    }

    pub(super) fn cast(&self) -> &Cast {
        &self.cast
    }

    pub(super) fn duties(&self) -> &[Duty] {
        &self.duties
    }

    /// Tries one move. It may turn out impossible, and then nothing happened.
    pub(super) fn step(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        match self.choose() {
            Move::Arrive => self.arrive(at, out),
            Move::Alert => self.alert(at, out),
            Move::Answer => self.answer(at, out),
            Move::End => self.end(at, out),
            Move::WrapUp => self.wrap_up(at, out),
            Move::Abandon => self.abandon(at, out),
            Move::Leave => self.leave(at, out),
            Move::Return => self.come_back(at, out),
        }
    }

    fn choose(&mut self) -> Move {
        let total = MOVES.iter().map(|(_, weight)| weight).sum();
        let mut ticket = self.rng.u32(0..total);
        for (chosen, weight) in MOVES {
            if ticket < weight {
                return chosen;
            }
            ticket -= weight;
        }
        Move::Arrive
    }

    fn arrive(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let waiting = self.live.values().filter(|live| live.stage == Stage::Waiting).count();
        if waiting >= WAITING_PER_AGENT * self.duties.len() {
            return;
        }
        self.arrived += 1;
        let conversation = Conversation {
            id: uuid(&mut self.rng),
            session: uuid(&mut self.rng),
            customer_part: uuid(&mut self.rng),
            agent_part: uuid(&mut self.rng),
            caller: format!("tel:+1714555{:04}", self.rng.u32(0..10_000)),
            queue: self.rng.usize(0..self.cast.queues.len()),
            stage: Stage::Waiting,
            began: at,
            since: at,
        };
        self.live.insert(self.arrived, conversation.clone());
        out.push_back(Happening::CustomerStart(conversation.clone()));
        out.push_back(Happening::QueueConversation(conversation.clone()));
        self.observe(conversation.queue, at, out);
    }

    fn alert(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let waiting = self.pick(|stage| matches!(stage, Stage::Waiting));
        let Some(key) = waiting else { return };
        let Some(agent) = self.idle_agent(self.live[&key].queue) else {
            return;
        };
        let conversation = self.advance(key, Stage::Alerting { agent }, at);
        out.push_back(Happening::UserConversation { agent, of: conversation.clone() });
        self.observe(conversation.queue, at, out);
    }

    fn answer(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let alerting = self.pick(|stage| matches!(stage, Stage::Alerting { .. }));
        let Some((key, agent)) = alerting.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let waited_ms = millis(at - self.live[&key].began);
        let conversation = self.advance(key, Stage::Talking { agent }, at);
        out.push_back(Happening::AcdEnd { of: conversation.clone(), answered_by: Some(agent), waited_ms });
        self.set_routing(agent, Routing::Interacting, at, out);
        out.push_back(Happening::UserConversation { agent, of: conversation.clone() });
        out.push_back(Happening::QueueConversation(conversation.clone()));
        self.observe(conversation.queue, at, out);
    }

    fn end(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let talking = self.pick(|stage| matches!(stage, Stage::Talking { .. }));
        let Some((key, agent)) = talking.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let talked_ms = millis(at - self.live[&key].since);
        let conversation = self.advance(key, Stage::WrappingUp { agent }, at);
        out.push_back(Happening::CustomerEnd(conversation.clone()));
        out.push_back(Happening::UserEnd { of: conversation.clone(), agent, talked_ms });
        out.push_back(Happening::UserConversation { agent, of: conversation.clone() });
        self.observe(conversation.queue, at, out);
    }

    fn wrap_up(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let wrapping = self.pick(|stage| matches!(stage, Stage::WrappingUp { .. }));
        let Some((key, agent)) = wrapping.and_then(|key| Some((key, agent_of(self.live[&key].stage)?))) else {
            return;
        };
        let lasted_ms = millis(at - self.live[&key].since);
        let conversation = self.finish(key, Some(agent), at);
        out.push_back(Happening::Wrapup { of: conversation.clone(), agent, lasted_ms });
        self.set_routing(agent, Routing::Idle, at, out);
        out.push_back(Happening::UserConversation { agent, of: conversation.clone() });
        out.push_back(Happening::QueueConversation(conversation.clone()));
        self.observe(conversation.queue, at, out);
    }

    fn abandon(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let Some(key) = self.pick(|stage| matches!(stage, Stage::Waiting)) else {
            return;
        };
        let waited_ms = millis(at - self.live[&key].began);
        let conversation = self.finish(key, None, at);
        out.push_back(Happening::CustomerEnd(conversation.clone()));
        out.push_back(Happening::AcdEnd { of: conversation.clone(), answered_by: None, waited_ms });
        out.push_back(Happening::QueueConversation(conversation.clone()));
        self.observe(conversation.queue, at, out);
    }

    fn leave(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let Some(agent) = self.someone(|duty| duty.routing == Routing::Idle) else {
            return;
        };
        // An agent whose phone is ringing stays.
        if self.live.values().any(|live| live.stage == Stage::Alerting { agent }) {
            return;
        }
        let away = [Presence::Available, Presence::Break, Presence::Meal, Presence::Meeting];
        let presence = away[self.rng.usize(0..away.len())];
        self.go(agent, presence, Routing::OffQueue, at, out);
    }

    fn come_back(&mut self, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        if let Some(agent) = self.someone(|duty| duty.routing == Routing::OffQueue) {
            self.go(agent, Presence::OnQueue, Routing::Idle, at, out);
        }
    }

    fn go(
        &mut self,
        agent: usize,
        presence: Presence,
        routing: Routing,
        at: OffsetDateTime,
        out: &mut VecDeque<Happening>,
    ) {
        self.duties[agent].presence = presence;
        self.duties[agent].present_since = at;
        out.push_back(Happening::PresenceSet { agent, duty: self.duties[agent] });
        self.set_routing(agent, routing, at, out);
        for queue in self.cast.agents[agent].queues.clone() {
            let joined = routing != Routing::OffQueue;
            out.push_back(Happening::Membership { agent, queue, joined });
            self.observe(queue, at, out);
        }
    }

    fn set_routing(&mut self, agent: usize, routing: Routing, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        self.duties[agent].routing = routing;
        self.duties[agent].routing_since = at;
        let duty = self.duties[agent];
        out.push_back(Happening::RoutingSet { agent, duty });
        out.push_back(Happening::ActivitySet { agent, duty });
    }

    fn observe(&mut self, queue: usize, at: OffsetDateTime, out: &mut VecDeque<Happening>) {
        let gauges = self.gauges(queue, at);
        out.push_back(Happening::Observations { queue, gauges });
        // The compact form is told as well, but not every time.
        if self.rng.u8(0..4) == 0 {
            out.push_back(Happening::QueueActivity { queue, gauges });
        }
    }

    fn gauges(&self, queue: usize, at: OffsetDateTime) -> Gauges {
        let mut gauges = Gauges::default();
        for live in self.live.values().filter(|live| live.queue == queue) {
            match live.stage {
                Stage::Waiting => {
                    gauges.waiting += 1;
                    gauges.longest_wait_ms = gauges.longest_wait_ms.max(millis(at - live.began));
                }
                Stage::Alerting { .. } => gauges.alerting += 1,
                Stage::Talking { .. } => gauges.interacting += 1,
                Stage::WrappingUp { .. } | Stage::Ended { .. } => (),
            }
        }
        for (agent, duty) in self.cast.agents.iter().zip(&self.duties) {
            if !agent.queues.contains(&queue) {
                continue;
            }
            match duty.routing {
                Routing::OffQueue => gauges.off_queue += 1,
                Routing::Idle => gauges.idle += 1,
                Routing::Interacting => gauges.busy += 1,
            }
        }
        gauges.on_queue = gauges.idle + gauges.busy;
        gauges
    }

    fn advance(&mut self, key: u64, stage: Stage, at: OffsetDateTime) -> Conversation {
        let live = self.live.get_mut(&key).expect("the key was picked from the live ones");
        live.stage = stage;
        live.since = at;
        live.clone()
    }

    fn finish(&mut self, key: u64, agent: Option<usize>, at: OffsetDateTime) -> Conversation {
        let ended = self.advance(key, Stage::Ended { agent }, at);
        self.live.remove(&key);
        ended
    }

    fn pick(&mut self, wanted: impl Fn(Stage) -> bool) -> Option<u64> {
        let keys: Vec<u64> = self.live.iter().filter(|(_, live)| wanted(live.stage)).map(|(&key, _)| key).collect();
        self.rng.choice(keys)
    }

    /// Idle, a member of the queue, and not being rung already.
    fn idle_agent(&mut self, queue: usize) -> Option<usize> {
        let ringing: Vec<usize> = self.live.values().filter_map(|live| agent_of(live.stage)).collect();
        let free: Vec<usize> = (0..self.duties.len())
            .filter(|agent| self.duties[*agent].routing == Routing::Idle)
            .filter(|agent| self.cast.agents[*agent].queues.contains(&queue) && !ringing.contains(agent))
            .collect();
        self.rng.choice(free)
    }

    fn someone(&mut self, wanted: impl Fn(&Duty) -> bool) -> Option<usize> {
        let found: Vec<usize> =
            self.duties.iter().enumerate().filter(|(_, duty)| wanted(duty)).map(|(agent, _)| agent).collect();
        self.rng.choice(found)
    }
}

fn millis(span: time::Duration) -> u64 {
    u64::try_from(span.whole_milliseconds()).unwrap_or(0)
}
