//! Frames that the platform repeats after every resume: after how many of them the position is abandoned.

use super::link::BadFrame;
use crate::model::{GapReason, Position};

/// A position is abandoned after this many unreadable frames in a row behind it.
const UNREADABLE_MAX: u32 = 2;

/// The bad frames in a row behind one position.
#[derive(Debug, Default)]
pub(super) struct BadFrames {
    position: Option<Position>,
    count: u32,
}

impl BadFrames {
    /// Counts a bad frame. Returns the reason of the gap if the position must be abandoned: at once after an oversized
    /// frame, and after [`UNREADABLE_MAX`] unreadable ones.
    pub(super) fn record(&mut self, frame: BadFrame, position: Option<Position>) -> Option<GapReason> {
        match frame {
            BadFrame::Oversize => Some(GapReason::Oversize),
            BadFrame::Unreadable => {
                let count = if self.position == position { self.count + 1 } else { 1 };
                *self = Self { position, count: count % UNREADABLE_MAX };
                (count == UNREADABLE_MAX).then_some(GapReason::Jump)
            }
        }
    }
}
