//! Lease records: which replica owns a stream, and under which fence.
//!
//! A stream's record stands in the head of its log, so that appends are compared with the fence of the current owner.

use std::collections::BTreeMap;

use crate::{
    model::StreamName,
    protocol::lease::LeaseRecord,
    store::redis::{
        lease_row::{LeaseRow, parse_record},
        unreadable::{REPAIR_HINT, quoted},
    },
};

/// The lease records of all streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseRecords {
    pub records: BTreeMap<StreamName, LeaseRecord>,
    /// Streams whose record cannot be read, and why.
    pub unreadable: BTreeMap<StreamName, String>,
}

/// The record in the head of one stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadRecord {
    Record(LeaseRecord),
    /// The stream never had an owner.
    Absent,
    Unreadable(String),
}

impl HeadRecord {
    /// Reads the fields of the key `head`; none for `row` when one of them is not text.
    pub(super) fn read(head: &str, row: Option<LeaseRow>) -> Self {
        match row {
            Some((None, None, _)) => Self::Absent,
            Some(row) => {
                parse_record(&row).map_or_else(|| Self::Unreadable(unreadable_record(head, &row)), Self::Record)
            }
            None => Self::Unreadable(format!("{head}: number, nonce or holder is no text; {REPAIR_HINT}")),
        }
    }
}

fn unreadable_record(head: &str, row: &LeaseRow) -> String {
    let (number, nonce, holder) = row;
    let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "nothing".to_owned(), quoted);
    format!(
        "{head}: expected a number, a nonce and a holder in hexadecimal, found number {}, nonce {}, holder {}; {REPAIR_HINT}",
        shown(number),
        shown(nonce),
        shown(holder)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "000000000000000000000000000000ff";

    #[test]
    fn an_unreadable_record_is_reported_with_its_key() {
        let text = |text: &str| Some(text.to_owned());
        for row in [
            (text("x"), text("ff"), None),
            (text("18446744073709551616"), text("ff"), None),
            (text("18446744073709551615"), text("ff"), text("2a")),
            (text("9007199254740993"), text("ff"), text("2a")),
            (None, text("ff"), None),
            (text("4"), None, text("2a")),
            (text("4"), text(NONCE), text("xyz")),
            (text("04"), text(NONCE), text("2a")),
            (text("4"), text("ff"), text("2a")),
            (text("4"), text(&NONCE.to_uppercase()), text("2a")),
        ] {
            let HeadRecord::Unreadable(why) = HeadRecord::read("head", Some(row.clone())) else { panic!("{row:?}") };
            assert!(why.starts_with("head: ") && why.contains("found number"), "{why}");
        }
        assert_eq!(HeadRecord::read("head", Some((None, None, text("2a")))), HeadRecord::Absent);
    }
}
