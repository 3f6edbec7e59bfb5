//! The task of one stream: tells its machine what happens, and carries out what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Wish,
    board::Board,
    rest::Rest,
    socket::{Brought, Dialler, Socket},
};
use crate::{
    auth::{Token, Tokens},
    clock,
    connector::{Answer, Failure},
    event_log::Writer,
    model::{Checkpoint, Event, Mark, Secret},
    protocol::{
        Now,
        session::SessionId,
        stream::{CallId, Input, Output, Stream},
    },
    store::AppendError,
};

/// While frames are there, so many are read before anything else is looked at.
const FRAMES_AT_ONCE: usize = 64;
/// Sessions may still be on their way under the token before the newest.
const TOKENS_KEPT: usize = 3;
/// A store without room is asked again after this time.
const NO_ROOM_WAIT: Duration = Duration::from_secs(1);

/// One stream's task.
pub(super) struct Shell {
    pub(super) machine: Stream,
    pub(super) writer: Arc<Writer>,
    pub(super) tokens: Tokens,
    pub(super) wishes: mpsc::Receiver<Wish>,
    pub(super) board: Arc<Board>,
    pub(super) dialler: Dialler,
    pub(super) rest: Rest,
    pub(super) sockets: Sockets,
    pub(super) work: FuturesUnordered<Work>,
    pub(super) dialling: BTreeSet<SessionId>,
    pub(super) secrets: BTreeMap<u64, Secret>,
    /// When the oldest event that is not durable yet was received.
    pub(super) oldest: Option<Instant>,
}

/// Something under way that answers once.
pub(super) type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What came of it.
pub(super) enum Done {
    Dialled(SessionId, Box<Result<Socket, Failure>>),
    Answered(CallId, Result<Answer, String>),
    Appended(Result<Mark, AppendError>),
    Finished,
}

/// What the loop was woken by.
enum Woken {
    Stop,
    Wish(Wish),
    Token,
    Done(Done),
    Frame(SessionId, Result<Brought, Failure>),
    Timer,
}

impl Shell {
    /// Runs until the stop signal, and then until everything that was heard is durable.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tokens = self.tokens.watch();
        let mut stopping = false;
        self.take_token(&mut tokens);
        loop {
            if self.carry_out().await {
                return Ok(());
            }
            let wake = self.machine.poll_timeout();
            if wake.is_some_and(|at| clock::now() >= at) {
                self.machine.handle_timeout(now());
                continue;
            }
            let reading = self.machine.wants_frames() && !self.sockets.0.is_empty();
            let woken = tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => Woken::Stop,
                Some(wish) = self.wishes.recv() => Woken::Wish(wish),
                Ok(()) = tokens.changed() => Woken::Token,
                Some(done) = self.work.next(), if !self.work.is_empty() => Woken::Done(done),
                (id, frame) = self.sockets.next(), if reading => Woken::Frame(id, frame),
                () = sleep_until(wake) => Woken::Timer,
            };
            match woken {
                Woken::Stop => {
                    stopping = true;
                    self.machine.handle(Input::Drain, now());
                }
                Woken::Wish(wish) => self.machine.handle(wish.into(), now()),
                Woken::Token => self.take_token(&mut tokens),
                Woken::Done(done) => self.done(done)?,
                Woken::Frame(id, frame) => self.frames(id, frame),
                Woken::Timer => self.machine.handle_timeout(now()),
            }
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

