//! The actions of the model: timers in any order, appends in flight, slow sessions, and a budget of faults.

use std::collections::BTreeMap;

use trunkline::{
    model::{ReplicaId, StreamName},
    protocol::lease::{ChangeOutcome, Input, LeaseMoment, LeaseRecord, LeaseRequest, Output},
};

use super::{
    super::explore::Model,
    replica::{DelayedChange, LeaseReplica, MEMBERSHIP_TTL, NOW, ReplicaLiveness, SessionPhase, StoreFault, TICK},
    store::{AppendOutcome, LeaseLogEntry, LeaseStore, PendingAppend},
};

/// The parameters of the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelPlan {
    pub(super) replicas: u8,
    pub(super) streams: usize,
    /// Limit of entries of a log.
    pub(super) entries: usize,
    pub(super) faults: FaultBudget,
}

/// How often each fault or operator command may occur.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct FaultBudget {
    pub(super) crashes: u8,
    pub(super) pauses: u8,
    pub(super) cuts: u8,
    pub(super) delays: u8,
    pub(super) losses: u8,
    pub(super) failovers: u8,
    pub(super) drains: u8,
    /// One replica starts after the others.
    pub(super) joins: u8,
}

/// An action. Replicas and streams are given by number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Tick,
    Run(usize),
    Receive(usize),
    SessionLive(usize, usize),
    Append(usize, usize),
    Arrive(usize, usize),
    Deliver(usize),
    Crash(usize),
    Pause(usize),
    Unpause(usize),
    StoreFault(usize, StoreFault),
    Drain(usize),
    Join(usize),
    /// The store loses its newest changes.
    Failover {
        forgotten: usize,
    },
}

#[derive(Debug, Clone, Hash)]
pub(super) struct LeaseWorld {
    streams: Vec<StreamName>,
    store: LeaseStore,
    replicas: Vec<LeaseReplica>,
    remaining_faults: FaultBudget,
    /// Whether no fault has occurred so far.
    no_disruption: bool,
    nonce: u128,
    /// Earlier states of the store to which a failover may roll back.
    store_history: Vec<LeaseStore>,
    /// All accepted entries since the last failover, by epoch and offset.
    accepted: BTreeMap<(StreamName, u8, usize), LeaseLogEntry>,
}

/// Number of changes that a failover can lose.
const FORGOTTEN_MAX: usize = 2;

impl Model for ModelPlan {
    type State = LeaseWorld;
    type Action = Action;

    fn start(&self) -> LeaseWorld {
        let streams: Vec<StreamName> = ["a", "b"][..self.streams].iter().map(|name| name.parse().unwrap()).collect();
        let vigour = |id: u8| {
            if id > self.replicas - self.faults.joins { ReplicaLiveness::Absent } else { ReplicaLiveness::Running }
        };
        let replica = |id: u8| LeaseReplica::new(ReplicaId(id.into()), &streams, vigour(id));
        LeaseWorld {
            store: LeaseStore::default(),
            replicas: (1..=self.replicas).map(replica).collect(),
            remaining_faults: self.faults,
            no_disruption: true,
            nonce: 1,
            store_history: Vec::new(),
            accepted: BTreeMap::new(),
            streams,
        }
    }

    fn actions(&self, world: &LeaseWorld) -> Vec<Action> {
        let mut actions = world.due();
        if actions.is_empty() {
            actions.push(Action::Tick);
        }
        actions.extend(world.possible(self.entries));
        actions.extend(world.faults());
        actions
    }

    fn step(&self, world: &mut LeaseWorld, action: Action) -> Result<(), String> {
        world.step(action)
    }

    fn is_well(&self, world: &LeaseWorld) -> bool {
        world.is_well()
    }
}

impl LeaseWorld {
    /// Actions that must occur before the next tick.
    fn due(&self) -> Vec<Action> {
        let awake = self.replicas.iter().enumerate().filter(|(_, replica)| replica.is_running());
        awake
            .filter_map(|(at, replica)| match (replica.inbox.is_empty(), replica.has_run) {
                (false, _) => Some(Action::Receive(at)),
                (true, false) => Some(Action::Run(at)),
                (true, true) => None,
            })
            .collect()
    }

