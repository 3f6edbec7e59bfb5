//! The task of one replica: tells the lease machine what happens, and carries out what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    ReplicaShared,
    lease_handle::{Ownership, OwnershipPhase, ReplicaRole, StreamUpdate},
    lease_record::LeaseRecords,
    membership::{HealthReport, MemberList},
    peer_message::{IncomingMessage, OutgoingMessage},
    registry::Registry,
};
use crate::{
    clock,
    model::{Fence, ReplicaId, StreamName},
    protocol::{
        backoff::BackoffCurve,
        lease::{self, BootTime, ChangeOutcome, Input, LeaseMoment, LeaseRecord, LeaseRequest, Output, PeerMessage},
    },
    random,
    store::redis::connection::CommandError,
    telemetry::metrics,
};

/// A stream that is given up has this time to make durable what it heard.
const CLOSE_MAX: Duration = Duration::from_secs(4);

/// Words under way; what is beyond them is not said. Each is a hint.
const MESSAGES_MAX: usize = 256;

/// A record that cannot be read is looked at again after this time.
const UNREADABLE_WAIT: Duration = Duration::from_secs(1);

/// Values that are remembered as reported.
const REPORTED_MAX: usize = 256;

/// Delays between tries to listen.
const LISTEN_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.5 };

/// What the owner of the handle wants.
#[derive(Debug)]
pub(super) enum ReplicaCommand {
    Drain { timeout: Duration, left: oneshot::Sender<()> },
}

/// The task's state.
pub(super) struct LeaseTask {
    settings: lease::Settings,
    shared: Arc<ReplicaShared>,
    registry: Arc<Registry>,
    updates: mpsc::Receiver<StreamUpdate>,
    commands: mpsc::Receiver<ReplicaCommand>,
    work: FuturesUnordered<LeaseFuture>,
    publishing: FuturesUnordered<LeaseFuture>,
    /// Successors that are live, while the old session is asked whether it has said all.
    ready_successors: BTreeMap<StreamName, ReplicaId>,
    /// Records that are to be given up as soon as their streams have closed.
    closing: BTreeMap<StreamName, (Fence, LeaseRecord)>,
    /// The newest fence of each stream that this replica asked for itself: any other was handed over.
    requested_fences: BTreeMap<StreamName, Fence>,
    flushes: u32,
    /// Streams that are live here.
    live: BTreeSet<StreamName>,
    /// Streams that do not hear all that is configured.
    degraded: BTreeSet<StreamName>,
    /// Streams that are owned here and whose logs cannot be used, and why.
    failed: BTreeMap<StreamName, String>,
    /// Whether the store did not answer when it was last asked.
    store_unreachable: bool,
    /// Values that cannot be read and were reported. At most [`REPORTED_MAX`]: beyond them it begins again.
    reported: BTreeSet<String>,
    drained: Option<oneshot::Sender<()>>,
}

/// Something under way that answers once.
type LeaseFuture = Pin<Box<dyn Future<Output = Option<Completion>> + Send>>;

/// What came of it.
enum Completion {
    Input(Input),
    /// Who lives.
    Renewed(MemberList),
    Listed(LeaseRecords),
    NoReply(LeaseRequest, String),
    /// A stream had its time to close.
    Closed(StreamName),
    Left,
}

enum LeaseEvent {
    Stop,
    Completion(Option<Completion>),
    Update(StreamUpdate),
    Message(IncomingMessage),
    Command(ReplicaCommand),
    Timer,
}

impl LeaseTask {
    pub(super) fn new(
        settings: lease::Settings,
        shared: Arc<ReplicaShared>,
        registry: Registry,
        said: mpsc::Receiver<StreamUpdate>,
        wishes: mpsc::Receiver<ReplicaCommand>,
    ) -> Self {
        Self {
            settings,
            shared,
            registry: Arc::new(registry),
            updates: said,
            commands: wishes,
            work: FuturesUnordered::new(),
            publishing: FuturesUnordered::new(),
            ready_successors: BTreeMap::new(),
            closing: BTreeMap::new(),
            requested_fences: BTreeMap::new(),
            flushes: 0,
            live: BTreeSet::new(),
            degraded: BTreeSet::new(),
            failed: BTreeMap::new(),
            store_unreachable: false,
            reported: BTreeSet::new(),
            drained: None,
        }
    }

