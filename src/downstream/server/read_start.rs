//! Resolves the requested start in each log and validates cursors.
//!
//! A cursor beyond the end is rejected. A trimmed one is rejected for a page, and gives a gap in endless forms.

use std::collections::BTreeMap;

use super::{
    error::ConsumerRequestError,
    query::{LogStartPoint, StartPoint},
};
use crate::{
    downstream::merged_reader::{MergedReader, ReadStart},
    event_log::{EventLog, EventLogs, LogEnd},
    model::{CursorValidity, Mark, Offset, StreamName},
};

/// How a trimmed cursor is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnTrimmed {
    /// Emit a gap and continue with the oldest stored entry.
    EmitGap,
    /// Reject the request.
    Reject,
}

/// A reader of the streams, from the `stored` cursor of a durable consumer where there is one, else from the requested
/// start.
pub(super) async fn feed(
    logs: &EventLogs,
    streams: &[StreamName],
    start: &StartPoint,
    stored: &BTreeMap<StreamName, Mark>,
    on_trimmed: OnTrimmed,
) -> Result<MergedReader, ConsumerRequestError> {
    let several = streams.len() > 1;
    let mut lanes = Vec::with_capacity(streams.len());
    for stream in streams {
        let log = logs.get(stream).ok_or_else(|| ConsumerRequestError::UnknownStream(stream.clone()))?;
        let start = match stored.get(stream) {
            Some(mark) => LogStartPoint::After(*mark),
            None => start.of(stream, several)?,
        };
        let beginning = resolve_start(log, start, on_trimmed).await?;
        lanes.push((log.clone(), beginning));
    }
    Ok(MergedReader::new(lanes))
}

/// The mark of a start in a log.
pub(super) async fn mark(log: &EventLog, start: LogStartPoint) -> Result<Mark, ConsumerRequestError> {
    let ReadStart { after, .. } = resolve_start(log, start, OnTrimmed::Reject).await?;
    Ok(Mark { epoch: log.end().lineage.current(), offset: after })
}

async fn resolve_start(
    log: &EventLog,
    start: LogStartPoint,
    on_trimmed: OnTrimmed,
) -> Result<ReadStart, ConsumerRequestError> {
    let end = log.end();
    let at = |after| Ok(ReadStart { after, unknown_mark: None });
    match start {
        LogStartPoint::First => at(end.first.previous()),
        LogStartPoint::Last => at(end.last),
        // The reader had no earlier entries, so trimmed ones are not a gap.
        LogStartPoint::Since(moment) => at(log.offset_before(moment).await?.max(end.first.previous())),
        LogStartPoint::After(mark) => match (locate(&end, mark), on_trimmed) {
            (CursorPlacement::At(after), _) | (CursorPlacement::Trimmed(after), OnTrimmed::EmitGap) => at(after),
            (CursorPlacement::UnknownEpoch, OnTrimmed::EmitGap) => {
                Ok(ReadStart { after: end.first.previous(), unknown_mark: Some(mark) })
            }
            (CursorPlacement::Lost(kept), OnTrimmed::EmitGap) => {
                Ok(ReadStart { after: kept.offset.max(end.first.previous()), unknown_mark: Some(mark) })
            }
            (CursorPlacement::Lost(kept), OnTrimmed::Reject) => Err(ConsumerRequestError::Lost { mark, kept }),
            (CursorPlacement::Trimmed(_), OnTrimmed::Reject) => {
                Err(ConsumerRequestError::Trimmed { mark, first: first_mark(&end) })
            }
            (CursorPlacement::UnknownEpoch, OnTrimmed::Reject) => {
                Err(ConsumerRequestError::UnknownEpoch { mark, first: first_mark(&end) })
            }
            (CursorPlacement::AheadOfLog, _) => {
                Err(ConsumerRequestError::AheadOfLog { mark, stream: log.name().clone() })
            }
        },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum CursorPlacement {
    /// The next entry is stored.
    At(Offset),
    /// The next entry was removed by retention.
    Trimmed(Offset),
    /// Its epoch ended before it, with this mark.
    Lost(Mark),
    /// Its epoch is unknown to this log.
    UnknownEpoch,
    /// The entry does not exist yet.
    AheadOfLog,
}

fn locate(end: &LogEnd, mark: Mark) -> CursorPlacement {
    match end.lineage.validity(mark, end.last) {
        CursorValidity::Valid(offset) if offset < end.first.previous() => CursorPlacement::Trimmed(offset),
        CursorValidity::Valid(offset) => CursorPlacement::At(offset),
        CursorValidity::UnknownEpoch => CursorPlacement::UnknownEpoch,
        CursorValidity::AheadOfLog if mark.epoch == end.lineage.current() => CursorPlacement::AheadOfLog,
        CursorValidity::AheadOfLog => {
            let ended = end.lineage.earlier().iter().find(|(epoch, _)| *epoch == mark.epoch);
            ended.map_or(CursorPlacement::UnknownEpoch, |(epoch, offset)| {
                CursorPlacement::Lost(Mark { epoch: *epoch, offset: *offset })
            })
        }
    }
}

fn first_mark(end: &LogEnd) -> Mark {
    Mark { epoch: end.lineage.current(), offset: end.first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Lineage};

    #[test]
    fn cursors_are_validated_against_the_log() {
        let end = LogEnd { lineage: Lineage::new(Epoch(0x4f2a)), first: Offset(11), last: Offset(20), closed: false };
        for (mark, worth) in [
            ("4f2a-20", CursorPlacement::At(Offset(20))),
            ("4f2a-15", CursorPlacement::At(Offset(15))),
            ("4f2a-10", CursorPlacement::At(Offset(10))),
            ("4f2a-9", CursorPlacement::Trimmed(Offset(9))),
            ("4f2a-0", CursorPlacement::Trimmed(Offset(0))),
            ("4f2a-21", CursorPlacement::AheadOfLog),
            ("9c01-15", CursorPlacement::UnknownEpoch),
        ] {
            assert_eq!(locate(&end, mark.parse().unwrap()), worth, "{mark}");
        }
    }

    #[test]
    fn a_cursor_of_entries_lost_in_a_failover_is_detected() {
        let lineage = Lineage::with_earlier(Epoch(0x9c01), vec![(Epoch(0x4f2a), Offset(15))]);
        let end = LogEnd { lineage, first: Offset(11), last: Offset(20), closed: false };
        for (mark, worth) in [
            ("4f2a-15", CursorPlacement::At(Offset(15))),
            ("4f2a-16", CursorPlacement::Lost("4f2a-15".parse().unwrap())),
            ("4f2a-99", CursorPlacement::Lost("4f2a-15".parse().unwrap())),
            ("9c01-21", CursorPlacement::AheadOfLog),
        ] {
            assert_eq!(locate(&end, mark.parse().unwrap()), worth, "{mark}");
        }
    }

    #[test]
    fn the_cursor_of_an_empty_log_is_its_start() {
        let end = LogEnd { lineage: Lineage::new(Epoch(1)), first: Offset(1), last: Offset::START, closed: false };
        assert_eq!(locate(&end, "0001-0".parse().unwrap()), CursorPlacement::At(Offset::START));
        assert_eq!(locate(&end, "0001-1".parse().unwrap()), CursorPlacement::AheadOfLog);
    }
}
