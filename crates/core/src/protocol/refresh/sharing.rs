//! One refresh for all replicas: read the store, take the lock, read again, request, publish. The others adopt the
//! token.
//!
//! The store is authoritative, its notifications are hints, and the lock only saves requests: without notifications or
//! lock a replica still gets a token, and never an older one. An unreachable store costs more requests.

use std::time::{Duration, Instant};

use super::{
    FailureStreak, GENERATION_MAX, GrantFailure, LockOutcome, Output, PublishOutcome, Refresh, RefreshState,
    TokenLifetime, TokenOrigin, TokenSharing, VaultContent, VaultToken,
};

/// The lock, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HeldLock {
    /// None: it is not extended any more, so that another replica can try.
    pub(super) renew_at: Option<Instant>,
}

/// The step of sharing with the store. `asked` is when the read was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum VaultStep {
    /// A read because of a hint. The state before it continues afterwards.
    Peeking {
        requested_at: Instant,
        refresh_at: Option<Instant>,
    },
    /// A read before the lock is taken: another replica may have refreshed.
    Reading {
        requested_at: Instant,
    },
    Locking {
        requested_at: Instant,
        ttl: Duration,
    },
    /// A read under the lock: another replica may have refreshed just before.
    Rereading {
        requested_at: Instant,
        lock: HeldLock,
    },
    /// Another replica has the lock.
    WaitingForLock {
        at: Instant,
    },
    /// The store is unreachable.
    WithoutVault {
        at: Instant,
    },
    /// The granted token is being published.
    Publishing {
        generation: u64,
        lifetime: TokenLifetime,
    },
    /// The granted token is late: there is a newer one.
    Yielding {
        requested_at: Instant,
        lifetime: TokenLifetime,
    },
    /// The token in use is published to a store that lacks it. The state before it continues afterwards.
    Republishing {
        refresh_at: Option<Instant>,
    },
}

impl VaultStep {
    pub(super) fn wakes_at(self) -> Option<Instant> {
        match self {
            Self::WaitingForLock { at } | Self::WithoutVault { at } => Some(at),
            Self::Peeking { .. }
            | Self::Reading { .. }
            | Self::Locking { .. }
            | Self::Rereading { .. }
            | Self::Publishing { .. }
            | Self::Yielding { .. }
            | Self::Republishing { .. } => None,
        }
    }

    /// Whether no refresh is in progress.
    pub(super) fn is_background(self) -> bool {
        matches!(self, Self::Peeking { .. } | Self::Republishing { .. })
    }
}

impl Refresh {
    /// Begins or continues a refresh.
    pub(super) fn read_vault(&mut self, streak: Option<FailureStreak>, now: Instant) {
        self.state = RefreshState::Sharing { step: VaultStep::Reading { requested_at: now }, streak };
        self.outputs.push_back(Output::ReadVault);
    }

    pub(super) fn on_vault_read(&mut self, content: Option<VaultContent>, unit: f64, now: Instant) {
        let (step, streak) = self.step();
        self.last_vault_generation =
            self.last_vault_generation.max(content.map_or(0, |content| content.last)).min(GENERATION_MAX - 1);
        self.last_vault_lifetime =
            content.and_then(|content| content.token).map(|found| found.lifetime).or(self.last_vault_lifetime);
        match step {
            VaultStep::Peeking { requested_at, refresh_at: due } => {
                self.on_peeked(content, requested_at, due, unit, now);
            }
            VaultStep::Reading { requested_at } => match content {
                None => self.wait_without_vault(streak, unit, now),
                Some(content) => self.take_turn(content, requested_at, unit, now),
            },
            VaultStep::Rereading { requested_at, lock } => self.on_reread(content, requested_at, lock, unit, now),
            VaultStep::Yielding { requested_at, lifetime: life } => {
                match self.newer_token(content, requested_at, now) {
                    Some(found) => self.adopt_found(found, requested_at, unit, now),
                    None => self.adopt(self.next_generation(), Some(life), TokenOrigin::Grant),
                }
            }
            VaultStep::Locking { .. }
            | VaultStep::WaitingForLock { .. }
            | VaultStep::WithoutVault { .. }
            | VaultStep::Publishing { .. }
            | VaultStep::Republishing { .. } => panic!("an answer to a look that was not asked for"),
        }
    }

    pub(super) fn on_locked(&mut self, lock: LockOutcome, unit: f64, now: Instant) {
        let (step, streak) = self.step();
        let VaultStep::Locking { requested_at, ttl: life } = step else {
            panic!("an answer about a lock that was not asked for")
        };
        match lock {
            LockOutcome::Acquired => {
                let lock = HeldLock { renew_at: Some(requested_at + life / 3) };
                self.go_to(VaultStep::Rereading { requested_at: now, lock }, streak);
                self.outputs.push_back(Output::ReadVault);
            }
            LockOutcome::Held if self.is_urgent(unit, now) => self.fetch(streak, None, now),
            LockOutcome::Held => self.go_to(VaultStep::WaitingForLock { at: now + self.lock_poll_delay(unit) }, streak),
            LockOutcome::Unavailable => self.wait_without_vault(streak, unit, now),
        }
    }

