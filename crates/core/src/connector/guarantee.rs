//! The possible losses, duplicates and reorderings of a stream: the texts that `trunkline check` prints.

use std::time::Duration;

use crate::model::{OverflowPolicy, Rotation, Size};

/// The report on one stream. Each text is one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// Events that never reach the log. A gap entry marks each such loss.
    pub lost: String,
    /// Events that the log may hold twice.
    pub duplicated: String,
    /// Events that the log may hold in another order than the platform's.
    pub reordered: String,
}

/// The settings of a stream on which its guarantee depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryTerms {
    pub rotation: Rotation,
    pub overflow: OverflowPolicy,
    /// How long the platform can replay events.
    pub retention: Duration,
    /// Events that the buffer holds.
    pub buffer: usize,
    /// Bytes of events that the buffer holds.
    pub buffer_bytes: Size,
}

impl DeliveryTerms {
    /// The condition for a full buffer: `when 5000 events or 64MiB are buffered`.
    pub(super) fn when_full(&self) -> String {
        format!("when {} events or {} are buffered", self.buffer, self.buffer_bytes)
    }

    /// The loss under [`OverflowPolicy::DropOldest`].
    pub(super) fn dropped(&self) -> String {
        format!(
            "when more than {} events or {} are buffered, the oldest; a gap marks them (shed)",
            self.buffer, self.buffer_bytes
        )
    }
}
