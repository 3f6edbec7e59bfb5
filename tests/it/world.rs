//! Simulation of the pure rules: a model platform, a model token endpoint and a model store share one seeded clock.
//! Each seed is one world with random faults.
//!
//! `TRUNKLINE_SEED=n` runs one world and prints its trace. `TRUNKLINE_SEEDS=n` runs `n` worlds, starting with seed
//! `TRUNKLINE_FROM`.

mod checker;
mod fault;
mod log_check;
mod pair;
mod plan;
mod platform;
mod process;
mod rng;
mod schedule;
mod store;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use trunkline::protocol::{
    refresh,
    stream::{Input, StreamState},
};

use self::{
    checker::RuleChecker,
    log_check::NumberedLogCheck,
    pair::{PairFaultProfile, PairWorld},
    plan::{ConnectorKind, FaultProfile, WorldPlan},
    platform::ModelPlatform,
    process::ModelProcess,
    rng::SeededRng,
    schedule::{Schedule, ScheduledEvent, WorldTime},
    store::ModelStore,
};

/// Number of seeds that a normal run uses for each scenario.
const SEEDS: u64 = 400;
/// Number of trace lines that a failure report shows. A run of one seed shows all.
const TRACE_LEN: usize = 120;

#[test]
fn a_planned_change_loses_and_duplicates_nothing() {
    run_all(Scenario::Single(FaultProfile::Planned));
}

#[test]
fn random_faults_leave_no_hole_without_a_gap() {
    run_all(Scenario::Single(FaultProfile::Faulty));
}

#[test]
fn a_planned_handover_loses_and_duplicates_nothing() {
    run_all(Scenario::Pair(PairFaultProfile::Planned));
}

#[test]
fn events_received_by_a_killed_owner_are_not_lost() {
    run_all(Scenario::Pair(PairFaultProfile::Crashes));
}

#[test]
fn random_faults_of_two_replicas_leave_no_hole_without_a_gap() {
    run_all(Scenario::Pair(PairFaultProfile::Faulty));
}

#[test]
fn a_seed_determines_the_whole_run() {
    for seed in 0..3 {
        assert_eq!(digest_of(seed), digest_of(seed));
    }
}

fn digest_of(seed: u64) -> String {
    let mut world = World::new(FaultProfile::Faulty, seed, TRACE_LEN);
    world.run();
    format!("{} {} {}", world.env.store.log.len(), world.env.schedule.now.as_nanos(), world.env.schedule.trace_text())
}

/// The kind of world that a test runs for each seed.
#[derive(Debug, Clone, Copy)]
enum Scenario {
    Single(FaultProfile),
    Pair(PairFaultProfile),
}

fn run_all(scenario: Scenario) {
    if let Some(seed) = setting("TRUNKLINE_SEED") {
        return report_failure(scenario, seed, usize::MAX);
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
                if scenario.run(seed, 0).is_err() {
                    next.store(seeds, Ordering::Relaxed);
                    return Some(seed);
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min()
    });
    if let Some(seed) = failed {
        report_failure(scenario, seed, TRACE_LEN);
    }
}

/// Runs one world again with its trace, and panics with the trace if it fails.
fn report_failure(scenario: Scenario, seed: u64, trace_len: usize) {
    if let Err(trace) = scenario.run(seed, trace_len) {
        panic!("{trace}\nTRUNKLINE_SEED={seed} runs this {scenario:?} again");
    }
}

