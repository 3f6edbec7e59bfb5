//! One refresh for all replicas: look in the vault, take the lock, look again, fetch, publish; the others adopt.
//!
//! The vault is the truth, its broadcasts are hints, and the lock only saves requests: whatever happens to the latter
//! two, a replica has a token, and never one that is older than what it had. A vault that is away costs requests.

use std::time::{Duration, Instant};

use super::{
    Failure, Found, GENERATION_MAX, Life, Lock, Origin, Output, Published, Refresh, Row, Seen, Sharing, State,
};

/// The lock, as far as this replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hold {
    /// None: it is not renewed any more, so that another replica may try.
    pub(super) renew_at: Option<Instant>,
}

/// Where the conversation with the vault stands. `asked` is when the look was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// A look aside because of a hint; afterwards everything is as before.
    Glancing {
        asked: Instant,
        due: Option<Instant>,
    },
    /// Has somebody refreshed already?
    Looking {
        asked: Instant,
    },
    Locking {
        asked: Instant,
        life: Duration,
    },
    /// We have the lock. Somebody may have been quicker by just that.
    LookingAgain {
        asked: Instant,
        hold: Hold,
    },
    /// Another replica has the lock.
    Waiting {
        at: Instant,
    },
    /// The vault is away.
    Alone {
        at: Instant,
    },
    /// What was granted is to be everybody's.
    Publishing {
        generation: u64,
        life: Life,
    },
    /// What was granted came late: there is something newer.
    Conceding {
        asked: Instant,
        life: Life,
    },
    /// The token in force is offered to a vault that lacks it; afterwards everything is as before.
    Offering {
        due: Option<Instant>,
    },
}

impl Step {
    pub(super) fn wakes_at(self) -> Option<Instant> {
        match self {
            Self::Waiting { at } | Self::Alone { at } => Some(at),
            Self::Glancing { .. }
            | Self::Looking { .. }
            | Self::Locking { .. }
            | Self::LookingAgain { .. }
            | Self::Publishing { .. }
            | Self::Conceding { .. }
            | Self::Offering { .. } => None,
        }
    }

    /// Whether it has nothing to do with a token that is due.
    pub(super) fn is_aside(self) -> bool {
        matches!(self, Self::Glancing { .. } | Self::Offering { .. })
    }
}

impl Refresh {
    /// Begins a round, or goes on with one.
    pub(super) fn look(&mut self, row: Option<Row>, now: Instant) {
        self.state = State::Sharing { step: Step::Looking { asked: now }, row };
        self.outputs.push_back(Output::Look);
    }

    pub(super) fn looked(&mut self, seen: Option<Seen>, unit: f64, now: Instant) {
        let (step, row) = self.step();
        self.last_seen = self.last_seen.max(seen.map_or(0, |seen| seen.last)).min(GENERATION_MAX - 1);
        self.life_seen = seen.and_then(|seen| seen.token).map(|found| found.lifetime).or(self.life_seen);
        match step {
            Step::Glancing { asked, due } => self.glanced(seen, asked, due, unit, now),
            Step::Looking { asked } => match seen {
                None => self.wait_alone(row, unit, now),
                Some(seen) => self.take_turn(seen, asked, unit, now),
            },
            Step::LookingAgain { asked, hold } => self.looked_again(seen, asked, hold, unit, now),
            Step::Conceding { asked, life } => match self.newer(seen, asked, now) {
                Some(found) => self.adopt_found(found, asked, unit, now),
                None => self.adopt(self.next_generation(), Some(life), Origin::Grant),
            },
            Step::Locking { .. }
            | Step::Waiting { .. }
            | Step::Alone { .. }
            | Step::Publishing { .. }
            | Step::Offering { .. } => panic!("an answer to a look that was not asked for"),
        }
    }

    pub(super) fn locked(&mut self, lock: Lock, unit: f64, now: Instant) {
        let (step, row) = self.step();
        let Step::Locking { asked, life } = step else { panic!("an answer about a lock that was not asked for") };
        match lock {
            Lock::Got => {
                let hold = Hold { renew_at: Some(asked + life / 3) };
                self.go_to(Step::LookingAgain { asked: now, hold }, row);
                self.outputs.push_back(Output::Look);
            }
            Lock::Held if self.is_pressed(unit, now) => self.fetch(row, None, now),
            Lock::Held => self.go_to(Step::Waiting { at: now + self.poll_pause(unit) }, row),
            Lock::Away => self.wait_alone(row, unit, now),
        }
    }

