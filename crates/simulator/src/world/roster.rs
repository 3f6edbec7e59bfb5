//! The agents and queues with their ids. The roster does not change.

use std::ops::Range;

/// Queues an agent is a member of.
const QUEUES_PER_AGENT: Range<usize> = 1..4;

pub(crate) const ORGANIZATION: &str = "32aa07aa-51c4-4a1e-8d0a-c3f0a4f3a7de";
pub(crate) const DIVISION: &str = "d1f7a8c2-6a0e-4c9b-9b7d-0e5a1c2f3b44";

const QUEUE_NAMES: [&str; 12] = [
    "Sales",
    "Billing",
    "Support",
    "Returns",
    "Claims",
    "Bookings",
    "Loyalty",
    "Collections",
    "Technical",
    "Baggage",
    "Cards",
    "Complaints",
];
const FIRST_NAMES: [&str; 16] = [
    "Ada", "Bela", "Chidi", "Dora", "Emre", "Freya", "Goran", "Hana", "Ines", "Jonas", "Kavya", "Luca", "Mina", "Noor",
    "Oskar", "Priya",
];
const LAST_NAMES: [&str; 15] = [
    "Adler", "Brandt", "Costa", "Duarte", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kowalski",
    "Lind", "Moreau", "Novak", "Okafor",
];

#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) email: String,
    /// Indices into the queues of the roster.
    pub(crate) queues: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Roster {
    pub(crate) agents: Vec<Agent>,
    pub(crate) queues: Vec<Queue>,
}

impl Roster {
    /// At least one agent and one queue. Each agent serves a few queues; the first queue always has an agent.
    pub(crate) fn generate(seed: u64, agents: usize, queues: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let queues: Vec<Queue> = (0..queues.max(1)).map(|index| queue(&mut rng, index)).collect();
        let agents = (0..agents.max(1)).map(|index| agent(&mut rng, index, queues.len())).collect();
        Self { agents, queues }
    }

    pub(crate) fn agent(&self, id: &str) -> Option<usize> {
        self.agents.iter().position(|agent| agent.id == id)
    }

    pub(crate) fn queue(&self, id: &str) -> Option<usize> {
        self.queues.iter().position(|queue| queue.id == id)
    }
}

/// A random id in the text form of a version 4 UUID.
pub(crate) fn uuid(rng: &mut fastrand::Rng) -> String {
    let bits = rng.u128(..);
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        (low >> 48) & 0x3fff | 0x8000,
        low & 0xffff_ffff_ffff
    )
}

fn queue(rng: &mut fastrand::Rng, index: usize) -> Queue {
    let name = QUEUE_NAMES.get(index).map_or_else(|| format!("Queue {}", index + 1), |&name| name.to_owned());
    Queue { id: uuid(rng), name }
}

fn agent(rng: &mut fastrand::Rng, index: usize, queues: usize) -> Agent {
    let first = FIRST_NAMES[index % FIRST_NAMES.len()];
    let last = LAST_NAMES[index % LAST_NAMES.len()];
    let round = index / (FIRST_NAMES.len() * LAST_NAMES.len());
    let suffix = if round == 0 { String::new() } else { (round + 1).to_string() };
    let email = format!("{}.{}{suffix}@example.com", first.to_lowercase(), last.to_lowercase());
    let serves = rng.usize(QUEUES_PER_AGENT).min(queues);
    let queues = (0..serves).map(|step| (index + step) % queues).collect();
    Agent { id: uuid(rng), name: format!("{first} {last}{suffix}"), email, queues }
}
