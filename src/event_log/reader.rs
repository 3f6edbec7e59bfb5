//! A cursor over one log. It alone handles the seam between tail and store.
//!
//! It never skips entries silently: [`Read::Trimmed`] marks removed ones. Where the log was rolled back, it continues after
//! the last remaining entry that it returned.

use tokio::sync::watch;

use super::{EventLog, LogEnd, tail::view};
use crate::{
    model::{BatchView, Lineage, Mark, Offset},
    store::ReadError,
};

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    /// The next entries, oldest first, without holes; at least one batch, else limited by the requested bytes.
    Entries(Vec<BatchView>),
    /// Retention removed the entries after `after`. Reading continues at `first`, the oldest entry held.
    Trimmed { after: Offset, first: Mark },
    /// The log was wiped: no entry that the reader returned is left. Reading continues with the oldest entry held, or the
    /// next one.
    Wiped { first: Mark },
    /// The log is closed, and the reader is at its end.
    End,
}

/// A cursor over one log, which reads from the hot tail or else from the store.
#[derive(Debug)]
pub struct LogReader {
    log: EventLog,
    end: watch::Receiver<LogEnd>,
    position: Offset,
    /// The epoch of `position`.
    lineage: Lineage,
}

impl LogReader {
    pub(super) fn new(log: EventLog, after: Offset) -> Self {
        let moved = log.subscribe();
        let lineage = moved.borrow().lineage.clone();
        Self { log, end: moved, position: after, lineage }
    }

    /// The last entry that was returned.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Waits for the next entries. Cancel-safe: a dropped future skips nothing.
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

    /// The next entries without waiting; none when the reader is at the end.
    pub async fn try_next(&mut self, bytes_max: usize) -> Result<Option<Read>, ReadError> {
        let seen = self.observe();
        let read = self.read(&seen, bytes_max).await?;
        Ok(read.or(seen.closed.then_some(Read::End)))
    }

    /// Waits until the log moves after [`try_next`](Self::try_next) found nothing; false when it never will. Reads nothing.
    /// Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.end.changed().await.is_ok()
    }

    /// The end of the log, and the reader's position in it.
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

    /// The next entries up to the end of the log. None also when the log has changed in the store and the message of that
    /// has not arrived.
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

    /// Checks the bounds where expected entries are missing: the log was rolled back and the message of that has not
    /// arrived, or it is damaged. Boxed, because few subscribers need it and all would reserve memory for it.
    async fn check_missing(&self, last: Offset) -> Result<Option<Read>, ReadError> {
        let log = &self.log.shared;
        let bounds = log.store.bounds(&log.name).await?;
        match bounds.last < last || bounds.lineage.current() != self.lineage.current() {
            true => Ok(None),
            false => Err(ReadError::new(format!("the entries after {} are missing", self.position))),
        }
    }

    /// Handles entries of an epoch that this log does not have: its message has not arrived, or the entries are foreign and
    /// are skipped as trimmed ones.
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

    /// Removes entries that are durable but not visible yet, because a cursor beyond the end is rejected, and entries of an
    /// epoch that began during the read.
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

/// The end of the log as a reader sees it.
#[derive(Debug, Clone, Copy)]
struct EndSnapshot {
    last: Offset,
    closed: bool,
    /// The first entry of a log that replaced the reader's log.
    wiped: Option<Offset>,
}
