//! One stream's log as its readers have it: all replicas look, one writes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Durability,
    connection::{CommandError, Connection, Script},
    head,
    keys::Keys,
};
use crate::{model::Offset, store::Extent};

/// Where a log is, and what is known of its beginning.
#[derive(Debug)]
pub(super) struct View {
    pub(super) keys: Keys,
    first: AtomicU64,
}

impl View {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, first: AtomicU64::new(Offset::START.next().0) }
    }

    /// How far the log goes.
    pub(super) async fn look(
        &self,
        connection: &Connection,
        script: &Script,
        durability: Durability,
    ) -> Result<Extent, CommandError> {
        let answer: Vec<String> = connection.call(script, &self.keys.both(), &[]).await?;
        let damaged = || CommandError::NoAnswer(format!("{} is damaged: {answer:?}", self.keys.head));
        let extent = head::extent(&answer, durability).ok_or_else(damaged)?;
        self.begins_with(extent.first);
        Ok(extent)
    }

    /// The oldest entry held, as far as is known.
    pub(super) fn first(&self) -> Offset {
        Offset(self.first.load(Ordering::Acquire))
    }

    /// What the server said.
    pub(super) fn begins_with(&self, first: Offset) {
        self.first.store(first.0, Ordering::Release);
    }

    /// Retention came so far.
    pub(super) fn trimmed_to(&self, first: Offset) {
        self.first.fetch_max(first.0, Ordering::AcqRel);
    }

    /// What a reader saw: nothing between `after` and `first` is there any more.
    pub(super) fn seen_first(&self, first: Offset, after: Offset) {
        if first > after.next() {
            self.trimmed_to(first);
        }
    }
}
