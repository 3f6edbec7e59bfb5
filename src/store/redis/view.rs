//! One stream's log for readers.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
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

/// The message for a log whose keys have the wrong type.
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

/// The keys of a log, its first entry, and whether it is readable.
#[derive(Debug)]
pub(super) struct LogView {
    pub(super) keys: LogKeys,
    first: AtomicU64,
    /// Why readers here cannot get the entries.
    unreadable: Mutex<Option<String>>,
}

impl LogView {
    pub(super) fn new(keys: LogKeys) -> Self {
        Self { keys, first: AtomicU64::new(Offset::START.next().0), unreadable: Mutex::default() }
    }

    /// The bounds of the log; else why it cannot be used.
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
            Ok(bounds) => {
                self.set_first(bounds.first);
                Ok(Ok(bounds))
            }
            Err(odd) => Ok(Err(head::describe_malformed(&self.keys.head, &odd))),
        }
    }

    /// The feed that the stored position belongs to, if known.
    pub(super) async fn feed(&self, connection: &RedisConnection) -> Result<Option<FeedId>, CommandError> {
        let fields = connection.run(cmd("HMGET").arg(&self.keys.head).arg("feed").arg("position")).await?;
        let [feed, position]: [Option<String>; 2] = fields;
        Ok(head::feed_of(&feed.unwrap_or_default(), &position.unwrap_or_default()))
    }

    /// The oldest entry held, by the last answer of the server.
    pub(super) fn first(&self) -> Offset {
        Offset(self.first.load(Ordering::Acquire))
    }

    /// Sets the oldest entry by an answer of the server.
    pub(super) fn set_first(&self, first: Offset) {
        self.first.store(first.0, Ordering::Release);
    }

    /// Moves the oldest entry forward after retention.
    pub(super) fn trimmed_to(&self, first: Offset) {
        self.first.fetch_max(first.0, Ordering::AcqRel);
    }

    /// Why readers here do not get the entries.
    pub(super) fn unreadable(&self) -> Option<String> {
        self.unreadable.lock().clone()
    }

    /// Marks the log as unreadable.
    pub(super) fn set_unreadable(&self, why: &str) {
        *self.unreadable.lock() = Some(why.to_owned());
    }

    /// Marks the log as readable.
    pub(super) fn set_readable(&self) {
        *self.unreadable.lock() = None;
    }
}
