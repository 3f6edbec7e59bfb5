//! What a stream's task may do with the log: append to it, or follow what its holder appends, ready to go on.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use super::{
    appender::{Appender, STORE_RETRY_DELAY},
    driver::{StreamDriver, StreamWorkResult, now},
};
use crate::{
    coordination::{Ownership, OwnershipPhase, ReplicaRole},
    event_log::{EventLog, LogWriter},
    model::{Event, FeedId, Fence, Offset, Position},
    protocol::stream::{Input, LogHead},
    store::AppendError,
};

/// The position of a log that is followed is looked at this often, so that a new session of ours does not make the
/// platform repeat more than that.
const POSITION_READ_INTERVAL: Duration = Duration::from_secs(5);

/// A log that cannot be used is claimed again after this time.
pub(super) const CLAIM_RETRY_DELAY: Duration = Duration::from_secs(2);

/// One of so many newest entries has the platform's number.
const NUMBERED_SEARCH_MAX: usize = 64;

/// Beside as many entries as are kept, so many are looked at: some are the relay's own.
const NEWEST_MARGIN: usize = 64;

/// Where nothing is kept, late frames of ours may repeat so many entries.
const NEWEST_MAX: usize = 10_000;

/// Shows readers of this process what the holder appends.
pub(super) type FollowFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who may append.
pub(super) enum LogAccess {
    /// Another replica.
    Standby {
        following: FollowFuture,
        /// Where the log ended when a session of ours was live.
        since: Option<Offset>,
    },
    /// This one, as soon as it has claimed the log. Meanwhile nothing is read, so that what is kept stays.
    Claiming { ownership: Ownership },
    /// This one. `closing`: nothing new is heard.
    Owner { appender: Appender, ownership: Ownership },
    /// Nobody here: the stream's part is about to change.
    None,
}

/// What came of a claim: the writer, and the newest entries of the log.
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

    /// The way to append, if there is one.
    pub(super) fn appender(&self) -> Option<Appender> {
        match self {
            Self::Owner { appender, .. } => Some(appender.clone()),
            Self::Standby { .. } | Self::Claiming { .. } | Self::None => None,
        }
    }

    fn ownership(&self) -> Option<Ownership> {
        match self {
            Self::Owner { ownership: owning, .. } | Self::Claiming { ownership: owning } => Some(*owning),
            Self::Standby { .. } | Self::None => None,
        }
    }

    /// Follows the log while another has it; for ever.
    pub(super) async fn follow(&mut self) {
        match self {
            Self::Standby { following, .. } => following.await,
            Self::Claiming { .. } | Self::Owner { .. } | Self::None => std::future::pending().await,
        }
    }
}

/// Follows a log for ever. A store that is closed ends it: then there is nothing more to follow.
pub(super) fn follow_log(log: &EventLog) -> FollowFuture {
    let log = log.clone();
    Box::pin(async move {
        let Err(error) = log.follow().await;
        tracing::debug!(%error, "stopped following the log");
        std::future::pending::<()>().await;
    })
}

/// Claims a log, waiting for the store as long as it takes.
pub(super) async fn claim(log: &EventLog, fence: Option<Fence>) -> Result<LogWriter, AppendError> {
    loop {
        match log.claim(fence).await {
            Err(AppendError::Unavailable(why)) => tracing::debug!(why, "cannot claim the log yet, will retry"),
            claimed => return claimed,
        }
        tokio::time::sleep(STORE_RETRY_DELAY).await;
    }
}

/// What the machine goes on from.
pub(super) fn stream_opening(writer: &LogWriter) -> LogHead {
    let found = writer.claimed_state();
    LogHead { checkpoint: found.checkpoint, damaged: found.damaged }
}

/// Where a numbered log is, by its newest entries; none where it is written from another feed.
pub(super) async fn read_log_position(log: &EventLog, feed: FeedId) -> Option<Position> {
    let stored = log.feed().await.ok()?;
    if stored.is_some_and(|stored| stored != feed) {
        return None;
    }
    let newest = log.newest(Offset::START, NUMBERED_SEARCH_MAX).await.ok()?;
    newest.iter().rev().find_map(|event| event.sequence).map(Position)
}

