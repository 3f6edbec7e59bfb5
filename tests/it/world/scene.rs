//! The stage of a world: its clock, what is going to happen, chance, and the story of what did.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use trunkline::{
    connector::{Answer, Failure, Frame, Request},
    model::Timestamp,
    protocol::{
        Now,
        session::{Dial, SessionId},
        stream::CallId,
    },
};

use super::{calamity::Calamity, chance::Chance, plan::Plan};

/// Time since the world began.
pub(super) type Moment = Duration;

/// A socket at the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SocketId(pub(super) u64);

/// A token: which life of the process asked for it, and its generation there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenId {
    pub(super) life: u32,
    pub(super) generation: u64,
}

/// What lies ahead.
#[derive(Debug)]
pub(super) enum Happening {
    Starts,
    Speaks,
    Calamity(Calamity),
    /// To the process of this life, if it still runs.
    Process {
        life: u32,
        news: News,
    },
    /// Something reaches the relay's end of a socket. What is `certain` comes even if the line was cut.
    Arrives {
        socket: SocketId,
        what: Result<Frame, Failure>,
        certain: bool,
    },
    Dialled {
        life: u32,
        session: SessionId,
        dial: Dial,
        token: TokenId,
    },
    Called {
        life: u32,
        call: CallId,
        request: Request,
        token: TokenId,
    },
    Probed(SocketId),
    /// The relay's farewell reaches the platform.
    Left(SocketId),
    /// The relay's end of a socket is gone.
    Dropped(SocketId),
    Heartbeat(SocketId),
    Closes(SocketId),
    TokenEnds(TokenId),
    ChannelEnds(usize),
    /// Something happens to a pair of replicas, …
    Strikes,
    /// … its standby is told where the log ends, …
    Follows,
    /// … and takes it over, having stood by as this life.
    TakesOver {
        life: u32,
    },
}

/// What a process is told by the world around it.
#[derive(Debug)]
pub(super) enum News {
    Opened(SessionId, SocketId),
    Refused(SessionId, Failure),
    Answered(CallId, Result<Answer, String>),
    Appended,
    Granted(Result<(), trunkline::protocol::refresh::Failure>),
    Unpaused,
}

/// The clock, the queue and the story. Every part of the world plays on it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) now: Moment,
    pub(super) plan: Plan,
    pub(super) chance: Chance,
    /// The faults are over.
    pub(super) calm: bool,
    began: Instant,
    queue: BTreeMap<(Moment, u64), Happening>,
    queued: u64,
    /// The newest things that happened, as many as are wanted.
    story: VecDeque<String>,
    story_len: usize,
}

/// The wall clock when a world begins.
const WALL_BEGAN: i64 = 1_777_901_509_570;

impl Scene {
    pub(super) fn new(plan: Plan, chance: Chance, story_len: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a world needs some moment to start from")]
        let began = Instant::now();
        Self {
            now: Moment::ZERO,
            plan,
            chance,
            calm: false,
            began,
            queue: BTreeMap::new(),
            queued: 0,
            story: VecDeque::new(),
            story_len,
        }
    }

    pub(super) fn at(&mut self, moment: Moment, happening: Happening) {
        self.queued += 1;
        self.queue.insert((moment.max(self.now), self.queued), happening);
    }

    pub(super) fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<Moment> {
        self.queue.first_key_value().map(|((moment, _), _)| *moment)
    }

    /// The next thing, if its time has come.
    pub(super) fn next_due(&mut self) -> Option<Happening> {
        let due = self.next_at().is_some_and(|at| at <= self.now);
        due.then(|| self.queue.pop_first()).flatten().map(|(_, happening)| happening)
    }

    /// One way over the network.
    pub(super) fn latency(&mut self) -> Duration {
        let max = self.plan.latency_max;
        self.chance.millis(1..max.as_millis() as u64 + 2)
    }

    pub(super) fn instant(&self) -> Instant {
        self.began + self.now
    }

    pub(super) fn moment_of(&self, instant: Instant) -> Moment {
        instant.saturating_duration_since(self.began)
    }

    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(WALL_BEGAN + self.now.as_millis() as i64)
    }

    /// What a rule may know of this moment.
    pub(super) fn now(&mut self) -> Now {
        Now { at: self.instant(), wall: self.wall(), unit: self.chance.unit() }
    }

    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.story_len == 0 {
            return;
        }
        if self.story.len() == self.story_len {
            self.story.pop_front();
        }
        self.story.push_back(format!("{:>10.3}  {}", self.now.as_secs_f64(), line()));
    }

    /// The newest things that happened, with their moments.
    pub(super) fn story(&self) -> String {
        self.story.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}
