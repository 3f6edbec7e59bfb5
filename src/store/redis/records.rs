//! Records that are not in the logs: cursors of consumers, and revocations.

use std::collections::BTreeMap;

use redis::cmd;

use super::{
    connection::{LuaScript, RedisConnection},
    head,
    keys::{self, key},
    log::append_error,
    unreadable::quoted,
};
use crate::{
    model::{ConsumerName, Mark, Revocation, RevocationTarget, StreamName, Timestamp},
    store::{AppendError, ReadError},
};

/// The scripts of the records.
#[derive(Debug)]
pub(super) struct RecordScripts {
    cursor: LuaScript,
    revoke: LuaScript,
    revoked: LuaScript,
}

impl Default for RecordScripts {
    fn default() -> Self {
        Self {
            cursor: LuaScript::new(include_str!("scripts/cursor.lua")),
            revoke: LuaScript::new(include_str!("scripts/revoke.lua")),
            revoked: LuaScript::new(include_str!("scripts/revoked.lua")),
        }
    }
}

/// Access to the records.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordStore<'a> {
    pub(super) connection: &'a RedisConnection,
    pub(super) prefix: &'a str,
    pub(super) scripts: &'a RecordScripts,
}

impl RecordStore<'_> {
    pub(super) async fn cursor(self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        let key = keys::cursors(self.prefix, stream);
        let found = self.connection.run(cmd("HMGET").arg(&key).arg(consumer.as_str())).await;
        let [text]: [Option<String>; 1] = found.map_err(ReadError::new)?;
        let strange = |text: &str| ReadError::new(format!("{} in {key} is not a cursor of {consumer}", quoted(text)));
        text.map(|text| parse_cursor(&text).ok_or_else(|| strange(&text))).transpose()
    }

    pub(super) async fn move_cursor(
        self,
        consumer: &ConsumerName,
        stream: &StreamName,
        from: Option<Mark>,
        to: Mark,
    ) -> Result<bool, AppendError> {
        let key = keys::cursors(self.prefix, stream);
        let from = from.map(|mark| mark.to_string()).unwrap_or_default();
        let arguments = [consumer.as_str().as_bytes(), from.as_bytes(), &to.to_string().into_bytes()];
        let moved = self.connection.call(&self.scripts.cursor, &[&key], &arguments).await;
        moved.map_err(append_error)
    }

    pub(super) async fn revoke(self, revocation: &Revocation) -> Result<(), AppendError> {
        let Revocation { target, at, ttl } = revocation;
        let arguments = [target.to_string(), at.0.to_string(), ttl.as_millis().to_string()];
        let arguments = arguments.each_ref().map(String::as_bytes);
        let done = self.connection.call::<u8>(&self.scripts.revoke, &[&self.revocations_key()], &arguments).await;
        done.map(drop).map_err(append_error)
    }

    pub(super) async fn revoked(self) -> Result<BTreeMap<RevocationTarget, Timestamp>, ReadError> {
        let found = self.connection.call(&self.scripts.revoked, &[&self.revocations_key()], &[]).await;
        let found: Vec<(String, String)> = found.map_err(ReadError::new)?;
        let (revoked, unreadable) = revocations(&found);
        if let Some(first) = unreadable.first() {
            let (key, count) = (self.revocations_key(), unreadable.len());
            tracing::warn!(key, field = first, count, "revocations that this version cannot read are ignored");
        }
        Ok(revoked)
    }

    fn revocations_key(self) -> String {
        key(self.prefix, "access", "refused")
    }
}

/// A cursor in the form that replicas write.
pub(super) fn parse_cursor(text: &str) -> Option<Mark> {
    let mark: Mark = text.parse().ok()?;
    head::parse_offset(&mark.offset.to_string()).map(|_| mark)
}

/// The revocations, and the fields that this version cannot read. An unreadable field does not affect the others.
pub(super) fn revocations(found: &[(String, String)]) -> (BTreeMap<RevocationTarget, Timestamp>, Vec<String>) {
    let (mut revoked, mut unreadable) = (BTreeMap::new(), Vec::new());
    for (whose, at) in found {
        match (whose.parse(), at.parse()) {
            (Ok(whose), Ok(at)) => drop(revoked.insert(whose, Timestamp(at))),
            (Err(_), _) | (_, Err(_)) => unreadable.push(format!("{}: {}", quoted(whose), quoted(at))),
        }
    }
    (revoked, unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_that_cannot_be_read_is_named_and_the_others_count() {
        let found = [
            ("subject:alice", "20"),
            ("group:agents", "20"),
            ("session:4f2a", "99999999999999999999"),
            ("subject:bob", "xyz"),
        ];
        let (revoked, unreadable) = revocations(&found.map(|(whose, at)| (whose.to_owned(), at.to_owned())));
        assert_eq!(revoked, BTreeMap::from([(RevocationTarget::Subject("alice".to_owned()), Timestamp(20))]));
        assert_eq!(unreadable.len(), 3, "{unreadable:?}");
        assert!(unreadable[0].contains("group:agents"), "{unreadable:?}");
    }

    #[test]
    fn a_cursor_beyond_the_counting_range_is_rejected() {
        assert!(parse_cursor("4f2a-17").is_some());
        for odd in ["4f2a-18446744073709551615", "4f2a-9007199254740993", "4f2a-", "{}", ""] {
            assert!(parse_cursor(odd).is_none(), "{odd}");
        }
    }
}
