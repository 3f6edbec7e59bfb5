//! The time of the lease machine.

use std::time::Duration;

/// Time since the start of the machine, including time while the host is suspended.
pub type BootTime = Duration;

/// The time of an input, and a random number for a new fence.
#[derive(Debug, Clone, Copy)]
pub struct LeaseMoment {
    pub boot: BootTime,
    pub nonce: u128,
}

/// Shifts times to a later zero. Earlier times become zero.
pub(super) fn rebase<'a>(moments: impl IntoIterator<Item = &'a mut BootTime>, by: Duration) {
    for moment in moments {
        *moment = moment.saturating_sub(by);
    }
}
