//! What one stream knows of the replicas: its part, and whether it may append right now.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::Shared;
use crate::model::{Fence, ReplicaId, StreamName};

/// What this process has to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing but reading its log.
    Apart,
    /// To hold a session, and append nothing.
    Standing,
    /// To keep it: every append presents the fence.
    Owning(Owning),
}

/// How a stream is kept. No fence: there is but this one process, and the store draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owning {
    pub fence: Option<Fence>,
    /// The holder before handed it over; else it was taken from one that is gone.
    pub handed: bool,
    pub stage: Stage,
}

/// How far the end of an ownership has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Keeping,
    /// A successor is live: see that what only the old session was sent is durable, and say so. Counted, as it may be
    /// asked again.
    Flushing(u32),
    /// There is no successor: hear nothing new, make durable what was heard, and say so.
    Closing,
}

impl Part {
    /// The fence of an owner.
    pub fn fence(&self) -> Option<Fence> {
        match self {
            Self::Owning(owning) => owning.fence,
            Self::Apart | Self::Standing => None,
        }
    }
}

/// What a stream says to the replica's task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Live {
        stream: StreamName,
        live: bool,
    },
    Degraded {
        stream: StreamName,
        degraded: bool,
    },
    /// Why the log of a stream that is owned here cannot be used; none when it can.
    Failed {
        stream: StreamName,
        why: Option<String>,
    },
    Flushed {
        stream: StreamName,
    },
    Closed {
        stream: StreamName,
    },
    Fenced {
        stream: StreamName,
        fence: Fence,
    },
}

/// The seat of one stream.
#[derive(Debug)]
pub struct Seat(Kind);

#[derive(Debug)]
enum Kind {
    /// There is but this one process.
    Alone,
    Among {
        stream: StreamName,
        part: watch::Receiver<Part>,
        rights: watch::Receiver<u64>,
        shared: Arc<Shared>,
        said: mpsc::Sender<Said>,
    },
}

/// Who keeps a stream, as far as this replica knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct View {
    stream: StreamName,
    shared: Arc<Shared>,
}

/// Whoever appends asks it first. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rights(Option<(StreamName, watch::Receiver<u64>, Arc<Shared>)>);

impl Seat {
    /// The seat of a stream whose store no other process can reach.
    pub fn alone() -> Self {
        Self(Kind::Alone)
    }

    pub(super) fn among(stream: StreamName, shared: &Arc<Shared>, said: mpsc::Sender<Said>) -> Self {
        let part = shared
            .parts
            .get(&stream)
            .map_or_else(|| watch::Sender::new(Part::Apart).subscribe(), watch::Sender::subscribe);
        Self(Kind::Among { stream, part, rights: shared.rights.subscribe(), shared: Arc::clone(shared), said })
    }

    /// Who keeps the stream; none where there is but this one process.
    pub fn view(&self) -> Option<View> {
        match &self.0 {
            Kind::Alone => None,
            Kind::Among { stream, shared, .. } => Some(View { stream: stream.clone(), shared: Arc::clone(shared) }),
        }
    }

    /// The part that it has now.
    pub fn part(&mut self) -> Part {
        match &mut self.0 {
            Kind::Alone => Part::Owning(Owning { fence: None, handed: false, stage: Stage::Keeping }),
            Kind::Among { part, .. } => *part.borrow_and_update(),
        }
    }

    /// Waits until it has another part than it was told last. Cancel-safe.
    pub async fn changed(&mut self) {
        let gone = match &mut self.0 {
            Kind::Alone => true,
            Kind::Among { part, .. } => part.changed().await.is_err(),
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// To be asked before each append.
    pub fn rights(&self) -> Rights {
        match &self.0 {
            Kind::Alone => Rights(None),
            Kind::Among { stream, rights, shared, .. } => {
                Rights(Some((stream.clone(), rights.clone(), Arc::clone(shared))))
            }
        }
    }

    /// A session of the stream is live here, or none is any longer.
    pub async fn say_live(&self, live: bool) {
        self.say(|stream| Said::Live { stream, live }).await;
    }

    /// The stream is live here, and does not hear all that is configured; or hears it again.
    pub async fn say_degraded(&self, degraded: bool) {
        self.say(|stream| Said::Degraded { stream, degraded }).await;
    }

    /// The log of the stream cannot be used, or can be again.
    pub async fn say_failed(&self, why: Option<String>) {
        self.say(|stream| Said::Failed { stream, why }).await;
    }

    /// What [`Stage::Flushing`] asks for is done.
    pub async fn say_flushed(&self) {
        self.say(|stream| Said::Flushed { stream }).await;
    }

    /// What [`Stage::Closing`] asks for is done.
    pub async fn say_closed(&self) {
        self.say(|stream| Said::Closed { stream }).await;
    }

    /// The store refused an append under this fence.
    pub async fn say_fenced(&self, fence: Fence) {
        self.say(|stream| Said::Fenced { stream, fence }).await;
    }

    async fn say(&self, what: impl FnOnce(StreamName) -> Said) {
        if let Kind::Among { stream, said, .. } = &self.0 {
            // An error says that the replica's task has ended, and with it every right.
            drop(said.send(what(stream.clone())).await);
        }
    }
}

impl View {
    /// The replica that keeps it.
    pub fn holder(&self) -> Option<ReplicaId> {
        self.shared.lease().holder(&self.stream)
    }

    /// Whether that is this one.
    pub fn is_here(&self) -> bool {
        self.holder() == Some(self.shared.me)
    }

    /// Why its record cannot be read, if it cannot: then no replica has the stream.
    pub fn unreadable(&self) -> Option<String> {
        self.shared.unreadable().get(&self.stream).cloned()
    }

    /// Whether its holder lives, and says nothing else of it.
    pub fn is_live(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let lives = self.shared.lives();
        lives.iter().any(|life| life.member.replica == holder && !life.ailing.contains(&self.stream))
    }
}

impl View {
    /// Why its log cannot be used, by what its holder reports.
    pub fn failed(&self) -> Option<String> {
        let holder = self.holder()?;
        let lives = self.shared.lives();
        lives.iter().find(|life| life.member.replica == holder)?.failed.get(&self.stream).cloned()
    }

    /// Whether its holder says that it does not hear all that is configured.
    pub fn is_degraded(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let lives = self.shared.lives();
        lives.iter().any(|life| life.member.replica == holder && life.degraded.contains(&self.stream))
    }
}

impl Rights {
    /// Waits until something may be appended under this fence. For ever, if that never comes: whoever waits is told
    /// that its part has changed. Cancel-safe.
    pub async fn wait(&mut self, fence: Option<Fence>) {
        let (Some((stream, moved, shared)), Some(fence)) = (&mut self.0, fence) else { return };
        loop {
            moved.borrow_and_update();
            if shared.has_right(stream, fence) {
                return;
            }
            if moved.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
