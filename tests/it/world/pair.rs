//! Two replicas on one log: the owner appends, the other holds a session of its own and takes over, as planned or not.
//!
//! The fence is the store's: appends of a life that does not hold the log are refused.

mod blow;
mod promise;

use std::time::Duration;

use trunkline::protocol::stream::{Input, State};

pub(super) use self::blow::Fate;
use self::promise::{Promise, Standing};
use super::{
    Around, DRAIN_MAX,
    chance::Chance,
    judge::{Judge, reason},
    plan::{Dialect, Plan},
    process::Process,
    scene::{Happening, Moment, News},
    verdict,
};

/// Two replicas and their world.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) around: Around,
    fate: Fate,
    replicas: Vec<Replica>,
    lives: u32,
    handover: Handover,
    /// Of the owner.
    promise: Option<Promise>,
    quiet: bool,
}

/// One of the two.
#[derive(Debug)]
struct Replica {
    process: Process,
    judge: Judge,
    ready: bool,
    /// How long the log was when its session was begun.
    begun: Option<usize>,
    /// The owner has flushed since.
    covered: bool,
    live_since: Option<Moment>,
    kept: usize,
}

impl Replica {
    /// Looks whether its session is live yet, or still, and whether what it brought is still kept.
    fn stands(&mut self, now: Moment) {
        let kept = std::mem::replace(&mut self.kept, self.process.machine.kept());
        if !self.ready || self.kept < kept {
            self.live_since = None;
            self.judge.heard.clear();
        }
        if self.ready {
            self.live_since.get_or_insert(now);
        }
    }
}

/// How far a planned hand-over has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handover {
    None,
    /// The successor's session has to be live.
    Wanted,
    /// The owner was asked whether everything is durable.
    Asked,
    /// The record moves in a moment.
    Given,
}

/// A log is ahead of its standby by no more events than this.
const AHEAD_MAX: usize = 1_000;
/// A standby is told so often where the log ends, on the average.
const FOLLOW_PAUSE: Duration = Duration::from_secs(2);

impl Pair {
    pub(super) fn new(fate: Fate, seed: u64, story_len: usize) -> Self {
        let mut chance = Chance::of(seed);
        let mut plan = Plan::draw(fate.night(), &mut chance);
        fate.shape(&mut plan);
        let mut around = Around::new(plan, chance, story_len);
        // A snapshot that is owed when the log changes hands may never come.
        around.crowded = true;
        Self { around, fate, replicas: Vec::new(), lives: 0, handover: Handover::None, promise: None, quiet: false }
    }

    /// The night, the morning after, and the judgement.
    pub(super) fn live(&mut self) {
        self.around.scene.after(Duration::ZERO, Happening::Starts);
        self.around.scene.after(Duration::ZERO, Happening::Speaks);
        let second = self.around.scene.chance.millis(0..5_000);
        self.around.scene.after(second, Happening::Starts);
        self.around.scene.after(FOLLOW_PAUSE, Happening::Follows);
        self.next_blow();
        let trouble = self.around.scene.plan.trouble;
        self.run_until(trouble, |_| false);
        self.recover();
        self.expect_arrival();
        self.drain();
        verdict::judge(&self.around);
        self.judge_gaps();
    }

    /// The faults stop: within a bound the stream is live again.
    fn recover(&mut self) {
        self.around.scene.tell(|| "the faults are over".to_owned());
        self.around.scene.calm = true;
        self.around.endpoint = None;
        self.around.platform.recover();
        self.around.store.stalls_until = Moment::ZERO;
        let patience = self.around.scene.plan.stream.patience;
        let silence = self.around.scene.now + patience.silence + patience.connect;
        self.run_until(silence, |_| false);
        self.expect_live();
    }

    fn expect_live(&mut self) {
        // What an operator must mend is tried again after five minutes, and a token may be waited for.
        let deadline = self.around.scene.now + Duration::from_secs(500);
        self.run_until(deadline, Self::is_live);
        assert!(self.is_live(), "the faults are over, and nobody is live");
    }

    fn is_live(&self) -> bool {
        self.owner().is_some_and(|index| {
            let judge = &self.replicas[index].judge;
            judge.connected && matches!(judge.state, State::Live | State::Recovering)
        })
    }

    /// What is said to a live stream arrives.
    fn expect_arrival(&mut self) {
        self.quiet = true;
        let flaws = self.around.platform.flaws();
        for _ in 0..4 + flaws {
            self.around.platform.speak(3, &mut self.around.scene);
            let deadline = self.around.scene.now + super::ARRIVAL_MAX;
            self.run_until(deadline, |pair| pair.around.has_arrived());
            if self.around.has_arrived() {
                return;
            }
            if flaws > 0 && !self.is_live() {
                // A frame of the night that is too long ends one more session, and the pause behind it may be long.
                self.expect_live();
            }
        }
        panic!("what is said to a live stream does not arrive");
    }

