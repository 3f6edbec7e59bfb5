//! What there is in the world and what can happen to it, as plain data. It refuses to know why or when.

use time::OffsetDateTime;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Presence {
    OnQueue,
    Available,
    Break,
    Meal,
    Meeting,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Routing {
    OffQueue,
    Idle,
    Interacting,
}

/// An agent at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Duty {
    pub(super) presence: Presence,
    pub(super) present_since: OffsetDateTime,
    pub(super) routing: Routing,
    pub(super) routing_since: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stage {
    Waiting,
    Alerting { agent: usize },
    Talking { agent: usize },
    WrappingUp { agent: usize },
    Ended { agent: Option<usize> },
}

#[derive(Clone, Debug)]
pub(super) struct Conversation {
    pub(super) id: String,
    pub(super) session: String,
    pub(super) customer_part: String,
    pub(super) agent_part: String,
    pub(super) caller: String,
    pub(super) queue: usize,
    pub(super) stage: Stage,
    pub(super) began: OffsetDateTime,
    /// When the present stage began.
    pub(super) since: OffsetDateTime,
}

/// A queue in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Gauges {
    pub(super) waiting: u64,
    pub(super) alerting: u64,
    pub(super) interacting: u64,
    pub(super) on_queue: u64,
    pub(super) off_queue: u64,
    pub(super) idle: u64,
    pub(super) busy: u64,
    /// Milliseconds the longest waiting conversation has waited.
    pub(super) longest_wait_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Happening {
    CustomerStart(Conversation),
    CustomerEnd(Conversation),
    AcdEnd { of: Conversation, answered_by: Option<usize>, waited_ms: u64 },
    UserEnd { of: Conversation, agent: usize, talked_ms: u64 },
    Wrapup { of: Conversation, agent: usize, lasted_ms: u64 },
    QueueConversation(Conversation),
    UserConversation { agent: usize, of: Conversation },
    PresenceSet { agent: usize, duty: Duty },
    RoutingSet { agent: usize, duty: Duty },
    ActivitySet { agent: usize, duty: Duty },
    Membership { agent: usize, queue: usize, joined: bool },
    Observations { queue: usize, gauges: Gauges },
    QueueActivity { queue: usize, gauges: Gauges },
}

/// The agent a conversation is with.
pub(super) fn agent_of(stage: Stage) -> Option<usize> {
    match stage {
        Stage::Waiting => None,
        Stage::Alerting { agent } | Stage::Talking { agent } | Stage::WrappingUp { agent } => Some(agent),
        Stage::Ended { agent } => agent,
    }
}
