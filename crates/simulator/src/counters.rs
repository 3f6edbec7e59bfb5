//! Counters of the simulator, and the notifications that it emitted.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// Notifications in the ledger, about 50 MB; older ones are removed.
const LEDGER_LEN_MAX: usize = 250_000;

/// Counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SimulatorCounters {
    /// Tokens granted, by grant type.
    pub grants: BTreeMap<String, u64>,
    /// Token requests that were answered with an error, because of a fault or a bad request.
    pub token_failures: u64,
    pub channels_created: u64,
    /// By dialect: `sequenced` and `notifications`.
    pub sockets: BTreeMap<SocketDialect, SocketCounters>,
    /// Events of the contact centre; each is one sequenced event and one notification.
    pub events_said: u64,
    pub handshakes_refused: u64,
    pub last_sequence: u64,
    /// REST calls by the pattern of their path.
    pub rest: BTreeMap<String, u64>,
    pub notifications: NotificationCounters,
}

impl SimulatorCounters {
    /// Both dialects are listed from the start.
    pub(super) fn zero() -> Self {
        let sockets = [SocketDialect::Sequenced, SocketDialect::Notifications]
            .map(|dialect| (dialect, SocketCounters::default()));
        Self { sockets: BTreeMap::from(sockets), ..Self::default() }
    }

    /// The grants of all types.
    pub fn grants_total(&self) -> u64 {
        self.grants.values().sum()
    }

    /// The sockets of one dialect.
    pub fn sockets(&self, dialect: SocketDialect) -> SocketCounters {
        self.sockets.get(&dialect).copied().unwrap_or_default()
    }
}

/// The two kinds of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketDialect {
    Sequenced,
    Notifications,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketCounters {
    pub open: u64,
    pub total: u64,
    /// How often the last open socket of the dialect closed.
    pub deserted: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotificationCounters {
    pub said: u64,
    /// Written to at least one socket.
    pub delivered: u64,
    /// Emitted while no client was subscribed and connected.
    pub gone: u64,
}

/// One notification that was emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmittedNotification {
    /// Dense, from 0.
    pub number: u64,
    pub topic: String,
    /// `metadata.CorrelationId`, unique in the scenario.
    pub correlation: String,
    /// At least one channel was subscribed to the topic, with or without a socket.
    pub subscribed: bool,
    /// It was written to at least one socket.
    pub written: bool,
}

/// The notifications that were emitted last.
#[derive(Debug, Default)]
pub(super) struct NotificationLog {
    first: u64,
    notifications: VecDeque<EmittedNotification>,
}

impl NotificationLog {
    /// The number that the next notification gets.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.notifications.len() as u64
    }

    pub(super) fn push(&mut self, topic: String, correlation: String, subscribed: bool) {
        if self.notifications.len() >= LEDGER_LEN_MAX {
            self.notifications.pop_front();
            self.first += 1;
        }
        let number = self.next_number();
        self.notifications.push_back(EmittedNotification { number, topic, correlation, subscribed, written: false });
    }

    /// Marks a notification as written; true the first time.
    pub(super) fn mark_written(&mut self, number: u64) -> bool {
        let Some(offset) = number.checked_sub(self.first) else {
            return false;
        };
        let index = usize::try_from(offset).unwrap_or(usize::MAX);
        self.notifications.get_mut(index).is_some_and(|entry| !std::mem::replace(&mut entry.written, true))
    }

    pub(super) fn since(&self, mark: u64) -> Vec<EmittedNotification> {
        let skip = usize::try_from(mark.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.notifications.iter().skip(skip).cloned().collect()
    }
}
