//! Entries of one stream on their way to one client: which are wanted, how far they were sent, and where they are.
//!
//! While the client takes them they are at hand. When it does not, they share a budget with those of all others and may
//! have to give way; what is left is then read from the log again.

use std::{borrow::Cow, collections::VecDeque, io::IoSlice, ops::Range};

use super::{
    memory::{Copies, Hold, Memory},
    position::Positions,
    render::{self, Kinds},
};
use crate::{
    downstream::feed::Feed,
    event_log::Stretch,
    model::{Batch, BatchView, Epoch, Mark, Offset, Rendering},
    store::ReadError,
    telemetry::metrics,
};

/// What is read again at a time.
const AGAIN_LEN: usize = 256 * 1024;

/// One turn of one client.
#[derive(Debug)]
pub(super) struct Turn {
    lane: usize,
    copies: Copies,
    /// About so long is each entry.
    entry_len: usize,
    pub(super) course: Course,
    pub(super) stock: Stock,
}

/// What is left to be sent.
#[derive(Debug)]
pub(super) struct Course {
    runs: VecDeque<Run>,
    /// How much of the first entry was sent, in whatever the transport counts.
    pub(super) sent: usize,
}

/// Neighbouring entries of one epoch.
#[derive(Debug, Clone, Copy)]
struct Run {
    epoch: Epoch,
    from: u64,
    /// The first that is not meant.
    to: u64,
}

/// The entries themselves.
#[derive(Debug)]
pub(super) enum Stock {
    /// Nobody else counts them: the client has not been found slow.
    Own(Vec<BatchView>),
    Held(Hold),
}

/// What is left cannot be sent.
#[derive(Debug)]
pub(super) enum Lost {
    /// The log holds it no more.
    Trimmed,
    Unreadable(ReadError),
}

impl Turn {
    /// Of the entries of these views the wanted ones, which are counted, and what is passed over with them.
    pub(super) fn of(
        lane: usize,
        views: Vec<BatchView>,
        copies: Copies,
        kinds: &Kinds,
        subscriber: &metrics::Subscriber,
        positions: &mut Option<Box<Positions>>,
    ) -> Self {
        let mut runs = VecDeque::with_capacity(views.len());
        for view in &views {
            let (mut count, mut end) = (0, None);
            for run in kinds.runs(view) {
                count += run.len();
                end = Some(run.end);
                runs.push_back(Run::of(&view.batch, &run));
            }
            subscriber.delivered(count);
            if let Some(positions) = positions {
                positions.saw(view, end);
            }
        }
        let (bytes, entries) = views
            .iter()
            .fold((0, 0), |(bytes, entries), view| (bytes + view.batch.bytes().len(), entries + view.batch.len()));
        let entry_len = bytes / entries.max(1);
        Self { lane, copies, entry_len, course: Course { runs, sent: 0 }, stock: Stock::Own(views) }
    }

    pub(super) fn lane(&self) -> usize {
        self.lane
    }

    /// The client does not take it now: from here on it gives way to others.
    pub(super) fn wait(&mut self, memory: &Memory, feed: &Feed) {
        match &mut self.stock {
            Stock::Own(views) => {
                let views = std::mem::take(views);
                if let Some(hold) = memory.hold(feed.name(self.lane), self.copies, views) {
                    self.stock = Stock::Held(hold);
                }
            }
            // It took some of it meanwhile: others have waited longer.
            Stock::Held(hold) => hold.renew(),
        }
    }

    /// Has what is left at hand again, or part of it.
    pub(super) async fn recall(&mut self, memory: &Memory, feed: &Feed) -> Result<(), Lost> {
        let Some((from, last)) = self.course.ends() else { return Ok(()) };
        self.stock = Stock::Own(Vec::new());
        let stretch = Stretch { from, last, entry_len: self.entry_len };
        let views = feed.again(self.lane, stretch, memory.read_len(AGAIN_LEN)).await.map_err(Lost::Unreadable)?;
        self.stock = Stock::Own(views.ok_or(Lost::Trimmed)?);
        Ok(())
    }
}

impl Stock {
    /// None are left when they had to give way.
    pub(super) fn views(&self) -> Cow<'_, [BatchView]> {
        match self {
            Self::Own(views) => views.into(),
            Self::Held(hold) => hold.views().into(),
        }
    }
}

impl Run {
    fn of(batch: &Batch, run: &Range<usize>) -> Self {
        let offset = |index: usize| batch.first().0 + index as u64;
        Self { epoch: batch.epoch(), from: offset(run.start), to: offset(run.end) }
    }
}

impl Course {
    /// Everything was sent.
    pub(super) fn is_done(&self) -> bool {
        self.runs.is_empty()
    }

    /// Of what is left only the entry that the client has part of.
    pub(super) fn cut(&mut self) {
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
    fn wanted<'v>(&self, views: &'v [BatchView]) -> impl Iterator<Item = (&'v Batch, Range<usize>)> {
        self.runs.iter().flat_map(move |run| {
            let begin = views.partition_point(|view| view.batch.last().0 < run.from);
            let of_run = views[begin..].iter().take_while(|view| view.batch.first().0 < run.to);
            of_run.map(|view| (view.batch.as_ref(), run.within(&view.batch)))
        })
    }

    /// The first of it.
    pub(super) fn first<'v>(&self, views: &'v [BatchView]) -> Option<(&'v Batch, Range<usize>)> {
        self.wanted(views).next()
    }

    /// What is left as WebSocket frames; how many slices there are.
    pub(super) fn frames<'v>(&self, views: &'v [BatchView], slices: &mut [IoSlice<'v>]) -> usize {
        let mut count = 0;
        for ((batch, run), slice) in self.wanted(views).zip(slices) {
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
                self.pass(run.len());
            } else {
                let (entries, sent) = cut_at(rendering, &run, span.start + left);
                self.pass(entries);
                self.sent = sent;
                return;
            }
        }
    }

    /// So many entries were sent.
    pub(super) fn pass(&mut self, entries: usize) {
        let Some(run) = self.runs.front_mut() else { return };
        run.from += entries as u64;
        if run.from >= run.to {
            self.runs.pop_front();
        }
    }
}

impl Run {
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
