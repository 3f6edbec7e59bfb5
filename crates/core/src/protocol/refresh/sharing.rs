//! One refresh for all replicas: read the store, take the lock, read again, request, publish. The others adopt the
//! token.
//!
//! The store is authoritative, its notifications are hints, and the lock only saves requests: without notifications or
//! lock a replica still gets a token, and never an older one. An unreachable store costs more requests.

use std::time::{Duration, Instant};

use super::{
    messages::{LockOutcome, Output, PublishOutcome, VaultContent, VaultToken},
    pace::TimeLeft,
    token::TokenLifetime,
};

/// The lock, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HeldLock {
    /// None: it is not extended any more, so that another replica can try.
    pub(super) renew_at: Option<Instant>,
}

/// The step of a shared refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum VaultStep {
    Reading {
        requested_at: Instant,
        purpose: ReadPurpose,
    },
    Locking {
        requested_at: Instant,
        ttl: Duration,
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
        lifetime: TokenLifetime,
    },
    /// The token in use is published to a store that lacks it. The state before it continues afterwards.
    Republishing {
        refresh_at: Option<Instant>,
    },
}

/// Why the store is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ReadPurpose {
    /// A hint of a newer token. The state before it continues afterwards.
    Hint { refresh_at: Option<Instant> },
    /// Another replica may have refreshed before this one takes the lock.
    BeforeLock,
    /// Another replica may have refreshed just before this one took the lock.
    UnderLock(HeldLock),
    /// The token that was just granted is late: the store has a newer one.
    AfterGrant(TokenLifetime),
}

/// The result of a response of the store or the end of a wait.
#[derive(Debug, Clone, Copy)]
pub(super) enum VaultDecision {
    Enter(VaultStep),
    /// Request a token, under the lock or without it.
    Fetch(Option<HeldLock>),
    /// Use the token of the store.
    AdoptFound {
        found: VaultToken,
        requested_at: Instant,
    },
    /// Use the token that was just granted.
    AdoptGranted(TokenLifetime),
    /// Wait for the pause that the token endpoint asked another replica for.
    Pause(Duration),
    /// Publish the token in use: the store was unreachable when it was granted, or has lost data.
    Republish {
        refresh_at: Option<Instant>,
    },
    /// Continue the state before the hint.
    Continue {
        refresh_at: Option<Instant>,
    },
}

/// The facts that decide the next step, together with the answer of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharingFacts {
    /// The generation of the token in use.
    pub(super) generation: u64,
    pub(super) time: TimeLeft,
    /// Whether the last request failed.
    pub(super) has_failed: bool,
    pub(super) unit: f64,
    pub(super) now: Instant,
}

impl VaultStep {
    pub(super) fn read(purpose: ReadPurpose, now: Instant) -> Self {
        Self::Reading { requested_at: now, purpose }
    }

    pub(super) fn wakes_at(self) -> Option<Instant> {
        match self {
            Self::WaitingForLock { at } | Self::WithoutVault { at } => Some(at),
            Self::Reading { .. } | Self::Locking { .. } | Self::Publishing { .. } | Self::Republishing { .. } => None,
        }
    }

    /// The time of the next scheduled request, if no refresh is in progress.
    pub(super) fn scheduled_mut(&mut self) -> Option<&mut Option<Instant>> {
        match self {
            Self::Reading { purpose: ReadPurpose::Hint { refresh_at }, .. } | Self::Republishing { refresh_at } => {
                Some(refresh_at)
            }
            Self::Reading { .. }
            | Self::Locking { .. }
            | Self::WaitingForLock { .. }
            | Self::WithoutVault { .. }
            | Self::Publishing { .. } => None,
        }
    }

    /// The request that begins a read or an attempt to lock.
    pub(super) fn request(self) -> Option<Output> {
        match self {
            Self::Reading { .. } => Some(Output::ReadVault),
            Self::Locking { ttl, .. } => Some(Output::Lock { ttl }),
            Self::WaitingForLock { .. }
            | Self::WithoutVault { .. }
            | Self::Publishing { .. }
            | Self::Republishing { .. } => None,
        }
    }

