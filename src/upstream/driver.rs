//! Drives the machine of one stream: passes it inputs and executes its outputs.

use std::{mem, sync::Arc, time::Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    in_flight::{InFlight, StreamWorkResult},
    log_access::{AppendRejection, LogAccess, LogClaimResult, RoleStep},
    operator_command::PendingOperatorCommand,
    published_health::PublishedHealth,
    reporter::StreamReporter,
    rest_client::RestClient,
    session_sockets::SessionSockets,
    token_generations::TokenGenerations,
    transport::{Dialler, SocketEvent, UpstreamConnection},
};
use crate::{
    auth::{Token, Tokens},
    clock,
    connector::Failure,
    coordination::LeaseHandle,
    event_log::EventLog,
    model::{Checkpoint, Event, Sequence},
    protocol::{
        Moment,
        session::SessionId,
        stream::{CallId, Input, Output, Stream},
    },
    store::AppendError,
};

/// Frames read in one wakeup before other events are handled.
const FRAMES_PER_WAKEUP_MAX: usize = 64;
/// Available frames read before a timeout is handled. Further frames are read after it.
const FRAMES_BEFORE_TIMEOUT_MAX: usize = 4_096;
/// The work on one stream while this replica is its owner or standby.
pub(super) struct StreamDriver<'a> {
    pub(super) machine: Stream,
    pub(super) log_access: LogAccess,
    pub(super) lease: &'a mut LeaseHandle,
    pub(super) commands: &'a mut mpsc::Receiver<PendingOperatorCommand>,
    pub(super) log: EventLog,
    pub(super) tokens: Tokens,
    pub(super) reporter: Arc<StreamReporter>,
    pub(super) dialler: Dialler,
    pub(super) rest: RestClient,
    pub(super) sockets: SessionSockets,
    pub(super) work: InFlight,
    pub(super) secrets: TokenGenerations,
    /// Receive time of the oldest event that is not durable yet.
    pub(super) oldest_received_at: Option<Instant>,
    pub(super) health: PublishedHealth,
    /// An append was queued and must be polled before the next read.
    pub(super) append_started: bool,
}

/// Why the driver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamRunEnd {
    /// The process ends.
    Stopped,
    /// The role of this replica has changed.
    Released,
}

/// Why the loop woke up.
enum StreamWakeup {
    Stop,
    Role,
    Command(PendingOperatorCommand),
    Token,
    Done(StreamWorkResult),
    Frame(SessionId, Result<SocketEvent, Failure>),
    Timer,
}

