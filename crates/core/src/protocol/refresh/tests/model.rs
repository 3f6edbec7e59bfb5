//! Every night that two or three replicas can have with one vault: each order of their steps, lost and late words,
//! deaths, pauses, slow answers, a vault that forgets, a platform that revokes.
//!
//! The replicas are the very machines of [`super::super`]. What the vault does is written here as its scripts do it.

use std::time::{Duration, Instant};

use super::{
    super::*,
    explore::{Model, explore},
};

const LIFE: Duration = Duration::from_secs(40);
/// A quarter of the life, since that is shorter than four of the configured ones.
const BUFFER: Duration = Duration::from_secs(10);
/// An answer that takes longer is a fault; up to here the lock must hold.
const SLOW: Duration = Duration::from_millis(5_400);

/// What may happen in the nights that are walked through.
#[derive(Debug, Clone, Copy)]
struct Nights {
    replicas: usize,
    /// How many of the faults together.
    faults: u8,
    kinds: &'static [Fault],
    /// How many words may get lost. They are no faults: they must not cost a request.
    losses: u8,
    /// How many answers of the token endpoint may take long. No faults either.
    slow: u8,
    /// Nothing is looked at beyond.
    horizon: Duration,
    /// The random number of every replica, or spread over them.
    spread: bool,
    /// What is wrong with the vault.
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    Crash,
    Pause,
    Forget,
    Revoke,
    Outage,
    /// The token endpoint answers without a token.
    Fail,
}

/// How a vault's script could be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// A lock is given back whoever has it.
    BlindRelease,
    /// What is published is stored whatever is there.
    BlindPublish,
    /// The lock has no life of its own.
    LockForEver,
    /// Two may have the lock.
    NoLock,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// The replica carries out what its machine wants next.
    Step(usize),
    Answer(usize),
    /// It answers, but not yet.
    Dawdle(usize),
    Hear(usize, Option<u64>),
    Lose(usize, Option<u64>),
    /// The platform tells it that its token is worth nothing.
    Reject(usize),
    Fault(Fault, usize),
    Wake(usize),
    Join(usize),
    Return,
    Wait,
}

#[derive(Clone, Hash)]
struct Night {
    begin: Instant,
    now: Instant,
    vault: Vault,
    /// What a vault that forgets goes back to.
    before: Vault,
    away: bool,
    replicas: Vec<Replica>,
    faults: u8,
    losses: u8,
    slow: u8,
    /// Tokens up to this one are worth nothing.
    revoked: u8,
    granted: u8,
    granted_at: Option<Instant>,
    /// Requests that the tokens' lives do not explain.
    extra: u8,
}

#[derive(Clone, Copy, Default, Hash, PartialEq, Eq)]
struct Vault {
    last: u64,
    token: Option<Stored>,
    lock: Option<(Owner, Instant)>,
}

#[derive(Clone, Copy, Hash, PartialEq, Eq)]
struct Stored {
    generation: u64,
    token: u8,
    ends_at: Instant,
}

/// Which replica, and its how-manieth lock.
type Owner = (usize, u8);

#[derive(Clone, Hash)]
struct Replica {
    /// None: dead.
    machine: Option<Refresh>,
    paused: bool,
    /// It was paused once: what it reckons of its token is too little, and nobody can help that.
    slept: bool,
    asked_at: Option<Instant>,
    dawdles: bool,
    locks: u8,
    /// The token in use, the one granted last and the one seen last, by their numbers at the endpoint.
    token: u8,
    fresh: u8,
    seen: u8,
    refused: u8,
    words: Vec<Option<u64>>,
}

impl Nights {
    fn start(&self, now: Instant) -> Night {
        let replica = Replica {
            machine: Some(machine(now)),
            paused: false,
            slept: false,
            asked_at: None,
            dawdles: false,
            locks: 0,
            token: 0,
            fresh: 0,
            seen: 0,
            refused: 0,
            words: Vec::new(),
        };
        Night {
            begin: now,
            now,
            vault: Vault::default(),
            before: Vault::default(),
            away: false,
            replicas: vec![replica; self.replicas],
            faults: 0,
            losses: 0,
            slow: 0,
            revoked: 0,
            granted: 0,
            granted_at: None,
            extra: 0,
        }
    }

    fn walk(&self) -> Result<usize, String> {
        let start = Instant::now();
        explore(&Walk { nights: *self, end: start + self.horizon }, self.start(start))
    }

