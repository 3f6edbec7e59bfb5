//! What stands in the keys, as the store reads it. For checks that have no server: whatever a value is, it is read within
//! bounds, or it is none.

use std::collections::BTreeMap;

use super::{
    Durability, head, reads, records,
    registry::{self, IncomingMessage, MemberStatus},
    shared_settings::SharedSettings,
};
use crate::{
    model::{Mark, RevocationTarget, Timestamp},
    protocol::lease::LeaseRecord,
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

/// Who holds a stream, by number, nonce and holder.
pub fn record(number: &str, nonce: &str, holder: Option<&str>) -> Option<LeaseRecord> {
    registry::record(&(Some(number.to_owned()), Some(nonce.to_owned()), holder.map(str::to_owned)))
}

/// A replica that lives, by its id and what its membership says.
pub fn member(id: &str, says: &str) -> Option<MemberStatus> {
    registry::parse_member(id, says)
}

/// What a membership says of settings that all replicas share, as it would be said again.
pub fn shared_settings(text: &str) -> Option<String> {
    SharedSettings::parse(text).map(|settings| settings.to_string())
}

/// A word between replicas.
pub fn message(is_beat: bool, text: &str) -> Option<IncomingMessage> {
    registry::parse_message(is_beat, text)
}

/// A consumer's cursor.
pub fn cursor(text: &str) -> Option<Mark> {
    records::parse_cursor(text)
}

/// Who is refused, and the fields that cannot be read.
pub fn revocations(found: &[(String, String)]) -> (BTreeMap<RevocationTarget, Timestamp>, Vec<String>) {
    records::revocations(found)
}
