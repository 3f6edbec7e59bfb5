//! Appends by script, for a cluster: its client has no single connection that could watch keys.

use std::{borrow::Cow, time::Duration};

use redis::{FromRedisValue, pipe};

use super::append::{
    AppendReply, AppendTarget, Identity, envelopes, epoch_text, hex, require_replica, wait_for_replica,
};
use crate::{
    store::{
        Append,
        redis::{
            connection::{CommandError, LuaScript, RedisConnection},
            keys::LogKeys,
        },
    },
    telemetry::Cause,
};

/// Appends to one log, with one script call per append.
#[derive(Debug)]
pub(super) struct ScriptAppender {
    connection: RedisConnection,
    script: LuaScript,
    keys: LogKeys,
    /// How long to wait for a replica to have an append, where durability requires it.
    replicated_max: Option<Duration>,
}

impl ScriptAppender {
    pub(super) fn new(connection: RedisConnection, keys: LogKeys, replicated_max: Option<Duration>) -> Self {
        Self { connection, script: LuaScript::new(include_str!("../scripts/append.lua")), keys, replicated_max }
    }

    /// Sends one append, without a retry.
    pub(super) async fn append(
        &self,
        append: &Append,
        place: &AppendTarget,
        identity: &Identity,
    ) -> Result<AppendReply, CommandError> {
        let arguments = arguments(append, place, identity);
        let arguments: Vec<&[u8]> = arguments.iter().map(Cow::as_ref).collect();
        let (word, last): (String, String) = match self.replicated_max {
            None => self.call(&self.script, &arguments).await?,
            Some(timeout) => self.append_replicated(&arguments, timeout).await?,
        };
        Ok(match word.as_str() {
            "done" => AppendReply::Done,
            "fenced" if last.is_empty() => AppendReply::HeadMissing,
            "fenced" => AppendReply::Fenced,
            "emptied" => AppendReply::EntriesMissing,
            _ => AppendReply::Diverged(last),
        })
    }

    /// Runs another script on the log and its head.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        script: &LuaScript,
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        self.connection.call(script, &self.keys.both(), arguments).await
    }

    pub(super) fn close(&self) {
        self.connection.close();
    }

    /// Sends the append and then the wait for a replica on one connection, because the wait covers only that
    /// connection.
    async fn append_replicated(
        &self,
        arguments: &[&[u8]],
        timeout: Duration,
    ) -> Result<(String, String), CommandError> {
        let keys = self.keys.both();
        let with = |append| pipe().add_command(append).add_command(wait_for_replica(timeout)).clone();
        let by_name = with(self.script.by_name(&keys, arguments));
        let answers = match self.connection.run_all(keys[0], &by_name).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.connection.run_all(keys[0], &with(self.script.in_full(&keys, arguments))).await?
            }
            answers => answers?,
        };
        let strange = || CommandError::NoAnswer(Cause::new("unexpected answer to an append"));
        let [verdict, replicas] = &answers[..] else { return Err(strange()) };
        let verdict: (String, String) = redis::from_redis_value_ref(verdict).map_err(|_| strange())?;
        if verdict.0 == "done" {
            require_replica(replicas, timeout)?;
        }
        Ok(verdict)
    }
}

fn arguments<'a>(append: &'a Append, place: &AppendTarget, identity: &Identity) -> Vec<Cow<'a, [u8]>> {
    let head = [
        place.fence.number.to_string(),
        hex(place.fence.nonce),
        place.turn.to_string(),
        (place.turn + 1).to_string(),
        place.last.to_string(),
        identity.last.to_string(),
        identity.position(),
        place.heard_at.0.to_string(),
        identity.len.to_string(),
        place.replicated_up_to.map(|safe| safe.to_string()).unwrap_or_default(),
        epoch_text(place.epoch),
        identity.feed(),
        if place.gap_pending { "1" } else { "" }.to_owned(),
    ];
    let head = head.into_iter().map(|text| Cow::Owned(text.into_bytes()));
    head.chain(envelopes(&append.batches).map(Cow::Borrowed)).collect()
}
