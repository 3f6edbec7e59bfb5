//! Agents, queues, conversations and what can happen to them, as plain data.

use time::OffsetDateTime;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum AgentPresence {
    OnQueue,
    Available,
    Break,
    Meal,
    Meeting,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum AgentRouting {
    OffQueue,
    Idle,
    Interacting,
}

/// An agent at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AgentState {
    pub(super) presence: AgentPresence,
    pub(super) presence_since: OffsetDateTime,
    pub(super) routing: AgentRouting,
    pub(super) routing_since: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ConversationStage {
    Waiting,
    Alerting { agent: usize },
    Talking { agent: usize },
    WrappingUp { agent: usize },
    Ended { agent: Option<usize> },
}

#[derive(Clone, Debug)]
pub(super) struct SimulatedConversation {
    pub(super) id: String,
    pub(super) session: String,
    pub(super) customer_part: String,
    pub(super) agent_part: String,
    pub(super) caller: String,
    pub(super) queue: usize,
    pub(super) stage: ConversationStage,
    pub(super) started_at: OffsetDateTime,
    /// When the current stage began.
    pub(super) since: OffsetDateTime,
}

/// A queue in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct QueueGauges {
    pub(super) waiting: u64,
    pub(super) alerting: u64,
    pub(super) interacting: u64,
    pub(super) on_queue: u64,
    pub(super) off_queue: u64,
    pub(super) idle: u64,
    pub(super) busy: u64,
    /// Waiting time of the longest waiting conversation, in milliseconds.
    pub(super) longest_wait_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) enum ScenarioEvent {
    CustomerStart(SimulatedConversation),
    CustomerEnd(SimulatedConversation),
    AcdEnd { of: SimulatedConversation, answered_by: Option<usize>, waited_ms: u64 },
    UserEnd { of: SimulatedConversation, agent: usize, talked_ms: u64 },
    Wrapup { of: SimulatedConversation, agent: usize, lasted_ms: u64 },
    QueueConversation(SimulatedConversation),
    UserConversation { agent: usize, of: SimulatedConversation },
    PresenceSet { agent: usize, state: AgentState },
    RoutingSet { agent: usize, state: AgentState },
    ActivitySet { agent: usize, state: AgentState },
    Membership { agent: usize, queue: usize, joined: bool },
    Observations { queue: usize, gauges: QueueGauges },
    QueueActivity { queue: usize, gauges: QueueGauges },
}

/// The agent a conversation is with.
pub(super) fn agent_of(stage: ConversationStage) -> Option<usize> {
    match stage {
        ConversationStage::Waiting => None,
        ConversationStage::Alerting { agent }
        | ConversationStage::Talking { agent }
        | ConversationStage::WrappingUp { agent } => Some(agent),
        ConversationStage::Ended { agent } => agent,
    }
}
