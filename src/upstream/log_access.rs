//! Access of a stream task to the log: append as owner, or follow the owner's appends as standby.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use super::{
    appender::{Appender, STORE_RETRY_DELAY},
    reporter::StreamReporter,
};
use crate::{
    coordination::{AppendPermit, Ownership, OwnershipPhase, ReplicaRole},
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

/// The access of a stream to its log. Its verbs return what the stream machine must know.
pub(super) struct LogAccess {
    log: EventLog,
    role: LogRole,
}

/// Whether this replica may append.
enum LogRole {
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

/// What follows a change of role.
pub(super) enum RoleStep {
    Claim(LogClaim),
    Handle(Input),
}

/// A claim of the log by a standby.
pub(super) struct LogClaim {
    log: EventLog,
    fence: Option<Fence>,
    since: Option<Offset>,
}

/// What follows a rejected append or claim.
pub(super) enum AppendRejection {
    /// Another replica has the lease since before the append. It receives the same events.
    Ignored,
    /// This replica has no access any more. The fence is older than that of another owner.
    Released { fenced: Option<Fence> },
}

/// The result of a claim: the writer and the newest entries of the log.
pub(super) type LogClaimResult = Result<(LogWriter, Vec<Event>), AppendError>;

impl LogAccess {
    pub(super) fn standby(log: &EventLog) -> Self {
        Self { log: log.clone(), role: LogRole::Standby { following: follow_log(log), since: None } }
    }

    /// The access of an owner that has claimed its log.
    pub(super) fn owner(log: &EventLog, writer: LogWriter, ownership: Ownership, permit: AppendPermit) -> Self {
        Self { log: log.clone(), role: LogRole::owner(writer, ownership, permit) }
    }

    pub(super) fn is_claiming(&self) -> bool {
        matches!(self.role, LogRole::Claiming { .. })
    }

    pub(super) fn is_owner(&self) -> bool {
        matches!(self.role, LogRole::Owner { .. })
    }

    pub(super) fn is_standby(&self) -> bool {
        matches!(self.role, LogRole::Standby { .. })
    }

    /// The appender, if this replica owns the log.
    pub(super) fn appender(&self) -> Option<Appender> {
        match &self.role {
            LogRole::Owner { appender, .. } => Some(appender.clone()),
            LogRole::Standby { .. } | LogRole::Claiming { .. } | LogRole::None => None,
        }
    }

    fn ownership(&self) -> Option<Ownership> {
        match &self.role {
            LogRole::Owner { ownership, .. } | LogRole::Claiming { ownership } => Some(*ownership),
            LogRole::Standby { .. } | LogRole::None => None,
        }
    }

    /// Follows the log as standby. Never completes.
    pub(super) async fn follow(&mut self) {
        match &mut self.role {
            LogRole::Standby { following, .. } => following.await,
            LogRole::Claiming { .. } | LogRole::Owner { .. } | LogRole::None => std::future::pending().await,
        }
    }

    /// Applies the current role of this replica.
    pub(super) fn apply_role(&mut self, role: ReplicaRole) -> Option<RoleStep> {
        match (self.ownership(), role) {
            (None, ReplicaRole::Standby) => None,
            (None, ReplicaRole::Owner(ownership)) => self.claim(ownership).map(RoleStep::Claim),
            (Some(before), ReplicaRole::Owner(ownership)) if before.fence == ownership.fence => {
                self.apply_phase(ownership).map(RoleStep::Handle)
            }
            (_, ReplicaRole::Idle) | (Some(_), ReplicaRole::Standby | ReplicaRole::Owner(_)) => {
                Some(RoleStep::Handle(self.release()))
            }
        }
    }

    /// Handles the stop signal. An owner drains; any other role is released.
    pub(super) fn stop(&mut self) -> Input {
        if self.is_owner() { Input::Drain } else { self.release() }
    }

    fn release(&mut self) -> Input {
        self.role = LogRole::None;
        Input::Release
    }

    fn claim(&mut self, ownership: Ownership) -> Option<LogClaim> {
        let LogRole::Standby { since, .. } = self.role else { return None };
        self.role = LogRole::Claiming { ownership };
        Some(LogClaim { log: self.log.clone(), fence: ownership.fence, since })
    }

    /// Becomes the owner with the writer of a claim. None if the role has changed since.
    pub(super) fn become_owner(
        &mut self,
        (writer, stored): (LogWriter, Vec<Event>),
        permit: AppendPermit,
    ) -> Option<[Option<Input>; 2]> {
        let LogRole::Claiming { ownership } = self.role else { return None };
        let head = stream_opening(&writer);
        self.role = LogRole::owner(writer, ownership, permit);
        let become_owner = Input::BecomeOwner { head, stored, covered: ownership.handed_over };
        Some([Some(become_owner), self.apply_phase(ownership)])
    }

    /// Applies a new phase of the ownership.
    fn apply_phase(&mut self, next: Ownership) -> Option<Input> {
        let before = match &mut self.role {
            LogRole::Owner { ownership, .. } => mem::replace(&mut ownership.phase, next.phase),
            LogRole::Claiming { ownership } => {
                *ownership = next;
                return None;
            }
            LogRole::Standby { .. } | LogRole::None => return None,
        };
        match next.phase {
            OwnershipPhase::Flushing(_) if before != next.phase => Some(Input::Flush),
            OwnershipPhase::Closing if before != next.phase => Some(Input::Drain),
            OwnershipPhase::Active | OwnershipPhase::Flushing(_) | OwnershipPhase::Closing => None,
        }
    }

    /// Handles a failed append or claim.
    ///
    /// # Errors
    /// The error ends the process.
    pub(super) fn on_append_error(
        &mut self,
        error: AppendError,
        reporter: &StreamReporter,
    ) -> Result<AppendRejection, AppendError> {
        let Some(ownership) = self.ownership() else {
            tracing::info!(error = chain(&error), "append failed after the lease was lost");
            return Ok(AppendRejection::Ignored);
        };
        let fenced = match (error, ownership.fence) {
            (AppendError::Fenced, Some(fence)) => Some(fence),
            (AppendError::Diverged(cause), Some(_)) => {
                let why = chain(&cause);
                tracing::warn!(why, "the log changed outside this replica; claiming it again");
                reporter.log_moved(&why);
                None
            }
            (AppendError::UnusableLog(cause), _) => {
                reporter.append_refused(&chain(&cause));
                None
            }
            (error, _) => return Err(error),
        };
        self.role = LogRole::None;
        Ok(AppendRejection::Released { fenced })
    }

    /// Ends the access of an owner that closes. False if the owner does not close.
    pub(super) fn close(&mut self) -> bool {
        let is_closing = self.ownership().is_some_and(|ownership| ownership.phase == OwnershipPhase::Closing);
        let closes = self.is_owner() && is_closing;
        if closes {
            self.role = LogRole::None;
        }
        closes
    }

    /// Reads the position of the followed log after an interval.
    pub(super) fn read_position(&self, feed: FeedId) -> impl Future<Output = Option<Sequence>> + Send + 'static {
        let log = self.log.clone();
        async move {
            tokio::time::sleep(POSITION_READ_INTERVAL).await;
            read_log_position(&log, feed).await
        }
    }

    /// Records the end of the log when the standby session becomes live. It does not repeat earlier entries.
    pub(super) fn record_live_offset(&mut self) {
        let end = self.log.end().last;
        if let LogRole::Standby { since, .. } = &mut self.role {
            *since = Some(end);
        }
    }
}

impl LogRole {
    fn owner(writer: LogWriter, ownership: Ownership, permit: AppendPermit) -> Self {
        let appender = Appender { writer: Arc::new(writer), fence: ownership.fence, permit };
        Self::Owner { appender, ownership: Ownership { phase: OwnershipPhase::Active, ..ownership } }
    }
}

impl LogClaim {
    /// Claims the log and reads the entries that may repeat the standby buffer of this length; none if the machine does
    /// not compare them.
    pub(super) async fn run(self, kept: Option<usize>) -> LogClaimResult {
        let writer = claim(&self.log, self.fence).await?;
        let stored = match kept {
            Some(kept) => read_newest(&self.log, self.since, kept).await?,
            None => Vec::new(),
        };
        Ok((writer, stored))
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
