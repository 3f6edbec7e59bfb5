//! One reader over one or several logs: in order for each stream, fair among them, at an end when all have ended.
//!
//! It refuses to buffer: what it hands out is what the readers gave, and a feed that nobody asks costs nothing.

use std::collections::BTreeMap;

use futures_util::future::select_all;
use serde::Serialize;

use crate::{
    event_log::{EntryRange, EventLog, LogReader, Read, ReaderProgress},
    model::{BatchView, Cursor, Mark, Offset, Source, StreamName, Timestamp},
    store::ReadError,
};

/// One stream of a feed.
#[derive(Debug)]
struct Lane {
    log: EventLog,
    reader: LogReader,
    /// The last entry handed out, or where the reader began.
    mark: Mark,
    /// A mark of another epoch that the reader wanted to go on from: it is owed a gap.
    unknown_mark: Option<Mark>,
    log_place: ReaderProgress,
    ended: bool,
}

/// Where to begin in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStart {
    /// The last entry that the reader has had.
    pub after: Offset,
    /// Set when the reader came with a mark that is not of this log.
    pub unknown_mark: Option<Mark>,
}

/// The merged reader.
#[derive(Debug)]
pub struct MergedReader {
    lanes: Vec<Lane>,
    /// The lane that is asked first: the one after the last that was served.
    next_lane: usize,
}

/// What a feed hands out; `lane` counts the streams in the order in which the feed was given them.
#[derive(Debug)]
pub enum ReadItem {
    /// Entries of one stream, oldest first.
    Entries { lane: usize, views: Vec<BatchView> },
    /// What should have followed is not held any more; the lane goes on at `gap.first`.
    Trimmed { lane: usize, gap: TrimmedGap },
}

/// A hole that exists for one reader only: the log has let go of what it would have read next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrimmedGap {
    pub after: Mark,
    /// The first entry held.
    pub first: Mark,
    /// How many entries are missing; none when `after` is of another epoch.
    pub lost: Option<u64>,
}

impl MergedReader {
    /// A feed over these logs.
    pub fn new(logs: impl IntoIterator<Item = (EventLog, ReadStart)>) -> Self {
        let lanes: Vec<Lane> = logs.into_iter().map(|(log, beginning)| Lane::new(log, beginning)).collect();
        assert!(!lanes.is_empty(), "a feed reads at least one stream");
        Self { lanes, next_lane: 0 }
    }

    /// The streams, in the order of lanes, and where each stands.
    pub fn marks(&self) -> impl Iterator<Item = (&StreamName, Mark)> {
        self.lanes.iter().map(|lane| (lane.log.name(), lane.mark))
    }

    /// How many streams it reads.
    pub fn stream_count(&self) -> usize {
        self.lanes.len()
    }

    /// The CloudEvents `source` of a lane.
    pub fn source(&self, lane: usize) -> &Source {
        self.lanes[lane].log.source()
    }

    /// The stream of a lane.
    pub fn name(&self, lane: usize) -> &StreamName {
        self.lanes[lane].log.name()
    }

    /// The beginning of a stretch of a lane that was handed out, once more. None when it is not held any more.
    pub async fn reread(
        &self,
        lane: usize,
        stretch: EntryRange,
        bytes_max: usize,
    ) -> Result<Option<Vec<BatchView>>, ReadError> {
        self.lanes[lane].log.reread(stretch, bytes_max).await
    }