    pub(super) fn on_published(&mut self, published: PublishOutcome, now: Instant) {
        let (step, streak) = self.step();
        match (step, published) {
            (VaultStep::Publishing { lifetime: life, .. }, PublishOutcome::AlreadyNewer) => {
                self.go_to(VaultStep::Yielding { requested_at: now, lifetime: life }, streak);
                self.outputs.push_back(Output::ReadVault);
            }
            (
                VaultStep::Publishing { generation, lifetime: life },
                PublishOutcome::Done | PublishOutcome::LockLost | PublishOutcome::Unavailable,
            ) => {
                self.adopt(generation, Some(life), TokenOrigin::Grant);
            }
            (VaultStep::Republishing { refresh_at: due }, PublishOutcome::AlreadyNewer) => self.peek(due, streak, now),
            (
                VaultStep::Republishing { refresh_at: due },
                PublishOutcome::Done | PublishOutcome::LockLost | PublishOutcome::Unavailable,
            ) => self.idle_or_retry(due, streak),
            (
                VaultStep::Peeking { .. }
                | VaultStep::Reading { .. }
                | VaultStep::Locking { .. }
                | VaultStep::Rereading { .. }
                | VaultStep::WaitingForLock { .. }
                | VaultStep::WithoutVault { .. }
                | VaultStep::Yielding { .. },
                _,
            ) => panic!("an answer about a token that was not published"),
        }
    }

    /// Reads the store because of a hint, unless another read follows soon.
    pub(super) fn on_vault_notified(&mut self, generation: Option<u64>, now: Instant) {
        let news = generation.is_none_or(|generation| generation > self.generation());
        if !news || self.settings.sharing == TokenSharing::None {
            return;
        }
        match self.state {
            RefreshState::Idle { refresh_at: due } => self.peek(due, None, now),
            RefreshState::Retrying { at, streak } => self.peek(Some(at), Some(streak), now),
            RefreshState::Sharing {
                step: VaultStep::WaitingForLock { .. } | VaultStep::WithoutVault { .. },
                streak,
            } => self.read_vault(streak, now),
            RefreshState::NotStarted | RefreshState::Fetching { .. } | RefreshState::Sharing { .. } => (),
        }
    }

    /// The wait of the current step is over.
    pub(super) fn end_wait(&mut self, step: VaultStep, streak: Option<FailureStreak>, now: Instant) {
        match step {
            VaultStep::WaitingForLock { .. } => self.read_vault(streak, now),
            VaultStep::WithoutVault { .. } => self.fetch(streak, None, now),
            VaultStep::Peeking { .. }
            | VaultStep::Reading { .. }
            | VaultStep::Locking { .. }
            | VaultStep::Rereading { .. }
            | VaultStep::Publishing { .. }
            | VaultStep::Yielding { .. }
            | VaultStep::Republishing { .. } => (),
        }
    }

    /// Extends the lock while the request is in flight, if that leaves time for an attempt of another replica.
    pub(super) fn renew_lock(&mut self, now: Instant) {
        let life = self.lock_ttl(now);
        let worth_it = self.may_lock(now);
        let RefreshState::Fetching { lock: Some(lock), .. } = &mut self.state else { return };
        if worth_it {
            lock.renew_at = Some(now + life / 3);
            self.outputs.push_back(Output::Renew { ttl: life });
        } else {
            lock.renew_at = None;
        }
    }

    /// A token was granted. With the lock it is published before it is used, without it after.
    pub(super) fn publish_or_adopt(&mut self, life: Option<TokenLifetime>, lock: Option<HeldLock>, now: Instant) {
        let generation = self.next_generation();
        let left = life.map(|life| (life, life.expires_at.saturating_duration_since(now)));
        match (lock, left.filter(|(_, left)| !left.is_zero())) {
            (Some(_), Some((life, left))) => {
                self.go_to(VaultStep::Publishing { generation, lifetime: life }, None);
                self.outputs.push_back(Output::Publish { generation, lifetime: life.total, remaining: left });
            }
            (Some(_), None) => {
                self.outputs.push_back(Output::Release { pause: None });
                self.adopt(generation, life, TokenOrigin::Grant);
            }
            (None, _) => {
                self.adopt(generation, life, TokenOrigin::Grant);
                self.republish(life.map(|life| life.refresh_at), now);
            }
        }
    }

    fn take_turn(&mut self, content: VaultContent, requested_at: Instant, unit: f64, now: Instant) {
        let (_, streak) = self.step();
        if let Some(found) = self.newer_token(Some(content), requested_at, now) {
            self.adopt_found(found, requested_at, unit, now);
        } else if let Some(pause) = content.pause {
            self.pause_requests(pause, streak, unit, now);
        } else {
            let life = self.lock_ttl(now);
            self.go_to(VaultStep::Locking { requested_at: now, ttl: life }, streak);
            self.outputs.push_back(Output::Lock { ttl: life });
        }
    }

