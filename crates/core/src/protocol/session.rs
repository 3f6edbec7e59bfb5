//! One session: the conversation on one connection, from its endpoint to its farewell.
//!
//! Acquire the endpoint → connect → prove → live → leave. It decodes frames and watches over silence; what the events
//! mean for the stream is the stream's business.

use std::time::{Duration, Instant};

use super::Now;
use crate::connector::{
    Answer, Choices, Connector, Credential, Endpoint, Failure, Frame, Item, Notice, Preparation, Probe, Proof, Request,
    Step,
};

/// Names a session within its stream, in the order in which they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// How long the steps of a session may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From dialling until the socket is open, and again until it is proved.
    pub connect: Duration,
    /// The platform must be heard at least once in this time.
    pub silence: Duration,
    /// A frame must be whole so long after its first bytes.
    pub frame: Duration,
    /// After our farewell the platform may still finish what it was saying for this long.
    pub farewell: Duration,
}

/// What a session is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The answer to its REST call, or why there is none.
    Answered(Result<Answer, String>),
    /// The socket is open.
    Opened,
    /// The socket could not be opened.
    Refused(Failure),
    /// A frame has begun that is not whole yet.
    Begun,
    Frame(Frame),
    /// The socket is gone.
    Closed(Failure),
}

/// What a session wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Call(Request),
    /// Open the endpoint's socket (the stream adds the position to its URL).
    Dial(Endpoint),
    Probe(Probe),
    /// It is live: events come by it from here on.
    Live,
    Heard(Vec<Item>),
    /// The endpoint changed while live: other topics are subscribed or refused.
    Tended(Endpoint),
    /// The endpoint's life is nearly over.
    Aged,
    /// It is over. The socket, if there still is one, is to be dropped.
    Ended(Failure),
}

/// An endpoint, and how long it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    pub endpoint: Endpoint,
    /// Which token made it.
    pub generation: u64,
    /// When it has to be replaced.
    pub ends: Option<Instant>,
}

/// One conversation.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    generation: u64,
    connector: Connector,
    choices: Choices,
    patience: Patience,
    /// It replaces a live session: it is not believed before it is heard.
    replaces: bool,
    stage: Stage,
    begun_at: Instant,
    minted: Option<Minted>,
    heard_at: Instant,
    /// When the frame that has begun must be whole.
    whole_by: Option<Instant>,
    /// How many probes went out since the platform was last heard, and when the newest did.
    probes: u32,
    probed_at: Instant,
    /// When we last sent anything.
    sent_at: Instant,
    /// How many probes ever went out, and how many were answered.
    asked: u64,
    answers: u64,
    /// So many have to be answered by now.
    wanted: u64,
    outputs: std::collections::VecDeque<Output>,
}

#[derive(Debug)]
enum Stage {
    /// A REST call is under way.
    Preparing(Preparation),
    Dialling {
        until: Instant,
    },
    /// Open, and not yet believed. `lives_at`: believed then, if nothing speaks against it.
    Proving {
        until: Instant,
        lives_at: Option<Instant>,
    },
    Live {
        tend_at: Option<Instant>,
        tending: Option<Preparation>,
        aged: bool,
    },
    Leaving {
        until: Instant,
    },
    Ended,
}

/// Probes go out at these parts of the window of silence.
const PROBE_QUARTERS: [u32; 2] = [2, 3];
/// A probe goes out, whatever is heard, when nothing was sent for this part of the window.
const SEND_PART: u32 = 2;

/// What a session begins with.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// An endpoint that is still good.
    pub reuse: Option<Minted>,
    /// The topics of the session before it.
    pub subscribed: &'a [String],
}

impl Session {
    /// Begins a session under a token.
    pub fn begin(
        id: SessionId,
        generation: u64,
        connector: &Connector,
        patience: Patience,
        wanted: Wanted<'_>,
        now: Now,
    ) -> Self {
        let Wanted { reuse, subscribed } = wanted;
        let mut session = Self {
            id,
            generation,
            connector: connector.clone(),
            choices: connector.choices(),
            patience,
            replaces: false,
            stage: Stage::Ended,
            begun_at: now.at,
            minted: None,
            heard_at: now.at,
            whole_by: None,
            probes: 0,
            probed_at: now.at,
            sent_at: now.at,
            asked: 0,
            answers: 0,
            wanted: 0,
            outputs: std::collections::VecDeque::new(),
        };
        match reuse {
            Some(minted) if minted.endpoint.subscribed => session.dial(minted, now),
            Some(minted) => {
                let (preparation, step) = connector.resume(&minted.endpoint, subscribed);
                session.minted = Some(minted);
                session.take_step(preparation, step, now);
            }
            None => {
                let (preparation, step) = connector.prepare(subscribed);
                session.take_step(preparation, step, now);
            }
        }
        session
    }

