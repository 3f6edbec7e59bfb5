//! A cursor over one log. Where the tail ends and the store begins is its business alone.
//!
//! It never skips: between two answers nothing is left out, or [`Read::Trimmed`] stands between them. Where the log was
//! rolled back, it goes on with what follows the last entry that is left of what it handed out.

use tokio::sync::watch;

use super::{EventLog, LogEnd, tail::view};
use crate::{
    model::{BatchView, Lineage, Mark, Offset},
    store::ReadError,
};

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    /// What follows, oldest first, back to back; never empty; bounded by the asked bytes (at least one batch).
    Entries(Vec<BatchView>),
    /// Retention removed what would have followed `after`; the oldest entry held is `first`. Reading goes on there.
    Trimmed { after: Offset, first: Mark },
    /// The log was wiped: nothing that was handed out is in it any more. Reading goes on with the oldest entry held, or
    /// the one to come.
    Wiped { first: Mark },
    /// The log is closed and everything was read.
    End,
}

/// A cursor over one log: the hot tail, else the store; the seam is its business alone.
#[derive(Debug)]
pub struct LogReader {
    log: EventLog,
    end: watch::Receiver<LogEnd>,
    position: Offset,
    /// What `position` means.
    lineage: Lineage,
}

impl LogReader {
    pub(super) fn new(log: EventLog, after: Offset) -> Self {
        let moved = log.subscribe();
        let lineage = moved.borrow().lineage.clone();
        Self { log, end: moved, position: after, lineage }
    }

    /// The last entry handed out.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Waits until something follows. Cancel-safe: nothing is skipped when the future is dropped.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Read, ReadError> {
        loop {
            let seen = self.observe();
            if let Some(read) = self.read(&seen, bytes_max).await? {
                return Ok(read);
            }
            if seen.closed || self.end.changed().await.is_err() {
                return Ok(Read::End);
            }
        }
    }

    /// The same without waiting: none when the reader is at the end.
    pub async fn try_next(&mut self, bytes_max: usize) -> Result<Option<Read>, ReadError> {
        let seen = self.observe();
        let read = self.read(&seen, bytes_max).await?;
        Ok(read.or(seen.closed.then_some(Read::End)))
    }

    /// Waits until the log has moved since [`next_now`](Self::next_now) last found nothing; false when it never will
    /// again. Cancel-safe, and reads nothing.
    pub async fn changed(&mut self) -> bool {
        self.end.changed().await.is_ok()
    }

    /// How far the log goes, and what has become of the reader's position in it.
    fn observe(&mut self) -> EndSnapshot {
        let end = self.end.borrow_and_update();
        let mut seen = EndSnapshot { last: end.last, closed: end.closed, wiped: None };
        if end.lineage.current() != self.lineage.current() {
            let left = self.lineage.common_offset(&end.lineage, self.position);
            self.position = left.unwrap_or(end.first.previous());
            self.lineage = end.lineage.clone();
            seen.wiped = left.is_none().then_some(end.first);
        }
        seen
    }

    /// What follows, up to where the log goes. None also when the log is another one by now than it was thought to be:
    /// word of that is on its way.
    async fn read(&mut self, seen: &EndSnapshot, bytes_max: usize) -> Result<Option<Read>, ReadError> {
        if let Some(first) = seen.wiped {
            return Ok(Some(Read::Wiped { first: self.mark(first) }));
        }
        if self.position >= seen.last {
            return Ok(None);
        }
        let epoch = self.lineage.current();
        let views = match self.log.shared.tail.after(epoch, self.position, seen.last, bytes_max) {
            Some(views) => views,
            None => self.read_store(seen.last, bytes_max).await?,
        };
        let Some(oldest) = views.first() else { return Box::pin(self.check_missing(seen.last)).await };
        let first = Offset(oldest.batch.first().0 + oldest.from as u64);
        if !self.lineage.contains(oldest.batch.epoch(), first) {
            return Box::pin(self.skip_unknown(&views, seen.last)).await;
        }
        if first > self.position.next() {
            return Ok(Some(self.trimmed(first)));
        }
        Ok(Some(self.deliver(views, seen.last)))
    }

    async fn read_store(&self, last: Offset, bytes_max: usize) -> Result<Vec<BatchView>, ReadError> {
        let log = &self.log.shared;
        let batches = log.store.read(&log.name, self.position, last, bytes_max).await?;
        Ok(batches.iter().map(|batch| view(batch, self.position.next())).collect())
    }

    /// Nothing is where something should be: the log was rolled back, and word of that is on its way, or it is damaged.
    /// On the heap: few subscribers ever come here, and all would keep room for it.
    async fn check_missing(&self, last: Offset) -> Result<Option<Read>, ReadError> {
        let log = &self.log.shared;
        let bounds = log.store.bounds(&log.name).await?;
        match bounds.last < last || bounds.lineage.current() != self.lineage.current() {
            true => Ok(None),
            false => Err(ReadError(format!("the entries after {} are missing", self.position))),
        }
    }

    /// Entries of an epoch that this log does not have: word of it is on its way, or they are not the log's, and are
    /// passed over as if they were trimmed.
    async fn skip_unknown(&mut self, views: &[BatchView], last: Offset) -> Result<Option<Read>, ReadError> {
        let log = &self.log.shared;
        let bounds = log.store.bounds(&log.name).await?;
        let is_unknown = |view: &&BatchView| !bounds.lineage.contains(view.batch.epoch(), view.batch.first());
        let Some(beyond) = views.iter().take_while(is_unknown).last() else { return Ok(None) };
        if bounds.last < last || bounds.lineage.current() != self.lineage.current() {
            return Ok(None);
        }
        Ok(Some(self.trimmed(beyond.batch.last().next())))
    }

    /// What is durable but not shown yet is not for readers: a cursor beyond the end would be refused. Nor is what came
    /// to be while this was read, in an epoch that the reader has not heard of.
    fn deliver(&mut self, mut views: Vec<BatchView>, last: Offset) -> Read {
        views.retain(|view| view.batch.last() <= last && self.lineage.contains(view.batch.epoch(), view.batch.first()));
        let newest = views.last().expect("batches do not reach over the end, and one begins before it");
        self.position = newest.batch.last();
        Read::Entries(views)
    }

    fn trimmed(&mut self, first: Offset) -> Read {
        let after = self.position;
        self.position = first.previous();
        Read::Trimmed { after, first: self.mark(first) }
    }

    fn mark(&self, offset: Offset) -> Mark {
        Mark { epoch: self.lineage.epoch_of(offset).0, offset }
    }
}

/// What a reader saw of the log's end.
#[derive(Debug, Clone, Copy)]
struct EndSnapshot {
    last: Offset,
    closed: bool,
    /// Where a log begins that has nothing in common with the one that the reader knew.
    wiped: Option<Offset>,
}