    fn on_reread(
        &mut self,
        content: Option<VaultContent>,
        requested_at: Instant,
        lock: HeldLock,
        unit: f64,
        now: Instant,
    ) {
        let (_, streak) = self.step();
        if let Some(found) = self.newer_token(content, requested_at, now) {
            self.outputs.push_back(Output::Release { pause: None });
            self.adopt_found(found, requested_at, unit, now);
        } else if let Some(pause) = content.and_then(|content| content.pause) {
            self.outputs.push_back(Output::Release { pause: None });
            self.pause_requests(pause, streak, unit, now);
        } else {
            self.fetch(streak, Some(lock), now);
        }
    }

    fn on_peeked(
        &mut self,
        content: Option<VaultContent>,
        requested_at: Instant,
        due: Option<Instant>,
        unit: f64,
        now: Instant,
    ) {
        let (_, streak) = self.step();
        if let Some(found) = self.newer_token(content, requested_at, now) {
            self.adopt_found(found, requested_at, unit, now);
        } else if content.is_some_and(|content| content.last < self.generation()) && streak.is_none() {
            self.republish(due, now);
        } else {
            self.idle_or_retry(due, streak);
        }
    }

    /// The store has an older token: it was unreachable when the newer one was granted, or it lost data.
    fn republish(&mut self, due: Option<Instant>, now: Instant) {
        let Some((held, (life, left))) = self.current.and_then(|held| Some((held, held.remaining(now)?))) else {
            return self.idle_or_retry(due, None);
        };
        self.go_to(VaultStep::Republishing { refresh_at: due }, None);
        let generation = held.generation;
        self.outputs.push_back(Output::Publish { generation, lifetime: life.total, remaining: left });
    }

    /// The token endpoint asked another replica for a pause. This replica waits too.
    fn pause_requests(&mut self, pause: Duration, streak: Option<FailureStreak>, unit: f64, now: Instant) {
        let streak = FailureStreak::after(streak, GrantFailure::Throttled(Some(pause)));
        let at = now + streak.delay(unit, Duration::MAX);
        self.state = RefreshState::Retrying { at, streak };
        self.outputs.push_back(Output::PauseRequests { at });
    }

    /// The store is unreachable. After a failure the delay is over already.
    fn wait_without_vault(&mut self, streak: Option<FailureStreak>, unit: f64, now: Instant) {
        if streak.is_some() {
            return self.fetch(streak, None, now);
        }
        self.go_to(VaultStep::WithoutVault { at: now + self.unshared_delay(unit, now) }, streak);
    }

    fn peek(&mut self, due: Option<Instant>, streak: Option<FailureStreak>, now: Instant) {
        self.go_to(VaultStep::Peeking { requested_at: now, refresh_at: due }, streak);
        self.outputs.push_back(Output::ReadVault);
    }

    /// Restores the state before a read because of a hint.
    fn idle_or_retry(&mut self, due: Option<Instant>, streak: Option<FailureStreak>) {
        self.state = match (streak, due) {
            (Some(streak), Some(at)) => RefreshState::Retrying { at, streak },
            (None | Some(_), due) => RefreshState::Idle { refresh_at: due },
        };
    }

    /// The token of the store, if it is newer than the one in use and has not expired.
    fn newer_token(&self, content: Option<VaultContent>, requested_at: Instant, now: Instant) -> Option<VaultToken> {
        let found = content?.token.filter(|found| found.generation > self.generation())?;
        (requested_at + found.remaining > now).then_some(found)
    }

    /// Uses another replica's token. A token that comes long before the next one was due is the result of a rejection
    /// or an admin request on another replica, which counts for this one too.
    fn adopt_found(&mut self, found: VaultToken, requested_at: Instant, unit: f64, now: Instant) {
        let jitter_max = |life: &TokenLifetime| self.settings.jitter(life.total, 1.0);
        if self.current.and_then(|held| held.lifetime).is_some_and(|life| now + jitter_max(&life) < life.refresh_at) {
            self.last_attempt_at = Some(now);
        }
        let ends_at = requested_at + found.remaining;
        let planned = ends_at.checked_sub(self.settings.buffer_of(found.lifetime)).unwrap_or(requested_at);
        let due = planned + self.settings.jitter(found.lifetime, unit);
        self.adopt(
            found.generation,
            Some(TokenLifetime { total: found.lifetime, expires_at: ends_at, refresh_at: due }),
            TokenOrigin::Vault,
        );
    }

    fn go_to(&mut self, step: VaultStep, streak: Option<FailureStreak>) {
        self.state = RefreshState::Sharing { step, streak };
    }

    fn step(&self) -> (VaultStep, Option<FailureStreak>) {
        match self.state {
            RefreshState::Sharing { step, streak } => (step, streak),
            RefreshState::NotStarted
            | RefreshState::Idle { .. }
            | RefreshState::Fetching { .. }
            | RefreshState::Retrying { .. } => {
                panic!("an answer of the vault that was not asked for")
            }
        }
    }
}
