//! One life of the relay's process: the pure machines, and a shell that carries out what they say.

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
    judge::ReceivedEvents,
    scene::{ProcessInput, ScheduledEvent, SocketId, TokenId, WorldTime},
};

/// A running process.
#[derive(Debug)]
pub(super) struct ModelProcess {
    pub(super) incarnation: u32,
    pub(super) machine: Stream,
    refresh: Refresh,
    /// The newest generation under which a session was live.
    frames_read: u64,
    sockets: BTreeMap<SessionId, OpenSocket>,
    dialling: BTreeSet<SessionId>,
    /// What its successor waits for is durable.
    pub(super) flushed: bool,
    /// Everything is durable, and it may end.
    pub(super) drained: bool,
}

/// The relay's end of a socket, with what arrived and is not read yet.
#[derive(Debug)]
struct OpenSocket {
    id: SocketId,
    inbox: VecDeque<Result<Frame, Failure>>,
    ended: bool,
}

/// One step of the machine leads to no more commands than this.
const OUTPUTS_MAX: usize = 2_000;
/// While frames are there, so many are read before anything else is looked at.
const FRAMES_AT_ONCE: usize = 64;

impl ModelProcess {
    pub(super) fn start(life: u32, around: &mut TestEnvironment) -> Self {
        let opening = around.store.opening();
        around.schedule.trace(|| format!("process {life} starts from {opening:?}"));
        around.checker.on_process_start(&opening);
        let machine = Stream::new(around.schedule.plan.stream.clone(), opening, around.schedule.now());
        Self::run(life, machine, around)
    }

    /// It holds a session for the log of another.
    pub(super) fn start_standby(life: u32, around: &mut TestEnvironment) -> Self {
        around.schedule.trace(|| format!("process {life} stands by"));
        around.checker.on_standby_start();
        let mut machine = Stream::standby(around.schedule.plan.stream.clone(), around.schedule.now());
        if let Some(position) = around.store.position() {
            around.checker.on_log_end_read(position.0.0);
            machine.handle(Input::Follow(position), around.schedule.now());
        }
        Self::run(life, machine, around)
    }

    fn run(life: u32, machine: Stream, around: &mut TestEnvironment) -> Self {
        let mut process = Self {
            incarnation: life,
            machine,
            refresh: Refresh::new(around.schedule.plan.refresh),
            frames_read: 0,
            sockets: BTreeMap::new(),
            dialling: BTreeSet::new(),
            flushed: false,
            drained: false,
        };
        process.refresh.handle(refresh::Input::Start, around.schedule.instant());
        process.drain_outputs(around);
        process
    }

    /// It ends without a word; the platform sees its sockets go.
    pub(super) fn crash(self, around: &mut TestEnvironment) {
        let was_written = around.schedule.rng.one_in(2);
        let from = around.store.log.len();
        around.store.abandon(self.incarnation, was_written);
        around.numbered_check.check_appended(&around.store.log[from..], &around.platform.sent_events, self.incarnation);
        around
            .schedule
            .trace(|| format!("process {} is gone; its last append was written: {was_written}", self.incarnation));
        for open in self.sockets.values() {
            let delay = around.schedule.latency();
            around.schedule.after(delay, ScheduledEvent::SocketDropped(open.id));
        }
    }

    pub(super) fn wakes_at(&self, around: &TestEnvironment) -> Option<WorldTime> {
        let wakes = self.machine.poll_timeout().into_iter().chain(self.refresh.poll_timeout()).min();
        wakes.map(|at| around.schedule.moment_of(at))
    }

    pub(super) fn wake(&mut self, around: &mut TestEnvironment) {
        around.checker.check_wake_up(around.schedule.now);
        let at = around.schedule.instant();
        if self.machine.poll_timeout().is_some_and(|due| at >= due) {
            self.machine.handle_timeout(around.schedule.now());
        }
        self.refresh.handle_timeout(at);
        self.drain_outputs(around);
    }

    pub(super) fn handle_stream_input(&mut self, input: Input, around: &mut TestEnvironment) {
        self.machine.handle(input, around.schedule.now());
        self.drain_outputs(around);
    }

    pub(super) fn request_token(&mut self, around: &mut TestEnvironment) {
        around.checker.on_token_wanted();
        self.refresh.handle(refresh::Input::RefreshRequested, around.schedule.instant());
        self.drain_outputs(around);
    }

