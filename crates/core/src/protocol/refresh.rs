//! When the token of an account is renewed, by whom, and what stands in its way: deadlines, refusals, failures,
//! operators, and other replicas that may be about to do the same.
//!
//! It holds no secret, only generation numbers and lives. It never has two requests under way, and it never takes a
//! running token away: that one stays in use until there is a newer one.

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

/// The highest generation: above it a script of Redis, which counts in floating point, could not tell two apart. What
/// the vault holds at or above it is damaged and is reset.
pub const GENERATION_MAX: u64 = (1 << 53) - 1;

/// So many refused tokens within [`REFUSALS_WINDOW`] degrade an account, and the next ones are replaced no sooner than
/// `REFUSAL_SPACING` after the last request.
pub const REFUSALS_MAX: usize = 3;

/// How long a refused token counts.
pub const REFUSALS_WINDOW: Duration = Duration::from_secs(300);

/// The shortest time between two requests while the platform keeps refusing tokens: a platform that closes each new
/// session at once costs one request in this time.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(5);

/// What an account is configured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// A token is renewed this long before its end (a quarter of its life, if that is shorter than four of these).
    pub buffer: Duration,
    /// At most one refresh in this time; exempt are scheduled ones, and those after the refusal of a token that had
    /// carried a live session.
    pub interval_min: Duration,
    /// Upper bound of the random delay before a scheduled refresh; never more than a quarter of the buffer in force.
    pub jitter_max: Duration,
    pub sharing: TokenSharing,
}

/// With whom a token is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenSharing {
    /// With nobody: whatever is due is fetched.
    None,
    /// With every replica that looks into the same vault: one of them fetches, under a lock.
    Vault,
}

/// What happened. `unit` is a random number from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// Get the first token. Once.
    Start,
    /// The fetch brought a token that lives this long from the moment the request was sent. None: it has no end that
    /// anybody knows, so it is never due. `repeated`: it is the very token that was refused (an endpoint that caches).
    Granted { lifetime: Option<Duration>, repeated: bool, unit: f64 },
    /// The fetch brought none.
    Failed { failure: GrantFailure, unit: f64 },
    /// The platform refuses a token. Only the newest generation counts. `carried`: a session was live under it here.
    Refused { generation: u64, proven: bool },
    /// A token that was refused carries a live session after all, so the account keeps it.
    RefusalCleared { generation: u64 },
    /// Someone wants a new token: an operator, or a secret that changed.
    RefreshRequested,
    /// What the vault holds; none while it is away.
    VaultRead { seen: Option<VaultContent>, unit: f64 },
    /// What came of the try to lock.
    Locked { lock: LockOutcome, unit: f64 },
    /// What came of the try to publish.
    Published(PublishOutcome),
    /// The vault's word of a newer token. None: words may have been missed. Merely a hint, so it may be late or wrong.
    VaultNotified { generation: Option<u64> },
}

/// What a look into the vault found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultContent {
    /// The newest generation that was ever published, as far as the vault remembers.
    pub last: u64,
    pub token: Option<VaultToken>,
    /// The token endpoint asked somebody to leave it alone for so long.
    pub pause: Option<Duration>,
}

/// The token in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultToken {
    pub generation: u64,
    /// From the sending of its request to its end.
    pub lifetime: Duration,
    /// What is left of that, counted from the moment the look was asked for.
    pub remaining: Duration,
}

/// What came of a try to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockOutcome {
    Acquired,
    /// Another replica has it.
    Held,
    /// The vault does not answer.
    Unavailable,
}

/// What came of a try to publish. The lock is given back by it, unless the vault is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishOutcome {
    Done,
    /// The vault has this generation already, or a newer one.
    AlreadyNewer,
    /// Another replica has the lock: it will publish what it gets.
    LockLost,
    /// The vault does not answer; it may be done all the same.
    Unavailable,
}

/// Why there is no token: all that matters for the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrantFailure {
    /// 429, with the pause of its `Retry-After` where that could be read.
    Throttled(Option<Duration>),
    /// No answer, a server's failure, or an answer that cannot be believed.
    Unreachable,
    /// The credentials are not accepted.
    Rejected,
}

/// What is to be done, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Send the grant request. It must be answered with [`Input::Granted`] or [`Input::Failed`].
    Fetch,
    /// A token is in force under this number.
    Adopt { generation: u64, origin: TokenOrigin },
    /// The failure just reported is tried again then. With `alarm`, a person has to act.
    Retry { at: Instant, alarm: bool },
    /// The token endpoint asked another replica for a pause until then, and this one keeps it.
    PauseRequests { at: Instant },
    /// Look into the vault. It must be answered with [`Input::Looked`].
    ReadVault,
    /// Take the lock for `life`, if nobody has it. It must be answered with [`Input::Locked`].
    Lock { ttl: Duration },
    /// Let the lock, if it is still ours, live for `life` from this moment.
    Renew { ttl: Duration },
    /// Give the lock back, if it is still ours. With `pause`, nobody shall ask the token endpoint for so long.
    Release { pause: Option<Duration> },
    /// Put the token just granted, or the one in force, into the vault, unless that has this generation or a newer
    /// one, or another replica has the lock. It must be answered with [`Input::Published`].
    Publish { generation: u64, lifetime: Duration, remaining: Duration },
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenOrigin {
    /// It is the one just granted.
    Grant,
    /// It is what the newest look found.
    Vault,
}

