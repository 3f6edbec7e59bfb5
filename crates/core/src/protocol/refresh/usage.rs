//! Which streams use an account's token, and whether a rejection concerns the account or one stream.
//!
//! A rejection may mean that the token is invalid, or that one stream must not use it. The first requires another
//! token. The second must not request one, because every other stream would rotate without need.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::model::StreamName;

/// A token that is younger than this and under which other streams are live is not revoked.
const FRESH_MAX: Duration = Duration::from_secs(60);

/// The use of the current token on this replica. The configured streams limit all sets.
#[derive(Debug, Clone, Default)]
pub struct TokenUsage {
    generation: u64,
    offered_at: Option<Instant>,
    /// Streams that were live under the token in use.
    proven_by: BTreeSet<StreamName>,
    /// Streams that were live and not rejected since.
    healthy: BTreeSet<StreamName>,
    /// When a rejection of this stream last caused a new token. Kept for [`FRESH_MAX`].
    replaced_for: BTreeMap<StreamName, Instant>,
    /// Streams that were rejected and not live since.
    failing: BTreeSet<StreamName>,
    /// Set if the token in use is rejected: whether it had carried a live session.
    refused: Option<bool>,
}

/// The scope of a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalScope {
    /// An old token: there is a newer one already.
    Outdated,
    /// The account: it gets another token, at once if this one had carried a live session.
    Account { proven: bool },
    /// One stream: the account keeps its token.
    Stream,
}

impl TokenUsage {
    /// A token is in use.
    pub fn on_token(&mut self, generation: u64, now: Instant) {
        if generation > self.generation {
            self.generation = generation;
            self.offered_at = Some(now);
            self.proven_by.clear();
            self.refused = None;
        }
    }

    /// A session of the stream is live under a token. Returns whether this undoes a rejection of the token.
    pub fn on_live(&mut self, stream: &StreamName, generation: u64) -> bool {
        self.failing.remove(stream);
        self.healthy.insert(stream.clone());
        if generation != self.generation {
            return false;
        }
        self.proven_by.insert(stream.clone());
        // The platform has accepted the token after it rejected it, so the rejection concerned a stream.
        self.refused.take().is_some()
    }

    /// The platform rejected a token of the stream.
    pub fn on_refused(&mut self, stream: &StreamName, generation: u64, now: Instant) -> RefusalScope {
        if generation < self.generation {
            return RefusalScope::Outdated;
        }
        self.healthy.remove(stream);
        let failing = !self.failing.insert(stream.clone());
        self.replaced_for.retain(|_, at| now < *at + FRESH_MAX);
        let scope = self.scope_of(stream, failing, now);
        if self.replaced_for.contains_key(stream) || matches!(scope, RefusalScope::Account { .. }) {
            self.replaced_for.insert(stream.clone(), now);
        }
        if let RefusalScope::Account { proven } = scope {
            self.refused = Some(proven || self.refused == Some(true));
        }
        scope
    }

    fn scope_of(&self, stream: &StreamName, failing: bool, now: Instant) -> RefusalScope {
        let proven = !self.proven_by.is_empty();
        let fresh = self.offered_at.is_some_and(|at| now < at + FRESH_MAX);
        if self.is_repeated(stream) {
            return RefusalScope::Stream;
        }
        if self.proven_by.contains(stream) && !failing {
            return RefusalScope::Account { proven: true };
        }
        let others_fine = !self.healthy.is_empty() && self.refused.is_none();
        if others_fine && (failing || (proven && fresh)) {
            return RefusalScope::Stream;
        }
        RefusalScope::Account { proven }
    }