    pub(super) fn published(&mut self, published: Published, now: Instant) {
        let (step, row) = self.step();
        match (step, published) {
            (Step::Publishing { life, .. }, Published::Newer) => {
                self.go_to(Step::Conceding { asked: now, life }, row);
                self.outputs.push_back(Output::Look);
            }
            (Step::Publishing { generation, life }, Published::Done | Published::Lost | Published::Away) => {
                self.adopt(generation, Some(life), Origin::Grant);
            }
            (Step::Offering { due }, Published::Newer) => self.glance(due, row, now),
            (Step::Offering { due }, Published::Done | Published::Lost | Published::Away) => self.rest(due, row),
            (
                Step::Glancing { .. }
                | Step::Looking { .. }
                | Step::Locking { .. }
                | Step::LookingAgain { .. }
                | Step::Waiting { .. }
                | Step::Alone { .. }
                | Step::Conceding { .. },
                _,
            ) => panic!("an answer about a token that was not published"),
        }
    }

    /// A hint is worth a look where nothing else is about to look.
    pub(super) fn told(&mut self, generation: Option<u64>, now: Instant) {
        let news = generation.is_none_or(|generation| generation > self.generation());
        if !news || self.settings.sharing == Sharing::None {
            return;
        }
        match self.state {
            State::Resting { due } => self.glance(due, None, now),
            State::Retrying { at, row } => self.glance(Some(at), Some(row), now),
            State::Sharing { step: Step::Waiting { .. } | Step::Alone { .. }, row } => self.look(row, now),
            State::Idle | State::Fetching { .. } | State::Sharing { .. } => (),
        }
    }

    /// A wait of the conversation is over.
    pub(super) fn go_on(&mut self, step: Step, row: Option<Row>, now: Instant) {
        match step {
            Step::Waiting { .. } => self.look(row, now),
            Step::Alone { .. } => self.fetch(row, None, now),
            Step::Glancing { .. }
            | Step::Looking { .. }
            | Step::Locking { .. }
            | Step::LookingAgain { .. }
            | Step::Publishing { .. }
            | Step::Conceding { .. }
            | Step::Offering { .. } => (),
        }
    }

    /// Keeps the lock while the request is under way, as long as that leaves time for another replica's try.
    pub(super) fn renew(&mut self, now: Instant) {
        let life = self.lock_life(now);
        let worth_it = self.may_lock(now);
        let State::Fetching { hold: Some(hold), .. } = &mut self.state else { return };
        if worth_it {
            hold.renew_at = Some(now + life / 3);
            self.outputs.push_back(Output::Renew { life });
        } else {
            hold.renew_at = None;
        }
    }

    /// A token was granted: under the lock it is everybody's first, alone it is ours first.
    pub(super) fn hand_in(&mut self, life: Option<Life>, hold: Option<Hold>, now: Instant) {
        let generation = self.next_generation();
        let left = life.map(|life| (life, life.ends_at.saturating_duration_since(now)));
        match (hold, left.filter(|(_, left)| !left.is_zero())) {
            (Some(_), Some((life, left))) => {
                self.go_to(Step::Publishing { generation, life }, None);
                self.outputs.push_back(Output::Publish { generation, lifetime: life.whole, left });
            }
            (Some(_), None) => {
                self.outputs.push_back(Output::Release { pause: None });
                self.adopt(generation, life, Origin::Grant);
            }
            (None, _) => {
                self.adopt(generation, life, Origin::Grant);
                self.offer(life.map(|life| life.due), now);
            }
        }
    }

    fn take_turn(&mut self, seen: Seen, asked: Instant, unit: f64, now: Instant) {
        let (_, row) = self.step();
        if let Some(found) = self.newer(Some(seen), asked, now) {
            self.adopt_found(found, asked, unit, now);
        } else if let Some(pause) = seen.pause {
            self.keep_away(pause, row, unit, now);
        } else {
            let life = self.lock_life(now);
            self.go_to(Step::Locking { asked: now, life }, row);
            self.outputs.push_back(Output::Lock { life });
        }
    }

