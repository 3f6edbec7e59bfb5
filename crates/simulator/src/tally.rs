//! What the simulator has done, counted, and which notifications it said. It refuses to judge.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// Notifications the ledger remembers, about 50 MB of them; older ones are forgotten.
const SAID_MAX: usize = 250_000;

/// Figures since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Tokens granted, by grant type.
    pub grants: BTreeMap<String, u64>,
    /// Token requests answered with a failure: by fault, and by right.
    pub token_failures: u64,
    pub channels_created: u64,
    /// By dialect: `sequenced` and `notifications`.
    pub sockets: BTreeMap<Dialect, Sockets>,
    /// Events of the contact centre; each is one sequenced event and one notification.
    pub events_said: u64,
    pub handshakes_refused: u64,
    pub last_sequence: u64,
    /// REST calls by the pattern of their path.
    pub rest: BTreeMap<String, u64>,
    pub notifications: Notifications,
}

impl Tally {
    /// Both dialects are listed from the start.
    pub(super) fn at_zero() -> Self {
        let sockets = [Dialect::Sequenced, Dialect::Notifications].map(|dialect| (dialect, Sockets::default()));
        Self { sockets: BTreeMap::from(sockets), ..Self::default() }
    }

    /// All grants together.
    pub fn grants_total(&self) -> u64 {
        self.grants.values().sum()
    }

    /// The sockets of one dialect.
    pub fn sockets(&self, dialect: Dialect) -> Sockets {
        self.sockets.get(&dialect).copied().unwrap_or_default()
    }
}

/// The two kinds of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    Sequenced,
    Notifications,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sockets {
    pub open: u64,
    pub total: u64,
    /// How often the last one was closed while no other was open.
    pub deserted: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Notifications {
    pub said: u64,
    /// Written to at least one socket.
    pub delivered: u64,
    /// Said while nobody was subscribed and connected.
    pub gone: u64,
}

/// One notification that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Dense, from 0.
    pub number: u64,
    pub topic: String,
    /// `metadata.CorrelationId`, unique in the story.
    pub correlation: String,
    /// Some channel was subscribed to the topic, with or without a socket.
    pub subscribed: bool,
    /// It was written to at least one socket.
    pub written: bool,
}

/// The notifications said lately.
#[derive(Debug, Default)]
pub(super) struct Said {
    first: u64,
    held: VecDeque<Notification>,
}

impl Said {
    /// The number that the next notification gets.
    pub(super) fn end(&self) -> u64 {
        self.first + self.held.len() as u64
    }

    pub(super) fn push(&mut self, topic: String, correlation: String, subscribed: bool) {
        if self.held.len() >= SAID_MAX {
            self.held.pop_front();
            self.first += 1;
        }
        let number = self.end();
        self.held.push_back(Notification { number, topic, correlation, subscribed, written: false });
    }

    /// Notes that it was written; true the first time.
    pub(super) fn written(&mut self, number: u64) -> bool {
        let Some(offset) = number.checked_sub(self.first) else {
            return false;
        };
        let index = usize::try_from(offset).unwrap_or(usize::MAX);
        self.held.get_mut(index).is_some_and(|said| !std::mem::replace(&mut said.written, true))
    }

    pub(super) fn since(&self, mark: u64) -> Vec<Notification> {
        let skip = usize::try_from(mark.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.held.iter().skip(skip).cloned().collect()
    }
}
