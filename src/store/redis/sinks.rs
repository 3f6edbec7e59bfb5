//! The records of sinks in Redis. All records of one sink are fields of one hash.

use redis::cmd;

use super::{
    RedisStore,
    connection::LuaScript,
    keys::key,
    lease_row::{CHANGE_SCRIPT, LeaseRow, change_arguments, fence_texts, parse_record},
    log::append_error,
    records::parse_cursor,
    unreadable::quoted,
};
use crate::{
    model::{ConsumerName, Fence, Mark, StreamName, Timestamp},
    protocol::lease::LeaseRecord,
    store::{
        AppendError, ReadError,
        sinks::{DEAD_LETTERS_MAX, DeadLetter, SinkAdvance, StoredDeadLetter, dead_letters_full},
    },
    telemetry::Cause,
};

/// The scripts of sinks.
#[derive(Debug)]
pub(super) struct SinkScripts {
    lease: LuaScript,
    advance: LuaScript,
    letters: LuaScript,
    remove: LuaScript,
}

impl Default for SinkScripts {
    fn default() -> Self {
        Self {
            lease: LuaScript::new(CHANGE_SCRIPT),
            advance: LuaScript::new(include_str!("scripts/sink_advance.lua")),
            letters: LuaScript::new(include_str!("scripts/sink_dead_letters.lua")),
            remove: LuaScript::new(include_str!("scripts/sink_remove.lua")),
        }
    }
}

impl RedisStore {
    pub(in crate::store) async fn sink_lease(&self, sink: &ConsumerName) -> Result<Option<LeaseRecord>, ReadError> {
        let key = self.sink_key(sink);
        let found = self.connection().run(cmd("HMGET").arg(&key).arg(&["number", "nonce", "holder"])).await;
        let row: LeaseRow = found.map_err(ReadError::new)?;
        if row.0.is_none() && row.1.is_none() {
            return Ok(None);
        }
        let unreadable =
            || ReadError::new(format!("the lease in {key} cannot be read: expected number, nonce and owner"));
        parse_record(&row).map(Some).ok_or_else(unreadable)
    }

    pub(in crate::store) async fn change_sink_lease(
        &self,
        sink: &ConsumerName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> Result<bool, AppendError> {
        let texts = change_arguments(expected, &record);
        let arguments = texts.each_ref().map(String::as_bytes);
        let done = self.connection().call(&self.shared.sink_scripts.lease, &[&self.sink_key(sink)], &arguments).await;
        done.map_err(append_error)
    }

    pub(in crate::store) async fn sink_cursor(
        &self,
        sink: &ConsumerName,
        stream: &StreamName,
    ) -> Result<Option<Mark>, ReadError> {
        let key = self.sink_key(sink);
        let found = self.connection().run(cmd("HMGET").arg(&key).arg(format!("cursor:{stream}"))).await;
        let [text]: [Option<String>; 1] = found.map_err(ReadError::new)?;
        let unreadable = |text: &str| ReadError::new(format!("{} in {key} is not a cursor", quoted(text)));
        text.map(|text| parse_cursor(&text).ok_or_else(|| unreadable(&text))).transpose()
    }

    pub(in crate::store) async fn advance_sink(&self, advance: SinkAdvance) -> Result<bool, AppendError> {
        let SinkAdvance { sink, fence, stream, from, to, dead_letters } = advance;
        let (number, nonce) = fence_texts(fence);
        let from = from.map(|mark| mark.to_string()).unwrap_or_default();
        let texts = [number, nonce, stream.to_string(), from, to.to_string(), DEAD_LETTERS_MAX.to_string()];
        let letters: Vec<String> = dead_letters.iter().map(encode_letter).collect();
        let arguments: Vec<&[u8]> = texts.iter().chain(&letters).map(String::as_bytes).collect();
        let script = &self.shared.sink_scripts.advance;
        let answer: Result<String, _> = self.connection().call(script, &[&self.sink_key(&sink)], &arguments).await;
        match &*answer.map_err(append_error)? {
            "moved" => Ok(true),
            "elsewhere" => Ok(false),
            "fenced" => Err(AppendError::Fenced),
            "full" => Err(dead_letters_full(&sink)),
            other => {
                Err(AppendError::Unavailable(Cause::new(format!("unexpected answer of a script: {}", quoted(other)))))
            }
        }
    }

    pub(in crate::store) async fn dead_letters(
        &self,
        sink: &ConsumerName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredDeadLetter>, ReadError> {
        let (key, texts) = (self.sink_key(sink), [after.to_string(), limit.to_string()]);
        let arguments = texts.each_ref().map(String::as_bytes);
        let found = self.connection().call(&self.shared.sink_scripts.letters, &[&key], &arguments).await;
        let rows: Vec<(u64, String)> = found.map_err(ReadError::new)?;
        let unreadable = |number| ReadError::new(format!("{key} has the dead letter {number}, which cannot be read"));
        let read = |(number, text): (u64, String)| {
            let letter = parse_letter(&text).ok_or_else(|| unreadable(number))?;
            Ok(StoredDeadLetter { number, letter })
        };
        rows.into_iter().map(read).collect()
    }

    pub(in crate::store) async fn remove_dead_letter(
        &self,
        sink: &ConsumerName,
        number: u64,
    ) -> Result<bool, AppendError> {
        let number = number.to_string();
        let script = &self.shared.sink_scripts.remove;
        let removed = self.connection().call(script, &[&self.sink_key(sink)], &[number.as_bytes()]).await;
        removed.map_err(append_error)
    }

    fn sink_key(&self, sink: &ConsumerName) -> String {
        key(&self.shared.settings.prefix, &format!("sink:{sink}"), "delivery")
    }
}

/// A dead letter as a JSON array: stream, mark, time in milliseconds, cause, envelope.
fn encode_letter(DeadLetter { stream, mark, failed_at, cause, envelope }: &DeadLetter) -> String {
    serde_json::json!([stream, mark, failed_at.0, cause, &**envelope]).to_string()
}

fn parse_letter(text: &str) -> Option<DeadLetter> {
    let (stream, mark, failed_at, cause, envelope) =
        serde_json::from_str::<(StreamName, String, i64, String, String)>(text).ok()?;
    let (mark, failed_at) = (parse_cursor(&mark)?, Timestamp(failed_at));
    Some(DeadLetter { stream, mark, failed_at, cause, envelope: envelope.into() })
}
