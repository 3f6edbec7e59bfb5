//! Access of a stream task to the log: append as owner, or follow the owner's appends as standby.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use super::{
    appender::{Appender, STORE_RETRY_DELAY},
    driver::{StreamDriver, StreamWorkResult, now},
};
use crate::{
    coordination::{Ownership, OwnershipPhase, ReplicaRole},
    event_log::{EventLog, LogWriter},
    model::{Event, FeedId, Fence, Offset, Sequence},
    protocol::stream::{Input, LogHead},
    store::AppendError,
    telemetry::chain,
};

/// Interval of position reads on a standby. A new session of the standby makes the platform repeat at most this much.
const POSITION_READ_INTERVAL: Duration = Duration::from_secs(5);

/// Delay before an unusable log is claimed again.
pub(super) const CLAIM_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Newest entries searched for one with the platform's number.
const NUMBERED_SEARCH_MAX: usize = 64;

/// Entries read in addition to the buffered ones, because some entries are created by the relay.
const NEWEST_MARGIN: usize = 64;

/// Maximum number of entries read when the standby buffer is empty: late frames may repeat them.
const NEWEST_MAX: usize = 10_000;

/// Makes the owner's appends visible to readers of this process.
pub(super) type FollowFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whether this replica may append.
pub(super) enum LogAccess {
    /// Another replica appends; this one follows.
    Standby {
        following: FollowFuture,
        /// End of the log when the session of this standby became live.
        since: Option<Offset>,
    },
    /// This replica claims the log. Sockets are not read meanwhile, so the standby buffer does not change.
    Claiming { ownership: Ownership },
    /// This replica appends.
    Owner { appender: Appender, ownership: Ownership },
    /// No access: the role is about to change.
    None,
}

/// The result of a claim: the writer and the newest entries of the log.
pub(super) type LogClaimResult = Result<(LogWriter, Vec<Event>), AppendError>;

impl LogAccess {
    pub(super) fn standby(log: &EventLog) -> Self {
        Self::Standby { following: follow_log(log), since: None }
    }

    pub(super) fn is_claiming(&self) -> bool {
        matches!(self, Self::Claiming { .. })
    }

    pub(super) fn is_owner(&self) -> bool {
        matches!(self, Self::Owner { .. })
    }

    /// The appender, if this replica owns the log.
    pub(super) fn appender(&self) -> Option<Appender> {
        match self {
            Self::Owner { appender, .. } => Some(appender.clone()),
            Self::Standby { .. } | Self::Claiming { .. } | Self::None => None,
        }
    }

    fn ownership(&self) -> Option<Ownership> {
        match self {
            Self::Owner { ownership, .. } | Self::Claiming { ownership } => Some(*ownership),
            Self::Standby { .. } | Self::None => None,
        }
    }

    /// Follows the log as standby. Never completes.
    pub(super) async fn follow(&mut self) {
        match self {
            Self::Standby { following, .. } => following.await,
            Self::Claiming { .. } | Self::Owner { .. } | Self::None => std::future::pending().await,
        }
    }
}

/// Follows a log. Never completes, even when a closed store ends the work.
pub(super) fn follow_log(log: &EventLog) -> FollowFuture {
    let log = log.clone();
    Box::pin(async move {
        let Err(error) = log.follow().await;
        tracing::debug!(error = chain(&error), "stopped following the log");
        std::future::pending::<()>().await;
    })
}

/// Claims a log. Retries while the store is unavailable.
pub(super) async fn claim(log: &EventLog, fence: Option<Fence>) -> Result<LogWriter, AppendError> {
    loop {
        match log.claim(fence).await {
            Err(AppendError::Unavailable(cause)) => {
                tracing::debug!(error = chain(&cause), "cannot claim the log yet, will retry");
            }
            claimed => return claimed,
        }
        tokio::time::sleep(STORE_RETRY_DELAY).await;
    }
}

/// The end of the claimed log, from which the machine starts.
pub(super) fn stream_opening(writer: &LogWriter) -> LogHead {
    let found = writer.claimed_state();
    LogHead { checkpoint: found.checkpoint.clone(), damaged: found.damaged }
}

/// The last number of a numbered log by its newest entries. None if another feed wrote the log.
pub(super) async fn read_log_position(log: &EventLog, feed: FeedId) -> Option<Sequence> {
    let stored = log.feed().await.ok()?;
    if stored.is_some_and(|stored| stored != feed) {
        return None;
    }
    let newest = log.newest(Offset::START, NUMBERED_SEARCH_MAX).await.ok()?;
    newest.iter().rev().find_map(|event| event.sequence)
}