impl StreamDriver<'_> {
    /// Does what the seat says now.
    pub(super) fn apply_role(&mut self) {
        let part = self.seat.role();
        match (self.log_access.ownership(), part) {
            (None, ReplicaRole::Standby) => (),
            (None, ReplicaRole::Owner(owning)) => self.claim(owning),
            (Some(before), ReplicaRole::Owner(owning)) if before.fence == owning.fence => self.apply_stage(owning),
            (_, ReplicaRole::Idle) | (Some(_), ReplicaRole::Standby | ReplicaRole::Owner(_)) => self.release(),
        }
    }

    /// The process ends. What was heard becomes durable if it is this process's to keep.
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

    fn claim(&mut self, owning: Ownership) {
        let LogAccess::Standby { since, .. } = self.log_access else { return };
        self.log_access = LogAccess::Claiming { ownership: owning };
        let (log, compares, kept) = (self.log.clone(), self.machine.compares_with_log(), self.machine.standby_len());
        self.work.push(Box::pin(async move {
            let claiming = async {
                let writer = claim(&log, owning.fence).await?;
                let stored = if compares { read_newest(&log, since, kept).await? } else { Vec::new() };
                Ok((writer, stored))
            };
            StreamWorkResult::Claimed(Box::new(claiming.await))
        }));
    }

    pub(super) async fn claimed(&mut self, claimed: LogClaimResult) -> anyhow::Result<()> {
        let LogAccess::Claiming { ownership: owning } = self.log_access else { return Ok(()) };
        match claimed {
            Ok((writer, stored)) => {
                let opening = stream_opening(&writer);
                let appender =
                    Appender { writer: Arc::new(writer), fence: owning.fence, rights: self.seat.append_permit() };
                self.log_access =
                    LogAccess::Owner { appender, ownership: Ownership { phase: OwnershipPhase::Active, ..owning } };
                self.machine.handle(Input::BecomeOwner { head: opening, stored, covered: owning.handed_over }, now());
                self.apply_stage(owning);
                Ok(())
            }
            Err(error) => self.on_append_error(error).await,
        }
    }

    /// How far the end of the ownership has come.
    fn apply_stage(&mut self, next: Ownership) {
        let LogAccess::Owner { ownership: owning, .. } = &mut self.log_access else {
            if let LogAccess::Claiming { ownership: owning } = &mut self.log_access {
                *owning = next;
            }
            return;
        };
        let before = mem::replace(&mut owning.phase, next.phase);
        match next.phase {
            OwnershipPhase::Flushing(_) if before != next.phase => self.machine.handle(Input::Flush, now()),
            OwnershipPhase::Closing if before != next.phase => self.machine.handle(Input::Drain, now()),
            OwnershipPhase::Active | OwnershipPhase::Flushing(_) | OwnershipPhase::Closing => (),
        }
    }

    /// Nothing more can be appended as it was. Whether that ends the process.
    pub(super) async fn on_append_error(&mut self, error: AppendError) -> anyhow::Result<()> {
        let Some(owning) = self.log_access.ownership() else {
            // It was under way when the stream went to another replica, which hears the same again.
            tracing::info!(%error, "append failed after the lease was lost");
            return Ok(());
        };
        match (error, owning.fence) {
            (AppendError::Fenced, Some(fence)) => {
                self.release();
                self.seat.report_fenced(fence).await;
                Ok(())
            }
            (AppendError::Diverged(why), Some(_)) => {
                tracing::warn!(why, "the log changed outside this replica; claiming it again");
                self.reporter.log_moved(&why);
                self.release();
                Ok(())
            }
            (AppendError::UnusableLog(why), _) => {
                self.reporter.append_refused(&why);
                self.release();
                Ok(())
            }
            (error, _) => Err(error.into()),
        }
    }

    /// Everything is over that was begun. True when the stream's part is another one, or begins anew.
    pub(super) async fn on_drained(&mut self) -> bool {
        let closing = matches!(
            self.log_access,
            LogAccess::Owner { ownership: Ownership { phase: OwnershipPhase::Closing, .. }, .. }
        );
        if closing {
            self.log_access = LogAccess::None;
            self.seat.report_closed().await;
        }
        !closing
    }

    /// Where the log of another holder is: the next session goes on there.
    pub(super) fn on_log_position(&mut self, position: Option<Position>) {
        if matches!(self.log_access, LogAccess::Standby { .. }) {
            if let Some(position) = position {
                self.machine.handle(Input::Follow(position), now());
            }
            self.schedule_position_read();
        }
    }

    /// Looks again after a while.
    pub(super) fn schedule_position_read(&self) {
        let (log, feed) = (self.log.clone(), self.machine.feed());
        self.work.push(Box::pin(async move {
            tokio::time::sleep(POSITION_READ_INTERVAL).await;
            StreamWorkResult::Position(read_log_position(&log, feed).await)
        }));
    }

    /// What was appended before a session of ours was live cannot be what it brings.
    pub(super) fn record_live_offset(&mut self) {
        let end = self.log.end().last;
        if let LogAccess::Standby { since, .. } = &mut self.log_access {
            *since = Some(end);
        }
    }
}

/// The newest entries of a log that may be among what is kept; where nothing is, all since a session was live.
async fn read_newest(log: &EventLog, since: Option<Offset>, kept: usize) -> Result<Vec<Event>, AppendError> {
    let (after, count) = match (since, kept) {
        (Some(since), 0) => (since, NEWEST_MAX),
        (None, 0) => return Ok(Vec::new()),
        (_, kept) => (Offset::START, kept + NEWEST_MARGIN),
    };
    loop {
        match log.newest(after, count).await {
            Ok(events) => return Ok(events),
            Err(error) => tracing::debug!(%error, "cannot read the newest entries yet, will retry"),
        }
        tokio::time::sleep(STORE_RETRY_DELAY).await;
    }
}
