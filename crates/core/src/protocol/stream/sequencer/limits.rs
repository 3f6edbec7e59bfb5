//! The limits that the parts of the sequencer share.

use std::time::Duration;

/// The sequencer waits for a missing number until it holds this many later events.
pub(super) const REORDER_MAX: usize = 64;
/// The sequencer waits for a missing number for this time.
pub(super) const REORDER_WAIT_MAX: Duration = Duration::from_millis(200);
/// At most about this many bytes of events are held. At the limit the sequencer decides without waiting.
pub(super) const HELD_BYTES_MAX: usize = 16 << 20;
