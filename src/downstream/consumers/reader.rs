//! The reader of a durable consumer: it has the name until a newer one takes over.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::{ConsumerError, Consumers};
use crate::{
    clock,
    model::{BatchView, ConsumerName, Cursor, Fence, Mark, StreamName},
    telemetry::metrics::ConsumerMetrics,
};

/// The reader of a consumer. Dropped, it leaves the name; the cursors stay.
#[derive(Debug)]
pub struct ConsumerReader {
    consumers: Consumers,
    name: ConsumerName,
    claim: Fence,
    superseded: CancellationToken,
    /// Its streams, in the order of the reader's lanes.
    streams: Vec<StreamName>,
    metrics: Vec<ConsumerMetrics>,
}

impl Drop for ConsumerReader {
    fn drop(&mut self) {
        self.consumers.end_claim(&self.name, self.claim);
    }
}

impl ConsumerReader {
    pub(super) fn new(
        consumers: Consumers,
        name: ConsumerName,
        claim: Fence,
        superseded: CancellationToken,
        streams: Vec<StreamName>,
    ) -> Self {
        let metrics = streams.iter().map(|stream| consumers.metrics(&name, stream)).collect();
        Self { consumers, name, claim, superseded, streams, metrics }
    }

    /// Ends when a newer reader has the name, or the consumer was deleted.
    pub fn superseded(&self) -> CancellationToken {
        self.superseded.clone()
    }

    /// Stores where the reader starts in a stream without a cursor.
    pub async fn start_at(&self, stream: &StreamName, mark: Mark) -> Result<(), ConsumerError> {
        // A cursor that was stored meanwhile is one of this consumer too.
        self.consumers.shared.store.move_cursor(&self.name, stream, None, mark).await?;
        Ok(())
    }

    /// The marks of a cursor, by stream.
    pub fn marks(&self, cursor: &Cursor) -> Result<BTreeMap<StreamName, Mark>, ConsumerError> {
        match (cursor, self.streams.as_slice()) {
            (Cursor::Single(mark), [stream]) => Ok(BTreeMap::from([(stream.clone(), *mark)])),
            (Cursor::Single(_), _) => Err(ConsumerError::NamesRequired),
            (Cursor::Several(marks), _) => match marks.keys().find(|stream| !self.streams.contains(stream)) {
                Some(foreign) => Err(ConsumerError::NotRead(foreign.clone())),
                None => Ok(marks.clone()),
            },
        }
    }

    /// Acknowledges the entries up to these marks. An entry that was acknowledged before has no effect.
    pub async fn acknowledge(&self, marks: &BTreeMap<StreamName, Mark>) -> Result<(), ConsumerError> {
        for (stream, mark) in marks {
            match self.consumers.acknowledge(&self.name, stream, *mark, Some(self.claim)).await {
                Ok(()) | Err(ConsumerError::Behind { .. }) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Acknowledges for a page, which must not lie behind the stored cursor. A cursor that is not of the log is left to
    /// the reader.
    pub async fn acknowledge_page(&self, stream: &StreamName, mark: Mark) -> Result<(), ConsumerError> {
        match self.consumers.acknowledge(&self.name, stream, mark, Some(self.claim)).await {
            Ok(()) | Err(ConsumerError::AheadOfLog { .. } | ConsumerError::UnknownEpoch { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Counts entries that are handed over, of which `events` match the reader's filter.
    pub fn record_delivery(&self, lane: usize, views: &[BatchView], events: usize) {
        let Some(received) = views.first().map(|view| view.batch.received_first()) else { return };
        self.metrics[lane].delivered(events, clock::wall().since(received));
    }
}

/// Waits until a reader is superseded; without one it never ends. Cancel-safe.
pub async fn superseded(reader: Option<&ConsumerReader>) {
    match reader {
        Some(reader) => reader.superseded.cancelled().await,
        None => std::future::pending().await,
    }
}
