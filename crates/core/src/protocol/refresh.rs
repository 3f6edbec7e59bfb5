//! The token refresh of one account: deadlines, rejected tokens, failures, admin requests, and other replicas that may
//! refresh too.
//!
//! It holds no secret, only generation numbers and lifetimes. It has at most one request in flight. A token stays in
//! use until there is a newer one.

pub mod lifetime;
mod pace;
mod sharing;
pub mod usage;
mod waiting;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

pub use self::waiting::{PendingRefresh, WaitReason};
use self::{
    pace::FailureStreak,
    sharing::{HeldLock, VaultStep},
};

/// The limit of generations: a Redis script counts in floating point and cannot distinguish higher numbers. A stored
/// generation at or above it is damaged and is reset.
pub const GENERATION_MAX: u64 = (1 << 53) - 1;

/// This many rejected tokens within [`REFUSALS_WINDOW`] degrade an account. The next ones are replaced no sooner than
/// `REFUSAL_SPACING` after the last request.
pub const REFUSALS_MAX: usize = 3;

/// How long a rejected token counts.
pub const REFUSALS_WINDOW: Duration = Duration::from_secs(300);

/// The minimum time between two requests while the platform rejects tokens again and again: a platform that closes each
/// new session costs one request in this time.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(5);

/// The refresh settings of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// A token is refreshed this long before it expires, but not before three quarters of its lifetime.
    pub buffer: Duration,
    /// The minimum time between two refreshes. Scheduled ones, and those after the rejection of a token that had
    /// carried a live session, are exempt.
    pub interval_min: Duration,
    /// The maximum random delay before a scheduled refresh, limited to a quarter of the current buffer.
    pub jitter_max: Duration,
    pub sharing: TokenSharing,
}

/// Whether a token is shared between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenSharing {
    /// Not shared: this replica requests every token itself.
    None,
    /// Shared by all replicas with the same store: one of them requests it, under a lock.
    Vault,
}

/// An input of the refresh machine. `unit` is a random number from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// Get the first token. Sent once.
    Start,
    /// The endpoint granted a token with this lifetime from the sending of the request. None: the lifetime is unknown,
    /// so a refresh is never due. `repeated`: it is the token that was rejected (the endpoint caches).
    Granted { lifetime: Option<Duration>, repeated: bool, unit: f64 },
    /// The request failed.
    Failed { failure: GrantFailure, unit: f64 },
    /// The platform rejected a token. Only the newest generation counts. `carried`: a session was live under it here.
    Refused { generation: u64, proven: bool },
    /// A session is live under the rejected token, so the account keeps it.
    RefusalCleared { generation: u64 },
    /// An operator, or a changed secret, requests a new token.
    RefreshRequested,
    /// The contents of the store; none while it is unreachable.
    VaultRead { seen: Option<VaultContent>, unit: f64 },
    /// The result of the attempt to lock.
    Locked { lock: LockOutcome, unit: f64 },
    /// The result of the attempt to publish.
    Published(PublishOutcome),
    /// A notification of a newer token. None: notifications may have been missed. It is a hint that may be late or
    /// wrong.
    VaultNotified { generation: Option<u64> },
}

/// The contents of the token store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultContent {
    /// The newest generation that was ever published, if the store still has it.
    pub last: u64,
    pub token: Option<VaultToken>,
    /// The token endpoint asked a replica for this pause.
    pub pause: Option<Duration>,
}

/// The token in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultToken {
    pub generation: u64,
    /// The lifetime, from the sending of its request.
    pub lifetime: Duration,
    /// The rest of the lifetime when the read was requested.
    pub remaining: Duration,
}

/// The result of an attempt to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockOutcome {
    Acquired,
    /// Another replica has the lock.
    Held,
    /// The store does not answer.
    Unavailable,
}

/// The result of an attempt to publish. It releases the lock, unless the store is unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishOutcome {
    Done,
    /// The store has this generation already, or a newer one.
    AlreadyNewer,
    /// Another replica has the lock, and will publish its own token.
    LockLost,
    /// The store does not answer. The token may be published or not.
    Unavailable,
}

/// The kind of a failed request, as far as it matters for the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrantFailure {
    /// Status 429, with the delay of a valid `Retry-After`.
    Throttled(Option<Duration>),
    /// No answer, a server error, or an invalid answer.
    Unreachable,
    /// The credentials are rejected.
    Rejected,
}