impl Scenario {
    /// Runs one world. The error is the failure report.
    fn run(self, seed: u64, trace_len: usize) -> Result<(), String> {
        match self {
            Self::Single(profile) => {
                let mut world = World::new(profile, seed, trace_len);
                let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
                outcome.map_err(|panic| world.env.failure_report(&*panic))
            }
            Self::Pair(profile) => {
                let mut pair = PairWorld::new(profile, seed, trace_len);
                let outcome = catch_unwind(AssertUnwindSafe(|| pair.run()));
                outcome.map_err(|panic| pair.env.failure_report(&*panic))
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[expect(clippy::disallowed_methods, reason = "the environment selects the seeds")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A world with one process.
#[derive(Debug)]
struct World {
    env: TestEnvironment,
    process: Option<ModelProcess>,
    processes_started: u32,
    emission_stopped: bool,
}

/// The state outside the process.
#[derive(Debug)]
struct TestEnvironment {
    schedule: Schedule,
    platform: ModelPlatform,
    store: ModelStore,
    checker: RuleChecker,
    numbered_check: NumberedLogCheck,
    /// How token requests fail, and until when.
    token_endpoint_failure: Option<(refresh::GrantFailure, WorldTime)>,
    /// The buffer was half full, the store stalled, or the process drained at some time: snapshots may be late.
    was_congested: bool,
}

/// Longest time that a drain takes.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Longest time from an event on a live stream to its entry in the log.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

impl TestEnvironment {
    /// The platform sends a burst of events and schedules the next burst.
    fn emit_events(&mut self) {
        let Self { schedule, platform, .. } = self;
        let count = schedule.rng.number(1..schedule.plan.burst_max + 1);
        let pause = if schedule.faults_over { Duration::from_secs(3) } else { schedule.plan.pause };
        schedule.trace(|| format!("platform sends {count} events from {}", platform.sent_events.len()));
        platform.emit_events(count, schedule);
        let pause = schedule.rng.pause(pause) + Duration::from_millis(1);
        schedule.after(pause, ScheduledEvent::EmitEvents);
    }

    fn new(plan: WorldPlan, rng: SeededRng, trace_len: usize) -> Self {
        let mut schedule = Schedule::new(plan, rng, trace_len);
        let platform = ModelPlatform::new(&mut schedule);
        Self {
            schedule,
            platform,
            store: ModelStore::new(),
            checker: RuleChecker::new(),
            numbered_check: NumberedLogCheck::default(),
            token_endpoint_failure: None,
            was_congested: false,
        }
    }

    /// Whether the last event is in the log, or the last one that the platform had to deliver: a session that starts at
    /// the present delivers no earlier events, although another session may.
    fn has_arrived(&self) -> bool {
        let sent = &self.platform.sent_events;
        let there: Vec<usize> = self.store.log.iter().rev().take(10).filter_map(checker::uid).collect();
        let ends = [sent.last(), sent.iter().rev().find(|sent| !sent.undeliverable)];
        ends.into_iter().flatten().any(|end| there.contains(&end.class))
    }

    /// The trace, the plan and the message of a panic.
    fn failure_report(&self, panic: &(dyn Any + Send)) -> String {
        format!("\n{}\n\n{:?}\n\n{}", self.schedule.trace_text(), self.schedule.plan, message(panic))
    }
}

impl World {
    fn new(profile: FaultProfile, seed: u64, trace_len: usize) -> Self {
        let mut rng = SeededRng::from_seed(seed);
        let plan = WorldPlan::draw(profile, &mut rng);
        Self {
            env: TestEnvironment::new(plan, rng, trace_len),
            process: None,
            processes_started: 0,
            emission_stopped: false,
        }
    }

    /// Runs with faults, then recovers, drains and checks the log.
    fn run(&mut self) {
        self.env.schedule.after(Duration::ZERO, ScheduledEvent::StartProcess);
        self.env.schedule.after(Duration::ZERO, ScheduledEvent::EmitEvents);
        self.schedule_fault();
        let trouble = self.env.schedule.plan.fault_duration;
        self.run_until(trouble, |_| false);
        self.recover();
        self.expect_arrival();
        self.drain();
        log_check::check_log(&self.env);
    }

    /// Ends the faults; the stream has to be live again within a bound.
    fn recover(&mut self) {
        self.env.schedule.trace(|| "the faults are over".to_owned());
        self.env.schedule.faults_over = true;
        self.env.token_endpoint_failure = None;
        self.env.platform.recover();
        self.env.store.stalls_until = WorldTime::ZERO;
        self.start();
        let timeouts = self.env.schedule.plan.stream.timeouts;
        // Only the silence timeout detects a connection that stalled during the faults.
        let silence = self.env.schedule.now + timeouts.silence + timeouts.connect;
        self.run_until(silence, |_| false);
        self.expect_live();
    }

    fn expect_live(&mut self) {
        let deadline = self.env.schedule.now + self.recovery_max();
        self.run_until(deadline, World::is_live);
        assert!(self.is_live(), "the faults are over, and the stream is {:?}", self.env.checker.state);
    }

    /// The longest delay that any rule may still wait for, plus the time to connect.
    fn recovery_max(&self) -> Duration {
        let settings = &self.env.schedule.plan.stream;
        let retry_after = Duration::from_secs(30);
        let token = Duration::from_secs(75) + self.env.schedule.plan.refresh.interval_min;
        settings.backoff.cap.mul_f64(1.2) + retry_after + token + settings.timeouts.connect * 2
    }

    fn is_live(&self) -> bool {
        self.process.is_some()
            && self.env.checker.connected
            && matches!(self.env.checker.state, StreamState::Live | StreamState::Recovering)
    }

    /// New events of a live stream arrive, and a pending snapshot is written.
    fn expect_arrival(&mut self) {
        self.emission_stopped = true;
        for _ in 0..4 + self.env.platform.flawed_count() {
            self.env.platform.emit_events(3, &mut self.env.schedule);
            let deadline = self.env.schedule.now + ARRIVAL_MAX;
            self.run_until(deadline, |world| world.env.has_arrived());
            if self.env.has_arrived() || !self.arrival_not_guaranteed() {
                break;
            }
        }
        assert!(self.env.has_arrived(), "an event of a live stream does not arrive");
        let deadline = self.env.schedule.now + Duration::from_secs(60);
        self.run_until(deadline, |world| !world.snapshot_pending());
        assert!(!self.snapshot_pending(), "a snapshot is pending for too long");
    }

    /// Whether the newest events may be missing, so that the test has to send more. Waits until the stream is live.
    fn arrival_not_guaranteed(&mut self) -> bool {
        if self.env.schedule.plan.dialect == ConnectorKind::Notifications {
            // Events during a channel swap are lost, and a topic may still be refused.
            return true;
        }
        // An oversize frame from the faults ends one more session, and the next delay may be long.
        let met_flaw = self.env.platform.flawed_count() > 0 && !self.is_live();
        if met_flaw {
            self.expect_live();
        }
        met_flaw || !self.env.platform.can_deliver()
    }

    fn snapshot_pending(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.machine.snapshot_pending())
    }

    fn drain(&mut self) {
        let process = self.process.as_mut().expect("a running process");
        process.handle_stream_input(Input::Drain, &mut self.env);
        let deadline = self.env.schedule.now + DRAIN_MAX;
        self.run_until(deadline, |world| world.process.is_none());
        assert!(self.process.is_none(), "the process does not drain in time");
    }

    fn run_until(&mut self, end: WorldTime, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let wake = self.process.as_ref().and_then(|process| process.wakes_at(&self.env));
            let next = self.env.schedule.next_at().into_iter().chain(wake).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.env.schedule.now = end;
                return;
            };
            self.env.schedule.now = self.env.schedule.now.max(next);
            self.step(wake.is_some_and(|at| at <= self.env.schedule.now));
        }
    }

    fn step(&mut self, wake: bool) {
        match &mut self.process {
            Some(process) if wake => process.wake(&mut self.env),
            Some(_) | None => {
                if let Some(scheduled) = self.env.schedule.next_due() {
                    self.handle_event(scheduled);
                }
            }
        }
        let room = self.env.schedule.plan.stream.buffer / 2;
        self.env.was_congested |= self.process.as_ref().is_some_and(|process| process.machine.buffered() >= room);
        if self.process.as_ref().is_some_and(|process| process.drained) {
            self.process = None;
            if !self.emission_stopped {
                self.schedule_restart();
            }
        }
    }

    fn handle_event(&mut self, scheduled: ScheduledEvent) {
        let TestEnvironment { schedule, platform, .. } = &mut self.env;
        match scheduled {
            ScheduledEvent::StartProcess => self.start(),
            ScheduledEvent::EmitEvents if self.emission_stopped => (),
            ScheduledEvent::EmitEvents => self.env.emit_events(),
            ScheduledEvent::InjectFault(fault) => {
                if !self.env.schedule.faults_over {
                    self.inject(fault);
                    self.schedule_fault();
                }
            }
            ScheduledEvent::Process { incarnation, input } => self.deliver_input(incarnation, input),
            ScheduledEvent::FrameArrives { socket, what, certain } => {
                if let Some(process) = &mut self.process
                    && (certain || self.env.platform.gets_through(socket))
                {
                    process.on_frame(socket, what, &mut self.env);
                }
            }
            ScheduledEvent::Dialled { incarnation, session, dial, token } => {
                platform.on_dial(incarnation, session, &dial, token, schedule);
            }
            ScheduledEvent::Called { incarnation, call, request, token } => {
                platform.on_call(incarnation, call, &request, token, schedule);
            }
            ScheduledEvent::ProbeReceived(socket) => platform.on_probe(socket, schedule),
            ScheduledEvent::CloseReceived(socket) => platform.on_close_received(socket, schedule),
            ScheduledEvent::SocketDropped(socket) => platform.on_socket_dropped(socket),
            ScheduledEvent::Heartbeat(socket) => platform.heartbeat(socket, schedule),
            ScheduledEvent::SocketCloses(socket) => platform.close_after_notice(socket, schedule),
            ScheduledEvent::TokenEnds(token) => platform.on_token_expired(token, schedule),
            ScheduledEvent::ChannelEnds(channel) => platform.on_channel_expired(channel, schedule),
            ScheduledEvent::InjectPairFault | ScheduledEvent::ReadLogEnd | ScheduledEvent::TakeOver { .. } => {
                unreachable!("only a pair has this event")
            }
        }
    }

    fn start(&mut self) {
        if self.process.is_none() {
            self.processes_started += 1;
            self.process = Some(ModelProcess::start(self.processes_started, &mut self.env));
        }
    }

    fn deliver_input(&mut self, incarnation: u32, input: schedule::ProcessInput) {
        match &mut self.process {
            Some(process) if process.incarnation == incarnation => process.handle_input(input, &mut self.env),
            Some(_) | None => {
                if let schedule::ProcessInput::Opened(_, socket) = input {
                    self.env.platform.on_socket_dropped(socket);
                }
            }
        }
    }

    fn schedule_fault(&mut self) {
        let schedule = &mut self.env.schedule;
        let faults = schedule.plan.faults.clone();
        let fault = schedule.rng.pick(&faults);
        let pause = schedule.rng.pause(schedule.plan.fault_interval);
        schedule.after(pause, ScheduledEvent::InjectFault(fault));
    }
}