    fn unit(&self, replica: usize) -> f64 {
        if self.spread { (replica + 1) as f64 / self.replicas as f64 } else { 1.0 }
    }
}

fn machine(now: Instant) -> Refresh {
    let mut machine = Refresh::new(Settings {
        buffer: Duration::from_secs(300),
        interval_min: Duration::from_secs(60),
        jitter_max: Duration::from_secs(2),
        sharing: Sharing::Vault,
    });
    machine.handle(Input::Start, now);
    machine
}

struct Walk {
    nights: Nights,
    end: Instant,
}

impl Model for Walk {
    type State = Night;
    type Action = Act;

    fn actions(&self, night: &Night) -> Vec<Act> {
        let mut acts = Vec::new();
        for (index, replica) in night.replicas.iter().enumerate() {
            self.acts_of(night, index, replica, &mut acts);
        }
        if night.faults < self.nights.faults {
            self.faults(night, &mut acts);
        }
        if night.away {
            acts.push(Act::Return);
        }
        if night.next().is_some_and(|next| next <= self.end) && night.replicas.iter().all(|r| r.is_still(night)) {
            acts.push(Act::Wait);
        }
        acts
    }

    fn act(&self, night: &Night, act: Act) -> Result<Night, String> {
        let mut next = night.clone();
        self.change(&mut next, act)?;
        next.forget_old_words();
        next.judge(night, self.nights.kinds)?;
        Ok(next)
    }
}

impl Walk {
    fn change(&self, night: &mut Night, act: Act) -> Result<(), String> {
        match act {
            Act::Step(index) => night.step(index, &self.nights)?,
            Act::Answer(index) => night.answer(index, &self.nights),
            Act::Dawdle(index) => {
                night.slow += 1;
                night.replicas[index].dawdles = true;
            }
            Act::Hear(index, word) => {
                night.replicas[index].drop_word(word);
                night.tell(index, Input::Told { generation: word });
            }
            Act::Lose(index, word) => {
                night.losses += 1;
                night.replicas[index].drop_word(word);
            }
            Act::Reject(index) => {
                let replica = &mut night.replicas[index];
                replica.refused = replica.token;
                let generation = replica.machine.as_ref().unwrap().generation();
                night.tell(index, Input::Refused { generation, carried: true });
            }
            Act::Fault(fault, index) => night.suffer(fault, index),
            Act::Wake(index) => night.wake(index),
            Act::Join(index) => night.replicas[index].machine = Some(machine(night.now)),
            Act::Return => night.come_back(),
            Act::Wait => night.wait()?,
        }
        Ok(())
    }

    fn acts_of(&self, night: &Night, index: usize, replica: &Replica, acts: &mut Vec<Act>) {
        let Some(machine) = &replica.machine else { return acts.push(Act::Join(index)) };
        if replica.paused {
            return acts.push(Act::Wake(index));
        }
        if machine.clone().poll_output().is_some() {
            return acts.push(Act::Step(index));
        }
        if replica.asked_at.is_some() {
            acts.push(Act::Answer(index));
            if night.slow < self.nights.slow {
                acts.push(Act::Dawdle(index));
            }
            return;
        }
        for word in &replica.words {
            acts.push(Act::Hear(index, *word));
            if night.losses < self.nights.losses {
                acts.push(Act::Lose(index, *word));
            }
        }
        if replica.token <= night.revoked && replica.token > replica.refused {
            acts.push(Act::Reject(index));
        }
    }

    fn faults(&self, night: &Night, acts: &mut Vec<Act>) {
        for fault in self.nights.kinds {
            match fault {
                Fault::Crash | Fault::Pause => {
                    let awake = |replica: &&Replica| replica.machine.is_some() && !replica.paused;
                    let replicas = 0..night.replicas.len();
                    let some = replicas.filter(|index| awake(&&night.replicas[*index]));
                    acts.extend(some.map(|index| Act::Fault(*fault, index)));
                }
                Fault::Forget if night.before != night.vault => acts.push(Act::Fault(*fault, 0)),
                Fault::Revoke if night.granted > night.revoked => acts.push(Act::Fault(*fault, 0)),
                Fault::Outage if !night.away => acts.push(Act::Fault(*fault, 0)),
                Fault::Fail => {
                    let asking =
                        |index: &usize| night.replicas[*index].asked_at.is_some() && !night.replicas[*index].paused;
                    acts.extend((0..night.replicas.len()).filter(asking).map(|index| Act::Fault(*fault, index)));
                }
                Fault::Forget | Fault::Revoke | Fault::Outage => (),
            }
        }
    }
}

