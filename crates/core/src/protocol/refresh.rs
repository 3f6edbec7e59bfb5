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

pub use self::waiting::{Reason, Waiting};
use self::{
    pace::Row,
    sharing::{Hold, Step},
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
const REFUSAL_SPACING: Duration = Duration::from_secs(5);

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
    pub sharing: Sharing,
}

/// With whom a token is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
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
    Failed { failure: Failure, unit: f64 },
    /// The platform refuses a token. Only the newest generation counts. `carried`: a session was live under it here.
    Refused { generation: u64, carried: bool },
    /// A token that was refused carries a live session after all, so the account keeps it.
    Cleared { generation: u64 },
    /// Someone wants a new token: an operator, or a secret that changed.
    Wanted,
    /// What the vault holds; none while it is away.
    Looked { seen: Option<Seen>, unit: f64 },
    /// What came of the try to lock.
    Locked { lock: Lock, unit: f64 },
    /// What came of the try to publish.
    Published(Published),
    /// The vault's word of a newer token. None: words may have been missed. Merely a hint, so it may be late or wrong.
    Told { generation: Option<u64> },
}

/// What a look into the vault found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The newest generation that was ever published, as far as the vault remembers.
    pub last: u64,
    pub token: Option<Found>,
    /// The token endpoint asked somebody to leave it alone for so long.
    pub pause: Option<Duration>,
}

/// The token in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Found {
    pub generation: u64,
    /// From the sending of its request to its end.
    pub lifetime: Duration,
    /// What is left of that, counted from the moment the look was asked for.
    pub left: Duration,
}

/// What came of a try to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    Got,
    /// Another replica has it.
    Held,
    /// The vault does not answer.
    Away,
}

/// What came of a try to publish. The lock is given back by it, unless the vault is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Published {
    Done,
    /// The vault has this generation already, or a newer one.
    Newer,
    /// Another replica has the lock: it will publish what it gets.
    Lost,
    /// The vault does not answer; it may be done all the same.
    Away,
}

/// Why there is no token: all that matters for the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
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
    Adopt { generation: u64, origin: Origin },
    /// The failure just reported is tried again then. With `alarm`, a person has to act.
    Retry { at: Instant, alarm: bool },
    /// The token endpoint asked another replica for a pause until then, and this one keeps it.
    KeepAway { at: Instant },
    /// Look into the vault. It must be answered with [`Input::Looked`].
    Look,
    /// Take the lock for `life`, if nobody has it. It must be answered with [`Input::Locked`].
    Lock { life: Duration },
    /// Let the lock, if it is still ours, live for `life` from this moment.
    Renew { life: Duration },
    /// Give the lock back, if it is still ours. With `pause`, nobody shall ask the token endpoint for so long.
    Release { pause: Option<Duration> },
    /// Put the token just granted, or the one in force, into the vault, unless that has this generation or a newer
    /// one, or another replica has the lock. It must be answered with [`Input::Published`].
    Publish { generation: u64, lifetime: Duration, left: Duration },
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It is the one just granted.
    Grant,
    /// It is what the newest look found.
    Vault,
}

/// Where an account stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is no token yet.
    Waiting,
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
    held: Option<Held>,
    state: State,
    /// When a token was last sought, here or (seen from here) elsewhere.
    sought_at: Option<Instant>,
    /// When the newest tokens were refused, [`REFUSALS_MAX`] at most: the oldest goes first.
    refusals: VecDeque<Instant>,
    /// How often in a row the endpoint granted the token again that was refused.
    repeats: u32,
    /// The newest generation that the vault ever told of.
    last_seen: u64,
    /// How long the token lived that was last seen there.
    life_seen: Option<Duration>,
    outputs: VecDeque<Output>,
}

/// The token in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    generation: u64,
    life: Option<Life>,
    /// The platform refuses it; whether it had carried a live session.
    refused: Option<bool>,
}

/// The time that a token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Life {
    whole: Duration,
    ends_at: Instant,
    /// When the next one is sought.
    due: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Idle,
    Resting { due: Option<Instant> },
    Fetching { sent: Instant, row: Option<Row>, hold: Option<Hold> },
    Retrying { at: Instant, row: Row },
    Sharing { step: Step, row: Option<Row> },
}