    /// Actions that can occur at any time.
    fn possible(&self, entries_max: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, replica) in self.replicas.iter().enumerate() {
            for (number, stream) in self.streams.iter().enumerate() {
                let desk = &replica.stream_states[stream];
                if replica.is_running() && desk.session == SessionPhase::Opening {
                    actions.push(Action::SessionLive(at, number));
                }
                let len = self.store.logs.get(stream).map_or(0, |log| log.entries.len());
                if replica.is_running() && len < entries_max && replica.next_append(stream).is_some() {
                    actions.push(Action::Append(at, number));
                }
                if desk.in_flight.is_some() {
                    actions.push(Action::Arrive(at, number));
                }
            }
            if replica.delayed.is_some() {
                actions.push(Action::Deliver(at));
            }
            if replica.liveness == ReplicaLiveness::Paused {
                actions.push(Action::Unpause(at));
            }
        }
        actions
    }

    fn faults(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let left = self.remaining_faults;
        for (at, replica) in self.replicas.iter().enumerate() {
            if replica.liveness == ReplicaLiveness::Absent && left.joins > 0 {
                actions.push(Action::Join(at));
            }
            if !replica.is_running() {
                continue;
            }
            let can = |budget: u8| budget > 0 && replica.fault.is_none();
            let others =
                self.replicas.iter().any(|other| other.id != replica.id && other.liveness != ReplicaLiveness::Left);
            actions.extend((left.crashes > 0 && others).then_some(Action::Crash(at)));
            actions.extend((left.pauses > 0).then_some(Action::Pause(at)));
            actions.extend((left.drains > 0 && others).then_some(Action::Drain(at)));
            actions.extend(can(left.cuts).then_some(Action::StoreFault(at, StoreFault::Unreachable)));
            actions.extend(can(left.losses).then_some(Action::StoreFault(at, StoreFault::RequestLost)));
            if can(left.delays) && replica.delayed.is_none() {
                actions.push(Action::StoreFault(at, StoreFault::LateRequest));
                actions.push(Action::StoreFault(at, StoreFault::LateReply));
            }
        }
        if left.failovers > 0 {
            actions.extend((1..=self.store_history.len()).map(|forgotten| Action::Failover { forgotten }));
        }
        actions
    }

    fn step(&mut self, action: Action) -> Result<(), String> {
        self.spend(action);
        match action {
            Action::Tick => self.tick(),
            Action::Run(at) => return self.run(at),
            Action::Receive(at) => {
                let (from, note) = self.replicas[at].inbox.remove(0);
                return self.handle_input(at, Input::Received { from, message: note });
            }
            Action::SessionLive(at, number) => return self.session_live(at, number),
            Action::Append(at, number) => return self.append(at, number),
            Action::Arrive(at, number) => return self.land(at, number),
            Action::Deliver(at) => return self.deliver(at),
            Action::Crash(at) => self.replicas[at].crash(),
            Action::Pause(at) => self.replicas[at].liveness = ReplicaLiveness::Paused,
            Action::Unpause(at) | Action::Join(at) => self.replicas[at].liveness = ReplicaLiveness::Running,
            Action::StoreFault(at, trouble) => self.replicas[at].fault = Some(trouble),
            Action::Drain(at) => return self.handle_input(at, Input::Drain { until: NOW + TICK * 4 }),
            Action::Failover { forgotten } => self.fail_over(forgotten),
        }
        Ok(())
    }

    fn spend(&mut self, action: Action) {
        let left = &mut self.remaining_faults;
        let budget = match action {
            Action::Crash(_) => &mut left.crashes,
            Action::Pause(_) => &mut left.pauses,
            Action::Drain(_) => &mut left.drains,
            Action::Join(_) => &mut left.joins,
            Action::StoreFault(_, StoreFault::Unreachable) => &mut left.cuts,
            Action::StoreFault(_, StoreFault::RequestLost) => &mut left.losses,
            Action::StoreFault(_, StoreFault::LateRequest | StoreFault::LateReply) => &mut left.delays,
            Action::Failover { .. } => &mut left.failovers,
            Action::Tick
            | Action::Run(_)
            | Action::Receive(_)
            | Action::SessionLive(..)
            | Action::Append(..)
            | Action::Arrive(..)
            | Action::Deliver(_)
            | Action::Unpause(_) => return,
        };
        *budget -= 1;
        self.no_disruption &= matches!(action, Action::Drain(_) | Action::Join(_));
    }

    fn tick(&mut self) {
        self.store.pass(NOW + TICK, TICK);
        self.replicas.iter_mut().for_each(LeaseReplica::pass);
    }

    fn run(&mut self, at: usize) -> Result<(), String> {
        for stream in self.streams.clone() {
            if let Some((append, verdict)) = self.replicas[at].stream_states.get_mut(&stream).unwrap().reply.take() {
                self.answered(at, &stream, append, verdict)?;
            }
        }
        let nonce = self.nonce;
        self.replicas[at].has_run = true;
        self.replicas[at].lease.handle_timeout(LeaseMoment { boot: NOW, nonce });
        self.drain_outputs(at)?;
        self.replicas[at].take_fault(StoreFault::Unreachable);
        Ok(())
    }

    fn handle_input(&mut self, at: usize, input: Input) -> Result<(), String> {
        let now = LeaseMoment { boot: NOW, nonce: self.nonce };
        self.replicas[at].lease.handle(input, now);
        self.drain_outputs(at)
    }

    fn drain_outputs(&mut self, at: usize) -> Result<(), String> {
        while let Some(output) = self.replicas[at].lease.poll_output() {
            if let Some(answer) = self.perform(at, output)? {
                self.replicas[at].lease.handle(answer, LeaseMoment { boot: NOW, nonce: self.nonce });
            }
        }
        Ok(())
    }

    fn perform(&mut self, at: usize, output: Output) -> Result<Option<Input>, String> {
        let is_cut = self.replicas[at].fault == Some(StoreFault::Unreachable);
        let replica = &mut self.replicas[at];
        match output {
            Output::Renew { .. } if is_cut => return Ok(Some(Input::RequestFailed(LeaseRequest::Renew))),
            Output::ReadRecords if is_cut => return Ok(Some(Input::RequestFailed(LeaseRequest::ReadRecords))),
            Output::Renew { limit } => {
                self.store.renew(replica.id, limit, NOW + MEMBERSHIP_TTL);
                replica.trusted_until = NOW + MEMBERSHIP_TTL.mul_f64(0.6);
                return Ok(Some(Input::Renewed { members: self.store.members() }));
            }
            Output::ReadRecords => {
                replica.must_read = replica.trusted_until <= NOW;
                return Ok(Some(Input::RecordsRead { records: self.store.records.clone() }));
            }
            Output::ChangeRecord { stream, expected, record } => {
                return self.request(at, DelayedChange { stream, expected, record, outcome: None }, is_cut);
            }
            Output::SendHeartbeat if replica.take_fault(StoreFault::RequestLost) => (),
            Output::Send { .. } if replica.take_fault(StoreFault::RequestLost) => (),
            Output::SendHeartbeat => return self.heartbeat(at).map(|()| None),
            Output::Send { to, note } => {
                let from = replica.id;
                if let Some(other) = self.replicas.iter_mut().find(|other| other.id == to) {
                    other.inbox.push((from, note));
                }
            }
            Output::Follow { stream } | Output::Prepare { stream } => replica.open_session(&stream),
            Output::BecomeOwner { stream, fence } => {
                replica.open_session(&stream);
                replica.open_log(&stream, fence, &self.store);
            }
            Output::Release { stream } => replica.release(&stream),
            Output::StepDown | Output::Resume => (),
            Output::Leave => {
                self.store.remove(replica.id);
                replica.crash();
            }
        }
        Ok(None)
    }

    fn heartbeat(&mut self, at: usize) -> Result<(), String> {
        let from = self.replicas[at].id;
        for other in 0..self.replicas.len() {
            if other != at && self.replicas[other].is_running() {
                self.handle_input(other, Input::Heartbeat { from })?;
            }
        }
        Ok(())
    }

    fn request(&mut self, at: usize, mut change: DelayedChange, is_cut: bool) -> Result<Option<Input>, String> {
        let answer = |stream, fence, outcome| Ok(Some(Input::Changed { stream, fence, outcome }));
        if is_cut {
            return answer(change.stream, change.record.fence, ChangeOutcome::Unknown);
        }
        if self.replicas[at].take_fault(StoreFault::LateRequest) {
            self.nonce += 1;
            self.replicas[at].delayed = Some(change);
            return Ok(None);
        }
        let outcome = self.change(at, &change)?;
        if self.replicas[at].take_fault(StoreFault::LateReply) {
            change.outcome = Some(outcome);
            self.replicas[at].delayed = Some(change);
            return Ok(None);
        }
        answer(change.stream, change.record.fence, outcome)
    }

    /// Changes a record in the store and checks the invariants of changes.
    fn change(&mut self, at: usize, change: &DelayedChange) -> Result<ChangeOutcome, String> {
        let DelayedChange { stream, expected, record, .. } = change;
        let before = self.store.records.get(stream).copied();
        self.remember();
        let outcome = self.store.change(stream, *expected, *record);
        if outcome != ChangeOutcome::Done {
            self.store_history.pop();
            return Ok(outcome);
        }
        // No replica knows the nonce of a refused change. Reuse it, so that the state space stays finite.
        self.nonce += 1;
        let me = self.replicas[at].id;
        if record.holder == Some(me) {
            self.may_be_acquired(before, me)?;
        } else if let Some(to) = record.holder {
            self.may_be_released(stream, to)?;
        }
        Ok(outcome)
    }

    /// No replica acquires the lease of a healthy owner unless a fault has occurred.
    fn may_be_acquired(&self, before: Option<LeaseRecord>, taker: ReplicaId) -> Result<(), String> {
        let holder = before.and_then(|record| record.holder).filter(|holder| *holder != taker);
        match holder.filter(|holder| self.no_disruption && self.store.has_member(*holder)) {
            Some(holder) => Err(format!("{taker} acquires the lease of {holder}, which is healthy")),
            None => Ok(()),
        }
    }

    /// A handover goes only to a replica with a live session.
    fn may_be_released(&self, stream: &StreamName, to: ReplicaId) -> Result<(), String> {
        let successor = self.replicas.iter().find(|replica| replica.id == to).unwrap();
        if successor.is_running() && !successor.stream_states[stream].was_live && self.no_disruption {
            return Err(format!("{stream} is handed over to {to}, whose session is not live"));
        }
        Ok(())
    }

    fn remember(&mut self) {
        if self.remaining_faults.failovers > 0 {
            self.store_history.push(self.store.memory());
            if self.store_history.len() > FORGOTTEN_MAX {
                self.store_history.remove(0);
            }
        }
    }

    fn session_live(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let desk = self.replicas[at].stream_states.get_mut(&stream).unwrap();
        desk.session = SessionPhase::Live;
        desk.was_live = true;
        self.handle_input(at, Input::Prepared { stream, live: true })
    }

    fn append(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let replica = &mut self.replicas[at];
        if replica.must_read || replica.trusted_until <= NOW {
            return Err(format!("{} appends to {stream} without a read of its lease", replica.id));
        }
        let append = replica.next_append(&stream);
        replica.stream_states.get_mut(&stream).unwrap().in_flight = append;
        Ok(())
    }

    fn land(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let Some(append) = self.replicas[at].stream_states.get_mut(&stream).unwrap().in_flight.take() else {
            return Ok(());
        };
        self.remember();
        let verdict = self.store.append(&stream, append);
        match verdict {
            AppendOutcome::Stored => self.accept(&stream, append)?,
            AppendOutcome::Fenced | AppendOutcome::Displaced => drop(self.store_history.pop()),
        }
        match self.replicas[at].liveness {
            ReplicaLiveness::Running => self.answered(at, &stream, append, verdict),
            ReplicaLiveness::Paused => {
                self.replicas[at].stream_states.get_mut(&stream).unwrap().reply = Some((append, verdict));
                Ok(())
            }
            ReplicaLiveness::Absent | ReplicaLiveness::Left => Ok(()),
        }
    }

    /// Records an accepted entry and checks the invariants of entries.
    fn accept(&mut self, stream: &StreamName, append: PendingAppend) -> Result<(), String> {
        let by = append.entry.by;
        let holder = self.store.records.get(stream).and_then(|record| record.holder);
        if holder != Some(by) {
            return Err(format!("{by} has appended to {stream}, which {holder:?} owns"));
        }
        let place = (stream.clone(), append.epoch, append.offset);
        match self.accepted.insert(place, append.entry) {
            Some(other) if other != append.entry => Err(format!("{stream} has two entries {}", append.offset)),
            Some(_) | None => self.keeps_what_it_accepted(stream),
        }
    }

    /// Checks that no accepted entry of this epoch is lost, and that the position is that of the newest entry.
    fn keeps_what_it_accepted(&self, stream: &StreamName) -> Result<(), String> {
        let log = &self.store.logs[stream];
        let kept = |((of, epoch, offset), entry): (&(StreamName, u8, usize), &LeaseLogEntry)| {
            of != stream || *epoch != log.epoch || log.entries.get(offset - 1) == Some(entry)
        };
        if log.position == log.entries.len() && self.accepted.iter().all(kept) {
            Ok(())
        } else {
            Err(format!("{stream} has lost an entry"))
        }
    }

    fn answered(
        &mut self,
        at: usize,
        stream: &StreamName,
        append: PendingAppend,
        verdict: AppendOutcome,
    ) -> Result<(), String> {
        let fence = append.entry.fence;
        let Some(mut open) = self.replicas[at].stream_states[stream].open.filter(|open| open.fence == fence) else {
            return Ok(());
        };
        match verdict {
            AppendOutcome::Stored => {
                open.last = append.offset;
                self.replicas[at].stream_states.get_mut(stream).unwrap().open = Some(open);
                Ok(())
            }
            AppendOutcome::Displaced => {
                self.replicas[at].open_log(stream, fence, &self.store);
                Ok(())
            }
            AppendOutcome::Fenced => self.handle_input(at, Input::Fenced { stream: stream.clone(), fence }),
        }
    }

    fn deliver(&mut self, at: usize) -> Result<(), String> {
        let Some(mut late) = self.replicas[at].delayed.take() else { return Ok(()) };
        let outcome = match late.outcome {
            Some(outcome) => outcome,
            None => self.change(at, &late)?,
        };
        late.outcome = Some(outcome);
        match self.replicas[at].liveness {
            ReplicaLiveness::Running => {
                self.handle_input(at, Input::Changed { stream: late.stream, fence: late.record.fence, outcome })
            }
            ReplicaLiveness::Paused => {
                self.replicas[at].delayed = Some(late);
                Ok(())
            }
            ReplicaLiveness::Absent | ReplicaLiveness::Left => Ok(()),
        }
    }

    fn fail_over(&mut self, forgotten: usize) {
        let past = self.store_history.swap_remove(self.store_history.len() - forgotten);
        self.store_history.clear();
        self.accepted.clear();
        self.store = self.store.rolled_back_to(past);
    }

    /// Every stream has an owner that has accepted its role, or no replica is left.
    fn is_well(&self) -> bool {
        let held = |stream: &StreamName| {
            let record = self.store.records.get(stream);
            self.replicas.iter().any(|replica| {
                let right = replica.lease.append_fence(stream, NOW).filter(|_| replica.is_running());
                let known = record.filter(|record| record.holder == Some(replica.id)).map(|record| record.fence);
                right.is_some() && right == known
            })
        };
        self.streams.iter().all(held) || self.replicas.iter().all(|replica| replica.liveness == ReplicaLiveness::Left)
    }
}
