//! The token refresh of one account: deadlines, rejected tokens, failures, admin requests, and other replicas that may
//! refresh too.
//!
//! It holds no secret, only generation numbers and lifetimes. It has at most one request in flight. A token stays in
//! use until there is a newer one.

mod failure_streak;
pub mod lifetime;
mod messages;
mod pace;
mod refusals;
mod settings;
mod sharing;
mod state;
mod token;
pub mod usage;
mod waiting;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use self::{
    failure_streak::FailureStreak,
    refusals::Refusals,
    sharing::{HeldLock, ReadPurpose, SharingFacts, VaultDecision, VaultStep},
    state::RefreshState,
    token::{CurrentToken, KnownTokens, TokenLifetime},
};
pub use self::{
    messages::{
        GENERATION_MAX, GrantFailure, Input, LockOutcome, Output, PublishOutcome, TokenOrigin, TokenPhase,
        VaultContent, VaultToken,
    },
    refusals::{REFUSALS_MAX, REFUSALS_WINDOW},
    settings::{Settings, TokenSharing},
    waiting::{PendingRefresh, WaitReason},
};

/// The machine of one account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refresh {
    settings: Settings,
    tokens: KnownTokens,
    state: RefreshState,
    /// When a token was last requested, by this replica or (as seen here) by another.
    last_attempt_at: Option<Instant>,
    refusals: Refusals,
    outputs: VecDeque<Output>,
}

