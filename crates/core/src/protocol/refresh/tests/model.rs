//! Every state that two or three replicas with one store can reach: each order of steps, lost and late notifications,
//! crashes, suspends, slow answers, a store that loses data, a platform that revokes tokens.
//!
//! The replicas are the machines of [`super::super`]. The store is a model of its scripts.

use std::time::{Duration, Instant};

use super::{
    super::*,
    explore::{Model, explore},
};

const LIFE: Duration = Duration::from_secs(40);
/// The buffer: a quarter of the lifetime, which is less than the configured one.
const BUFFER: Duration = Duration::from_secs(10);
/// The maximum duration of a slow answer. The lock must outlive it. A longer one is a fault.
const SLOW: Duration = Duration::from_millis(5_400);

/// A step of an exploration.
#[derive(Debug, Clone, Copy)]
struct ModelConfig {
    replicas: usize,
    /// The maximum number of faults in one run.
    faults: u8,
    kinds: &'static [Fault],
    /// The maximum number of lost notifications. They must not cost a request.
    lost_notifications: u8,
    /// The maximum number of slow answers of the token endpoint. They are no faults.
    slow_responses: u8,
    /// The end of the exploration.
    horizon: Duration,
    /// The random number of every replica, or different numbers.
    spread: bool,
    /// A bug in the store.
    bug: Option<VaultBug>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    Crash,
    Pause,
    RollBack,
    Revoke,
    Outage,
    /// The token endpoint answers without a token.
    Fail,
}

/// A bug in a store's script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VaultBug {
    /// A lock is released by any replica.
    BlindRelease,
    /// A published token overwrites a newer one.
    BlindPublish,
    /// The lock does not expire.
    LockWithoutExpiry,
    /// Two replicas can have the lock.
    NoLock,
}

#[derive(Debug, Clone, Copy)]
enum ModelAction {
    /// The replica performs the next output of its machine.
    Step(usize),
    Answer(usize),
    /// The endpoint answers late.
    Delay(usize),
    Notify(usize, Option<u64>),
    DropNotification(usize, Option<u64>),
    /// The platform rejects its token.
    Reject(usize),
    Fault(Fault, usize),
    Wake(usize),
    Join(usize),
    Return,
    Wait,
}

#[derive(Clone, Hash)]
struct ModelState {
    started_at: Instant,
    now: Instant,
    vault: Vault,
    /// The state to which a store that loses data returns.
    vault_snapshot: Vault,
    vault_unavailable: bool,
    replicas: Vec<ModelReplica>,
    faults: u8,
    lost_notifications: u8,
    slow_responses: u8,
    /// Tokens up to this one are revoked.
    revoked: u8,
    granted: u8,
    granted_at: Option<Instant>,
    /// Requests beyond one for each token lifetime.
    extra: u8,
}

#[derive(Clone, Copy, Default, Hash, PartialEq, Eq)]
struct Vault {
    last: u64,
    token: Option<StoredToken>,
    lock: Option<(Owner, Instant)>,
}

#[derive(Clone, Copy, Hash, PartialEq, Eq)]
struct StoredToken {
    generation: u64,
    token: u8,
    ends_at: Instant,
}

/// The replica, and the number of its lock.
type Owner = (usize, u8);

#[derive(Clone, Hash)]
struct ModelReplica {
    /// None after a crash.
    machine: Option<Refresh>,
    paused: bool,
    /// It was suspended once, so its estimate of the token's lifetime is too low.
    was_paused: bool,
    asked_at: Option<Instant>,
    is_delayed: bool,
    locks: u8,
    /// The token in use, the one granted last and the one seen last, by their numbers at the endpoint.
    token: u8,
    fresh: u8,
    seen: u8,
    refused: u8,
    notifications: Vec<Option<u64>>,
}

impl ModelConfig {
    fn start(&self, now: Instant) -> ModelState {
        let replica = ModelReplica {
            machine: Some(machine(now)),
            paused: false,
            was_paused: false,
            asked_at: None,
            is_delayed: false,
            locks: 0,
            token: 0,
            fresh: 0,
            seen: 0,
            refused: 0,
            notifications: Vec::new(),
        };
        ModelState {
            started_at: now,
            now,
            vault: Vault::default(),
            vault_snapshot: Vault::default(),
            vault_unavailable: false,
            replicas: vec![replica; self.replicas],
            faults: 0,
            lost_notifications: 0,
            slow_responses: 0,
            revoked: 0,
            granted: 0,
            granted_at: None,
            extra: 0,
        }
    }