/// An output of the refresh machine. Outputs are handled in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Send the grant request. It must be answered with [`Input::Granted`] or [`Input::Failed`].
    Fetch,
    /// The token of this generation is in use.
    Adopt { generation: u64, origin: TokenOrigin },
    /// The failed request is repeated at this time. With `alarm` an operator must act.
    Retry { at: Instant, alarm: bool },
    /// The token endpoint asked another replica for a pause until this time. This replica waits too.
    PauseRequests { at: Instant },
    /// Read the store. It must be answered with [`Input::VaultRead`].
    ReadVault,
    /// Take the lock for `life`, if it is free. It must be answered with [`Input::Locked`].
    Lock { ttl: Duration },
    /// Extend the lock, if this replica still has it, to `life` from now.
    Renew { ttl: Duration },
    /// Release the lock, if this replica still has it. With `pause`, no replica may use the token endpoint for this
    /// time.
    Release { pause: Option<Duration> },
    /// Store the token just granted, or the one in use, unless the store has this generation or a newer one, or another
    /// replica has the lock. It must be answered with [`Input::Published`].
    Publish { generation: u64, lifetime: Duration, remaining: Duration },
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenOrigin {
    /// The token was just granted.
    Grant,
    /// The token comes from the newest read of the store.
    Vault,
}

/// The state of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPhase {
    /// There is no token yet.
    NoToken,
    Valid,
    /// A newer token is requested, or the request is delayed.
    Renewing,
    /// The credentials are rejected. An operator must act.
    Rejected,
}

/// The machine of one account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refresh {
    settings: Settings,
    current: Option<CurrentToken>,
    state: RefreshState,
    /// When a token was last requested, by this replica or (as seen here) by another.
    last_attempt_at: Option<Instant>,
    /// When the newest tokens were rejected, at most [`REFUSALS_MAX`] of them.
    refusals: VecDeque<Instant>,
    /// How many times in a row the endpoint granted the rejected token again.
    repeated_grants: u32,
    /// The newest generation that the store ever had.
    last_vault_generation: u64,
    /// The lifetime of the last token seen in the store.
    last_vault_lifetime: Option<Duration>,
    outputs: VecDeque<Output>,
}

/// The token in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CurrentToken {
    generation: u64,
    lifetime: Option<TokenLifetime>,
    /// Set if the platform rejected it: whether it had carried a live session.
    refused: Option<bool>,
}

/// The times of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TokenLifetime {
    total: Duration,
    expires_at: Instant,
    /// When the next token is requested.
    refresh_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RefreshState {
    NotStarted,
    Idle { refresh_at: Option<Instant> },
    Fetching { sent_at: Instant, streak: Option<FailureStreak>, lock: Option<HeldLock> },
    Retrying { at: Instant, streak: FailureStreak },
    Sharing { step: VaultStep, streak: Option<FailureStreak> },
}

