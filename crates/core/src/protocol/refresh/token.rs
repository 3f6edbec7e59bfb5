//! The known facts about an account's tokens: generations and lifetimes, no secret.

use std::time::{Duration, Instant};

use super::{
    messages::{GENERATION_MAX, VaultContent, VaultToken},
    pace::TimeLeft,
    settings::Settings,
};

/// The token in use, and the newest one that the store ever had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct KnownTokens {
    pub(super) current: Option<CurrentToken>,
    last_vault_generation: u64,
    last_vault_lifetime: Option<Duration>,
}

/// The token in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CurrentToken {
    pub(super) generation: u64,
    pub(super) lifetime: Option<TokenLifetime>,
    /// Set if the platform rejected it: whether it had carried a live session.
    pub(super) refused: Option<bool>,
}

/// The times of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenLifetime {
    pub(super) total: Duration,
    pub(super) expires_at: Instant,
    /// When the next token is requested.
    pub(super) refresh_at: Instant,
}

impl KnownTokens {
    /// The generation of the token in use; 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.current.map_or(0, |held| held.generation)
    }

    /// The generation above all known ones. It stays below [`GENERATION_MAX`].
    pub(super) fn next_generation(&self) -> u64 {
        let last = self.generation().max(self.last_vault_generation);
        last.checked_add(1).expect("generations are bounded where they are read")
    }

    pub(super) fn lifetime(&self) -> Option<TokenLifetime> {
        self.current?.lifetime
    }

    /// The token in use while it is neither rejected nor expired.
    pub(super) fn usable(&self, now: Instant) -> Option<(u64, TokenLifetime)> {
        let held = self.current.filter(|held| held.refused.is_none())?;
        Some((held.generation, held.lifetime.filter(|lifetime| now < lifetime.expires_at)?))
    }

    /// The store was read.
    pub(super) fn on_vault_read(&mut self, content: VaultContent) {
        self.last_vault_generation = self.last_vault_generation.max(content.last).min(GENERATION_MAX - 1);
        self.last_vault_lifetime = content.token.map(|found| found.lifetime).or(self.last_vault_lifetime);
    }

    /// The time that the token in use leaves. Without a token the buffer is that of the store's token.
    pub(super) fn time_left(&self, settings: &Settings, now: Instant) -> TimeLeft {
        let total = self.lifetime().map(|lifetime| lifetime.total).or(self.last_vault_lifetime);
        TimeLeft {
            remaining: self.usable(now).map(|(_, lifetime)| lifetime.remaining(now)),
            buffer: total.map_or(settings.buffer, |total| settings.buffer_of(total)),
        }
    }
}

impl TokenLifetime {
    /// The times of a token with this lifetime, granted to a request that was sent at `sent_at`.
    pub(super) fn granted(total: Duration, sent_at: Instant, settings: &Settings, unit: f64) -> Self {
        Self { total, expires_at: sent_at + total, refresh_at: sent_at + settings.due_after(total, unit) }
    }

    /// The times of the store's token, which was read by a request of `requested_at`.
    pub(super) fn found(found: VaultToken, requested_at: Instant, settings: &Settings, unit: f64) -> Self {
        let total = found.lifetime;
        let expires_at = requested_at + found.remaining;
        let planned = expires_at.checked_sub(settings.buffer_of(total)).unwrap_or(requested_at);
        Self { total, expires_at, refresh_at: planned + settings.jitter(total, unit) }
    }

    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.expires_at.saturating_duration_since(now)
    }
}