    /// The contents of the store; none while it is unreachable.
    pub(super) fn on_read(self, content: Option<VaultContent>, facts: &SharingFacts) -> VaultDecision {
        let Self::Reading { requested_at, purpose } = self else { panic!("an answer without a read") };
        if let Some(found) = facts.newer_token(content, requested_at) {
            return VaultDecision::AdoptFound { found, requested_at };
        }
        let pause = content.and_then(|content| content.pause);
        match purpose {
            ReadPurpose::Hint { refresh_at } if facts.is_missing_current(content) => {
                VaultDecision::Republish { refresh_at }
            }
            ReadPurpose::Hint { refresh_at } => VaultDecision::Continue { refresh_at },
            ReadPurpose::BeforeLock if content.is_none() => facts.continue_without_vault(),
            ReadPurpose::BeforeLock => pause.map_or_else(|| facts.lock(), VaultDecision::Pause),
            ReadPurpose::UnderLock(lock) => pause.map_or(VaultDecision::Fetch(Some(lock)), VaultDecision::Pause),
            ReadPurpose::AfterGrant(lifetime) => VaultDecision::AdoptGranted(lifetime),
        }
    }

    pub(super) fn on_locked(self, lock: LockOutcome, facts: &SharingFacts) -> VaultDecision {
        let Self::Locking { requested_at, ttl } = self else { panic!("an answer without a request for the lock") };
        match lock {
            LockOutcome::Acquired => {
                let lock = HeldLock { renew_at: Some(requested_at + ttl / 3) };
                VaultDecision::Enter(Self::read(ReadPurpose::UnderLock(lock), facts.now))
            }
            LockOutcome::Held if facts.time.is_urgent(facts.unit) => VaultDecision::Fetch(None),
            LockOutcome::Held => {
                let at = facts.now + facts.time.lock_poll_delay(facts.unit);
                VaultDecision::Enter(Self::WaitingForLock { at })
            }
            LockOutcome::Unavailable => facts.continue_without_vault(),
        }
    }

    pub(super) fn on_published(self, published: PublishOutcome, now: Instant) -> VaultDecision {
        let is_newer = match published {
            PublishOutcome::AlreadyNewer => true,
            PublishOutcome::Done | PublishOutcome::LockLost | PublishOutcome::Unavailable => false,
        };
        match self {
            Self::Publishing { lifetime } if is_newer => {
                VaultDecision::Enter(Self::read(ReadPurpose::AfterGrant(lifetime), now))
            }
            Self::Publishing { lifetime } => VaultDecision::AdoptGranted(lifetime),
            Self::Republishing { refresh_at } if is_newer => {
                VaultDecision::Enter(Self::read(ReadPurpose::Hint { refresh_at }, now))
            }
            Self::Republishing { refresh_at } => VaultDecision::Continue { refresh_at },
            Self::Reading { .. } | Self::Locking { .. } | Self::WaitingForLock { .. } | Self::WithoutVault { .. } => {
                panic!("an answer without a published token")
            }
        }
    }

    /// The wait of this step is over. None if it does not wait.
    pub(super) fn on_timeout(self, now: Instant) -> Option<VaultDecision> {
        match self {
            Self::WaitingForLock { .. } => Some(VaultDecision::Enter(Self::read(ReadPurpose::BeforeLock, now))),
            Self::WithoutVault { .. } => Some(VaultDecision::Fetch(None)),
            Self::Reading { .. } | Self::Locking { .. } | Self::Publishing { .. } | Self::Republishing { .. } => None,
        }
    }
}

impl SharingFacts {
    /// The token of the store, if it is newer than the one in use and has not expired.
    fn newer_token(&self, content: Option<VaultContent>, requested_at: Instant) -> Option<VaultToken> {
        let found = content?.token.filter(|found| found.generation > self.generation)?;
        (requested_at + found.remaining > self.now).then_some(found)
    }

    /// Whether the store lacks the token in use, and no request has failed since that was granted.
    fn is_missing_current(&self, content: Option<VaultContent>) -> bool {
        content.is_some_and(|content| content.last < self.generation) && !self.has_failed
    }

    fn lock(&self) -> VaultDecision {
        VaultDecision::Enter(VaultStep::Locking { requested_at: self.now, ttl: self.time.lock_ttl() })
    }

    /// The store is unreachable. After a failure the delay is over already.
    fn continue_without_vault(&self) -> VaultDecision {
        if self.has_failed {
            return VaultDecision::Fetch(None);
        }
        let at = self.now + self.time.unshared_delay(self.unit);
        VaultDecision::Enter(VaultStep::WithoutVault { at })
    }
}
