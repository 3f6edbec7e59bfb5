//! The lease of one stream as its task uses it: its role, its owner, and the permission to append.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::ReplicaShared;
use crate::model::{Fence, ReplicaId, StreamName};

/// The role of this process for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It only reads the log.
    Idle,
    /// It holds a session and appends nothing.
    Standby,
    /// It runs the stream. Each append presents the fence.
    Owner(Ownership),
}

/// The ownership of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// None with the embedded store, whose claim draws a fence.
    pub fence: Option<Fence>,
    /// The former owner handed the stream over; else its owner was gone.
    pub handed_over: bool,
    pub phase: OwnershipPhase,
}

/// How far a handover or a release has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipPhase {
    Active,
    /// A successor is live: make the events of the old session durable, then report it. The number distinguishes repeated
    /// requests.
    Flushing(u32),
    /// There is no successor: close the session, make its events durable, then report it.
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

/// A report of a stream to the lease task.
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
    /// Why the log of an owned stream cannot be used; none when it can.
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

/// One stream's handle to its lease.
#[derive(Debug)]
pub struct LeaseHandle(HandleKind);

#[derive(Debug)]
enum HandleKind {
    /// No other process can reach the store.
    SingleProcess,
    Replicated {
        stream: StreamName,
        role: watch::Receiver<ReplicaRole>,
        permits: watch::Receiver<u64>,
        shared: Arc<ReplicaShared>,
        updates: mpsc::Sender<StreamUpdate>,
    },
}

/// The owner of a stream as this replica sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HolderView {
    stream: StreamName,
    shared: Arc<ReplicaShared>,
}

/// The permission to append, checked before each append. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppendPermit(Option<(StreamName, watch::Receiver<u64>, Arc<ReplicaShared>)>);

impl LeaseHandle {
    /// The handle of a stream whose store no other process can reach.
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

    /// The view of the owner; none with the embedded store.
    pub fn view(&self) -> Option<HolderView> {
        match &self.0 {
            HandleKind::SingleProcess => None,
            HandleKind::Replicated { stream, shared, .. } => {
                Some(HolderView { stream: stream.clone(), shared: Arc::clone(shared) })
            }
        }
    }

    /// The present role.
    pub fn role(&mut self) -> ReplicaRole {
        match &mut self.0 {
            HandleKind::SingleProcess => {
                ReplicaRole::Owner(Ownership { fence: None, handed_over: false, phase: OwnershipPhase::Active })
            }
            HandleKind::Replicated { role, .. } => *role.borrow_and_update(),
        }
    }

    /// Waits until the role changes after the last call of [`LeaseHandle::role`]. Cancel-safe.
    pub async fn changed(&mut self) {
        let gone = match &mut self.0 {
            HandleKind::SingleProcess => true,
            HandleKind::Replicated { role, .. } => role.changed().await.is_err(),
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// The permission to append, for each append.
    pub fn append_permit(&self) -> AppendPermit {
        match &self.0 {
            HandleKind::SingleProcess => AppendPermit(None),
            HandleKind::Replicated { stream, permits, shared, .. } => {
                AppendPermit(Some((stream.clone(), permits.clone(), Arc::clone(shared))))
            }
        }
    }

    /// Reports whether a session of the stream is live here.
    pub async fn report_live(&self, live: bool) {
        self.report(|stream| StreamUpdate::Live { stream, live }).await;
    }

    /// Reports whether the live stream lacks configured topics.
    pub async fn report_degraded(&self, degraded: bool) {
        self.report(|stream| StreamUpdate::Degraded { stream, degraded }).await;
    }

    /// Reports why the log of the stream cannot be used; none when it can.
    pub async fn report_failed(&self, why: Option<String>) {
        self.report(|stream| StreamUpdate::Failed { stream, why }).await;
    }

    /// Reports that the work of [`OwnershipPhase::Flushing`] is done.
    pub async fn report_flushed(&self) {
        self.report(|stream| StreamUpdate::Flushed { stream }).await;
    }

    /// Reports that the work of [`OwnershipPhase::Closing`] is done.
    pub async fn report_closed(&self) {
        self.report(|stream| StreamUpdate::Closed { stream }).await;
    }

    /// Reports that the store rejected an append under this fence.
    pub async fn report_fenced(&self, fence: Fence) {
        self.report(|stream| StreamUpdate::Fenced { stream, fence }).await;
    }

    async fn report(&self, what: impl FnOnce(StreamName) -> StreamUpdate) {
        if let HandleKind::Replicated { stream, updates, .. } = &self.0 {
            // An error means that the lease task has ended, and with it every permission.
            drop(updates.send(what(stream.clone())).await);
        }
    }
}

impl HolderView {
    /// The owner.
    pub fn holder(&self) -> Option<ReplicaId> {
        self.shared.lease.lock().holder(&self.stream)
    }

    /// Whether this replica is the owner.
    pub fn is_local(&self) -> bool {
        self.holder() == Some(self.shared.me)
    }

    /// Why the lease record cannot be read; then no replica owns the stream.
    pub fn unreadable(&self) -> Option<String> {
        self.shared.unreadable.lock().get(&self.stream).cloned()
    }

    /// Whether the owner is alive and does not report the stream as unhealthy.
    pub fn is_live(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let members = self.shared.members.lock();
        members.iter().any(|status| status.member.replica == holder && !status.unhealthy_streams.contains(&self.stream))
    }

    /// Why the log cannot be used, as the owner reports it.
    pub fn failure(&self) -> Option<String> {
        let holder = self.holder()?;
        let members = self.shared.members.lock();
        members.iter().find(|status| status.member.replica == holder)?.failed.get(&self.stream).cloned()
    }

    /// Whether the owner reports that the stream lacks configured topics.
    pub fn is_degraded(&self) -> bool {
        let Some(holder) = self.holder() else { return false };
        let members = self.shared.members.lock();
        members.iter().any(|status| status.member.replica == holder && status.degraded.contains(&self.stream))
    }
}

impl AppendPermit {
    /// Waits until an append under this fence is permitted. It never returns for a former fence: wait for a change of the
    /// role too. Cancel-safe.
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
