//! One model process: the pure machines, and a shell that executes their outputs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trunkline::{
    connector::{Failure, Frame},
    protocol::{
        refresh::{self, Refresh},
        session::SessionId,
        stream::{CallId, Input, Output, Stream},
    },
};

use super::{
    TestEnvironment,
    checker::ReceivedEvents,
    schedule::{ProcessInput, ScheduledEvent, SocketId, TokenId, WorldTime},
};

/// A running process.
#[derive(Debug)]
pub(super) struct ModelProcess {
    pub(super) incarnation: u32,
    pub(super) machine: Stream,
    refresh: Refresh,
    /// The newest token generation with which a session was live.
    frames_read: u64,
    sockets: BTreeMap<SessionId, OpenSocket>,
    dialling: BTreeSet<SessionId>,
    /// The flush for a handover is complete.
    pub(super) flushed: bool,
    /// The drain is complete.
    pub(super) drained: bool,
}

/// The relay's end of a socket, with its unread frames.
#[derive(Debug)]
struct OpenSocket {
    id: SocketId,
    inbox: VecDeque<Result<Frame, Failure>>,
    ended: bool,
}

/// Limit of outputs of one step.
const OUTPUTS_MAX: usize = 2_000;
/// Number of frames to read before other work.
const FRAMES_AT_ONCE: usize = 64;

impl ModelProcess {
    pub(super) fn start(incarnation: u32, env: &mut TestEnvironment) -> Self {
        let opening = env.store.opening();
        env.schedule.trace(|| format!("process {incarnation} starts from {opening:?}"));
        env.checker.on_process_start(&opening);
        let machine = Stream::new(env.schedule.plan.stream.clone(), opening, env.schedule.now());
        Self::run(incarnation, machine, env)
    }

    /// Starts a standby.
    pub(super) fn start_standby(incarnation: u32, env: &mut TestEnvironment) -> Self {
        env.schedule.trace(|| format!("process {incarnation} stands by"));
        env.checker.on_standby_start();
        let mut machine = Stream::standby(env.schedule.plan.stream.clone(), env.schedule.now());
        if let Some(position) = env.store.position() {
            env.checker.on_log_end_read(position.0);
            machine.handle(Input::Follow(position), env.schedule.now());
        }
        Self::run(incarnation, machine, env)
    }

    fn run(incarnation: u32, machine: Stream, env: &mut TestEnvironment) -> Self {
        let mut process = Self {
            incarnation,
            machine,
            refresh: Refresh::new(env.schedule.plan.refresh),
            frames_read: 0,
            sockets: BTreeMap::new(),
            dialling: BTreeSet::new(),
            flushed: false,
            drained: false,
        };
        process.refresh.handle(refresh::Input::Start, env.schedule.instant());
        process.drain_outputs(env);
        process
    }

    /// Ends without a drain; the platform sees that the sockets close.
    pub(super) fn crash(self, env: &mut TestEnvironment) {
        let was_written = env.schedule.rng.one_in(2);
        let from = env.store.log.len();
        env.store.abandon(self.incarnation, was_written);
        env.numbered_check.check_appended(&env.store.log[from..], &env.platform.sent_events, self.incarnation);
        env.schedule
            .trace(|| format!("process {} crashed; its last append was written: {was_written}", self.incarnation));
        for open in self.sockets.values() {
            let delay = env.schedule.latency();
            env.schedule.after(delay, ScheduledEvent::SocketDropped(open.id));
        }
    }

    pub(super) fn wakes_at(&self, env: &TestEnvironment) -> Option<WorldTime> {
        let wakes = self.machine.poll_timeout().into_iter().chain(self.refresh.poll_timeout()).min();
        wakes.map(|at| env.schedule.moment_of(at))
    }

    pub(super) fn wake(&mut self, env: &mut TestEnvironment) {
        env.checker.check_wake_up(env.schedule.now);
        let at = env.schedule.instant();
        if self.machine.poll_timeout().is_some_and(|due| at >= due) {
            self.machine.handle_timeout(env.schedule.now());
        }
        self.refresh.handle_timeout(at);
        self.drain_outputs(env);
    }

    pub(super) fn handle_stream_input(&mut self, input: Input, env: &mut TestEnvironment) {
        self.machine.handle(input, env.schedule.now());
        self.drain_outputs(env);
    }

    pub(super) fn request_token(&mut self, env: &mut TestEnvironment) {
        env.checker.on_token_wanted();
        self.refresh.handle(refresh::Input::RefreshRequested, env.schedule.instant());
        self.drain_outputs(env);
    }

