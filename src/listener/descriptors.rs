//! How many connections the file descriptors of the process allow. The arithmetic is pure; [`raise`] asks the system.
//!
//! Consumers get what is left after the streams, the store and the operators: a relay without a descriptor cannot dial
//! its platform, and a full listener must not keep anybody from asking why.

/// Descriptors of the process itself: runtimes, standard streams, the store's files or connections, both listeners.
const PROCESS_DESCRIPTORS: usize = 64;
/// A stream in a planned change has two sockets, and one more while an earlier one closes or a REST call is made.
const DESCRIPTORS_PER_STREAM: usize = 3;
/// A token request, and a connection of the same pool that is idle.
const DESCRIPTORS_PER_ACCOUNT: usize = 2;
/// Connections of operators, probes and scrapers. One more is answered with 503.
pub const OPERATORS_MAX: usize = 128;
/// However few descriptors there are: so many for operators …
const OPERATORS_MIN: usize = 8;
/// … and this part of all for consumers.
const CONSUMERS_DIVISOR: usize = 8;

/// What the descriptors are shared between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorDemand {
    /// Connections of consumers, as configured.
    pub consumers: usize,
    pub streams: usize,
    pub accounts: usize,
}

/// How many connections each listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionBudget {
    pub consumers: usize,
    pub operators: usize,
}

/// Shares `limit` descriptors out; without a limit everybody gets what was asked for.
pub fn budget(limit: Option<usize>, wanted: DescriptorDemand) -> ConnectionBudget {
    let Some(limit) = limit else { return ConnectionBudget { consumers: wanted.consumers, operators: OPERATORS_MAX } };
    let operators = (limit / 16).clamp(OPERATORS_MIN, OPERATORS_MAX);
    let own = PROCESS_DESCRIPTORS + DESCRIPTORS_PER_STREAM * wanted.streams + DESCRIPTORS_PER_ACCOUNT * wanted.accounts;
    let least = (limit / CONSUMERS_DIVISOR).max(1);
    let left = limit.saturating_sub(own + operators).max(least);
    ConnectionBudget { consumers: wanted.consumers.min(left), operators }
}

/// Raises the process's soft limit of descriptors to the hard one, and says what holds; none where there is no limit.
#[cfg(target_os = "linux")]
pub fn raise() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        let raised = Rlimit { current: before.maximum, maximum: before.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    getrlimit(Resource::Nofile).current.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Elsewhere the limit is left as it is, and not known.
#[cfg(not(target_os = "linux"))]
pub fn raise() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_get_what_streams_and_operators_leave() {
        let wanted = |streams| DescriptorDemand { consumers: 10_000, streams, accounts: 1 };
        for (limit, streams, consumers, operators) in [
            (None, 1_000, 10_000, 128),
            (Some(1 << 20), 1_000, 10_000, 128),
            (Some(20_000), 1, 10_000, 128),
            (Some(4_096), 20, 3_842, 128),
            (Some(1_024), 20, 834, 64),
            // Too few for everybody at once: nobody is left without any.
            (Some(128), 20, 16, 8),
            (Some(64), 1_000, 8, 8),
            (Some(0), 0, 1, 8),
        ] {
            let share = budget(limit, wanted(streams));
            assert_eq!((share.consumers, share.operators), (consumers, operators), "{limit:?} {streams}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        use rustix::process::{Resource, getrlimit};
        let told = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(told.map(|limit| limit as u64), limit.current);
    }
}