impl Refresh {
    /// Nothing happens before [`Input::Start`].
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            current: None,
            state: RefreshState::NotStarted,
            last_attempt_at: None,
            refusals: VecDeque::new(),
            repeated_grants: 0,
            last_vault_generation: 0,
            last_vault_lifetime: None,
            outputs: VecDeque::new(),
        }
    }

    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Start => self.start(now),
            Input::Granted { lifetime, repeated, unit } => {
                self.repeated_grants = if repeated { self.repeated_grants.saturating_add(1) } else { 0 };
                self.on_granted(lifetime, unit, now);
            }
            Input::Failed { failure, unit } => self.on_failed(failure, unit, now),
            Input::Refused { generation, proven: carried } => self.on_refused(generation, carried, now),
            Input::RefusalCleared { generation } => self.clear_refusal(generation),
            Input::RefreshRequested => self.expedite(self.spaced(self.last_attempt_at, now), now),
            Input::VaultRead { seen, unit } => self.on_vault_read(seen, unit, now),
            Input::Locked { lock, unit } => self.on_locked(lock, unit, now),
            Input::Published(published) => self.on_published(published, now),
            Input::VaultNotified { generation } => self.on_vault_notified(generation, now),
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        match self.state {
            RefreshState::NotStarted => (),
            RefreshState::Idle { .. } | RefreshState::Retrying { .. } => self.obtain(now),
            RefreshState::Fetching { .. } => self.renew_lock(now),
            RefreshState::Sharing { step, streak } => self.end_wait(step, streak, now),
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            RefreshState::NotStarted => None,
            RefreshState::Idle { refresh_at: due } => due,
            RefreshState::Fetching { lock, .. } => lock?.renew_at,
            RefreshState::Retrying { at, .. } => Some(at),
            RefreshState::Sharing { step, .. } => step.wakes_at(),
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn phase(&self) -> TokenPhase {
        let rejected = self.failure_streak().is_some_and(|streak| streak.failure == GrantFailure::Rejected);
        match (self.state, self.current) {
            _ if rejected => TokenPhase::Rejected,
            (_, None) => TokenPhase::NoToken,
            (RefreshState::Idle { .. }, Some(held)) if held.refused.is_none() => TokenPhase::Valid,
            (RefreshState::Sharing { step, streak: None }, Some(held))
                if held.refused.is_none() && step.is_background() =>
            {
                TokenPhase::Valid
            }
            (
                RefreshState::NotStarted
                | RefreshState::Idle { .. }
                | RefreshState::Fetching { .. }
                | RefreshState::Retrying { .. }
                | RefreshState::Sharing { .. },
                Some(_),
            ) => TokenPhase::Renewing,
        }
    }

    /// The generation of the token in use; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.current.map_or(0, |held| held.generation)
    }

    /// When the token in use expires, if that is known.
    pub fn expires_at(&self) -> Option<Instant> {
        Some(self.current?.lifetime?.expires_at)
    }

    /// The lifetime of the token in use, if that is known.
    pub fn lifetime(&self) -> Option<Duration> {
        Some(self.current?.lifetime?.total)
    }

    /// When the next token is requested; none while a request is in progress.
    pub fn next_at(&self) -> Option<Instant> {
        match self.state {
            RefreshState::NotStarted | RefreshState::Fetching { .. } => None,
            RefreshState::Idle { .. } | RefreshState::Retrying { .. } | RefreshState::Sharing { .. } => {
                self.poll_timeout()
            }
        }
    }

    /// Whether a stream may use the token in use again after the platform rejected it. A token that was rejected after
    /// it had carried a live session is revoked.
    pub fn is_retryable(&self) -> bool {
        self.current.is_some_and(|held| held.refused != Some(true))
    }

    /// Whether the platform rejected the token in use.
    pub fn is_refused(&self) -> bool {
        self.current.is_some_and(|held| held.refused.is_some())
    }

    fn start(&mut self, now: Instant) {
        assert!(matches!(self.state, RefreshState::NotStarted), "started twice");
        self.obtain(now);
    }

    /// A token is needed: from the endpoint, or from the replica that gets one first.
    fn obtain(&mut self, now: Instant) {
        self.last_attempt_at = Some(now);
        let streak = self.failure_streak();
        match self.settings.sharing {
            TokenSharing::None => self.fetch(streak, None, now),
            TokenSharing::Vault => self.read_vault(streak, now),
        }
    }

    fn fetch(&mut self, streak: Option<FailureStreak>, lock: Option<HeldLock>, now: Instant) {
        self.state = RefreshState::Fetching { sent_at: now, streak, lock };
        self.outputs.push_back(Output::Fetch);
    }

    fn on_granted(&mut self, lifetime: Option<Duration>, unit: f64, now: Instant) {
        let (sent, _, lock) = self.take_request();
        let lifetime = lifetime.map(|whole| TokenLifetime {
            total: whole,
            expires_at: sent + whole,
            refresh_at: sent + self.settings.due_after(whole, unit),
        });
        match self.settings.sharing {
            TokenSharing::None => self.adopt(self.next_generation(), lifetime, TokenOrigin::Grant),
            TokenSharing::Vault => self.publish_or_adopt(lifetime, lock, now),
        }
    }

    /// The generation above all known ones. It stays below [`GENERATION_MAX`].
    fn next_generation(&self) -> u64 {
        let last = self.generation().max(self.last_vault_generation);
        last.checked_add(1).expect("generations are bounded where they are read")
    }

    fn adopt(&mut self, generation: u64, lifetime: Option<TokenLifetime>, origin: TokenOrigin) {
        self.current = Some(CurrentToken { generation, lifetime, refused: None });
        self.state = RefreshState::Idle { refresh_at: lifetime.map(|lifetime| lifetime.refresh_at) };
        self.outputs.push_back(Output::Adopt { generation, origin });
    }

    fn on_failed(&mut self, failure: GrantFailure, unit: f64, now: Instant) {
        let (_, past, lock) = self.take_request();
        let streak = FailureStreak::after(past, failure);
        let pause = streak.delay(unit, self.retry_delay_max(now));
        if lock.is_some() {
            let asked_for = streak.is_same_kind(GrantFailure::Throttled(None));
            self.outputs.push_back(Output::Release { pause: asked_for.then_some(pause) });
        }
        self.state = RefreshState::Retrying { at: now + pause, streak };
        self.outputs.push_back(Output::Retry { at: now + pause, alarm: streak.needs_operator() });
    }

    /// A rejected token that carried a live session is replaced at once, any other after the minimum interval. A token
    /// that the endpoint had granted again is replaced sooner, because it was no new token.
    fn on_refused(&mut self, generation: u64, carried: bool, now: Instant) {
        let Some(held) = self.current.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.is_some_and(|known| known == carried || known) {
            return;
        }
        let at_once = self.earliest_after_refusal(now);
        let held = self.current.as_mut().expect("it is there");
        if held.refused.replace(carried).is_none() {
            self.record_refusal(now);
        }
        let at = if carried { at_once } else { at_once.max(self.earliest_after_unproven(now)) };
        self.expedite(at, now);
    }

    fn record_refusal(&mut self, now: Instant) {
        if self.refusals.len() == REFUSALS_MAX {
            self.refusals.pop_front();
        }
        self.refusals.push_back(now);
    }

    /// Until when the account is degraded because the platform rejected too many tokens.
    pub fn degraded_until(&self) -> Option<Instant> {
        let oldest = self.refusals.front().filter(|_| self.refusals.len() == REFUSALS_MAX)?;
        Some(*oldest + REFUSALS_WINDOW)
    }

    /// The earliest time at which one more rejected token is replaced.
    fn earliest_after_refusal(&self, now: Instant) -> Instant {
        let often = self.degraded_until().is_some_and(|until| now < until);
        let spaced = self.last_attempt_at.filter(|_| often).map(|sought| sought + REFUSAL_INTERVAL);
        spaced.map_or(now, |at| at.max(now))
    }

    /// The earliest time at which a token is replaced that never carried a session.
    fn earliest_after_unproven(&self, now: Instant) -> Instant {
        let interval = match self.repeated_grants.checked_sub(1) {
            None => self.settings.interval_min,
            Some(before) => {
                REFUSAL_INTERVAL.saturating_mul(2_u32.saturating_pow(before)).min(self.settings.interval_min)
            }
        };
        self.last_attempt_at.map_or(now, |sought| now.max(sought + interval))
    }

    /// Undoes the rejection, unless a newer token is requested already.
    fn clear_refusal(&mut self, generation: u64) {
        let Some(held) = self.current.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.take().is_none() {
            return;
        }
        let planned = held.lifetime.map(|lifetime| lifetime.refresh_at);
        match &mut self.state {
            RefreshState::Idle { refresh_at: due }
            | RefreshState::Sharing {
                step: VaultStep::Peeking { refresh_at: due, .. } | VaultStep::Republishing { refresh_at: due },
                streak: None,
            } => *due = planned,
            RefreshState::NotStarted
            | RefreshState::Fetching { .. }
            | RefreshState::Retrying { .. }
            | RefreshState::Sharing { .. } => (),
        }
    }

    /// The earliest time that keeps the minimum interval.
    fn spaced(&self, earlier: Option<Instant>, now: Instant) -> Instant {
        earlier.map_or(now, |earlier| now.max(earlier + self.settings.interval_min))
    }

    /// Brings the next attempt forward to `at`. A request in flight continues, and a pause that the endpoint asked for
    /// is kept.
    fn expedite(&mut self, at: Instant, now: Instant) {
        let patient = self.failure_streak().is_some_and(|streak| streak.is_same_kind(GrantFailure::Throttled(None)));
        match &mut self.state {
            RefreshState::Idle { refresh_at: due } => *due = Some(due.map_or(at, |due| due.min(at))),
            RefreshState::Retrying { at: again, .. } if !patient => *again = at.min(*again),
            RefreshState::Sharing {
                step: VaultStep::Peeking { refresh_at: due, .. } | VaultStep::Republishing { refresh_at: due },
                ..
            } if !patient => {
                *due = Some(due.map_or(at, |due| due.min(at)));
            }
            RefreshState::NotStarted
            | RefreshState::Fetching { .. }
            | RefreshState::Retrying { .. }
            | RefreshState::Sharing { .. } => return,
        }
        self.handle_timeout(now);
    }

    /// Ends the request in flight. Returns when it was sent, the failures before it, and its lock.
    fn take_request(&self) -> (Instant, Option<FailureStreak>, Option<HeldLock>) {
        match self.state {
            RefreshState::Fetching { sent_at: sent, streak, lock } => (sent, streak, lock),
            RefreshState::NotStarted
            | RefreshState::Idle { .. }
            | RefreshState::Retrying { .. }
            | RefreshState::Sharing { .. } => {
                panic!("an answer without a request")
            }
        }
    }

    fn failure_streak(&self) -> Option<FailureStreak> {
        match self.state {
            RefreshState::NotStarted | RefreshState::Idle { .. } => None,
            RefreshState::Fetching { streak, .. } | RefreshState::Sharing { streak, .. } => streak,
            RefreshState::Retrying { streak, .. } => Some(streak),
        }
    }
}

impl TokenPhase {
    /// The name in logs and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "waiting",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Rejected => "rejected",
        }
    }
}

impl CurrentToken {
    /// The rest of the token's lifetime.
    fn remaining(&self, now: Instant) -> Option<(TokenLifetime, Duration)> {
        let lifetime = self.lifetime.filter(|_| self.refused.is_none())?;
        let left = lifetime.expires_at.saturating_duration_since(now);
        (!left.is_zero()).then_some((lifetime, left))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests;