impl Refresh {
    /// Nothing happens before [`Input::Start`].
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            tokens: KnownTokens::default(),
            state: RefreshState::NotStarted,
            last_attempt_at: None,
            refusals: Refusals::default(),
            outputs: VecDeque::new(),
        }
    }

    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Start => self.start(now),
            Input::Granted { lifetime, repeated, unit } => {
                self.refusals.on_granted(repeated);
                self.on_granted(lifetime, unit, now);
            }
            Input::Failed { failure, unit } => self.on_failed(failure, unit, now),
            Input::Refused { generation, proven } => self.on_refused(generation, proven, now),
            Input::RefusalCleared { generation } => self.clear_refusal(generation),
            Input::RefreshRequested => self.expedite(self.earliest(self.settings.interval_min, now), now),
            Input::VaultRead { seen, unit } => self.on_vault_read(seen, unit, now),
            Input::Locked { lock, unit } => {
                let (step, streak) = self.state.step();
                self.apply(step.on_locked(lock, &self.facts(unit, now)), streak, unit, now);
            }
            Input::Published(published) => {
                let (step, streak) = self.state.step();
                self.apply(step.on_published(published, now), streak, 0.0, now);
            }
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
            RefreshState::Sharing { step, streak } => {
                if let Some(decision) = step.on_timeout(now) {
                    self.apply(decision, streak, 0.0, now);
                }
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.poll_timeout()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn phase(&self) -> TokenPhase {
        let is_rejected = self.state.streak().is_some_and(|streak| streak.failure == GrantFailure::Rejected);
        match self.tokens.current {
            _ if is_rejected => TokenPhase::Rejected,
            None => TokenPhase::NoToken,
            Some(held) if self.state.is_quiet() && held.refused.is_none() => TokenPhase::Valid,
            Some(_) => TokenPhase::Renewing,
        }
    }

    /// The generation of the token in use; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.tokens.generation()
    }

    /// When the token in use expires, if that is known.
    pub fn expires_at(&self) -> Option<Instant> {
        self.tokens.lifetime().map(|lifetime| lifetime.expires_at)
    }

    /// The lifetime of the token in use, if that is known.
    pub fn lifetime(&self) -> Option<Duration> {
        self.tokens.lifetime().map(|lifetime| lifetime.total)
    }

    /// When the next token is requested; none while a request is in progress.
    pub fn next_at(&self) -> Option<Instant> {
        self.poll_timeout().filter(|_| !matches!(self.state, RefreshState::Fetching { .. }))
    }

    /// The reason why a refresh waits now. None if only the scheduled refresh is due.
    pub fn pending_refresh(&self, now: Instant) -> Option<PendingRefresh> {
        PendingRefresh::of(self.state, self.tokens.lifetime(), &self.settings, now)
    }

    /// Until when the account is degraded because the platform rejected too many tokens.
    pub fn degraded_until(&self) -> Option<Instant> {
        self.refusals.degraded_until()
    }

    /// Whether a stream may use the token in use again after the platform rejected it. A token that was rejected after
    /// it had carried a live session is revoked.
    pub fn is_retryable(&self) -> bool {
        self.tokens.current.is_some_and(|held| held.refused != Some(true))
    }

    /// Whether the platform rejected the token in use.
    pub fn is_refused(&self) -> bool {
        self.tokens.current.is_some_and(|held| held.refused.is_some())
    }

    fn start(&mut self, now: Instant) {
        assert!(matches!(self.state, RefreshState::NotStarted), "started twice");
        self.obtain(now);
    }

    /// A token is needed: from the endpoint, or from the replica that gets one first.
    fn obtain(&mut self, now: Instant) {
        self.last_attempt_at = Some(now);
        let streak = self.state.streak();
        match self.settings.sharing {
            TokenSharing::None => self.fetch(streak, None, now),
            TokenSharing::Vault => self.read_vault(ReadPurpose::BeforeLock, streak, now),
        }
    }

    fn fetch(&mut self, streak: Option<FailureStreak>, lock: Option<HeldLock>, now: Instant) {
        self.state = RefreshState::Fetching { sent_at: now, streak, lock };
        self.outputs.push_back(Output::Fetch);
    }

    fn on_granted(&mut self, lifetime: Option<Duration>, unit: f64, now: Instant) {
        let (sent_at, _, lock) = self.state.request();
        let lifetime = lifetime.map(|total| TokenLifetime::granted(total, sent_at, &self.settings, unit));
        match self.settings.sharing {
            TokenSharing::None => self.adopt_granted(lifetime),
            TokenSharing::Vault => self.publish_or_adopt(lifetime, lock, now),
        }
    }

    /// A token was granted. With the lock it is published before it is used, without it after.
    fn publish_or_adopt(&mut self, lifetime: Option<TokenLifetime>, lock: Option<HeldLock>, now: Instant) {
        let unexpired = lifetime.filter(|lifetime| now < lifetime.expires_at);
        match (lock, unexpired) {
            (Some(_), Some(lifetime)) => {
                self.publish(VaultStep::Publishing { lifetime }, self.tokens.next_generation(), lifetime, now);
            }
            (Some(_), None) => {
                self.outputs.push_back(Output::Release { pause: None });
                self.adopt_granted(lifetime);
            }
            (None, _) => {
                self.adopt_granted(lifetime);
                self.republish(lifetime.map(|lifetime| lifetime.refresh_at), now);
            }
        }
    }

    fn publish(&mut self, step: VaultStep, generation: u64, lifetime: TokenLifetime, now: Instant) {
        self.state = RefreshState::Sharing { step, streak: None };
        let remaining = lifetime.remaining(now);
        self.outputs.push_back(Output::Publish { generation, lifetime: lifetime.total, remaining });
    }

    /// Publishes the token in use.
    fn republish(&mut self, refresh_at: Option<Instant>, now: Instant) {
        match self.tokens.usable(now) {
            Some((generation, lifetime)) => {
                self.publish(VaultStep::Republishing { refresh_at }, generation, lifetime, now);
            }
            None => self.state = RefreshState::Idle { refresh_at },
        }
    }

    fn adopt_granted(&mut self, lifetime: Option<TokenLifetime>) {
        self.adopt(self.tokens.next_generation(), lifetime, TokenOrigin::Grant);
    }

    fn adopt(&mut self, generation: u64, lifetime: Option<TokenLifetime>, origin: TokenOrigin) {
        self.tokens.current = Some(CurrentToken { generation, lifetime, refused: None });
        self.state = RefreshState::Idle { refresh_at: lifetime.map(|lifetime| lifetime.refresh_at) };
        self.outputs.push_back(Output::Adopt { generation, origin });
    }

    fn on_failed(&mut self, failure: GrantFailure, unit: f64, now: Instant) {
        let (_, past, lock) = self.state.request();
        let streak = FailureStreak::after(past, failure);
        let pause = streak.delay(unit, self.tokens.time_left(&self.settings, now).retry_delay_max());
        if lock.is_some() {
            self.outputs.push_back(Output::Release { pause: streak.is_throttled().then_some(pause) });
        }
        self.state = RefreshState::Retrying { at: now + pause, streak };
        self.outputs.push_back(Output::Retry { at: now + pause, alarm: streak.needs_operator() });
    }

    /// A rejected token is replaced. `proven`: it had carried a live session.
    fn on_refused(&mut self, generation: u64, proven: bool, now: Instant) {
        let at = self.earliest(self.refusals.interval(proven, self.settings.interval_min, now), now);
        let Some(held) = self.tokens.current.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.is_some_and(|known| known == proven || known) {
            return;
        }
        if held.refused.replace(proven).is_none() {
            self.refusals.record(now);
        }
        self.expedite(at, now);
    }

    /// Undoes the rejection, unless a newer token is requested already.
    fn clear_refusal(&mut self, generation: u64) {
        let Some(held) = self.tokens.current.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.take().is_none() || self.state.streak().is_some() {
            return;
        }
        if let Some(scheduled) = self.state.scheduled_mut() {
            *scheduled = held.lifetime.map(|lifetime| lifetime.refresh_at);
        }
    }

    /// The earliest time that keeps this interval after the last request.
    fn earliest(&self, interval: Duration, now: Instant) -> Instant {
        self.last_attempt_at.map_or(now, |last| now.max(last + interval))
    }

    /// Brings the next attempt forward to `at`. A request in flight continues, and a pause that the endpoint asked for
    /// is kept.
    fn expedite(&mut self, at: Instant, now: Instant) {
        if self.state.streak().is_some_and(|streak| streak.is_throttled()) {
            return;
        }
        if let RefreshState::Retrying { at: next, .. } = &mut self.state {
            *next = at.min(*next);
        } else if let Some(scheduled) = self.state.scheduled_mut() {
            *scheduled = Some(scheduled.map_or(at, |next| next.min(at)));
        } else {
            return;
        }
        self.handle_timeout(now);
    }

    /// Extends the lock while the request is in flight, if that leaves time for an attempt of another replica.
    fn renew_lock(&mut self, now: Instant) {
        let time = self.tokens.time_left(&self.settings, now);
        let RefreshState::Fetching { lock: Some(lock), .. } = &mut self.state else { return };
        lock.renew_at = time.may_lock().then(|| now + time.lock_ttl() / 3);
        if time.may_lock() {
            self.outputs.push_back(Output::Renew { ttl: time.lock_ttl() });
        }
    }

    fn on_vault_read(&mut self, content: Option<VaultContent>, unit: f64, now: Instant) {
        let (step, streak) = self.state.step();
        content.into_iter().for_each(|content| self.tokens.on_vault_read(content));
        let decision = step.on_read(content, &self.facts(unit, now));
        let has_lock = matches!(step, VaultStep::Reading { purpose: ReadPurpose::UnderLock(_), .. });
        if has_lock && !matches!(decision, VaultDecision::Fetch(_)) {
            self.outputs.push_back(Output::Release { pause: None });
        }
        self.apply(decision, streak, unit, now);
    }

    /// Reads the store because of a hint, unless another read follows soon.
    fn on_vault_notified(&mut self, generation: Option<u64>, now: Instant) {
        let is_newer = generation.is_none_or(|generation| generation > self.generation());
        if !is_newer || self.settings.sharing == TokenSharing::None {
            return;
        }
        match self.state {
            RefreshState::Idle { refresh_at } => self.read_vault(ReadPurpose::Hint { refresh_at }, None, now),
            RefreshState::Retrying { at, streak } => {
                self.read_vault(ReadPurpose::Hint { refresh_at: Some(at) }, Some(streak), now);
            }
            RefreshState::Sharing {
                step: VaultStep::WaitingForLock { .. } | VaultStep::WithoutVault { .. },
                streak,
            } => self.read_vault(ReadPurpose::BeforeLock, streak, now),
            RefreshState::NotStarted | RefreshState::Fetching { .. } | RefreshState::Sharing { .. } => (),
        }
    }

    fn apply(&mut self, decision: VaultDecision, streak: Option<FailureStreak>, unit: f64, now: Instant) {
        match decision {
            VaultDecision::Enter(step) => self.enter(step, streak),
            VaultDecision::Fetch(lock) => self.fetch(streak, lock, now),
            VaultDecision::AdoptFound { found, requested_at } => self.adopt_found(found, requested_at, unit, now),
            VaultDecision::AdoptGranted(lifetime) => self.adopt_granted(Some(lifetime)),
            VaultDecision::Pause(pause) => self.pause_requests(pause, streak, unit, now),
            VaultDecision::Republish { refresh_at } => self.republish(refresh_at, now),
            VaultDecision::Continue { refresh_at } => self.idle_or_retry(refresh_at, streak),
        }
    }

    fn read_vault(&mut self, purpose: ReadPurpose, streak: Option<FailureStreak>, now: Instant) {
        self.enter(VaultStep::read(purpose, now), streak);
    }

    fn enter(&mut self, step: VaultStep, streak: Option<FailureStreak>) {
        self.state = RefreshState::Sharing { step, streak };
        self.outputs.extend(step.request());
    }

    /// The token endpoint asked another replica for a pause. This replica waits too.
    fn pause_requests(&mut self, pause: Duration, streak: Option<FailureStreak>, unit: f64, now: Instant) {
        let streak = FailureStreak::after(streak, GrantFailure::Throttled(Some(pause)));
        let at = now + streak.delay(unit, Duration::MAX);
        self.state = RefreshState::Retrying { at, streak };
        self.outputs.push_back(Output::PauseRequests { at });
    }

    /// Restores the state before a read because of a hint.
    fn idle_or_retry(&mut self, refresh_at: Option<Instant>, streak: Option<FailureStreak>) {
        self.state = match (streak, refresh_at) {
            (Some(streak), Some(at)) => RefreshState::Retrying { at, streak },
            (None | Some(_), refresh_at) => RefreshState::Idle { refresh_at },
        };
    }

    /// Uses another replica's token. A token that comes long before the next one was due is the result of a rejection
    /// or an admin request on another replica, which counts for this one too.
    fn adopt_found(&mut self, found: VaultToken, requested_at: Instant, unit: f64, now: Instant) {
        let jitter_max = |lifetime: &TokenLifetime| self.settings.jitter(lifetime.total, 1.0);
        if self.tokens.lifetime().is_some_and(|lifetime| now + jitter_max(&lifetime) < lifetime.refresh_at) {
            self.last_attempt_at = Some(now);
        }
        let lifetime = TokenLifetime::found(found, requested_at, &self.settings, unit);
        self.adopt(found.generation, Some(lifetime), TokenOrigin::Vault);
    }

    fn facts(&self, unit: f64, now: Instant) -> SharingFacts {
        let has_failed = self.state.streak().is_some();
        SharingFacts {
            generation: self.generation(),
            time: self.tokens.time_left(&self.settings, now),
            has_failed,
            unit,
            now,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests;
