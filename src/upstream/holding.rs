//! What a stream's task may do with the log: append to it, or follow what its holder appends, ready to go on.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use super::{
    appender::{Appender, NO_ROOM_WAIT},
    shell::{Done, Shell, now},
};
use crate::{
    event_log::{EventLog, Writer},
    model::{Event, FeedId, Fence, Offset, Position},
    protocol::stream::{Input, Opening},
    replica::{Owning, Part, Stage},
    store::AppendError,
};

/// The position of a log that is followed is looked at this often, so that a new session of ours does not make the
/// platform repeat more than that.
const POSITION_EVERY: Duration = Duration::from_secs(5);

/// A log that cannot be used is claimed again after this time.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(2);

/// One of so many newest entries has the platform's number.
const NUMBERED_WITHIN: usize = 64;

/// Beside as many entries as are kept, so many are looked at: some are the relay's own.
const STORED_BEYOND: usize = 64;

/// Where nothing is kept, late frames of ours may repeat so many entries.
const STORED_MAX: usize = 10_000;

/// Shows readers of this process what the holder appends.
pub(super) type Following = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who may append.
pub(super) enum Holding {
    /// Another replica.
    Standing {
        following: Following,
        /// Where the log ended when a session of ours was live.
        since: Option<Offset>,
    },
    /// This one, as soon as it has claimed the log. Meanwhile nothing is read, so that what is kept stays.
    Claiming { owning: Owning },
    /// This one. `closing`: nothing new is heard.
    Owning { appender: Appender, owning: Owning },
    /// Nobody here: the stream's part is about to change.
    Over,
}

/// What came of a claim: the writer, and the newest entries of the log.
pub(super) type Claimed = Result<(Writer, Vec<Event>), AppendError>;

impl Holding {
    pub(super) fn standing(log: &EventLog) -> Self {
        Self::Standing { following: following(log), since: None }
    }

    pub(super) fn is_claiming(&self) -> bool {
        matches!(self, Self::Claiming { .. })
    }

    pub(super) fn is_owning(&self) -> bool {
        matches!(self, Self::Owning { .. })
    }

    /// The way to append, if there is one.
    pub(super) fn appender(&self) -> Option<Appender> {
        match self {
            Self::Owning { appender, .. } => Some(appender.clone()),
            Self::Standing { .. } | Self::Claiming { .. } | Self::Over => None,
        }
    }

    fn owning(&self) -> Option<Owning> {
        match self {
            Self::Owning { owning, .. } | Self::Claiming { owning } => Some(*owning),
            Self::Standing { .. } | Self::Over => None,
        }
    }

    /// Follows the log while another has it; for ever.
    pub(super) async fn follow(&mut self) {
        match self {
            Self::Standing { following, .. } => following.await,
            Self::Claiming { .. } | Self::Owning { .. } | Self::Over => std::future::pending().await,
        }
    }
}

/// Follows a log for ever. A store that is closed ends it: then there is nothing more to follow.
pub(super) fn following(log: &EventLog) -> Following {
    let log = log.clone();
    Box::pin(async move {
        let Err(error) = log.follow().await;
        tracing::debug!(%error, "the log is followed no longer");
        std::future::pending::<()>().await;
    })
}

/// Claims a log, waiting for the store as long as it takes.
pub(super) async fn claim(log: &EventLog, fence: Option<Fence>) -> Result<Writer, AppendError> {
    loop {
        match log.claim(fence).await {
            Err(AppendError::NoRoom(why)) => tracing::debug!(why, "the log cannot be claimed yet"),
            claimed => return claimed,
        }
        tokio::time::sleep(NO_ROOM_WAIT).await;
    }
}

/// What the machine goes on from.
pub(super) fn opening(writer: &Writer) -> Opening {
    let found = writer.opening();
    Opening { checkpoint: found.checkpoint, damaged: found.damaged }
}

/// Where a numbered log is, by its newest entries; none where it is written from another feed.
pub(super) async fn position(log: &EventLog, feed: FeedId) -> Option<Position> {
    let stored = log.feed().await.ok()?;
    if stored.is_some_and(|stored| stored != feed) {
        return None;
    }
    let newest = log.newest(Offset::START, NUMBERED_WITHIN).await.ok()?;
    newest.iter().rev().find_map(|event| event.sequence).map(Position)
}

