//! The records of durable consumers, and the cursors of all consumers of a stream.
//!
//! A record changes by compare-and-set only, so that a claim at one replica is not overwritten by a use at another.

use std::collections::BTreeMap;

use super::{AppendError, ReadError, Store};
use crate::{
    model::{ConsumerName, Mark, StreamName, Timestamp},
    protocol::consumer::ConsumerRecord,
    random,
    telemetry::Cause,
};

/// The most durable consumers. Beyond it a new name is refused until one is deleted.
pub const CONSUMERS_MAX: u64 = 10_000;

/// Repetitions of a change that competes with others. Each loser repeats after another change was applied.
const ATTEMPTS_MAX: usize = 50;

/// Why no further consumer is created.
pub(super) fn consumers_full() -> AppendError {
    AppendError::Unavailable(Cause::new(format!(
        "there are {CONSUMERS_MAX} durable consumers; delete those that are not used"
    )))
}

impl Store {
    /// Whether other processes change the records too.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Redis(_) => true,
        }
    }

    /// The record of a consumer; none if there is no such consumer.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn consumer(&self, consumer: &ConsumerName) -> Result<Option<ConsumerRecord>, ReadError> {
        match self {
            Self::Embedded(store) => store.consumer(consumer).await,
            Self::Redis(store) => Box::pin(store.consumer(consumer)).await,
        }
    }

    /// All consumers; a record that cannot be read is omitted.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn consumers(&self) -> Result<BTreeMap<ConsumerName, ConsumerRecord>, ReadError> {
        match self {
            Self::Embedded(store) => store.consumers().await,
            Self::Redis(store) => Box::pin(store.consumers()).await,
        }
    }

    /// The cursors of all consumers in a stream; one that cannot be read is omitted.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn cursors(&self, stream: &StreamName) -> Result<BTreeMap<ConsumerName, Mark>, ReadError> {
        match self {
            Self::Embedded(store) => store.cursors(stream).await,
            Self::Redis(store) => Box::pin(store.cursors(stream)).await,
        }
    }

    /// Creates, changes or deletes (`to` is none) a record by compare-and-set. Returns whether the record is `to`; a
    /// repeated call returns true.
    ///
    /// # Errors
    /// The store cannot be written, or has [`CONSUMERS_MAX`] consumers. The change may have been applied; repeat it.
    pub async fn change_consumer(
        &self,
        consumer: &ConsumerName,
        from: Option<ConsumerRecord>,
        to: Option<ConsumerRecord>,
    ) -> Result<bool, AppendError> {
        match self {
            Self::Embedded(store) => store.change_consumer(consumer, from, to).await,
            Self::Redis(store) => Box::pin(store.change_consumer(consumer, from, to)).await,
        }
    }

    /// Removes a consumer's cursor in a stream.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn delete_cursor(&self, consumer: &ConsumerName, stream: &StreamName) -> Result<(), AppendError> {
        match self {
            Self::Embedded(store) => store.delete_cursor(consumer, stream).await,
            Self::Redis(store) => Box::pin(store.delete_cursor(consumer, stream)).await,
        }
    }

    /// Takes a new claim of a consumer, which is created if it is missing.
    ///
    /// # Errors
    /// The store cannot be used, or has [`CONSUMERS_MAX`] consumers.
    pub async fn claim_consumer(&self, consumer: &ConsumerName, now: Timestamp) -> Result<ConsumerRecord, AppendError> {
        for _ in 0..ATTEMPTS_MAX {
            let found = self.consumer(consumer).await.map_err(unreadable)?;
            let claimed = ConsumerRecord::claimed(found, random::u128(), now);
            if self.change_consumer(consumer, found, Some(claimed)).await? {
                return Ok(claimed);
            }
        }
        Err(contended(consumer))
    }

    /// Deletes a consumer with this record, and its cursors in `streams`. Returns false, and deletes nothing, if it has
    /// another record: it was used since.
    ///
    /// # Errors
    /// The store cannot be used. Some cursors may be left; repeat it.
    pub async fn delete_consumer(
        &self,
        consumer: &ConsumerName,
        record: Option<ConsumerRecord>,
        streams: impl Iterator<Item = &StreamName>,
    ) -> Result<bool, AppendError> {
        if record.is_some() && !self.change_consumer(consumer, record, None).await? {
            return Ok(false);
        }
        for stream in streams {
            self.delete_cursor(consumer, stream).await?;
        }
        Ok(true)
    }
}

fn unreadable(error: ReadError) -> AppendError {
    AppendError::Unavailable(Cause::new(error))
}

fn contended(consumer: &ConsumerName) -> AppendError {
    AppendError::Unavailable(Cause::new(format!("the consumer {consumer} changed {ATTEMPTS_MAX} times meanwhile")))
}
