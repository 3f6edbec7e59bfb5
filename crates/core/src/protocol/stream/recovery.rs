//! After a gap: the snapshot that tells the current state, and the live events that wait behind it.
//!
//! Gap, snapshot, then what was held. A snapshot that cannot be had at once is owed: it is tried again behind the
//! live stream, and never holds it up for longer than the buffer or [`HOLD_MAX`] lasts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::buffer::{Pending, Ticket};
use crate::{
    connector::{Answer, Connector, Failure, Request, Verdict},
    model::{Event, GapReason, Mark, Timestamp},
    protocol::{Now, backoff::Curve},
};

/// Live events wait this long for a snapshot, if the buffer lasts.
const HOLD_MAX: Duration = Duration::from_secs(10);
/// A snapshot that failed is tried again: soon at first, then twice a minute for as long as it is owed.
const RETRY: Curve = Curve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };
/// The answers of one snapshot take at most so many bytes; those beyond stand in the log with their status alone.
const SNAPSHOT_BYTES_MAX: usize = 32 << 20;
/// One snapshot takes at most so many calls.
const CALLS_MAX: usize = 256;

/// The recovery of one stream.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    stage: Stage,
    /// Live events, and the gaps among them, that wait for the snapshot in front of them.
    held: VecDeque<Pending>,
    held_bytes: usize,
    /// The newest gap among the held events.
    queued: Option<Debt>,
    calls: u64,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Fetching(Fetch),
    Owed {
        debt: Debt,
        at: Instant,
    },
}

/// A snapshot that a gap asks for.
#[derive(Debug, Clone)]
struct Debt {
    ticket: Ticket,
    reason: GapReason,
    /// The gap entry's address, known when it is durable.
    gap: Option<Mark>,
    attempts: u32,
}

#[derive(Debug)]
struct Fetch {
    debt: Debt,
    /// Live events wait until then; none when they do not.
    holds_until: Option<Instant>,
    todo: VecDeque<Request>,
    asked: Option<(u64, Request)>,
    answers: Vec<Resource>,
    done: usize,
}

#[derive(Debug)]
struct Resource {
    target: String,
    status: u16,
    answer: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct SnapshotData<'a> {
    reason: GapReason,
    resource: &'a str,
    status: u16,
    answer: Option<&'a RawValue>,
    gap: String,
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// More is to be asked, or to be waited for.
    Pending,
    Taken,
    /// It is owed, and why.
    Failed(String),
}

/// Why an answer is no part of a snapshot, and for how long to wait at least before asking again.
#[derive(Debug)]
struct Unusable {
    why: String,
    wait: Option<Duration>,
}

