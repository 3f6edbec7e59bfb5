//! The records of durable consumers in Redis: fields of one hash, and their cursors with each log.

use std::collections::BTreeMap;

use redis::cmd;

use super::{
    RedisStore,
    connection::LuaScript,
    head,
    keys::{self, key},
    lease_row::{fence_texts, read_fence},
    log::append_error,
    records::parse_cursor,
    unreadable::quoted,
};
use crate::{
    model::{ConsumerName, Mark, StreamName, Timestamp},
    protocol::consumer::ConsumerRecord,
    store::{
        AppendError, ReadError,
        consumers::{CONSUMERS_MAX, consumers_full},
    },
};

/// The script that changes a consumer's record.
#[derive(Debug)]
pub(super) struct ConsumerScript(LuaScript);

impl Default for ConsumerScript {
    fn default() -> Self {
        Self(LuaScript::new(include_str!("scripts/consumer_change.lua")))
    }
}

impl RedisStore {
    pub(in crate::store) async fn consumer(
        &self,
        consumer: &ConsumerName,
    ) -> Result<Option<ConsumerRecord>, ReadError> {
        let key = self.consumers_key();
        let found = self.connection().run(cmd("HMGET").arg(&key).arg(consumer.as_str())).await;
        let [text]: [Option<String>; 1] = found.map_err(ReadError::new)?;
        let strange = |text: &str| ReadError::new(format!("{} in {key} is not the record of {consumer}", quoted(text)));
        text.map(|text| parse_record(&text).ok_or_else(|| strange(&text))).transpose()
    }

    pub(in crate::store) async fn consumers(&self) -> Result<BTreeMap<ConsumerName, ConsumerRecord>, ReadError> {
        self.readable_fields(&self.consumers_key(), parse_record).await
    }

    pub(in crate::store) async fn cursors(
        &self,
        stream: &StreamName,
    ) -> Result<BTreeMap<ConsumerName, Mark>, ReadError> {
        let key = keys::cursors(&self.shared.settings.prefix, stream);
        self.readable_fields(&key, parse_cursor).await
    }

    pub(in crate::store) async fn change_consumer(
        &self,
        consumer: &ConsumerName,
        from: Option<ConsumerRecord>,
        to: Option<ConsumerRecord>,
    ) -> Result<bool, AppendError> {
        let [from, to] = [from, to].map(|record| record.map(encode_record).unwrap_or_default());
        let texts = [consumer.to_string(), from, to, CONSUMERS_MAX.to_string()];
        let arguments = texts.each_ref().map(String::as_bytes);
        let script = &self.shared.consumer_script.0;
        match self.connection().call::<u8>(script, &[&self.consumers_key()], &arguments).await.map_err(append_error)? {
            2 => Err(consumers_full()),
            outcome => Ok(outcome == 1),
        }
    }

    pub(in crate::store) async fn delete_cursor(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
    ) -> Result<(), AppendError> {
        let key = keys::cursors(&self.shared.settings.prefix, stream);
        let removed = self.connection().run::<u64>(cmd("HDEL").arg(&key).arg(consumer.as_str())).await;
        removed.map(drop).map_err(append_error)
    }

    /// The fields of a hash by consumer. A value that cannot be read is omitted, with a warning.
    async fn readable_fields<V>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Option<V>,
    ) -> Result<BTreeMap<ConsumerName, V>, ReadError> {
        let found = self.connection().run(cmd("HGETALL").arg(key)).await;
        let fields: BTreeMap<String, String> = found.map_err(ReadError::new)?;
        let (mut values, mut unreadable) = (BTreeMap::new(), Vec::new());
        for (name, text) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            match (name.parse(), parse(text)) {
                (Ok(consumer), Some(value)) => drop(values.insert(consumer, value)),
                (Ok(_) | Err(_), _) => unreadable.push(name),
            }
        }
        if let Some(first) = unreadable.first() {
            let (field, count) = (quoted(first), unreadable.len());
            tracing::warn!(key, field, count, "records of consumers that this version cannot read are ignored");
        }
        Ok(values)
    }

    fn consumers_key(&self) -> String {
        key(&self.shared.settings.prefix, "consumers", "records")
    }
}

/// A record as text: number and nonce of the claim, time of the last use in milliseconds.
fn encode_record(ConsumerRecord { claim, used_at }: ConsumerRecord) -> String {
    let (number, nonce) = fence_texts(claim);
    format!("{number} {nonce} {}", used_at.0)
}

/// A record in the form that replicas write.
fn parse_record(text: &str) -> Option<ConsumerRecord> {
    let mut fields = text.split(' ');
    let (number, nonce, used_at) = (fields.next()?, fields.next()?, fields.next()?);
    let used_at = i64::try_from(head::parse_count(used_at)?).ok()?;
    let record = ConsumerRecord { claim: read_fence(number, nonce)?, used_at: Timestamp(used_at) };
    (encode_record(record) == text).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fence;

    #[test]
    fn a_record_is_read_only_in_the_form_that_replicas_write() {
        let record = ConsumerRecord { claim: Fence { number: 4, nonce: 255 }, used_at: Timestamp(1_777_901_509_570) };
        let text = "4 000000000000000000000000000000ff 1777901509570";
        assert_eq!((encode_record(record), parse_record(text)), (text.to_owned(), Some(record)));
        for odd in ["", "4", "4 ff 1777901509570", &format!("{text} 1"), &format!("0{text}")] {
            assert_eq!(parse_record(odd), None, "{odd}");
        }
    }
}
