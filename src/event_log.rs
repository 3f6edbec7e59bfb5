//! The event log: the hot tail over the store, and the readers that follow it.
//!
//! The only road: what is heard goes in here, every consumer reads here. There is no second, faster path and no
//! queue per consumer: a slow reader is merely behind.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use crate::{
    model::{BatchView, Checkpoint, Event, Lineage, Mark, Offset, Source, Standing, StreamName, Timestamp},
    store::{AppendError, ReadError, Store},
};

/// How far a log goes. Sent when it moves; carries no events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub lineage: Lineage,
    pub first: Offset,
    pub last: Offset,
    /// Nothing will be appended any more: readers that reach `last` are done.
    pub closed: bool,
}

/// How much is kept in memory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of the newest entries of one stream that are served without the store.
    pub tail_bytes: usize,
}

/// All logs of this process, by stream.
#[derive(Debug, Clone)]
pub struct EventLogs {
    logs: Arc<BTreeMap<StreamName, EventLog>>,
}

impl EventLogs {
    /// Opens the log of each stream.
    pub async fn open(
        _store: Store,
        _streams: &[(StreamName, Source)],
        _settings: &Settings,
    ) -> Result<Self, AppendError> {
        unimplemented!()
    }

    pub fn get(&self, stream: &StreamName) -> Option<&EventLog> {
        self.logs.get(stream)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&StreamName, &EventLog)> {
        self.logs.iter()
    }

    /// Nothing more will be appended: readers get what is there, then [`Read::End`].
    pub fn close(&self) {}
}

/// One stream's log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {}

/// What the writer found when the log was opened.
#[derive(Debug, Clone)]
pub struct Opening {
    pub checkpoint: Option<Checkpoint>,
    /// A gap with reason `store` is owed.
    pub damaged: bool,
}

impl EventLog {
    pub fn name(&self) -> &StreamName {
        unimplemented!()
    }
    /// The CloudEvents `source` of its entries.
    pub fn source(&self) -> &Source {
        unimplemented!()
    }
    pub fn opening(&self) -> &Opening {
        unimplemented!()
    }
    /// How far it goes.
    pub fn end(&self) -> End {
        unimplemented!()
    }
    /// Told whenever it moves.
    pub fn tail(&self) -> watch::Receiver<End> {
        unimplemented!()
    }
    /// Wraps the events, makes them durable with their position, then shows them to readers. Returns the new last
    /// offset. Callers append one at a time.
    pub async fn append(&self, _events: &[Event], _checkpoint: Checkpoint) -> Result<Offset, AppendError> {
        unimplemented!()
    }
    /// A reader that starts after `after`.
    pub fn reader(&self, _after: Offset) -> Reader {
        unimplemented!()
    }
    /// The last offset whose entry was received before `moment`.
    pub async fn offset_before(&self, _moment: Timestamp) -> Result<Offset, ReadError> {
        unimplemented!()
    }
    /// What a mark is worth here.
    pub fn standing(&self, mark: Mark) -> Standing {
        let end = self.end();
        end.lineage.standing(mark, end.last)
    }
}

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
pub struct Reader {}

impl Reader {
    /// The last entry handed out.
    pub fn position(&self) -> Offset {
        unimplemented!()
    }
    /// Waits until something follows. Cancel-safe: nothing is skipped when the future is dropped.
    pub async fn next(&mut self, _bytes_max: usize) -> Result<Read, ReadError> {
        unimplemented!()
    }
    /// The same without waiting: none when the reader is at the end.
    pub async fn next_now(&mut self, _bytes_max: usize) -> Result<Option<Read>, ReadError> {
        unimplemented!()
    }
}