impl Replica {
    fn drop_word(&mut self, word: Option<u64>) {
        let at = self.words.iter().position(|other| *other == word).unwrap();
        self.words.remove(at);
    }

    /// Nothing of it keeps the time from passing.
    fn is_still(&self, night: &Night) -> bool {
        let Some(machine) = self.machine.as_ref().filter(|_| !self.paused) else { return true };
        let in_time = |sent: Instant| self.dawdles && night.next().is_some_and(|next| next < sent + SLOW);
        machine.clone().poll_output().is_none() && self.asked_at.is_none_or(in_time)
    }
}

impl Night {
    /// What is no news changes nothing whenever it is heard.
    fn forget_old_words(&mut self) {
        for replica in &mut self.replicas {
            let Some(machine) = &replica.machine else { continue };
            replica.words.retain(|word| word.is_none_or(|generation| generation > machine.generation()));
        }
    }

    fn tell(&mut self, index: usize, input: Input) {
        let now = self.now;
        self.replicas[index].machine.as_mut().unwrap().handle(input, now);
    }

    /// When something happens by itself.
    fn next(&self) -> Option<Instant> {
        let awake = self.replicas.iter().filter(|replica| !replica.paused);
        awake.filter_map(|replica| replica.machine.as_ref()?.poll_timeout()).min()
    }

    fn wait(&mut self) -> Result<(), String> {
        let past = self.now;
        self.now = self.now.max(self.next().unwrap());
        let now = self.now;
        for replica in self.replicas.iter_mut().filter(|replica| !replica.paused) {
            let excused = replica.asked_at.is_some() || replica.slept;
            let Some(machine) = replica.machine.as_mut() else { continue };
            if !excused
                && !machine.is_refused()
                && machine.ends_at().is_some_and(|ends_at| past < ends_at && ends_at <= now)
            {
                return Err("a token ended before there was another".to_owned());
            }
            machine.handle_timeout(now);
        }
        Ok(())
    }

    fn wake(&mut self, index: usize) {
        let now = self.now;
        let replica = &mut self.replicas[index];
        replica.paused = false;
        replica.machine.as_mut().unwrap().handle_timeout(now);
    }

    fn suffer(&mut self, fault: Fault, index: usize) {
        self.faults += 1;
        match fault {
            Fault::Crash => {
                let locks = self.replicas[index].locks;
                self.replicas[index] = Replica {
                    machine: None,
                    paused: false,
                    slept: false,
                    asked_at: None,
                    dawdles: false,
                    locks,
                    token: 0,
                    fresh: 0,
                    seen: 0,
                    refused: 0,
                    words: Vec::new(),
                };
            }
            Fault::Pause => {
                self.replicas[index].paused = true;
                self.replicas[index].slept = true;
            }
            Fault::Forget => self.vault = self.before,
            Fault::Revoke => self.revoked = self.granted,
            Fault::Outage => self.away = true,
            Fault::Fail => {
                self.replicas[index].asked_at = None;
                self.replicas[index].dawdles = false;
                self.tell(index, Input::Failed { failure: Failure::Unreachable, unit: 0.5 });
            }
        }
    }

    /// The vault is there again, and who listens to it knows that something may have been missed.
    fn come_back(&mut self) {
        self.away = false;
        for replica in self.replicas.iter_mut().filter(|replica| replica.machine.is_some()) {
            if !replica.words.contains(&None) {
                replica.words.push(None);
            }
        }
    }

    fn answer(&mut self, index: usize, nights: &Nights) {
        let early = self.granted_at.is_some_and(|at| self.now < at + LIFE - BUFFER);
        self.extra += u8::from(early);
        self.granted += 1;
        self.granted_at = self.replicas[index].asked_at;
        let replica = &mut self.replicas[index];
        replica.fresh = self.granted;
        replica.asked_at = None;
        replica.dawdles = false;
        self.tell(index, Input::Granted { lifetime: Some(LIFE), repeated: false, unit: nights.unit(index) });
    }