    pub(super) fn handle_input(&mut self, news: ProcessInput, around: &mut TestEnvironment) {
        match news {
            ProcessInput::Opened(session, socket) => return self.on_opened(session, socket, around),
            ProcessInput::Refused(session, failure) => {
                if self.dialling.remove(&session) {
                    around.schedule.trace(|| format!("{}: {session:?} is refused: {failure}", self.incarnation));
                    around.checker.on_failure(&failure);
                    self.machine.handle(Input::ConnectFailed { session, failure }, around.schedule.now());
                }
            }
            ProcessInput::Answered(call, answer) => {
                self.machine.handle(Input::Response { call, response: answer }, around.schedule.now());
            }
            ProcessInput::Appended => {
                let from = around.store.log.len();
                let Some(last) = around.store.commit(self.incarnation) else {
                    around.schedule.trace(|| format!("process {} is fenced", self.incarnation));
                    return self.handle_stream_input(Input::Release, around);
                };
                around.checker.check_stored(&around.store);
                around.numbered_check.check_appended(
                    &around.store.log[from..],
                    &around.platform.sent_events,
                    self.incarnation,
                );
                self.machine.handle(Input::Appended(last), around.schedule.now());
            }
            ProcessInput::Granted(answer) => self.on_token_reply(answer, around),
            ProcessInput::Unpaused => self.machine.handle(Input::Resume, around.schedule.now()),
        }
        self.drain_outputs(around);
    }

    fn on_opened(&mut self, session: SessionId, socket: SocketId, around: &mut TestEnvironment) {
        if !self.dialling.remove(&session) {
            let delay = around.schedule.latency();
            return around.schedule.after(delay, ScheduledEvent::SocketDropped(socket));
        }
        self.sockets.insert(session, OpenSocket { id: socket, inbox: VecDeque::new(), ended: false });
        self.handle_stream_input(Input::Opened(session), around);
    }

    /// Something is there to be read.
    pub(super) fn on_frame(&mut self, socket: SocketId, what: Result<Frame, Failure>, around: &mut TestEnvironment) {
        if let Some(open) = self.sockets.values_mut().find(|open| open.id == socket) {
            open.inbox.push_back(what);
        }
        self.drain_outputs(around);
    }

    /// Reads what is wanted and carries out what the machines say, until nothing is left of either.
    fn drain_outputs(&mut self, around: &mut TestEnvironment) {
        loop {
            self.perform_outputs(around);
            around.checker.check_buffer(self.machine.buffered(), &around.schedule.plan);
            if !self.read(around) {
                return;
            }
        }
    }

    /// Whether there was something to read.
    fn read(&mut self, around: &mut TestEnvironment) -> bool {
        for count in 0..FRAMES_AT_ONCE {
            if !self.machine.wants_frames() {
                return count > 0;
            }
            let readable = |(_, open): &(&SessionId, &mut OpenSocket)| !open.ended && !open.inbox.is_empty();
            let Some((session, open)) = self.sockets.iter_mut().find(readable) else { return count > 0 };
            let (session, what) = (*session, open.inbox.pop_front().expect("it is not empty"));
            match what {
                Ok(frame) => {
                    let heard = ReceivedEvents::from_frame(&frame);
                    let owes = around.platform.served_incarnation == 0
                        || around.platform.served_incarnation == self.incarnation;
                    let uids = heard.uids.iter().filter(|_| owes);
                    uids.for_each(|uid| around.platform.sent_events[*uid].mark_received(self.incarnation));
                    around.checker.on_received(&heard, around.schedule.now, around.schedule.wall());
                    self.machine.handle(Input::Frame { session, frame }, around.schedule.now());
                }
                Err(failure) => {
                    open.ended = true;
                    around.schedule.trace(|| format!("{}: {session:?} is closed: {failure}", self.incarnation));
                    around.checker.on_failure(&failure);
                    self.machine.handle(Input::Closed { session, failure }, around.schedule.now());
                }
            }
        }
        true
    }