    fn walk(explore_all: &Self) -> Result<usize, String> {
        let start = Instant::now();
        explore(&Exploration { config: *explore_all, end: start + explore_all.horizon }, explore_all.start(start))
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
        sharing: TokenSharing::Vault,
    });
    machine.handle(Input::Start, now);
    machine
}

struct Exploration {
    config: ModelConfig,
    end: Instant,
}

impl Model for Exploration {
    type State = ModelState;
    type Action = ModelAction;

    fn actions(&self, state: &ModelState) -> Vec<ModelAction> {
        let mut acts = Vec::new();
        for (index, replica) in state.replicas.iter().enumerate() {
            self.actions_of(state, index, replica, &mut acts);
        }
        if state.faults < self.config.faults {
            self.faults(state, &mut acts);
        }
        if state.vault_unavailable {
            acts.push(ModelAction::Return);
        }
        if state.next().is_some_and(|next| next <= self.end) && state.replicas.iter().all(|r| r.is_quiescent(state)) {
            acts.push(ModelAction::Wait);
        }
        acts
    }

    fn apply(&self, state: &ModelState, act: ModelAction) -> Result<ModelState, String> {
        let mut next = state.clone();
        self.change(&mut next, act)?;
        next.drop_outdated_notifications();
        next.check_invariants(state, self.config.kinds)?;
        Ok(next)
    }
}

impl Exploration {
    fn change(&self, state: &mut ModelState, act: ModelAction) -> Result<(), String> {
        match act {
            ModelAction::Step(index) => state.step(index, &self.config)?,
            ModelAction::Answer(index) => state.answer(index, &self.config),
            ModelAction::Delay(index) => {
                state.slow_responses += 1;
                state.replicas[index].is_delayed = true;
            }
            ModelAction::Notify(index, word) => {
                state.replicas[index].drop_notification(word);
                state.apply_input(index, Input::VaultNotified { generation: word });
            }
            ModelAction::DropNotification(index, word) => {
                state.lost_notifications += 1;
                state.replicas[index].drop_notification(word);
            }
            ModelAction::Reject(index) => {
                let replica = &mut state.replicas[index];
                replica.refused = replica.token;
                let generation = replica.machine.as_ref().unwrap().generation();
                state.apply_input(index, Input::Refused { generation, proven: true });
            }
            ModelAction::Fault(fault, index) => state.inject(fault, index),
            ModelAction::Wake(index) => state.resume_replica(index),
            ModelAction::Join(index) => state.replicas[index].machine = Some(machine(state.now)),
            ModelAction::Return => state.restore_vault(),
            ModelAction::Wait => state.wait()?,
        }
        Ok(())
    }

    fn actions_of(&self, state: &ModelState, index: usize, replica: &ModelReplica, acts: &mut Vec<ModelAction>) {
        let Some(machine) = &replica.machine else { return acts.push(ModelAction::Join(index)) };
        if replica.paused {
            return acts.push(ModelAction::Wake(index));
        }
        if machine.clone().poll_output().is_some() {
            return acts.push(ModelAction::Step(index));
        }
        if replica.asked_at.is_some() {
            acts.push(ModelAction::Answer(index));
            if state.slow_responses < self.config.slow_responses {
                acts.push(ModelAction::Delay(index));
            }
            return;
        }
        for word in &replica.notifications {
            acts.push(ModelAction::Notify(index, *word));
            if state.lost_notifications < self.config.lost_notifications {
                acts.push(ModelAction::DropNotification(index, *word));
            }
        }
        if replica.token <= state.revoked && replica.token > replica.refused {
            acts.push(ModelAction::Reject(index));
        }
    }

    fn faults(&self, state: &ModelState, acts: &mut Vec<ModelAction>) {
        for fault in self.config.kinds {
            match fault {
                Fault::Crash | Fault::Pause => {
                    let awake = |replica: &&ModelReplica| replica.machine.is_some() && !replica.paused;
                    let replicas = 0..state.replicas.len();
                    let some = replicas.filter(|index| awake(&&state.replicas[*index]));
                    acts.extend(some.map(|index| ModelAction::Fault(*fault, index)));
                }
                Fault::RollBack if state.vault_snapshot != state.vault => acts.push(ModelAction::Fault(*fault, 0)),
                Fault::Revoke if state.granted > state.revoked => acts.push(ModelAction::Fault(*fault, 0)),
                Fault::Outage if !state.vault_unavailable => acts.push(ModelAction::Fault(*fault, 0)),
                Fault::Fail => {
                    let asking =
                        |index: &usize| state.replicas[*index].asked_at.is_some() && !state.replicas[*index].paused;
                    acts.extend(
                        (0..state.replicas.len()).filter(asking).map(|index| ModelAction::Fault(*fault, index)),
                    );
                }
                Fault::RollBack | Fault::Revoke | Fault::Outage => (),
            }
        }
    }
}