    /// The same for one that replaces a live session: that one is left only when the platform was heard on this one.
    pub fn replacing(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// The session that it was to replace is gone.
    pub fn stands_alone(&mut self, now: Now) {
        self.replaces = false;
        let quiet = self.choices.proof.quiet();
        if let Stage::Proving { lives_at: lives_at @ None, .. } = &mut self.stage {
            *lives_at = quiet.map(|wait| now.at + wait);
        }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The token that this session was begun with.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn minted(&self) -> Option<&Minted> {
        self.minted.as_ref()
    }

    pub fn begun_at(&self) -> Instant {
        self.begun_at
    }

    /// When the platform was last heard on it.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Asks the platform whether it lives. What it sent before its answer is heard before it. Answers to older probes
    /// may be on their way, and a heartbeat: neither is taken for this one.
    pub fn ask(&mut self, now: Now) {
        self.probe(now);
        self.wanted = self.asked;
    }

    /// Whether nothing that it was asked is unanswered.
    pub fn has_answered(&self) -> bool {
        self.answers >= self.wanted
    }

    /// No answer is expected any longer. Whether one was.
    pub fn write_off(&mut self) -> bool {
        let was_expected = !self.has_answered();
        self.wanted = 0;
        was_expected
    }

    fn probe(&mut self, now: Now) {
        self.asked += 1;
        self.sent_at = now.at;
        self.outputs.push_back(Output::Probe(self.choices.probe));
    }

    pub fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live { .. })
    }

