//! What a standby guarantees to an unnumbered log: all events since its session is live, and no gap before them if the
//! log overlaps with them.

use std::time::Duration;

use trunkline::model::Event;

use super::PairFaultProfile;
use crate::world::{
    TestEnvironment,
    checker::{reason, uid},
    plan::ConnectorKind,
};

/// The events that a replica has to append after a takeover.
#[derive(Debug)]
pub(super) struct StandbyGuarantee {
    pub(super) incarnation: u32,
    received: Vec<usize>,
    /// When the platform sent the newest stored event at the takeover. A gap may cover earlier events.
    newest_stored_at: Duration,
}

/// A standby at the moment of its takeover.
#[derive(Debug)]
pub(super) struct StandbyState<'a> {
    pub(super) incarnation: u32,
    /// Since when its session is live without a break.
    pub(super) live_since: Option<Duration>,
    pub(super) buffered: usize,
    /// Everything that it received since then.
    pub(super) received: &'a [usize],
}

impl StandbyGuarantee {
    /// `None` if there is no guarantee: no buffered event shows where the log ends, or the platform has faults.
    pub(super) fn of(standby: &StandbyState<'_>, profile: PairFaultProfile, env: &TestEnvironment) -> Option<Self> {
        if standby.buffered == 0
            || profile == PairFaultProfile::Faulty
            || env.schedule.plan.dialect == ConnectorKind::Sequenced
        {
            return None;
        }
        let (newest, mut since) = (newest_in(env)?, standby.live_since?);
        if standby.buffered >= env.schedule.plan.stream.buffer {
            // The buffer dropped its oldest events; with duplicates of an overlap, up to half of it.
            let middle = standby.received.len().checked_sub(standby.buffered / 2)?;
            since =
                since.max(env.platform.sent_events[*standby.received.get(middle)?].sent_at + env.schedule.plan.lag());
        }
        let touches = newest > since && !has_gap_since(env, since);
        touches.then(|| Self {
            incarnation: standby.incarnation,
            received: standby.received.to_vec(),
            newest_stored_at: newest,
        })
    }

    /// All received events are durable.
    pub(super) fn assert_stored(&self, env: &TestEnvironment) {
        let sent = &env.platform.sent_events;
        let since = |class: &&usize| sent[**class].sent_at > self.newest_stored_at + env.schedule.plan.lag();
        for class in self.received.iter().filter(since) {
            let is_there = env.store.log.iter().rev().any(|event| uid(event) == Some(*class));
            assert!(is_there, "a standby lost event {class}, which it received, sent at {:?}", sent[*class].sent_at);
        }
    }
}

fn newest_in(env: &TestEnvironment) -> Option<Duration> {
    env.store.log.iter().filter_map(uid).map(|class| env.platform.sent_events[class].sent_at).max()
}

/// Whether a gap is among the entries that were sent since then, or directly before them.
fn has_gap_since(env: &TestEnvironment, since: Duration) -> bool {
    let is_since = |event: &&Event| uid(event).is_none_or(|class| env.platform.sent_events[class].sent_at > since);
    env.store.log.iter().rev().take_while(is_since).any(|event| reason(event).is_some())
}