impl ModelReplica {
    fn drop_notification(&mut self, word: Option<u64>) {
        let at = self.notifications.iter().position(|other| *other == word).unwrap();
        self.notifications.remove(at);
    }

    /// Whether it has nothing to do before the time advances.
    fn is_quiescent(&self, state: &ModelState) -> bool {
        let Some(machine) = self.machine.as_ref().filter(|_| !self.paused) else { return true };
        let in_time = |sent: Instant| self.is_delayed && state.next().is_some_and(|next| next < sent + SLOW);
        machine.clone().poll_output().is_none() && self.asked_at.is_none_or(in_time)
    }
}

impl ModelState {
    /// A notification without news changes nothing at any time.
    fn drop_outdated_notifications(&mut self) {
        for replica in &mut self.replicas {
            let Some(machine) = &replica.machine else { continue };
            replica.notifications.retain(|word| word.is_none_or(|generation| generation > machine.generation()));
        }
    }

    fn apply_input(&mut self, index: usize, input: Input) {
        let now = self.now;
        self.replicas[index].machine.as_mut().unwrap().handle(input, now);
    }

    /// When the next timer is due.
    fn next(&self) -> Option<Instant> {
        let awake = self.replicas.iter().filter(|replica| !replica.paused);
        awake.filter_map(|replica| replica.machine.as_ref()?.poll_timeout()).min()
    }

    fn wait(&mut self) -> Result<(), String> {
        let past = self.now;
        self.now = self.now.max(self.next().unwrap());
        let now = self.now;
        for replica in self.replicas.iter_mut().filter(|replica| !replica.paused) {
            let excused = replica.asked_at.is_some() || replica.was_paused;
            let Some(machine) = replica.machine.as_mut() else { continue };
            if !excused
                && !machine.is_refused()
                && machine.expires_at().is_some_and(|ends_at| past < ends_at && ends_at <= now)
            {
                return Err("a token ended before there was another".to_owned());
            }
            machine.handle_timeout(now);
        }
        Ok(())
    }

    fn resume_replica(&mut self, index: usize) {
        let now = self.now;
        let replica = &mut self.replicas[index];
        replica.paused = false;
        replica.machine.as_mut().unwrap().handle_timeout(now);
    }

    fn inject(&mut self, fault: Fault, index: usize) {
        self.faults += 1;
        match fault {
            Fault::Crash => {
                let locks = self.replicas[index].locks;
                self.replicas[index] = ModelReplica {
                    machine: None,
                    paused: false,
                    was_paused: false,
                    asked_at: None,
                    is_delayed: false,
                    locks,
                    token: 0,
                    fresh: 0,
                    seen: 0,
                    refused: 0,
                    notifications: Vec::new(),
                };
            }
            Fault::Pause => {
                self.replicas[index].paused = true;
                self.replicas[index].was_paused = true;
            }
            Fault::RollBack => self.vault = self.vault_snapshot,
            Fault::Revoke => self.revoked = self.granted,
            Fault::Outage => self.vault_unavailable = true,
            Fault::Fail => {
                self.replicas[index].asked_at = None;
                self.replicas[index].is_delayed = false;
                self.apply_input(index, Input::Failed { failure: GrantFailure::Unreachable, unit: 0.5 });
            }
        }
    }

    /// The store is reachable again. Subscribers know that they may have missed notifications.
    fn restore_vault(&mut self) {
        self.vault_unavailable = false;
        for replica in self.replicas.iter_mut().filter(|replica| replica.machine.is_some()) {
            if !replica.notifications.contains(&None) {
                replica.notifications.push(None);
            }
        }
    }

    fn answer(&mut self, index: usize, config: &ModelConfig) {
        let early = self.granted_at.is_some_and(|at| self.now < at + LIFE - BUFFER);
        self.extra += u8::from(early);
        self.granted += 1;
        self.granted_at = self.replicas[index].asked_at;
        let replica = &mut self.replicas[index];
        replica.fresh = self.granted;
        replica.asked_at = None;
        replica.is_delayed = false;
        self.apply_input(index, Input::Granted { lifetime: Some(LIFE), repeated: false, unit: config.unit(index) });
    }

