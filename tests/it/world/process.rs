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
    Around,
    judge::Heard,
    scene::{Happening, Moment, News, SocketId, TokenId},
};

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) life: u32,
    pub(super) machine: Stream,
    refresh: Refresh,
    /// The newest generation under which a session was live.
    carried: u64,
    sockets: BTreeMap<SessionId, Open>,
    dialling: BTreeSet<SessionId>,
    /// What its successor waits for is durable.
    pub(super) flushed: bool,
    /// Everything is durable, and it may end.
    pub(super) drained: bool,
}

/// The relay's end of a socket, with what arrived and is not read yet.
#[derive(Debug)]
struct Open {
    id: SocketId,
    inbox: VecDeque<Result<Frame, Failure>>,
    ended: bool,
}

/// One step of the machine leads to no more commands than this.
const OUTPUTS_MAX: usize = 2_000;
/// While frames are there, so many are read before anything else is looked at.
const FRAMES_AT_ONCE: usize = 64;

impl Process {
    pub(super) fn start(life: u32, around: &mut Around) -> Self {
        let opening = around.store.opening();
        around.scene.tell(|| format!("process {life} starts from {opening:?}"));
        around.judge.process_starts(&opening);
        let machine = Stream::new(around.scene.plan.stream.clone(), opening, around.scene.now());
        Self::run(life, machine, around)
    }

    /// It holds a session for the log of another.
    pub(super) fn stand_by(life: u32, around: &mut Around) -> Self {
        around.scene.tell(|| format!("process {life} stands by"));
        around.judge.standby_starts();
        let mut machine = Stream::standby(around.scene.plan.stream.clone(), around.scene.now());
        if let Some(position) = around.store.position() {
            around.judge.follows(position.0.0);
            machine.handle(Input::Follow(position), around.scene.now());
        }
        Self::run(life, machine, around)
    }

    fn run(life: u32, machine: Stream, around: &mut Around) -> Self {
        let mut process = Self {
            life,
            machine,
            refresh: Refresh::new(around.scene.plan.refresh),
            carried: 0,
            sockets: BTreeMap::new(),
            dialling: BTreeSet::new(),
            flushed: false,
            drained: false,
        };
        process.refresh.handle(refresh::Input::Start, around.scene.instant());
        process.carry_out(around);
        process
    }

    /// It ends without a word; the platform sees its sockets go.
    pub(super) fn vanish(self, around: &mut Around) {
        let was_written = around.scene.chance.once_in(2);
        let from = around.store.log.len();
        around.store.abandon(self.life, was_written);
        around.ledger.take(&around.store.log[from..], &around.platform.said, self.life);
        around.scene.tell(|| format!("process {} is gone; its last append was written: {was_written}", self.life));
        for open in self.sockets.values() {
            let delay = around.scene.latency();
            around.scene.after(delay, Happening::Dropped(open.id));
        }
    }

    pub(super) fn wakes_at(&self, around: &Around) -> Option<Moment> {
        let wakes = self.machine.poll_timeout().into_iter().chain(self.refresh.poll_timeout()).min();
        wakes.map(|at| around.scene.moment_of(at))
    }

    pub(super) fn wake(&mut self, around: &mut Around) {
        around.judge.woke(around.scene.now);
        let at = around.scene.instant();
        if self.machine.poll_timeout().is_some_and(|due| at >= due) {
            self.machine.handle_timeout(around.scene.now());
        }
        self.refresh.handle_timeout(at);
        self.carry_out(around);
    }

    pub(super) fn tell(&mut self, input: Input, around: &mut Around) {
        self.machine.handle(input, around.scene.now());
        self.carry_out(around);
    }

    pub(super) fn want_token(&mut self, around: &mut Around) {
        around.judge.token_wanted();
        self.refresh.handle(refresh::Input::Wanted, around.scene.instant());
        self.carry_out(around);
    }

