//! The data path of a stream that owns its log: intake, and one append in flight.

use std::time::{Duration, Instant};

use super::{
    buffer::GapTicket,
    flush::Flush,
    intake::{Intake, IntakeOutcome},
    link::PathInput,
    settings::Settings,
};
use crate::{
    connector::{Capabilities, Resume},
    model::{Event, Gap, Mark, Offset, Position},
    protocol::Moment,
};

/// The checkpoint of a live stream without new events is renewed at least this often, so that a restart can measure how
/// long the platform was silent.
const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(15);

/// The state of a stream while it owns the log.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) intake: Intake,
    pub(super) flush: Flush,
    append: Option<AppendInFlight>,
    checkpointed_at: Instant,
    /// The log, or the append in flight, has a position.
    has_position: bool,
}

/// The append that is not durable yet.
#[derive(Debug, Default)]
struct AppendInFlight {
    /// The gap entries, by index.
    tickets: Vec<(usize, GapTicket)>,
    len: usize,
    bytes: usize,
}

impl Owner {
    pub(super) fn new(
        settings: &Settings,
        capabilities: &Capabilities,
        position: Option<Position>,
        now: Moment,
    ) -> Self {
        let has_position = position.is_some();
        let intake = Intake::new(settings, capabilities, position);
        Self { intake, flush: Flush::Idle, append: None, checkpointed_at: now.at, has_position }
    }

    pub(super) fn on_path_input(&mut self, input: PathInput, now: Moment) -> IntakeOutcome {
        match input {
            PathInput::OverlapStarted => self.intake.start_overlap(),
            PathInput::SuccessorHeld(session) => self.intake.hold(session),
            PathInput::SuccessorLost(_) => self.intake.lose_successor(),
            PathInput::OverlapEnded => self.intake.end_overlap(now),
            PathInput::Unflushed { gap, only_if_held, .. } => {
                if !only_if_held || self.intake.held_for_predecessor() > 0 {
                    return self.mark_unflushed(gap, now);
                }
            }
            PathInput::Outage(reason) => self.intake.mark_disconnected(reason),
            PathInput::PositionAbandoned(reason) => self.intake.abandon_position(reason),
            PathInput::Gap(gap) => return self.mark_gap(gap, now),
            PathInput::SnapshotRequests(requests) => self.intake.set_snapshot(requests),
            PathInput::SuccessorLive(_) | PathInput::Discontinuity(_) => (),
        }
        IntakeOutcome::default()
    }

    pub(super) fn mark_gap(&mut self, gap: Gap, now: Moment) -> IntakeOutcome {
        let mut outcome = IntakeOutcome::default();
        self.intake.record_gap(gap, now, &mut outcome);
        outcome
    }

    /// The old session of an overlap does not answer its probe.
    pub(super) fn mark_unflushed(&mut self, gap: Gap, now: Moment) -> IntakeOutcome {
        self.intake.abandon_predecessor();
        self.mark_gap(gap, now)
    }

    /// How many events are received and not durable yet.
    pub(super) fn buffered(&self) -> usize {
        self.intake.len() + self.append.as_ref().map_or(0, |append| append.len)
    }

    pub(super) fn applies_backpressure(&self) -> bool {
        let (len, bytes) = self.append.as_ref().map_or((0, 0), |append| (append.len, append.bytes));
        self.intake.applies_backpressure(len, bytes)
    }

    /// Whether there is no room for the events that wait for a refetch.
    pub(super) fn must_end_refetch(&self) -> bool {
        self.intake.is_refetching() && (self.applies_backpressure() || self.intake.is_reorder_full())
    }

    /// Whether a successor asks the platform for everything that is not in the log.
    pub(super) fn is_resumable(&self, resume: Resume) -> bool {
        match resume {
            Resume::Sequence => true,
            Resume::Opaque => self.has_position,
            Resume::None => false,
        }
    }

    pub(super) fn is_appending(&self) -> bool {
        self.append.is_some()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.append.is_none() && self.intake.is_empty()
    }

    /// When the checkpoint of a live stream without new events must be renewed.
    pub(super) fn checkpoint_due(&self, last_received: Option<Instant>, retention: Duration) -> Option<Instant> {
        let is_due = self.append.is_none() && last_received? > self.checkpointed_at;
        is_due.then(|| self.checkpointed_at + (retention / 4).min(CHECKPOINT_INTERVAL_MAX))
    }

    /// The events of the next append and the position after them. Without events only a due checkpoint is appended.
    pub(super) fn next_append(
        &mut self,
        is_checkpoint_due: bool,
        now: Moment,
    ) -> Option<(Vec<Event>, Option<Position>)> {
        if self.append.is_some() {
            return None;
        }
        let (append, events, position) = match self.intake.take(now) {
            Some(batch) => {
                let len = batch.events.len();
                (AppendInFlight { tickets: batch.tickets, len, bytes: batch.bytes }, batch.events, batch.position)
            }
            None if is_checkpoint_due => (AppendInFlight::default(), Vec::new(), self.intake.last_passed()),
            None => return None,
        };
        self.append = Some(append);
        self.checkpointed_at = now.at;
        self.has_position = position.is_some();
        Some((events, position))
    }

    /// The append is durable, and `last` is the last entry of the log.
    pub(super) fn on_appended(&mut self, last: Mark) {
        let Some(AppendInFlight { tickets, len, .. }) = self.append.take() else { return };
        for (index, ticket) in tickets {
            let offset = Offset(last.offset.0 + 1 - len as u64 + index as u64);
            self.intake.recovery.on_gap_appended(ticket, Mark { offset, ..last });
        }
    }
}
