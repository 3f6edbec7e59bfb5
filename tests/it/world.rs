//! The rules in a world of their own: a model platform, a token endpoint and a store under one seeded clock, where
//! everything goes wrong that can, thousands of times a minute.
//!
//! `TRUNKLINE_SEED=n` runs one world and tells its story; `TRUNKLINE_SEEDS=n` runs that many, from `TRUNKLINE_FROM` on.

mod calamity;
mod chance;
mod judge;
mod pair;
mod plan;
mod platform;
mod process;
mod scene;
mod store;
mod verdict;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use trunkline::protocol::{
    refresh,
    stream::{Input, State},
};

use self::{
    chance::Chance,
    judge::Judge,
    pair::{Fate, Pair},
    plan::{Dialect, Night, Plan},
    platform::Platform,
    process::Process,
    scene::{Happening, Moment, Scene},
    store::Store,
    verdict::Ledger,
};

/// So many worlds of each kind are a normal run.
const SEEDS: u64 = 400;
/// So many of the newest things that happened are told with a failure; all of them, when one seed is asked for.
const STORY_LEN: usize = 120;

#[test]
fn a_planned_change_is_never_noticed() {
    run_all(Tale::Alone(Night::Planned));
}

#[test]
fn a_bad_night_leaves_no_hole_without_a_word() {
    run_all(Tale::Alone(Night::Bad));
}

#[test]
fn a_planned_handover_is_never_noticed() {
    run_all(Tale::Pair(Fate::Planned));
}

#[test]
fn what_a_killed_owner_had_heard_is_not_lost() {
    run_all(Tale::Pair(Fate::Kills));
}

#[test]
fn a_bad_night_of_two_leaves_no_hole_without_a_word() {
    run_all(Tale::Pair(Fate::Bad));
}

#[test]
fn a_seed_tells_the_whole_world() {
    for seed in 0..3 {
        assert_eq!(digest_of(seed), digest_of(seed));
    }
}

fn digest_of(seed: u64) -> String {
    let mut world = World::new(Night::Bad, seed, STORY_LEN);
    world.live();
    format!("{} {} {}", world.around.store.log.len(), world.around.scene.now.as_nanos(), world.around.scene.story())
}

/// What a test lives through, seed by seed.
#[derive(Debug, Clone, Copy)]
enum Tale {
    Alone(Night),
    Pair(Fate),
}

fn run_all(tale: Tale) {
    if let Some(seed) = setting("TRUNKLINE_SEED") {
        return tell(tale, seed, usize::MAX);
    }
    let from = setting("TRUNKLINE_FROM").unwrap_or(0);
    let (next, seeds) = (AtomicU64::new(from), from + setting("TRUNKLINE_SEEDS").unwrap_or(SEEDS));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed = std::thread::scope(|scope| {
        let worker = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return None;
                }
                if tale.live(seed, 0).is_err() {
                    next.store(seeds, Ordering::Relaxed);
                    return Some(seed);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min()
    });
    if let Some(seed) = failed {
        tell(tale, seed, STORY_LEN);
    }
}

/// Runs one world, and tells its story if it fails.
fn tell(tale: Tale, seed: u64, story_len: usize) {
    if let Err(story) = tale.live(seed, story_len) {
        panic!("{story}\nTRUNKLINE_SEED={seed} runs this {tale:?} again");
    }
}

