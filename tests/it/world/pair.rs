//! Two replicas with one log: the owner appends; the standby holds its own session and takes over, planned or not.
//!
//! The model store has the fence: it rejects appends of a process that does not own the log.

mod fault;
mod guarantee;

use std::time::Duration;

use trunkline::protocol::stream::{Input, StreamState};

pub(super) use self::fault::PairFaultProfile;
use self::guarantee::{StandbyGuarantee, StandbyState};
use super::{
    DRAIN_MAX, TestEnvironment,
    checker::{RuleChecker, reason},
    log_check,
    plan::{ConnectorKind, WorldPlan},
    process::ModelProcess,
    rng::SeededRng,
    schedule::{ProcessInput, ScheduledEvent, WorldTime},
};

/// Two replicas and their world.
#[derive(Debug)]
pub(super) struct PairWorld {
    pub(super) env: TestEnvironment,
    profile: PairFaultProfile,
    replicas: Vec<PairReplica>,
    processes_started: u32,
    handover: HandoverPhase,
    /// The owner's process.
    guarantee: Option<StandbyGuarantee>,
    emission_stopped: bool,
}

/// One replica of the pair.
#[derive(Debug)]
struct PairReplica {
    process: ModelProcess,
    checker: RuleChecker,
    ready: bool,
    /// Length of the log when the session started.
    append_started: Option<usize>,
    /// The owner has flushed since the session started.
    covered: bool,
    live_since: Option<WorldTime>,
    buffered: usize,
}

impl PairReplica {
    /// Updates whether the session is live, and whether its events are still buffered.
    fn update(&mut self, now: WorldTime) {
        let kept = std::mem::replace(&mut self.buffered, self.process.machine.standby_len());
        if !self.ready || self.buffered < kept {
            self.live_since = None;
            self.checker.received.clear();
        }
        if self.ready {
            self.live_since.get_or_insert(now);
        }
    }
}

/// Phase of a planned handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandoverPhase {
    None,
    /// Waits until the successor's session is live.
    Wanted,
    /// Waits until the owner has flushed.
    Requested,
    /// The owner has flushed; the lease moves next.
    Released,
}

/// Most events by which a log is ahead of its standby.
const AHEAD_MAX: usize = 1_000;
/// Mean interval at which a standby reads where the log ends.
const LOG_END_READ_INTERVAL: Duration = Duration::from_secs(2);

impl PairWorld {
    pub(super) fn new(profile: PairFaultProfile, seed: u64, trace_len: usize) -> Self {
        let mut rng = SeededRng::from_seed(seed);
        let mut plan = WorldPlan::draw(profile.fault_profile(), &mut rng);
        profile.adjust_plan(&mut plan);
        let mut env = TestEnvironment::new(plan, rng, trace_len);
        // A snapshot that is pending at a handover may never be written.
        env.was_congested = true;
        Self {
            env,
            profile,
            replicas: Vec::new(),
            processes_started: 0,
            handover: HandoverPhase::None,
            guarantee: None,
            emission_stopped: false,
        }
    }

    /// Runs with faults, then recovers, drains and checks the log.
    pub(super) fn run(&mut self) {
        self.env.schedule.after(Duration::ZERO, ScheduledEvent::StartProcess);
        self.env.schedule.after(Duration::ZERO, ScheduledEvent::EmitEvents);
        let second = self.env.schedule.rng.millis(0..5_000);
        self.env.schedule.after(second, ScheduledEvent::StartProcess);
        self.env.schedule.after(LOG_END_READ_INTERVAL, ScheduledEvent::ReadLogEnd);
        self.schedule_fault();
        let trouble = self.env.schedule.plan.fault_duration;
        self.run_until(trouble, |_| false);
        self.recover();
        self.expect_arrival();
        self.drain();
        log_check::check_log(&self.env);
        self.check_gaps();
    }

    /// Ends the faults; the stream has to be live again within a bound.
    fn recover(&mut self) {
        self.env.schedule.trace(|| "the faults are over".to_owned());
        self.env.schedule.faults_over = true;
        self.env.token_endpoint_failure = None;
        self.env.platform.recover();
        self.env.store.stalls_until = WorldTime::ZERO;
        let timeouts = self.env.schedule.plan.stream.timeouts;
        let silence = self.env.schedule.now + timeouts.silence + timeouts.connect;
        self.run_until(silence, |_| false);
        self.expect_live();
    }

    fn expect_live(&mut self) {
        // Refused streams are retried after five minutes, and a token request may take time.
        let deadline = self.env.schedule.now + Duration::from_secs(500);
        self.run_until(deadline, Self::is_live);
        assert!(self.is_live(), "the faults are over, but no replica is live");
    }

    fn is_live(&self) -> bool {
        self.owner().is_some_and(|index| {
            let checker = &self.replicas[index].checker;
            checker.connected && matches!(checker.state, StreamState::Live | StreamState::Recovering)
        })
    }