    /// Whether there is a socket to say farewell on.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Proving { .. } | Stage::Live { .. } | Stage::Leaving { .. })
    }

    /// Our farewell is said: what still arrives is heard, silence is no longer watched.
    pub fn leave(&mut self, now: Now) {
        self.stage = Stage::Leaving { until: now.at + self.patience.farewell };
    }

    /// Frames are left unread for our own reasons: silence is not the platform's fault, and no answer or frame late.
    pub fn excuse(&mut self, now: Now) {
        self.heard_at = now.at;
        self.probes = 0;
        self.whole_by = self.whole_by.map(|_| now.at + self.patience.frame);
        match &mut self.stage {
            Stage::Proving { until, .. } => *until = now.at + self.patience.connect,
            Stage::Leaving { until } => *until = now.at + self.patience.farewell,
            Stage::Preparing(_) | Stage::Dialling { .. } | Stage::Live { .. } | Stage::Ended => (),
        }
    }

    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Answered(answer) => self.answered(answer, now),
            Input::Opened => self.opened(now),
            Input::Refused(failure) | Input::Closed(failure) => self.end(failure),
            Input::Begun => self.whole_by = Some(now.at + self.patience.frame),
            Input::Frame(frame) => self.heard(frame, now),
        }
    }

    pub fn handle_timeout(&mut self, now: Now) {
        match &self.stage {
            Stage::Preparing(_) | Stage::Ended => (),
            Stage::Dialling { until } => {
                if now.at >= *until {
                    self.end(Failure::Unreachable("no connection in time".to_owned()));
                }
            }
            Stage::Proving { until, lives_at } => {
                if lives_at.is_some_and(|at| now.at >= at) {
                    self.was_quiet(*until, now);
                } else if now.at >= *until {
                    self.end(Failure::Silent);
                }
            }
            Stage::Live { .. } => self.watch(now),
            Stage::Leaving { until } => {
                if now.at >= *until {
                    self.end(Failure::Closed { code: 1006, reason: "no farewell in time".to_owned() });
                }
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Preparing(_) | Stage::Ended => None,
            Stage::Dialling { until } | Stage::Leaving { until } => Some(*until),
            Stage::Proving { until, lives_at } => Some(lives_at.map_or(*until, |at| at.min(*until))),
            Stage::Live { tend_at, tending, aged } => {
                let ends = self.minted.as_ref().and_then(|minted| minted.ends).filter(|_| !aged);
                let tend = tend_at.filter(|_| tending.is_none());
                [Some(self.next_watch()), self.whole_by, ends, tend].into_iter().flatten().min()
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn answered(&mut self, answer: Result<Answer, String>, now: Now) {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Preparing(mut preparation) => {
                let step = step_of(&mut preparation, answer);
                self.take_step(preparation, step, now);
            }
            Stage::Live { tend_at, tending: Some(mut preparation), aged } => {
                let step = step_of(&mut preparation, answer);
                self.stage = Stage::Live { tend_at, tending: Some(preparation), aged };
                self.take_tending_step(step, now);
            }
            stage @ (Stage::Live { .. }
            | Stage::Dialling { .. }
            | Stage::Proving { .. }
            | Stage::Leaving { .. }
            | Stage::Ended) => self.stage = stage,
        }
    }

    fn take_step(&mut self, preparation: Preparation, step: Step, now: Now) {
        self.stage = Stage::Preparing(preparation);
        match step {
            Step::Call(request) => self.outputs.push_back(Output::Call(request)),
            Step::Ready(endpoint) => {
                let ends = self.life_ends(now);
                self.dial(Minted { endpoint, generation: self.generation, ends }, now);
            }
            Step::Failed(failure) => {
                self.keep_spare(now);
                self.end(failure);
            }
        }
    }

    /// An endpoint that was made and could not be subscribed is there for the next attempt.
    fn keep_spare(&mut self, now: Now) {
        let Stage::Preparing(preparation) = &self.stage else { return };
        let ends = self.life_ends(now);
        let generation = self.generation;
        self.minted = preparation.spare().map(|spare| Minted { endpoint: spare.clone(), generation, ends });
    }

    /// One that was made before lives no longer for being gone on with.
    fn life_ends(&self, now: Now) -> Option<Instant> {
        let known = self.minted.as_ref().and_then(|minted| minted.ends);
        known.or_else(|| self.choices.life.map(|life| now.at + life))
    }

    fn dial(&mut self, minted: Minted, now: Now) {
        self.stage = Stage::Dialling { until: now.at + self.patience.connect };
        self.outputs.push_back(Output::Dial(minted.endpoint.clone()));
        self.minted = Some(minted);
    }

    fn opened(&mut self, now: Now) {
        if !matches!(self.stage, Stage::Dialling { .. }) {
            return;
        }
        self.heard_at = now.at;
        self.sent_at = now.at;
        let until = now.at + self.patience.connect;
        let quiet = self.choices.proof.quiet().map(|wait| now.at + wait);
        let (probes, lives_at) = match self.choices.proof {
            Proof::Answered => (true, None),
            Proof::AnsweredOrQuietFor(_) => (true, quiet.filter(|_| !self.replaces)),
            Proof::QuietFor(_) => (false, quiet),
        };
        self.stage = Stage::Proving { until, lives_at };
        if probes {
            self.probe(now);
        }
    }

    /// Nothing was said that speaks against it. Where another session serves that is not enough.
    fn was_quiet(&mut self, until: Instant, now: Now) {
        if !self.replaces {
            return self.live(now);
        }
        self.stage = Stage::Proving { until, lives_at: None };
        self.probe(now);
    }

    fn live(&mut self, now: Now) {
        let pause = self.minted.as_ref().and_then(|minted| minted.endpoint.tend_in);
        let tend_at = self.choices.tending.map(|interval| now.at + pause.unwrap_or(interval));
        self.stage = Stage::Live { tend_at, tending: None, aged: false };
        self.outputs.push_back(Output::Live);
    }

    fn heard(&mut self, frame: Frame, now: Now) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        self.heard_at = now.at;
        self.probes = 0;
        match frame {
            Frame::Text(_) | Frame::Binary(_) => self.whole_by = None,
            // It may stand between the parts of another.
            Frame::Pong => (),
        }
        let mut items = Vec::new();
        self.connector.decode(frame, now.wall, &mut items);
        if let Some(refusal) = items.iter().find_map(fatal) {
            return self.end(Failure::Said(refusal));
        }
        if matches!(self.stage, Stage::Proving { .. }) {
            self.live(now);
        }
        let answers = items.iter().filter(|item| **item == Item::Answer).count() as u64;
        self.answers = self.asked.min(self.answers + answers);
        items.retain(|item| !matches!(item, Item::Alive | Item::Answer));
        if !items.is_empty() {
            self.outputs.push_back(Output::Heard(items));
        }
    }

    fn watch(&mut self, now: Now) {
        let silence_due = self.silence_due();
        if now.at >= silence_due && self.has_probed_silence() {
            return self.end(Failure::Silent);
        }
        if self.whole_by.is_some_and(|by| now.at >= by) {
            return self.end(Failure::Unfinished { within: self.patience.frame });
        }
        if now.at >= silence_due {
            self.probes += 1;
            self.probed_at = now.at;
            self.probe(now);
        } else if now.at >= self.send_due() {
            self.probe(now);
        }
        let Stage::Live { tend_at, tending, aged } = &mut self.stage else { return };
        let ends = self.minted.as_ref().and_then(|minted| minted.ends);
        if !*aged && ends.is_some_and(|ends| now.at >= ends) {
            *aged = true;
            self.outputs.push_back(Output::Aged);
        }
        if tending.is_none() && tend_at.is_some_and(|at| now.at >= at) {
            *tend_at = self.choices.tending.map(|interval| now.at + interval);
            let endpoint = self.minted.as_ref().map(|minted| &minted.endpoint);
            let Some((preparation, step)) = endpoint.map(|endpoint| self.connector.tend(endpoint)) else { return };
            *tending = Some(preparation);
            self.take_tending_step(step, now);
        }
    }

    /// When something is to be done about what is not heard, or not sent.
    fn next_watch(&self) -> Instant {
        self.silence_due().min(self.send_due())
    }

    /// When the next probe is due because of silence, or the window of silence ends. A probe has a quarter of the window
    /// for its answer, also when it went out late because this process was stopped.
    fn silence_due(&self) -> Instant {
        let quarters = PROBE_QUARTERS.get(self.probes as usize).copied().unwrap_or(4);
        let due = self.heard_at + self.patience.silence * quarters / 4;
        if self.probes == 0 { due } else { due.max(self.probed_at + self.patience.silence / 4) }
    }

    /// Whether every probe of the window went out.
    fn has_probed_silence(&self) -> bool {
        self.probes as usize >= PROBE_QUARTERS.len()
    }

    /// When a probe is due because nothing was sent: a platform that speaks all the time may still close a client that
    /// does not.
    fn send_due(&self) -> Instant {
        self.sent_at + self.patience.silence / SEND_PART
    }

    /// Tending never harms a live session: what fails is tried again at the next turn.
    fn take_tending_step(&mut self, step: Step, now: Now) {
        let Stage::Live { tending, tend_at, .. } = &mut self.stage else { return };
        match step {
            Step::Call(request) => self.outputs.push_back(Output::Call(request)),
            Step::Failed(_) => *tending = None,
            Step::Ready(endpoint) => {
                *tending = None;
                *tend_at = endpoint.tend_in.map(|pause| now.at + pause).or(*tend_at);
                let Some(minted) = self.minted.as_mut().filter(|minted| minted.endpoint != endpoint) else { return };
                minted.endpoint = endpoint.clone();
                self.outputs.push_back(Output::Tended(endpoint));
            }
        }
    }

    fn end(&mut self, failure: Failure) {
        if !matches!(self.stage, Stage::Ended) {
            self.stage = Stage::Ended;
            self.outputs.push_back(Output::Ended(failure));
        }
    }
}

fn step_of(preparation: &mut Preparation, answer: Result<Answer, String>) -> Step {
    match answer {
        Ok(answer) => preparation.answered(&answer),
        Err(why) => preparation.unanswered(why),
    }
}

/// A notice after which nothing more comes by this session.
fn fatal(item: &Item) -> Option<Notice> {
    match item {
        Item::Notice(notice @ (Notice::TokenInvalid | Notice::EndpointGone | Notice::Displaced)) => {
            Some(notice.clone())
        }
        Item::Notice(Notice::Closing | Notice::TokenRevoked)
        | Item::Event(_)
        | Item::Alive
        | Item::Answer
        | Item::Undecoded(_) => None,
    }
}

/// Where the socket is, and where the token goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub url: String,
    pub credential: Credential,
}