impl Tale {
    /// Lives through one world; the error is what happened in it.
    fn live(self, seed: u64, story_len: usize) -> Result<(), String> {
        match self {
            Self::Alone(night) => {
                let mut world = World::new(night, seed, story_len);
                let outcome = catch_unwind(AssertUnwindSafe(|| world.live()));
                outcome.map_err(|panic| world.around.story_of(&*panic))
            }
            Self::Pair(fate) => {
                let mut pair = Pair::new(fate, seed, story_len);
                let outcome = catch_unwind(AssertUnwindSafe(|| pair.live()));
                outcome.map_err(|panic| pair.around.story_of(&*panic))
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[expect(clippy::disallowed_methods, reason = "a test is told its seeds by the environment")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// One world.
#[derive(Debug)]
struct World {
    around: Around,
    process: Option<Process>,
    lives: u32,
    quiet: bool,
}

/// Everything but the process.
#[derive(Debug)]
struct Around {
    scene: Scene,
    platform: Platform,
    store: Store,
    judge: Judge,
    ledger: Ledger,
    /// Requests for tokens fail like this until then.
    endpoint: Option<(refresh::Failure, Moment)>,
    /// The buffer ran short at some time, the store stalled, or it was drained: snapshots may come late.
    crowded: bool,
}

/// Within this time of being quiet everything that was heard is durable.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// An event that is said to a live stream is in the log within this time.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

impl Around {
    /// The platform says something, and will again.
    fn speak(&mut self) {
        let Self { scene, platform, .. } = self;
        let count = scene.chance.number(1..scene.plan.burst_max + 1);
        let pause = if scene.calm { Duration::from_secs(3) } else { scene.plan.pause };
        scene.tell(|| format!("platform says {count} events from {}", platform.said.len()));
        platform.speak(count, scene);
        let pause = scene.chance.pause(pause) + Duration::from_millis(1);
        scene.after(pause, Happening::Speaks);
    }

    fn new(plan: Plan, chance: Chance, story_len: usize) -> Self {
        let mut scene = Scene::new(plan, chance, story_len);
        let platform = Platform::new(&mut scene);
        Self {
            scene,
            platform,
            store: Store::new(),
            judge: Judge::new(),
            ledger: Ledger::default(),
            endpoint: None,
            crowded: false,
        }
    }

    /// Whether the last event is in the log, or the last one that is owed: a session that begins at the present owes
    /// nothing of before, even where another still brings it.
    fn has_arrived(&self) -> bool {
        let said = &self.platform.said;
        let there: Vec<usize> = self.store.log.iter().rev().take(10).filter_map(judge::uid).collect();
        let ends = [said.last(), said.iter().rev().find(|said| !said.withheld)];
        ends.into_iter().flatten().any(|end| there.contains(&end.class))
    }

    /// What happened until this.
    fn story_of(&self, panic: &(dyn Any + Send)) -> String {
        format!("\n{}\n\n{:?}\n\n{}", self.scene.story(), self.scene.plan, message(panic))
    }
}

impl World {
    fn new(night: Night, seed: u64, story_len: usize) -> Self {
        let mut chance = Chance::of(seed);
        let plan = Plan::draw(night, &mut chance);
        Self { around: Around::new(plan, chance, story_len), process: None, lives: 0, quiet: false }
    }

    /// The night, the morning after, and the judgement.
    fn live(&mut self) {
        self.around.scene.after(Duration::ZERO, Happening::Starts);
        self.around.scene.after(Duration::ZERO, Happening::Speaks);
        self.next_calamity();
        let trouble = self.around.scene.plan.trouble;
        self.run_until(trouble, |_| false);
        self.recover();
        self.expect_arrival();
        self.drain();
        verdict::judge(&self.around);
    }

    /// The faults stop: within a bound the stream is live again.
    fn recover(&mut self) {
        self.around.scene.tell(|| "the faults are over".to_owned());
        self.around.scene.calm = true;
        self.around.endpoint = None;
        self.around.platform.recover();
        self.around.store.stalls_until = Moment::ZERO;
        self.start();
        let patience = self.around.scene.plan.stream.patience;
        // A line that died in the night is only found out by its silence.
        let silence = self.around.scene.now + patience.silence + patience.connect;
        self.run_until(silence, |_| false);
        self.expect_live();
    }

    fn expect_live(&mut self) {
        let deadline = self.around.scene.now + self.recovery_max();
        self.run_until(deadline, World::is_live);
        assert!(self.is_live(), "the faults are over, and the stream is {:?}", self.around.judge.state);
    }

    /// The longest pause that any rule may still be in, and what it takes to connect.
    fn recovery_max(&self) -> Duration {
        let settings = &self.around.scene.plan.stream;
        let told = Duration::from_secs(30);
        let token = Duration::from_secs(75) + self.around.scene.plan.refresh.interval_min;
        settings.backoff.cap.mul_f64(1.2) + told + token + settings.patience.connect * 2
    }

    fn is_live(&self) -> bool {
        self.process.is_some()
            && self.around.judge.connected
            && matches!(self.around.judge.state, State::Live | State::Recovering)
    }

    /// What is said to a live stream arrives, and a snapshot that is owed is had.
    fn expect_arrival(&mut self) {
        self.quiet = true;
        for _ in 0..4 + self.around.platform.flaws() {
            self.around.platform.speak(3, &mut self.around.scene);
            let deadline = self.around.scene.now + ARRIVAL_MAX;
            self.run_until(deadline, |world| world.around.has_arrived());
            if self.around.has_arrived() || !self.may_not_arrive() {
                break;
            }
        }
        assert!(self.around.has_arrived(), "what is said to a live stream does not arrive");
        let deadline = self.around.scene.now + Duration::from_secs(60);
        self.run_until(deadline, |world| !world.owes_snapshot());
        assert!(!self.owes_snapshot(), "a snapshot is owed for too long");
    }

    /// Whether what was just said need not be there, and is to be said again to a stream that is live again.
    fn may_not_arrive(&mut self) -> bool {
        if self.around.scene.plan.dialect == Dialect::Notifications {
            // What is said in the dark of a swap is lost, and a topic may still be refused.
            return true;
        }
        // A frame of the night that is too long ends one more session, and the pause behind it may be long.
        let met_flaw = self.around.platform.flaws() > 0 && !self.is_live();
        if met_flaw {
            self.expect_live();
        }
        met_flaw || !self.around.platform.owes()
    }

    fn owes_snapshot(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.machine.owes_snapshot())
    }

    fn drain(&mut self) {
        let process = self.process.as_mut().expect("a process that is live");
        process.tell(Input::Drain, &mut self.around);
        let deadline = self.around.scene.now + DRAIN_MAX;
        self.run_until(deadline, |world| world.process.is_none());
        assert!(self.process.is_none(), "what was heard is not durable in time");
    }

    fn run_until(&mut self, end: Moment, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let wake = self.process.as_ref().and_then(|process| process.wakes_at(&self.around));
            let next = self.around.scene.next_at().into_iter().chain(wake).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.around.scene.now = end;
                return;
            };
            self.around.scene.now = self.around.scene.now.max(next);
            self.step(wake.is_some_and(|at| at <= self.around.scene.now));
        }
    }

    fn step(&mut self, wake: bool) {
        match &mut self.process {
            Some(process) if wake => process.wake(&mut self.around),
            Some(_) | None => {
                if let Some(happening) = self.around.scene.next_due() {
                    self.happen(happening);
                }
            }
        }
        let room = self.around.scene.plan.stream.buffer / 2;
        self.around.crowded |= self.process.as_ref().is_some_and(|process| process.machine.buffered() >= room);
        if self.process.as_ref().is_some_and(|process| process.drained) {
            self.process = None;
            if !self.quiet {
                self.rise_again();
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        let Around { scene, platform, .. } = &mut self.around;
        match happening {
            Happening::Starts => self.start(),
            Happening::Speaks if self.quiet => (),
            Happening::Speaks => self.around.speak(),
            Happening::Calamity(calamity) => {
                if !self.around.scene.calm {
                    self.strike(calamity);
                    self.next_calamity();
                }
            }
            Happening::Process { life, news } => self.inform(life, news),
            Happening::Arrives { socket, what, certain } => {
                if let Some(process) = &mut self.process
                    && (certain || self.around.platform.gets_through(socket))
                {
                    process.arrives(socket, what, &mut self.around);
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
            Happening::Strikes | Happening::Follows | Happening::TakesOver { .. } => unreachable!("it is no pair"),
        }
    }

    fn start(&mut self) {
        if self.process.is_none() {
            self.lives += 1;
            self.process = Some(Process::start(self.lives, &mut self.around));
        }
    }

    fn inform(&mut self, life: u32, news: scene::News) {
        match &mut self.process {
            Some(process) if process.life == life => process.hear(news, &mut self.around),
            Some(_) | None => {
                if let scene::News::Opened(_, socket) = news {
                    self.around.platform.dropped(socket);
                }
            }
        }
    }

    fn next_calamity(&mut self) {
        let scene = &mut self.around.scene;
        let calamities = scene.plan.calamities.clone();
        let calamity = scene.chance.pick(&calamities);
        let pause = scene.chance.pause(scene.plan.calamity_pause);
        scene.after(pause, Happening::Calamity(calamity));
    }
}