    /// The next output that others can see, and all outputs before it.
    fn step(&mut self, index: usize, config: &ModelConfig) -> Result<(), String> {
        let mut inward = true;
        while inward {
            let machine = self.replicas[index].machine.as_mut().unwrap();
            let Some(output) = machine.poll_output() else { return Ok(()) };
            inward = matches!(
                output,
                Output::Adopt { .. } | Output::Retry { .. } | Output::PauseRequests { .. } | Output::Fetch
            );
            self.perform(index, output, config)?;
        }
        Ok(())
    }

    fn perform(&mut self, index: usize, output: Output, config: &ModelConfig) -> Result<(), String> {
        let (now, unit) = (self.now, config.unit(index));
        match output {
            Output::Fetch => self.replicas[index].asked_at = Some(now),
            Output::Adopt { origin, .. } => self.adopt(index, origin)?,
            Output::Retry { .. } | Output::PauseRequests { .. } => (),
            Output::ReadVault => {
                let seen = (!self.vault_unavailable).then(|| self.read_vault(index));
                self.apply_input(index, Input::VaultRead { seen, unit });
            }
            Output::Lock { ttl: life } => {
                let lock = self.lock(index, life, config.bug);
                self.apply_input(index, Input::Locked { lock, unit });
            }
            Output::Renew { ttl: life } if self.has_lock(index) && !self.vault_unavailable => {
                self.vault.lock = self.vault.lock.map(|(owner, _)| (owner, now + life));
            }
            Output::Renew { .. } => (),
            Output::Release { .. } => self.release(index, config.bug)?,
            Output::Publish { generation, remaining: left, .. } => {
                let published = self.publish(index, generation, now + left, config.bug);
                self.apply_input(index, Input::Published(published));
            }
        }
        Ok(())
    }

    fn adopt(&mut self, index: usize, origin: TokenOrigin) -> Result<(), String> {
        let replica = &mut self.replicas[index];
        replica.token = match origin {
            TokenOrigin::Grant => replica.fresh,
            TokenOrigin::Vault => replica.seen,
        };
        if replica.token == replica.refused {
            return Err("a token that was refused is adopted again".to_owned());
        }
        Ok(())
    }

    fn read_vault(&mut self, index: usize) -> VaultContent {
        let stored = self.vault.token.filter(|stored| stored.ends_at > self.now);
        self.replicas[index].seen = stored.map_or(0, |stored| stored.token);
        let token = stored.map(|stored| VaultToken {
            generation: stored.generation,
            lifetime: LIFE,
            remaining: stored.ends_at - self.now,
        });
        VaultContent { last: self.vault.last, token, pause: None }
    }

    fn lock(&mut self, index: usize, life: Duration, flaw: Option<VaultBug>) -> LockOutcome {
        if self.vault_unavailable {
            return LockOutcome::Unavailable;
        }
        let held =
            self.vault.lock.is_some_and(|(_, until)| until > self.now || flaw == Some(VaultBug::LockWithoutExpiry));
        if held && flaw != Some(VaultBug::NoLock) {
            return LockOutcome::Held;
        }
        self.replicas[index].locks += 1;
        self.vault.lock = Some(((index, self.replicas[index].locks), self.now + life));
        LockOutcome::Acquired
    }

    fn has_lock(&self, index: usize) -> bool {
        self.holder() == Some((index, self.replicas[index].locks))
    }

    fn holder(&self) -> Option<Owner> {
        self.vault.lock.filter(|(_, until)| *until > self.now).map(|(owner, _)| owner)
    }