impl StreamDriver<'_> {
    /// Applies the current role of this replica.
    pub(super) fn apply_role(&mut self) {
        let role = self.lease.role();
        match (self.log_access.ownership(), role) {
            (None, ReplicaRole::Standby) => (),
            (None, ReplicaRole::Owner(ownership)) => self.claim(ownership),
            (Some(before), ReplicaRole::Owner(ownership)) if before.fence == ownership.fence => {
                self.apply_stage(ownership);
            }
            (_, ReplicaRole::Idle) | (Some(_), ReplicaRole::Standby | ReplicaRole::Owner(_)) => self.release(),
        }
    }

    /// Handles the stop signal. An owner drains; any other role is released.
    pub(super) fn stop(&mut self) {
        match self.log_access {
            LogAccess::Owner { .. } => self.machine.handle(Input::Drain, now()),
            LogAccess::Standby { .. } | LogAccess::Claiming { .. } | LogAccess::None => self.release(),
        }
    }

    pub(super) fn release(&mut self) {
        self.log_access = LogAccess::None;
        self.machine.handle(Input::Release, now());
    }

    fn claim(&mut self, ownership: Ownership) {
        let LogAccess::Standby { since, .. } = self.log_access else { return };
        self.log_access = LogAccess::Claiming { ownership };
        let (log, compares, kept) = (self.log.clone(), self.machine.compares_with_log(), self.machine.standby_len());
        self.work.push(Box::pin(async move {
            let claiming = async {
                let writer = claim(&log, ownership.fence).await?;
                let stored = if compares { read_newest(&log, since, kept).await? } else { Vec::new() };
                Ok((writer, stored))
            };
            StreamWorkResult::Claimed(Box::new(claiming.await))
        }));
    }

    pub(super) async fn claimed(&mut self, claimed: LogClaimResult) -> anyhow::Result<()> {
        let LogAccess::Claiming { ownership } = self.log_access else { return Ok(()) };
        match claimed {
            Ok((writer, stored)) => {
                let opening = stream_opening(&writer);
                let appender =
                    Appender { writer: Arc::new(writer), fence: ownership.fence, permit: self.lease.append_permit() };
                self.log_access =
                    LogAccess::Owner { appender, ownership: Ownership { phase: OwnershipPhase::Active, ..ownership } };
                self.machine
                    .handle(Input::BecomeOwner { head: opening, stored, covered: ownership.handed_over }, now());
                self.apply_stage(ownership);
                Ok(())
            }
            Err(error) => self.on_append_error(error).await,
        }
    }

    /// Applies a new phase of the ownership.
    fn apply_stage(&mut self, next: Ownership) {
        let LogAccess::Owner { ownership, .. } = &mut self.log_access else {
            if let LogAccess::Claiming { ownership } = &mut self.log_access {
                *ownership = next;
            }
            return;
        };
        let before = mem::replace(&mut ownership.phase, next.phase);
        match next.phase {
            OwnershipPhase::Flushing(_) if before != next.phase => self.machine.handle(Input::Flush, now()),
            OwnershipPhase::Closing if before != next.phase => self.machine.handle(Input::Drain, now()),
            OwnershipPhase::Active | OwnershipPhase::Flushing(_) | OwnershipPhase::Closing => (),
        }
    }

    /// Handles a failed append or claim. An error ends the process.
    pub(super) async fn on_append_error(&mut self, error: AppendError) -> anyhow::Result<()> {
        let Some(ownership) = self.log_access.ownership() else {
            // The append was in flight when another replica took the lease. That replica receives the same events.
            tracing::info!(error = chain(&error), "append failed after the lease was lost");
            return Ok(());
        };
        match (error, ownership.fence) {
            (AppendError::Fenced, Some(fence)) => {
                self.release();
                self.lease.report_fenced(fence).await;
                Ok(())
            }
            (AppendError::Diverged(cause), Some(_)) => {
                let why = chain(&cause);
                tracing::warn!(why, "the log changed outside this replica; claiming it again");
                self.reporter.log_moved(&why);
                self.release();
                Ok(())
            }
            (AppendError::UnusableLog(cause), _) => {
                self.reporter.append_refused(&chain(&cause));
                self.release();
                Ok(())
            }
            (error, _) => Err(error.into()),
        }
    }

    /// Handles a drained machine. True if the driver ends; false if only the ownership was closed.
    pub(super) async fn on_drained(&mut self) -> bool {
        let closing = matches!(
            self.log_access,
            LogAccess::Owner { ownership: Ownership { phase: OwnershipPhase::Closing, .. }, .. }
        );
        if closing {
            self.log_access = LogAccess::None;
            self.lease.report_closed().await;
        }
        !closing
    }

    /// Takes the position of the followed log, from which the next session resumes.
    pub(super) fn on_log_position(&mut self, position: Option<Sequence>) {
        if matches!(self.log_access, LogAccess::Standby { .. }) {
            if let Some(position) = position {
                self.machine.handle(Input::Follow(position), now());
            }
            self.schedule_position_read();
        }
    }

    /// Schedules the next read of the log position.
    pub(super) fn schedule_position_read(&self) {
        let (log, feed) = (self.log.clone(), self.machine.feed());
        self.work.push(Box::pin(async move {
            tokio::time::sleep(POSITION_READ_INTERVAL).await;
            StreamWorkResult::Position(read_log_position(&log, feed).await)
        }));
    }

    /// Records the end of the log when the standby session becomes live. It does not repeat earlier entries.
    pub(super) fn record_live_offset(&mut self) {
        let end = self.log.end().last;
        if let LogAccess::Standby { since, .. } = &mut self.log_access {
            *since = Some(end);
        }
    }
}

/// The newest entries that may repeat the standby buffer; if it is empty, all since the session became live.
async fn read_newest(log: &EventLog, since: Option<Offset>, kept: usize) -> Result<Vec<Event>, AppendError> {
    let (after, count) = match (since, kept) {
        (Some(since), 0) => (since, NEWEST_MAX),
        (None, 0) => return Ok(Vec::new()),
        (_, kept) => (Offset::START, kept + NEWEST_MARGIN),
    };
    loop {
        match log.newest(after, count).await {
            Ok(events) => return Ok(events),
            Err(error) => tracing::debug!(error = chain(&error), "cannot read the newest entries yet, will retry"),
        }
        tokio::time::sleep(STORE_RETRY_DELAY).await;
    }
}
