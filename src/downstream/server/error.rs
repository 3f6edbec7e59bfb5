//! Errors of consumer requests and their mapping to HTTP.
//!
//! Details of the store are logged and not sent to the client.

use axum::{
    http::{
        StatusCode,
        header::{RETRY_AFTER, SEC_WEBSOCKET_VERSION, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};

use super::{accept::ResponseForm, access::AccessError, buffer_pool, query::QueryError, ws::handshake::HandshakeError};
use crate::{
    downstream::consumers::ConsumerError,
    listener::{origin::OriginError, problem::HttpProblem},
    model::{Mark, StreamName},
    protocol::access::CloseReason,
    store::ReadError,
    telemetry::chain,
};

/// Why a consumer request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsumerRequestError {
    #[error("unknown stream {0}")]
    UnknownStream(StreamName),
    #[error("{0:?} is not the name of a stream")]
    InvalidStreamName(String),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("none of the accepted media types is supported")]
    NotAcceptable,
    #[error("the events after {mark} are no longer stored; the oldest stored event is {first}")]
    Trimmed { mark: Mark, first: Mark },
    #[error("cursor {mark} belongs to an unknown epoch; the oldest stored event is {first}")]
    UnknownEpoch { mark: Mark, first: Mark },
    #[error("event {mark} was lost in a failover of the store; the last event of that epoch is {kept}")]
    Lost { mark: Mark, kept: Mark },
    #[error("event {mark} does not exist yet in {stream}")]
    AheadOfLog { mark: Mark, stream: StreamName },
    #[error(transparent)]
    Foreign(#[from] OriginError),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the buffer for pages is full; retry later")]
    Busy,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("this listener has no authentication, so no ticket is needed")]
    NoAuthentication,
    #[error(
        "expected a JSON object such as {{\"streams\": [\"queues\"], \"ttl\": \"60s\"}}, with 1s to 60s; both keys are optional"
    )]
    TicketRequest,
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    #[error("{0:?} is not the name of a consumer")]
    InvalidConsumerName(String),
    #[error("expected a JSON object such as {0}")]
    ConsumerRequest(&'static str),
    #[error("the store is not open yet; try again")]
    Starting,
    #[error("cannot read the log")]
    Unreadable(#[from] ReadError),
}

/// `Retry-After` of a failed read or a full buffer, in seconds.
const RETRY_AFTER_SECS: &str = "5";

/// `Retry-After` while the process starts, in seconds.
const STARTING_RETRY_SECS: &str = "1";

impl From<buffer_pool::PoolExhausted> for ConsumerRequestError {
    fn from(buffer_pool::PoolExhausted: buffer_pool::PoolExhausted) -> Self {
        Self::Busy
    }
}

impl IntoResponse for ConsumerRequestError {
    fn into_response(self) -> Response {
        if let Self::Unreadable(cause) | Self::Consumer(ConsumerError::Unreadable(cause)) = &self {
            tracing::warn!(error = chain(cause), "consumer request failed");
        }
        if let Self::Consumer(ConsumerError::Store(cause)) = &self {
            tracing::warn!(error = chain(cause), "consumer request failed");
        }
        self.problem().into_response()
    }
}

impl ConsumerRequestError {
    /// The stable last part of the problem's `type`.
    pub(super) fn slug(&self) -> &'static str {
        self.problem().slug
    }

    fn problem(&self) -> HttpProblem {
        let plain = |status, slug, title| HttpProblem::new(status, slug, title, self.to_string());
        match self {
            Self::UnknownStream(_) | Self::InvalidStreamName(_) => {
                plain(StatusCode::NOT_FOUND, "unknown-stream", "No such stream")
            }
            Self::Query(error) => query_problem(error, plain),
            Self::NotAcceptable => {
                let forms = [ResponseForm::Page, ResponseForm::Sse, ResponseForm::Ndjson]
                    .map(ResponseForm::media_type)
                    .join(", ");
                let detail = format!("events are available as {forms}, and over WebSocket");
                HttpProblem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "No acceptable format", detail)
            }
            Self::Trimmed { .. } => plain(StatusCode::GONE, "cursor-trimmed", "Cursor beyond retention"),
            Self::UnknownEpoch { .. } => plain(StatusCode::GONE, "cursor-foreign", "Cursor of another epoch"),
            Self::Lost { .. } => plain(StatusCode::GONE, "cursor-lost", "Cursor of a lost event"),
            Self::AheadOfLog { .. } => {
                plain(StatusCode::BAD_REQUEST, "cursor-beyond-end", "Cursor beyond the end of the log")
            }
            Self::Foreign(foreign) => foreign.problem(),
            Self::Handshake(error) => handshake_problem(error),
            Self::Access(error) => access_problem(*error),
            Self::NoAuthentication => plain(StatusCode::NOT_FOUND, "no-authentication", "No authentication"),
            Self::TicketRequest => plain(StatusCode::BAD_REQUEST, "invalid-ticket-request", "Invalid ticket request"),
            Self::Busy => plain(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy").with(RETRY_AFTER, RETRY_AFTER_SECS),
            Self::Starting => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "starting", "Starting").with(RETRY_AFTER, STARTING_RETRY_SECS)
            }
            Self::Consumer(error) => consumer_problem(error, plain),
            Self::InvalidConsumerName(_) => plain(StatusCode::NOT_FOUND, "unknown-consumer", "No such consumer"),
            Self::ConsumerRequest(_) => {
                plain(StatusCode::BAD_REQUEST, "invalid-consumer-request", "Invalid request about a consumer")
            }
            Self::Unreadable(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable")
                .with(RETRY_AFTER, RETRY_AFTER_SECS),
        }
    }
}