    fn release(&mut self, index: usize, flaw: Option<VaultBug>) -> Result<(), String> {
        if self.vault_unavailable {
            return Ok(());
        }
        if self.has_lock(index) {
            self.vault.lock = None;
        } else if flaw == Some(VaultBug::BlindRelease) && self.holder().is_some() {
            return Err("the lock of another replica was given back".to_owned());
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, generation: u64, ends_at: Instant, flaw: Option<VaultBug>) -> PublishOutcome {
        if self.vault_unavailable {
            return PublishOutcome::Unavailable;
        }
        let newer = self.vault.last >= generation && flaw != Some(VaultBug::BlindPublish);
        let mine = self.has_lock(index);
        if !newer && !mine && self.holder().is_some() && flaw != Some(VaultBug::BlindPublish) {
            return PublishOutcome::LockLost;
        }
        let mut vault = self.vault;
        vault.lock = if mine { None } else { self.vault.lock };
        if newer {
            self.vault = vault;
            return PublishOutcome::AlreadyNewer;
        }
        // the token in use is published again, or the one just granted
        let replica = &self.replicas[index];
        let offered = replica.machine.as_ref().unwrap().generation() == generation;
        let token = if offered { replica.token } else { replica.fresh };
        vault.token = Some(StoredToken { generation, token, ends_at });
        vault.last = generation;
        self.vault_snapshot = self.vault;
        self.vault = vault;
        for (other, replica) in self.replicas.iter_mut().enumerate() {
            if other != index && replica.machine.is_some() && !replica.notifications.contains(&Some(generation)) {
                replica.notifications.push(Some(generation));
                replica.notifications.sort_unstable();
            }
        }
        PublishOutcome::Done
    }

    /// A fault may leave two valid tokens. Then only the sum of requests is bounded.
    fn check_request_count(&self, kinds: &[Fault]) -> Result<(), String> {
        let lives = (self.now - self.started_at).as_secs() / (LIFE - BUFFER).as_secs();
        let many = u64::from(self.granted) > 1 + lives + u64::from(self.faults);
        let early = self.extra > 0 && self.faults == 0;
        if (many || early) && !kinds.contains(&Fault::Outage) {
            return Err(format!("{} requests too many for {} faults", self.extra, self.faults));
        }
        Ok(())
    }

    /// The invariants after every step.
    fn check_invariants(&self, before: &Self, kinds: &[Fault]) -> Result<(), String> {
        self.check_request_count(kinds)?;
        if !kinds.contains(&Fault::RollBack) && self.vault.last < before.vault.last {
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

const CALM: ModelConfig = ModelConfig {
    replicas: 2,
    faults: 0,
    kinds: &[Fault::Crash, Fault::Pause],
    lost_notifications: 1,
    slow_responses: 1,
    horizon: Duration::from_secs(45),
    spread: false,
    bug: None,
};

#[test]
fn replicas_make_one_request_per_lifetime_and_one_more_per_fault_at_most() {
    let all = &[Fault::Crash, Fault::Pause, Fault::RollBack, Fault::Revoke, Fault::Fail][..];
    let crash = &[Fault::Crash][..];
    walk(&[
        ModelConfig { ..CALM },
        ModelConfig { horizon: Duration::from_secs(75), ..CALM },
        ModelConfig { faults: 1, slow_responses: 0, kinds: &[Fault::Outage], ..CALM },
        ModelConfig { faults: 1, slow_responses: 0, kinds: all, spread: true, ..CALM },
        ModelConfig { faults: 2, lost_notifications: 0, slow_responses: 0, kinds: crash, ..CALM },
        ModelConfig { replicas: 3, lost_notifications: 0, slow_responses: 0, ..CALM },
        ModelConfig {
            replicas: 3,
            faults: 1,
            lost_notifications: 0,
            slow_responses: 0,
            kinds: crash,
            horizon: Duration::from_secs(41),
            ..CALM
        },
    ]);
}

#[test]
#[ignore = "more than two million states take minutes"]
fn the_request_bound_holds_over_longer_horizons() {
    walk(&[
        ModelConfig { faults: 2, lost_notifications: 0, slow_responses: 0, ..CALM },
        ModelConfig { replicas: 3, faults: 1, lost_notifications: 0, slow_responses: 0, ..CALM },
    ]);
}

fn walk(explore_table: &[ModelConfig]) {
    for config in explore_table {
        let start = Instant::now();
        let states = ModelConfig::walk(config).unwrap_or_else(|flaw| panic!("{config:?}: {flaw}"));
        println!("{states} states in {:.1?}: {config:?}", start.elapsed());
    }
}

#[test]
fn a_vault_with_wrong_scripts_is_detected() {
    let pause = ModelConfig { faults: 1, lost_notifications: 0, slow_responses: 0, kinds: &[Fault::Pause], ..CALM };
    let table = [
        (VaultBug::NoLock, CALM, "requests too many"),
        (
            VaultBug::LockWithoutExpiry,
            ModelConfig { kinds: &[Fault::Crash], horizon: Duration::from_secs(75), ..pause },
            "too many",
        ),
        (VaultBug::BlindPublish, ModelConfig { horizon: Duration::from_secs(75), ..pause }, "went back"),
        (
            VaultBug::BlindRelease,
            ModelConfig { faults: 2, kinds: &[Fault::Pause, Fault::Fail], ..pause },
            "lock of another",
        ),
    ];
    for (flaw, config, expected) in table {
        let found = ModelConfig::walk(&ModelConfig { bug: Some(flaw), ..config })
            .expect_err("a model that cannot fail proves nothing");
        assert!(found.contains(expected), "{flaw:?}: {found}");
        println!("{flaw:?}: {found}");
    }
}
