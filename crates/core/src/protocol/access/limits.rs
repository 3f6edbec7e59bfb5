//! The limits of one subject: connections, streams, and bytes a second.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A subject may receive this many seconds of its rate at once, for example after a reconnect.
const BURST: Duration = Duration::from_secs(10);

/// Limits of each subject; none: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectLimits {
    pub connections: Option<u32>,
    /// The sum over its connections of the streams that each reads.
    pub streams: Option<u32>,
    pub bytes_per_second: Option<u64>,
}

/// The limit that a subject has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    #[error("the subject has reached its limit of {0} connections")]
    Connections(u32),
    #[error("the subject has reached its limit of {0} streams")]
    Streams(u32),
    #[error("the subject has reached its limit of {0} bytes per second")]
    Bytes(u64),
}

/// The usage of the subjects of all open connections.
#[derive(Debug, Clone, Default)]
pub struct SubjectUsage {
    subjects: BTreeMap<String, Usage>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    connections: u32,
    streams: u32,
}

impl SubjectUsage {
    /// Counts a connection that reads `streams`. Each success needs one [`SubjectUsage::release`].
    ///
    /// # Errors
    /// The limit that is reached. Nothing is counted then.
    pub fn acquire(&mut self, subject: &str, streams: u32, limits: &SubjectLimits) -> Result<(), LimitExceeded> {
        let used = self.subjects.get(subject).copied().unwrap_or_default();
        let next =
            Usage { connections: used.connections.saturating_add(1), streams: used.streams.saturating_add(streams) };
        if let Some(max) = limits.connections.filter(|max| next.connections > *max) {
            return Err(LimitExceeded::Connections(max));
        }
        if let Some(max) = limits.streams.filter(|max| next.streams > *max) {
            return Err(LimitExceeded::Streams(max));
        }
        self.subjects.insert(subject.to_owned(), next);
        Ok(())
    }

    /// A connection that read `streams` has ended.
    pub fn release(&mut self, subject: &str, streams: u32) {
        let Some(used) = self.subjects.get_mut(subject) else { return };
        used.connections = used.connections.saturating_sub(1);
        used.streams = used.streams.saturating_sub(streams);
        if used.connections == 0 {
            self.subjects.remove(subject);
        }
    }

    /// Whether the subject has an open connection.
    pub fn has_connection(&self, subject: &str) -> bool {
        self.subjects.contains_key(subject)
    }

    /// Whether no subject has a connection.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }
}

/// The bytes that a subject may still receive: a token bucket that starts full.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    per_second: u64,
    available: u64,
    refilled_at: Instant,
}

impl ByteBudget {
    /// A full budget.
    pub fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, available: capacity(per_second), refilled_at: now }
    }

    /// Takes the bytes of one write. A write that is larger than the whole budget is allowed when it is full.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn spend(&mut self, bytes: u64, now: Instant) -> Result<(), LimitExceeded> {
        self.refill(now);
        if self.available < bytes.min(capacity(self.per_second)) {
            return Err(LimitExceeded::Bytes(self.per_second));
        }
        self.available = self.available.saturating_sub(bytes);
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled_at).min(BURST);
        let added = u128::from(self.per_second) * elapsed.as_micros() / 1_000_000;
        // A refill that adds nothing yet keeps its start, or frequent calls would never add anything.
        if added > 0 {
            let added = u64::try_from(added).unwrap_or(u64::MAX);
            self.available = self.available.saturating_add(added).min(capacity(self.per_second));
            self.refilled_at = now;
        }
    }
}

fn capacity(per_second: u64) -> u64 {
    per_second.saturating_mul(BURST.as_secs())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use super::*;

    #[test]
    fn a_subject_uses_up_to_its_limits_and_others_are_not_affected() {
        let limits = SubjectLimits { connections: Some(2), streams: Some(5), bytes_per_second: None };
        let mut usage = SubjectUsage::default();
        assert_eq!(usage.acquire("a", 4, &limits), Ok(()));
        assert_eq!(usage.acquire("a", 2, &limits), Err(LimitExceeded::Streams(5)));
        assert_eq!(usage.acquire("a", 1, &limits), Ok(()));
        assert_eq!(usage.acquire("a", 0, &limits), Err(LimitExceeded::Connections(2)));
        assert_eq!(usage.acquire("b", 5, &limits), Ok(()));
        usage.release("a", 4);
        assert_eq!(usage.acquire("a", 4, &limits), Ok(()));
        for (subject, streams) in [("a", 4), ("a", 1), ("b", 5)] {
            usage.release(subject, streams);
        }
        assert!(usage.is_empty(), "subjects without connections take no memory");
    }

    #[test]
    fn without_limits_nothing_is_refused() {
        let limits = SubjectLimits { connections: None, streams: None, bytes_per_second: None };
        let mut usage = SubjectUsage::default();
        assert!((0..1_000).all(|_| usage.acquire("a", 64, &limits).is_ok()));
    }

    #[test]
    fn a_budget_allows_a_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut budget = ByteBudget::new(100, start);
        assert_eq!(budget.spend(900, start), Ok(()));
        assert_eq!(budget.spend(101, start), Err(LimitExceeded::Bytes(100)));
        assert_eq!(budget.spend(100, start), Ok(()));
        let mut now = start;
        for _ in 0..1_000 {
            now += Duration::from_millis(1);
            assert!(budget.spend(100, now).is_ok() == (now >= start + Duration::from_secs(1)), "{:?}", now - start);
        }
        assert_eq!(budget.spend(5_000, now + Duration::from_secs(60)), Ok(()), "larger than the budget");
    }
}
