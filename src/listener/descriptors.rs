//! Divides the file descriptors of the process among connections. Only [`raise`] uses the system.
//!
//! Consumers get the descriptors that streams, the store and operators do not need, so that the relay can always
//! connect to its platform and operators can always connect to the relay.

/// Descriptors of the process: runtimes, standard streams, files or connections of the store, both listeners.
const PROCESS_DESCRIPTORS: usize = 64;
/// Descriptors per stream: two sockets during a rotation, and one for a closing socket or a REST call.
const DESCRIPTORS_PER_STREAM: usize = 3;
/// Descriptors per account: a token request and an idle connection of the pool.
const DESCRIPTORS_PER_ACCOUNT: usize = 2;
/// Connections of operators, probes and scrapers. Further ones get 503.
pub const OPERATORS_MAX: usize = 128;
/// Minimum number of connections of operators.
const OPERATORS_MIN: usize = 8;
/// Consumers get at least the limit divided by this.
const CONSUMERS_DIVISOR: usize = 8;

/// The users of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorDemand {
    /// Configured connections of consumers.
    pub consumers: usize,
    pub streams: usize,
    pub accounts: usize,
}

/// Maximum connections of each listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionBudget {
    pub consumers: usize,
    pub operators: usize,
}

/// Divides `limit` descriptors. Without a limit each user gets its demand.
pub fn budget(limit: Option<usize>, wanted: DescriptorDemand) -> ConnectionBudget {
    let Some(limit) = limit else { return ConnectionBudget { consumers: wanted.consumers, operators: OPERATORS_MAX } };
    let operators = (limit / 16).clamp(OPERATORS_MIN, OPERATORS_MAX);
    let own = PROCESS_DESCRIPTORS + DESCRIPTORS_PER_STREAM * wanted.streams + DESCRIPTORS_PER_ACCOUNT * wanted.accounts;
    let least = (limit / CONSUMERS_DIVISOR).max(1);
    let left = limit.saturating_sub(own + operators).max(least);
    ConnectionBudget { consumers: wanted.consumers.min(left), operators }
}

/// Raises the soft limit of descriptors to the hard limit. Returns the new limit; none if unlimited.
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

/// On other systems the limit is unchanged and unknown.
#[cfg(not(target_os = "linux"))]
pub fn raise() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_get_the_descriptors_that_streams_and_operators_leave() {
        let wanted = |streams| DescriptorDemand { consumers: 10_000, streams, accounts: 1 };
        for (limit, streams, consumers, operators) in [
            (None, 1_000, 10_000, 128),
            (Some(1 << 20), 1_000, 10_000, 128),
            (Some(20_000), 1, 10_000, 128),
            (Some(4_096), 20, 3_842, 128),
            (Some(1_024), 20, 834, 64),
            // Too few descriptors for all: each user still gets some.
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
        let raised = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raised.map(|limit| limit as u64), limit.current);
    }
}
