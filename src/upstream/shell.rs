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
    Asked,
    board::Board,
    holding::{Claimed, Holding},
    rest::Rest,
    socket::{Brought, Dialler, Socket},
    sockets::Sockets,
};
use crate::{
    auth::{Token, Tokens},
    clock,
    connector::{Answer, Failure},
    event_log::EventLog,
    model::{Checkpoint, Event, Mark, Position, Secret},
    protocol::{
        Now,
        session::SessionId,
        stream::{CallId, Input, Output, Stream},
    },
    replica::Seat,
    store::AppendError,
};

/// While frames are there, so many are read before anything else is looked at.
const FRAMES_AT_ONCE: usize = 64;
/// Before a deadline is acted upon, so many frames that are there are read; the rest is read behind it.
const FRAMES_BEFORE_TIMEOUT_MAX: usize = 4_096;
/// Sessions may still be on their way under the token before the newest.
const TOKENS_KEPT: usize = 3;

/// One stream's task while it has something to do with the stream.
pub(super) struct Shell<'a> {
    pub(super) machine: Stream,
    pub(super) holding: Holding,
    pub(super) seat: &'a mut Seat,
    pub(super) wishes: &'a mut mpsc::Receiver<Asked>,
    pub(super) log: EventLog,
    pub(super) tokens: Tokens,
    pub(super) board: Arc<Board>,
    pub(super) dialler: Dialler,
    pub(super) rest: Rest,
    pub(super) sockets: Sockets,
    pub(super) work: FuturesUnordered<Work>,
    /// What a session is waiting for: one call or one dial at a time. Dropping it with the session closes its connection.
    pub(super) attempts: BTreeMap<SessionId, AbortHandle>,
    pub(super) secrets: BTreeMap<u64, Secret>,
    /// When the oldest event that is not durable yet was received.
    pub(super) oldest: Option<Instant>,
    /// Why the log cannot be used, as the others were told.
    pub(super) told_failed: Option<String>,
    /// Whether the others were told that a session is live.
    pub(super) told_live: bool,
    /// Whether they were told that it does not hear all that is configured. True at first, so that the first word is
    /// about this session and not about one before.
    pub(super) told_degraded: bool,
    /// An append was begun a moment ago, and is not on its way yet.
    pub(super) has_begun_append: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process ends.
    Stopped,
    /// The stream's part is another one now.
    Released,
}

/// Something under way that answers once.
pub(super) type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What came of it.
pub(super) enum Done {
    Dialled(SessionId, Box<Result<Socket, Failure>>),
    Answered(CallId, Result<Answer, String>),
    Appended(Result<Mark, AppendError>),
    /// The log was claimed, or cannot be.
    Claimed(Box<Claimed>),
    /// Where the log of another holder is.
    Position(Option<Position>),
    Finished,
}

/// What the loop was woken by.
enum Woken {
    Stop,
    Part,
    Wish(Asked),
    Token,
    Done(Done),
    Frame(SessionId, Result<Brought, Failure>),
    Timer,
}

