//! Which sequence number may come next, and the gap in front of a higher one.

use crate::model::{Gap, GapReason, Sequence};

/// Which number may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// Any number: no event has arrived yet.
    First,
    /// The number after this one.
    After(Sequence),
    /// Any higher number: the position was abandoned for this reason.
    Beyond { last: Sequence, reason: GapReason, gap: AbandonedGap },
}

/// Whether the gap of an abandoned position is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AbandonedGap {
    Missing,
    Recorded,
    /// Events without a number follow it.
    Followed,
}

impl Expected {
    /// The last number accepted.
    pub(super) fn last(self) -> Option<Sequence> {
        match self {
            Self::First => None,
            Self::After(last) | Self::Beyond { last, .. } => Some(last),
        }
    }

    /// The number to resume after; none if there is none or it was abandoned.
    pub(super) fn resume(self) -> Option<Sequence> {
        match self {
            Self::After(last) => Some(last),
            Self::First | Self::Beyond { .. } => None,
        }
    }

    /// Abandons the position. Returns false if there is none.
    pub(super) fn abandon(&mut self, reason: GapReason) -> bool {
        if let Some(last) = self.last() {
            *self = Self::Beyond { last, reason, gap: AbandonedGap::Missing };
        }
        self.is_abandoned()
    }

    /// Whether the position was abandoned and its gap is not in the log yet.
    pub(super) fn is_abandoned(self) -> bool {
        matches!(self, Self::Beyond { gap: AbandonedGap::Missing, .. })
    }

    /// A session without a position is live. If events without a number follow the gap, an earlier session brought
    /// them, and this session begins behind another gap.
    pub(super) fn mark_connected(&mut self) {
        if let Self::Beyond { gap: gap @ AbandonedGap::Followed, .. } = self {
            *gap = AbandonedGap::Missing;
        }
    }

    /// An event without a number is stored. Returns the gap in front of it.
    pub(super) fn on_unnumbered(&mut self) -> Option<Gap> {
        let abandoned = self.take_abandoned_gap();
        if let Self::Beyond { gap, .. } = self {
            *gap = AbandonedGap::Followed;
        }
        abandoned
    }

    /// Takes the gap of an abandoned position that no event has closed yet.
    pub(super) fn take_abandoned_gap(&mut self) -> Option<Gap> {
        let Self::Beyond { last, reason, gap: gap @ AbandonedGap::Missing } = self else { return None };
        *gap = AbandonedGap::Recorded;
        Some(Gap::between(*reason, Some(*last), None))
    }

    /// The gap between the last number and this one.
    pub(super) fn gap_before(self, sequence: Sequence) -> Option<Gap> {
        let (last, reason) = match self {
            Self::First | Self::Beyond { gap: AbandonedGap::Recorded | AbandonedGap::Followed, .. } => return None,
            Self::After(last) => (last, GapReason::Jump),
            Self::Beyond { last, reason, gap: AbandonedGap::Missing } => (last, reason),
        };
        let gap = Gap::between(reason, Some(last), Some(sequence));
        if sequence > last.next() {
            return Some(gap);
        }
        // The number of events in an oversized frame is not known.
        (reason == GapReason::Oversize).then_some(Gap { lost: None, ..gap })
    }
}