    /// New events of a live stream arrive.
    fn expect_arrival(&mut self) {
        self.emission_stopped = true;
        let flaws = self.env.platform.flawed_count();
        for _ in 0..4 + flaws {
            self.env.platform.emit_events(3, &mut self.env.schedule);
            let deadline = self.env.schedule.now + super::ARRIVAL_MAX;
            self.run_until(deadline, |pair| pair.env.has_arrived());
            if self.env.has_arrived() {
                return;
            }
            if flaws > 0 && !self.is_live() {
                // An oversize frame from the faults ends one more session, and the next delay may be long.
                self.expect_live();
            }
        }
        panic!("an event of a live stream does not arrive");
    }

    fn drain(&mut self) {
        for index in 0..self.replicas.len() {
            self.send_input(index, Input::Drain);
        }
        let deadline = self.env.schedule.now + DRAIN_MAX;
        self.run_until(deadline, |pair| pair.replicas.is_empty());
        assert!(self.replicas.is_empty(), "the replicas do not drain in time");
    }

    /// With a platform that replays missed events, a crash of any replica leaves no gap.
    fn check_gaps(&self) {
        if self.profile == PairFaultProfile::Faulty || self.env.schedule.plan.dialect == ConnectorKind::Notifications {
            return;
        }
        let numbered = self.env.store.log.iter().skip_while(|event| event.sequence.is_none());
        let gaps: Vec<_> = numbered.filter_map(reason).collect();
        assert!(gaps.is_empty(), "gaps although everything was deliverable: {gaps:?}");
    }

