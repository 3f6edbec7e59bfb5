//! Entries of one stream that are being sent to one client.
//!
//! While the client is fast, they are in memory. Entries of a slow client count in the shared budget and may be evicted;
//! the unsent ones are then read from the log again.

use std::{borrow::Cow, collections::VecDeque, io::IoSlice, ops::Range};

use super::{
    buffer_pool::{BatchHold, BufferPool, CopyKind},
    position::PositionReporter,
    render::{self, TypeFilter},
};
use crate::{
    downstream::{consumers::ConsumerReader, merged_reader::MergedReader},
    event_log::EntryRange,
    model::{Batch, BatchView, Epoch, Mark, Offset, Rendering},
    store::ReadError,
    telemetry::metrics,
};

/// Bytes read again at a time.
const RELOAD_LEN: usize = 256 * 1024;

/// One batch of entries for one client.
#[derive(Debug)]
pub(super) struct OutgoingBatch {
    lane: usize,
    copies: CopyKind,
    /// Average length of an entry.
    entry_len: usize,
    pub(super) unsent: UnsentRuns,
    pub(super) entries: OutgoingViews,
}

/// The unsent entries.
#[derive(Debug)]
pub(super) struct UnsentRuns {
    runs: VecDeque<OffsetRun>,
    /// Sent part of the first entry, in units of the transport.
    pub(super) sent: usize,
}

/// Consecutive entries of one epoch.
#[derive(Debug, Clone, Copy)]
struct OffsetRun {
    epoch: Epoch,
    from: u64,
    /// End of the run, exclusive.
    to: u64,
}

/// The entries in memory.
#[derive(Debug)]
pub(super) enum OutgoingViews {
    /// Not counted in the budget: the client is not slow.
    Unaccounted(Vec<BatchView>),
    Held(BatchHold),
}

/// Why the unsent entries cannot be loaded.
#[derive(Debug)]
pub(super) enum RecallError {
    /// The log no longer has the entries.
    Trimmed,
    Unreadable(ReadError),
}

impl OutgoingBatch {
    /// The entries of these views that match the filter. Positions count the others.
    pub(super) fn of(
        lane: usize,
        views: Vec<BatchView>,
        copies: CopyKind,
        kinds: &TypeFilter,
        subscriber: &metrics::SubscriberMetrics,
        consumer: Option<&ConsumerReader>,
        positions: &mut Option<Box<PositionReporter>>,
    ) -> Self {
        let (mut runs, mut total) = (VecDeque::with_capacity(views.len()), 0);
        for view in &views {
            let (mut count, mut end) = (0, None);
            for run in kinds.runs(view) {
                count += run.len();
                end = Some(run.end);
                runs.push_back(OffsetRun::of(&view.batch, &run));
            }
            total += count;
            if let Some(positions) = positions {
                positions.on_view(view, end);
            }
        }
        subscriber.delivered(total);
        if let Some(consumer) = consumer {
            consumer.record_delivery(lane, &views, total);
        }
        let (bytes, entries) = views
            .iter()
            .fold((0, 0), |(bytes, entries), view| (bytes + view.batch.bytes().len(), entries + view.batch.len()));
        let entry_len = bytes / entries.max(1);
        Self {
            lane,
            copies,
            entry_len,
            unsent: UnsentRuns { runs, sent: 0 },
            entries: OutgoingViews::Unaccounted(views),
        }
    }

    pub(super) fn lane(&self) -> usize {
        self.lane
    }

    /// Marks the client as slow: the entries can be evicted from now on.
    pub(super) fn hold(&mut self, memory: &BufferPool, feed: &MergedReader) {
        match &mut self.entries {
            OutgoingViews::Unaccounted(views) => {
                let views = std::mem::take(views);
                if let Some(hold) = memory.hold(feed.name(self.lane), self.copies, views) {
                    self.entries = OutgoingViews::Held(hold);
                }
            }
            // The client made progress: evict other holds first.
            OutgoingViews::Held(hold) => hold.renew(),
        }
    }

    /// Reads evicted entries again, or part of them.
    pub(super) async fn reload(&mut self, memory: &BufferPool, feed: &MergedReader) -> Result<(), RecallError> {
        let Some((from, last)) = self.unsent.ends() else { return Ok(()) };
        self.entries = OutgoingViews::Unaccounted(Vec::new());
        let stretch = EntryRange { from, last, entry_len: self.entry_len };
        let views =
            feed.reread(self.lane, stretch, memory.read_len(RELOAD_LEN)).await.map_err(RecallError::Unreadable)?;
        self.entries = OutgoingViews::Unaccounted(views.ok_or(RecallError::Trimmed)?);
        Ok(())
    }
}