    /// Runs until the stop signal. A replica that was drained before leaves nothing behind.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let (hearing, mut heard) = mpsc::channel(MESSAGES_MAX);
        let mut listening = Box::pin(listen(Arc::clone(&self.registry), hearing));
        loop {
            self.drain_outputs();
            let wake = self.shared.lease().poll_timeout();
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => LeaseEvent::Stop,
                Some(wish) = self.commands.recv() => LeaseEvent::Command(wish),
                Some(done) = self.work.next(), if !self.work.is_empty() => LeaseEvent::Completion(done),
                Some(said) = self.updates.recv() => LeaseEvent::Update(said),
                Some(heard) = heard.recv() => LeaseEvent::Message(heard),
                Some(done) = self.publishing.next(), if !self.publishing.is_empty() => LeaseEvent::Completion(done),
                () = &mut listening => LeaseEvent::Timer,
                () = sleep_until(wake) => LeaseEvent::Timer,
            };
            match event {
                LeaseEvent::Stop => return Ok(()),
                LeaseEvent::Completion(None) => (),
                LeaseEvent::Completion(Some(done)) => self.handle_completion(done),
                LeaseEvent::Update(said) => self.handle_update(said),
                LeaseEvent::Message(heard) => self.handle_message(heard),
                LeaseEvent::Command(ReplicaCommand::Drain { timeout: patience, left }) => {
                    self.drained = Some(left);
                    self.handle(Input::Drain { until: clock::boot() + patience });
                }
                LeaseEvent::Timer => self.shared.lease().handle_timeout(now()),
            }
        }
    }

    fn handle(&self, input: Input) {
        self.shared.lease().handle(input, now());
    }

    fn handle_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Input(input) => {
                self.mark_store_reachable();
                self.handle(input);
            }
            Completion::Renewed(MemberList { members: lives, unreadable }) => {
                self.mark_store_reachable();
                self.shared.renewed();
                metrics::replica_members(lives.len());
                self.report_members(&unreadable);
                *self.shared.unreadable_members() = unreadable;
                let members = lives.iter().map(|life| life.member).collect();
                *self.shared.members() = lives;
                self.handle(Input::Renewed { members });
            }
            Completion::Listed(LeaseRecords { records, unreadable }) => {
                self.mark_store_reachable();
                self.report_records(&unreadable);
                *self.shared.unreadable() = unreadable;
                self.handle(Input::RecordsRead { records });
            }
            Completion::NoReply(request, why) => {
                if request == LeaseRequest::Renew {
                    metrics::replica_renewal_failed();
                    self.shared.renewal_failed(why.clone());
                }
                if !std::mem::replace(&mut self.store_unreachable, true) {
                    tracing::warn!(why, "the store does not answer this replica: what it owns it may lose");
                }
                self.handle(Input::RequestFailed(request));
            }
            Completion::Closed(stream) => self.release_record(&stream),
            Completion::Left => {
                if let Some(left) = self.drained.take() {
                    // An error says that nobody waits any more.
                    left.send(()).unwrap_or(());
                }
            }
        }
    }

    fn report_members(&mut self, unreadable: &[String]) {
        for value in unreadable {
            if self.is_unreported(value) {
                tracing::error!(value, "a replica's membership cannot be read; that replica is not counted");
            }
        }
    }

    fn report_records(&mut self, unreadable: &BTreeMap<StreamName, String>) {
        for (stream, reason) in unreadable {
            if self.is_unreported(reason) {
                tracing::error!(%stream, reason, "the stream's record cannot be read; the stream waits, others go on");
            }
        }
    }

    /// Whether a value was not reported before.
    fn is_unreported(&mut self, value: &str) -> bool {
        if self.reported.len() >= REPORTED_MAX {
            self.reported.clear();
        }
        self.reported.insert(value.to_owned())
    }

    fn mark_store_reachable(&mut self) {
        if std::mem::take(&mut self.store_unreachable) {
            tracing::info!("the store answers this replica again");
        }
    }

    fn handle_update(&mut self, update: StreamUpdate) {
        match update {
            StreamUpdate::Live { stream, live } => self.set_live(stream, live),
            StreamUpdate::Degraded { stream, degraded: true } => drop(self.degraded.insert(stream)),
            StreamUpdate::Degraded { stream, degraded: false } => drop(self.degraded.remove(&stream)),
            StreamUpdate::Failed { stream, why: Some(why) } => drop(self.failed.insert(stream, why)),
            StreamUpdate::Failed { stream, why: None } => drop(self.failed.remove(&stream)),
            StreamUpdate::Flushed { stream } => {
                if let Some(from) = self.ready_successors.remove(&stream) {
                    self.handle(Input::Received { from, message: PeerMessage::Ready { stream } });
                }
            }
            StreamUpdate::Closed { stream } => self.release_record(&stream),
            StreamUpdate::Fenced { stream, fence } => {
                tracing::warn!(%stream, %fence, "the store refused an append: the head of the log names another owner or another fence");
                self.handle(Input::Fenced { stream, fence });
            }
        }
    }

    fn set_live(&mut self, stream: StreamName, live: bool) {
        if live {
            self.live.insert(stream.clone());
        } else {
            self.live.remove(&stream);
        }
        self.handle(Input::Prepared { stream, live });
    }

    fn handle_message(&mut self, message: IncomingMessage) {
        match message {
            IncomingMessage::Heartbeat { from } => self.handle(Input::Heartbeat { from }),
            IncomingMessage::Direct { from, note: PeerMessage::Ready { stream } } => self.request_flush(from, stream),
            IncomingMessage::Direct { from, note } => self.handle(Input::Received { from, message: note }),
        }
    }

    /// Before the record moves, what only the old session was sent has to be durable.
    fn request_flush(&mut self, successor: ReplicaId, stream: StreamName) {
        if let ReplicaRole::Owner(owning) = self.shared.role(&stream)
            && owning.phase != OwnershipPhase::Closing
        {
            self.flushes += 1;
            self.shared.assign(
                &stream,
                ReplicaRole::Owner(Ownership { phase: OwnershipPhase::Flushing(self.flushes), ..owning }),
            );
            self.ready_successors.insert(stream, successor);
        }
    }

    /// Carries out everything that the machine wants.
    fn drain_outputs(&mut self) {
        loop {
            let Some(output) = self.shared.lease().poll_output() else { return };
            match output {
                Output::Renew { limit } => self.renew(limit),
                Output::ReadRecords => self.list(),
                Output::ChangeRecord { stream, expected, record } => self.change(stream, expected, record),
                Output::Beat => self.publish(OutgoingMessage::Heartbeat),
                Output::Send { to, note } => {
                    tracing::debug!(%to, ?note, "to another replica");
                    self.publish(OutgoingMessage::Direct { to, note });
                }
                Output::Follow { stream } | Output::Prepare { stream } => {
                    tracing::info!(%stream, "a session is held ready for this stream");
                    self.shared.assign(&stream, ReplicaRole::Standby);
                }
                Output::BecomeOwner { stream, fence } => self.become_owner(&stream, fence),
                Output::Release { stream } => {
                    tracing::info!(%stream, "the stream is not this replica's");
                    self.ready_successors.remove(&stream);
                    self.shared.assign(&stream, ReplicaRole::Idle);
                }
                Output::StepDown => tracing::warn!("nothing is appended until the store has answered"),
                Output::Resume => self.shared.permits.send_modify(|moved| *moved += 1),
                Output::Leave => self.leave(),
            }
        }
    }

    fn become_owner(&mut self, stream: &StreamName, fence: Fence) {
        let handed = self.requested_fences.get(stream) != Some(&fence);
        tracing::info!(%stream, %fence, handed, "the stream is this replica's");
        let owning = Ownership { fence: Some(fence), handed_over: handed, phase: OwnershipPhase::Active };
        self.shared.assign(stream, ReplicaRole::Owner(owning));
        self.shared.permits.send_modify(|moved| *moved += 1);
    }

    fn renew(&self, limit: usize) {
        let (registry, life) = (Arc::clone(&self.registry), self.settings.lease_ttl);
        let is_unhealthy =
            |stream: &&StreamName| self.shared.role(stream) != ReplicaRole::Idle && !self.live.contains(*stream);
        let unhealthy_streams: Vec<StreamName> = self.settings.streams.iter().filter(is_unhealthy).cloned().collect();
        let degraded: Vec<StreamName> =
            self.degraded.iter().filter(|stream| self.live.contains(*stream)).cloned().collect();
        let health = HealthReport { unhealthy_streams, degraded, failed: self.failed.clone() };
        self.work.push(Box::pin(async move {
            Some(match registry.renew(limit, &health, life).await {
                Ok(lives) => Completion::Renewed(lives),
                Err(why) => Completion::NoReply(LeaseRequest::Renew, why.to_string()),
            })
        }));
    }

    fn list(&self) {
        let (registry, streams) = (Arc::clone(&self.registry), self.settings.streams.clone());
        self.work.push(Box::pin(async move {
            Some(match registry.records(&streams).await {
                Ok(records) => Completion::Listed(records),
                Err(why) => Completion::NoReply(LeaseRequest::ReadRecords, why.to_string()),
            })
        }));
    }

    /// A record is given up only after its stream has closed; any other change is made at once.
    fn change(&mut self, stream: StreamName, expected: Option<Fence>, record: LeaseRecord) {
        if let (None, ReplicaRole::Owner(owning), Some(fence)) = (record.holder, self.shared.role(&stream), expected) {
            self.shared.assign(&stream, ReplicaRole::Owner(Ownership { phase: OwnershipPhase::Closing, ..owning }));
            self.closing.insert(stream.clone(), (fence, record));
            self.work.push(Box::pin(async move {
                tokio::time::sleep(CLOSE_MAX).await;
                Some(Completion::Closed(stream))
            }));
            return;
        }
        if record.holder == Some(self.settings.me) {
            self.requested_fences.insert(stream.clone(), record.fence);
        }
        self.write_record(stream, expected, record);
    }

    fn release_record(&mut self, stream: &StreamName) {
        if let Some((fence, record)) = self.closing.remove(stream) {
            self.write_record(stream.clone(), Some(fence), record);
        }
    }

    fn write_record(&self, stream: StreamName, expected: Option<Fence>, record: LeaseRecord) {
        let registry = Arc::clone(&self.registry);
        let is_unreadable = self.shared.unreadable().contains_key(&stream);
        self.work.push(Box::pin(async move {
            if is_unreadable {
                // What cannot be read is not written over. The machine asks again after this.
                tokio::time::sleep(UNREADABLE_WAIT).await;
                return Some(Completion::Input(Input::Changed {
                    stream,
                    fence: record.fence,
                    outcome: ChangeOutcome::Refused,
                }));
            }
            let outcome = match registry.change(&stream, expected, record).await {
                Ok(true) => ChangeOutcome::Done,
                Ok(false) => ChangeOutcome::Refused,
                Err(error) => {
                    tracing::info!(%stream, %error, "a record could not be changed");
                    match error {
                        CommandError::NotSent(_) | CommandError::Refused { .. } => ChangeOutcome::Refused,
                        CommandError::NoAnswer(_) => ChangeOutcome::Unknown,
                    }
                }
            };
            Some(Completion::Input(Input::Changed { stream, fence: record.fence, outcome }))
        }));
    }

    fn publish(&self, outgoing: OutgoingMessage) {
        if self.publishing.len() >= MESSAGES_MAX {
            return;
        }
        let registry = Arc::clone(&self.registry);
        self.publishing.push(Box::pin(async move {
            if let Err(error) = registry.publish(&outgoing).await {
                tracing::debug!(%error, ?outgoing, "a word could not be said");
            }
            None
        }));
    }

    fn leave(&self) {
        let registry = Arc::clone(&self.registry);
        self.work.push(Box::pin(async move {
            if let Err(error) = registry.leave().await {
                tracing::debug!(%error, "the others will notice that this replica left");
            }
            Some(Completion::Left)
        }));
    }
}

/// Listens for ever, and begins anew whenever the connection is lost.
async fn listen(registry: Arc<Registry>, messages: mpsc::Sender<IncomingMessage>) {
    let mut failures = 0;
    loop {
        if let Ok(mut words) = registry.listen().await {
            failures = 0;
            while let Some(heard) = words.next().await {
                // A word for which there is no room is lost, as any may be.
                drop(messages.try_send(heard));
            }
        }
        tokio::time::sleep(LISTEN_RETRY.delay(failures, fastrand::f64())).await;
        failures = failures.saturating_add(1);
    }
}

fn now() -> LeaseMoment {
    LeaseMoment { boot: clock::boot(), nonce: random::u128() }
}

async fn sleep_until(at: Option<BootTime>) {
    match at {
        Some(at) => tokio::time::sleep(at.saturating_sub(clock::boot())).await,
        None => std::future::pending().await,
    }
}