    fn run_until(&mut self, end: WorldTime, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let wakes = self.replicas.iter().enumerate();
            let wake = wakes.filter_map(|(index, replica)| Some((replica.process.wakes_at(&self.env)?, index))).min();
            let next = self.env.schedule.next_at().into_iter().chain(wake.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.env.schedule.now = end;
                return;
            };
            self.env.schedule.now = self.env.schedule.now.max(next);
            match wake.filter(|(at, _)| *at <= self.env.schedule.now) {
                Some((_, index)) => self.with(index, ModelProcess::wake),
                None => {
                    if let Some(scheduled) = self.env.schedule.next_due() {
                        self.handle_event(scheduled);
                    }
                }
            }
            self.after_step();
        }
    }

    /// Calls `what` on a process with that process's checker.
    fn with(&mut self, index: usize, what: impl FnOnce(&mut ModelProcess, &mut TestEnvironment)) {
        let PairReplica { process, checker, .. } = &mut self.replicas[index];
        std::mem::swap(checker, &mut self.env.checker);
        what(process, &mut self.env);
        std::mem::swap(checker, &mut self.env.checker);
    }

    fn send_input(&mut self, index: usize, input: Input) {
        self.with(index, |process, env| process.handle_stream_input(input, env));
    }

    fn index_of(&self, incarnation: u32) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.process.incarnation == incarnation)
    }

    fn owner(&self) -> Option<usize> {
        self.index_of(self.env.store.holder)
    }

    /// The replica that is not the owner and never was.
    fn standby(&self) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.process.incarnation > self.env.store.holder)
    }

    fn handle_event(&mut self, scheduled: ScheduledEvent) {
        let TestEnvironment { schedule, platform, .. } = &mut self.env;
        match scheduled {
            ScheduledEvent::StartProcess => self.start(),
            ScheduledEvent::EmitEvents if self.emission_stopped => (),
            ScheduledEvent::EmitEvents => self.env.emit_events(),
            ScheduledEvent::InjectPairFault => {
                if !self.env.schedule.faults_over {
                    self.inject();
                    self.schedule_fault();
                }
            }
            ScheduledEvent::ReadLogEnd => self.follow(),
            ScheduledEvent::TakeOver { incarnation } => self.take_over(incarnation),
            ScheduledEvent::Process { incarnation, input } => self.deliver_input(incarnation, input),
            ScheduledEvent::FrameArrives { socket, what, certain } => {
                if certain || self.env.platform.gets_through(socket) {
                    for index in 0..self.replicas.len() {
                        let what = what.clone();
                        self.with(index, |process, env| process.on_frame(socket, what, env));
                    }
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
            ScheduledEvent::InjectFault(_) => unreachable!("a pair has its own faults"),
        }
    }

    fn deliver_input(&mut self, incarnation: u32, input: ProcessInput) {
        match self.index_of(incarnation) {
            Some(index) => self.with(index, |process, env| process.handle_input(input, env)),
            None => {
                if let ProcessInput::Opened(_, socket) = input {
                    self.env.platform.on_socket_dropped(socket);
                }
            }
        }
    }

    /// Starts a replica: as the owner if there is no other replica, else as a standby.
    fn start(&mut self) {
        if self.emission_stopped || self.replicas.len() > 1 {
            return;
        }
        self.processes_started += 1;
        let incarnation = self.processes_started;
        let alone = self.owner().is_none() && self.standby().is_none();
        self.env.checker = RuleChecker::new();
        let process = if alone {
            self.hold(incarnation);
            ModelProcess::start(incarnation, &mut self.env)
        } else {
            ModelProcess::start_standby(incarnation, &mut self.env)
        };
        let checker = std::mem::replace(&mut self.env.checker, RuleChecker::new());
        self.replicas.push(PairReplica {
            process,
            checker,
            ready: false,
            append_started: None,
            covered: false,
            live_since: None,
            buffered: 0,
        });
    }

    fn hold(&mut self, incarnation: u32) {
        self.env.schedule.trace(|| format!("process {incarnation} owns the log"));
        self.env.store.holder = incarnation;
        self.env.platform.served_incarnation = incarnation;
    }

    fn follow(&mut self) {
        if let Some((index, position)) = self.standby().zip(self.env.store.position()) {
            self.replicas[index].checker.on_log_end_read(position.0);
            self.send_input(index, Input::Follow(position));
        }
        if self.owner().is_none() {
            self.schedule_takeover(1);
        }
        let pause = self.env.schedule.rng.pause(LOG_END_READ_INTERVAL);
        self.env.schedule.after(pause, ScheduledEvent::ReadLogEnd);
    }

    /// The standby takes over the log.
    fn take_over(&mut self, incarnation: u32) {
        self.handover = HandoverPhase::None;
        let Some(index) = self.index_of(incarnation).filter(|_| incarnation > self.env.store.holder) else { return };
        let before = self.owner();
        self.hold(incarnation);
        let opening = self.env.store.opening();
        let PairReplica { process, checker, append_started: begun, covered, .. } = &mut self.replicas[index];
        let (kept, was_ready) = (process.machine.standby_len(), process.machine.is_ready());
        checker.on_takeover(&opening, kept, &self.env.schedule);
        // Trunkline's own entries count, too.
        let log = &self.env.store.log;
        let own = log.iter().filter(|event| event.sequence.is_none() && event.kind.starts_with("trunkline.")).count();
        let from =
            if kept == 0 { begun.unwrap_or(log.len()) } else { log.len().saturating_sub(kept + own + AHEAD_MAX) };
        let stored = if process.machine.compares_with_log() { log[from.min(log.len())..].to_vec() } else { Vec::new() };
        let covered = *covered;
        self.env.schedule.trace(|| format!("{kept} buffered, {} stored, covered: {covered}", stored.len()));
        let PairReplica { checker, live_since, .. } = &self.replicas[index];
        let standing =
            StandbyState { incarnation, live_since: *live_since, buffered: kept, received: &checker.received };
        self.guarantee = StandbyGuarantee::of(&standing, self.profile, &self.env);
        let gaps = checker.gaps;
        self.send_input(index, Input::BecomeOwner { head: opening, stored, covered });
        let PairReplica { process, checker, .. } = &mut self.replicas[index];
        assert!(self.guarantee.is_none() || checker.gaps == gaps, "a gap before the events that a standby buffered");
        if was_ready && !process.machine.is_ready() {
            checker.on_restart();
        }
        if let Some(before) = before {
            let late = self.env.schedule.rng.one_in(2);
            // Otherwise the former owner detects it by its next append.
            if late || self.emission_stopped {
                self.send_input(before, Input::Release);
            }
        }
    }

    /// Updates the replicas after a step: live sessions, the handover, ended replicas.
    fn after_step(&mut self) {
        for replica in &mut self.replicas {
            replica.ready = replica.process.machine.is_ready();
            replica.covered &= replica.ready;
            replica.update(self.env.schedule.now);
            match replica.checker.state {
                StreamState::Live | StreamState::Degraded | StreamState::Recovering | StreamState::Connecting => {
                    replica.append_started.get_or_insert(self.env.store.log.len());
                }
                StreamState::Starting | StreamState::BackingOff | StreamState::Paused | StreamState::Failed => {
                    replica.append_started = None;
                }
            }
        }
        self.hand_over();
        if let Some(owner) = self.owner()
            && self.replicas[owner].process.machine.buffered() == 0
            && let Some(promise) = self.guarantee.take_if(|promise| promise.incarnation == self.env.store.holder)
        {
            promise.assert_stored(&self.env);
        }
        let before = self.replicas.len();
        self.replicas.retain(|replica| !replica.process.drained);
        if self.replicas.len() < before && !self.emission_stopped {
            let pause = self.env.schedule.rng.millis(50..5_000);
            self.env.schedule.after(pause, ScheduledEvent::StartProcess);
        }
    }

    fn hand_over(&mut self) {
        let Some((owner, standby)) = self.owner().zip(self.standby()) else { return };
        let is_ready = self.replicas[standby].ready;
        match self.handover {
            HandoverPhase::None | HandoverPhase::Released => (),
            HandoverPhase::Wanted | HandoverPhase::Requested if !is_ready => self.handover = HandoverPhase::Wanted,
            HandoverPhase::Wanted => {
                self.replicas[owner].process.flushed = false;
                self.handover = HandoverPhase::Requested;
                self.send_input(owner, Input::Flush);
            }
            HandoverPhase::Requested if self.replicas[owner].process.flushed => {
                self.replicas[standby].covered = true;
                self.handover = HandoverPhase::Released;
                let incarnation = self.replicas[standby].process.incarnation;
                let delay = self.env.schedule.rng.millis(0..100);
                self.env.schedule.after(delay, ScheduledEvent::TakeOver { incarnation });
            }
            HandoverPhase::Requested => (),
        }
    }
}