/// Where an account stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPhase {
    /// There is no token yet.
    NoToken,
    Valid,
    /// A newer token is being got, or had to be put off.
    Renewing,
    /// The credentials are not accepted: an operator must act.
    Rejected,
}

/// The machine of one account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refresh {
    settings: Settings,
    current: Option<CurrentToken>,
    state: RefreshState,
    /// When a token was last sought, here or (seen from here) elsewhere.
    last_attempt_at: Option<Instant>,
    /// When the newest tokens were refused, [`REFUSALS_MAX`] at most: the oldest goes first.
    refusals: VecDeque<Instant>,
    /// How often in a row the endpoint granted the token again that was refused.
    repeated_grants: u32,
    /// The newest generation that the vault ever told of.
    last_vault_generation: u64,
    /// How long the token lived that was last seen there.
    last_vault_lifetime: Option<Duration>,
    outputs: VecDeque<Output>,
}

/// The token in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CurrentToken {
    generation: u64,
    lifetime: Option<TokenLifetime>,
    /// The platform refuses it; whether it had carried a live session.
    refused: Option<bool>,
}

/// The time that a token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TokenLifetime {
    total: Duration,
    expires_at: Instant,
    /// When the next one is sought.
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

    /// The number of the token in force; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.current.map_or(0, |held| held.generation)
    }

    /// When the token in force ends, if that is known.
    pub fn expires_at(&self) -> Option<Instant> {
        Some(self.current?.lifetime?.expires_at)
    }

    /// How long the token in force lives in all, if that is known.
    pub fn lifetime(&self) -> Option<Duration> {
        Some(self.current?.lifetime?.total)
    }

    /// When a token is sought next, unless that is happening.
    pub fn next_at(&self) -> Option<Instant> {
        match self.state {
            RefreshState::NotStarted | RefreshState::Fetching { .. } => None,
            RefreshState::Idle { .. } | RefreshState::Retrying { .. } | RefreshState::Sharing { .. } => {
                self.poll_timeout()
            }
        }
    }

    /// Whether the token in force may be used by a stream that was refused it: its trouble may pass. One that was
    /// refused after it had carried a live session is worth nothing.
    pub fn is_retryable(&self) -> bool {
        self.current.is_some_and(|held| held.refused != Some(true))
    }

    /// Whether the platform rejects the token in force.
    pub fn is_refused(&self) -> bool {
        self.current.is_some_and(|held| held.refused.is_some())
    }

    fn start(&mut self, now: Instant) {
        assert!(matches!(self.state, RefreshState::NotStarted), "started twice");
        self.obtain(now);
    }

    /// A token is needed: from the endpoint, or from whoever gets one first.
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

    /// Above everything that was ever seen. Both are below [`GENERATION_MAX`], which counting up never reaches.
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

    /// A token that carried a live session is replaced at once, another one when the minimal interval is over; one that
    /// the endpoint had granted before, sooner: what was granted there was no new token.
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

    /// Until when the account counts as degraded because the platform refused so many tokens.
    pub fn degraded_until(&self) -> Option<Instant> {
        let oldest = self.refusals.front().filter(|_| self.refusals.len() == REFUSALS_MAX)?;
        Some(*oldest + REFUSALS_WINDOW)
    }

    /// The first moment at which one more refused token is replaced.
    fn earliest_after_refusal(&self, now: Instant) -> Instant {
        let often = self.degraded_until().is_some_and(|until| now < until);
        let spaced = self.last_attempt_at.filter(|_| often).map(|sought| sought + REFUSAL_INTERVAL);
        spaced.map_or(now, |at| at.max(now))
    }

    /// The first moment at which a token is replaced that never carried a session.
    fn earliest_after_unproven(&self, now: Instant) -> Instant {
        let interval = match self.repeated_grants.checked_sub(1) {
            None => self.settings.interval_min,
            Some(before) => {
                REFUSAL_INTERVAL.saturating_mul(2_u32.saturating_pow(before)).min(self.settings.interval_min)
            }
        };
        self.last_attempt_at.map_or(now, |sought| now.max(sought + interval))
    }

    /// As before the refusal, unless a newer token is on its way already.
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

    /// The first moment that keeps the minimal interval to an earlier one.
    fn spaced(&self, earlier: Option<Instant>, now: Instant) -> Instant {
        earlier.map_or(now, |earlier| now.max(earlier + self.settings.interval_min))
    }

    /// Brings the next try forward to `at`. One under way is the one that is wanted, and a pause that the endpoint
    /// asked for is kept.
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

    /// When the request was sent that is answered here, the failures before it, and the lock that it was sent under.
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
    /// The word for people.
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
    /// What is left of a token that may still be used.
    fn remaining(&self, now: Instant) -> Option<(TokenLifetime, Duration)> {
        let lifetime = self.lifetime.filter(|_| self.refused.is_none())?;
        let left = lifetime.expires_at.saturating_duration_since(now);
        (!left.is_zero()).then_some((lifetime, left))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests;
