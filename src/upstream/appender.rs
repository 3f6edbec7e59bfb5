//! Appends with retries, only while this process holds the lease.

use std::{sync::Arc, time::Duration};

use super::reporter::StreamReporter;
use crate::{
    coordination::AppendPermit,
    event_log::LogWriter,
    model::{Checkpoint, Event, Fence, Mark},
    store::AppendError,
    telemetry::chain,
};

/// Delay before an append to an unavailable store is retried.
pub(super) const STORE_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Appends to the log of one stream while the lease permits it.
#[derive(Debug, Clone)]
pub(super) struct Appender {
    pub(super) writer: Arc<LogWriter>,
    /// None in a single process.
    pub(super) fence: Option<Fence>,
    pub(super) permit: AppendPermit,
}

impl Appender {
    /// Appends. Waits for the permit and retries while the store is unavailable; meanwhile the buffer fills.
    ///
    /// # Errors
    /// The append was fenced, or the log has diverged or is unusable.
    pub(super) async fn append(
        &mut self,
        events: &[Event],
        checkpoint: Checkpoint,
        reporter: &StreamReporter,
    ) -> Result<Mark, AppendError> {
        loop {
            self.permit.ready(self.fence).await;
            match self.writer.append(events, checkpoint.clone()).await {
                Ok(offset) => {
                    reporter.append_succeeded();
                    return Ok(Mark { epoch: self.writer.epoch(), offset });
                }
                Err(AppendError::Unavailable(cause)) => reporter.store_unavailable(&chain(&cause)),
                Err(
                    error @ (AppendError::Fenced
                    | AppendError::Diverged(_)
                    | AppendError::UnusableLog(_)
                    | AppendError::Broken(_)),
                ) => {
                    return Err(error);
                }
            }
            tokio::time::sleep(STORE_RETRY_DELAY).await;
        }
    }
}
