//! This process among its replicas: carries out what the lease machine says, and tells each stream what its part is.
//!
//! It opens no socket and appends nothing. A stream asks here, right before each append, whether it still may.

mod seat;
mod shell;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, watch};

pub use self::seat::{Owning, Part, Rights, Seat, Stage, View};
use self::shell::{Shell, Wish};
use crate::{
    clock,
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{self, Lease},
    store::redis::registry::{Life, Registry},
    tasks::Tasks,
};

/// What streams have to say and was not heard yet. Whoever finds no room waits.
const SAID_MAX: usize = 256;

/// So many renewals in a row may fail before the replica is called unhealthy.
const RENEWAL_FAILURES_MAX: u32 = 3;

/// The handle to this process's part among the replicas. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replica {
    shared: Arc<Shared>,
    wishes: mpsc::Sender<Wish>,
}

/// What the task and the seats of the streams have in common.
struct Shared {
    me: ReplicaId,
    lease: Mutex<Lease>,
    /// Moves whenever something may be appended that could not be before.
    rights: watch::Sender<u64>,
    parts: BTreeMap<StreamName, watch::Sender<Part>>,
    /// Who lives, and what each said last.
    lives: Mutex<Vec<Life>>,
    /// Streams whose record cannot be read, and why.
    unreadable: Mutex<BTreeMap<StreamName, String>>,
    unreadable_members: Mutex<Vec<String>>,
    /// Renewals in a row that failed, and why the last one did.
    failing: Mutex<(u32, String)>,
}

impl Replica {
    /// Joins the others. Each stream of the settings gets a seat, which says what its part is.
    pub fn join(
        settings: lease::Settings,
        registry: Registry,
        tasks: &mut Tasks,
    ) -> (Self, BTreeMap<StreamName, Seat>) {
        let (said, saying) = mpsc::channel(SAID_MAX);
        let (wishes, wishing) = mpsc::channel(1);
        let streams = settings.streams.clone();
        let shared = Arc::new(Shared {
            me: settings.me,
            parts: streams.iter().map(|stream| (stream.clone(), watch::Sender::new(Part::Apart))).collect(),
            rights: watch::Sender::new(0),
            lives: Mutex::default(),
            unreadable: Mutex::default(),
            unreadable_members: Mutex::default(),
            failing: Mutex::default(),
            lease: Mutex::new(Lease::new(settings.clone(), clock::boot())),
        });
        let seat = |stream: StreamName| (stream.clone(), Seat::among(stream, &shared, said.clone()));
        let seats = streams.into_iter().map(seat).collect();
        let shell = Shell::new(settings, Arc::clone(&shared), registry, saying, wishing);
        tasks.start("lease", shell.run(tasks.stop()));
        (Self { shared, wishes }, seats)
    }

    /// The name of this life of the process.
    pub fn id(&self) -> ReplicaId {
        self.shared.me
    }

    /// Who lives, as far as this replica knows.
    pub fn members(&self) -> Vec<ReplicaId> {
        self.shared.lives().iter().map(|life| life.member.replica).collect()
    }

    /// Whether the membership is renewed, else why not. One failure alone says nothing: the next renewal follows within a
    /// fifth of the lease.
    pub fn health(&self) -> Result<(), String> {
        let failing = self.shared.failing();
        match *failing {
            (failures, ref why) if failures >= RENEWAL_FAILURES_MAX => {
                Err(format!("the membership of this replica is not renewed: {why}"))
            }
            (_, _) => Ok(()),
        }
    }

    /// Memberships of other replicas that this one cannot read.
    pub fn unreadable_members(&self) -> Vec<String> {
        self.shared.unreadable_members().clone()
    }

    /// Hands every stream over to a successor that is live, gives up what finds none in `patience`, and leaves.
    pub async fn drain(&self, patience: Duration) {
        let (left, leaving) = tokio::sync::oneshot::channel();
        if self.wishes.send(Wish::Drain { patience, left }).await.is_ok() {
            // An error says that the task ended: there is nothing to wait for.
            drop(leaving.await);
        }
    }
}

impl Shared {
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self) -> MutexGuard<'_, BTreeMap<StreamName, String>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable_members(&self) -> MutexGuard<'_, Vec<String>> {
        self.unreadable_members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failing(&self) -> MutexGuard<'_, (u32, String)> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewal_failed(&self, why: String) {
        let mut failing = self.failing();
        *failing = (failing.0.saturating_add(1), why);
    }

    fn renewed(&self) {
        self.failing().0 = 0;
    }

    fn part(&self, stream: &StreamName) -> Part {
        self.parts.get(stream).map_or(Part::Apart, |part| *part.borrow())
    }

    /// Tells a stream what its part is from now on.
    fn assign(&self, stream: &StreamName, part: Part) {
        if let Some(sender) = self.parts.get(stream) {
            sender.send_replace(part);
        }
    }

    /// Whether `stream` may be appended to under `fence` at this very moment.
    fn has_right(&self, stream: &StreamName, fence: Fence) -> bool {
        self.lease().right(stream, clock::boot()) == Some(fence)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("me", &self.me).finish_non_exhaustive()
    }
}