    fn perform_outputs(&mut self, around: &mut TestEnvironment) {
        let mut outputs = 0;
        loop {
            if let Some(output) = self.machine.poll_output() {
                self.perform(output, around);
            } else if let Some(output) = self.refresh.poll_output() {
                self.perform_token(output, around);
            } else {
                return;
            }
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "the machines never stop wanting things");
        }
    }

    fn perform(&mut self, output: Output, around: &mut TestEnvironment) {
        let life = self.incarnation;
        match output {
            Output::Call { call, generation, request } => {
                if let CallId::Session(session) = call {
                    around.checker.check_token_use(session, generation);
                }
                let token = TokenId { incarnation: life, generation };
                let delay = around.schedule.latency();
                around.schedule.after(delay, ScheduledEvent::Called { incarnation: life, call, request, token });
            }
            Output::Dial { session, generation, dial } => {
                around.checker.check_token_use(session, generation);
                around.checker.check_dial(&dial, &around.schedule);
                self.dialling.insert(session);
                let token = TokenId { incarnation: life, generation };
                let delay = around.schedule.latency();
                around.schedule.after(delay, ScheduledEvent::Dialled { incarnation: life, session, dial, token });
            }
            Output::Probe { session, .. } => self.send(session, around, ScheduledEvent::ProbeReceived),
            Output::Close { session, .. } => {
                if let Some(open) = self.sockets.get(&session) {
                    around.platform.on_close_started(open.id);
                }
                self.send(session, around, ScheduledEvent::CloseReceived);
            }
            Output::DropSocket(session) => {
                self.dialling.remove(&session);
                self.send(session, around, ScheduledEvent::SocketDropped);
                self.sockets.remove(&session);
            }
            Output::Append { events, checkpoint } => self.append(events, checkpoint, around),
            Output::TokenRejected(generation) => {
                around.checker.on_token_refused(generation);
                let carried = generation == self.frames_read;
                self.refresh.handle(refresh::Input::Refused { generation, proven: carried }, around.schedule.instant());
            }
            Output::TokenProven(generation) => self.frames_read = self.frames_read.max(generation),
            Output::Report(report) => {
                around.schedule.trace(|| format!("{life}: {report:?}"));
                around.checker.report(&report, &around.schedule);
            }
            Output::Flushed => self.flushed = true,
            Output::Drained => self.drained = true,
        }
    }

    fn send(&self, session: SessionId, around: &mut TestEnvironment, what: fn(SocketId) -> ScheduledEvent) {
        if let Some(open) = self.sockets.get(&session) {
            let delay = around.schedule.latency();
            around.schedule.after(delay, what(open.id));
        }
    }

    fn append(
        &self,
        events: Vec<trunkline::model::Event>,
        checkpoint: trunkline::model::Checkpoint,
        around: &mut TestEnvironment,
    ) {
        around.schedule.trace(|| format!("{}: append of {} under {checkpoint:?}", self.incarnation, events.len()));
        around.checker.check_append(&checkpoint, around.schedule.wall());
        around.store.start_append(self.incarnation, events, checkpoint);
        let done = around.store.stalls_until.max(around.schedule.now + around.schedule.rng.millis(1..20));
        around
            .schedule
            .at(done, ScheduledEvent::Process { incarnation: self.incarnation, input: ProcessInput::Appended });
    }

    fn perform_token(&mut self, output: refresh::Output, around: &mut TestEnvironment) {
        match output {
            refresh::Output::Fetch => {
                around.checker.on_token_requested(around.schedule.now);
                let failure = around
                    .token_endpoint_failure
                    .filter(|(_, until)| around.schedule.now < *until)
                    .map(|(failure, _)| failure);
                let delay = around.schedule.latency() * 2;
                let answer = failure.map_or(Ok(()), Err);
                around.schedule.after(
                    delay,
                    ScheduledEvent::Process { incarnation: self.incarnation, input: ProcessInput::Granted(answer) },
                );
            }
            refresh::Output::Adopt { generation, .. } => {
                around.schedule.trace(|| format!("{}: token {generation} adopted", self.incarnation));
                self.machine.handle(Input::Token(generation), around.schedule.now());
            }
            refresh::Output::Retry { .. } => (),
            refresh::Output::PauseRequests { .. }
            | refresh::Output::ReadVault
            | refresh::Output::Lock { .. }
            | refresh::Output::Renew { .. }
            | refresh::Output::Release { .. }
            | refresh::Output::Publish { .. } => panic!("a token that is not shared knows no vault"),
        }
    }

    fn on_token_reply(&mut self, answer: Result<(), refresh::GrantFailure>, around: &mut TestEnvironment) {
        let unit = around.schedule.rng.unit();
        let input = match answer {
            Ok(()) => {
                let token = TokenId { incarnation: self.incarnation, generation: self.refresh.generation() + 1 };
                around.platform.issue(token, &mut around.schedule);
                around.checker.on_token_granted(&around.schedule);
                refresh::Input::Granted { lifetime: Some(around.schedule.plan.token_lifetime), repeated: false, unit }
            }
            Err(failure) => refresh::Input::Failed { failure, unit },
        };
        self.refresh.handle(input, around.schedule.instant());
    }
}
