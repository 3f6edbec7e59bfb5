//! A cursor over one log. Where the tail ends and the store begins is its business alone.
//!
//! It never skips: between two answers nothing is left out, or [`Read::Trimmed`] stands between them.

use tokio::sync::watch;

use super::{End, EventLog, tail::view};
use crate::model::{BatchView, Mark, Offset};
use crate::store::ReadError;

/// What a reader gets.
#[derive(Debug)]
pub enum Read {
    /// What follows, oldest first, back to back; never empty; bounded by the asked bytes (at least one batch).
    Entries(Vec<BatchView>),
    /// Retention removed what would have followed `after`; the oldest entry held is `first`. Reading goes on there.
    Trimmed { after: Offset, first: Mark },
    /// The log is closed and everything was read.
    End,
}

/// A cursor over one log: the hot tail, else the store; the seam is its business alone.
#[derive(Debug)]
pub struct Reader {
    log: EventLog,
    moved: watch::Receiver<End>,
    position: Offset,
}

impl Reader {
    pub(super) fn new(log: EventLog, after: Offset) -> Self {
        let moved = log.tail();
        Self { log, moved, position: after }
    }

    /// The last entry handed out.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Waits until something follows. Cancel-safe: nothing is skipped when the future is dropped.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Read, ReadError> {
        loop {
            let (last, closed) = self.seen();
            if let Some(read) = self.read(last, bytes_max).await? {
                return Ok(read);
            }
            if closed || self.moved.changed().await.is_err() {
                return Ok(Read::End);
            }
        }
    }

    /// The same without waiting: none when the reader is at the end.
    pub async fn next_now(&mut self, bytes_max: usize) -> Result<Option<Read>, ReadError> {
        let (last, closed) = self.seen();
        let read = self.read(last, bytes_max).await?;
        Ok(read.or(closed.then_some(Read::End)))
    }

    fn seen(&mut self) -> (Offset, bool) {
        let end = self.moved.borrow_and_update();
        (end.last, end.closed)
    }

    /// What follows, up to `last`.
    async fn read(&mut self, last: Offset, bytes_max: usize) -> Result<Option<Read>, ReadError> {
        if self.position >= last {
            return Ok(None);
        }
        let views = match self.log.shared.tail.after(self.position, last, bytes_max) {
            Some(views) => views,
            None => self.read_store(last, bytes_max).await?,
        };
        let Some(first) = views.first().map(|view| Offset(view.batch.first().0 + view.from as u64)) else {
            return Err(ReadError(format!("the entries after {} are missing", self.position)));
        };
        if first > self.position.next() {
            return Ok(Some(self.trimmed(first)));
        }
        Ok(Some(self.hand_out(views, last)))
    }

    async fn read_store(&self, last: Offset, bytes_max: usize) -> Result<Vec<BatchView>, ReadError> {
        let log = &self.log.shared;
        let batches = log.store.read(&log.name, self.position, last, bytes_max).await?;
        Ok(batches.iter().map(|batch| view(batch, self.position.next())).collect())
    }

    /// What is durable but not shown yet is not for readers: a cursor beyond the end would be refused.
    fn hand_out(&mut self, mut views: Vec<BatchView>, last: Offset) -> Read {
        views.retain(|view| view.batch.last() <= last);
        let newest = views.last().expect("batches do not reach over the end, and one begins before it");
        self.position = newest.batch.last();
        Read::Entries(views)
    }

    fn trimmed(&mut self, first: Offset) -> Read {
        let after = self.position;
        self.position = first.previous();
        let (epoch, _) = self.moved.borrow().lineage.epoch_of(first);
        Read::Trimmed { after, first: Mark { epoch, offset: first } }
    }
}
