//! Appending to a log for as long as it takes, and only while this process may.

use std::{sync::Arc, time::Duration};

use super::reporter::StreamReporter;
use crate::{
    coordination::AppendPermit,
    event_log::LogWriter,
    model::{Checkpoint, Event, Fence, Mark},
    store::AppendError,
};

/// A store without room is asked again after this time.
pub(super) const STORE_RETRY_DELAY: Duration = Duration::from_millis(500);

/// The right to append to one stream's log, and the way to do it.
#[derive(Debug, Clone)]
pub(super) struct Appender {
    pub(super) writer: Arc<LogWriter>,
    /// None where there is but this one process.
    pub(super) fence: Option<Fence>,
    pub(super) rights: AppendPermit,
}

impl Appender {
    /// Appends, waiting for the right and for room as long as it takes: meanwhile the buffer fills and the platform is
    /// not read.
    pub(super) async fn append(
        &mut self,
        events: &[Event],
        checkpoint: Checkpoint,
        board: &StreamReporter,
    ) -> Result<Mark, AppendError> {
        loop {
            self.rights.ready(self.fence).await;
            match self.writer.append(events, checkpoint).await {
                Ok(offset) => {
                    board.append_succeeded();
                    return Ok(Mark { epoch: self.writer.epoch(), offset });
                }
                Err(AppendError::Unavailable(why)) => board.store_unavailable(&why),
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
