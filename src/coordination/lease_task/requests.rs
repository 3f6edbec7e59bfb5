//! The requests of the lease task that are in flight, and their results.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream::FuturesUnordered;

use crate::{
    coordination::{
        lease_record::LeaseRecords,
        membership::{HealthReport, MemberList},
        peer_message::OutgoingMessage,
        registry::Registry,
    },
    model::{Fence, StreamName},
    protocol::lease::{ChangeOutcome, Input, LeaseRecord, LeaseRequest},
    store::redis::connection::CommandError,
    telemetry::chain,
};

/// A released stream has this time to make its events durable.
const CLOSE_MAX: Duration = Duration::from_secs(4);

/// Messages in flight, sent or received. Further messages are dropped; a lost message only delays.
pub(super) const MESSAGES_MAX: usize = 256;

/// Delay before an unreadable record is read again.
const UNREADABLE_WAIT: Duration = Duration::from_secs(1);

/// A request in flight.
type LeaseFuture = Pin<Box<dyn Future<Output = Option<Completion>> + Send>>;

/// The result of a request.
pub(super) enum Completion {
    Input(Input),
    /// The live replicas.
    Renewed(MemberList),
    Listed(LeaseRecords),
    NoReply(LeaseRequest, CommandError),
    /// The time for a stream to close is over.
    Closed(StreamName),
    Left,
}

/// The requests in flight.
pub(super) struct LeaseRequests {
    pub(super) registry: Arc<Registry>,
    pub(super) work: FuturesUnordered<LeaseFuture>,
    pub(super) publishing: FuturesUnordered<LeaseFuture>,
}

impl LeaseRequests {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry: Arc::new(registry), work: FuturesUnordered::new(), publishing: FuturesUnordered::new() }
    }

    pub(super) fn renew(&self, limit: usize, health: HealthReport, ttl: Duration) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            Some(match registry.renew(limit, &health, ttl).await {
                Ok(lives) => Completion::Renewed(lives),
                Err(error) => Completion::NoReply(LeaseRequest::Renew, error),
            })
        }));
    }

    pub(super) fn list(&self, streams: Vec<StreamName>) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            Some(match registry.records(&streams).await {
                Ok(records) => Completion::Listed(records),
                Err(error) => Completion::NoReply(LeaseRequest::ReadRecords, error),
            })
        }));
    }

    /// Reports after [`CLOSE_MAX`] that the time for the stream to close is over.
    pub(super) fn await_close(&self, stream: StreamName) {
        self.work.push(Box::pin(async move {
            tokio::time::sleep(CLOSE_MAX).await;
            Some(Completion::Closed(stream))
        }));
    }

    /// Changes a record.
    pub(super) fn change(&self, stream: StreamName, expected: Option<Fence>, record: LeaseRecord) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            let outcome = match registry.change(&stream, expected, record).await {
                Ok(true) => ChangeOutcome::Done,
                Ok(false) => ChangeOutcome::Refused,
                Err(error) => {
                    tracing::info!(%stream, error = chain(&error), "lease record not changed");
                    match error {
                        CommandError::NotSent(_) | CommandError::LoginRefused(_) | CommandError::Refused { .. } => {
                            ChangeOutcome::Refused
                        }
                        CommandError::NoAnswer(_) => ChangeOutcome::Unknown,
                    }
                }
            };
            Some(Completion::Input(Input::Changed { stream, fence: record.fence, outcome }))
        }));
    }

    /// Refuses a change of an unreadable record, which is not overwritten. The machine retries after this.
    pub(super) fn refuse_later(&self, stream: StreamName, fence: Fence) {
        self.work.push(Box::pin(async move {
            tokio::time::sleep(UNREADABLE_WAIT).await;
            Some(Completion::Input(Input::Changed { stream, fence, outcome: ChangeOutcome::Refused }))
        }));
    }

    pub(super) fn publish(&self, outgoing: OutgoingMessage) {
        if self.publishing.len() >= MESSAGES_MAX {
            return;
        }
        let registry = Arc::clone(&self.registry);
        self.publishing.push(Box::pin(async move {
            if let Err(error) = registry.publish(&outgoing).await {
                tracing::debug!(error = chain(&error), ?outgoing, "message to another replica not sent");
            }
            None
        }));
    }

    pub(super) fn leave(&self) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            if let Err(error) = registry.leave().await {
                tracing::debug!(error = chain(&error), "membership not removed; it expires");
            }
            Some(Completion::Left)
        }));
    }
}
