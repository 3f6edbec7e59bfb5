//! Long poll and poll: one HTTP request after the other, with the answers as frames.
//!
//! A request is sent only while the caller reads, so a stream that wants no frames does not poll. The session's timeouts
//! end a request that is not answered.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::time::Sleep;

use super::socket_event::SocketEvent;
use crate::{
    clock,
    connector::{Credential, Failure, Frame, PollExchange, PollStep, RestResponse},
    model::Secret,
    upstream::rest_client::{OpenResponse, RestClient, UnreadBody},
};

/// Timeout of one request. The session's `silence_max` ends it earlier, except while the stream wants no frames.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The requests of one session.
pub(crate) struct PollConnection {
    client: RestClient,
    exchange: PollExchange,
    credential: Credential,
    token: Secret,
    frame_max: usize,
    state: PollState,
    /// Frames of the last answer that are not read yet.
    frames: VecDeque<Frame>,
    /// Probes since the last request was sent. The answer to the next request answers them.
    probes: u32,
    /// The session closes this connection after the answer that it reads.
    closing: bool,
}

/// An answer with its head read, or why there is none.
type Asked = Result<OpenResponse, String>;

enum PollState {
    /// Until the next request.
    Waiting(Pin<Box<Sleep>>),
    /// A request was sent.
    Asking {
        request: SentRequest,
        answer: BoxFuture<'static, Asked>,
    },
    /// The head of the answer has arrived.
    Reading {
        request: SentRequest,
        is_reported: bool,
        body: BoxFuture<'static, Result<RestResponse, UnreadBody>>,
    },
    Ended(Failure),
}

#[derive(Clone, Copy)]
struct SentRequest {
    at: Instant,
    /// The probes that its answer answers.
    probes: u32,
}

impl PollConnection {
    pub(super) fn new(
        client: RestClient,
        exchange: PollExchange,
        credential: Credential,
        token: Secret,
        frame_max: usize,
    ) -> Self {
        let state = PollState::wait(Duration::ZERO);
        Self {
            client,
            exchange,
            credential,
            token,
            frame_max,
            state,
            frames: VecDeque::new(),
            probes: 0,
            closing: false,
        }
    }

    /// The next frame, or the failure that ended the session.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketEvent, Failure>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Ok(SocketEvent::Frame(frame)));
            }
            match &mut self.state {
                PollState::Waiting(wait) => {
                    ready!(wait.as_mut().poll(cx));
                    self.ask();
                }
                PollState::Asking { request, answer } => {
                    let (request, answer) = (*request, ready!(answer.as_mut().poll(cx)));
                    self.state = self.read(request, answer);
                }
                PollState::Reading { request, is_reported, body } => match body.as_mut().poll(cx) {
                    Poll::Pending if std::mem::replace(is_reported, true) => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(Ok(SocketEvent::PartialFrame)),
                    Poll::Ready(answer) => {
                        let request = *request;
                        self.state = self.take_answer(request, answer);
                    }
                },
                PollState::Ended(failure) => return Poll::Ready(Err(failure.clone())),
            }
        }
    }

    /// Asks at once if the next request waits for its interval.
    pub(super) fn probe(&mut self) {
        self.probes += 1;
        if matches!(self.state, PollState::Waiting(_)) {
            self.state = PollState::wait(Duration::ZERO);
        }
    }

    /// Sends no further request. An answer that is being read is still a frame.
    pub(super) fn close(&mut self) {
        self.closing = true;
        match self.state {
            PollState::Waiting(_) | PollState::Asking { .. } => self.state = PollState::closed(),
            PollState::Reading { .. } | PollState::Ended(_) => (),
        }
    }

    fn ask(&mut self) {
        let request = SentRequest { at: clock::now(), probes: std::mem::take(&mut self.probes) };
        let (client, call) = (self.client.clone(), self.exchange.request());
        let (credential, token) = (self.credential.clone(), self.token.clone());
        let answer = async move { client.open(call, &credential, &token, REQUEST_TIMEOUT).await };
        self.state = PollState::Asking { request, answer: Box::pin(answer) };
    }

    fn read(&self, request: SentRequest, answer: Asked) -> PollState {
        match answer {
            Ok(answer) => {
                let body = Box::pin(answer.read(self.frame_max));
                PollState::Reading { request, is_reported: false, body }
            }
            Err(why) => PollState::Ended(Failure::Unreachable(why)),
        }
    }

    fn take_answer(&mut self, request: SentRequest, answer: Result<RestResponse, UnreadBody>) -> PollState {
        let elapsed = clock::now().saturating_duration_since(request.at);
        let step = match answer {
            Ok(answer) => self.exchange.on_answer(answer, elapsed),
            Err(UnreadBody::TooLong) => Err(Failure::Oversize),
            Err(UnreadBody::Lost(why)) => Err(Failure::Unreachable(why)),
        };
        let PollStep { frame, wait } = match step {
            Ok(step) => step,
            Err(failure) => return PollState::Ended(failure),
        };
        let is_empty = frame.is_none();
        self.frames.extend(frame);
        if is_empty || request.probes > 0 {
            self.frames.push_back(Frame::Answered { probes: request.probes });
        }
        match self.closing {
            true => PollState::closed(),
            false => PollState::wait(if self.probes > 0 { Duration::ZERO } else { wait }),
        }
    }
}

impl PollState {
    fn wait(duration: Duration) -> Self {
        Self::Waiting(Box::pin(tokio::time::sleep(duration)))
    }

    fn closed() -> Self {
        Self::Ended(Failure::Closed { code: 1000, reason: String::new() })
    }
}
