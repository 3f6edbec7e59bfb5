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

use super::buffer::{GapTicket, PendingEntry};
use crate::{
    connector::{Connector, Failure, RestRequest, RestResponse, Verdict},
    model::{Event, GapReason, Mark, Timestamp},
    protocol::{Moment, backoff::BackoffCurve},
};

/// Live events wait this long for a snapshot, if the buffer lasts.
const HOLD_MAX: Duration = Duration::from_secs(10);
/// A snapshot that failed is tried again: soon at first, then twice a minute for as long as it is owed.
const RETRY: BackoffCurve = BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };
/// The answers of one snapshot take at most so many bytes; those beyond stand in the log with their status alone.
const SNAPSHOT_BYTES_MAX: usize = 32 << 20;
/// One snapshot takes at most so many calls.
const CALLS_MAX: usize = 256;

/// The recovery of one stream.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    state: RecoveryState,
    /// Live events, and the gaps among them, that wait for the snapshot in front of them.
    held: VecDeque<PendingEntry>,
    held_bytes: usize,
    /// The newest gap among the held events.
    queued: Option<PendingSnapshot>,
    calls: u64,
}

#[derive(Debug, Default)]
enum RecoveryState {
    #[default]
    Idle,
    Fetching(SnapshotFetch),
    Pending {
        snapshot: PendingSnapshot,
        at: Instant,
    },
}

/// A snapshot that a gap asks for.
#[derive(Debug, Clone)]
struct PendingSnapshot {
    ticket: GapTicket,
    reason: GapReason,
    /// The gap entry's address, known when it is durable.
    gap: Option<Mark>,
    attempts: u32,
}

#[derive(Debug)]
struct SnapshotFetch {
    snapshot: PendingSnapshot,
    /// Live events wait until then; none when they do not.
    holds_until: Option<Instant>,
    requests_left: VecDeque<RestRequest>,
    in_flight: Option<(u64, RestRequest)>,
    resources: Vec<SnapshotResource>,
    done: usize,
}

#[derive(Debug)]
struct SnapshotResource {
    target: String,
    status: u16,
    body: Option<Box<RawValue>>,
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
pub(super) enum SnapshotOutcome {
    /// More is to be asked, or to be waited for.
    Pending,
    Complete,
    /// It is owed, and why.
    Failed(String),
}

/// Why an answer is no part of a snapshot, and for how long to wait at least before asking again.
#[derive(Debug)]
struct UnusableResponse {
    reason: String,
    wait: Option<Duration>,
}

impl Recovery {
    /// Whether live events have to wait.
    pub(super) fn is_holding(&self) -> bool {
        matches!(&self.state, RecoveryState::Fetching(fetch) if fetch.holds_until.is_some())
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// What the held events weigh.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether a snapshot is still owed to the log.
    pub(super) fn snapshot_pending(&self) -> bool {
        !matches!(self.state, RecoveryState::Idle) && !self.is_holding()
    }

    /// Keeps an entry back behind the snapshot.
    pub(super) fn hold(&mut self, pending: PendingEntry) {
        self.held_bytes += pending.event.weight();
        self.held.push_back(pending);
    }

    /// A gap entry was made. Its snapshot is fetched now, or when the entry leaves the held ones.
    pub(super) fn start(&mut self, ticket: GapTicket, reason: GapReason, requests: Vec<RestRequest>, now: Instant) {
        if requests.is_empty() {
            return;
        }
        let snapshot = PendingSnapshot { ticket, reason, gap: None, attempts: 0 };
        if self.held() > 0 {
            self.queued = Some(snapshot);
        } else {
            self.state = RecoveryState::Fetching(SnapshotFetch::new(snapshot, requests, Some(now + HOLD_MAX)));
        }
    }

    /// A gap entry became durable under this address.
    pub(super) fn on_gap_appended(&mut self, ticket: GapTicket, mark: Mark) {
        let snapshot = match &mut self.state {
            RecoveryState::Idle => None,
            RecoveryState::Fetching(fetch) => Some(&mut fetch.snapshot),
            RecoveryState::Pending { snapshot, .. } => Some(snapshot),
        };
        for snapshot in snapshot.into_iter().chain(&mut self.queued) {
            if snapshot.ticket == ticket {
                snapshot.gap = Some(mark);
            }
        }
    }

    /// The call that is to be made, with its number.
    pub(super) fn next_call(&mut self) -> Option<(u64, RestRequest)> {
        let RecoveryState::Fetching(fetch) = &mut self.state else { return None };
        if fetch.in_flight.is_some() || fetch.done >= CALLS_MAX {
            return None;
        }
        let request = fetch.requests_left.pop_front()?;
        self.calls += 1;
        fetch.in_flight = Some((self.calls, request.clone()));
        fetch.done += 1;
        Some((self.calls, request))
    }

    /// Takes the answer to a call.
    pub(super) fn on_response(
        &mut self,
        call: u64,
        answer: Result<RestResponse, String>,
        connector: &Connector,
        now: Instant,
        unit: f64,
    ) -> SnapshotOutcome {
        let RecoveryState::Fetching(fetch) = &mut self.state else { return SnapshotOutcome::Pending };
        let Some((_, request)) = fetch.in_flight.take_if(|(number, _)| *number == call) else {
            return SnapshotOutcome::Pending;
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                return self.fail(
                    UnusableResponse { reason: format!("{}: {why}", request.call()), wait: None },
                    now,
                    unit,
                );
            }
        };
        let mut resource = match parse_resource(&request, &answer, connector) {
            Ok(resource) => resource,
            Err(unusable) => return self.fail(unusable, now, unit),
        };
        let size = |resource: &SnapshotResource| resource.body.as_ref().map_or(0, |answer| answer.get().len());
        if fetch.resources.iter().map(size).sum::<usize>() + size(&resource) > SNAPSHOT_BYTES_MAX {
            resource.body = None;
        }
        fetch.resources.push(resource);
        fetch.requests_left.extend(connector.snapshot_next(&request, &answer));
        if fetch.is_complete() { SnapshotOutcome::Complete } else { SnapshotOutcome::Pending }
    }

