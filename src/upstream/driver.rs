//! The task of one stream: tells its machine what happens, and carries out what it says.

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
    socket::{Dialler, SocketEvent, UpstreamSocket},
};
use crate::{
    auth::{Token, Tokens},
    clock,
    connector::{Failure, RestResponse},
    coordination::LeaseHandle,
    event_log::EventLog,
    model::{Checkpoint, Event, Mark, Position, Secret},
    protocol::{
        Moment,
        session::SessionId,
        stream::{CallId, Input, Output, Stream},
    },
    store::AppendError,
};

/// While frames are there, so many are read before anything else is looked at.
const FRAMES_PER_WAKEUP_MAX: usize = 64;
/// Before a deadline is acted upon, so many frames that are there are read; the rest is read behind it.
const FRAMES_BEFORE_TIMEOUT_MAX: usize = 4_096;
/// Sessions may still be on their way under the token before the newest.
const TOKENS_MAX: usize = 3;

/// One stream's task while it has something to do with the stream.
pub(super) struct StreamDriver<'a> {
    pub(super) machine: Stream,
    pub(super) log_access: LogAccess,
    pub(super) seat: &'a mut LeaseHandle,
    pub(super) commands: &'a mut mpsc::Receiver<PendingOperatorCommand>,
    pub(super) log: EventLog,
    pub(super) tokens: Tokens,
    pub(super) reporter: Arc<StreamReporter>,
    pub(super) dialler: Dialler,
    pub(super) rest: RestClient,
    pub(super) sockets: SessionSockets,
    pub(super) work: FuturesUnordered<StreamWork>,
    /// What a session is waiting for: one call or one dial at a time. Dropping it with the session closes its connection.
    pub(super) attempts: BTreeMap<SessionId, AbortHandle>,
    pub(super) secrets: BTreeMap<u64, Secret>,
    /// When the oldest event that is not durable yet was received.
    pub(super) oldest_received_at: Option<Instant>,
    /// Why the log cannot be used, as the others were told.
    pub(super) published_failure: Option<String>,
    /// Whether the others were told that a session is live.
    pub(super) published_live: bool,
    /// Whether they were told that it does not hear all that is configured. True at first, so that the first word is
    /// about this session and not about one before.
    pub(super) published_degraded: bool,
    /// An append was begun a moment ago, and is not on its way yet.
    pub(super) append_started: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamRunEnd {
    /// The process ends.
    Stopped,
    /// The stream's part is another one now.
    Released,
}

/// Something under way that answers once.
pub(super) type StreamWork = Pin<Box<dyn Future<Output = StreamWorkResult> + Send>>;

/// What came of it.
pub(super) enum StreamWorkResult {
    Connected(SessionId, Box<Result<UpstreamSocket, Failure>>),
    Answered(CallId, Result<RestResponse, String>),
    Appended(Result<Mark, AppendError>),
    /// The log was claimed, or cannot be.
    Claimed(Box<LogClaimResult>),
    /// Where the log of another holder is.
    Position(Option<Position>),
    Finished,
}

