//! What is kept beside the logs: cursors of consumers, and who is refused.

use std::collections::BTreeMap;

use redis::cmd;

use super::{
    connection::{CommandError, Connection, Script},
    keys::{self, key},
    log::verdict,
};
use crate::{
    model::{ConsumerName, Mark, Revocation, StreamName, Timestamp, Whose},
    store::{AppendError, ReadError},
};

/// What the server runs.
#[derive(Debug)]
pub(super) struct Scripts {
    cursor: Script,
    revoke: Script,
    revoked: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            cursor: Script::new(include_str!("scripts/cursor.lua")),
            revoke: Script::new(include_str!("scripts/revoke.lua")),
            revoked: Script::new(include_str!("scripts/revoked.lua")),
        }
    }
}

/// The way to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Records<'a> {
    pub(super) connection: &'a Connection,
    pub(super) prefix: &'a str,
    pub(super) scripts: &'a Scripts,
}

impl Records<'_> {
    pub(super) async fn cursor(self, consumer: &ConsumerName, stream: &StreamName) -> Result<Option<Mark>, ReadError> {
        let key = keys::cursors(self.prefix, stream);
        let found = self.connection.run(cmd("HMGET").arg(&key).arg(consumer.as_str())).await;
        let [text]: [Option<String>; 1] = found.map_err(|error| unread(&error))?;
        let strange = |text: &str| ReadError(format!("{text:?} in {key} is no cursor"));
        text.map(|text| text.parse().map_err(|_| strange(&text))).transpose()
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
        moved.map_err(|error| verdict(&error))
    }

    pub(super) async fn revoke(self, revocation: &Revocation) -> Result<(), AppendError> {
        let Revocation { whose, at, lasting } = revocation;
        let arguments = [whose.to_string(), at.0.to_string(), lasting.as_millis().to_string()];
        let arguments = arguments.each_ref().map(String::as_bytes);
        let done = self.connection.call::<u8>(&self.scripts.revoke, &[&self.refused()], &arguments).await;
        done.map(drop).map_err(|error| verdict(&error))
    }

    pub(super) async fn revoked(self) -> Result<BTreeMap<Whose, Timestamp>, ReadError> {
        let found = self.connection.call(&self.scripts.revoked, &[&self.refused()], &[]).await;
        let found: Vec<(String, i64)> = found.map_err(|error| unread(&error))?;
        let strange = |text: &str| ReadError(format!("{text:?} is refused, but that is nobody"));
        let read = |(text, at): (String, i64)| Ok((text.parse().map_err(|_| strange(&text))?, Timestamp(at)));
        found.into_iter().map(read).collect()
    }

    fn refused(self) -> String {
        key(self.prefix, "access", "refused")
    }
}

fn unread(error: &CommandError) -> ReadError {
    ReadError(error.to_string())
}
