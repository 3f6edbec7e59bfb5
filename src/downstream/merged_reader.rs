//! Reads one or several logs: in order per stream, fair among streams, until all logs are closed.
//!
//! It has no buffer: it returns the entries of the log readers.

use std::collections::BTreeMap;

use futures_util::future::select_all;
use serde::Serialize;

use crate::{
    event_log::{EntryRange, EventLog, LogReader, Read, ReaderProgress},
    model::{BatchView, Cursor, Mark, Offset, Source, StreamName, Timestamp},
    store::ReadError,
};

/// One stream of a merged reader.
#[derive(Debug)]
struct Lane {
    log: EventLog,
    reader: LogReader,
    /// The last entry returned, initially the start.
    mark: Mark,
    /// The start mark of an unknown epoch, for which a gap is pending.
    unknown_mark: Option<Mark>,
    log_place: ReaderProgress,
    ended: bool,
}

/// The start in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStart {
    /// The entry before the first one read.
    pub after: Offset,
    /// The mark that the reader requested, if it is not of this log.
    pub unknown_mark: Option<Mark>,
}

/// A fair reader of one or several logs.
#[derive(Debug)]
pub struct MergedReader {
    lanes: Vec<Lane>,
    /// The lane that is polled first: the one after the last that returned entries.
    next_lane: usize,
}

/// A result of a merged reader. `lane` is the index of the stream.
#[derive(Debug)]
pub enum ReadItem {
    /// Entries of one stream, oldest first.
    Entries { lane: usize, views: Vec<BatchView> },
    /// The next entries are no longer stored; the lane continues at `gap.first`.
    Trimmed { lane: usize, gap: TrimmedGap },
}

/// A gap for one reader only: retention has removed the next entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrimmedGap {
    pub after: Mark,
    /// The oldest stored entry.
    pub first: Mark,
    /// Number of missing entries; none if `after` is of another epoch.
    pub lost: Option<u64>,
}

impl MergedReader {
    /// A reader of these logs.
    pub fn new(logs: impl IntoIterator<Item = (EventLog, ReadStart)>) -> Self {
        let lanes: Vec<Lane> = logs.into_iter().map(|(log, beginning)| Lane::new(log, beginning)).collect();
        assert!(!lanes.is_empty(), "a feed reads at least one stream");
        Self { lanes, next_lane: 0 }
    }

    /// The streams in the order of lanes, each with its last mark.
    pub fn marks(&self) -> impl Iterator<Item = (&StreamName, Mark)> {
        self.lanes.iter().map(|lane| (lane.log.name(), lane.mark))
    }

    /// The number of streams.
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

    /// Reads the beginning of a returned range again. None if it is no longer stored.
    pub async fn reread(
        &self,
        lane: usize,
        stretch: EntryRange,
        bytes_max: usize,
    ) -> Result<Option<Vec<BatchView>>, ReadError> {
        self.lanes[lane].log.reread(stretch, bytes_max).await
    }

    /// Waits for the next entries; none after all logs were closed. Cancel-safe. `bytes_max` limits the size, but at least
    /// one whole batch is returned.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        loop {
            if let Some(due) = self.pending_gap() {
                return Ok(Some(due));
            }
            let [lane] = self.lanes.as_mut_slice() else {
                // Boxed, because most subscribers read one stream and do not need this future.
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

    /// The next entries without waiting; none if there are none now.
    pub async fn next_now(&mut self, bytes_max: usize) -> Result<Option<ReadItem>, ReadError> {
        match self.pending_gap() {
            Some(due) => Ok(Some(due)),
            None => self.poll_lanes(bytes_max).await,
        }
    }

    /// Polls the lanes round-robin. Reads the store for one lane at a time, because only the first result is returned.
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

    /// Waits until a log has new entries; false after all logs were closed.
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

    /// Waits for new entries. A dropped log counts as closed.
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

/// The progress of a reader in each stream, as the cursor from which it can resume.
#[derive(Debug, Clone)]
pub struct ReadProgress {
    marks: Vec<(StreamName, Mark)>,
    form: CursorForm,
}

/// The text form of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorForm {
    /// The mark alone: the request path has the stream.
    Bare,
    /// The marks of all streams with their names.
    Named,
}

impl ReadProgress {
    /// The progress of a reader.
    pub fn of(feed: &MergedReader, form: CursorForm) -> Self {
        Self { marks: feed.marks().map(|(name, mark)| (name.clone(), mark)).collect(), form }
    }

    /// Advances to this entry.
    pub fn reached(&mut self, lane: usize, mark: Mark) {
        self.marks[lane].1 = mark;
    }

    /// The position event with this cursor. It is not a log entry; its `id` is `{nonce}/position`.
    pub fn envelope(&self, kind: &'static str, source: &str, nonce: u64, now: Timestamp) -> String {
        let data = PositionData { cursor: self.cursor().to_string() };
        Envelope::text(format!("{nonce:016x}/position"), source, kind, data, now)
    }

    /// The form of the cursor.
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

/// The envelope of an event for one reader that is not a log entry.
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

/// A message to one client that is not a log entry: the CloudEvent of a session message.
pub fn session_message(kind: &'static str, id: String, source: &str, data: impl Serialize, now: Timestamp) -> String {
    Envelope::text(id, source, kind, data, now)
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

    /// The gap event. It is not a log entry, so it has no `sequence`.
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

    /// The mark after this gap: directly before the oldest stored entry.
    pub fn resume_after(&self) -> Mark {
        Mark { offset: self.first.offset.previous(), ..self.first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Epoch;

    #[test]
    fn a_trimmed_gap_has_the_missing_range_and_is_not_a_log_entry() {
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
