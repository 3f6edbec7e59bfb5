//! Appending to a log for as long as it takes, and only while this process may.

use std::{sync::Arc, time::Duration};

use super::board::Board;
use crate::{
    event_log::Writer,
    model::{Checkpoint, Event, Fence, Mark},
    replica::Rights,
    store::AppendError,
};

/// A store without room is asked again after this time.
pub(super) const NO_ROOM_WAIT: Duration = Duration::from_millis(500);

/// The right to append to one stream's log, and the way to do it.
#[derive(Debug, Clone)]
pub(super) struct Appender {
    pub(super) writer: Arc<Writer>,
    /// None where there is but this one process.
    pub(super) fence: Option<Fence>,
    pub(super) rights: Rights,
}

impl Appender {
    /// Appends, waiting for the right and for room as long as it takes: meanwhile the buffer fills and the platform is
    /// not read.
    pub(super) async fn append(
        &mut self,
        events: &[Event],
        checkpoint: Checkpoint,
        board: &Board,
    ) -> Result<Mark, AppendError> {
        loop {
            self.rights.wait(self.fence).await;
            match self.writer.append(events, checkpoint).await {
                Ok(offset) => {
                    board.store_has_room();
                    return Ok(Mark { epoch: self.writer.epoch(), offset });
                }
                Err(AppendError::NoRoom(why)) => board.store_has_no_room(&why),
                Err(
                    error @ (AppendError::Fenced
                    | AppendError::Moved(_)
                    | AppendError::Refused(_)
                    | AppendError::Broken(_)),
                ) => {
                    return Err(error);
                }
            }
            tokio::time::sleep(NO_ROOM_WAIT).await;
        }
    }
}
