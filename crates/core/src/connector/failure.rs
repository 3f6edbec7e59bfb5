//! Why an attempt or a session failed, and what follows: one verdict for each failure.

use std::{fmt, time::Duration};

use super::{
    Notice, RestResponse,
    json::{self, Members},
};
use crate::model::{Exchange, StatusMeaning, labels::labels};

/// Why an attempt or a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The upgrade was answered with another status than 101. `place`: the URL without secrets.
    Handshake { status: u16, retry_after: Option<Duration>, place: Option<String> },
    /// A REST call was answered with an error. `call`: its method and path, and the error texts of the answer.
    Call { call: String, status: u16, retry_after: Option<Duration> },
    /// No connection, no answer in time, or an invalid answer.
    Unreachable(String),
    /// The socket was closed with a code of RFC 6455 section 7.4, 1006 without a close frame.
    Closed { code: u16, reason: String },
    /// No frame within `silence_max`.
    Silent,
    /// A frame beyond `frame_max`.
    Oversize,
    /// A frame that was not complete within this time.
    Unfinished { within: Duration },
    /// An invalid data frame: it breaks the protocol, or its text is not UTF-8.
    Unreadable(String),
    /// A platform notice ended the session.
    Notice(Notice),
    /// The successor is not subscribed to a topic of the session that it replaces.
    Unsubscribed { topic: String, reason: String },
}

/// Whether an upgrade was refused because of its resume position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionDoubt {
    Certain,
    /// Only if a second attempt with the same position is refused too.
    WhenRepeated,
}

/// The reaction to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Back off. After a stable session the first attempt follows at once.
    BackOff,
    /// The platform restarts and closed all connections: back off, without an immediate attempt.
    Restarting,
    /// The platform asked for this pause.
    WaitFor(Duration),
    /// The platform refused the token: get a new one, then retry at once.
    RefreshToken,
    /// The endpoint is gone: get a new one.
    NewEndpoint,
    /// The platform refused the request. If the refusal repeats, an operator must act.
    Refused,
}

/// A close code with a meaning, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode {
    pub code: u16,
    pub verdict: Verdict,
}

/// The wait after close code 1013 (try again later).
const OVERLOADED_WAIT: Duration = Duration::from_secs(5);

/// The close codes of RFC 6455 section 7.4.1 after which a plain backoff is wrong.
const CLOSE_CODES: [CloseCode; 4] = [
    CloseCode { code: 1008, verdict: Verdict::RefreshToken },
    CloseCode { code: 1011, verdict: Verdict::Restarting },
    CloseCode { code: 1012, verdict: Verdict::Restarting },
    CloseCode { code: 1013, verdict: Verdict::WaitFor(OVERLOADED_WAIT) },
];

/// The verdict on an unexpected status. A success that cannot be used is retried like a server error.
fn verdict_for_status(exchange: Exchange, status: u16, retry_after: Option<Duration>) -> Verdict {
    match StatusMeaning::of(exchange, status, retry_after) {
        StatusMeaning::Throttled(Some(wait)) => Verdict::WaitFor(wait),
        StatusMeaning::Success | StatusMeaning::Transient | StatusMeaning::Throttled(None) => Verdict::BackOff,
        StatusMeaning::Unauthenticated => Verdict::RefreshToken,
        StatusMeaning::Refused => Verdict::Refused,
    }
}

/// The verdict on a close code with a meaning.
fn verdict_for_close_code(code: u16, of_platform: &[CloseCode]) -> Option<Verdict> {
    of_platform.iter().chain(&CLOSE_CODES).find(|known| known.code == code).map(|known| known.verdict)
}

impl Verdict {
    /// The `class` label of a close code with this verdict.
    fn close_class(self) -> FailureClass {
        match self {
            Self::BackOff => FailureClass::Network,
            Self::Restarting | Self::WaitFor(_) => FailureClass::Restart,
            Self::RefreshToken | Self::NewEndpoint | Self::Refused => FailureClass::Refused,
        }
    }
}

labels! {
    /// The `class` label of a lost session in the metrics.
    pub enum FailureClass {
        Network = "network",
        Silence = "silence",
        Restart = "restart",
        Clean = "clean",
        Protocol = "protocol",
        Refused = "refused",
    }
}

impl Failure {
    /// What it demands. `of_status`: what the platform means by a status, where it differs from [`StatusMeaning`].
    /// `close_codes`: what the platform adds to RFC 6455.
    pub(super) fn verdict(
        &self,
        of_status: impl Fn(Exchange, u16) -> Option<Verdict>,
        close_codes: &[CloseCode],
    ) -> Verdict {
        let on_status = |exchange, status, retry_after| {
            of_status(exchange, status).unwrap_or_else(|| verdict_for_status(exchange, status, retry_after))
        };
        match self {
            Self::Handshake { status, retry_after, .. } => on_status(Exchange::Upgrade, *status, *retry_after),
            Self::Call { status, retry_after, .. } => on_status(Exchange::Call, *status, *retry_after),
            Self::Closed { code, .. } => verdict_for_close_code(*code, close_codes).unwrap_or(Verdict::BackOff),
            Self::Unreachable(_) | Self::Silent | Self::Oversize | Self::Unfinished { .. } | Self::Unreadable(_) => {
                Verdict::BackOff
            }
            Self::Notice(Notice::TokenInvalid | Notice::TokenRevoked) => Verdict::RefreshToken,
            Self::Notice(Notice::EndpointGone | Notice::Closing) => Verdict::NewEndpoint,
            Self::Notice(Notice::Displaced | Notice::OpeningRefused) | Self::Unsubscribed { .. } => Verdict::Refused,
        }
    }