    pub(super) fn hear(&mut self, news: News, around: &mut Around) {
        match news {
            News::Opened(session, socket) => return self.opened(session, socket, around),
            News::Refused(session, failure) => {
                if self.dialling.remove(&session) {
                    around.scene.tell(|| format!("{}: {session:?} is refused: {failure}", self.life));
                    around.judge.failed(&failure);
                    self.machine.handle(Input::Refused { session, failure }, around.scene.now());
                }
            }
            News::Answered(call, answer) => {
                self.machine.handle(Input::Answered { call, answer }, around.scene.now());
            }
            News::Appended => {
                let from = around.store.log.len();
                let Some(last) = around.store.commit(self.life) else {
                    around.scene.tell(|| format!("process {} is fenced", self.life));
                    return self.tell(Input::Release, around);
                };
                around.judge.stored(&around.store);
                around.ledger.take(&around.store.log[from..], &around.platform.said, self.life);
                self.machine.handle(Input::Appended(last), around.scene.now());
            }
            News::Granted(answer) => self.granted(answer, around),
            News::Unpaused => self.machine.handle(Input::Resume, around.scene.now()),
        }
        self.carry_out(around);
    }

    fn opened(&mut self, session: SessionId, socket: SocketId, around: &mut Around) {
        if !self.dialling.remove(&session) {
            let delay = around.scene.latency();
            return around.scene.after(delay, Happening::Dropped(socket));
        }
        self.sockets.insert(session, Open { id: socket, inbox: VecDeque::new(), ended: false });
        self.tell(Input::Opened(session), around);
    }

    /// Something is there to be read.
    pub(super) fn arrives(&mut self, socket: SocketId, what: Result<Frame, Failure>, around: &mut Around) {
        if let Some(open) = self.sockets.values_mut().find(|open| open.id == socket) {
            open.inbox.push_back(what);
        }
        self.carry_out(around);
    }

    /// Reads what is wanted and carries out what the machines say, until nothing is left of either.
    fn carry_out(&mut self, around: &mut Around) {
        loop {
            self.perform_outputs(around);
            around.judge.bounded(self.machine.buffered(), &around.scene.plan);
            if !self.read(around) {
                return;
            }
        }
    }

    /// Whether there was something to read.
    fn read(&mut self, around: &mut Around) -> bool {
        for count in 0..FRAMES_AT_ONCE {
            if !self.machine.wants_frames() {
                return count > 0;
            }
            let readable = |(_, open): &(&SessionId, &mut Open)| !open.ended && !open.inbox.is_empty();
            let Some((session, open)) = self.sockets.iter_mut().find(readable) else { return count > 0 };
            let (session, what) = (*session, open.inbox.pop_front().expect("it is not empty"));
            match what {
                Ok(frame) => {
                    let heard = Heard::of(&frame);
                    let owes = around.platform.owed_to == 0 || around.platform.owed_to == self.life;
                    let uids = heard.uids.iter().filter(|_| owes);
                    uids.for_each(|uid| around.platform.said[*uid].heard_in(self.life));
                    around.judge.hears(&heard, around.scene.now, around.scene.wall());
                    self.machine.handle(Input::Frame { session, frame }, around.scene.now());
                }
                Err(failure) => {
                    open.ended = true;
                    around.scene.tell(|| format!("{}: {session:?} is closed: {failure}", self.life));
                    around.judge.failed(&failure);
                    self.machine.handle(Input::Closed { session, failure }, around.scene.now());
                }
            }
        }
        true
    }

