//! What a stream's machine is told, what it wants done, and what it tells of itself.

use std::time::Duration;

use crate::{
    connector::{Failure, Frame, OpeningMessage, Probe, RefusedTopic, RestRequest, RestResponse},
    model::{Checkpoint, Event, FeedId, GapReason, Mark, Position},
    protocol::session::{Dial, SessionId},
};

/// Why a session is replaced as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Token,
    Notice,
    ChannelEnd,
    Revoked,
    Operator,
    /// A number is missing: its successor is asked to go on after the last good one.
    Gap,
}

impl Trigger {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Notice => "notice",
            Self::ChannelEnd => "channel-end",
            Self::Revoked => "revoked",
            Self::Operator => "operator",
            Self::Gap => "gap",
        }
    }
}

/// Which call an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallId {
    Session(SessionId),
    Snapshot(u64),
}

/// What a stream is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// There is a token of this generation.
    Token(u64),
    Response {
        call: CallId,
        response: Result<RestResponse, String>,
    },
    Opened(SessionId),
    ConnectFailed {
        session: SessionId,
        failure: Failure,
    },
    /// A frame has begun to arrive and is not whole yet.
    PartialFrame(SessionId),
    Frame {
        session: SessionId,
        frame: Frame,
    },
    Closed {
        session: SessionId,
        failure: Failure,
    },
    /// The append that was asked for is durable; the log's last entry is this one.
    Appended(Mark),
    Rotate,
    Pause,
    Resume,
    /// Take nothing more in; let what was heard become durable.
    Drain,
    /// To a standby: the log's position. The next session goes on from there.
    Follow(Position),
    /// To a standby: the log is ours now.
    BecomeOwner {
        /// What the log's head says now.
        head: LogHead,
        /// Where nothing is numbered: the newest entries of the log, oldest first; kind, subject and body matter. As
        /// many of the platform's as are kept, and as many more as the log may be ahead by (if there are so many).
        /// Where nothing is kept, only those that were appended since the session was begun.
        stored: Vec<Event>,
        /// Everything that the platform said before [`is_ready`](super::Stream::is_ready) became true is durable: the
        /// last holder has flushed after that.
        covered: bool,
    },
    /// To the owner: a successor is live. Say when all is durable that it may not have heard, and go on.
    Flush,
    /// The stream is another's: append nothing more, and end.
    Release,
}

/// What is known of the stream from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogHead {
    pub checkpoint: Option<Checkpoint>,
    /// The store lost what it held: a gap with reason `store` is owed.
    pub damaged: bool,
}

/// What of an opening holds for a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ValidatedHead {
    pub(super) head: LogHead,
    /// The log was written from another feed.
    pub(super) is_other_feed: bool,
    /// What is marked in front of the first session, unless that one goes on after a position.
    pub(super) gap_reason: Option<GapReason>,
}

impl LogHead {
    /// The position of another feed is worth nothing here. One of which nobody knows the feed (an earlier version stored
    /// it) is trusted: what is stored next has its feed.
    pub(super) fn validated_for(self, feed: FeedId) -> ValidatedHead {
        let stored = self.checkpoint.and_then(|checkpoint| checkpoint.feed);
        let is_other_feed = stored.is_some_and(|stored| stored != feed);
        let position = self.position().filter(|_| !is_other_feed);
        let reason = if is_other_feed { GapReason::Reset } else { GapReason::NoReplay };
        let checkpoint = self.checkpoint.map(|known| Checkpoint { position, ..known });
        let opening = Self { checkpoint, ..self };
        ValidatedHead { head: opening, is_other_feed, gap_reason: checkpoint.map(|_| reason) }
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.checkpoint.and_then(|checkpoint| checkpoint.position)
    }
}

/// What a stream wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A REST call under the token of this generation.
    Call {
        call: CallId,
        generation: u64,
        request: RestRequest,
    },
    /// Open a socket under the token of this generation.
    Dial {
        session: SessionId,
        generation: u64,
        dial: Dial,
    },
    /// Send a message of the opening exchange, with the token of this generation where it says.
    Send {
        session: SessionId,
        generation: u64,
        message: OpeningMessage,
    },
    Probe {
        session: SessionId,
        probe: Probe,
    },
    /// Say farewell with this code; frames that still arrive are wanted.
    Close {
        session: SessionId,
        code: u16,
        reason: &'static str,
    },
    /// The session is over: drop its socket.
    DropSocket(SessionId),
    /// Make these durable with their position; one at a time.
    Append {
        events: Vec<Event>,
        checkpoint: Checkpoint,
    },
    /// The platform rejected the token of this generation.
    TokenRejected(u64),
    /// A session is live under the token of this generation.
    TokenProven(u64),
    Report(StreamReport),
    /// Everything is durable that was said before [`Input::Flush`].
    Flushed,
    /// Everything that was heard is durable (or another's business), and all sessions are over.
    Drained,
}

/// Something worth counting or logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamReport {
    State(StreamState),
    Connected(bool),
    /// The log was written from another feed: its position is not used.
    FeedChanged,
    /// A numbered stream goes on after this position.
    Resuming(Option<Position>),
    Gap {
        reason: GapReason,
        lost: Option<u64>,
    },
    Duplicates(u64),
    Undecoded {
        bytes: usize,
    },
    Shed(u64),
    RotationStarted(Trigger),
    RotationFailed {
        trigger: Trigger,
        failure: Failure,
    },
    /// How long no session was live.
    Rotated {
        trigger: Trigger,
        silence: Duration,
    },
    /// A session was lost, or could not be had, to trouble.
    SessionLost {
        failure: Failure,
        retry_in: Option<Duration>,
    },
    /// The platform refused several times in a row: an operator must act. Trying goes on at the backoff's cap.
    ActionRequired {
        failure: Failure,
        retry_in: Duration,
    },
    Breaker(bool),
    /// A snapshot was fetched, or why it is owed.
    Snapshot(Result<(), String>),
    TopicCoverage(TopicCoverage),
}

/// What of the configured topics is heard, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicCoverage {
    pub subscribed: usize,
    pub missing: Vec<RefusedTopic>,
}

/// What an operator sees of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    Starting,
    Connecting,
    Live,
    /// Live, but not hearing all that is configured.
    Degraded,
    Recovering,
    BackingOff,
    Paused,
    Failed,
}

impl StreamState {
    /// The word in metrics, logs and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Connecting => "connecting",
            Self::Live => "live",
            Self::Degraded => "degraded",
            Self::Recovering => "recovering",
            Self::BackingOff => "backing-off",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }
}