impl Shell<'_> {
    /// Runs until the stop signal or until the stream's part is another one, and then until everything that was heard
    /// is durable, where that is this process's to see to.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<Ended> {
        let mut tokens = self.tokens.watch();
        let mut stopping = false;
        self.take_token(&mut tokens);
        loop {
            if self.carry_out().await {
                if stopping {
                    return Ok(Ended::Stopped);
                }
                if self.has_ended().await {
                    return Ok(Ended::Released);
                }
            }
            let wake = self.machine.poll_timeout();
            if wake.is_some_and(|at| clock::now() >= at) {
                self.read_before_timeout().await;
                self.machine.handle_timeout(now());
                continue;
            }
            // The store works while we read on: first it gets what it is to work on.
            let giving = mem::take(&mut self.has_begun_append);
            let wants = self.machine.wants_frames() && !self.sockets.is_empty() && !self.holding.is_claiming();
            let reading = wants && !giving;
            let woken = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => Woken::Stop,
                () = self.seat.changed() => Woken::Part,
                Some(asked) = self.wishes.recv() => Woken::Wish(asked),
                Ok(()) = tokens.changed() => Woken::Token,
                Some(done) = self.work.next(), if !self.work.is_empty() => Woken::Done(done),
                () = tokio::task::yield_now(), if giving => Woken::Timer,
                (id, frame) = self.sockets.next(), if reading => Woken::Frame(id, frame),
                () = self.holding.follow() => Woken::Timer,
                () = sleep_until(wake) => Woken::Timer,
            };
            match woken {
                Woken::Stop => {
                    stopping = true;
                    self.stop();
                }
                Woken::Part => self.take_part(),
                Woken::Wish(asked) => self.obey(asked),
                Woken::Token => self.take_token(&mut tokens),
                Woken::Done(done) => self.done(done).await?,
                Woken::Frame(id, frame) => self.frames(id, frame),
                // The loop looks at the deadlines itself.
                Woken::Timer => (),
            }
        }
    }

    /// Does what an operator wants, or says why that would have no effect. What was withdrawn is not done.
    fn obey(&mut self, Asked { wish, answer }: Asked) {
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
        if self.sockets.is_empty() || self.holding.is_claiming() {
            return;
        }
        // The runtime learns here which sockets can be read.
        tokio::task::yield_now().await;
        for _ in 0..FRAMES_BEFORE_TIMEOUT_MAX {
            if !self.machine.wants_frames() {
                return;
            }
            let Some((id, frame)) = self.sockets.next_now() else { return };
            self.frame(id, frame);
        }
    }

    fn take_token(&mut self, tokens: &mut watch::Receiver<Option<Token>>) {
        let Some(Token { generation, secret }) = tokens.borrow_and_update().clone() else { return };
        self.secrets.insert(generation, secret);
        while self.secrets.len() > TOKENS_KEPT {
            self.secrets.pop_first();
        }
        self.machine.handle(Input::Token(generation), now());
    }

    /// The token of a generation; the newest if that one is long gone.
    fn secret(&self, generation: u64) -> Option<Secret> {
        self.secrets.get(&generation).or_else(|| self.secrets.values().next_back()).cloned()
    }

    /// Reads what is there, up to a bound, so that one append covers it.
    fn frames(&mut self, id: SessionId, frame: Result<Brought, Failure>) {
        self.frame(id, frame);
        for _ in 1..FRAMES_AT_ONCE {
            if !self.machine.wants_frames() {
                return;
            }
            let Some((id, frame)) = self.sockets.next_now() else { return };
            self.frame(id, frame);
        }
    }

    fn frame(&mut self, session: SessionId, frame: Result<Brought, Failure>) {
        let now = now();
        self.oldest.get_or_insert(now.at);
        match frame {
            Ok(Brought::Beginning) => self.machine.handle(Input::Begun(session), now),
            Ok(Brought::Frame(frame)) => self.machine.handle(Input::Frame { session, frame }, now),
            Err(failure) => {
                self.sockets.ended(session, &failure);
                self.machine.handle(Input::Closed { session, failure }, now);
            }
        }
    }

    async fn done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Dialled(session, dialled) => {
                if self.attempts.remove(&session).is_some() {
                    self.dialled(session, *dialled);
                }
            }
            Done::Answered(call, answer) => {
                if let CallId::Session(session) = call {
                    self.attempts.remove(&session);
                }
                self.machine.handle(Input::Answered { call, answer }, now());
            }
            Done::Appended(Ok(mark)) => self.machine.handle(Input::Appended(mark), now()),
            Done::Appended(Err(error)) => self.lost_log(error).await?,
            Done::Claimed(claimed) => self.claimed(*claimed).await?,
            Done::Position(position) => self.log_is_at(position),
            Done::Finished => (),
        }
        Ok(())
    }

    fn dialled(&mut self, session: SessionId, dialled: Result<Socket, Failure>) {
        match dialled {
            Ok(socket) => {
                self.sockets.add(session, socket);
                self.machine.handle(Input::Opened(session), now());
            }
            Err(failure) => self.machine.handle(Input::Refused { session, failure }, now()),
        }
    }

    /// Carries out everything that the machine wants. True when it is done for good.
    async fn carry_out(&mut self) -> bool {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Call { call, generation, request } => self.call(call, generation, request),
                Output::Dial { session, generation, dial } => self.dial(session, generation, dial),
                Output::Probe { session, probe } => {
                    if let Some(socket) = self.sockets.get(session) {
                        socket.probe(probe).await;
                    }
                }
                Output::Leave { session, code, reason } => {
                    if let Some(socket) = self.sockets.get(session) {
                        socket.leave(code, reason).await;
                    }
                }
                Output::Forget(session) => self.forget(session),
                Output::Append { events, checkpoint } => self.append(events, checkpoint),
                Output::RefuseToken(generation) => self.tokens.refuse(self.log.name(), generation),
                Output::TokenCarried(generation) => self.tokens.carried(self.log.name(), generation),
                Output::Report(report) => self.board.report(report),
                Output::Flushed => self.seat.say_flushed().await,
                Output::Drained => return true,
            }
        }
        self.tell_live().await;
        self.board.update(&self.machine);
        self.board.owned(self.holding.is_owning());
        if self.machine.buffered() == 0 {
            // A heartbeat waits for nothing.
            self.oldest = None;
        }
        false
    }

    fn call(&mut self, call: CallId, generation: u64, request: crate::connector::Request) {
        let (rest, secret) = (self.rest.clone(), self.secret(generation));
        let calling = async move {
            let answer = match secret {
                Some(secret) => rest.call(request, secret).await,
                None => Err("there is no token".to_owned()),
            };
            Done::Answered(call, answer)
        };
        match call {
            CallId::Session(session) => self.attempt(session, calling),
            // Bounded by the time that a REST call may take.
            CallId::Snapshot(_) => self.work.push(Box::pin(calling)),
        }
    }

    /// Starts what a session waits for. It is cancelled when the session is forgotten.
    fn attempt(&mut self, session: SessionId, work: impl Future<Output = Done> + Send + 'static) {
        let (work, handle) = abortable(work);
        self.attempts.insert(session, handle);
        self.work.push(Box::pin(async move { work.await.unwrap_or(Done::Finished) }));
    }

    fn dial(&mut self, session: SessionId, generation: u64, dial: crate::protocol::session::Dial) {
        let (dialler, secret) = (self.dialler.clone(), self.secret(generation));
        self.attempt(session, async move {
            let dialled = match secret {
                Some(secret) => dialler.open(dial, secret).await,
                None => Err(Failure::Unreachable("there is no token".to_owned())),
            };
            Done::Dialled(session, Box::new(dialled))
        });
    }

    fn forget(&mut self, session: SessionId) {
        if let Some(attempt) = self.attempts.remove(&session) {
            attempt.abort();
        }
        if let Some((socket, failure)) = self.sockets.remove(session) {
            self.work.push(Box::pin(async move {
                socket.finish(failure).await;
                Done::Finished
            }));
        }
    }

    fn append(&mut self, events: Vec<Event>, checkpoint: Checkpoint) {
        let Some(mut appender) = self.holding.appender() else { return };
        let (board, oldest) = (Arc::clone(&self.board), self.oldest.take());
        if self.machine.buffered() > events.len() {
            // What was read behind this batch waits from here on.
            self.oldest = Some(clock::now());
        }
        self.has_begun_append = true;
        self.work.push(Box::pin(async move {
            let bytes = events.iter().map(|event| event.body.len()).sum();
            let appended = appender.append(&events, checkpoint, &board).await;
            if appended.is_ok() && !events.is_empty() {
                board.appended(events.len(), bytes, oldest.map(|at| clock::now().saturating_duration_since(at)));
            }
            Done::Appended(appended)
        }));
    }

    /// The others are told when a session becomes live, or is no longer.
    async fn tell_live(&mut self) {
        let failed = self.board.refused_log();
        let live = self.machine.is_ready() && failed.is_none();
        if self.told_failed != failed {
            self.told_failed.clone_from(&failed);
            self.seat.say_failed(failed).await;
        }
        if mem::replace(&mut self.told_live, live) != live {
            if live {
                self.note_live();
            }
            self.seat.say_live(live).await;
        }
        let degraded = self.machine.is_degraded();
        if mem::replace(&mut self.told_degraded, degraded) != degraded {
            self.seat.say_degraded(degraded).await;
        }
    }
}

pub(super) fn now() -> Now {
    Now { at: clock::now(), wall: clock::wall(), unit: fastrand::f64() }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