impl OutgoingViews {
    /// The entries in memory; empty after they were evicted.
    pub(super) fn views(&self) -> Cow<'_, [BatchView]> {
        match self {
            Self::Unaccounted(views) => views.into(),
            Self::Held(hold) => hold.views().into(),
        }
    }
}

impl OffsetRun {
    fn of(batch: &Batch, run: &Range<usize>) -> Self {
        let offset = |index: usize| batch.first().0 + index as u64;
        Self { epoch: batch.epoch(), from: offset(run.start), to: offset(run.end) }
    }
}

impl UnsentRuns {
    /// Whether everything was sent.
    pub(super) fn is_done(&self) -> bool {
        self.runs.is_empty()
    }

    /// Drops all but an entry that was sent in part.
    pub(super) fn keep_partial_entry(&mut self) {
        let keep = usize::from(self.sent > 0);
        self.runs.truncate(keep);
        if let Some(run) = self.runs.front_mut() {
            run.to = run.from + 1;
        }
    }

    /// The first and the last unsent entry.
    fn ends(&self) -> Option<(Mark, Offset)> {
        let (first, last) = (self.runs.front()?, self.runs.back()?);
        Some((Mark { epoch: first.epoch, offset: Offset(first.from) }, Offset(last.to - 1)))
    }

    /// The unsent runs in these views, one batch each.
    fn unsent_runs<'v>(&self, views: &'v [BatchView]) -> impl Iterator<Item = (&'v Batch, Range<usize>)> {
        self.runs.iter().flat_map(move |run| {
            let begin = views.partition_point(|view| view.batch.last().0 < run.from);
            let of_run = views[begin..].iter().take_while(|view| view.batch.first().0 < run.to);
            of_run.map(|view| (view.batch.as_ref(), run.within(&view.batch)))
        })
    }

    /// The first unsent run.
    pub(super) fn first<'v>(&self, views: &'v [BatchView]) -> Option<(&'v Batch, Range<usize>)> {
        self.unsent_runs(views).next()
    }

    /// Fills slices with the unsent WebSocket frames. Returns their number.
    pub(super) fn frames<'v>(&self, views: &'v [BatchView], slices: &mut [IoSlice<'v>]) -> usize {
        let mut count = 0;
        for ((batch, run), slice) in self.unsent_runs(views).zip(slices) {
            let rendering = batch.frames(render::frames);
            let skipped = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&rendering.bytes[rendering.span(&run)][skipped..]);
            count += 1;
        }
        count
    }

    /// Advances by sent bytes of frames.
    pub(super) fn frames_sent(&mut self, views: &[BatchView], written: usize) {
        let mut left = self.sent + written;
        self.sent = 0;
        while left > 0 {
            let Some((batch, run)) = self.first(views) else { return };
            let rendering = batch.frames(render::frames);
            let span = rendering.span(&run);
            if left >= span.len() {
                left -= span.len();
                self.advance(run.len());
            } else {
                let (entries, sent) = cut_at(rendering, &run, span.start + left);
                self.advance(entries);
                self.sent = sent;
                return;
            }
        }
    }

    /// Advances by sent entries.
    pub(super) fn advance(&mut self, entries: usize) {
        let Some(run) = self.runs.front_mut() else { return };
        run.from += entries as u64;
        if run.from >= run.to {
            self.runs.pop_front();
        }
    }
}

impl OffsetRun {
    /// The part of the run in an overlapping batch.
    fn within(self, batch: &Batch) -> Range<usize> {
        let first = batch.first().0;
        let index = |offset: u64| usize::try_from(offset.saturating_sub(first)).expect("an index of a batch fits");
        index(self.from)..index(self.to).min(batch.len())
    }
}

/// The number of whole entries of a run before `at`, and the bytes of the next one.
fn cut_at(rendering: &Rendering, run: &Range<usize>, at: usize) -> (usize, usize) {
    let ends = &rendering.ends[run.clone()];
    let entries = ends.partition_point(|end| *end as usize <= at);
    let begin = rendering.span(&(run.start + entries..run.start + entries + 1)).start;
    (entries, at - begin)
}