    /// Whether a new token has just not helped this stream, while others are live under the token in use.
    fn is_repeated(&self, stream: &StreamName) -> bool {
        let others = self.proven_by.iter().any(|other| other != stream && self.healthy.contains(other));
        others && self.refused.is_none() && self.replaced_for.contains_key(stream)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_one_stream_stays_with_it_and_a_proven_token_is_replaced_at_once() {
        let table = [
            ("alone, it carried", "offer 1, live a 1, refuse a 1 at-once"),
            ("alone, it never carried", "offer 1, refuse a 1 later"),
            (
                "alone, the second never carried",
                "offer 1, live a 1, refuse a 1 at-once, offer 2, live a 2, refuse a 2 at-once, offer 3, refuse a 3 later",
            ),
            ("an older token", "offer 2, live a 2, refuse b 1 old"),
            (
                "a fresh token, its neighbour is live",
                "offer 1, live a 1, refuse b 1 stream, refuse b 1 stream, pass 600, refuse b 1 stream",
            ),
            (
                "an older token, its neighbour is live",
                "offer 1, live a 1, pass 600, refuse b 1 at-once, offer 2, refuse b 2 stream, live a 2, pass 600, \
                 refuse b 2 stream, offer 3, refuse b 3 stream",
            ),
            (
                "it was live, and then is refused until it is live again",
                "offer 1, live a 1, live b 1, refuse b 1 at-once, offer 2, refuse b 2 stream, live b 2, refuse b 2 at-once",
            ),
            (
                "refused again and again while its neighbour is live under each token",
                "offer 1, live a 1, live b 1, refuse b 1 at-once, offer 2, live a 2, live b 2, pass 5, refuse b 2 stream, \
                 live b 2, pass 50, refuse b 2 stream, live b 2, pass 50, refuse b 2 stream, live b 2, pass 61, \
                 refuse b 2 at-once",
            ),
            (
                "revoked for all a moment after it was replaced",
                "offer 1, live a 1, live b 1, refuse a 1 at-once, refuse b 1 at-once, offer 2, live a 2, live b 2, pass 5, \
                 refuse a 2 stream, refuse b 2 at-once",
            ),
            (
                "revoked for all",
                "offer 1, live a 1, live b 1, refuse a 1 at-once, refuse b 1 at-once, offer 2, refuse a 2 later, \
                 refuse b 2 later",
            ),
        ];
        for (name, script) in table {
            let (mut usage, mut now) = (TokenUsage::default(), Instant::now());
            for step in script.split(", ") {
                match step.split_whitespace().collect::<Vec<_>>()[..] {
                    ["offer", generation] => usage.on_token(generation.parse().unwrap(), now),
                    ["live", stream, generation] => {
                        usage.on_live(&stream.parse().unwrap(), generation.parse().unwrap());
                    }
                    ["refuse", stream, generation, expected] => {
                        let scope = usage.on_refused(&stream.parse().unwrap(), generation.parse().unwrap(), now);
                        assert_eq!(describe(scope), expected, "{name}: {step}");
                    }
                    ["pass", seconds] => now += Duration::from_secs(seconds.parse().unwrap()),
                    _ => panic!("{step}"),
                }
            }
        }
    }

    fn describe(scope: RefusalScope) -> &'static str {
        match scope {
            RefusalScope::Outdated => "old",
            RefusalScope::Account { proven: true } => "at-once",
            RefusalScope::Account { proven: false } => "later",
            RefusalScope::Stream => "stream",
        }
    }

    #[test]
    fn a_refusal_of_an_unproven_token_is_cleared_when_another_stream_goes_live_with_it() {
        let (mut usage, now) = (TokenUsage::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|name| name.parse().unwrap());
        usage.on_token(1, now);
        assert_eq!(usage.on_refused(&b, 1, now), RefusalScope::Account { proven: false });
        assert!(usage.on_live(&a, 1), "the account keeps it");
        assert_eq!(usage.on_refused(&b, 1, now), RefusalScope::Stream);
        assert!(!usage.on_live(&a, 1), "nothing is cleared twice");
    }

    #[test]
    fn a_refusal_of_a_token_that_only_the_refused_stream_proved_is_cleared_too() {
        let (mut usage, now) = (TokenUsage::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|name| name.parse().unwrap());
        usage.on_token(1, now);
        for stream in [&a, &b] {
            usage.on_live(stream, 1);
        }
        assert_eq!(usage.on_refused(&b, 1, now), RefusalScope::Account { proven: true });
        usage.on_token(2, now);
        usage.on_live(&b, 2);
        assert_eq!(usage.on_refused(&b, 2, now), RefusalScope::Account { proven: true });
        assert!(usage.on_live(&a, 2), "a slower stream shows that the token is good");
        usage.on_live(&b, 2);
        assert_eq!(usage.on_refused(&b, 2, now), RefusalScope::Stream);
    }
}