    pub(super) fn handle_input(&mut self, input: ProcessInput, env: &mut TestEnvironment) {
        match input {
            ProcessInput::Opened(session, socket) => return self.on_opened(session, socket, env),
            ProcessInput::Refused(session, failure) => {
                if self.dialling.remove(&session) {
                    env.schedule.trace(|| format!("{}: {session:?} is refused: {failure}", self.incarnation));
                    env.checker.on_failure(&failure);
                    self.machine.handle(Input::ConnectFailed { session, failure }, env.schedule.now());
                }
            }
            ProcessInput::Answered(call, reply) => {
                self.machine.handle(Input::Response { call, response: reply }, env.schedule.now());
            }
            ProcessInput::Appended => {
                let from = env.store.log.len();
                let Some(last) = env.store.commit(self.incarnation) else {
                    env.schedule.trace(|| format!("process {} is fenced", self.incarnation));
                    return self.handle_stream_input(Input::Release, env);
                };
                env.checker.check_stored(&env.store);
                env.numbered_check.check_appended(&env.store.log[from..], &env.platform.sent_events, self.incarnation);
                self.machine.handle(Input::Appended(last), env.schedule.now());
            }
            ProcessInput::Granted(reply) => self.on_token_reply(reply, env),
            ProcessInput::Unpaused => self.machine.handle(Input::Resume, env.schedule.now()),
        }
        self.drain_outputs(env);
    }

    fn on_opened(&mut self, session: SessionId, socket: SocketId, env: &mut TestEnvironment) {
        if !self.dialling.remove(&session) {
            let delay = env.schedule.latency();
            return env.schedule.after(delay, ScheduledEvent::SocketDropped(socket));
        }
        self.sockets.insert(session, OpenSocket { id: socket, inbox: VecDeque::new(), ended: false });
        self.handle_stream_input(Input::Opened(session), env);
    }

    /// A frame or the end of a socket arrives.
    pub(super) fn on_frame(&mut self, socket: SocketId, what: Result<Frame, Failure>, env: &mut TestEnvironment) {
        if let Some(open) = self.sockets.values_mut().find(|open| open.id == socket) {
            open.inbox.push_back(what);
        }
        self.drain_outputs(env);
    }

    /// Reads frames and executes outputs until neither is left.
    fn drain_outputs(&mut self, env: &mut TestEnvironment) {
        loop {
            self.perform_outputs(env);
            env.checker.check_buffer(self.machine.buffered(), &env.schedule.plan);
            if !self.read(env) {
                return;
            }
        }
    }

    /// Reads frames. Returns whether there were any.
    fn read(&mut self, env: &mut TestEnvironment) -> bool {
        for count in 0..FRAMES_AT_ONCE {
            if !self.machine.wants_frames() {
                return count > 0;
            }
            let readable = |(_, open): &(&SessionId, &mut OpenSocket)| !open.ended && !open.inbox.is_empty();
            let Some((session, open)) = self.sockets.iter_mut().find(readable) else { return count > 0 };
            let (session, what) = (*session, open.inbox.pop_front().expect("it is not empty"));
            match what {
                Ok(frame) => {
                    let received = ReceivedEvents::from_frame(&frame);
                    let due =
                        env.platform.served_incarnation == 0 || env.platform.served_incarnation == self.incarnation;
                    let uids = received.uids.iter().filter(|_| due);
                    uids.for_each(|uid| env.platform.sent_events[*uid].mark_received(self.incarnation));
                    env.checker.on_received(&received, env.schedule.now, env.schedule.wall());
                    self.machine.handle(Input::Frame { session, frame }, env.schedule.now());
                }
                Err(failure) => {
                    open.ended = true;
                    env.schedule.trace(|| format!("{}: {session:?} is closed: {failure}", self.incarnation));
                    env.checker.on_failure(&failure);
                    self.machine.handle(Input::Closed { session, failure }, env.schedule.now());
                }
            }
        }
        true
    }

