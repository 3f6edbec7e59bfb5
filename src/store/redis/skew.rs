//! The offset of the server's clock from the local one. The time of the last received frame is stored in the server's
//! time, so that all replicas compare it by one clock.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::model::Timestamp;

/// The offset in milliseconds. Its error is the latency of one answer.
#[derive(Debug)]
pub(super) struct ClockSkew(AtomicI64);

impl ClockSkew {
    /// Measures by both clocks at the arrival of an answer.
    pub(super) fn measured(server: Timestamp, own: Timestamp) -> Self {
        Self(AtomicI64::new(server.0.saturating_sub(own.0)))
    }

    /// Measures again, as either clock may have been set.
    pub(super) fn remeasure(&self, server: Timestamp, own: Timestamp) {
        let Self(newest) = Self::measured(server, own);
        self.0.store(newest.into_inner(), Ordering::Relaxed);
    }

    /// Converts a moment of the local clock to the server's clock.
    pub(super) fn to_server(&self, own: Timestamp) -> Timestamp {
        Timestamp(own.0.saturating_add(self.0.load(Ordering::Relaxed)))
    }

    /// Converts a moment of the server's clock to the local clock.
    pub(super) fn to_local(&self, server: Timestamp) -> Timestamp {
        Timestamp(server.0.saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: i64 = 3_600_000;
    /// The server's clock at the last heartbeat of the owner.
    const SERVER: i64 = 1_777_901_509_570;
    const SILENCE: Duration = Duration::from_secs(7);

    #[test]
    fn a_successor_knows_the_age_of_a_position_despite_clock_skew() {
        let clocks = [0, HOUR, -HOUR, HOUR / 2];
        for (owner, successor) in clocks.into_iter().flat_map(|owner| clocks.map(|successor| (owner, successor))) {
            let heard_at = Timestamp(SERVER + owner);
            let stored = ClockSkew::measured(Timestamp(SERVER), heard_at).to_server(heard_at);
            let later = SERVER + 7_000;
            let now = Timestamp(later + successor);
            let found = ClockSkew::measured(Timestamp(later), now).to_local(stored);
            assert_eq!(now.since(found), SILENCE, "{owner} {successor}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_remeasured() {
        let skew = ClockSkew::measured(Timestamp(SERVER), Timestamp(SERVER - HOUR));
        assert_eq!(skew.to_server(Timestamp(SERVER - HOUR)), Timestamp(SERVER));
        skew.remeasure(Timestamp(SERVER + 5), Timestamp(SERVER + 5));
        assert_eq!(skew.to_server(Timestamp(SERVER + 9)), Timestamp(SERVER + 9));
    }
}
