//! The clock of a world, its queue of scheduled events, its random numbers and its trace.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use trunkline::{
    connector::{Failure, Frame, RestRequest, RestResponse},
    model::Timestamp,
    protocol::{
        Moment,
        session::{Dial, SessionId},
        stream::CallId,
    },
};

use super::{fault::WorldFault, plan::WorldPlan, rng::SeededRng};

/// Time since the start of the world.
pub(super) type WorldTime = Duration;

/// A socket at the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SocketId(pub(super) u64);

/// A token: the process that requested it, and its generation there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TokenId {
    pub(super) incarnation: u32,
    pub(super) generation: u64,
}

/// A scheduled event.
#[derive(Debug)]
pub(super) enum ScheduledEvent {
    StartProcess,
    EmitEvents,
    InjectFault(WorldFault),
    /// An input for the process of this incarnation, if it still runs.
    Process {
        incarnation: u32,
        input: ProcessInput,
    },
    /// A frame or the end arrives at the relay's end of a socket. If `certain`, it arrives even on a cut connection.
    FrameArrives {
        socket: SocketId,
        what: Result<Frame, Failure>,
        certain: bool,
    },
    Dialled {
        incarnation: u32,
        session: SessionId,
        dial: Dial,
        token: TokenId,
    },
    Called {
        incarnation: u32,
        call: CallId,
        request: RestRequest,
        token: TokenId,
    },
    ProbeReceived(SocketId),
    /// The relay's close frame reaches the platform.
    CloseReceived(SocketId),
    /// The relay dropped its end of a socket.
    SocketDropped(SocketId),
    Heartbeat(SocketId),
    SocketCloses(SocketId),
    TokenEnds(TokenId),
    ChannelEnds(usize),
    /// A fault is injected into a pair of replicas.
    InjectPairFault,
    /// The standby reads where the log ends.
    ReadLogEnd,
    /// The standby of this incarnation takes over.
    TakeOver {
        incarnation: u32,
    },
}

/// An input of a process.
#[derive(Debug)]
pub(super) enum ProcessInput {
    Opened(SessionId, SocketId),
    Refused(SessionId, Failure),
    Answered(CallId, Result<RestResponse, String>),
    Appended,
    Granted(Result<(), trunkline::protocol::refresh::GrantFailure>),
    Unpaused,
}

/// The clock, the queue and the trace that all parts of a world share.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) now: WorldTime,
    pub(super) plan: WorldPlan,
    pub(super) rng: SeededRng,
    /// The faults have ended.
    pub(super) faults_over: bool,
    started_at: Instant,
    queue: BTreeMap<(WorldTime, u64), ScheduledEvent>,
    queued: u64,
    /// The newest trace lines.
    trace: VecDeque<String>,
    trace_len: usize,
}

/// The wall clock at the start of a world.
const WALL_START: i64 = 1_777_901_509_570;

impl Schedule {
    pub(super) fn new(plan: WorldPlan, rng: SeededRng, trace_len: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a world needs a start time")]
        let began = Instant::now();
        Self {
            now: WorldTime::ZERO,
            plan,
            rng,
            faults_over: false,
            started_at: began,
            queue: BTreeMap::new(),
            queued: 0,
            trace: VecDeque::new(),
            trace_len,
        }
    }

    pub(super) fn at(&mut self, moment: WorldTime, scheduled: ScheduledEvent) {
        self.queued += 1;
        self.queue.insert((moment.max(self.now), self.queued), scheduled);
    }

    pub(super) fn after(&mut self, delay: Duration, scheduled: ScheduledEvent) {
        self.at(self.now + delay, scheduled);
    }

    /// Time of the next event.
    pub(super) fn next_at(&self) -> Option<WorldTime> {
        self.queue.first_key_value().map(|((moment, _), _)| *moment)
    }

    /// The next event, if it is due.
    pub(super) fn next_due(&mut self) -> Option<ScheduledEvent> {
        let due = self.next_at().is_some_and(|at| at <= self.now);
        due.then(|| self.queue.pop_first()).flatten().map(|(_, scheduled)| scheduled)
    }

    /// A random network delay in one direction.
    pub(super) fn latency(&mut self) -> Duration {
        let max = self.plan.latency_max;
        self.rng.millis(1..max.as_millis() as u64 + 2)
    }

    pub(super) fn instant(&self) -> Instant {
        self.started_at + self.now
    }

    pub(super) fn moment_of(&self, instant: Instant) -> WorldTime {
        instant.saturating_duration_since(self.started_at)
    }

    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(WALL_START + self.now.as_millis() as i64)
    }

    /// The current moment as the rules see it.
    pub(super) fn now(&mut self) -> Moment {
        Moment { at: self.instant(), wall: self.wall(), random: self.rng.unit() }
    }

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.trace_len == 0 {
            return;
        }
        if self.trace.len() == self.trace_len {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>10.3}  {}", self.now.as_secs_f64(), line()));
    }

    /// The trace as text.
    pub(super) fn trace_text(&self) -> String {
        self.trace.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}
