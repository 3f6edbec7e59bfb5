//! Decoders of the store's keys, for fuzzing: any value is read within bounds, or rejected.

use std::collections::BTreeMap;

use super::{Durability, head, reads, records};
use crate::{
    model::{Mark, RevocationTarget, Timestamp},
    store::{LogBounds, LogState},
};

/// Numbers in keys are below this.
pub const COUNT_END: u64 = 1_000_000_000_000_000;

/// The bounds in the answer of the script that reads a head.
pub fn bounds(answer: &[String], durability: Durability) -> Option<LogBounds> {
    head::read_bounds(answer, durability).ok()
}

/// The state in the answer of the script that claims a log.
pub fn claimed(answer: &[String], durability: Durability, now: Timestamp) -> Option<LogState> {
    head::read_claim(answer, 1, durability, now).map(|claimed| claimed.state).ok()
}

/// The mark of a stored entry, by its id and its fields.
pub fn entry(id: &str, fields: &[&[u8]]) -> Option<Mark> {
    let fields = fields.iter().map(|field| field.to_vec()).collect();
    let stored = reads::parse_entry((id.to_owned(), fields))?;
    Some(Mark { epoch: stored.epoch, offset: stored.offset })
}

/// A consumer's cursor.
pub fn cursor(text: &str) -> Option<Mark> {
    records::parse_cursor(text)
}

/// The revocations, and the fields that cannot be read.
pub fn revocations(found: &[(String, String)]) -> (BTreeMap<RevocationTarget, Timestamp>, Vec<String>) {
    records::revocations(found)
}
