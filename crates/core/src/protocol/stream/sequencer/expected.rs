//! Which sequence number may come next, and the gap in front of a higher one.

use crate::model::{Gap, GapReason, Sequence};

/// Which number may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Any number: no event has arrived yet.
    First,
    /// The number after this one.
    After(Sequence),
    /// Any higher number: the position was abandoned for this reason. `None` when the gap is in the log already.
    Beyond(Sequence, Option<GapReason>),
}

impl Expected {
    /// The last number accepted.
    pub(super) fn last(self) -> Option<Sequence> {
        match self {
            Self::First => None,
            Self::After(last) | Self::Beyond(last, _) => Some(last),
        }
    }

    /// The number to resume after; none if there is none or it was abandoned.
    pub(super) fn resume(self) -> Option<Sequence> {
        match self {
            Self::After(last) => Some(last),
            Self::First | Self::Beyond(..) => None,
        }
    }

    /// Takes the gap of an abandoned position that no event has closed yet.
    pub(super) fn take_abandoned_gap(&mut self) -> Option<Gap> {
        let Self::Beyond(last, Some(reason)) = *self else { return None };
        *self = Self::Beyond(last, None);
        Some(Gap::between(reason, Some(last), None))
    }

    /// The gap between the last number and this one.
    pub(super) fn gap_before(self, sequence: Sequence) -> Option<Gap> {
        let (last, reason) = match self {
            Self::First | Self::Beyond(_, None) => return None,
            Self::After(last) => (last, GapReason::Jump),
            Self::Beyond(last, Some(reason)) => (last, reason),
        };
        let gap = Gap::between(reason, Some(last), Some(sequence));
        if sequence > last.next() {
            return Some(gap);
        }
        // The number of events in an oversized frame is not known.
        (reason == GapReason::Oversize).then_some(Gap { lost: None, ..gap })
    }
}