    fn perform_outputs(&mut self, env: &mut TestEnvironment) {
        let mut outputs = 0;
        loop {
            if let Some(output) = self.machine.poll_output() {
                self.perform(output, env);
            } else if let Some(output) = self.refresh.poll_output() {
                self.perform_token(output, env);
            } else {
                return;
            }
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "the machines produce outputs without end");
        }
    }

    fn perform(&mut self, output: Output, env: &mut TestEnvironment) {
        let incarnation = self.incarnation;
        match output {
            Output::Call { call, generation, request } => {
                if let CallId::Session(session) = call {
                    env.checker.check_token_use(session, generation);
                }
                let token = TokenId { incarnation, generation };
                let delay = env.schedule.latency();
                env.schedule.after(delay, ScheduledEvent::Called { incarnation, call, request, token });
            }
            Output::Dial { session, generation, dial } => {
                env.checker.check_token_use(session, generation);
                env.checker.check_dial(&dial, &env.schedule);
                self.dialling.insert(session);
                let token = TokenId { incarnation, generation };
                let delay = env.schedule.latency();
                env.schedule.after(delay, ScheduledEvent::Dialled { incarnation, session, dial, token });
            }
            Output::Send { message, .. } => unreachable!("no connector of the world sends {message:?}"),
            Output::Probe { session, .. } => self.send(session, env, ScheduledEvent::ProbeReceived),
            Output::Close { session, .. } => {
                if let Some(open) = self.sockets.get(&session) {
                    env.platform.on_close_started(open.id);
                }
                self.send(session, env, ScheduledEvent::CloseReceived);
            }
            Output::DropSocket(session) => {
                self.dialling.remove(&session);
                self.send(session, env, ScheduledEvent::SocketDropped);
                self.sockets.remove(&session);
            }
            Output::Append { events, checkpoint } => self.append(events, checkpoint, env),
            Output::TokenRejected(generation) => {
                env.checker.on_token_refused(generation);
                let carried = generation == self.frames_read;
                self.refresh.handle(refresh::Input::Refused { generation, proven: carried }, env.schedule.instant());
            }
            Output::TokenProven(generation) => self.frames_read = self.frames_read.max(generation),
            Output::Report(report) => {
                env.schedule.trace(|| format!("{incarnation}: {report:?}"));
                env.checker.report(&report, &env.schedule);
            }
            Output::Flushed => self.flushed = true,
            Output::Drained => self.drained = true,
        }
    }

    fn send(&self, session: SessionId, env: &mut TestEnvironment, what: fn(SocketId) -> ScheduledEvent) {
        if let Some(open) = self.sockets.get(&session) {
            let delay = env.schedule.latency();
            env.schedule.after(delay, what(open.id));
        }
    }

    fn append(
        &self,
        events: Vec<trunkline::model::Event>,
        checkpoint: trunkline::model::Checkpoint,
        env: &mut TestEnvironment,
    ) {
        env.schedule.trace(|| format!("{}: append of {} under {checkpoint:?}", self.incarnation, events.len()));
        env.checker.check_append(&checkpoint, env.schedule.wall());
        env.store.start_append(self.incarnation, events, checkpoint);
        let done = env.store.stalls_until.max(env.schedule.now + env.schedule.rng.millis(1..20));
        env.schedule.at(done, ScheduledEvent::Process { incarnation: self.incarnation, input: ProcessInput::Appended });
    }

    fn perform_token(&mut self, output: refresh::Output, env: &mut TestEnvironment) {
        match output {
            refresh::Output::Fetch => {
                env.checker.on_token_requested(env.schedule.now);
                let failure = env
                    .token_endpoint_failure
                    .filter(|(_, until)| env.schedule.now < *until)
                    .map(|(failure, _)| failure);
                let delay = env.schedule.latency() * 2;
                let reply = failure.map_or(Ok(()), Err);
                env.schedule.after(
                    delay,
                    ScheduledEvent::Process { incarnation: self.incarnation, input: ProcessInput::Granted(reply) },
                );
            }
            refresh::Output::Adopt { generation, .. } => {
                env.schedule.trace(|| format!("{}: token {generation} adopted", self.incarnation));
                self.machine.handle(Input::Token(generation), env.schedule.now());
            }
            refresh::Output::Retry { .. } => (),
            refresh::Output::PauseRequests { .. }
            | refresh::Output::ReadVault
            | refresh::Output::Lock { .. }
            | refresh::Output::Renew { .. }
            | refresh::Output::Release { .. }
            | refresh::Output::Publish { .. } => panic!("an unshared token uses no vault"),
        }
    }

    fn on_token_reply(&mut self, reply: Result<(), refresh::GrantFailure>, env: &mut TestEnvironment) {
        let unit = env.schedule.rng.unit();
        let input = match reply {
            Ok(()) => {
                let token = TokenId { incarnation: self.incarnation, generation: self.refresh.generation() + 1 };
                env.platform.issue(token, &mut env.schedule);
                env.checker.on_token_granted(&env.schedule);
                refresh::Input::Granted { lifetime: Some(env.schedule.plan.token_lifetime), repeated: false, unit }
            }
            Err(failure) => refresh::Input::Failed { failure, unit },
        };
        self.refresh.handle(input, env.schedule.instant());
    }
}
