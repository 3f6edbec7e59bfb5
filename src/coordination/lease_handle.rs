//! What one stream knows of the replicas: its part, and whether it may append right now.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::ReplicaShared;
use crate::model::{Fence, ReplicaId, StreamName};

/// What this process has to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// Nothing but reading its log.
    Idle,
    /// To hold a session, and append nothing.
    Standby,
    /// To keep it: every append presents the fence.
    Owner(Ownership),
}

/// How a stream is kept. No fence: there is but this one process, and the store draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    pub fence: Option<Fence>,
    /// The holder before handed it over; else it was taken from one that is gone.
    pub handed_over: bool,
    pub phase: OwnershipPhase,
}

/// How far the end of an ownership has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipPhase {
    Active,
    /// A successor is live: see that what only the old session was sent is durable, and say so. Counted, as it may be
    /// asked again.
    Flushing(u32),
    /// There is no successor: hear nothing new, make durable what was heard, and say so.
    Closing,
}

impl ReplicaRole {
    /// The fence of an owner.
    pub fn fence(&self) -> Option<Fence> {
        match self {
            Self::Owner(owning) => owning.fence,
            Self::Idle | Self::Standby => None,
        }
    }
}

/// What a stream says to the replica's task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamUpdate {
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
pub struct LeaseHandle(HandleKind);

#[derive(Debug)]
enum HandleKind {
    /// There is but this one process.
    SingleProcess,
    Replicated {
        stream: StreamName,
        role: watch::Receiver<ReplicaRole>,
        permits: watch::Receiver<u64>,
        shared: Arc<ReplicaShared>,
        updates: mpsc::Sender<StreamUpdate>,
    },
}

/// Who keeps a stream, as far as this replica knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HolderView {
    stream: StreamName,
    shared: Arc<ReplicaShared>,
}

/// Whoever appends asks it first. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppendPermit(Option<(StreamName, watch::Receiver<u64>, Arc<ReplicaShared>)>);

impl LeaseHandle {
    /// The seat of a stream whose store no other process can reach.
    pub fn single_process() -> Self {
        Self(HandleKind::SingleProcess)
    }

    pub(super) fn replicated(
        stream: StreamName,
        shared: &Arc<ReplicaShared>,
        updates: mpsc::Sender<StreamUpdate>,
    ) -> Self {
        let role = shared
            .roles
            .get(&stream)
            .map_or_else(|| watch::Sender::new(ReplicaRole::Idle).subscribe(), watch::Sender::subscribe);
        Self(HandleKind::Replicated {
            stream,
            role,
            permits: shared.permits.subscribe(),
            shared: Arc::clone(shared),
            updates,
        })
    }

    /// Who keeps the stream; none where there is but this one process.
    pub fn view(&self) -> Option<HolderView> {
        match &self.0 {
            HandleKind::SingleProcess => None,
            HandleKind::Replicated { stream, shared, .. } => {
                Some(HolderView { stream: stream.clone(), shared: Arc::clone(shared) })
            }
        }
    }

    /// The part that it has now.
    pub fn role(&mut self) -> ReplicaRole {
        match &mut self.0 {
            HandleKind::SingleProcess => {
                ReplicaRole::Owner(Ownership { fence: None, handed_over: false, phase: OwnershipPhase::Active })
            }
            HandleKind::Replicated { role, .. } => *role.borrow_and_update(),
        }
    }

    /// Waits until it has another part than it was told last. Cancel-safe.
    pub async fn changed(&mut self) {
        let gone = match &mut self.0 {
            HandleKind::SingleProcess => true,
            HandleKind::Replicated { role, .. } => role.changed().await.is_err(),
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// To be asked before each append.
    pub fn append_permit(&self) -> AppendPermit {
        match &self.0 {
            HandleKind::SingleProcess => AppendPermit(None),
            HandleKind::Replicated { stream, permits, shared, .. } => {
                AppendPermit(Some((stream.clone(), permits.clone(), Arc::clone(shared))))
            }
        }
    }

    /// A session of the stream is live here, or none is any longer.
    pub async fn report_live(&self, live: bool) {
        self.report(|stream| StreamUpdate::Live { stream, live }).await;
    }

    /// The stream is live here, and does not hear all that is configured; or hears it again.
    pub async fn report_degraded(&self, degraded: bool) {
        self.report(|stream| StreamUpdate::Degraded { stream, degraded }).await;
    }

    /// The log of the stream cannot be used, or can be again.
    pub async fn report_failed(&self, why: Option<String>) {
        self.report(|stream| StreamUpdate::Failed { stream, why }).await;
    }

    /// What [`Stage::Flushing`] asks for is done.
    pub async fn report_flushed(&self) {
        self.report(|stream| StreamUpdate::Flushed { stream }).await;
    }

    /// What [`Stage::Closing`] asks for is done.
    pub async fn report_closed(&self) {
        self.report(|stream| StreamUpdate::Closed { stream }).await;
    }

    /// The store refused an append under this fence.
    pub async fn report_fenced(&self, fence: Fence) {
        self.report(|stream| StreamUpdate::Fenced { stream, fence }).await;
    }

    async fn report(&self, what: impl FnOnce(StreamName) -> StreamUpdate) {
        if let HandleKind::Replicated { stream, updates, .. } = &self.0 {
            // An error says that the replica's task has ended, and with it every right.
            drop(updates.send(what(stream.clone())).await);
        }
    }
}

impl HolderView {
    /// The replica that keeps it.
    pub fn holder(&self) -> Option<ReplicaId> {
        self.shared.lease().holder(&self.stream)
    }

    /// Whether that is this one.
    pub fn is_local(&self) -> bool {
        self.holder() == Some(self.shared.me)
    }

    /// Why its record cannot be read, if it cannot: then no replica has the stream.
    pub fn unreadable(&self) -> Option<String> {
        self.shared.unreadable().get(&self.stream).cloned()
    }

    /// Whether its holder lives, and says nothing else of it.
    pub fn is_live(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let lives = self.shared.members();
        lives.iter().any(|life| life.member.replica == holder && !life.unhealthy_streams.contains(&self.stream))
    }
}

impl HolderView {
    /// Why its log cannot be used, by what its holder reports.
    pub fn failure(&self) -> Option<String> {
        let holder = self.holder()?;
        let lives = self.shared.members();
        lives.iter().find(|life| life.member.replica == holder)?.failed.get(&self.stream).cloned()
    }

    /// Whether its holder says that it does not hear all that is configured.
    pub fn is_degraded(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let lives = self.shared.members();
        lives.iter().any(|life| life.member.replica == holder && life.degraded.contains(&self.stream))
    }
}

impl AppendPermit {
    /// Waits until something may be appended under this fence. For ever, if that never comes: whoever waits is told
    /// that its part has changed. Cancel-safe.
    pub async fn ready(&mut self, fence: Option<Fence>) {
        let (Some((stream, moved, shared)), Some(fence)) = (&mut self.0, fence) else { return };
        loop {
            moved.borrow_and_update();
            if shared.may_append(stream, fence) {
                return;
            }
            if moved.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
