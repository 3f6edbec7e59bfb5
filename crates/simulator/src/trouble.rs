//! Faults that wait for their next request: refused handshakes, failing token requests, failing REST calls.
//! It refuses nothing itself; it says what to answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::fault::{ALWAYS, Answered, Asked, Target, TokenFailure};
use super::tally::Dialect;

/// Faults waiting at once; more push the oldest out.
const WAITING_MAX: usize = 1_024;

/// Which requests an answer waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waits {
    pub(super) to: Asked,
    pub(super) on: Target,
    pub(super) url: Option<String>,
    pub(super) resuming: bool,
}

/// A request, as far as it matters which answer waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) kind: Asked,
    /// Of an upgrade.
    pub(super) dialect: Option<Dialect>,
    /// Path and query.
    pub(super) url: &'a str,
}

impl Waits {
    fn fits(&self, request: Request<'_>) -> bool {
        self.to == request.kind
            && request.dialect.is_none_or(|dialect| self.on.includes(dialect))
            && self.url.as_deref().is_none_or(|part| request.url.contains(part))
            && (!self.resuming || request.url.contains("sequenceId="))
    }
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
        if waiting.left != ALWAYS {
            waiting.left = waiting.left.saturating_sub(1);
        }
        let (what, used_up) = (waiting.what.clone(), waiting.left == 0);
        if used_up {
            self.0.remove(index);
        }
        Some(what)
    }
}

#[derive(Debug)]
pub(super) struct Trouble {
    answers: Line<(Waits, Answered)>,
    tokens: Line<TokenFailure>,
    /// Events that are said when a second socket of a kind opens.
    pub(super) at_overlap: u64,
    /// How long a client of each kind may send nothing.
    pub(super) quiet: BTreeMap<Dialect, Duration>,
}

impl Trouble {
    pub(super) fn none() -> Self {
        Self { answers: Line(VecDeque::new()), tokens: Line(VecDeque::new()), at_overlap: 0, quiet: BTreeMap::new() }
    }

    pub(super) fn answer(&mut self, waits: Waits, how: Answered, times: u32) {
        self.answers.push((waits, how), times);
    }

    /// How many faults wait for a request; those that last for ever wait for none.
    pub(super) fn waiting(&self) -> usize {
        self.answers.0.iter().filter(|waiting| waiting.left != ALWAYS).count()
            + self.tokens.0.iter().filter(|waiting| waiting.left != ALWAYS).count()
            + usize::from(self.at_overlap > 0)
    }

    pub(super) fn fail_tokens(&mut self, failure: TokenFailure, times: u32) {
        self.tokens.push(failure, times);
    }

    pub(super) fn for_request(&mut self, request: Request<'_>) -> Option<Answered> {
        self.answers.take(|(waits, _)| waits.fits(request)).map(|(_, how)| how)
    }

    pub(super) fn for_token(&mut self) -> Option<TokenFailure> {
        self.tokens.take(|_| true)
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
        use Dialect::{Notifications, Sequenced};
        let waits = |to, on, url: Option<&str>, resuming| Waits { to, on, url: url.map(str::to_owned), resuming };
        let late = |seconds| Answered::Late { lasting: Duration::from_secs(seconds) };
        let mut trouble = Trouble::none();
        trouble.answer(waits(Asked::Upgrade, Target::Notifications, None, false), late(1), 1);
        trouble.answer(waits(Asked::Upgrade, Target::All, None, true), late(2), 1);
        trouble.answer(waits(Asked::Upgrade, Target::All, Some("channel=b"), false), late(3), ALWAYS);
        trouble.answer(waits(Asked::Rest, Target::All, Some("/users"), false), late(4), 1);
        let upgrade = |dialect, url| Request { kind: Asked::Upgrade, dialect: Some(dialect), url };
        let rest = |url| Request { kind: Asked::Rest, dialect: None, url };
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
            assert_eq!(trouble.for_request(request), seconds.map(late), "{request:?}");
        }
    }
}