    /// Waits for what follows; none when every log has ended. Cancel-safe. `bytes_max` bounds one answer, though one
    /// batch is always given whole.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        loop {
            if let Some(due) = self.pending_gap() {
                return Ok(Some(due));
            }
            let [lane] = self.lanes.as_mut_slice() else {
                // On the heap: most subscribers read one stream, and all would keep room for it.
                return Box::pin(self.next_of_several(bytes_max)).await;
            };
            if lane.ended {
                return Ok(None);
            }
            let read = lane.reader.next(bytes_max).await?;
            if let Some(due) = self.item(0, read) {
                return Ok(Some(due));
            }
        }
    }

    async fn next_of_several(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        loop {
            if let Some(due) = self.poll_lanes(bytes_max).await? {
                return Ok(Some(due));
            }
            if !self.wait_for_change().await {
                return Ok(None);
            }
        }
    }

    /// The same without waiting: none when nothing more is there for now.
    pub async fn next_now(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        match self.pending_gap() {
            Some(due) => Ok(Some(due)),
            None => self.poll_lanes(bytes_max).await,
        }
    }

    /// Asks each lane in turn for what is there. The store is read for one lane at a time, and what it was asked for is
    /// handed out: of reads side by side all but the first would have been in vain.
    async fn poll_lanes(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        let from = self.next_lane;
        for step in 0..self.lanes.len() {
            let index = (from + step) % self.lanes.len();
            let lane = &mut self.lanes[index];
            if lane.ended {
                continue;
            }
            let Some(read) = lane.reader.try_next(bytes_max).await? else { continue };
            if let Some(due) = self.item(index, read) {
                return Ok(Some(due));
            }
        }
        Ok(None)
    }

    /// Waits until a log has moved in which nothing more was found; false when all have ended.
    async fn wait_for_change(&mut self) -> bool {
        let open = self.lanes.iter_mut().filter(|lane| !lane.ended);
        let waits: Vec<_> = open.map(|lane| Box::pin(lane.changed())).collect();
        if waits.is_empty() {
            return false;
        }
        select_all(waits).await;
        true
    }

    fn pending_gap(&mut self) -> Option<ReadItem> {
        let (lane, foreign) =
            self.lanes.iter_mut().enumerate().find_map(|(index, lane)| Some((index, lane.unknown_mark.take()?)))?;
        let mark = self.lanes[lane].mark;
        let first = Mark { offset: mark.offset.next(), ..mark };
        Some(ReadItem::Trimmed { lane, gap: TrimmedGap { after: foreign, first, lost: None } })
    }

    fn item(&mut self, index: usize, read: Read) -> Option<ReadItem> {
        self.next_lane = (index + 1) % self.lanes.len();
        let lane = &mut self.lanes[index];
        match read {
            Read::Entries(views) => {
                lane.advance(&views);
                Some(ReadItem::Entries { lane: index, views })
            }
            Read::Trimmed { after, first } => {
                let after = Mark { epoch: lane.mark.epoch, offset: after };
                lane.mark = Mark { offset: first.offset.previous(), ..first };
                let lost = first.offset.0.checked_sub(after.offset.next().0);
                Some(ReadItem::Trimmed { lane: index, gap: TrimmedGap { after, first, lost } })
            }
            Read::Wiped { first } => {
                let after = std::mem::replace(&mut lane.mark, Mark { offset: first.offset.previous(), ..first });
                Some(ReadItem::Trimmed { lane: index, gap: TrimmedGap { after, first, lost: None } })
            }
            Read::End => {
                lane.ended = true;
                None
            }
        }
    }
}

impl Lane {
    fn new(log: EventLog, ReadStart { after, unknown_mark: foreign }: ReadStart) -> Self {
        let reader = log.reader(after);
        let mark = Mark { epoch: log.end().lineage.current(), offset: after };
        let place = log.track_reader(after);
        Self { log, reader, mark, unknown_mark: foreign, log_place: place, ended: false }
    }

    /// A log that is gone has ended.
    async fn changed(&mut self) {
        self.ended |= !self.reader.changed().await;
    }

    fn advance(&mut self, views: &[BatchView]) {
        if let Some(view) = views.last() {
            self.mark = Mark { epoch: view.batch.epoch(), offset: view.batch.last() };
            self.log_place.advance_to(self.mark.offset);
        }
    }
}

/// How far one reader got in each stream of its feed, as the cursor that it may come back with.
#[derive(Debug, Clone)]
pub struct ReadProgress {
    marks: Vec<(StreamName, Mark)>,
    form: CursorForm,
}

/// How a cursor is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorForm {
    /// The mark alone: the one stream is named by the address that was asked.
    Bare,
    /// Every stream with its name.
    Named,
}

