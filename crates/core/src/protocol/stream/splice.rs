//! Where the buffer of a standby continues the log, on a platform that sends no sequence numbers.

use std::time::{Duration, Instant};

use super::{dedup::DEDUP_WINDOW, settings::OVERLAP_MAX};
use crate::{
    model::{Event, Timestamp},
    protocol::session::SessionId,
};

/// The two sessions of an overlap bring the copies of an event within this time.
const DUPLICATE_WAIT: Duration = OVERLAP_MAX.saturating_add(DEDUP_WINDOW);
/// A run of this many equal events is the same in the log and in the buffer.
const RUN_MIN: usize = 3;
/// The wall clocks of two replicas differ by no more than this, in milliseconds.
const CLOCK_SKEW_MAX: i64 = 60_000;

/// An event of the standby's buffer, and the sessions that brought it.
#[derive(Debug)]
pub(super) struct BufferedEvent {
    pub(super) event: Event,
    pub(super) key: u64,
    pub(super) received_at: Instant,
    pub(super) sessions: Vec<SessionId>,
}

/// Where the log's newest entries and the buffer begin to be equal. What the buffer has before this place is in the log
/// too, or in a gap that the log records.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) entry: usize,
    pub(super) event: usize,
}

impl BufferedEvent {
    /// Whether an equal event that this session brought at this time is a copy.
    pub(super) fn expects_copy_from(&self, session: SessionId, at: Instant) -> bool {
        let difference =
            at.saturating_duration_since(self.received_at).max(self.received_at.saturating_duration_since(at));
        difference <= DUPLICATE_WAIT && !self.sessions.contains(&session)
    }
}

/// Finds the place where the buffer continues the log; none if the two have no run of equal events.
pub(super) fn find_splice(stored: &[u64], kept: &[u64]) -> Option<Splice> {
    let agree = |stored: &[u64], kept: &[u64]| stored.iter().zip(kept).all(|(stored, kept)| stored == kept);
    if stored.is_empty() || kept.is_empty() {
        return None;
    }
    if let Some(entry) = (0..stored.len()).find(|entry| agree(&stored[*entry..], kept)) {
        return Some(Splice { entry, event: 0 });
    }
    // A few equal events may be equal by chance.
    let enough = stored.len().min(kept.len().div_ceil(2));
    let mut places = 0..=kept.len() - enough;
    let begins = places.find(|event| agree(stored, &kept[*event..])).map(|event| Splice { entry: 0, event });
    begins.or_else(|| {
        // The last owner missed some of the events.
        let ends = (1..=kept.len()).rev().map(|event| (stored.len(), event));
        let ahead = (1..=stored.len()).rev().map(|entry| (entry, kept.len()));
        ends.chain(ahead).find_map(|(entry, event)| find_common_suffix(&stored[..entry], &kept[..event]))
    })
}

/// The index of the log's first entry of which a copy may still come: the slower session of an overlap brings
/// everything after its newest event.
pub(super) fn copies_due_from(
    stored: &[u64],
    buffered: &[BufferedEvent],
    alive: &[SessionId],
    overlay: &Splice,
) -> usize {
    let newest = |id: &SessionId| buffered[..overlay.event].iter().rposition(|buffered| buffered.sessions.contains(id));
    let lags = |id: &&SessionId| !buffered[overlay.event..].iter().any(|buffered| buffered.sessions.contains(id));
    let entry_of = |place: usize| stored[..overlay.entry].iter().rposition(|key| *key == buffered[place].key);
    let after = alive.iter().filter(lags).filter_map(newest).filter_map(entry_of).min();
    after.map_or(overlay.entry, |entry| entry + 1)
}

/// The begin of the run of equal events at the end of both, if it is at least [`RUN_MIN`] long.
fn find_common_suffix(stored: &[u64], kept: &[u64]) -> Option<Splice> {
    let same = stored.iter().rev().zip(kept.iter().rev()).take_while(|(stored, kept)| stored == kept).count();
    (same >= RUN_MIN).then(|| Splice { entry: stored.len() - same, event: kept.len() - same })
}

/// Whether events between the log and the buffer may be missing in both.
pub(super) fn is_hole_likely(stored: &[u64], kept: &[u64], overflowed: bool, covered: bool) -> bool {
    let is_stored = |key: &u64| stored.contains(key);
    if overflowed { !kept.first().is_some_and(is_stored) } else { !covered && !kept.iter().any(is_stored) }
}

/// The newest gap entry of a log, and the number of entries after it.
#[derive(Debug)]
pub(super) struct RecordedGap {
    at: Timestamp,
    /// When the last entry of the log was received.
    last: Timestamp,
    after: usize,
}

impl RecordedGap {
    /// None without a gap entry, or if it is the last entry.
    pub(super) fn find(stored: &[Event]) -> Option<Self> {
        let place = stored.iter().rposition(|entry| !is_platform_event(entry))?;
        let last = stored.last()?;
        let after = stored.len() - 1 - place;
        (after > 0).then_some(Self { at: stored[place].received, last: last.received, after })
    }

    /// Finds the entries after the gap in the buffer. What the buffer has before them lies in the gap. None if they
    /// occur nowhere or more than once.
    pub(super) fn find_splice(&self, stored: &[u64], kept: &[u64]) -> Option<Splice> {
        let entry = stored.len() - self.after;
        let agrees = |event: &usize| stored[entry..].iter().zip(&kept[*event..]).all(|(stored, kept)| stored == kept);
        let mut places = (0..kept.len()).filter(agrees);
        let event = places.next()?;
        places.next().is_none().then_some(Splice { entry, event })
    }

    /// Drops events that may be older than the entries after the gap: a log keeps the order, and the gap covers what is
    /// missing. Returns whether anything was dropped.
    pub(super) fn drop_older(&self, stored: &[u64], buffered: &mut Vec<BufferedEvent>) -> bool {
        let Some(first) = buffered.first() else { return false };
        let begins_after = stored[stored.len() - self.after..].contains(&first.key);
        if begins_after || first.event.received > plus_skew(self.at) {
            return false;
        }
        let before = buffered.len();
        buffered.retain(|buffered| buffered.event.received > plus_skew(self.last) || stored.contains(&buffered.key));
        buffered.len() < before
    }
}

fn plus_skew(at: Timestamp) -> Timestamp {
    Timestamp(at.0 + CLOCK_SKEW_MAX)
}

/// Whether an entry of the log came from the platform.
pub(super) fn is_platform_event(entry: &Event) -> bool {
    !matches!(&*entry.kind, "trunkline.gap.v1" | "trunkline.snapshot.v1")
}
