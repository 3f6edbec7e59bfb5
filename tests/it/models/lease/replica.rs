//! A replica of the model: the lease machine and a simple shell around it.

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{BootTime, ChangeOutcome, Lease, LeaseRecord, PeerMessage, Settings},
};

use super::store::{AppendOutcome, LeaseStore, PendingAppend};

/// The time step: a fifth of a membership's lifetime.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The constant current time. Each tick moves all other times back, so that equal states compare equal. No rule looks
/// further back than this.
pub(super) const NOW: BootTime = Duration::from_secs(3);

/// Lifetime of a membership.
pub(super) const MEMBERSHIP_TTL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LeaseReplica {
    pub(super) id: ReplicaId,
    pub(super) lease: Lease,
    pub(super) liveness: ReplicaLiveness,
    /// Its timers have run in this tick.
    pub(super) has_run: bool,
    /// The fault of the next call.
    pub(super) fault: Option<StoreFault>,
    pub(super) inbox: Vec<(ReplicaId, PeerMessage)>,
    pub(super) delayed: Option<DelayedChange>,
    pub(super) stream_states: BTreeMap<StreamName, ModelStreamState>,
    /// End of its membership as the store sees it.
    pub(super) trusted_until: BootTime,
    /// Its membership had expired, and it has not read the records since.
    pub(super) must_read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ReplicaLiveness {
    /// Not started yet.
    Absent,
    Running,
    Paused,
    Left,
}

/// A fault that occurs once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StoreFault {
    /// The store is unreachable while this replica runs its timers.
    Unreachable,
    /// The next record change reaches the store late.
    LateRequest,
    /// The reply to the next record change arrives late.
    LateReply,
    /// The next peer message or heartbeat is lost.
    RequestLost,
}

/// A delayed record change or its delayed reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DelayedChange {
    pub(super) stream: StreamName,
    pub(super) expected: Option<Fence>,
    pub(super) record: LeaseRecord,
    pub(super) outcome: Option<ChangeOutcome>,
}

/// A replica's state of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct ModelStreamState {
    pub(super) session: SessionPhase,
    /// The session was live since the last change of the record.
    pub(super) was_live: bool,
    pub(super) open: Option<OpenLog>,
    pub(super) in_flight: Option<PendingAppend>,
    pub(super) reply: Option<(PendingAppend, AppendOutcome)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum SessionPhase {
    #[default]
    None,
    Opening,
    Live,
}

/// The log when its owner opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct OpenLog {
    pub(super) fence: Fence,
    pub(super) epoch: u8,
    pub(super) last: usize,
}

impl LeaseReplica {
    pub(super) fn new(id: ReplicaId, streams: &[StreamName], liveness: ReplicaLiveness) -> Self {
        let settings = Settings {
            me: id,
            streams: streams.to_vec(),
            limit: 9,
            standby: streams.iter().cloned().collect(),
            lease_ttl: MEMBERSHIP_TTL,
            heartbeat_interval: TICK,
            heartbeat_timeout: TICK * 2,
            handover_timeout: TICK * 3,
            start_delay: Duration::ZERO,
        };
        Self {
            id,
            lease: Lease::new(settings, NOW),
            liveness,
            has_run: false,
            fault: None,
            inbox: Vec::new(),
            delayed: None,
            stream_states: streams.iter().map(|stream| (stream.clone(), ModelStreamState::default())).collect(),
            trusted_until: Duration::ZERO,
            must_read: true,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.liveness == ReplicaLiveness::Running
    }

    /// Whether this is the fault of the next call. Clears it.
    pub(super) fn take_fault(&mut self, fault: StoreFault) -> bool {
        self.fault.take_if(|found| *found == fault).is_some()
    }

    pub(super) fn open_session(&mut self, stream: &StreamName) {
        let desk = self.stream_states.get_mut(stream).unwrap();
        if desk.session == SessionPhase::None {
            desk.session = SessionPhase::Opening;
        }
    }

    /// Opens the log as its new owner.
    pub(super) fn open_log(&mut self, stream: &StreamName, fence: Fence, store: &LeaseStore) {
        let (epoch, last) = store.logs.get(stream).map_or((0, 0), |log| (log.epoch, log.entries.len()));
        self.stream_states.get_mut(stream).unwrap().open = Some(OpenLog { fence, epoch, last });
    }

    pub(super) fn release(&mut self, stream: &StreamName) {
        let desk = self.stream_states.get_mut(stream).unwrap();
        let under_way = desk.in_flight.take();
        *desk = ModelStreamState { in_flight: under_way, ..ModelStreamState::default() };
    }

    /// Drops all state except messages in flight.
    pub(super) fn crash(&mut self) {
        let streams: Vec<_> = self.stream_states.keys().cloned().collect();
        let fallen = Self::new(self.id, &streams, ReplicaLiveness::Left);
        let Self { delayed: late, stream_states: desks, .. } = std::mem::replace(self, fallen);
        self.delayed = late.filter(|late| late.outcome.is_none());
        for (stream, desk) in desks {
            self.stream_states
                .insert(stream, ModelStreamState { in_flight: desk.in_flight, ..ModelStreamState::default() });
        }
    }

    /// The append that the machine currently permits.
    pub(super) fn next_append(&self, stream: &StreamName) -> Option<PendingAppend> {
        let desk = &self.stream_states[stream];
        let open = desk.open.filter(|_| desk.in_flight.is_none() && desk.reply.is_none())?;
        let fence = self.lease.append_fence(stream, NOW).filter(|fence| *fence == open.fence)?;
        let entry = super::store::LeaseLogEntry { by: self.id, fence };
        Some(PendingAppend { entry, epoch: open.epoch, offset: open.last + 1 })
    }

    /// Advances one tick.
    pub(super) fn pass(&mut self) {
        if self.liveness == ReplicaLiveness::Left || self.liveness == ReplicaLiveness::Absent {
            return;
        }
        self.has_run = false;
        self.lease.rebase(TICK);
        self.trusted_until = self.trusted_until.saturating_sub(TICK);
        self.must_read |= self.trusted_until <= NOW;
    }
}
