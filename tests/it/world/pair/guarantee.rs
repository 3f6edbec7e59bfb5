//! What a standby owes to a log that numbers nothing: everything that it heard since its session was live, and no gap in
//! front of it, if the log has reached that far.

use std::time::Duration;

use trunkline::model::Event;

use super::PairFaultProfile;
use crate::world::{
    TestEnvironment,
    checker::{reason, uid},
    plan::ConnectorKind,
};

/// What a replica that took the log over has to append.
#[derive(Debug)]
pub(super) struct StandbyGuarantee {
    pub(super) incarnation: u32,
    received: Vec<usize>,
    /// When the newest was said that the log had then; what was said before may lie in a hole that it tells.
    newest_stored_at: Duration,
}

/// A standby when it takes a log over.
#[derive(Debug)]
pub(super) struct StandbyState<'a> {
    pub(super) incarnation: u32,
    /// Since when it has been live without a break.
    pub(super) live_since: Option<Duration>,
    pub(super) buffered: usize,
    /// Everything that it heard since.
    pub(super) received: &'a [usize],
}

impl StandbyGuarantee {
    /// None if nothing is promised: it kept nothing that shows where the log ends, or the platform misbehaves.
    pub(super) fn of(standing: &StandbyState<'_>, profile: PairFaultProfile, env: &TestEnvironment) -> Option<Self> {
        if standing.buffered == 0
            || profile == PairFaultProfile::Faulty
            || env.schedule.plan.dialect == ConnectorKind::Sequenced
        {
            return None;
        }
        let (newest, mut since) = (newest_in(env)?, standing.live_since?);
        if standing.buffered >= env.schedule.plan.stream.buffer {
            // The oldest gave way; with the copies of an overlap, it may be half of it.
            let middle = standing.received.len().checked_sub(standing.buffered / 2)?;
            since =
                since.max(env.platform.sent_events[*standing.received.get(middle)?].sent_at + env.schedule.plan.lag());
        }
        let touches = newest > since && !has_gap_since(env, since);
        touches.then(|| Self {
            incarnation: standing.incarnation,
            received: standing.received.to_vec(),
            newest_stored_at: newest,
        })
    }

    /// Everything is durable that was heard.
    pub(super) fn assert_stored(&self, env: &TestEnvironment) {
        let said = &env.platform.sent_events;
        let since = |class: &&usize| said[**class].sent_at > self.newest_stored_at + env.schedule.plan.lag();
        for class in self.received.iter().filter(since) {
            let is_there = env.store.log.iter().rev().any(|event| uid(event) == Some(*class));
            assert!(is_there, "a standby heard event {class}, said at {:?}, and lost it", said[*class].sent_at);
        }
    }
}

fn newest_in(env: &TestEnvironment) -> Option<Duration> {
    env.store.log.iter().filter_map(uid).map(|class| env.platform.sent_events[class].sent_at).max()
}

/// Whether a gap stands among, or in front of, the entries that were said since then.
fn has_gap_since(env: &TestEnvironment, since: Duration) -> bool {
    let is_since = |event: &&Event| uid(event).is_none_or(|class| env.platform.sent_events[class].sent_at > since);
    env.store.log.iter().rev().take_while(is_since).any(|event| reason(event).is_some())
}