    fn done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Dialled(session, dialled) => {
                if self.dialling.remove(&session) {
                    self.dialled(session, *dialled);
                }
            }
            Done::Answered(call, answer) => self.machine.handle(Input::Answered { call, answer }, now()),
            Done::Appended(appended) => {
                self.machine.handle(Input::Appended(appended?), now());
            }
            Done::Finished => (),
        }
        Ok(())
    }

    fn dialled(&mut self, session: SessionId, dialled: Result<Socket, Failure>) {
        match dialled {
            Ok(socket) => {
                self.sockets.0.push(Open { id: session, socket, ended: None });
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
                Output::RefuseToken(generation) => self.tokens.refuse(generation),
                Output::Report(report) => self.board.report(report),
                // Only a successor waits for it.
                Output::Flushed => (),
                Output::Drained => return true,
            }
        }
        self.board.update(&self.machine);
        if self.machine.buffered() == 0 {
            // A heartbeat waits for nothing.
            self.oldest = None;
        }
        false
    }

    fn call(&self, call: CallId, generation: u64, request: crate::connector::Request) {
        let (rest, secret) = (self.rest.clone(), self.secret(generation));
        self.work.push(Box::pin(async move {
            let answer = match secret {
                Some(secret) => rest.call(request, secret).await,
                None => Err("there is no token".to_owned()),
            };
            Done::Answered(call, answer)
        }));
    }

    fn dial(&mut self, session: SessionId, generation: u64, dial: crate::protocol::session::Dial) {
        let (dialler, secret) = (self.dialler.clone(), self.secret(generation));
        self.dialling.insert(session);
        self.work.push(Box::pin(async move {
            let dialled = match secret {
                Some(secret) => dialler.open(dial, secret).await,
                None => Err(Failure::Unreachable("there is no token".to_owned())),
            };
            Done::Dialled(session, Box::new(dialled))
        }));
    }

    fn forget(&mut self, session: SessionId) {
        self.dialling.remove(&session);
        if let Some((socket, failure)) = self.sockets.remove(session) {
            self.work.push(Box::pin(async move {
                socket.finish(failure).await;
                Done::Finished
            }));
        }
    }

    fn append(&mut self, events: Vec<Event>, checkpoint: Checkpoint) {
        let (writer, board, oldest) = (Arc::clone(&self.writer), Arc::clone(&self.board), self.oldest.take());
        if self.machine.buffered() > events.len() {
            // What was read behind this batch waits from here on.
            self.oldest = Some(clock::now());
        }
        self.work.push(Box::pin(async move {
            let bytes = events.iter().map(|event| event.body.len()).sum();
            let appended = append_until_done(&writer, &events, checkpoint, &board).await;
            if appended.is_ok() && !events.is_empty() {
                board.appended(events.len(), bytes, oldest.map(|at| clock::now().saturating_duration_since(at)));
            }
            Done::Appended(appended)
        }));
    }
}

/// Appends, waiting for room as long as it takes: meanwhile the buffer fills and the platform is not read.
async fn append_until_done(
    writer: &Writer,
    events: &[Event],
    checkpoint: Checkpoint,
    board: &Board,
) -> Result<Mark, AppendError> {
    loop {
        match writer.append(events, checkpoint).await {
            Ok(offset) => {
                board.store_has_room();
                return Ok(Mark { epoch: writer.epoch(), offset });
            }
            Err(AppendError::NoRoom(why)) => board.store_has_no_room(&why),
            Err(error @ (AppendError::Fenced | AppendError::Moved(_) | AppendError::Broken(_))) => return Err(error),
        }
        tokio::time::sleep(NO_ROOM_WAIT).await;
    }
}

/// The open sockets of a stream: one, or a few while a session is replaced.
pub(super) struct Sockets(Vec<Open>);

struct Open {
    id: SessionId,
    socket: Socket,
    /// It has nothing more to say.
    ended: Option<Failure>,
}

impl Sockets {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    fn get(&mut self, id: SessionId) -> Option<&mut Socket> {
        self.0.iter_mut().find(|open| open.id == id).map(|open| &mut open.socket)
    }

    fn ended(&mut self, id: SessionId, failure: &Failure) {
        if let Some(open) = self.0.iter_mut().find(|open| open.id == id) {
            open.ended = Some(failure.clone());
        }
    }

    /// Takes a socket out, with what it ended by; one that never ended is simply dropped by its owner.
    fn remove(&mut self, id: SessionId) -> Option<(Socket, Failure)> {
        let index = self.0.iter().position(|open| open.id == id)?;
        let Open { socket, ended, .. } = self.0.swap_remove(index);
        Some((socket, ended?))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(SessionId, Result<Brought, Failure>)> {
        for open in self.0.iter_mut().filter(|open| open.ended.is_none()) {
            if let Poll::Ready(frame) = open.socket.poll_frame(cx) {
                return Poll::Ready((open.id, frame));
            }
        }
        Poll::Pending
    }

    /// The next frame of any socket.
    async fn next(&mut self) -> (SessionId, Result<Brought, Failure>) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next frame, if one is there.
    fn next_now(&mut self) -> Option<(SessionId, Result<Brought, Failure>)> {
        // Whoever waits next registers its own waker.
        match self.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
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
