//! A standby becomes the owner: the events of its buffer go into the log, behind the entries of the last owner.

use super::{
    dedup,
    intake::{Intake, IntakeOutcome},
    splice::{RecordedGap, copies_due_from, find_splice, is_hole_likely, is_platform_event},
    standby::StandbyBuffer,
};
use crate::{
    model::{Event, Gap, GapReason, Position},
    protocol::{Moment, session::SessionId},
};

/// The sessions at the moment of the takeover.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) alive: Vec<SessionId>,
    /// The events of this session wait until the session before it has answered its probe.
    pub(super) held: Option<SessionId>,
}

/// Moves the events of a numbered stream into the log, from session `first` on. Events that the log has already are not
/// counted as duplicates.
pub(super) fn accept_numbered(
    intake: &mut Intake,
    mut buffer: StandbyBuffer,
    first: SessionId,
    alive: &[SessionId],
    now: Moment,
) -> IntakeOutcome {
    let mut outcome = IntakeOutcome::default();
    let mut repeating = buffer.repeating(alive, intake.position().as_ref().and_then(Position::order));
    for (session, event) in buffer.take_from(first) {
        if let Some(after) = repeating.remove(&session) {
            intake.record_resume(session, after);
        }
        intake.accept_event(event, session, now, &mut outcome);
    }
    for (session, after) in repeating {
        intake.record_resume(session, after);
    }
    IntakeOutcome { duplicates: 0, ..outcome }
}

/// Moves the events of an unnumbered stream into the log, behind its newest entries `stored`.
///
/// `covered`: whether everything is durable that the platform sent before this replica was ready. None if no gap must
/// be marked.
pub(super) fn accept_unnumbered(
    intake: &mut Intake,
    buffer: StandbyBuffer,
    mut stored: Vec<Event>,
    covered: Option<bool>,
    sessions: &Sessions,
    now: Moment,
) -> IntakeOutcome {
    let mut outcome = IntakeOutcome::default();
    let recorded = RecordedGap::find(&stored);
    stored.retain(is_platform_event);
    let overflowed = buffer.overflowed();
    let mut buffered = buffer.into_events(&sessions.alive);
    let log: Vec<u64> = stored.iter().map(dedup::key).collect();
    let kept: Vec<u64> = buffered.iter().map(|buffered| buffered.key).collect();
    match find_splice(&log, &kept).or_else(|| recorded.as_ref()?.find_splice(&log, &kept)) {
        Some(splice) => {
            stored.drain(..copies_due_from(&log, &buffered, &sessions.alive, &splice));
            buffered.drain(..splice.event);
        }
        None => {
            let is_older = recorded.is_some_and(|gap| gap.drop_older(&log, &mut buffered));
            if covered.is_some_and(|covered| is_older || is_hole_likely(&log, &kept, overflowed, covered)) {
                intake.record_gap(Gap::unknown(GapReason::NoReplay), now, &mut outcome);
            }
        }
    }
    intake.take_over(&stored, buffered, sessions.held, now, &mut outcome);
    outcome
}