impl StreamDriver<'_> {
    /// Runs until the stop signal or a change of role. An owner first makes all received events durable.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<StreamRunEnd> {
        let mut tokens = self.tokens.watch();
        let mut stopping = false;
        self.load_token(&mut tokens);
        loop {
            if self.drain_outputs().await {
                if stopping {
                    return Ok(StreamRunEnd::Stopped);
                }
                if self.on_drained().await {
                    return Ok(StreamRunEnd::Released);
                }
            }
            let wake = self.machine.poll_timeout();
            if wake.is_some_and(|at| clock::now() >= at) {
                self.read_before_timeout().await;
                self.machine.handle_timeout(now());
                continue;
            }
            // Poll a new append once before reading, so that the store works while frames are read.
            let yields_to_append = mem::take(&mut self.append_started);
            let readable = self.machine.wants_frames() && !self.sockets.is_empty() && !self.log_access.is_claiming();
            let reading = readable && !yields_to_append;
            let wakeup = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => StreamWakeup::Stop,
                () = self.lease.changed() => StreamWakeup::Role,
                Some(command) = self.commands.recv() => StreamWakeup::Command(command),
                Ok(()) = tokens.changed() => StreamWakeup::Token,
                Some(result) = self.work.next(), if !self.work.is_empty() => StreamWakeup::Done(result),
                () = tokio::task::yield_now(), if yields_to_append => StreamWakeup::Timer,
                (id, frame) = self.sockets.next(), if reading => StreamWakeup::Frame(id, frame),
                () = self.log_access.follow() => StreamWakeup::Timer,
                () = sleep_until(wake) => StreamWakeup::Timer,
            };
            match wakeup {
                StreamWakeup::Stop => {
                    stopping = true;
                    let input = self.log_access.stop();
                    self.machine.handle(input, now());
                }
                StreamWakeup::Role => self.apply_role(),
                StreamWakeup::Command(command) => self.run_command(command),
                StreamWakeup::Token => self.load_token(&mut tokens),
                StreamWakeup::Done(result) => self.on_work_done(result).await?,
                StreamWakeup::Frame(id, frame) => self.on_frames(id, frame),
                // The loop checks the deadlines itself.
                StreamWakeup::Timer => (),
            }
        }
    }

    /// Executes a command, or answers why it has no effect. A withdrawn command is ignored.
    fn run_command(&mut self, PendingOperatorCommand { command, answer }: PendingOperatorCommand) {
        if answer.is_closed() {
            return;
        }
        let input = Input::from(command);
        let objection = self.machine.objection(&input);
        if objection.is_none() {
            self.machine.handle(input, now());
        }
        // The requester may have timed out.
        answer.send(objection.map_or(Ok(()), Err)).ok();
    }

    /// Reads available frames before a timeout is handled. If this process was paused, frames that arrived in time are
    /// still in the sockets, and the timeout may not apply.
    async fn read_before_timeout(&mut self) {
        if self.sockets.is_empty() || self.log_access.is_claiming() {
            return;
        }
        // The runtime updates socket readiness here.
        tokio::task::yield_now().await;
        for _ in 0..FRAMES_BEFORE_TIMEOUT_MAX {
            if !self.machine.wants_frames() {
                return;
            }
            let Some((id, frame)) = self.sockets.next_now() else { return };
            self.on_frame(id, frame);
        }
    }

    fn load_token(&mut self, tokens: &mut watch::Receiver<Option<Token>>) {
        let Some(token) = tokens.borrow_and_update().clone() else { return };
        let generation = token.generation;
        self.secrets.add(token);
        self.machine.handle(Input::Token(generation), now());
    }

    /// Reads available frames, up to a limit, so that one append covers them.
    fn on_frames(&mut self, id: SessionId, frame: Result<SocketEvent, Failure>) {
        self.on_frame(id, frame);
        for _ in 1..FRAMES_PER_WAKEUP_MAX {
            if !self.machine.wants_frames() {
                return;
            }
            let Some((id, frame)) = self.sockets.next_now() else { return };
            self.on_frame(id, frame);
        }
    }

    fn on_frame(&mut self, session: SessionId, frame: Result<SocketEvent, Failure>) {
        let now = now();
        self.oldest_received_at.get_or_insert(now.at);
        match frame {
            Ok(SocketEvent::PartialFrame) => self.machine.handle(Input::PartialFrame(session), now),
            Ok(SocketEvent::Frame(frame)) => self.machine.handle(Input::Frame { session, frame }, now),
            Err(failure) => {
                self.sockets.mark_ended(session, &failure);
                self.machine.handle(Input::Closed { session, failure }, now);
            }
        }
    }

    async fn on_work_done(&mut self, result: StreamWorkResult) -> anyhow::Result<()> {
        match result {
            StreamWorkResult::Connected(session, dialled) => {
                if self.work.finish_attempt(session) {
                    self.on_connected(session, *dialled);
                }
            }
            StreamWorkResult::Answered(call, answer) => {
                if let CallId::Session(session) = call {
                    self.work.finish_attempt(session);
                }
                self.machine.handle(Input::Response { call, response: answer }, now());
            }
            StreamWorkResult::Appended(Ok(mark)) => self.machine.handle(Input::Appended(mark), now()),
            StreamWorkResult::Appended(Err(error)) => self.on_append_error(error).await?,
            StreamWorkResult::Claimed(claimed) => self.on_claimed(*claimed).await?,
            StreamWorkResult::Position(position) => self.on_log_position(position),
            StreamWorkResult::Finished => (),
        }
        Ok(())
    }

    fn on_connected(&mut self, session: SessionId, dialled: Result<UpstreamConnection, Failure>) {
        match dialled {
            Ok(socket) => {
                self.sockets.add(session, socket);
                self.machine.handle(Input::Opened(session), now());
            }
            Err(failure) => self.machine.handle(Input::ConnectFailed { session, failure }, now()),
        }
    }

    /// Executes all outputs of the machine. True when the machine has drained.
    async fn drain_outputs(&mut self) -> bool {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Call { call, generation, request } => self.call(call, generation, request),
                Output::Dial { session, generation, dial } => self.dial(session, generation, dial),
                Output::Send { session, generation, message } => {
                    let secret = self.secrets.get(generation);
                    if let (Some(socket), Some(secret)) = (self.sockets.get(session), secret) {
                        socket.send_text(message.text(secret.expose())).await;
                    }
                }
                Output::Probe { session, probe } => {
                    if let Some(socket) = self.sockets.get(session) {
                        socket.probe(probe).await;
                    }
                }
                Output::Close { session, code, reason } => {
                    if let Some(socket) = self.sockets.get(session) {
                        socket.close(code, reason).await;
                    }
                }
                Output::DropSocket(session) => self.forget(session),
                Output::Append { events, checkpoint } => self.append(events, checkpoint),
                Output::TokenRejected(generation) => self.tokens.refuse(self.log.name(), generation),
                Output::TokenProven(generation) => self.tokens.record_live(self.log.name(), generation),
                Output::Report(report) => self.reporter.report(report),
                Output::Flushed => self.lease.report_flushed().await,
                Output::Drained => return true,
            }
        }
        let log_error = self.reporter.log_error();
        self.health.publish(&self.machine, log_error, &mut self.log_access, self.lease).await;
        self.reporter.update(&self.machine);
        self.reporter.set_owner(self.log_access.is_owner());
        if self.machine.buffered() == 0 {
            // Frames without events leave nothing to append.
            self.oldest_received_at = None;
        }
        false
    }

    fn call(&mut self, call: CallId, generation: u64, request: crate::connector::RestRequest) {
        let (rest, secret) = (self.rest.clone(), self.secrets.get(generation));
        let calling = async move {
            let answer = match secret {
                Some(secret) => rest.call(request, secret).await,
                None => Err("no token yet".to_owned()),
            };
            StreamWorkResult::Answered(call, answer)
        };
        match call {
            CallId::Session(session) => self.work.start_attempt(session, calling),
            // Not aborted; bounded by the timeout of a REST call.
            CallId::Snapshot(_) => self.work.start(calling),
        }
    }

    fn dial(&mut self, session: SessionId, generation: u64, dial: crate::protocol::session::Dial) {
        let (dialler, secret) = (self.dialler.clone(), self.secrets.get(generation));
        self.work.start_attempt(session, async move {
            let dialled = match secret {
                Some(secret) => dialler.open(dial, secret).await,
                None => Err(Failure::Unreachable("no token yet".to_owned())),
            };
            StreamWorkResult::Connected(session, Box::new(dialled))
        });
    }

    fn forget(&mut self, session: SessionId) {
        self.work.abort(session);
        if let Some((socket, failure)) = self.sockets.remove(session) {
            self.work.start(async move {
                socket.finish(failure).await;
                StreamWorkResult::Finished
            });
        }
    }

    fn append(&mut self, events: Vec<Event>, checkpoint: Checkpoint) {
        let Some(mut appender) = self.log_access.appender() else { return };
        let (reporter, oldest) = (Arc::clone(&self.reporter), self.oldest_received_at.take());
        if self.machine.buffered() > events.len() {
            // Events read after this batch count from now.
            self.oldest_received_at = Some(clock::now());
        }
        self.append_started = true;
        self.work.start(async move {
            let bytes = events.iter().map(|event| event.body.len()).sum();
            let appended = appender.append(&events, checkpoint, &reporter).await;
            if appended.is_ok() && !events.is_empty() {
                reporter.appended(events.len(), bytes, oldest.map(|at| clock::now().saturating_duration_since(at)));
            }
            StreamWorkResult::Appended(appended)
        });
    }

    /// Applies the current role of this replica.
    pub(super) fn apply_role(&mut self) {
        match self.log_access.apply_role(self.lease.role()) {
            Some(RoleStep::Claim(claim)) => {
                let kept = self.machine.compares_with_log().then(|| self.machine.standby_len());
                self.work.start(async move { StreamWorkResult::Claimed(Box::new(claim.run(kept).await)) });
            }
            Some(RoleStep::Handle(input)) => self.machine.handle(input, now()),
            None => (),
        }
    }

    async fn on_claimed(&mut self, claimed: LogClaimResult) -> anyhow::Result<()> {
        match claimed {
            Ok(claimed) => {
                let inputs = self.log_access.become_owner(claimed, self.lease.append_permit());
                inputs.into_iter().flatten().flatten().for_each(|input| self.machine.handle(input, now()));
                Ok(())
            }
            Err(_) if !self.log_access.is_claiming() => Ok(()),
            Err(error) => self.on_append_error(error).await,
        }
    }

    /// Handles a failed append or claim. An error ends the process.
    async fn on_append_error(&mut self, error: AppendError) -> anyhow::Result<()> {
        match self.log_access.on_append_error(error, &self.reporter)? {
            AppendRejection::Ignored => (),
            AppendRejection::Released { fenced } => {
                self.machine.handle(Input::Release, now());
                if let Some(fence) = fenced {
                    self.lease.report_fenced(fence).await;
                }
            }
        }
        Ok(())
    }

    /// Handles a drained machine. True if the driver ends; false if only the ownership was closed.
    async fn on_drained(&mut self) -> bool {
        let closes = self.log_access.close();
        if closes {
            self.lease.report_closed().await;
        }
        !closes
    }

    /// Takes the position of the followed log, from which the next session resumes.
    fn on_log_position(&mut self, position: Option<Sequence>) {
        if self.log_access.is_standby() {
            if let Some(position) = position {
                self.machine.handle(Input::Follow(position), now());
            }
            self.schedule_position_read();
        }
    }

    /// Schedules the next read of the log position.
    pub(super) fn schedule_position_read(&mut self) {
        let reading = self.log_access.read_position(self.machine.feed());
        self.work.start(async move { StreamWorkResult::Position(reading.await) });
    }
}

pub(super) fn now() -> Moment {
    Moment { at: clock::now(), wall: clock::wall(), random: fastrand::f64() }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
