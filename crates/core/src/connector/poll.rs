//! Transports without a socket: the requests of one session, and what their answers mean.
//!
//! A session sees frames. The shell sends [`PollExchange::request`], passes the answer to [`PollExchange::on_answer`],
//! and waits as long as that demands before the next request.

use std::time::Duration;

use super::{Connector, Failure, Frame, RestRequest, RestResponse, Transport};

/// Where the next request continues: the platform's cursor, or the id of its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollCursor(pub String);

/// What the answer to a poll means. Without a `next`, the cursor of the last request stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollAnswer {
    /// The body is a frame.
    Frame { next: Option<PollCursor> },
    /// Nothing has happened.
    Empty { next: Option<PollCursor> },
    /// The platform has ended the session, or refused the request.
    Ended(Failure),
}

impl PollAnswer {
    /// The meaning by status: 304, 204 and a success without content are empty, and another success is a frame.
    pub fn by_status(answer: &RestResponse) -> Self {
        match answer.status {
            204 | 304 => Self::Empty { next: None },
            200..=299 if answer.body.trim_ascii().is_empty() => Self::Empty { next: None },
            200..=299 => Self::Frame { next: None },
            _ => Self::Ended(Failure::from_response("the poll", answer)),
        }
    }
}

/// From one request of a long poll to the next, if the platform answers at once that nothing has happened.
const EMPTY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The requests of one session.
#[derive(Debug, Clone)]
pub struct PollExchange {
    connector: Connector,
    transport: Transport,
    url: String,
    cursor: Option<PollCursor>,
}

/// What follows an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollStep {
    /// None if nothing has happened.
    pub frame: Option<Frame>,
    /// Until the next request.
    pub wait: Duration,
}

impl PollExchange {
    /// `url` is the endpoint's, with the resume parameter if there is a position.
    pub fn new(connector: Connector, transport: Transport, url: String) -> Self {
        Self { connector, transport, url, cursor: None }
    }

    /// The next request.
    pub fn request(&self) -> RestRequest {
        self.connector.poll_request(&self.url, self.cursor.as_ref())
    }

    /// Takes the answer to the last request, which was sent this long ago.
    ///
    /// # Errors
    /// The session has ended.
    pub fn on_answer(&mut self, answer: RestResponse, elapsed: Duration) -> Result<PollStep, Failure> {
        let (frame, next) = match self.connector.poll_answer(&answer) {
            PollAnswer::Frame { next } => (Some(Frame::Binary(answer.body)), next),
            PollAnswer::Empty { next } => (None, next),
            PollAnswer::Ended(failure) => return Err(failure),
        };
        self.cursor = next.or_else(|| self.cursor.take());
        let interval = match self.transport {
            Transport::Poll { interval } => interval,
            Transport::LongPoll if frame.is_none() => EMPTY_INTERVAL_MIN,
            Transport::LongPoll | Transport::WebSocket => Duration::ZERO,
        };
        Ok(PollStep { frame, wait: interval.saturating_sub(elapsed) })
    }
}