    fn perform_outputs(&mut self, around: &mut Around) {
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

    fn perform(&mut self, output: Output, around: &mut Around) {
        let life = self.life;
        match output {
            Output::Call { call, generation, request } => {
                if let CallId::Session(session) = call {
                    around.judge.uses_token(session, generation);
                }
                let token = TokenId { life, generation };
                let delay = around.scene.latency();
                around.scene.after(delay, Happening::Called { life, call, request, token });
            }
            Output::Dial { session, generation, dial } => {
                around.judge.uses_token(session, generation);
                around.judge.dials(&dial, &around.scene);
                self.dialling.insert(session);
                let token = TokenId { life, generation };
                let delay = around.scene.latency();
                around.scene.after(delay, Happening::Dialled { life, session, dial, token });
            }
            Output::Probe { session, .. } => self.send(session, around, Happening::Probed),
            Output::Leave { session, .. } => {
                if let Some(open) = self.sockets.get(&session) {
                    around.platform.leaves(open.id);
                }
                self.send(session, around, Happening::Left);
            }
            Output::Forget(session) => {
                self.dialling.remove(&session);
                self.send(session, around, Happening::Dropped);
                self.sockets.remove(&session);
            }
            Output::Append { events, checkpoint } => self.append(events, checkpoint, around),
            Output::RefuseToken(generation) => {
                around.judge.token_refused(generation);
                let carried = generation == self.carried;
                self.refresh.handle(refresh::Input::Refused { generation, carried }, around.scene.instant());
            }
            Output::TokenCarried(generation) => self.carried = self.carried.max(generation),
            Output::Report(report) => {
                around.scene.tell(|| format!("{life}: {report:?}"));
                around.judge.report(&report, &around.scene);
            }
            Output::Flushed => self.flushed = true,
            Output::Drained => self.drained = true,
        }
    }

    fn send(&self, session: SessionId, around: &mut Around, what: fn(SocketId) -> Happening) {
        if let Some(open) = self.sockets.get(&session) {
            let delay = around.scene.latency();
            around.scene.after(delay, what(open.id));
        }
    }

    fn append(
        &self,
        events: Vec<trunkline::model::Event>,
        checkpoint: trunkline::model::Checkpoint,
        around: &mut Around,
    ) {
        around.scene.tell(|| format!("{}: append of {} under {checkpoint:?}", self.life, events.len()));
        around.judge.appends(&checkpoint, around.scene.wall());
        around.store.begin(self.life, events, checkpoint);
        let done = around.store.stalls_until.max(around.scene.now + around.scene.chance.millis(1..20));
        around.scene.at(done, Happening::Process { life: self.life, news: News::Appended });
    }

    fn perform_token(&mut self, output: refresh::Output, around: &mut Around) {
        match output {
            refresh::Output::Fetch => {
                around.judge.token_asked(around.scene.now);
                let failure =
                    around.endpoint.filter(|(_, until)| around.scene.now < *until).map(|(failure, _)| failure);
                let delay = around.scene.latency() * 2;
                let answer = failure.map_or(Ok(()), Err);
                around.scene.after(delay, Happening::Process { life: self.life, news: News::Granted(answer) });
            }
            refresh::Output::Adopt { generation, .. } => {
                around.scene.tell(|| format!("{}: token {generation} adopted", self.life));
                self.machine.handle(Input::Token(generation), around.scene.now());
            }
            refresh::Output::Retry { .. } => (),
            refresh::Output::KeepAway { .. }
            | refresh::Output::Look
            | refresh::Output::Lock { .. }
            | refresh::Output::Renew { .. }
            | refresh::Output::Release { .. }
            | refresh::Output::Publish { .. } => panic!("a token that is not shared knows no vault"),
        }
    }

    fn granted(&mut self, answer: Result<(), refresh::Failure>, around: &mut Around) {
        let unit = around.scene.chance.unit();
        let input = match answer {
            Ok(()) => {
                let token = TokenId { life: self.life, generation: self.refresh.generation() + 1 };
                around.platform.issue(token, &mut around.scene);
                around.judge.token_granted(&around.scene);
                refresh::Input::Granted { lifetime: Some(around.scene.plan.token_life), repeated: false, unit }
            }
            Err(failure) => refresh::Input::Failed { failure, unit },
        };
        self.refresh.handle(input, around.scene.instant());
    }
}
