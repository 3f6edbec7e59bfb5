//! Faults that wait for their next request: refused handshakes, failing token requests, failing REST calls. The
//! handlers of the requests apply them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::counters::SocketDialect;
use super::fault::{ALWAYS, FaultTarget, RequestKind, ResponseFault, TokenFailure};

/// Most faults that wait; one more removes the oldest.
const PENDING_MAX: usize = 1_024;

/// The requests that a fault waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestMatcher {
    pub(super) to: RequestKind,
    pub(super) on: FaultTarget,
    pub(super) url: Option<String>,
    pub(super) resuming: bool,
}

/// The parts of a request that select a fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestInfo<'a> {
    pub(super) kind: RequestKind,
    /// The dialect of an upgrade.
    pub(super) dialect: Option<SocketDialect>,
    /// Path and query.
    pub(super) url: &'a str,
}

impl RequestMatcher {
    fn matches(&self, request: RequestInfo<'_>) -> bool {
        self.to == request.kind
            && request.dialect.is_none_or(|dialect| self.on.includes(dialect))
            && self.url.as_deref().is_none_or(|part| request.url.contains(part))
            && (!self.resuming || request.url.contains("sequenceId="))
    }
}

#[derive(Debug)]
struct PendingFault<What> {
    fault: What,
    uses_left: u32,
}

#[derive(Debug)]
struct FaultQueue<What>(VecDeque<PendingFault<What>>);

impl<What: Clone> FaultQueue<What> {
    fn push(&mut self, what: What, left: u32) {
        if self.0.len() >= PENDING_MAX {
            self.0.pop_front();
        }
        self.0.push_back(PendingFault { fault: what, uses_left: left });
    }

    /// Takes one use of the first fault that matches.
    fn take(&mut self, fits: impl Fn(&What) -> bool) -> Option<What> {
        let index = self.0.iter().position(|waiting| fits(&waiting.fault))?;
        let waiting = &mut self.0[index];
        if waiting.uses_left != ALWAYS {
            waiting.uses_left = waiting.uses_left.saturating_sub(1);
        }
        let (what, used_up) = (waiting.fault.clone(), waiting.uses_left == 0);
        if used_up {
            self.0.remove(index);
        }
        Some(what)
    }
}

#[derive(Debug)]
pub(super) struct PendingFaults {
    answers: FaultQueue<(RequestMatcher, ResponseFault)>,
    tokens: FaultQueue<TokenFailure>,
    /// Events that are emitted when a second socket of a kind opens.
    pub(super) flood_at_overlap: u64,
    /// How long a client of each dialect may send nothing.
    pub(super) idle_timeouts: BTreeMap<SocketDialect, Duration>,
}

impl PendingFaults {
    pub(super) fn new() -> Self {
        Self {
            answers: FaultQueue(VecDeque::new()),
            tokens: FaultQueue(VecDeque::new()),
            flood_at_overlap: 0,
            idle_timeouts: BTreeMap::new(),
        }
    }

    pub(super) fn add_answer(&mut self, matcher: RequestMatcher, how: ResponseFault, times: u32) {
        self.answers.push((matcher, how), times);
    }

    /// How many faults wait for a request, without those that last until the simulator ends.
    pub(super) fn pending_count(&self) -> usize {
        self.answers.0.iter().filter(|waiting| waiting.uses_left != ALWAYS).count()
            + self.tokens.0.iter().filter(|waiting| waiting.uses_left != ALWAYS).count()
            + usize::from(self.flood_at_overlap > 0)
    }

    pub(super) fn add_token_failure(&mut self, failure: TokenFailure, times: u32) {
        self.tokens.push(failure, times);
    }

    pub(super) fn take_answer(&mut self, request: RequestInfo<'_>) -> Option<ResponseFault> {
        self.answers.take(|(waits, _)| waits.matches(request)).map(|(_, how)| how)
    }

    pub(super) fn take_token_failure(&mut self) -> Option<TokenFailure> {
        self.tokens.take(|_| true)
    }
}

impl FaultTarget {
    pub(super) fn includes(self, dialect: SocketDialect) -> bool {
        match (self, dialect) {
            (Self::All, _) => true,
            (Self::Sequenced, dialect) => dialect == SocketDialect::Sequenced,
            (Self::Notifications, dialect) => dialect == SocketDialect::Notifications,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_fault_applies_to_matching_requests_until_used_up() {
        use SocketDialect::{Notifications, Sequenced};
        let matcher =
            |to, on, url: Option<&str>, resuming| RequestMatcher { to, on, url: url.map(str::to_owned), resuming };
        let late = |seconds| ResponseFault::Late { duration: Duration::from_secs(seconds) };
        let mut faults = PendingFaults::new();
        faults.add_answer(matcher(RequestKind::Upgrade, FaultTarget::Notifications, None, false), late(1), 1);
        faults.add_answer(matcher(RequestKind::Upgrade, FaultTarget::All, None, true), late(2), 1);
        faults.add_answer(matcher(RequestKind::Upgrade, FaultTarget::All, Some("channel=b"), false), late(3), ALWAYS);
        faults.add_answer(matcher(RequestKind::Rest, FaultTarget::All, Some("/users"), false), late(4), 1);
        let upgrade = |dialect, url| RequestInfo { kind: RequestKind::Upgrade, dialect: Some(dialect), url };
        let rest = |url| RequestInfo { kind: RequestKind::Rest, dialect: None, url };
        let table = [
            (upgrade(Sequenced, "/stream"), None),
            (upgrade(Sequenced, "/stream?sequenceId=7"), Some(2)),
            (upgrade(Sequenced, "/stream?sequenceId=7"), None),
            (upgrade(Notifications, "/channels/a"), Some(1)),
            (upgrade(Notifications, "/channels/a"), None),
            (upgrade(Sequenced, "/stream?channel=b"), Some(3)),
            (upgrade(Sequenced, "/stream?channel=b"), Some(3)),
            (rest("/queues"), None),
            (rest("/users?pageSize=1"), Some(4)),
            (rest("/users"), None),
        ];
        for (request, seconds) in table {
            assert_eq!(faults.take_answer(request), seconds.map(late), "{request:?}");
        }
    }
}
