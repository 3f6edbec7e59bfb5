//! Inputs, outputs and reports of a stream.

use std::time::Duration;

use crate::{
    connector::{Failure, Frame, OpeningMessage, Probe, RefusedTopic, RestRequest, RestResponse, Resume},
    model::{Checkpoint, Event, FeedId, GapReason, Mark, Position, Sequence, labels::labels},
    protocol::session::{Dial, SessionId},
};

labels! {
    /// Why a session is replaced as planned.
    pub enum Trigger {
        Token = "token",
        Notice = "notice",
        ChannelEnd = "channel-end",
        Revoked = "revoked",
        Operator = "operator",
        /// A number is missing. The successor resumes after the last number in order.
        Gap = "gap",
    }
}

/// Identifies the call of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallId {
    Session(SessionId),
    Snapshot(u64),
}

/// An input of a stream.
#[derive(Debug, Clone)]
pub enum Input {
    /// The account has a token of this generation.
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
    /// A frame has begun to arrive and is not complete.
    PartialFrame(SessionId),
    Frame {
        session: SessionId,
        frame: Frame,
    },
    Closed {
        session: SessionId,
        failure: Failure,
    },
    /// The append is durable. The mark is that of the log's last entry.
    Appended(Mark),
    Rotate,
    Pause,
    Resume,
    /// Close all sessions and make the received events durable.
    Drain,
    /// To a standby of a numbered stream: the log's last number. The next session resumes after it.
    Follow(Sequence),
    /// To a standby: this replica owns the log now.
    BecomeOwner {
        /// The current head of the log.
        head: LogHead,
        /// The newest entries of the log, oldest first, if events have no sequence numbers. Kind, subject and body
        /// matter. At least as many events of the platform as the standby has in its buffer, and as many more as the
        /// log may be ahead. If the buffer is empty, only the entries since the session began.
        stored: Vec<Event>,
        /// Everything that the platform sent before [`is_ready`](super::Stream::is_ready) became true is durable: the
        /// last owner has flushed after that.
        covered: bool,
    },
    /// To the owner: a successor is live. [`Output::Flushed`] follows when everything that it may have missed is
    /// durable.
    Flush,
    /// Another replica owns the log. Append nothing more and close all sessions.
    Release,
}

/// The head of the log when a replica takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogHead {
    pub checkpoint: Option<Checkpoint>,
    /// The store lost entries. A gap with reason `store` must be marked.
    pub damaged: bool,
}

/// A log head, checked against the feed of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ValidatedHead {
    pub(super) head: LogHead,
    /// The log was written from another feed.
    pub(super) is_other_feed: bool,
    /// The reason of the gap in front of the first session, unless that session resumes after a position.
    pub(super) gap_reason: Option<GapReason>,
}

impl LogHead {
    /// Drops the position of another feed, or of another kind than the platform's. A checkpoint without a feed, which an
    /// earlier version stored, is valid.
    pub(super) fn validated_for(self, feed: FeedId, resume: Resume) -> ValidatedHead {
        let stored = self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.feed);
        let is_other_feed = stored.is_some_and(|stored| stored != feed);
        let position = self.position().filter(|position| !is_other_feed && resume.accepts(position));
        let reason = if is_other_feed { GapReason::Reset } else { GapReason::NoReplay };
        let gap_reason = self.checkpoint.as_ref().map(|_| reason);
        let checkpoint = self.checkpoint.map(|known| Checkpoint { position, ..known });
        ValidatedHead { head: Self { checkpoint, ..self }, is_other_feed, gap_reason }
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.position.clone())
    }
}

/// An output of a stream.
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
    /// Send a message of the opening exchange, with the token of this generation at its place.
    Send {
        session: SessionId,
        generation: u64,
        message: OpeningMessage,
    },
    Probe {
        session: SessionId,
        probe: Probe,
    },
    /// Send a close frame with this code. Frames that still arrive are inputs.
    Close {
        session: SessionId,
        code: u16,
        reason: &'static str,
    },
    /// The session has ended. Drop its socket.
    DropSocket(SessionId),
    /// Append these events with their checkpoint. The next append follows after [`Input::Appended`].
    Append {
        events: Vec<Event>,
        checkpoint: Checkpoint,
    },
    /// The platform rejected the token of this generation.
    TokenRejected(u64),
    /// A session is live under the token of this generation.
    TokenProven(u64),
    Report(StreamReport),
    /// Everything that the platform sent before [`Input::Flush`] is durable.
    Flushed,
    /// All received events are durable or belong to another owner, and all sessions have ended.
    Drained,
}

/// A fact for metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamReport {
    State(StreamState),
    Connected(bool),
    /// The log was written from another feed. Its position is not used.
    FeedChanged,
    /// A stream that can resume does so after this position.
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
    /// A rotation is complete. `silence`: how long no session was live.
    Rotated {
        trigger: Trigger,
        silence: Duration,
    },
    /// A session was lost or could not be started.
    SessionLost {
        failure: Failure,
        retry_in: Option<Duration>,
    },
    /// The platform refused several times in a row. An operator must act. The stream retries at the backoff's cap.
    ActionRequired {
        failure: Failure,
        retry_in: Duration,
    },
    Breaker(bool),
    /// A snapshot was fetched, or the reason why it is pending.
    Snapshot(Result<(), String>),
    TopicCoverage(TopicCoverage),
}

/// Which of the configured topics are subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicCoverage {
    pub subscribed: usize,
    pub missing: Vec<RefusedTopic>,
}

labels! {
    /// The state of a stream in metrics, logs and the admin API.
    pub enum StreamState {
        Starting = "starting",
        Connecting = "connecting",
        Live = "live",
        /// Live, without some of the configured topics.
        Degraded = "degraded",
        Recovering = "recovering",
        BackingOff = "backing-off",
        Paused = "paused",
        Failed = "failed",
    }
}
