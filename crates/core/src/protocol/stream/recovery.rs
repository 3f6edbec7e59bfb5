//! Recovery after a gap: a snapshot of the current state, and the live events that wait behind it.
//!
//! The log gets the gap, the snapshot, then the held events. Events wait until the buffer is full or for [`HOLD_MAX`].
//! A snapshot that fails stays pending: it is fetched again while the stream continues.

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

/// Live events wait for a snapshot for at most this time.
const HOLD_MAX: Duration = Duration::from_secs(10);
/// The delay before a failed snapshot is fetched again.
const RETRY: BackoffCurve = BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };
/// The maximum size in bytes of the answers of one snapshot. Answers beyond it are stored with their status only.
const SNAPSHOT_BYTES_MAX: usize = 32 << 20;
/// The maximum number of calls for one snapshot.
const CALLS_MAX: usize = 256;

/// The recovery of one stream.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    state: RecoveryState,
    /// Live events and gaps that wait for the snapshot in front of them.
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

/// A snapshot that a gap requires.
#[derive(Debug, Clone)]
struct PendingSnapshot {
    ticket: GapTicket,
    reason: GapReason,
    /// The mark of the gap entry, once it is durable.
    gap: Option<Mark>,
    attempts: u32,
}

#[derive(Debug)]
struct SnapshotFetch {
    snapshot: PendingSnapshot,
    /// Until when live events wait; none if they do not wait.
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

/// The result of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SnapshotOutcome {
    /// More calls follow.
    Pending,
    Complete,
    /// The snapshot failed and stays pending. The text is the reason.
    Failed(String),
}

/// An answer that is no part of a snapshot, and the minimum wait before the next try.
#[derive(Debug)]
struct UnusableResponse {
    reason: String,
    wait: Option<Duration>,
}

impl Recovery {
    /// Whether live events wait.
    pub(super) fn is_holding(&self) -> bool {
        matches!(&self.state, RecoveryState::Fetching(fetch) if fetch.holds_until.is_some())
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The size of the held events in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether a snapshot is missing while live events do not wait for it.
    pub(super) fn snapshot_pending(&self) -> bool {
        !matches!(self.state, RecoveryState::Idle) && !self.is_holding()
    }

    /// Holds an entry behind the snapshot.
    pub(super) fn hold(&mut self, pending: PendingEntry) {
        self.held_bytes += pending.event.weight();
        self.held.push_back(pending);
    }

    /// The newest entry that waits.
    pub(super) fn newest_held(&mut self) -> Option<&mut PendingEntry> {
        self.held.back_mut()
    }

    /// A gap entry exists. Its snapshot is fetched now, or when the entry is released.
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

    /// A gap entry is durable at this mark.
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

    /// The next call to make, with its number.
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

    /// Handles the answer to a call.
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

    /// Ends the wait of live events, or fetches a pending snapshot again with these requests.
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

    /// Live events wait no longer, because the buffer is full or the stream drains.
    pub(super) fn stop_holding(&mut self) {
        if let RecoveryState::Fetching(fetch) = &mut self.state {
            fetch.holds_until = None;
        }
    }

    /// Takes what can go into the buffer: a complete snapshot, then held events up to the next gap that needs one.
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
                // This snapshot is newer than a pending one, so it replaces it.
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

/// Turns an answer into a part of a snapshot.
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
            // Another try would fail too. The entry records the status.
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
