//! One stream's log as its readers have it: all replicas look, one writes.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use redis::cmd;

use super::{
    Durability,
    connection::{CommandError, LuaScript, RedisConnection},
    head,
    keys::LogKeys,
    unreadable::REPAIR_HINT,
};
use crate::{
    model::{FeedId, Offset},
    store::LogBounds,
};

/// Which of a log's keys are of another type than the log's own, for people.
pub(super) async fn wrong_types(connection: &RedisConnection, keys: &LogKeys) -> String {
    let mut wrong = Vec::new();
    for (key, expected) in [(&keys.head, "hash"), (&keys.log, "stream")] {
        let found: String = connection.run(cmd("TYPE").arg(key)).await.unwrap_or_else(|_| "something else".to_owned());
        if found != expected && found != "none" {
            wrong.push(format!("{key} holds a {found}, expected a {expected}"));
        }
    }
    format!("{}; {REPAIR_HINT}", wrong.join("; "))
}

/// Where a log is, and what is known of its beginning.
#[derive(Debug)]
pub(super) struct LogView {
    pub(super) keys: LogKeys,
    first: AtomicU64,
    /// Why what is held cannot be shown to readers here.
    unreadable: Mutex<Option<String>>,
}

impl LogView {
    pub(super) fn new(keys: LogKeys) -> Self {
        Self { keys, first: AtomicU64::new(Offset::START.next().0), unreadable: Mutex::default() }
    }

    /// How far the log goes; else why what is held of it cannot be used.
    pub(super) async fn bounds(
        &self,
        connection: &RedisConnection,
        script: &LuaScript,
        durability: Durability,
    ) -> Result<Result<LogBounds, String>, CommandError> {
        let answer: Vec<String> = match connection.call(script, &self.keys.both(), &[]).await {
            Err(CommandError::Refused { code, .. }) if code == "WRONGTYPE" => {
                return Ok(Err(wrong_types(connection, &self.keys).await));
            }
            answer => answer?,
        };
        match head::read_bounds(&answer, durability) {
            Ok(extent) => {
                self.set_first(extent.first);
                Ok(Ok(extent))
            }
            Err(odd) => Ok(Err(head::describe_malformed(&self.keys.head, &odd))),
        }
    }

    /// Whose numbers the stored position is in, as far as is known.
    pub(super) async fn feed(&self, connection: &RedisConnection) -> Result<Option<FeedId>, CommandError> {
        let fields = connection.run(cmd("HMGET").arg(&self.keys.head).arg("feed").arg("position")).await?;
        let [feed, position]: [Option<String>; 2] = fields;
        Ok(head::feed_of(&feed.unwrap_or_default(), &position.unwrap_or_default()))
    }

    /// The oldest entry held, as far as is known.
    pub(super) fn first(&self) -> Offset {
        Offset(self.first.load(Ordering::Acquire))
    }

    /// What the server said.
    pub(super) fn set_first(&self, first: Offset) {
        self.first.store(first.0, Ordering::Release);
    }

    /// Retention came so far.
    pub(super) fn trimmed_to(&self, first: Offset) {
        self.first.fetch_max(first.0, Ordering::AcqRel);
    }

    /// Why readers here are not shown what the log holds.
    pub(super) fn unreadable(&self) -> Option<String> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is held cannot be shown to readers.
    pub(super) fn set_unreadable(&self, why: &str) {
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// It can be shown.
    pub(super) fn set_readable(&self) {
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
