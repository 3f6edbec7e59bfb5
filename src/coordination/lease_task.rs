//! The lease task of one replica: feeds the lease machine and carries out its outputs.

mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::requests::{Completion, LeaseRequests, MESSAGES_MAX};
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
        lease::{self, BootTime, Input, LeaseMoment, LeaseRecord, LeaseRequest, Output, PeerMessage},
    },
    random,
    telemetry::{chain, metrics},
};

/// Unreadable values that are remembered as reported.
const REPORTED_MAX: usize = 256;

/// Delays between attempts to subscribe.
const LISTEN_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.5 };

/// A command of the handle.
#[derive(Debug)]
pub(super) enum ReplicaCommand {
    Drain { timeout: Duration, left: oneshot::Sender<()> },
}

/// The task's state.
pub(super) struct LeaseTask {
    settings: lease::Settings,
    shared: Arc<ReplicaShared>,
    requests: LeaseRequests,
    updates: mpsc::Receiver<StreamUpdate>,
    commands: mpsc::Receiver<ReplicaCommand>,
    /// Live successors whose streams flush the old session.
    ready_successors: BTreeMap<StreamName, ReplicaId>,
    /// Records to release when their streams have closed.
    closing: BTreeMap<StreamName, (Fence, LeaseRecord)>,
    /// The newest fence of each stream that this replica claimed itself. Any other fence comes from a handover.
    requested_fences: BTreeMap<StreamName, Fence>,
    flushes: u32,
    /// Streams that are live here.
    live: BTreeSet<StreamName>,
    /// Streams without all configured topics.
    degraded: BTreeSet<StreamName>,
    /// Streams that are owned here and whose logs cannot be used, and why.
    failed: BTreeMap<StreamName, String>,
    /// Whether the store did not answer the last request.
    store_unreachable: bool,
    /// Unreadable values that were reported. At [`REPORTED_MAX`] the set is cleared.
    reported: BTreeSet<String>,
    drained: Option<oneshot::Sender<()>>,
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
        updates: mpsc::Receiver<StreamUpdate>,
        commands: mpsc::Receiver<ReplicaCommand>,
    ) -> Self {
        Self {
            settings,
            shared,
            requests: LeaseRequests::new(registry),
            updates,
            commands,
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

    /// Runs until the stop signal. After a drain no record names this replica.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let (sender, mut messages) = mpsc::channel(MESSAGES_MAX);
        let mut listening = Box::pin(listen(Arc::clone(&self.requests.registry), sender));
        loop {
            self.drain_outputs();
            let wake = self.shared.lease.lock().poll_timeout();
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => LeaseEvent::Stop,
                Some(command) = self.commands.recv() => LeaseEvent::Command(command),
                Some(done) = self.requests.work.next(), if !self.requests.work.is_empty() => LeaseEvent::Completion(done),
                Some(update) = self.updates.recv() => LeaseEvent::Update(update),
                Some(message) = messages.recv() => LeaseEvent::Message(message),
                Some(done) = self.requests.publishing.next(), if !self.requests.publishing.is_empty() => LeaseEvent::Completion(done),
                () = &mut listening => LeaseEvent::Timer,
                () = sleep_until(wake) => LeaseEvent::Timer,
            };
            match event {
                LeaseEvent::Stop => return Ok(()),
                LeaseEvent::Completion(None) => (),
                LeaseEvent::Completion(Some(done)) => self.handle_completion(done),
                LeaseEvent::Update(update) => self.handle_update(update),
                LeaseEvent::Message(message) => self.handle_message(message),
                LeaseEvent::Command(ReplicaCommand::Drain { timeout, left }) => {
                    self.drained = Some(left);
                    self.handle(Input::Drain { until: clock::boot() + timeout });
                }
                LeaseEvent::Timer => self.shared.lease.lock().handle_timeout(now()),
            }
        }
    }

    fn handle(&self, input: Input) {
        self.shared.lease.lock().handle(input, now());
    }

    fn handle_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Input(input) => {
                self.mark_store_reachable();
                self.handle(input);
            }
            Completion::Renewed(MemberList { members, unreadable }) => {
                self.mark_store_reachable();
                self.shared.renewed();
                metrics::replica_members(members.len());
                self.report_members(&unreadable);
                *self.shared.unreadable_members.lock() = unreadable;
                let live = members.iter().map(|status| status.member).collect();
                *self.shared.members.lock() = members;
                self.handle(Input::Renewed { members: live });
            }
            Completion::Listed(LeaseRecords { records, unreadable }) => {
                self.mark_store_reachable();
                self.report_records(&unreadable);
                *self.shared.unreadable.lock() = unreadable;
                self.handle(Input::RecordsRead { records });
            }
            Completion::NoReply(request, error) => {
                if !std::mem::replace(&mut self.store_unreachable, true) {
                    tracing::warn!(error = chain(&error), "store unreachable; leases may expire");
                }
                if request == LeaseRequest::Renew {
                    metrics::replica_renewal_failed();
                    self.shared.renewal_failed(error);
                }
                self.handle(Input::RequestFailed(request));
            }
            Completion::Closed(stream) => self.release_record(&stream),
            Completion::Left => {
                if let Some(left) = self.drained.take() {
                    // An error means that the caller has stopped waiting.
                    left.send(()).unwrap_or(());
                }
            }
        }
    }

    fn report_members(&mut self, unreadable: &[String]) {
        for value in unreadable {
            if self.is_unreported(value) {
                tracing::error!(value, "membership of another replica cannot be read; it is not counted");
            }
        }
    }

    fn report_records(&mut self, unreadable: &BTreeMap<StreamName, String>) {
        for (stream, reason) in unreadable {
            if self.is_unreported(reason) {
                tracing::error!(%stream, reason, "lease record cannot be read; this stream waits");
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
            tracing::info!("store reachable again");
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
                tracing::warn!(%stream, %fence, "append rejected: the log has another owner or fence");
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

    /// Before the record moves, the events of the old session must be durable.
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

    /// Carries out the outputs of the machine.
    fn drain_outputs(&mut self) {
        loop {
            let Some(output) = self.shared.lease.lock().poll_output() else { return };
            match output {
                Output::Renew { limit } => self.renew(limit),
                Output::ReadRecords => self.requests.list(self.settings.streams.clone()),
                Output::ChangeRecord { stream, expected, record } => self.change(stream, expected, record),
                Output::SendHeartbeat => self.requests.publish(OutgoingMessage::Heartbeat),
                Output::Send { to, note } => {
                    tracing::debug!(%to, ?note, "message sent to another replica");
                    self.requests.publish(OutgoingMessage::Direct { to, note });
                }
                Output::Follow { stream } | Output::Prepare { stream } => {
                    tracing::info!(%stream, "standby for the stream");
                    self.shared.assign(&stream, ReplicaRole::Standby);
                }
                Output::BecomeOwner { stream, fence } => self.become_owner(&stream, fence),
                Output::Release { stream } => {
                    tracing::info!(%stream, "released the stream");
                    self.ready_successors.remove(&stream);
                    self.shared.assign(&stream, ReplicaRole::Idle);
                }
                Output::StepDown => tracing::warn!("lease expired locally; appends paused"),
                Output::Resume => self.shared.permits.send_modify(|moved| *moved += 1),
                Output::Leave => self.requests.leave(),
            }
        }
    }

    fn become_owner(&mut self, stream: &StreamName, fence: Fence) {
        let handed_over = self.requested_fences.get(stream) != Some(&fence);
        tracing::info!(%stream, %fence, handed_over, "took over the stream");
        let owning = Ownership { fence: Some(fence), handed_over, phase: OwnershipPhase::Active };
        self.shared.assign(stream, ReplicaRole::Owner(owning));
        self.shared.permits.send_modify(|moved| *moved += 1);
    }

    fn renew(&self, limit: usize) {
        let is_unhealthy =
            |stream: &&StreamName| self.shared.role(stream) != ReplicaRole::Idle && !self.live.contains(*stream);
        let unhealthy_streams: Vec<StreamName> = self.settings.streams.iter().filter(is_unhealthy).cloned().collect();
        let degraded: Vec<StreamName> =
            self.degraded.iter().filter(|stream| self.live.contains(*stream)).cloned().collect();
        let health = HealthReport { unhealthy_streams, degraded, failed: self.failed.clone() };
        self.requests.renew(limit, health, self.settings.lease_ttl);
    }

    /// Changes a record: a release waits until the stream has closed, any other change is made at once.
    fn change(&mut self, stream: StreamName, expected: Option<Fence>, record: LeaseRecord) {
        if let (None, ReplicaRole::Owner(owning), Some(fence)) = (record.holder, self.shared.role(&stream), expected) {
            self.shared.assign(&stream, ReplicaRole::Owner(Ownership { phase: OwnershipPhase::Closing, ..owning }));
            self.closing.insert(stream.clone(), (fence, record));
            self.requests.await_close(stream);
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
        if self.shared.unreadable.lock().contains_key(&stream) {
            self.requests.refuse_later(stream, record.fence);
        } else {
            self.requests.change(stream, expected, record);
        }
    }
}

/// Receives messages until it is dropped, and subscribes again after a lost connection.
async fn listen(registry: Arc<Registry>, messages: mpsc::Sender<IncomingMessage>) {
    let mut failures = 0;
    loop {
        if let Ok(mut subscription) = registry.listen().await {
            failures = 0;
            while let Some(message) = subscription.next().await {
                // Without room the message is dropped. Any message may be lost.
                drop(messages.try_send(message));
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