    fn drain(&mut self) {
        for index in 0..self.replicas.len() {
            self.tell(index, Input::Drain);
        }
        let deadline = self.around.scene.now + DRAIN_MAX;
        self.run_until(deadline, |pair| pair.replicas.is_empty());
        assert!(self.replicas.is_empty(), "what was heard is not durable in time");
    }

    /// A platform that repeats what was missed leaves no gap, whoever is killed when.
    fn judge_gaps(&self) {
        if self.fate == Fate::Bad || self.around.scene.plan.dialect == Dialect::Notifications {
            return;
        }
        let numbered = self.around.store.log.iter().skip_while(|event| event.sequence.is_none());
        let gaps: Vec<_> = numbered.filter_map(reason).collect();
        assert!(gaps.is_empty(), "everything was to be had, and yet: {gaps:?}");
    }

    fn run_until(&mut self, end: Moment, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let wakes = self.replicas.iter().enumerate();
            let wake =
                wakes.filter_map(|(index, replica)| Some((replica.process.wakes_at(&self.around)?, index))).min();
            let next = self.around.scene.next_at().into_iter().chain(wake.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.around.scene.now = end;
                return;
            };
            self.around.scene.now = self.around.scene.now.max(next);
            match wake.filter(|(at, _)| *at <= self.around.scene.now) {
                Some((_, index)) => self.with(index, Process::wake),
                None => {
                    if let Some(happening) = self.around.scene.next_due() {
                        self.happen(happening);
                    }
                }
            }
            self.look_around();
        }
    }

    /// Lets a process do something in front of its own judge.
    fn with(&mut self, index: usize, what: impl FnOnce(&mut Process, &mut Around)) {
        let Replica { process, judge, .. } = &mut self.replicas[index];
        std::mem::swap(judge, &mut self.around.judge);
        what(process, &mut self.around);
        std::mem::swap(judge, &mut self.around.judge);
    }

    fn tell(&mut self, index: usize, input: Input) {
        self.with(index, |process, around| process.tell(input, around));
    }

    fn of_life(&self, life: u32) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.process.life == life)
    }

    fn owner(&self) -> Option<usize> {
        self.of_life(self.around.store.holder)
    }

    /// A replica that is no owner and was none.
    fn standby(&self) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.process.life > self.around.store.holder)
    }

    fn happen(&mut self, happening: Happening) {
        let Around { scene, platform, .. } = &mut self.around;
        match happening {
            Happening::Starts => self.start(),
            Happening::Speaks if self.quiet => (),
            Happening::Speaks => self.around.speak(),
            Happening::Strikes => {
                if !self.around.scene.calm {
                    self.strike();
                    self.next_blow();
                }
            }
            Happening::Follows => self.follow(),
            Happening::TakesOver { life } => self.take_over(life),
            Happening::Process { life, news } => self.inform(life, news),
            Happening::Arrives { socket, what, certain } => {
                if certain || self.around.platform.gets_through(socket) {
                    for index in 0..self.replicas.len() {
                        let what = what.clone();
                        self.with(index, |process, around| process.arrives(socket, what, around));
                    }
                }
            }
            Happening::Dialled { life, session, dial, token } => platform.dialled(life, session, &dial, token, scene),
            Happening::Called { life, call, request, token } => platform.called(life, call, &request, token, scene),
            Happening::Probed(socket) => platform.probed(socket, scene),
            Happening::Left(socket) => platform.left(socket, scene),
            Happening::Dropped(socket) => platform.dropped(socket),
            Happening::Heartbeat(socket) => platform.heartbeat(socket, scene),
            Happening::Closes(socket) => platform.notice_is_up(socket, scene),
            Happening::TokenEnds(token) => platform.token_ended(token, scene),
            Happening::ChannelEnds(channel) => platform.channel_ended(channel, scene),
            Happening::Calamity(_) => unreachable!("a pair has blows of its own"),
        }
    }

    fn inform(&mut self, life: u32, news: News) {
        match self.of_life(life) {
            Some(index) => self.with(index, |process, around| process.hear(news, around)),
            None => {
                if let News::Opened(_, socket) = news {
                    self.around.platform.dropped(socket);
                }
            }
        }
    }

    /// A replica comes: as the owner, if there is none and nobody stands by.
    fn start(&mut self) {
        if self.quiet || self.replicas.len() > 1 {
            return;
        }
        self.lives += 1;
        let life = self.lives;
        let alone = self.owner().is_none() && self.standby().is_none();
        self.around.judge = Judge::new();
        let process = if alone {
            self.hold(life);
            Process::start(life, &mut self.around)
        } else {
            Process::stand_by(life, &mut self.around)
        };
        let judge = std::mem::replace(&mut self.around.judge, Judge::new());
        self.replicas.push(Replica {
            process,
            judge,
            ready: false,
            begun: None,
            covered: false,
            live_since: None,
            kept: 0,
        });
    }

    fn hold(&mut self, life: u32) {
        self.around.scene.tell(|| format!("the log is process {life}'s"));
        self.around.store.holder = life;
        self.around.platform.owed_to = life;
    }

    fn follow(&mut self) {
        if let Some((index, position)) = self.standby().zip(self.around.store.position()) {
            self.replicas[index].judge.follows(position.0.0);
            self.tell(index, Input::Follow(position));
        }
        if self.owner().is_none() {
            self.let_take_over(1);
        }
        let pause = self.around.scene.chance.pause(FOLLOW_PAUSE);
        self.around.scene.after(pause, Happening::Follows);
    }

    /// A standby takes the log over.
    fn take_over(&mut self, life: u32) {
        self.handover = Handover::None;
        let Some(index) = self.of_life(life).filter(|_| life > self.around.store.holder) else { return };
        let before = self.owner();
        self.hold(life);
        let opening = self.around.store.opening();
        let Replica { process, judge, begun, covered, .. } = &mut self.replicas[index];
        let (kept, was_ready) = (process.machine.kept(), process.machine.is_ready());
        judge.owns(&opening, kept, &self.around.scene);
        // The relay's own entries are counted among them too.
        let log = &self.around.store.log;
        let own = log.iter().filter(|event| event.sequence.is_none() && event.kind.starts_with("trunkline.")).count();
        let from =
            if kept == 0 { begun.unwrap_or(log.len()) } else { log.len().saturating_sub(kept + own + AHEAD_MAX) };
        let stored = if process.machine.compares() { log[from.min(log.len())..].to_vec() } else { Vec::new() };
        let covered = *covered;
        self.around.scene.tell(|| format!("it keeps {kept}, {} are stored, covered: {covered}", stored.len()));
        let Replica { judge, live_since, .. } = &self.replicas[index];
        let standing = Standing { life, live_since: *live_since, kept, heard: &judge.heard };
        self.promise = Promise::of(&standing, self.fate, &self.around);
        let gaps = judge.gaps;
        self.tell(index, Input::Own { opening, stored, covered });
        let Replica { process, judge, .. } = &mut self.replicas[index];
        assert!(self.promise.is_none() || judge.gaps == gaps, "a gap in front of what a standby kept");
        if was_ready && !process.machine.is_ready() {
            judge.begins_again();
        }
        if let Some(before) = before {
            let late = self.around.scene.chance.once_in(2);
            // One that is not told finds out by its next append.
            if late || self.quiet {
                self.tell(before, Input::Release);
            }
        }
    }

    /// What follows from a step: sessions that are live or lost, a hand-over that goes on, replicas that end.
    fn look_around(&mut self) {
        for replica in &mut self.replicas {
            replica.ready = replica.process.machine.is_ready();
            replica.covered &= replica.ready;
            replica.stands(self.around.scene.now);
            match replica.judge.state {
                State::Live | State::Degraded | State::Recovering | State::Connecting => {
                    replica.begun.get_or_insert(self.around.store.log.len());
                }
                State::Starting | State::BackingOff | State::Paused | State::Failed => replica.begun = None,
            }
        }
        self.hand_over();
        if let Some(owner) = self.owner()
            && self.replicas[owner].process.machine.buffered() == 0
            && let Some(promise) = self.promise.take_if(|promise| promise.life == self.around.store.holder)
        {
            promise.is_kept(&self.around);
        }
        let before = self.replicas.len();
        self.replicas.retain(|replica| !replica.process.drained);
        if self.replicas.len() < before && !self.quiet {
            let pause = self.around.scene.chance.millis(50..5_000);
            self.around.scene.after(pause, Happening::Starts);
        }
    }

    fn hand_over(&mut self) {
        let Some((owner, standby)) = self.owner().zip(self.standby()) else { return };
        let is_ready = self.replicas[standby].ready;
        match self.handover {
            Handover::None | Handover::Given => (),
            Handover::Wanted | Handover::Asked if !is_ready => self.handover = Handover::Wanted,
            Handover::Wanted => {
                self.replicas[owner].process.flushed = false;
                self.handover = Handover::Asked;
                self.tell(owner, Input::Flush);
            }
            Handover::Asked if self.replicas[owner].process.flushed => {
                self.replicas[standby].covered = true;
                self.handover = Handover::Given;
                let life = self.replicas[standby].process.life;
                let delay = self.around.scene.chance.millis(0..100);
                self.around.scene.after(delay, Happening::TakesOver { life });
            }
            Handover::Asked => (),
        }
    }
}
