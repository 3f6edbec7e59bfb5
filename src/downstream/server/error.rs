//! Why a consumer does not get what it asked for, and the only place that maps it to HTTP.
//!
//! What the client is told and what is logged are two texts: nothing of the store's inside leaves the process.

use axum::{
    http::{
        StatusCode,
        header::{RETRY_AFTER, SEC_WEBSOCKET_VERSION},
    },
    response::{IntoResponse, Response},
};

use super::{accept::Form, memory, query::QueryError, ws::handshake::HandshakeError};
use crate::{
    listener::{origin::Foreign, problem::Problem},
    model::{Mark, StreamName},
    store::ReadError,
    telemetry::chain,
};

/// One request that is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no stream {0}")]
    UnknownStream(StreamName),
    #[error("{0:?} is not the name of a stream")]
    NoStreamName(String),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("none of the accepted media types is served here")]
    NotAcceptable,
    #[error("the events after {mark} are not held any more; the oldest held is {first}")]
    Trimmed { mark: Mark, first: Mark },
    #[error("{mark} is of an epoch that this log does not have; the oldest event held is {first}")]
    ForeignEpoch { mark: Mark, first: Mark },
    #[error("{mark} was lost with a failover of the store; what it kept of that epoch ends with {kept}")]
    Lost { mark: Mark, kept: Mark },
    #[error("there is no event {mark} in {stream} yet")]
    BeyondEnd { mark: Mark, stream: StreamName },
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the pages that other clients have not taken yet leave no room for this one")]
    NoRoom,
    #[error("the store is not open yet; try again")]
    Starting,
    #[error("the log could not be read")]
    Unreadable(#[from] ReadError),
}

/// After a failed read of the store, or where there was no room, in seconds.
const RETRY_AFTER_SECS: &str = "5";

/// While the process starts, in seconds.
const STARTING_RETRY_SECS: &str = "1";

impl From<memory::NoRoom> for Refusal {
    fn from(memory::NoRoom: memory::NoRoom) -> Self {
        Self::NoRoom
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if let Self::Unreadable(cause) = &self {
            tracing::warn!(error = chain(cause), "a consumer's request failed");
        }
        self.problem().into_response()
    }
}

impl Refusal {
    fn problem(&self) -> Problem {
        let plain = |status, slug, title| Problem::new(status, slug, title, self.to_string());
        match self {
            Self::UnknownStream(_) | Self::NoStreamName(_) => {
                plain(StatusCode::NOT_FOUND, "unknown-stream", "No such stream")
            }
            Self::Query(error) => query_problem(error, plain),
            Self::NotAcceptable => {
                let forms = [Form::Page, Form::Sse, Form::Ndjson].map(Form::media_type).join(", ");
                let detail = format!("events are served as {forms}, and over WebSocket");
                Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "No acceptable form", detail)
            }
            Self::Trimmed { .. } => plain(StatusCode::GONE, "cursor-trimmed", "Cursor beyond retention"),
            Self::ForeignEpoch { .. } => plain(StatusCode::GONE, "cursor-foreign", "Cursor of another epoch"),
            Self::Lost { .. } => plain(StatusCode::GONE, "cursor-lost", "Cursor of an event that was lost"),
            Self::BeyondEnd { .. } => {
                plain(StatusCode::BAD_REQUEST, "cursor-beyond-end", "Cursor beyond the end of the log")
            }
            Self::Foreign(foreign) => foreign.problem(),
            Self::Handshake(error) => handshake_problem(error),
            Self::NoRoom => plain(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy").with(RETRY_AFTER, RETRY_AFTER_SECS),
            Self::Starting => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "starting", "Starting").with(RETRY_AFTER, STARTING_RETRY_SECS)
            }
            Self::Unreadable(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable")
                .with(RETRY_AFTER, RETRY_AFTER_SECS),
        }
    }
}

fn query_problem(error: &QueryError, plain: impl Fn(StatusCode, &'static str, &'static str) -> Problem) -> Problem {
    let (slug, title) = match error {
        QueryError::Unknown { .. } => ("unknown-parameter", "Unknown parameter"),
        QueryError::Cursor(..)
        | QueryError::ResumedTwice
        | QueryError::ResumedUnreadable
        | QueryError::NoMark(_)
        | QueryError::Nameless => ("invalid-cursor", "Invalid cursor"),
        QueryError::Conflict(..) => ("conflicting-parameters", "Conflicting parameters"),
        QueryError::Unreadable
        | QueryError::Twice(_)
        | QueryError::Since(_)
        | QueryError::From(_)
        | QueryError::Type(_)
        | QueryError::Limit(_)
        | QueryError::Positions(_)
        | QueryError::Stream(_)
        | QueryError::NoStream
        | QueryError::TooManyStreams => ("invalid-parameter", "Invalid parameter"),
    };
    plain(StatusCode::BAD_REQUEST, slug, title)
}

fn handshake_problem(error: &HandshakeError) -> Problem {
    let of = |status| Problem::new(status, "websocket-handshake", "WebSocket handshake refused", error.to_string());
    match error {
        HandshakeError::Version => of(StatusCode::UPGRADE_REQUIRED).with(SEC_WEBSOCKET_VERSION, "13"),
        HandshakeError::Protocol | HandshakeError::Connection | HandshakeError::Key => of(StatusCode::BAD_REQUEST),
    }
}