/// What the loop was woken by.
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
    /// Runs until the stop signal or until the stream's part is another one, and then until everything that was heard
    /// is durable, where that is this process's to see to.
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
            // The store works while we read on: first it gets what it is to work on.
            let yields_to_append = mem::take(&mut self.append_started);
            let wants = self.machine.wants_frames() && !self.sockets.is_empty() && !self.log_access.is_claiming();
            let reading = wants && !yields_to_append;
            let woken = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => StreamWakeup::Stop,
                () = self.seat.changed() => StreamWakeup::Role,
                Some(asked) = self.commands.recv() => StreamWakeup::Command(asked),
                Ok(()) = tokens.changed() => StreamWakeup::Token,
                Some(done) = self.work.next(), if !self.work.is_empty() => StreamWakeup::Done(done),
                () = tokio::task::yield_now(), if yields_to_append => StreamWakeup::Timer,
                (id, frame) = self.sockets.next(), if reading => StreamWakeup::Frame(id, frame),
                () = self.log_access.follow() => StreamWakeup::Timer,
                () = sleep_until(wake) => StreamWakeup::Timer,
            };
            match woken {
                StreamWakeup::Stop => {
                    stopping = true;
                    self.stop();
                }
                StreamWakeup::Role => self.apply_role(),
                StreamWakeup::Command(asked) => self.run_command(asked),
                StreamWakeup::Token => self.load_token(&mut tokens),
                StreamWakeup::Done(done) => self.on_work_done(done).await?,
                StreamWakeup::Frame(id, frame) => self.on_frames(id, frame),
                // The loop looks at the deadlines itself.
                StreamWakeup::Timer => (),
            }
        }
    }

    /// Does what an operator wants, or says why that would have no effect. What was withdrawn is not done.
    fn run_command(&mut self, PendingOperatorCommand { command: wish, answer }: PendingOperatorCommand) {
        if answer.is_closed() {
            return;
        }
        let wanted = Input::from(wish);
        let objection = self.machine.objection(&wanted);
        if objection.is_none() {
            self.machine.handle(wanted, now());
        }
        // Whoever asked may have gone away meanwhile.
        answer.send(objection.map_or(Ok(()), Err)).ok();
    }

    /// A deadline is over. Where this process was stopped meanwhile, what arrived in time is still in the sockets: it is
    /// read before anybody is judged to be silent or late.
    async fn read_before_timeout(&mut self) {
        if self.sockets.is_empty() || self.log_access.is_claiming() {
            return;
        }
        // The runtime learns here which sockets can be read.
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

    /// The token of a generation; the newest if that one is long gone.
    fn secret(&self, generation: u64) -> Option<Secret> {
        self.secrets.get(&generation).or_else(|| self.secrets.values().next_back()).cloned()
    }

    /// Reads what is there, up to a bound, so that one append covers it.
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

    async fn on_work_done(&mut self, done: StreamWorkResult) -> anyhow::Result<()> {
        match done {
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

    fn on_connected(&mut self, session: SessionId, dialled: Result<UpstreamSocket, Failure>) {
        match dialled {
            Ok(socket) => {
                self.sockets.add(session, socket);
                self.machine.handle(Input::Opened(session), now());
            }
            Err(failure) => self.machine.handle(Input::ConnectFailed { session, failure }, now()),
        }
    }

    /// Carries out everything that the machine wants. True when it is done for good.
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
                Output::Flushed => self.seat.report_flushed().await,
                Output::Drained => return true,
            }
        }
        self.publish_health().await;
        self.reporter.update(&self.machine);
        self.reporter.set_owner(self.log_access.is_owner());
        if self.machine.buffered() == 0 {
            // A heartbeat waits for nothing.
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
            // Bounded by the time that a REST call may take.
            CallId::Snapshot(_) => self.work.push(Box::pin(calling)),
        }
    }

    /// Starts what a session waits for. It is cancelled when the session is forgotten.
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
        let (board, oldest) = (Arc::clone(&self.reporter), self.oldest_received_at.take());
        if self.machine.buffered() > events.len() {
            // What was read behind this batch waits from here on.
            self.oldest_received_at = Some(clock::now());
        }
        self.append_started = true;
        self.work.push(Box::pin(async move {
            let bytes = events.iter().map(|event| event.body.len()).sum();
            let appended = appender.append(&events, checkpoint, &board).await;
            if appended.is_ok() && !events.is_empty() {
                board.appended(events.len(), bytes, oldest.map(|at| clock::now().saturating_duration_since(at)));
            }
            StreamWorkResult::Appended(appended)
        }));
    }

    /// The others are told when a session becomes live, or is no longer.
    async fn publish_health(&mut self) {
        let failed = self.reporter.log_error();
        let live = self.machine.is_ready() && failed.is_none();
        if self.published_failure != failed {
            self.published_failure.clone_from(&failed);
            self.seat.report_failed(failed).await;
        }
        if mem::replace(&mut self.published_live, live) != live {
            if live {
                self.record_live_offset();
            }
            self.seat.report_live(live).await;
        }
        let degraded = self.machine.is_degraded();
        if mem::replace(&mut self.published_degraded, degraded) != degraded {
            self.seat.report_degraded(degraded).await;
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