impl ReadProgress {
    /// Where the feed stands.
    pub fn of(feed: &MergedReader, form: CursorForm) -> Self {
        Self { marks: feed.marks().map(|(name, mark)| (name.clone(), mark)).collect(), form }
    }

    /// The reader had this entry.
    pub fn reached(&mut self, lane: usize, mark: Mark) {
        self.marks[lane].1 = mark;
    }

    /// The event that tells a reader this cursor. It is no entry of a log; its `id` is `{nonce}/position`.
    pub fn envelope(&self, kind: &'static str, source: &str, nonce: u64, now: Timestamp) -> String {
        let data = PositionData { cursor: self.cursor().to_string() };
        Envelope::text(format!("{nonce:016x}/position"), source, kind, data, now)
    }

    /// How its cursor is written.
    pub fn form(&self) -> CursorForm {
        self.form
    }

    /// The whole cursor.
    pub fn cursor(&self) -> Cursor {
        match self.form {
            CursorForm::Bare => Cursor::Single(self.marks[0].1),
            CursorForm::Named => Cursor::Several(self.marks.iter().cloned().collect::<BTreeMap<_, _>>()),
        }
    }
}

/// What one reader is sent beside the entries of its logs.
#[derive(Serialize)]
struct Envelope<'a, D> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    receivedtime: String,
    datacontenttype: &'static str,
    data: D,
}

impl<'a, D: Serialize> Envelope<'a, D> {
    fn text(id: String, source: &'a str, kind: &'static str, data: D, now: Timestamp) -> String {
        let envelope = Self {
            specversion: "1.0",
            id,
            source,
            kind,
            time: now.to_string(),
            receivedtime: now.to_string(),
            datacontenttype: "application/json",
            data,
        };
        serde_json::to_string(&envelope).expect("texts and numbers always serialize")
    }
}

#[derive(Serialize)]
struct PositionData {
    cursor: String,
}

#[derive(Serialize)]
struct TrimmedGapData {
    reason: &'static str,
    after: Mark,
    before: Mark,
    lost: Option<u64>,
    silence_ms: Option<u64>,
}

impl TrimmedGap {
    /// The CloudEvents `type` of a gap.
    pub const KIND: &str = "trunkline.gap.v1";

    /// The event that tells the reader. It is no entry of the log, so it has no `sequence`.
    pub fn envelope(&self, source: &Source, now: Timestamp) -> String {
        let data = TrimmedGapData {
            reason: "trimmed",
            after: self.after,
            before: self.first,
            lost: self.lost,
            silence_ms: None,
        };
        Envelope::text(format!("{}/trimmed", self.first), source.as_str(), Self::KIND, data, now)
    }

    /// Where a reader that has had this gap stands: right before the first entry held.
    pub fn resume_after(&self) -> Mark {
        Mark { offset: self.first.offset.previous(), ..self.first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Epoch;

    #[test]
    fn a_trimmed_gap_names_the_missing_range_and_is_no_log_entry() {
        let mark = |offset| Mark { epoch: Epoch(0x4f2a), offset: Offset(offset) };
        let gap = TrimmedGap { after: mark(3), first: mark(90), lost: Some(86) };
        let source = Source::new(&"acme".parse().unwrap(), &"queues".parse().unwrap());
        let envelope: serde_json::Value =
            serde_json::from_str(&gap.envelope(&source, Timestamp(1_777_901_509_570))).unwrap();
        assert_eq!(
            envelope,
            serde_json::json!({
                "specversion": "1.0",
                "id": "4f2a-90/trimmed",
                "source": "/accounts/acme/streams/queues",
                "type": "trunkline.gap.v1",
                "time": "2026-05-04T13:31:49.570Z",
                "receivedtime": "2026-05-04T13:31:49.570Z",
                "datacontenttype": "application/json",
                "data": {
                    "reason": "trimmed", "after": "4f2a-3", "before": "4f2a-90", "lost": 86, "silence_ms": null,
                },
            })
        );
        assert_eq!(gap.resume_after(), mark(89));
    }
}
