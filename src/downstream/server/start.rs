//! From what a request asks to where its readers begin: each cursor is judged by the log that it is meant for.
//!
//! A cursor beyond the end is refused, never taken for "latest". One that the log has let go of is refused in a page,
//! and answered with a gap in the endless forms.

use super::{
    error::Refusal,
    query::{Start, StartIn},
};
use crate::{
    downstream::feed::{Beginning, Feed},
    event_log::{End, EventLog, EventLogs},
    model::{Mark, Offset, Standing, StreamName},
};

/// What becomes of a reader whose cursor the log has let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is told and goes on with the first entry held.
    Told,
    /// Its request is refused.
    Refused,
}

/// A feed over the named streams from where `start` says.
pub(super) async fn feed(logs: &EventLogs, streams: &[StreamName], start: &Start, loss: Loss) -> Result<Feed, Refusal> {
    let several = streams.len() > 1;
    let mut lanes = Vec::with_capacity(streams.len());
    for stream in streams {
        let log = logs.get(stream).ok_or_else(|| Refusal::UnknownStream(stream.clone()))?;
        let beginning = begin(log, start.of(stream, several)?, loss).await?;
        lanes.push((log.clone(), beginning));
    }
    Ok(Feed::new(lanes))
}

async fn begin(log: &EventLog, start: StartIn, loss: Loss) -> Result<Beginning, Refusal> {
    let end = log.end();
    let at = |after| Ok(Beginning { after, foreign: None });
    match start {
        StartIn::First => at(end.first.previous()),
        StartIn::Last => at(end.last),
        // What was received at that moment but is no longer held is no hole in what follows: nothing came before.
        StartIn::Since(moment) => at(log.offset_before(moment).await?.max(end.first.previous())),
        StartIn::After(mark) => match (place(&end, mark), loss) {
            (Place::At(after), _) | (Place::Trimmed(after), Loss::Told) => at(after),
            (Place::Foreign, Loss::Told) => Ok(Beginning { after: end.first.previous(), foreign: Some(mark) }),
            (Place::Lost(kept), Loss::Told) => {
                Ok(Beginning { after: kept.offset.max(end.first.previous()), foreign: Some(mark) })
            }
            (Place::Lost(kept), Loss::Refused) => Err(Refusal::Lost { mark, kept }),
            (Place::Trimmed(_), Loss::Refused) => Err(Refusal::Trimmed { mark, first: first_mark(&end) }),
            (Place::Foreign, Loss::Refused) => Err(Refusal::ForeignEpoch { mark, first: first_mark(&end) }),
            (Place::Beyond, _) => Err(Refusal::BeyondEnd { mark, stream: log.name().clone() }),
        },
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// What follows is held.
    At(Offset),
    /// It was an entry of this log, but what follows is not held any more.
    Trimmed(Offset),
    /// It was an entry of an epoch that ended before it, with this one.
    Lost(Mark),
    /// It is of an epoch that this log does not know.
    Foreign,
    /// There is no such entry yet.
    Beyond,
}

fn place(end: &End, mark: Mark) -> Place {
    match end.lineage.standing(mark, end.last) {
        Standing::After(offset) if offset < end.first.previous() => Place::Trimmed(offset),
        Standing::After(offset) => Place::At(offset),
        Standing::Foreign => Place::Foreign,
        Standing::Beyond if mark.epoch == end.lineage.current() => Place::Beyond,
        Standing::Beyond => {
            let ended = end.lineage.earlier().iter().find(|(epoch, _)| *epoch == mark.epoch);
            ended.map_or(Place::Foreign, |(epoch, offset)| Place::Lost(Mark { epoch: *epoch, offset: *offset }))
        }
    }
}

fn first_mark(end: &End) -> Mark {
    Mark { epoch: end.lineage.current(), offset: end.first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Lineage};

    #[test]
    fn a_cursor_is_worth_what_the_log_still_holds() {
        let end = End { lineage: Lineage::new(Epoch(0x4f2a)), first: Offset(11), last: Offset(20), closed: false };
        for (mark, worth) in [
            ("4f2a-20", Place::At(Offset(20))),
            ("4f2a-15", Place::At(Offset(15))),
            ("4f2a-10", Place::At(Offset(10))),
            ("4f2a-9", Place::Trimmed(Offset(9))),
            ("4f2a-0", Place::Trimmed(Offset(0))),
            ("4f2a-21", Place::Beyond),
            ("9c01-15", Place::Foreign),
        ] {
            assert_eq!(place(&end, mark.parse().unwrap()), worth, "{mark}");
        }
    }

    #[test]
    fn what_a_failover_lost_is_known_to_be_lost() {
        let lineage = Lineage::with_earlier(Epoch(0x9c01), vec![(Epoch(0x4f2a), Offset(15))]);
        let end = End { lineage, first: Offset(11), last: Offset(20), closed: false };
        for (mark, worth) in [
            ("4f2a-15", Place::At(Offset(15))),
            ("4f2a-16", Place::Lost("4f2a-15".parse().unwrap())),
            ("4f2a-99", Place::Lost("4f2a-15".parse().unwrap())),
            ("9c01-21", Place::Beyond),
        ] {
            assert_eq!(place(&end, mark.parse().unwrap()), worth, "{mark}");
        }
    }

    #[test]
    fn the_cursor_of_an_empty_log_is_its_start() {
        let end = End { lineage: Lineage::new(Epoch(1)), first: Offset(1), last: Offset::START, closed: false };
        assert_eq!(place(&end, "0001-0".parse().unwrap()), Place::At(Offset::START));
        assert_eq!(place(&end, "0001-1".parse().unwrap()), Place::Beyond);
    }
}