    /// The next thing that others can notice, and all that they cannot.
    fn step(&mut self, index: usize, nights: &Nights) -> Result<(), String> {
        let mut inward = true;
        while inward {
            let machine = self.replicas[index].machine.as_mut().unwrap();
            let Some(output) = machine.poll_output() else { return Ok(()) };
            inward =
                matches!(output, Output::Adopt { .. } | Output::Retry { .. } | Output::KeepAway { .. } | Output::Fetch);
            self.perform(index, output, nights)?;
        }
        Ok(())
    }

    fn perform(&mut self, index: usize, output: Output, nights: &Nights) -> Result<(), String> {
        let (now, unit) = (self.now, nights.unit(index));
        match output {
            Output::Fetch => self.replicas[index].asked_at = Some(now),
            Output::Adopt { origin, .. } => self.adopt(index, origin)?,
            Output::Retry { .. } | Output::KeepAway { .. } => (),
            Output::Look => {
                let seen = (!self.away).then(|| self.look(index));
                self.tell(index, Input::Looked { seen, unit });
            }
            Output::Lock { life } => {
                let lock = self.lock(index, life, nights.flaw);
                self.tell(index, Input::Locked { lock, unit });
            }
            Output::Renew { life } if self.has_lock(index) && !self.away => {
                self.vault.lock = self.vault.lock.map(|(owner, _)| (owner, now + life));
            }
            Output::Renew { .. } => (),
            Output::Release { .. } => self.release(index, nights.flaw)?,
            Output::Publish { generation, left, .. } => {
                let published = self.publish(index, generation, now + left, nights.flaw);
                self.tell(index, Input::Published(published));
            }
        }
        Ok(())
    }

    fn adopt(&mut self, index: usize, origin: Origin) -> Result<(), String> {
        let replica = &mut self.replicas[index];
        replica.token = match origin {
            Origin::Grant => replica.fresh,
            Origin::Vault => replica.seen,
        };
        if replica.token == replica.refused {
            return Err("a token that was refused is adopted again".to_owned());
        }
        Ok(())
    }

    fn look(&mut self, index: usize) -> Seen {
        let stored = self.vault.token.filter(|stored| stored.ends_at > self.now);
        self.replicas[index].seen = stored.map_or(0, |stored| stored.token);
        let token = stored.map(|stored| Found {
            generation: stored.generation,
            lifetime: LIFE,
            left: stored.ends_at - self.now,
        });
        Seen { last: self.vault.last, token, pause: None }
    }

    fn lock(&mut self, index: usize, life: Duration, flaw: Option<Flaw>) -> Lock {
        if self.away {
            return Lock::Away;
        }
        let held = self.vault.lock.is_some_and(|(_, until)| until > self.now || flaw == Some(Flaw::LockForEver));
        if held && flaw != Some(Flaw::NoLock) {
            return Lock::Held;
        }
        self.replicas[index].locks += 1;
        self.vault.lock = Some(((index, self.replicas[index].locks), self.now + life));
        Lock::Got
    }

    fn has_lock(&self, index: usize) -> bool {
        self.holder() == Some((index, self.replicas[index].locks))
    }

    fn holder(&self) -> Option<Owner> {
        self.vault.lock.filter(|(_, until)| *until > self.now).map(|(owner, _)| owner)
    }

