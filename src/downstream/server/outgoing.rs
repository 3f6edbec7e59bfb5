//! Entries of one stream on their way to one client: which are wanted, how far they were sent, and where they are.
//!
//! While the client takes them they are at hand. When it does not, they share a budget with those of all others and may
//! have to give way; what is left is then read from the log again.

use std::{borrow::Cow, collections::VecDeque, io::IoSlice, ops::Range};

use super::{
    buffer_pool::{BatchHold, BufferPool, CopyKind},
    position::PositionReporter,
    render::{self, TypeFilter},
};
use crate::{
    downstream::merged_reader::MergedReader,
    event_log::EntryRange,
    model::{Batch, BatchView, Epoch, Mark, Offset, Rendering},
    store::ReadError,
    telemetry::metrics,
};

/// What is read again at a time.
const RELOAD_LEN: usize = 256 * 1024;

/// One turn of one client.
#[derive(Debug)]
pub(super) struct OutgoingBatch {
    lane: usize,
    copies: CopyKind,
    /// About so long is each entry.
    entry_len: usize,
    pub(super) unsent: UnsentRuns,
    pub(super) entries: OutgoingViews,
}

/// What is left to be sent.
#[derive(Debug)]
pub(super) struct UnsentRuns {
    runs: VecDeque<OffsetRun>,
    /// How much of the first entry was sent, in whatever the transport counts.
    pub(super) sent: usize,
}

/// Neighbouring entries of one epoch.
#[derive(Debug, Clone, Copy)]
struct OffsetRun {
    epoch: Epoch,
    from: u64,
    /// The first that is not meant.
    to: u64,
}

/// The entries themselves.
#[derive(Debug)]
pub(super) enum OutgoingViews {
    /// Nobody else counts them: the client has not been found slow.
    Unaccounted(Vec<BatchView>),
    Held(BatchHold),
}

/// What is left cannot be sent.
#[derive(Debug)]
pub(super) enum RecallError {
    /// The log holds it no more.
    Trimmed,
    Unreadable(ReadError),
}

impl OutgoingBatch {
    /// Of the entries of these views the wanted ones, which are counted, and what is passed over with them.
    pub(super) fn of(
        lane: usize,
        views: Vec<BatchView>,
        copies: CopyKind,
        kinds: &TypeFilter,
        subscriber: &metrics::SubscriberMetrics,
        positions: &mut Option<Box<PositionReporter>>,
    ) -> Self {
        let mut runs = VecDeque::with_capacity(views.len());
        for view in &views {
            let (mut count, mut end) = (0, None);
            for run in kinds.runs(view) {
                count += run.len();
                end = Some(run.end);
                runs.push_back(OffsetRun::of(&view.batch, &run));
            }
            subscriber.delivered(count);
            if let Some(positions) = positions {
                positions.on_view(view, end);
            }
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

    /// The client does not take it now: from here on it gives way to others.
    pub(super) fn hold(&mut self, memory: &BufferPool, feed: &MergedReader) {
        match &mut self.entries {
            OutgoingViews::Unaccounted(views) => {
                let views = std::mem::take(views);
                if let Some(hold) = memory.hold(feed.name(self.lane), self.copies, views) {
                    self.entries = OutgoingViews::Held(hold);
                }
            }
            // It took some of it meanwhile: others have waited longer.
            OutgoingViews::Held(hold) => hold.renew(),
        }
    }

    /// Has what is left at hand again, or part of it.
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
    /// None are left when they had to give way.
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
    /// Everything was sent.
    pub(super) fn is_done(&self) -> bool {
        self.runs.is_empty()
    }

    /// Of what is left only the entry that the client has part of.
    pub(super) fn keep_partial_entry(&mut self) {
        let keep = usize::from(self.sent > 0);
        self.runs.truncate(keep);
        if let Some(run) = self.runs.front_mut() {
            run.to = run.from + 1;
        }
    }

    /// The first entry that is left, and the last.
    fn ends(&self) -> Option<(Mark, Offset)> {
        let (first, last) = (self.runs.front()?, self.runs.back()?);
        Some((Mark { epoch: first.epoch, offset: Offset(first.from) }, Offset(last.to - 1)))
    }

    /// What is left, as far as these views have it: neighbours in one batch each.
    fn unsent_runs<'v>(&self, views: &'v [BatchView]) -> impl Iterator<Item = (&'v Batch, Range<usize>)> {
        self.runs.iter().flat_map(move |run| {
            let begin = views.partition_point(|view| view.batch.last().0 < run.from);
            let of_run = views[begin..].iter().take_while(|view| view.batch.first().0 < run.to);
            of_run.map(|view| (view.batch.as_ref(), run.within(&view.batch)))
        })
    }

    /// The first of it.
    pub(super) fn first<'v>(&self, views: &'v [BatchView]) -> Option<(&'v Batch, Range<usize>)> {
        self.unsent_runs(views).next()
    }

    /// What is left as WebSocket frames; how many slices there are.
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

    /// So many bytes of those frames were sent.
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

    /// So many entries were sent.
    pub(super) fn advance(&mut self, entries: usize) {
        let Some(run) = self.runs.front_mut() else { return };
        run.from += entries as u64;
        if run.from >= run.to {
            self.runs.pop_front();
        }
    }
}

impl OffsetRun {
    /// The part that is in a batch that overlaps it.
    fn within(self, batch: &Batch) -> Range<usize> {
        let first = batch.first().0;
        let index = |offset: u64| usize::try_from(offset.saturating_sub(first)).expect("an index of a batch fits");
        index(self.from)..index(self.to).min(batch.len())
    }
}

/// How many entries of a run are before `at`, and how much of the next.
fn cut_at(rendering: &Rendering, run: &Range<usize>, at: usize) -> (usize, usize) {
    let ends = &rendering.ends[run.clone()];
    let entries = ends.partition_point(|end| *end as usize <= at);
    let begin = rendering.span(&(run.start + entries..run.start + entries + 1)).start;
    (entries, at - begin)
}