    /// A call that was answered with an error, with the texts of the error body (docs/platforms/genesys-cloud.md,
    /// "Errors of REST calls").
    pub fn from_response(call: &str, answer: &RestResponse) -> Self {
        let members = Members::read(&answer.body);
        let member = |name| members.as_ref().and_then(|members| members.text(name)).filter(|text| !text.is_empty());
        let words = [member("code"), member("message")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let params = members.as_ref().and_then(|members| Members::read(members.get("messageParams")?.get().as_bytes()));
        let permissions =
            params.and_then(|params| params.text("permissions")).filter(|known| !words.contains(known.as_str()));
        let texts =
            [Some(words).filter(|words| !words.is_empty()), permissions].into_iter().flatten().collect::<Vec<_>>();
        let call = match texts.is_empty() {
            true => call.to_owned(),
            false => format!("{call} ({})", json::truncated(&texts.join("; missing permissions: "))),
        };
        Self::Call { call, status: answer.status, retry_after: answer.retry_after }
    }

    /// Adds the URL of the attempt to its failure. `place` must not hold secrets.
    pub fn with_context(self, place: &str) -> Self {
        match self {
            Self::Handshake { status, retry_after, place: None } => {
                Self::Handshake { status, retry_after, place: Some(place.to_owned()) }
            }
            Self::Unreachable(why) => Self::Unreachable(format!("{place}: {why}")),
            failure @ (Self::Handshake { .. }
            | Self::Call { .. }
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. }) => failure,
        }
    }

    /// Whether an upgrade or a call got an answer that a retry is unlikely to change. A single one is retried; several in
    /// a row need an operator.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Handshake { status, .. } | Self::Call { status, .. } => {
                !matches!(status, 401 | 408 | 425 | 429 | 500..=599)
            }
            Self::Unreachable(_)
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. } => false,
        }
    }

    /// Whether a resuming upgrade may have been refused because of its position. A 404 has two causes: the position, or a
    /// stream that is briefly absent.
    pub fn position_doubt(&self) -> Option<PositionDoubt> {
        match self {
            Self::Handshake { status: 400 | 409 | 410 | 416, .. } => Some(PositionDoubt::Certain),
            Self::Handshake { status: 404, .. } => Some(PositionDoubt::WhenRepeated),
            Self::Handshake { .. }
            | Self::Call { .. }
            | Self::Unreachable(_)
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. } => None,
        }
    }

    /// The `class` label of a lost session in the metrics. `close_codes`: what the platform adds to RFC 6455.
    pub(super) fn class(&self, close_codes: &[CloseCode]) -> FailureClass {
        match self {
            Self::Handshake { .. } | Self::Call { .. } => FailureClass::Refused,
            Self::Unreachable(_) => FailureClass::Network,
            Self::Silent => FailureClass::Silence,
            Self::Oversize | Self::Unfinished { .. } | Self::Unreadable(_) => FailureClass::Protocol,
            Self::Notice(_) | Self::Unsubscribed { .. } => FailureClass::Refused,
            Self::Closed { code, .. } => match (verdict_for_close_code(*code, close_codes), code) {
                (Some(verdict), _) => verdict.close_class(),
                (None, 1000) => FailureClass::Clean,
                (None, 1002 | 1003 | 1007 | 1009 | 1010) => FailureClass::Protocol,
                (None, _) => FailureClass::Network,
            },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake { status, place: None, .. } => write!(f, "the upgrade was answered with {status}"),
            Self::Handshake { status, place: Some(place), .. } => {
                write!(f, "the upgrade of {place} was answered with {status}")
            }
            Self::Call { call, status, .. } => write!(f, "{call} was answered with {status}"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed with {code}"),
            Self::Closed { code, reason } => write!(f, "closed with {code} {reason:?}"),
            Self::Silent => write!(f, "no data within silence_max"),
            Self::Oversize => write!(f, "a frame beyond frame_max"),
            Self::Unfinished { within } => write!(f, "a message not complete in {} s", within.as_secs_f64()),
            Self::Unreadable(why) => write!(f, "a frame that cannot be read: {why}"),
            Self::Unsubscribed { topic, reason } => write!(f, "{topic} is not subscribed: {reason}"),
            Self::Notice(notice) => notice.fmt(f),
        }
    }
}
