//! The operations of one stream that are in flight: dials, REST calls, appends, claims.

use std::{collections::BTreeMap, future::Future, pin::Pin};

use futures_util::{
    StreamExt,
    future::{AbortHandle, abortable},
    stream::FuturesUnordered,
};

use super::{log_access::LogClaimResult, transport::UpstreamConnection};
use crate::{
    connector::{Failure, RestResponse},
    model::{Mark, Sequence},
    protocol::{session::SessionId, stream::CallId},
    store::AppendError,
};

type StreamWork = Pin<Box<dyn Future<Output = StreamWorkResult> + Send>>;

/// The result of an operation.
pub(super) enum StreamWorkResult {
    Connected(SessionId, Box<Result<UpstreamConnection, Failure>>),
    Answered(CallId, Result<RestResponse, String>),
    Appended(Result<Mark, AppendError>),
    /// The result of a claim of the log.
    Claimed(Box<LogClaimResult>),
    /// The last number of a log that another replica writes.
    Position(Option<Sequence>),
    Finished,
}

/// The operations in flight. Each is bounded by its own timeout.
#[derive(Default)]
pub(super) struct InFlight {
    work: FuturesUnordered<StreamWork>,
    /// The call or dial in flight of each session. Aborting it closes its connection.
    attempts: BTreeMap<SessionId, AbortHandle>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    pub(super) fn start(&mut self, work: impl Future<Output = StreamWorkResult> + Send + 'static) {
        self.work.push(Box::pin(work));
    }

    /// Starts an operation of a session, which [`InFlight::abort`] ends.
    pub(super) fn start_attempt(
        &mut self,
        session: SessionId,
        work: impl Future<Output = StreamWorkResult> + Send + 'static,
    ) {
        let (work, handle) = abortable(work);
        self.attempts.insert(session, handle);
        self.start(async move { work.await.unwrap_or(StreamWorkResult::Finished) });
    }

    /// Removes the finished operation of a session. False if the session was dropped.
    pub(super) fn finish_attempt(&mut self, session: SessionId) -> bool {
        self.attempts.remove(&session).is_some()
    }

    /// Ends the operation of a session that is dropped.
    pub(super) fn abort(&mut self, session: SessionId) {
        if let Some(attempt) = self.attempts.remove(&session) {
            attempt.abort();
        }
    }

    /// The result of the next operation that finishes. None if there is none in flight.
    pub(super) async fn next(&mut self) -> Option<StreamWorkResult> {
        self.work.next().await
    }
}
