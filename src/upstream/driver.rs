//! Drives the machine of one stream: passes it inputs and executes its outputs.

use std::{collections::BTreeMap, future::Future, mem, pin::Pin, sync::Arc, time::Instant};

use futures_util::{
    StreamExt,
    future::{AbortHandle, abortable},
    stream::FuturesUnordered,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    PendingOperatorCommand,
    log_access::{LogAccess, LogClaimResult},
    reporter::StreamReporter,
    rest_client::RestClient,
    session_sockets::SessionSockets,
    transport::{Dialler, SocketEvent, UpstreamConnection},
};
use crate::{
    auth::{Token, Tokens},
    clock,
    connector::{Failure, RestResponse},
    coordination::LeaseHandle,
    event_log::EventLog,
    model::{Checkpoint, Event, Mark, Secret, Sequence},
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
/// Tokens kept: sessions may still connect with the one before the newest.
const TOKENS_MAX: usize = 3;

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
    pub(super) work: FuturesUnordered<StreamWork>,
    /// The call or dial in flight of each session. Aborting it closes its connection.
    pub(super) attempts: BTreeMap<SessionId, AbortHandle>,
    pub(super) secrets: BTreeMap<u64, Secret>,
    /// Receive time of the oldest event that is not durable yet.
    pub(super) oldest_received_at: Option<Instant>,
    /// The log error last published to the other replicas.
    pub(super) published_failure: Option<String>,
    /// Whether this replica last published a live session.
    pub(super) published_live: bool,
    /// Whether this replica last published a degraded session. Initially true, so that a value of an earlier session is
    /// replaced.
    pub(super) published_degraded: bool,
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

/// An operation in flight.
pub(super) type StreamWork = Pin<Box<dyn Future<Output = StreamWorkResult> + Send>>;

/// The result of an operation.
pub(super) enum StreamWorkResult {
    Connected(SessionId, Box<Result<UpstreamConnection, Failure>>),
    Answered(CallId, Result<RestResponse, String>),
    Appended(Result<Mark, AppendError>),
    /// The result of a claim of the log.
    Claimed(Box<LogClaimResult>),
    /// The last number of a log that another replica writes.
    Position(Option<Sequence>),
    Finished,
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
                    self.stop();
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
        let Some(Token { generation, secret }) = tokens.borrow_and_update().clone() else { return };
        self.secrets.insert(generation, secret);
        while self.secrets.len() > TOKENS_MAX {
            self.secrets.pop_first();
        }
        self.machine.handle(Input::Token(generation), now());
    }

    /// The token of a generation; the newest if that one is no longer kept.
    fn secret(&self, generation: u64) -> Option<Secret> {
        self.secrets.get(&generation).or_else(|| self.secrets.values().next_back()).cloned()
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
                if self.attempts.remove(&session).is_some() {
                    self.on_connected(session, *dialled);
                }
            }
            StreamWorkResult::Answered(call, answer) => {
                if let CallId::Session(session) = call {
                    self.attempts.remove(&session);
                }
                self.machine.handle(Input::Response { call, response: answer }, now());
            }
            StreamWorkResult::Appended(Ok(mark)) => self.machine.handle(Input::Appended(mark), now()),
            StreamWorkResult::Appended(Err(error)) => self.on_append_error(error).await?,
            StreamWorkResult::Claimed(claimed) => self.claimed(*claimed).await?,
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
                    let secret = self.secret(generation);
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
        self.publish_health().await;
        self.reporter.update(&self.machine);
        self.reporter.set_owner(self.log_access.is_owner());
        if self.machine.buffered() == 0 {
            // Frames without events leave nothing to append.
            self.oldest_received_at = None;
        }
        false
    }

    fn call(&mut self, call: CallId, generation: u64, request: crate::connector::RestRequest) {
        let (rest, secret) = (self.rest.clone(), self.secret(generation));
        let calling = async move {
            let answer = match secret {
                Some(secret) => rest.call(request, secret).await,
                None => Err("no token yet".to_owned()),
            };
            StreamWorkResult::Answered(call, answer)
        };
        match call {
            CallId::Session(session) => self.start_attempt(session, calling),
            // Not aborted; bounded by the timeout of a REST call.
            CallId::Snapshot(_) => self.work.push(Box::pin(calling)),
        }
    }

    /// Starts an operation of a session. It is aborted when the socket of the session is dropped.
    fn start_attempt(&mut self, session: SessionId, work: impl Future<Output = StreamWorkResult> + Send + 'static) {
        let (work, handle) = abortable(work);
        self.attempts.insert(session, handle);
        self.work.push(Box::pin(async move { work.await.unwrap_or(StreamWorkResult::Finished) }));
    }

    fn dial(&mut self, session: SessionId, generation: u64, dial: crate::protocol::session::Dial) {
        let (dialler, secret) = (self.dialler.clone(), self.secret(generation));
        self.start_attempt(session, async move {
            let dialled = match secret {
                Some(secret) => dialler.open(dial, secret).await,
                None => Err(Failure::Unreachable("no token yet".to_owned())),
            };
            StreamWorkResult::Connected(session, Box::new(dialled))
        });
    }

    fn forget(&mut self, session: SessionId) {
        if let Some(attempt) = self.attempts.remove(&session) {
            attempt.abort();
        }
        if let Some((socket, failure)) = self.sockets.remove(session) {
            self.work.push(Box::pin(async move {
                socket.finish(failure).await;
                StreamWorkResult::Finished
            }));
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
        self.work.push(Box::pin(async move {
            let bytes = events.iter().map(|event| event.body.len()).sum();
            let appended = appender.append(&events, checkpoint, &reporter).await;
            if appended.is_ok() && !events.is_empty() {
                reporter.appended(events.len(), bytes, oldest.map(|at| clock::now().saturating_duration_since(at)));
            }
            StreamWorkResult::Appended(appended)
        }));
    }

    /// Publishes changes of health to the other replicas: live, degraded, log error.
    async fn publish_health(&mut self) {
        let failed = self.reporter.log_error();
        let live = self.machine.is_ready() && failed.is_none();
        if self.published_failure != failed {
            self.published_failure.clone_from(&failed);
            self.lease.report_failed(failed).await;
        }
        if mem::replace(&mut self.published_live, live) != live {
            if live {
                self.record_live_offset();
            }
            self.lease.report_live(live).await;
        }
        let degraded = self.machine.is_degraded();
        if mem::replace(&mut self.published_degraded, degraded) != degraded {
            self.lease.report_degraded(degraded).await;
        }
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