fn query_problem(
    error: &QueryError,
    plain: impl Fn(StatusCode, &'static str, &'static str) -> HttpProblem,
) -> HttpProblem {
    let (slug, title) = match error {
        QueryError::Unknown { .. } => ("unknown-parameter", "Unknown parameter"),
        QueryError::Cursor(..)
        | QueryError::LastEventIdRepeated
        | QueryError::LastEventIdUnreadable
        | QueryError::StreamNotInCursor(_)
        | QueryError::NamesRequired => ("invalid-cursor", "Invalid cursor"),
        QueryError::Conflict(..) => ("conflicting-parameters", "Conflicting parameters"),
        QueryError::Unreadable
        | QueryError::Repeated(_)
        | QueryError::Since(_)
        | QueryError::From(_)
        | QueryError::Type(_)
        | QueryError::Limit(_)
        | QueryError::Positions(_)
        | QueryError::Stream(_)
        | QueryError::Consumer(_)
        | QueryError::NoStream
        | QueryError::TooManyStreams => ("invalid-parameter", "Invalid parameter"),
    };
    plain(StatusCode::BAD_REQUEST, slug, title)
}

fn consumer_problem(
    error: &ConsumerError,
    plain: impl Fn(StatusCode, &'static str, &'static str) -> HttpProblem,
) -> HttpProblem {
    match error {
        ConsumerError::Unknown(_) => plain(StatusCode::NOT_FOUND, "unknown-consumer", "No such consumer"),
        ConsumerError::NotRead(_) => plain(StatusCode::NOT_FOUND, "unknown-stream", "No such stream"),
        ConsumerError::Behind { .. } => plain(StatusCode::CONFLICT, "cursor-behind", "Cursor behind the stored one"),
        ConsumerError::AheadOfLog { .. } => {
            plain(StatusCode::BAD_REQUEST, "cursor-beyond-end", "Cursor beyond the end of the log")
        }
        ConsumerError::UnknownEpoch { .. } => plain(StatusCode::GONE, "cursor-foreign", "Cursor of another epoch"),
        ConsumerError::NamesRequired => plain(StatusCode::BAD_REQUEST, "invalid-cursor", "Invalid cursor"),
        ConsumerError::Superseded => plain(StatusCode::CONFLICT, "superseded", "Superseded by a newer reader"),
        ConsumerError::Store(_) | ConsumerError::Unreadable(_) => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "Store unavailable")
                .with(RETRY_AFTER, RETRY_AFTER_SECS)
        }
    }
}

/// The challenges of a 401 (RFC 6750 section 3).
const CHALLENGE: &str = "Bearer realm=\"trunkline\"";
const CHALLENGE_INVALID: &str = "Bearer realm=\"trunkline\", error=\"invalid_token\"";

fn access_problem(error: AccessError) -> HttpProblem {
    let plain = |status, slug, title| HttpProblem::new(status, slug, title, error.to_string());
    let busy = |slug| plain(StatusCode::SERVICE_UNAVAILABLE, slug, "Not available").with(RETRY_AFTER, RETRY_AFTER_SECS);
    let invalid =
        |slug| plain(StatusCode::UNAUTHORIZED, slug, "Not authenticated").with(WWW_AUTHENTICATE, CHALLENGE_INVALID);
    match error {
        AccessError::Missing => plain(StatusCode::UNAUTHORIZED, "credentials-required", "Credentials required")
            .with(WWW_AUTHENTICATE, CHALLENGE),
        AccessError::Credential(_) => plain(StatusCode::BAD_REQUEST, "invalid-credentials", "Invalid credentials"),
        AccessError::Token(token) if token.is_temporary() => busy("keys-unavailable"),
        AccessError::Token(token) if token.reason() == CloseReason::TokenExpired => invalid("token-expired"),
        AccessError::Token(_) | AccessError::Filter => invalid("token-invalid"),
        AccessError::Ticket => invalid("ticket-invalid"),
        AccessError::Bound => invalid("client-changed"),
        AccessError::Revoked => invalid("revoked"),
        AccessError::Forbidden => plain(StatusCode::FORBIDDEN, "forbidden", "Not permitted"),
        AccessError::Limit(_) => plain(StatusCode::TOO_MANY_REQUESTS, "limit", "Limit of the subject reached")
            .with(RETRY_AFTER, RETRY_AFTER_SECS),
        AccessError::Busy => busy("too-many-unauthenticated"),
        AccessError::Unavailable => busy("access-unavailable"),
    }
}

fn handshake_problem(error: &HandshakeError) -> HttpProblem {
    let of = |status| HttpProblem::new(status, "websocket-handshake", "WebSocket handshake refused", error.to_string());
    match error {
        HandshakeError::Version => of(StatusCode::UPGRADE_REQUIRED).with(SEC_WEBSOCKET_VERSION, "13"),
        HandshakeError::Protocol | HandshakeError::Connection | HandshakeError::Key => of(StatusCode::BAD_REQUEST),
    }
}
