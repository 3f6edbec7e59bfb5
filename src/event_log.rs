//! The event log: the hot tail over the store, and the readers that follow it.
//!
//! The only road: what is heard goes in here, every consumer reads here. There is no second, faster path and no
//! queue per consumer: a slow reader is merely behind.

mod reader;
mod tail;
mod turn;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::try_join_all;
use tokio::sync::watch;

pub use self::reader::{Read, Reader};
use self::{tail::Tail, turn::Turn};
use crate::{
    model::{
        Batch, BatchBuilder, Checkpoint, Epoch, Event, Fence, Lineage, Mark, Offset, Source, Standing, StreamName,
        Timestamp,
    },
    store::{Append, AppendError, LogState, ReadError, Store},
};

/// Entries are stored, kept and handed on in batches of about this size: large enough that a batch costs little,
/// small enough that a reader can bound what it takes.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// What an envelope is taken to have beside its body, when batches are cut.
const ATTRIBUTES_LEN: usize = 512;

/// How far a log goes. Sent when it moves; carries no events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub lineage: Lineage,
    /// The oldest entry held. Retention moves it without a message: ask [`EventLog::end`] for the newest.
    pub first: Offset,
    pub last: Offset,
    /// Nothing will be appended any more: readers that reach `last` are done.
    pub closed: bool,
}

/// How much is kept in memory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Memory for the newest entries of one stream, which are served without the store. The newest batch is kept
    /// whatever it takes.
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
        store: Store,
        streams: &[(StreamName, Source)],
        settings: &Settings,
    ) -> Result<Self, AppendError> {
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

    /// Nothing more will be appended: readers get what is there, then [`Read::End`].
    pub fn close(&self) {
        for log in self.logs.values() {
            log.close();
        }
    }
}

/// One stream's log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

/// What the writer found when the log was opened.
#[derive(Debug, Clone)]
pub struct Opening {
    pub checkpoint: Option<Checkpoint>,
    /// A gap with reason `store` is owed.
    pub damaged: bool,
}

#[derive(Debug)]
struct Shared {
    name: StreamName,
    source: Source,
    store: Store,
    epoch: Epoch,
    fence: Fence,
    opening: Opening,
    tail: Tail,
    end: watch::Sender<End>,
    turn: Turn,
}

impl EventLog {
    async fn open(
        store: &Store,
        stream: &StreamName,
        source: &Source,
        settings: &Settings,
    ) -> Result<Self, AppendError> {
        let LogState { lineage, first, last, checkpoint, fence, damaged } = store.open_log(stream).await?;
        let shared = Shared {
            name: stream.clone(),
            source: source.clone(),
            store: store.clone(),
            epoch: lineage.current(),
            fence,
            opening: Opening { checkpoint, damaged },
            tail: Tail::new(settings.tail_bytes),
            end: watch::Sender::new(End { lineage, first, last, closed: false }),
            turn: Turn::default(),
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

    pub fn opening(&self) -> &Opening {
        &self.shared.opening
    }

    /// How far it goes.
    pub fn end(&self) -> End {
        let mut end = self.shared.end.borrow().clone();
        end.first = self.shared.store.first(&self.shared.name);
        end
    }

    /// Told whenever it moves.
    pub fn tail(&self) -> watch::Receiver<End> {
        self.shared.end.subscribe()
    }

    /// Wraps the events, makes them durable with their position, then shows them to readers. Returns the new last
    /// offset; without events only the checkpoint is stored. All is done or nothing.
    ///
    /// Callers append one at a time, and wait: an append that is dropped half-way leaves it unknown whether it was
    /// done, and every later one is refused as [`AppendError::Broken`].
    pub async fn append(&self, events: &[Event], checkpoint: Checkpoint) -> Result<Offset, AppendError> {
        let turn = self.shared.turn.begin()?;
        let batches = self.wrap(events);
        let append =
            Append { stream: self.shared.name.clone(), fence: self.shared.fence, batches: batches.clone(), checkpoint };
        let outcome = self.shared.store.append(append).await;
        turn.end();
        outcome?;
        Ok(self.show(batches))
    }

    /// A reader that starts after `after`, an offset of this log (see [`EventLog::standing`]).
    pub fn reader(&self, after: Offset) -> Reader {
        Reader::new(self.clone(), after)
    }

    /// The last offset whose entry was received before `moment`.
    pub async fn offset_before(&self, moment: Timestamp) -> Result<Offset, ReadError> {
        self.shared.store.offset_before(&self.shared.name, moment).await
    }

    /// What a mark is worth here.
    pub fn standing(&self, mark: Mark) -> Standing {
        let end = self.shared.end.borrow();
        end.lineage.standing(mark, end.last)
    }

    fn wrap(&self, mut events: &[Event]) -> Vec<Arc<Batch>> {
        let mut batches = Vec::new();
        let mut last = self.shared.end.borrow().last;
        while !events.is_empty() {
            let (now, later) = events.split_at(batch_len(events));
            let mut builder = BatchBuilder::new(&self.shared.source, self.shared.epoch, last);
            builder.reserve(now);
            now.iter().for_each(|event| builder.push(event));
            let batch = builder.finish().expect("a batch begins with an event");
            last = batch.last();
            batches.push(Arc::new(batch));
            events = later;
        }
        batches
    }

    /// What is durable becomes visible: first the entries, then the word that they are there.
    fn show(&self, batches: Vec<Arc<Batch>>) -> Offset {
        let Some(newest) = batches.last() else { return self.shared.end.borrow().last };
        let last = newest.last();
        self.shared.tail.push(batches);
        let first = self.shared.store.first(&self.shared.name);
        self.shared.end.send_modify(|end| {
            end.first = first;
            end.last = last;
        });
        last
    }

    fn close(&self) {
        self.shared.end.send_modify(|end| end.closed = true);
    }
}

/// How many of the events make the next batch: at least one.
fn batch_len(events: &[Event]) -> usize {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        bytes += event.body.len() + ATTRIBUTES_LEN;
        bytes <= BATCH_BYTES_MAX
    });
    fit.count().max(1)
}

#[cfg(test)]
mod tests;