    fn release(&mut self, index: usize, flaw: Option<Flaw>) -> Result<(), String> {
        if self.away {
            return Ok(());
        }
        if self.has_lock(index) {
            self.vault.lock = None;
        } else if flaw == Some(Flaw::BlindRelease) && self.holder().is_some() {
            return Err("the lock of another replica was given back".to_owned());
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, generation: u64, ends_at: Instant, flaw: Option<Flaw>) -> Published {
        if self.away {
            return Published::Away;
        }
        let newer = self.vault.last >= generation && flaw != Some(Flaw::BlindPublish);
        let mine = self.has_lock(index);
        if !newer && !mine && self.holder().is_some() && flaw != Some(Flaw::BlindPublish) {
            return Published::Lost;
        }
        let mut vault = self.vault;
        vault.lock = if mine { None } else { self.vault.lock };
        if newer {
            self.vault = vault;
            return Published::Newer;
        }
        // what is in force is offered anew, or what was just granted
        let replica = &self.replicas[index];
        let offered = replica.machine.as_ref().unwrap().generation() == generation;
        let token = if offered { replica.token } else { replica.fresh };
        vault.token = Some(Stored { generation, token, ends_at });
        vault.last = generation;
        self.before = self.vault;
        self.vault = vault;
        for (other, replica) in self.replicas.iter_mut().enumerate() {
            if other != index && replica.machine.is_some() && !replica.words.contains(&Some(generation)) {
                replica.words.push(Some(generation));
                replica.words.sort_unstable();
            }
        }
        Published::Done
    }

    /// A fault may leave two tokens whose lives run side by side: then only the sum is bounded.
    fn judge_requests(&self, kinds: &[Fault]) -> Result<(), String> {
        let lives = (self.now - self.begin).as_secs() / (LIFE - BUFFER).as_secs();
        let many = u64::from(self.granted) > 1 + lives + u64::from(self.faults);
        let early = self.extra > 0 && self.faults == 0;
        if (many || early) && !kinds.contains(&Fault::Outage) {
            return Err(format!("{} requests too many for {} faults", self.extra, self.faults));
        }
        Ok(())
    }

    /// What must hold after every step.
    fn judge(&self, before: &Self, kinds: &[Fault]) -> Result<(), String> {
        self.judge_requests(kinds)?;
        if !kinds.contains(&Fault::Forget) && self.vault.last < before.vault.last {
            return Err("the vault's token went back".to_owned());
        }
        for (old, new) in before.replicas.iter().zip(&self.replicas) {
            let (Some(old), Some(new)) = (&old.machine, &new.machine) else { continue };
            if new.generation() < old.generation() {
                return Err("a replica's token went back".to_owned());
            }
        }
        Ok(())
    }
}

const CALM: Nights = Nights {
    replicas: 2,
    faults: 0,
    kinds: &[Fault::Crash, Fault::Pause],
    losses: 1,
    slow: 1,
    horizon: Duration::from_secs(45),
    spread: false,
    flaw: None,
};

#[test]
fn replicas_make_one_request_a_life_and_one_more_for_a_fault_at_most() {
    let all = &[Fault::Crash, Fault::Pause, Fault::Forget, Fault::Revoke, Fault::Fail][..];
    let crash = &[Fault::Crash][..];
    walk(&[
        Nights { ..CALM },
        Nights { horizon: Duration::from_secs(75), ..CALM },
        Nights { faults: 1, slow: 0, kinds: &[Fault::Outage], ..CALM },
        Nights { faults: 1, slow: 0, kinds: all, spread: true, ..CALM },
        Nights { faults: 2, losses: 0, slow: 0, kinds: crash, ..CALM },
        Nights { replicas: 3, losses: 0, slow: 0, ..CALM },
        Nights { replicas: 3, faults: 1, losses: 0, slow: 0, kinds: crash, horizon: Duration::from_secs(41), ..CALM },
    ]);
}

#[test]
#[ignore = "more than two million states take minutes"]
fn the_same_in_longer_nights() {
    walk(&[
        Nights { faults: 2, losses: 0, slow: 0, ..CALM },
        Nights { replicas: 3, faults: 1, losses: 0, slow: 0, ..CALM },
    ]);
}

fn walk(table: &[Nights]) {
    for nights in table {
        let start = Instant::now();
        let states = nights.walk().unwrap_or_else(|flaw| panic!("{nights:?}: {flaw}"));
        println!("{states} states in {:.1?}: {nights:?}", start.elapsed());
    }
}

#[test]
fn a_vault_whose_scripts_are_wrong_is_found_out() {
    let pause = Nights { faults: 1, losses: 0, slow: 0, kinds: &[Fault::Pause], ..CALM };
    let table = [
        (Flaw::NoLock, CALM, "requests too many"),
        (Flaw::LockForEver, Nights { kinds: &[Fault::Crash], horizon: Duration::from_secs(75), ..pause }, "too many"),
        (Flaw::BlindPublish, Nights { horizon: Duration::from_secs(75), ..pause }, "went back"),
        (Flaw::BlindRelease, Nights { faults: 2, kinds: &[Fault::Pause, Fault::Fail], ..pause }, "lock of another"),
    ];
    for (flaw, nights, expected) in table {
        let found = Nights { flaw: Some(flaw), ..nights }.walk().expect_err("a model that cannot fail proves nothing");
        assert!(found.contains(expected), "{flaw:?}: {found}");
        println!("{flaw:?}: {found}");
    }
}
