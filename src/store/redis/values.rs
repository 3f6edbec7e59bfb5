//! What stands in the keys, as the store reads it. For checks that have no server: whatever a value is, it is read within
//! bounds, or it is none.

use std::collections::BTreeMap;

use super::{Durability, head, reads, records};
use crate::{
    model::{Mark, RevocationTarget, Timestamp},
    store::{LogBounds, LogState},
};

/// Longer than any number that replicas count up to.
pub const COUNT_END: u64 = 1_000_000_000_000_000;

/// A log as whoever looks at its head sees it.
pub fn bounds(answer: &[String], durability: Durability) -> Option<LogBounds> {
    head::read_bounds(answer, durability).ok()
}

/// A log as whoever claims it finds it.
pub fn claimed(answer: &[String], durability: Durability, now: Timestamp) -> Option<LogState> {
    head::read_claim(answer, 1, durability, now).map(|claimed| claimed.state).ok()
}

/// An entry of a log, by its id and its fields.
pub fn entry(id: &str, fields: &[&[u8]]) -> Option<Mark> {
    let fields = fields.iter().map(|field| field.to_vec()).collect();
    let stored = reads::parse_entry((id.to_owned(), fields))?;
    Some(Mark { epoch: stored.epoch, offset: stored.offset })
}

/// A consumer's cursor.
pub fn cursor(text: &str) -> Option<Mark> {
    records::parse_cursor(text)
}

/// Who is refused, and the fields that cannot be read.
pub fn revocations(found: &[(String, String)]) -> (BTreeMap<RevocationTarget, Timestamp>, Vec<String>) {
    records::revocations(found)
}