    fn looked_again(&mut self, seen: Option<Seen>, asked: Instant, hold: Hold, unit: f64, now: Instant) {
        let (_, row) = self.step();
        if let Some(found) = self.newer(seen, asked, now) {
            self.outputs.push_back(Output::Release { pause: None });
            self.adopt_found(found, asked, unit, now);
        } else if let Some(pause) = seen.and_then(|seen| seen.pause) {
            self.outputs.push_back(Output::Release { pause: None });
            self.keep_away(pause, row, unit, now);
        } else {
            self.fetch(row, Some(hold), now);
        }
    }

    fn glanced(&mut self, seen: Option<Seen>, asked: Instant, due: Option<Instant>, unit: f64, now: Instant) {
        let (_, row) = self.step();
        if let Some(found) = self.newer(seen, asked, now) {
            self.adopt_found(found, asked, unit, now);
        } else if seen.is_some_and(|seen| seen.last < self.generation()) && row.is_none() {
            self.offer(due, now);
        } else {
            self.rest(due, row);
        }
    }

    /// The vault has an older token than ours: it was away when ours was granted, or it forgot.
    fn offer(&mut self, due: Option<Instant>, now: Instant) {
        let Some((held, (life, left))) = self.held.and_then(|held| Some((held, held.left(now)?))) else {
            return self.rest(due, None);
        };
        self.go_to(Step::Offering { due }, None);
        let generation = held.generation;
        self.outputs.push_back(Output::Publish { generation, lifetime: life.whole, left });
    }

    /// The token endpoint told another replica to wait, so it need not tell us.
    fn keep_away(&mut self, pause: Duration, row: Option<Row>, unit: f64, now: Instant) {
        let row = Row::after(row, Failure::Throttled(Some(pause)));
        let at = now + row.pause(unit, Duration::MAX);
        self.state = State::Retrying { at, row };
        self.outputs.push_back(Output::KeepAway { at });
    }

    /// The vault is away. After a failure the pause is over already.
    fn wait_alone(&mut self, row: Option<Row>, unit: f64, now: Instant) {
        if row.is_some() {
            return self.fetch(row, None, now);
        }
        self.go_to(Step::Alone { at: now + self.alone_pause(unit, now) }, row);
    }

    fn glance(&mut self, due: Option<Instant>, row: Option<Row>, now: Instant) {
        self.go_to(Step::Glancing { asked: now, due }, row);
        self.outputs.push_back(Output::Look);
    }

    /// As before a look aside.
    fn rest(&mut self, due: Option<Instant>, row: Option<Row>) {
        self.state = match (row, due) {
            (Some(row), Some(at)) => State::Retrying { at, row },
            (None | Some(_), due) => State::Resting { due },
        };
    }

    /// What was found, if it is newer than what is held (what was refused here never is), and has not ended while the
    /// answer was on its way.
    fn newer(&self, seen: Option<Seen>, asked: Instant, now: Instant) -> Option<Found> {
        let found = seen?.token.filter(|found| found.generation > self.generation())?;
        (asked + found.left > now).then_some(found)
    }

    /// Another replica's token is ours from here on. One that comes long before ours was due tells of a refusal or a
    /// wish somewhere, which counts as if it had been ours.
    fn adopt_found(&mut self, found: Found, asked: Instant, unit: f64, now: Instant) {
        let jitter_max = |life: &Life| self.settings.jitter(life.whole, 1.0);
        if self.held.and_then(|held| held.life).is_some_and(|life| now + jitter_max(&life) < life.due) {
            self.sought_at = Some(now);
        }
        let ends_at = asked + found.left;
        let planned = ends_at.checked_sub(self.settings.buffer_of(found.lifetime)).unwrap_or(asked);
        let due = planned + self.settings.jitter(found.lifetime, unit);
        self.adopt(found.generation, Some(Life { whole: found.lifetime, ends_at, due }), Origin::Vault);
    }

    fn go_to(&mut self, step: Step, row: Option<Row>) {
        self.state = State::Sharing { step, row };
    }

    fn step(&self) -> (Step, Option<Row>) {
        match self.state {
            State::Sharing { step, row } => (step, row),
            State::Idle | State::Resting { .. } | State::Fetching { .. } | State::Retrying { .. } => {
                panic!("an answer of the vault that was not asked for")
            }
        }
    }
}