    fn fail(
        &mut self,
        UnusableResponse { reason: why, wait }: UnusableResponse,
        now: Instant,
        unit: f64,
    ) -> SnapshotOutcome {
        let RecoveryState::Fetching(fetch) = std::mem::take(&mut self.state) else { return SnapshotOutcome::Pending };
        let mut snapshot = self.queued.take().unwrap_or(fetch.snapshot);
        let delay = RETRY.delay(snapshot.attempts, unit);
        snapshot.attempts += 1;
        self.state = RecoveryState::Pending { snapshot, at: now + wait.map_or(delay, |wait| wait.max(delay)) };
        SnapshotOutcome::Failed(why)
    }

    /// Time is over for holding, or it is time to try an owed snapshot again with these requests.
    pub(super) fn handle_timeout(&mut self, requests: &[RestRequest], now: Instant) {
        match &mut self.state {
            RecoveryState::Idle => (),
            RecoveryState::Fetching(fetch) => fetch.holds_until = fetch.holds_until.filter(|until| now < *until),
            RecoveryState::Pending { snapshot, at } if now >= *at => {
                self.state = RecoveryState::Fetching(SnapshotFetch::new(snapshot.clone(), requests.to_vec(), None));
            }
            RecoveryState::Pending { .. } => (),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            RecoveryState::Idle => None,
            RecoveryState::Fetching(fetch) => fetch.holds_until,
            RecoveryState::Pending { at, .. } => Some(*at),
        }
    }

    /// The buffer is full: live events wait no longer.
    pub(super) fn stop_holding(&mut self) {
        if let RecoveryState::Fetching(fetch) = &mut self.state {
            fetch.holds_until = None;
        }
    }

    /// What may go into the buffer now: a complete snapshot, then held events up to the next gap that needs one.
    pub(super) fn release(&mut self, requests: &[RestRequest], now: Moment) -> Vec<PendingEntry> {
        if self.held.is_empty() && matches!(self.state, RecoveryState::Idle) {
            return Vec::new();
        }
        let mut released = self.take_snapshot(now.wall);
        if self.is_holding() {
            return released;
        }
        while let Some(pending) = self.held.pop_front() {
            self.held_bytes -= pending.event.weight();
            let ticket = pending.ticket;
            released.push(pending);
            if let Some(snapshot) = self.queued.take_if(|snapshot| Some(snapshot.ticket) == ticket) {
                // One that is still owed from before is paid by this one too: it is newer.
                self.state =
                    RecoveryState::Fetching(SnapshotFetch::new(snapshot, requests.to_vec(), Some(now.at + HOLD_MAX)));
                break;
            }
        }
        released
    }

    fn take_snapshot(&mut self, received: Timestamp) -> Vec<PendingEntry> {
        let complete = matches!(&self.state, RecoveryState::Fetching(fetch) if fetch.is_complete());
        let RecoveryState::Fetching(SnapshotFetch {
            snapshot: PendingSnapshot { reason, gap: Some(gap), .. },
            resources: answers,
            ..
        }) = &self.state
        else {
            return Vec::new();
        };
        if !complete {
            return Vec::new();
        }
        let entries = answers.iter().map(|resource| resource.event(*reason, *gap, received).into()).collect();
        self.state = RecoveryState::Idle;
        entries
    }
}

impl SnapshotFetch {
    fn new(snapshot: PendingSnapshot, requests: Vec<RestRequest>, holds_until: Option<Instant>) -> Self {
        Self { snapshot, holds_until, requests_left: requests.into(), in_flight: None, resources: Vec::new(), done: 0 }
    }

    fn is_complete(&self) -> bool {
        self.in_flight.is_none() && (self.requests_left.is_empty() || self.done >= CALLS_MAX)
    }
}

/// The part of a snapshot that an answer is.
fn parse_resource(
    request: &RestRequest,
    answer: &RestResponse,
    connector: &Connector,
) -> Result<SnapshotResource, UnusableResponse> {
    let refused = !(200..300).contains(&answer.status);
    if refused {
        let failure = Failure::from_response(&request.call(), answer);
        let unusable = |wait| Err(UnusableResponse { reason: failure.to_string(), wait });
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
        return Err(UnusableResponse { reason: why, wait: None });
    }
    Ok(SnapshotResource { target: request.target.clone(), status: answer.status, body: json })
}

impl SnapshotResource {
    fn event(&self, reason: GapReason, gap: Mark, received: Timestamp) -> Event {
        let data = SnapshotData {
            reason,
            resource: &self.target,
            status: self.status,
            answer: self.body.as_deref(),
            gap: gap.to_string(),
        };
        Event::internal("trunkline.snapshot.v1", &data, received)
    }
}