impl Refresh {
    /// Nothing happens before [`Input::Start`].
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            held: None,
            state: State::Idle,
            sought_at: None,
            refusals: VecDeque::new(),
            repeats: 0,
            last_seen: 0,
            life_seen: None,
            outputs: VecDeque::new(),
        }
    }

    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Start => self.start(now),
            Input::Granted { lifetime, repeated, unit } => {
                self.repeats = if repeated { self.repeats.saturating_add(1) } else { 0 };
                self.granted(lifetime, unit, now);
            }
            Input::Failed { failure, unit } => self.retry(failure, unit, now),
            Input::Refused { generation, carried } => self.refuse(generation, carried, now),
            Input::Cleared { generation } => self.clear(generation),
            Input::Wanted => self.hasten(self.spaced(self.sought_at, now), now),
            Input::Looked { seen, unit } => self.looked(seen, unit, now),
            Input::Locked { lock, unit } => self.locked(lock, unit, now),
            Input::Published(published) => self.published(published, now),
            Input::Told { generation } => self.told(generation, now),
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        match self.state {
            State::Idle => (),
            State::Resting { .. } | State::Retrying { .. } => self.seek(now),
            State::Fetching { .. } => self.renew(now),
            State::Sharing { step, row } => self.go_on(step, row, now),
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Resting { due } => due,
            State::Fetching { hold, .. } => hold?.renew_at,
            State::Retrying { at, .. } => Some(at),
            State::Sharing { step, .. } => step.wakes_at(),
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn phase(&self) -> Phase {
        let rejected = self.row().is_some_and(|row| row.failure == Failure::Rejected);
        match (self.state, self.held) {
            _ if rejected => Phase::Rejected,
            (_, None) => Phase::Waiting,
            (State::Resting { .. }, Some(held)) if held.refused.is_none() => Phase::Valid,
            (State::Sharing { step, row: None }, Some(held)) if held.refused.is_none() && step.is_aside() => {
                Phase::Valid
            }
            (
                State::Idle
                | State::Resting { .. }
                | State::Fetching { .. }
                | State::Retrying { .. }
                | State::Sharing { .. },
                Some(_),
            ) => Phase::Renewing,
        }
    }

    /// The number of the token in force; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.held.map_or(0, |held| held.generation)
    }

    /// When the token in force ends, if that is known.
    pub fn ends_at(&self) -> Option<Instant> {
        Some(self.held?.life?.ends_at)
    }

    /// How long the token in force lives in all, if that is known.
    pub fn lifetime(&self) -> Option<Duration> {
        Some(self.held?.life?.whole)
    }

    /// When a token is sought next, unless that is happening.
    pub fn next_at(&self) -> Option<Instant> {
        match self.state {
            State::Idle | State::Fetching { .. } => None,
            State::Resting { .. } | State::Retrying { .. } | State::Sharing { .. } => self.poll_timeout(),
        }
    }

    /// Whether the token in force may be used by a stream that was refused it: its trouble may pass. One that was
    /// refused after it had carried a live session is worth nothing.
    pub fn may_be_tried_again(&self) -> bool {
        self.held.is_some_and(|held| held.refused != Some(true))
    }

    /// Whether the platform rejects the token in force.
    pub fn is_refused(&self) -> bool {
        self.held.is_some_and(|held| held.refused.is_some())
    }

    fn start(&mut self, now: Instant) {
        assert!(matches!(self.state, State::Idle), "started twice");
        self.seek(now);
    }

    /// A token is needed: from the endpoint, or from whoever gets one first.
    fn seek(&mut self, now: Instant) {
        self.sought_at = Some(now);
        let row = self.row();
        match self.settings.sharing {
            Sharing::None => self.fetch(row, None, now),
            Sharing::Vault => self.look(row, now),
        }
    }

    fn fetch(&mut self, row: Option<Row>, hold: Option<Hold>, now: Instant) {
        self.state = State::Fetching { sent: now, row, hold };
        self.outputs.push_back(Output::Fetch);
    }

    fn granted(&mut self, lifetime: Option<Duration>, unit: f64, now: Instant) {
        let (sent, _, hold) = self.answered();
        let life = lifetime.map(|whole| Life {
            whole,
            ends_at: sent + whole,
            due: sent + self.settings.due_after(whole, unit),
        });
        match self.settings.sharing {
            Sharing::None => self.adopt(self.next_generation(), life, Origin::Grant),
            Sharing::Vault => self.hand_in(life, hold, now),
        }
    }

    /// Above everything that was ever seen. Both are below [`GENERATION_MAX`], which counting up never reaches.
    fn next_generation(&self) -> u64 {
        let last = self.generation().max(self.last_seen);
        last.checked_add(1).expect("generations are bounded where they are read")
    }

    fn adopt(&mut self, generation: u64, life: Option<Life>, origin: Origin) {
        self.held = Some(Held { generation, life, refused: None });
        self.state = State::Resting { due: life.map(|life| life.due) };
        self.outputs.push_back(Output::Adopt { generation, origin });
    }

    fn retry(&mut self, failure: Failure, unit: f64, now: Instant) {
        let (_, past, hold) = self.answered();
        let row = Row::after(past, failure);
        let pause = row.pause(unit, self.patience(now));
        if hold.is_some() {
            let asked_for = row.is_like(Failure::Throttled(None));
            self.outputs.push_back(Output::Release { pause: asked_for.then_some(pause) });
        }
        self.state = State::Retrying { at: now + pause, row };
        self.outputs.push_back(Output::Retry { at: now + pause, alarm: row.is_alarming() });
    }

    /// A token that carried a live session is replaced at once, another one when the minimal interval is over; one that
    /// the endpoint had granted before, sooner: what was granted there was no new token.
    fn refuse(&mut self, generation: u64, carried: bool, now: Instant) {
        let Some(held) = self.held.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.is_some_and(|known| known == carried || known) {
            return;
        }
        let at_once = self.after_refusal(now);
        let held = self.held.as_mut().expect("it is there");
        if held.refused.replace(carried).is_none() {
            self.note_refusal(now);
        }
        let at = if carried { at_once } else { at_once.max(self.after_unusable(now)) };
        self.hasten(at, now);
    }

    fn note_refusal(&mut self, now: Instant) {
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
    fn after_refusal(&self, now: Instant) -> Instant {
        let often = self.degraded_until().is_some_and(|until| now < until);
        let spaced = self.sought_at.filter(|_| often).map(|sought| sought + REFUSAL_SPACING);
        spaced.map_or(now, |at| at.max(now))
    }

    /// The first moment at which a token is replaced that never carried a session.
    fn after_unusable(&self, now: Instant) -> Instant {
        let interval = match self.repeats.checked_sub(1) {
            None => self.settings.interval_min,
            Some(before) => {
                REFUSAL_SPACING.saturating_mul(2_u32.saturating_pow(before)).min(self.settings.interval_min)
            }
        };
        self.sought_at.map_or(now, |sought| now.max(sought + interval))
    }

    /// As before the refusal, unless a newer token is on its way already.
    fn clear(&mut self, generation: u64) {
        let Some(held) = self.held.as_mut().filter(|held| held.generation == generation) else { return };
        if held.refused.take().is_none() {
            return;
        }
        let planned = held.life.map(|life| life.due);
        match &mut self.state {
            State::Resting { due }
            | State::Sharing { step: Step::Glancing { due, .. } | Step::Offering { due }, row: None } => *due = planned,
            State::Idle | State::Fetching { .. } | State::Retrying { .. } | State::Sharing { .. } => (),
        }
    }

    /// The first moment that keeps the minimal interval to an earlier one.
    fn spaced(&self, earlier: Option<Instant>, now: Instant) -> Instant {
        earlier.map_or(now, |earlier| now.max(earlier + self.settings.interval_min))
    }

    /// Brings the next try forward to `at`. One under way is the one that is wanted, and a pause that the endpoint
    /// asked for is kept.
    fn hasten(&mut self, at: Instant, now: Instant) {
        let patient = self.row().is_some_and(|row| row.is_like(Failure::Throttled(None)));
        match &mut self.state {
            State::Resting { due } => *due = Some(due.map_or(at, |due| due.min(at))),
            State::Retrying { at: again, .. } if !patient => *again = at.min(*again),
            State::Sharing { step: Step::Glancing { due, .. } | Step::Offering { due }, .. } if !patient => {
                *due = Some(due.map_or(at, |due| due.min(at)));
            }
            State::Idle | State::Fetching { .. } | State::Retrying { .. } | State::Sharing { .. } => return,
        }
        self.handle_timeout(now);
    }

    /// When the request was sent that is answered here, the failures before it, and the lock that it was sent under.
    fn answered(&self) -> (Instant, Option<Row>, Option<Hold>) {
        match self.state {
            State::Fetching { sent, row, hold } => (sent, row, hold),
            State::Idle | State::Resting { .. } | State::Retrying { .. } | State::Sharing { .. } => {
                panic!("an answer without a request")
            }
        }
    }

    fn row(&self) -> Option<Row> {
        match self.state {
            State::Idle | State::Resting { .. } => None,
            State::Fetching { row, .. } | State::Sharing { row, .. } => row,
            State::Retrying { row, .. } => Some(row),
        }
    }
}

impl Phase {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Rejected => "rejected",
        }
    }
}

impl Held {
    /// What is left of a token that may still be used.
    fn left(&self, now: Instant) -> Option<(Life, Duration)> {
        let life = self.life.filter(|_| self.refused.is_none())?;
        let left = life.ends_at.saturating_duration_since(now);
        (!left.is_zero()).then_some((life, left))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests;