impl Recovery {
    /// Whether live events have to wait.
    pub(super) fn holds(&self) -> bool {
        matches!(&self.stage, Stage::Fetching(fetch) if fetch.holds_until.is_some())
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// What the held events weigh.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether a snapshot is still owed to the log.
    pub(super) fn owes(&self) -> bool {
        !matches!(self.stage, Stage::Idle) && !self.holds()
    }

    /// Keeps an entry back behind the snapshot.
    pub(super) fn hold(&mut self, pending: Pending) {
        self.held_bytes += pending.event.weight();
        self.held.push_back(pending);
    }

    /// A gap entry was made. Its snapshot is fetched now, or when the entry leaves the held ones.
    pub(super) fn begin(&mut self, ticket: Ticket, reason: GapReason, requests: Vec<Request>, now: Instant) {
        if requests.is_empty() {
            return;
        }
        let debt = Debt { ticket, reason, gap: None, attempts: 0 };
        if self.held() > 0 {
            self.queued = Some(debt);
        } else {
            self.stage = Stage::Fetching(Fetch::new(debt, requests, Some(now + HOLD_MAX)));
        }
    }

    /// A gap entry became durable under this address.
    pub(super) fn appended(&mut self, ticket: Ticket, mark: Mark) {
        let debt = match &mut self.stage {
            Stage::Idle => None,
            Stage::Fetching(fetch) => Some(&mut fetch.debt),
            Stage::Owed { debt, .. } => Some(debt),
        };
        for debt in debt.into_iter().chain(&mut self.queued) {
            if debt.ticket == ticket {
                debt.gap = Some(mark);
            }
        }
    }

    /// The call that is to be made, with its number.
    pub(super) fn next_call(&mut self) -> Option<(u64, Request)> {
        let Stage::Fetching(fetch) = &mut self.stage else { return None };
        if fetch.asked.is_some() || fetch.done >= CALLS_MAX {
            return None;
        }
        let request = fetch.todo.pop_front()?;
        self.calls += 1;
        fetch.asked = Some((self.calls, request.clone()));
        fetch.done += 1;
        Some((self.calls, request))
    }

    /// Takes the answer to a call.
    pub(super) fn answered(
        &mut self,
        call: u64,
        answer: Result<Answer, String>,
        connector: &Connector,
        now: Instant,
        unit: f64,
    ) -> Outcome {
        let Stage::Fetching(fetch) = &mut self.stage else { return Outcome::Pending };
        let Some((_, request)) = fetch.asked.take_if(|(number, _)| *number == call) else { return Outcome::Pending };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                return self.fail(Unusable { why: format!("{}: {why}", request.call()), wait: None }, now, unit);
            }
        };
        let mut resource = match resource_of(&request, &answer, connector) {
            Ok(resource) => resource,
            Err(unusable) => return self.fail(unusable, now, unit),
        };
        let size = |resource: &Resource| resource.answer.as_ref().map_or(0, |answer| answer.get().len());
        if fetch.answers.iter().map(size).sum::<usize>() + size(&resource) > SNAPSHOT_BYTES_MAX {
            resource.answer = None;
        }
        fetch.answers.push(resource);
        fetch.todo.extend(connector.snapshot_next(&request, &answer));
        if fetch.is_complete() { Outcome::Taken } else { Outcome::Pending }
    }

    fn fail(&mut self, Unusable { why, wait }: Unusable, now: Instant, unit: f64) -> Outcome {
        let Stage::Fetching(fetch) = std::mem::take(&mut self.stage) else { return Outcome::Pending };
        let mut debt = self.queued.take().unwrap_or(fetch.debt);
        let delay = RETRY.delay(debt.attempts, unit);
        debt.attempts += 1;
        self.stage = Stage::Owed { debt, at: now + wait.map_or(delay, |wait| wait.max(delay)) };
        Outcome::Failed(why)
    }

    /// Time is over for holding, or it is time to try an owed snapshot again with these requests.
    pub(super) fn handle_timeout(&mut self, requests: &[Request], now: Instant) {
        match &mut self.stage {
            Stage::Idle => (),
            Stage::Fetching(fetch) => fetch.holds_until = fetch.holds_until.filter(|until| now < *until),
            Stage::Owed { debt, at } if now >= *at => {
                self.stage = Stage::Fetching(Fetch::new(debt.clone(), requests.to_vec(), None));
            }
            Stage::Owed { .. } => (),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle => None,
            Stage::Fetching(fetch) => fetch.holds_until,
            Stage::Owed { at, .. } => Some(*at),
        }
    }

    /// The buffer is full: live events wait no longer.
    pub(super) fn stop_holding(&mut self) {
        if let Stage::Fetching(fetch) = &mut self.stage {
            fetch.holds_until = None;
        }
    }

    /// What may go into the buffer now: a complete snapshot, then held events up to the next gap that needs one.
    pub(super) fn release(&mut self, requests: &[Request], now: Now) -> Vec<Pending> {
        if self.held.is_empty() && matches!(self.stage, Stage::Idle) {
            return Vec::new();
        }
        let mut released = self.take_snapshot(now.wall);
        if self.holds() {
            return released;
        }
        while let Some(pending) = self.held.pop_front() {
            self.held_bytes -= pending.event.weight();
            let ticket = pending.ticket;
            released.push(pending);
            if let Some(debt) = self.queued.take_if(|debt| Some(debt.ticket) == ticket) {
                // One that is still owed from before is paid by this one too: it is newer.
                self.stage = Stage::Fetching(Fetch::new(debt, requests.to_vec(), Some(now.at + HOLD_MAX)));
                break;
            }
        }
        released
    }

    fn take_snapshot(&mut self, received: Timestamp) -> Vec<Pending> {
        let complete = matches!(&self.stage, Stage::Fetching(fetch) if fetch.is_complete());
        let Stage::Fetching(Fetch { debt: Debt { reason, gap: Some(gap), .. }, answers, .. }) = &self.stage else {
            return Vec::new();
        };
        if !complete {
            return Vec::new();
        }
        let entries = answers.iter().map(|resource| resource.event(*reason, *gap, received).into()).collect();
        self.stage = Stage::Idle;
        entries
    }
}

impl Fetch {
    fn new(debt: Debt, requests: Vec<Request>, holds_until: Option<Instant>) -> Self {
        Self { debt, holds_until, todo: requests.into(), asked: None, answers: Vec::new(), done: 0 }
    }

    fn is_complete(&self) -> bool {
        self.asked.is_none() && (self.todo.is_empty() || self.done >= CALLS_MAX)
    }
}

/// The part of a snapshot that an answer is.
fn resource_of(request: &Request, answer: &Answer, connector: &Connector) -> Result<Resource, Unusable> {
    let refused = !(200..300).contains(&answer.status);
    if refused {
        let failure = Failure::of_answer(&request.call(), answer);
        let unusable = |wait| Err(Unusable { why: failure.to_string(), wait });
        match connector.classify(&failure) {
            // Asking again is futile: the log says so in the snapshot's place.
            Verdict::Refused | Verdict::NewEndpoint => (),
            Verdict::WaitFor(wait) => return unusable(Some(wait)),
            Verdict::BackOff | Verdict::Restarting | Verdict::RefreshToken => return unusable(None),
        }
    }
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| !refused);
    let json = text.and_then(|text| RawValue::from_string(text.to_owned()).ok());
    if json.is_none() && !refused {
        let why = format!("{} was answered with {} and no JSON", request.call(), answer.status);
        return Err(Unusable { why, wait: None });
    }
    Ok(Resource { target: request.target.clone(), status: answer.status, answer: json })
}

impl Resource {
    fn event(&self, reason: GapReason, gap: Mark, received: Timestamp) -> Event {
        let data = SnapshotData {
            reason,
            resource: &self.target,
            status: self.status,
            answer: self.answer.as_deref(),
            gap: gap.to_string(),
        };
        Event::own("trunkline.snapshot.v1", &data, received)
    }
}
