//! The event log: the hot tail over the store, and the readers that follow it.
//!
//! All events of the platform go through it, and all consumers read from it. There is no queue per consumer: a slow reader
//! is only behind.

mod append_gate;
mod progress;
mod reader;
mod tail;
mod writer;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use self::{progress::ProgressTracker, tail::HotTail};
pub use self::{
    progress::ReaderProgress,
    reader::{LogReader, Read},
    writer::{ClaimedState, LogWriter},
};
use crate::{
    model::{
        Batch, BatchView, CursorValidity, Epoch, Event, FeedId, Fence, Lineage, Mark, Offset, Source, StreamName,
        Timestamp,
    },
    store::{AppendError, LogBounds, LogUpdate, ObservedLog, ReadError, Store},
};

/// Bytes of one read when the newest entries are requested.
const NEWEST_BYTES: usize = 1 << 20;

/// Entries that a reader got and reads again.
#[derive(Debug, Clone, Copy)]
pub struct EntryRange {
    pub from: Mark,
    pub last: Offset,
    /// The average bytes of an entry.
    pub entry_len: usize,
}

/// The bounds of a log, sent when they move. It carries no events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    pub lineage: Lineage,
    /// The oldest entry held. Retention moves it without a message; [`EventLog::end`] has the current one.
    pub first: Offset,
    pub last: Offset,
    /// Nothing more is appended: readers that reach `last` are done.
    pub closed: bool,
}

/// Settings of the memory for entries.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes for the newest entries of one stream, which are served without the store. The newest batch is always kept.
    pub tail_bytes: usize,
}

/// All logs of this process, by stream.
#[derive(Debug, Clone)]
pub struct EventLogs {
    logs: Arc<BTreeMap<StreamName, EventLog>>,
}

impl EventLogs {
    /// Reads the state of each stream's log, for readers on the current runtime. Nothing is written; a writer
    /// [claims](EventLog::claim) a log.
    pub async fn open(store: Store, streams: &[(StreamName, Source)], settings: &Settings) -> Result<Self, ReadError> {
        let opening = streams.iter().map(|(stream, source)| EventLog::open(&store, stream, source, settings));
        let logs = try_join_all(opening).await?;
        let logs = logs.into_iter().map(|log| (log.name().clone(), log)).collect();
        Ok(Self { logs: Arc::new(logs) })
    }

    pub fn get(&self, stream: &StreamName) -> Option<&EventLog> {
        self.logs.get(stream)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&StreamName, &EventLog)> {
        self.logs.iter()
    }

    /// Closes the logs: readers get the remaining entries, then [`Read::End`].
    pub fn close(&self) {
        for log in self.logs.values() {
            log.close();
        }
    }
}

/// One stream's log, for reading; a [`LogWriter`] appends to it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    shared: Arc<LogShared>,
}

#[derive(Debug)]
struct LogShared {
    name: StreamName,
    source: Source,
    store: Store,
    /// The runtime of the readers.
    reader_runtime: Handle,
    tail: HotTail,
    end: watch::Sender<LogEnd>,
    /// Locked while tail and end move.
    move_lock: Mutex<()>,
    /// The positions of the clients' readers.
    progress: ProgressTracker,
    /// All entries that readers got are gone from the store, and no writer has claimed the log since.
    wiped: AtomicBool,
    /// The number of claims. Only the newest writer may append.
    claims: AtomicU64,
}

