//! The state that replicas share: membership, leases, the token vault and shared settings, all in Redis.
//!
//! [`Replica`] runs the lease machine of this process and assigns each stream its role. A stream asks it for permission
//! right before each append.

mod lease_handle;
mod lease_record;
mod lease_task;
mod membership;
mod peer_message;
mod registry;
mod shared_settings;
pub mod values;
pub mod vault;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use self::lease_task::{LeaseTask, ReplicaCommand};
pub use self::{
    lease_handle::{AppendPermit, HolderView, LeaseHandle, Ownership, OwnershipPhase, ReplicaRole},
    membership::MemberStatus,
    peer_message::IncomingMessage,
    registry::Registry,
    shared_settings::{SharedSettings, settings_warning},
};
use crate::{
    clock,
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{self, Lease},
    store::redis::connection::CommandError,
    tasks::Tasks,
    telemetry::chain,
};

/// Updates of streams that may wait. At the bound the sender waits.
const UPDATES_MAX: usize = 256;

/// Consecutive failed renewals after which the replica is unhealthy.
const RENEWAL_FAILURES_MAX: u32 = 3;

/// The handle to this process's membership and leases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replica {
    shared: Arc<ReplicaShared>,
    commands: mpsc::Sender<ReplicaCommand>,
}

/// State that the lease task and the streams' handles share.
struct ReplicaShared {
    me: ReplicaId,
    lease: Mutex<Lease>,
    /// Counts up when appends become permitted.
    permits: watch::Sender<u64>,
    roles: BTreeMap<StreamName, watch::Sender<ReplicaRole>>,
    /// The live replicas by the last renewal.
    members: Mutex<Vec<MemberStatus>>,
    /// Streams whose record cannot be read, and why.
    unreadable: Mutex<BTreeMap<StreamName, String>>,
    unreadable_members: Mutex<Vec<String>>,
    /// Consecutive failed renewals, and the error of the last one.
    renewal_failures: Mutex<(u32, Option<CommandError>)>,
}

impl Replica {
    /// Starts the lease task. Each stream of the settings gets a handle with its role.
    pub fn join(
        settings: lease::Settings,
        registry: Registry,
        tasks: &mut Tasks,
    ) -> (Self, BTreeMap<StreamName, LeaseHandle>) {
        let (updates_sender, updates) = mpsc::channel(UPDATES_MAX);
        let (commands, command_queue) = mpsc::channel(1);
        let streams = settings.streams.clone();
        let shared = Arc::new(ReplicaShared {
            me: settings.me,
            roles: streams.iter().map(|stream| (stream.clone(), watch::Sender::new(ReplicaRole::Idle))).collect(),
            permits: watch::Sender::new(0),
            members: Mutex::default(),
            unreadable: Mutex::default(),
            unreadable_members: Mutex::default(),
            renewal_failures: Mutex::default(),
            lease: Mutex::new(Lease::new(settings.clone(), clock::boot())),
        });
        let handle =
            |stream: StreamName| (stream.clone(), LeaseHandle::replicated(stream, &shared, updates_sender.clone()));
        let handles = streams.into_iter().map(handle).collect();
        let shell = LeaseTask::new(settings, Arc::clone(&shared), registry, updates, command_queue);
        tasks.start("lease", shell.run(tasks.stop()));
        (Self { shared, commands }, handles)
    }

    /// The id of this process, drawn at its start.
    pub fn id(&self) -> ReplicaId {
        self.shared.me
    }

    /// The live replicas by the last renewal.
    pub fn members(&self) -> Vec<ReplicaId> {
        self.shared.members.lock().iter().map(|status| status.member.replica).collect()
    }

    /// Whether the membership is renewed; else the reason, after `RENEWAL_FAILURES_MAX` consecutive failures. A renewal
    /// is due every fifth of the lease.
    pub fn health(&self) -> Result<(), String> {
        let failing = self.shared.renewal_failures.lock();
        match &*failing {
            (failures, Some(error)) if *failures >= RENEWAL_FAILURES_MAX => {
                Err(format!("the membership renewal of this replica fails: {}", chain(error)))
            }
            (_, _) => Ok(()),
        }
    }

    /// Memberships of other replicas that this one cannot read.
    pub fn unreadable_members(&self) -> Vec<String> {
        self.shared.unreadable_members.lock().clone()
    }

    /// Hands each stream over to a live successor, releases the streams without one after `timeout`, and ends the
    /// membership.
    pub async fn drain(&self, timeout: Duration) {
        let (left, leaving) = tokio::sync::oneshot::channel();
        if self.commands.send(ReplicaCommand::Drain { timeout, left }).await.is_ok() {
            // An error means that the task has ended.
            drop(leaving.await);
        }
    }
}

impl ReplicaShared {
    fn renewal_failed(&self, error: CommandError) {
        let mut failing = self.renewal_failures.lock();
        *failing = (failing.0.saturating_add(1), Some(error));
    }

    fn renewed(&self) {
        self.renewal_failures.lock().0 = 0;
    }

    fn role(&self, stream: &StreamName) -> ReplicaRole {
        self.roles.get(stream).map_or(ReplicaRole::Idle, |role| *role.borrow())
    }

    /// Assigns a role to a stream.
    fn assign(&self, stream: &StreamName, role: ReplicaRole) {
        if let Some(sender) = self.roles.get(stream) {
            sender.send_replace(role);
        }
    }

    /// Whether an append to `stream` under `fence` is permitted now.
    fn may_append(&self, stream: &StreamName, fence: Fence) -> bool {
        self.lease.lock().append_fence(stream, clock::boot()) == Some(fence)
    }
}

impl fmt::Debug for ReplicaShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("me", &self.me).finish_non_exhaustive()
    }
}
