//! What stands in the keys, as the store reads it. For checks that have no server: whatever a value is, it is read within
//! bounds, or it is none.

use std::collections::BTreeMap;

use super::{
    Durability, head, reads, records,
    registry::{self, Heard, Life},
    terms::Terms,
};
use crate::{
    model::{Mark, Timestamp, Whose},
    protocol::lease::Record,
    store::{Extent, LogState},
};

/// Longer than any number that replicas count up to.
pub const COUNT_END: u64 = 1_000_000_000_000_000;

/// A log as whoever looks at its head sees it.
pub fn extent(answer: &[String], durability: Durability) -> Option<Extent> {
    head::extent(answer, durability).ok()
}

/// A log as whoever claims it finds it.
pub fn claimed(answer: &[String], durability: Durability, now: Timestamp) -> Option<LogState> {
    head::claimed(answer, 1, durability, now).map(|claimed| claimed.state).ok()
}

/// An entry of a log, by its id and its fields.
pub fn entry(id: &str, fields: &[&[u8]]) -> Option<Mark> {
    let fields = fields.iter().map(|field| field.to_vec()).collect();
    let stored = reads::stored((id.to_owned(), fields))?;
    Some(Mark { epoch: stored.epoch, offset: stored.offset })
}

/// Who holds a stream, by number, nonce and holder.
pub fn record(number: &str, nonce: &str, holder: Option<&str>) -> Option<Record> {
    registry::record(&(Some(number.to_owned()), Some(nonce.to_owned()), holder.map(str::to_owned)))
}

/// A replica that lives, by its id and what its membership says.
pub fn life(id: &str, says: &str) -> Option<Life> {
    registry::read_life(id, says)
}

/// What a membership says of settings that all replicas share, as it would be said again.
pub fn terms(text: &str) -> Option<String> {
    Terms::read(text).map(|terms| terms.to_string())
}

/// A word between replicas.
pub fn heard(is_beat: bool, text: &str) -> Option<Heard> {
    registry::heard(is_beat, text)
}

/// A consumer's cursor.
pub fn cursor(text: &str) -> Option<Mark> {
    records::mark(text)
}

/// Who is refused, and the fields that cannot be read.
pub fn revocations(found: &[(String, String)]) -> (BTreeMap<Whose, Timestamp>, Vec<String>) {
    records::revocations(found)
}
