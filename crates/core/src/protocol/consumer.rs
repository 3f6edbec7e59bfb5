//! The rules of a durable consumer: one reader at a time, a cursor that acknowledgements never move back, and expiry.

use std::time::Duration;

use crate::model::{CursorValidity, Fence, Lineage, Mark, Offset, Timestamp};

/// What the store knows of a durable consumer, in addition to its cursors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The claim of its newest reader; [`Fence::NONE`] before the first. A seek also takes a new claim.
    pub claim: Fence,
    /// The last time of use, on the wall clock of a replica.
    pub used_at: Timestamp,
}

impl ConsumerRecord {
    /// The record of a consumer without a reader so far.
    pub fn created(now: Timestamp) -> Self {
        Self { claim: Fence::NONE, used_at: now }
    }

    /// The record after a new reader's claim. The reader with the former claim is superseded.
    pub fn claimed(former: Option<Self>, nonce: u128, now: Timestamp) -> Self {
        let former = former.unwrap_or(Self::created(now));
        Self { claim: former.claim.next(nonce), ..former }.used(now)
    }

    /// The record after a use. A clock behind that of another replica does not move the time back.
    pub fn used(self, now: Timestamp) -> Self {
        Self { used_at: self.used_at.max(now), ..self }
    }

    /// Its state, if it expires after `expires` without use.
    pub fn expiry(self, expires: Duration, now: Timestamp) -> ConsumerExpiry {
        let unused = now.since(self.used_at);
        if unused < expires {
            ConsumerExpiry::InUse
        } else if unused < expires + (expires / 10).min(REPORTED_MAX) {
            ConsumerExpiry::Reported
        } else {
            ConsumerExpiry::Deleted
        }
    }
}

/// The longest time between the report of an expired consumer and its deletion. It is a tenth of a short expiry.
const REPORTED_MAX: Duration = Duration::from_secs(86_400);

/// What happens to a consumer that is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerExpiry {
    InUse,
    /// It is unused for too long: an operator can read about it. A use keeps it.
    Reported,
    /// It is deleted, with its cursors.
    Deleted,
}

/// Whether a reader with this claim must end, given the record in the store. A deleted consumer has none.
pub fn is_superseded(claim: Fence, stored: Option<ConsumerRecord>) -> bool {
    stored.is_none_or(|stored| stored.claim != claim)
}

/// What an acknowledgement does to a stored cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// The cursor moves to the acknowledged entry.
    Moves,
    /// The entry was acknowledged before.
    Repeated,
    /// The entry is before the stored cursor.
    Behind,
    /// The log does not have the entry yet.
    AheadOfLog,
    /// The log does not have the epoch of the entry.
    UnknownEpoch,
}

impl Acknowledgement {
    /// The effect of `entry` on the cursor `stored`, in a log whose last entry is `last`. A stored cursor that is not of
    /// this log never holds an acknowledgement back.
    pub fn of(entry: Mark, stored: Mark, lineage: &Lineage, last: Offset) -> Self {
        let offset = match lineage.validity(entry, last) {
            CursorValidity::Valid(offset) => offset,
            CursorValidity::AheadOfLog => return Self::AheadOfLog,
            CursorValidity::UnknownEpoch => return Self::UnknownEpoch,
        };
        match lineage.validity(stored, last) {
            CursorValidity::Valid(stored) if offset == stored => Self::Repeated,
            CursorValidity::Valid(stored) if offset < stored => Self::Behind,
            CursorValidity::Valid(_) | CursorValidity::AheadOfLog | CursorValidity::UnknownEpoch => Self::Moves,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Epoch;

    fn mark(epoch: u32, offset: u64) -> Mark {
        Mark { epoch: Epoch(epoch), offset: Offset(offset) }
    }

    #[test]
    fn a_claim_grows_and_supersedes_the_former_reader() {
        let now = Timestamp(1_777_901_509_570);
        let first = ConsumerRecord::claimed(None, 7, now);
        let second = ConsumerRecord::claimed(Some(first), 8, now.before(Duration::from_secs(1)));
        assert_eq!((first.claim.number, second.claim.number, second.used_at), (1, 2, now));
        assert!(!is_superseded(first.claim, Some(first.used(now))));
        assert!(is_superseded(first.claim, Some(second)));
        assert!(is_superseded(first.claim, None), "a deleted consumer has no reader");
        let created_again = ConsumerRecord::claimed(None, 9, now);
        assert!(is_superseded(first.claim, Some(created_again)));
    }

    #[test]
    fn an_acknowledgement_never_moves_the_cursor_back() {
        let lineage = Lineage::with_earlier(Epoch(8), vec![(Epoch(7), Offset(20))]);
        for (entry, stored, expected) in [
            (mark(8, 30), mark(8, 29), Acknowledgement::Moves),
            (mark(8, 30), mark(8, 30), Acknowledgement::Repeated),
            (mark(8, 30), mark(8, 31), Acknowledgement::Behind),
            (mark(8, 21), mark(7, 20), Acknowledgement::Moves),
            (mark(7, 20), mark(8, 20), Acknowledgement::Repeated),
            (mark(7, 20), mark(8, 21), Acknowledgement::Behind),
            (mark(7, 21), mark(7, 3), Acknowledgement::AheadOfLog),
            (mark(8, 41), mark(7, 3), Acknowledgement::AheadOfLog),
            (mark(6, 1), mark(7, 3), Acknowledgement::UnknownEpoch),
            (mark(8, 25), mark(6, 99), Acknowledgement::Moves),
            (mark(8, 25), mark(8, 99), Acknowledgement::Moves),
            (mark(0, 0), mark(7, 3), Acknowledgement::Behind),
        ] {
            assert_eq!(Acknowledgement::of(entry, stored, &lineage, Offset(40)), expected, "{entry} over {stored}");
        }
    }

    #[test]
    fn an_unused_consumer_is_reported_then_deleted_and_a_use_keeps_it() {
        let (now, minute) = (Timestamp(1_777_901_509_570), Duration::from_secs(60));
        for (unused, expires, expected) in [
            (59, minute, ConsumerExpiry::InUse),
            (60, minute, ConsumerExpiry::Reported),
            (65, minute, ConsumerExpiry::Reported),
            (66, minute, ConsumerExpiry::Deleted),
            (30 * 86_400, minute * 1440 * 30, ConsumerExpiry::Reported),
            (31 * 86_400 - 1, minute * 1440 * 30, ConsumerExpiry::Reported),
            (31 * 86_400, minute * 1440 * 30, ConsumerExpiry::Deleted),
            (1_000_000_000, Duration::MAX / 2, ConsumerExpiry::InUse),
        ] {
            let record = ConsumerRecord::created(now.before(Duration::from_secs(unused)));
            assert_eq!(record.expiry(expires, now), expected, "{unused} s unused, expires {expires:?}");
            assert_eq!(record.used(now).expiry(expires, now), ConsumerExpiry::InUse);
        }
    }
}
