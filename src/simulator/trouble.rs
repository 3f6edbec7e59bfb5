//! Faults that wait for their next request: refused handshakes, failing token requests, failing REST calls.
//! It refuses nothing itself; it says what to answer.

use std::collections::VecDeque;

use super::fault::{Target, TokenFailure};
use super::tally::Dialect;

/// Faults waiting at once; more push the oldest out.
const WAITING_MAX: usize = 1_024;

/// What a refused request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
}

#[derive(Debug)]
struct Waiting<What> {
    what: What,
    left: u32,
}

#[derive(Debug)]
struct Line<What>(VecDeque<Waiting<What>>);

impl<What: Clone> Line<What> {
    fn push(&mut self, what: What, left: u32) {
        if self.0.len() >= WAITING_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Waiting { what, left });
    }

    /// Uses up one turn of the first that fits.
    fn take(&mut self, fits: impl Fn(&What) -> bool) -> Option<What> {
        let index = self.0.iter().position(|waiting| fits(&waiting.what))?;
        let waiting = &mut self.0[index];
        waiting.left = waiting.left.saturating_sub(1);
        let (what, used_up) = (waiting.what.clone(), waiting.left == 0);
        if used_up {
            self.0.remove(index);
        }
        Some(what)
    }
}

#[derive(Debug)]
pub(super) struct Trouble {
    handshakes: Line<(Target, Refusal)>,
    tokens: Line<TokenFailure>,
    rest: Line<(Option<String>, Refusal)>,
}

impl Trouble {
    pub(super) fn none() -> Self {
        Self { handshakes: Line(VecDeque::new()), tokens: Line(VecDeque::new()), rest: Line(VecDeque::new()) }
    }

    pub(super) fn refuse_handshakes(&mut self, on: Target, refusal: Refusal, times: u32) {
        self.handshakes.push((on, refusal), times);
    }

    pub(super) fn fail_tokens(&mut self, failure: TokenFailure, times: u32) {
        self.tokens.push(failure, times);
    }

    pub(super) fn fail_rest(&mut self, path: Option<String>, refusal: Refusal, times: u32) {
        self.rest.push((path, refusal), times);
    }

    pub(super) fn for_handshake(&mut self, dialect: Dialect) -> Option<Refusal> {
        self.handshakes.take(|(on, _)| on.includes(dialect)).map(|(_, refusal)| refusal)
    }

    pub(super) fn for_token(&mut self) -> Option<TokenFailure> {
        self.tokens.take(|_| true)
    }

    pub(super) fn for_rest(&mut self, path: &str) -> Option<Refusal> {
        let fits = |start: &Option<String>| start.as_ref().is_none_or(|start| path.starts_with(start.as_str()));
        self.rest.take(|(start, _)| fits(start)).map(|(_, refusal)| refusal)
    }
}

impl Target {
    pub(super) fn includes(self, dialect: Dialect) -> bool {
        match (self, dialect) {
            (Self::All, _) => true,
            (Self::Sequenced, dialect) => dialect == Dialect::Sequenced,
            (Self::Notifications, dialect) => dialect == Dialect::Notifications,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_waits_for_the_requests_it_is_for_and_is_used_up() {
        let refusal = |status| Refusal { status, retry_after: None };
        let mut trouble = Trouble::none();
        trouble.refuse_handshakes(Target::Notifications, refusal(403), 1);
        trouble.refuse_handshakes(Target::All, refusal(503), 2);
        assert_eq!(trouble.for_handshake(Dialect::Sequenced), Some(refusal(503)));
        assert_eq!(trouble.for_handshake(Dialect::Notifications), Some(refusal(403)));
        assert_eq!(trouble.for_handshake(Dialect::Notifications), Some(refusal(503)));
        assert_eq!(trouble.for_handshake(Dialect::Notifications), None);
        trouble.fail_rest(Some("/api/v2/users".to_owned()), refusal(500), 1);
        assert_eq!(trouble.for_rest("/api/v2/routing/queues"), None);
        assert_eq!(trouble.for_rest("/api/v2/users?pageSize=1"), Some(refusal(500)));
    }
}
