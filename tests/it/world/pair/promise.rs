//! What a standby owes to a log that numbers nothing: everything that it heard since its session was live, and no gap in
//! front of it, if the log has reached that far.

use std::time::Duration;

use trunkline::model::Event;

use super::Fate;
use crate::world::{
    Around,
    judge::{reason, uid},
    plan::Dialect,
};

/// What a replica that took the log over has to append.
#[derive(Debug)]
pub(super) struct Promise {
    pub(super) life: u32,
    heard: Vec<usize>,
    /// When the newest was said that the log had then; what was said before may lie in a hole that it tells.
    newest: Duration,
}

/// A standby when it takes a log over.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) life: u32,
    /// Since when it has been live without a break.
    pub(super) live_since: Option<Duration>,
    pub(super) kept: usize,
    /// Everything that it heard since.
    pub(super) heard: &'a [usize],
}

impl Promise {
    /// None if nothing is promised: it kept nothing that shows where the log ends, or the platform misbehaves.
    pub(super) fn of(standing: &Standing<'_>, fate: Fate, around: &Around) -> Option<Self> {
        if standing.kept == 0 || fate == Fate::Bad || around.scene.plan.dialect == Dialect::Sequenced {
            return None;
        }
        let (newest, mut since) = (newest_in(around)?, standing.live_since?);
        if standing.kept >= around.scene.plan.stream.buffer {
            // The oldest gave way; with the copies of an overlap, it may be half of it.
            let middle = standing.heard.len().checked_sub(standing.kept / 2)?;
            since = since.max(around.platform.said[*standing.heard.get(middle)?].at + around.scene.plan.lag());
        }
        let touches = newest > since && !tells_hole(around, since);
        touches.then(|| Self { life: standing.life, heard: standing.heard.to_vec(), newest })
    }

    /// Everything is durable that was heard.
    pub(super) fn is_kept(&self, around: &Around) {
        let said = &around.platform.said;
        let since = |class: &&usize| said[**class].at > self.newest + around.scene.plan.lag();
        for class in self.heard.iter().filter(since) {
            let is_there = around.store.log.iter().rev().any(|event| uid(event) == Some(*class));
            assert!(is_there, "a standby heard event {class}, said at {:?}, and lost it", said[*class].at);
        }
    }
}

fn newest_in(around: &Around) -> Option<Duration> {
    around.store.log.iter().filter_map(uid).map(|class| around.platform.said[class].at).max()
}

/// Whether a gap stands among, or in front of, the entries that were said since then.
fn tells_hole(around: &Around, since: Duration) -> bool {
    let is_since = |event: &&Event| uid(event).is_none_or(|class| around.platform.said[class].at > since);
    around.store.log.iter().rev().take_while(is_since).any(|event| reason(event).is_some())
}