impl EventLog {
    async fn open(store: &Store, stream: &StreamName, source: &Source, settings: &Settings) -> Result<Self, ReadError> {
        let (LogBounds { lineage, first, last }, unusable) = store.bounds_at_startup(stream).await?;
        if let Some(reason) = unusable {
            tracing::error!(%stream, reason, "log cannot be used; other streams are not affected");
        }
        let shared = LogShared {
            name: stream.clone(),
            source: source.clone(),
            store: store.clone(),
            reader_runtime: Handle::current(),
            tail: HotTail::new(settings.tail_bytes),
            end: watch::Sender::new(LogEnd { lineage, first, last, closed: false }),
            move_lock: Mutex::default(),
            progress: ProgressTracker::default(),
            wiped: AtomicBool::new(false),
            claims: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn name(&self) -> &StreamName {
        &self.shared.name
    }

    /// The CloudEvents `source` of its entries.
    pub fn source(&self) -> &Source {
        &self.shared.source
    }

    /// The bounds of the log.
    pub fn end(&self) -> LogEnd {
        let mut end = self.shared.end.borrow().clone();
        end.first = self.shared.store.first(&self.shared.name);
        end
    }

    /// A receiver of the bounds when they move.
    pub fn subscribe(&self) -> watch::Receiver<LogEnd> {
        self.shared.end.subscribe()
    }

    /// Claims the log for writing: under a new fence, or under the fence `under`, which must be the current one, else
    /// [`AppendError::Fenced`]. Appends of an earlier writer are rejected.
    pub async fn claim(&self, under: Option<Fence>) -> Result<LogWriter, AppendError> {
        let seen = self.shared.observed();
        let mut state = self.shared.store.claim_after(&self.shared.name, under, &seen).await?;
        if self.shared.is_wiped(&state.lineage, state.last) {
            let stream = &self.shared.name;
            tracing::error!(%stream, "the store lost log entries; recording a gap");
            state.damaged = true;
        }
        self.shared.reconcile(LogBounds {
            lineage: state.lineage.clone(),
            first: state.first,
            last: state.high_watermark,
        });
        self.shared.wiped.store(false, Ordering::Release);
        Ok(LogWriter::new(Arc::clone(&self.shared), &state))
    }

    /// Makes the appends of other processes visible to readers until it is dropped. It runs while this process has no
    /// [`LogWriter`] of the log, once for all readers and on their runtime, so no thread wakes another. Cancel-safe.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn follow(&self) -> Result<Infallible, ReadError> {
        let following = self.shared.reader_runtime.spawn(Arc::clone(&self.shared).follow());
        match AbortOnDropHandle::new(following).await {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and this future with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// A reader that starts after `after`, an offset of this log (see [`EventLog::cursor_validity`]).
    pub fn reader(&self, after: Offset) -> LogReader {
        LogReader::new(self.clone(), after)
    }

    /// The first batches of a range, about `bytes_max` bytes but at least one batch. None when they are not held.
    pub async fn reread(&self, stretch: EntryRange, bytes_max: usize) -> Result<Option<Vec<BatchView>>, ReadError> {
        let EntryRange { from, last, entry_len } = stretch;
        let (log, after) = (&self.shared, from.offset.previous());
        let views = match log.tail.after(from.epoch, after, last, bytes_max) {
            Some(views) => views,
            None => {
                // Not every store can limit a response in bytes in advance.
                let entries = (bytes_max / entry_len.max(1)).max(1) as u64;
                let last = last.min(Offset(after.0.saturating_add(entries)));
                let batches = log.store.read(&log.name, after, last, bytes_max).await?;
                batches.iter().map(|batch| tail::view(batch, from.offset)).collect()
            }
        };
        let begins = views.first().is_some_and(|oldest| oldest.batch.entry(oldest.from).mark == from);
        Ok(begins.then_some(views))
    }

    /// Tracks a client's reader for [`EventLog::lag_max`] until the value is dropped.
    pub fn track_reader(&self, after: Offset) -> ReaderProgress {
        self.shared.progress.add(after)
    }

    /// The number of entries that the slowest client's reader has not got yet.
    pub fn lag_max(&self) -> u64 {
        let last = self.shared.end.borrow().last;
        self.shared.progress.lag_max(last)
    }

    /// The last offset whose entry was received before `moment`.
    pub async fn offset_before(&self, moment: Timestamp) -> Result<Offset, ReadError> {
        let last = self.shared.end.borrow().last;
        self.shared.store.offset_before(&self.shared.name, last, moment).await
    }

    /// The newest entries after `after`, oldest first, at most `count`. Entries that are not readable events are omitted.
    pub async fn newest(&self, after: Offset, count: usize) -> Result<Vec<Event>, ReadError> {
        let last = self.shared.end.borrow().last;
        let after = after.max(Offset(last.0.saturating_sub(count as u64)));
        let (mut reader, mut newest) = (self.reader(after), Vec::new());
        while reader.position() < last {
            match reader.try_next(NEWEST_BYTES).await? {
                Some(Read::Entries(views)) => {
                    newest.extend(views.iter().flat_map(|view| view.entries().filter_map(|entry| entry.event())));
                }
                Some(Read::Trimmed { .. } | Read::Wiped { .. }) => (),
                Some(Read::End) | None => break,
            }
        }
        Ok(newest)
    }

    /// Why readers here do not receive the appends of another process.
    pub fn unreadable(&self) -> Option<String> {
        self.shared.store.unreadable(&self.shared.name)
    }

    /// The feed that the stored position belongs to, if known.
    pub async fn feed(&self) -> Result<Option<FeedId>, ReadError> {
        self.shared.store.feed(&self.shared.name).await
    }

    /// Whether a mark is valid in this log.
    pub fn cursor_validity(&self, mark: Mark) -> CursorValidity {
        let end = self.shared.end.borrow();
        end.lineage.validity(mark, end.last)
    }

    fn close(&self) {
        self.shared.end.send_modify(|end| end.closed = true);
    }
}

impl LogShared {
    async fn follow(self: Arc<Self>) -> Result<Infallible, ReadError> {
        let mut follower = self.store.follower(&self.name);
        loop {
            let (epoch, shown) = self.shown_up_to();
            match follower.next(epoch, shown).await? {
                LogUpdate::Entries(batches) => {
                    let last = batches.last().map_or(shown, |newest| newest.last());
                    self.publish(batches, epoch, last);
                }
                LogUpdate::Diverged(bounds) => {
                    let unclaimed = bounds.lineage.current() == Epoch::NONE;
                    let wiped = unclaimed && self.is_wiped(&bounds.lineage, bounds.last);
                    self.wiped.store(wiped, Ordering::Release);
                    self.reconcile(bounds);
                }
            }
        }
    }

    /// Makes durable entries up to `last` visible: first the entries, then the end of the log. Does nothing when another
    /// epoch has begun.
    fn publish(&self, mut batches: Vec<Arc<Batch>>, epoch: Epoch, last: Offset) {
        let _guard = self.move_lock.lock();
        let (current, shown) = self.shown_up_to();
        if current != epoch {
            return;
        }
        batches.retain(|batch| batch.last() > shown);
        if batches.first().map_or(last > shown, |batch| batch.first() != shown.next()) {
            self.tail.clear();
        }
        self.tail.push(batches);
        self.update_end(|end| end.last = last.max(shown));
    }

    /// Whether all entries that readers got are gone, given the bounds in the store.
    fn is_wiped(&self, lineage: &Lineage, last: Offset) -> bool {
        let end = self.end.borrow();
        let is_another = end.last > Offset::START && end.lineage.current() != lineage.current();
        let is_gone = is_another && (end.lineage.common_offset(lineage, end.last).is_none() || last < end.first);
        is_gone || self.wiped.load(Ordering::Acquire)
    }

    /// Applies the bounds in the store. Where they do not continue the visible log, readers continue in the store.
    fn reconcile(&self, bounds: LogBounds) {
        let _guard = self.move_lock.lock();
        let (current, shown) = self.shown_up_to();
        let same = current == bounds.lineage.current();
        // Within an epoch a log that ends earlier was rolled back, and no writer has claimed it yet.
        let last = if same { bounds.last.max(shown) } else { bounds.last };
        if !same || last > shown {
            self.tail.clear();
        }
        self.update_end(|end| {
            end.lineage = bounds.lineage;
            end.last = last;
        });
    }

    /// The entries that readers got.
    fn observed(&self) -> ObservedLog {
        let end = self.end.borrow();
        ObservedLog { lineage: end.lineage.clone(), last: end.last }
    }

    /// The current epoch and the last visible entry.
    fn shown_up_to(&self) -> (Epoch, Offset) {
        let end = self.end.borrow();
        (end.lineage.current(), end.last)
    }

    /// Wakes readers when the end has changed.
    fn update_end(&self, change: impl FnOnce(&mut LogEnd)) {
        let first = self.store.first(&self.name);
        self.end.send_if_modified(|end| {
            let before = (end.lineage.current(), end.last);
            change(end);
            end.first = first;
            before != (end.lineage.current(), end.last)
        });
    }
}

#[cfg(test)]
mod tests;
