//! Which token a session may use.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Rejections of unproven tokens count for this time.
const REJECTION_WINDOW: Duration = Duration::from_secs(300);
/// After this many rejections of unproven tokens within [`REJECTION_WINDOW`] the stream backs off before it uses the
/// next token.
const REJECTIONS_MAX: usize = 3;

/// The generations of tokens that a stream has used.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    newest: u64,
    /// The newest generation that the platform rejected.
    rejected: u64,
    /// The newest generation under which a session was live.
    proven: u64,
    /// When the platform rejected tokens that had carried no session.
    rejections: VecDeque<Instant>,
}

impl Tokens {
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The newest token, unless the platform rejected it.
    pub(super) fn usable(&self) -> Option<u64> {
        (self.newest > self.rejected).then_some(self.newest)
    }

    pub(super) fn is_rejected(&self, generation: u64) -> bool {
        generation <= self.rejected
    }

    /// Whether this is the newest token and the platform rejected it.
    pub(super) fn is_rejected_newest(&self, generation: u64) -> bool {
        generation == self.newest && generation == self.rejected
    }

    /// Takes a token that the account offers. Returns whether it is newer than all before it.
    pub(super) fn offer(&mut self, generation: u64) -> bool {
        let is_newer = generation > self.newest;
        self.newest = self.newest.max(generation);
        is_newer
    }

    /// Makes the newest rejected token usable again.
    pub(super) fn allow_retry(&mut self) {
        self.rejected = self.rejected.saturating_sub(1);
    }

    /// Marks a token as rejected. Returns whether this is new.
    pub(super) fn reject(&mut self, generation: u64) -> bool {
        let is_new = generation > self.rejected;
        self.rejected = self.rejected.max(generation);
        is_new
    }

    /// A session is live under this token.
    pub(super) fn prove(&mut self, generation: u64) {
        self.proven = self.proven.max(generation);
    }

    /// Counts the rejection of a token that has carried no session. Returns whether there were too many of them.
    pub(super) fn has_too_many_rejections(&mut self, generation: u64, now: Instant) -> bool {
        self.rejections.retain(|at| now.saturating_duration_since(*at) < REJECTION_WINDOW);
        if generation > self.proven {
            self.rejections.push_back(now);
        }
        let too_many = self.rejections.len() >= REJECTIONS_MAX;
        if too_many {
            self.rejections.pop_front();
        }
        too_many
    }
}