impl Shell<'_> {
    /// Does what the seat says now.
    pub(super) fn take_part(&mut self) {
        let part = self.seat.part();
        match (self.holding.owning(), part) {
            (None, Part::Standing) => (),
            (None, Part::Owning(owning)) => self.claim(owning),
            (Some(before), Part::Owning(owning)) if before.fence == owning.fence => self.take_stage(owning),
            (_, Part::Apart) | (Some(_), Part::Standing | Part::Owning(_)) => self.release(),
        }
    }

    /// The process ends. What was heard becomes durable if it is this process's to keep.
    pub(super) fn stop(&mut self) {
        match self.holding {
            Holding::Owning { .. } => self.machine.handle(Input::Drain, now()),
            Holding::Standing { .. } | Holding::Claiming { .. } | Holding::Over => self.release(),
        }
    }

    pub(super) fn release(&mut self) {
        self.holding = Holding::Over;
        self.machine.handle(Input::Release, now());
    }

    fn claim(&mut self, owning: Owning) {
        let Holding::Standing { since, .. } = self.holding else { return };
        self.holding = Holding::Claiming { owning };
        let (log, compares, kept) = (self.log.clone(), self.machine.compares(), self.machine.kept());
        self.work.push(Box::pin(async move {
            let claiming = async {
                let writer = claim(&log, owning.fence).await?;
                let stored = if compares { stored(&log, since, kept).await? } else { Vec::new() };
                Ok((writer, stored))
            };
            Done::Claimed(Box::new(claiming.await))
        }));
    }

    pub(super) async fn claimed(&mut self, claimed: Claimed) -> anyhow::Result<()> {
        let Holding::Claiming { owning } = self.holding else { return Ok(()) };
        match claimed {
            Ok((writer, stored)) => {
                let opening = opening(&writer);
                let appender = Appender { writer: Arc::new(writer), fence: owning.fence, rights: self.seat.rights() };
                self.holding = Holding::Owning { appender, owning: Owning { stage: Stage::Keeping, ..owning } };
                self.machine.handle(Input::Own { opening, stored, covered: owning.handed }, now());
                self.take_stage(owning);
                Ok(())
            }
            Err(error) => self.lost_log(error).await,
        }
    }

    /// How far the end of the ownership has come.
    fn take_stage(&mut self, next: Owning) {
        let Holding::Owning { owning, .. } = &mut self.holding else {
            if let Holding::Claiming { owning } = &mut self.holding {
                *owning = next;
            }
            return;
        };
        let before = mem::replace(&mut owning.stage, next.stage);
        match next.stage {
            Stage::Flushing(_) if before != next.stage => self.machine.handle(Input::Flush, now()),
            Stage::Closing if before != next.stage => self.machine.handle(Input::Drain, now()),
            Stage::Keeping | Stage::Flushing(_) | Stage::Closing => (),
        }
    }

    /// Nothing more can be appended as it was. Whether that ends the process.
    pub(super) async fn lost_log(&mut self, error: AppendError) -> anyhow::Result<()> {
        let Some(owning) = self.holding.owning() else {
            // It was under way when the stream went to another replica, which hears the same again.
            tracing::info!(%error, "an append came too late");
            return Ok(());
        };
        match (error, owning.fence) {
            (AppendError::Fenced, Some(fence)) => {
                self.release();
                self.seat.say_fenced(fence).await;
                Ok(())
            }
            (AppendError::Moved(why), Some(_)) => {
                tracing::warn!(
                    why,
                    "the log is not where this replica left it: it is claimed again, and goes on there"
                );
                self.board.log_moved(&why);
                self.release();
                Ok(())
            }
            (AppendError::Refused(why), _) => {
                self.board.append_refused(&why);
                self.release();
                Ok(())
            }
            (error, _) => Err(error.into()),
        }
    }

    /// Everything is over that was begun. True when the stream's part is another one, or begins anew.
    pub(super) async fn has_ended(&mut self) -> bool {
        let closing = matches!(self.holding, Holding::Owning { owning: Owning { stage: Stage::Closing, .. }, .. });
        if closing {
            self.holding = Holding::Over;
            self.seat.say_closed().await;
        }
        !closing
    }

    /// Where the log of another holder is: the next session goes on there.
    pub(super) fn log_is_at(&mut self, position: Option<Position>) {
        if matches!(self.holding, Holding::Standing { .. }) {
            if let Some(position) = position {
                self.machine.handle(Input::Follow(position), now());
            }
            self.look_at_position();
        }
    }

    /// Looks again after a while.
    pub(super) fn look_at_position(&self) {
        let (log, feed) = (self.log.clone(), self.machine.feed());
        self.work.push(Box::pin(async move {
            tokio::time::sleep(POSITION_EVERY).await;
            Done::Position(position(&log, feed).await)
        }));
    }

    /// What was appended before a session of ours was live cannot be what it brings.
    pub(super) fn note_live(&mut self) {
        let end = self.log.end().last;
        if let Holding::Standing { since, .. } = &mut self.holding {
            *since = Some(end);
        }
    }
}

/// The newest entries of a log that may be among what is kept; where nothing is, all since a session was live.
async fn stored(log: &EventLog, since: Option<Offset>, kept: usize) -> Result<Vec<Event>, AppendError> {
    let (after, count) = match (since, kept) {
        (Some(since), 0) => (since, STORED_MAX),
        (None, 0) => return Ok(Vec::new()),
        (_, kept) => (Offset::START, kept + STORED_BEYOND),
    };
    loop {
        match log.newest(after, count).await {
            Ok(events) => return Ok(events),
            Err(error) => tracing::debug!(%error, "the newest entries cannot be read yet"),
        }
        tokio::time::sleep(NO_ROOM_WAIT).await;
    }
}
