//! All that can happen: timers in any order, appends on their way, sessions that take their time; and faults, counted.

use std::collections::BTreeMap;

use trunkline::{
    model::{ReplicaId, StreamName},
    protocol::lease::{Input, Now, Outcome, Output, Record, Request},
};

use super::{
    super::explore::Model,
    replica::{LIFE, Late, NOW, Replica, Session, TICK, Trouble, Vigour},
    store::{Append, Entry, Store, Verdict},
};

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) replicas: u8,
    pub(super) streams: usize,
    /// Appends stop when a log has so many entries.
    pub(super) entries: usize,
    pub(super) faults: Faults,
}

/// How often each thing may go wrong, or be wished for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) crashes: u8,
    pub(super) naps: u8,
    pub(super) cuts: u8,
    pub(super) late: u8,
    pub(super) losses: u8,
    pub(super) failovers: u8,
    pub(super) drains: u8,
    /// One replica starts when the others run.
    pub(super) joins: u8,
}

/// Something that happens. Replicas and streams by their number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Tick,
    Run(usize),
    Hear(usize),
    SessionLive(usize, usize),
    Append(usize, usize),
    Land(usize, usize),
    Deliver(usize),
    Crash(usize),
    Sleep(usize),
    Wake(usize),
    Trouble(usize, Trouble),
    Drain(usize),
    Join(usize),
    /// The store forgets its newest changes.
    Failover {
        forgotten: usize,
    },
}

#[derive(Debug, Clone, Hash)]
pub(super) struct World {
    streams: Vec<StreamName>,
    store: Store,
    replicas: Vec<Replica>,
    left: Faults,
    /// Whether nothing has gone wrong so far.
    is_calm: bool,
    nonce: u128,
    /// The store before its newest changes, if it may yet forget them.
    past: Vec<Store>,
    /// All that was accepted since the last failover, by epoch and offset.
    accepted: BTreeMap<(StreamName, u8, usize), Entry>,
}

/// Changes that a failover can forget.
const FORGOTTEN_MAX: usize = 2;

impl Model for Plan {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        let streams: Vec<StreamName> = ["a", "b"][..self.streams].iter().map(|name| name.parse().unwrap()).collect();
        let vigour = |id: u8| if id > self.replicas - self.faults.joins { Vigour::Absent } else { Vigour::Awake };
        let replica = |id: u8| Replica::new(ReplicaId(id.into()), &streams, vigour(id));
        World {
            store: Store::default(),
            replicas: (1..=self.replicas).map(replica).collect(),
            left: self.faults,
            is_calm: true,
            nonce: 1,
            past: Vec::new(),
            accepted: BTreeMap::new(),
            streams,
        }
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = world.due();
        if actions.is_empty() {
            actions.push(Action::Tick);
        }
        actions.extend(world.possible(self.entries));
        actions.extend(world.faults());
        actions
    }

    fn step(&self, world: &mut World, action: Action) -> Result<(), String> {
        world.step(action)
    }

    fn is_well(&self, world: &World) -> bool {
        world.is_well()
    }
}

impl World {
    /// What must happen before time goes on.
    fn due(&self) -> Vec<Action> {
        let awake = self.replicas.iter().enumerate().filter(|(_, replica)| replica.is_awake());
        awake
            .filter_map(|(at, replica)| match (replica.inbox.is_empty(), replica.has_run) {
                (false, _) => Some(Action::Hear(at)),
                (true, false) => Some(Action::Run(at)),
                (true, true) => None,
            })
            .collect()
    }

    /// What can happen at any time.
    fn possible(&self, entries_max: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, replica) in self.replicas.iter().enumerate() {
            for (number, stream) in self.streams.iter().enumerate() {
                let desk = &replica.desks[stream];
                if replica.is_awake() && desk.session == Session::Opening {
                    actions.push(Action::SessionLive(at, number));
                }
                let len = self.store.logs.get(stream).map_or(0, |log| log.entries.len());
                if replica.is_awake() && len < entries_max && replica.next_append(stream).is_some() {
                    actions.push(Action::Append(at, number));
                }
                if desk.under_way.is_some() {
                    actions.push(Action::Land(at, number));
                }
            }
            if replica.late.is_some() {
                actions.push(Action::Deliver(at));
            }
            if replica.vigour == Vigour::Asleep {
                actions.push(Action::Wake(at));
            }
        }
        actions
    }

    fn faults(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let left = self.left;
        for (at, replica) in self.replicas.iter().enumerate() {
            if replica.vigour == Vigour::Absent && left.joins > 0 {
                actions.push(Action::Join(at));
            }
            if !replica.is_awake() {
                continue;
            }
            let can = |budget: u8| budget > 0 && replica.trouble.is_none();
            let others = self.replicas.iter().any(|other| other.id != replica.id && other.vigour != Vigour::Gone);
            actions.extend((left.crashes > 0 && others).then_some(Action::Crash(at)));
            actions.extend((left.naps > 0).then_some(Action::Sleep(at)));
            actions.extend((left.drains > 0 && others).then_some(Action::Drain(at)));
            actions.extend(can(left.cuts).then_some(Action::Trouble(at, Trouble::Cut)));
            actions.extend(can(left.losses).then_some(Action::Trouble(at, Trouble::Loss)));
            if can(left.late) && replica.late.is_none() {
                actions.push(Action::Trouble(at, Trouble::LateRequest));
                actions.push(Action::Trouble(at, Trouble::LateAnswer));
            }
        }
        if left.failovers > 0 {
            actions.extend((1..=self.past.len()).map(|forgotten| Action::Failover { forgotten }));
        }
        actions
    }

    fn step(&mut self, action: Action) -> Result<(), String> {
        self.spend(action);
        match action {
            Action::Tick => self.tick(),
            Action::Run(at) => return self.run(at),
            Action::Hear(at) => {
                let (from, note) = self.replicas[at].inbox.remove(0);
                return self.tell(at, Input::Heard { from, note });
            }
            Action::SessionLive(at, number) => return self.session_live(at, number),
            Action::Append(at, number) => return self.append(at, number),
            Action::Land(at, number) => return self.land(at, number),
            Action::Deliver(at) => return self.deliver(at),
            Action::Crash(at) => self.replicas[at].fall(),
            Action::Sleep(at) => self.replicas[at].vigour = Vigour::Asleep,
            Action::Wake(at) | Action::Join(at) => self.replicas[at].vigour = Vigour::Awake,
            Action::Trouble(at, trouble) => self.replicas[at].trouble = Some(trouble),
            Action::Drain(at) => return self.tell(at, Input::Drain { until: NOW + TICK * 4 }),
            Action::Failover { forgotten } => self.fail_over(forgotten),
        }
        Ok(())
    }

    fn spend(&mut self, action: Action) {
        let left = &mut self.left;
        let budget = match action {
            Action::Crash(_) => &mut left.crashes,
            Action::Sleep(_) => &mut left.naps,
            Action::Drain(_) => &mut left.drains,
            Action::Join(_) => &mut left.joins,
            Action::Trouble(_, Trouble::Cut) => &mut left.cuts,
            Action::Trouble(_, Trouble::Loss) => &mut left.losses,
            Action::Trouble(_, Trouble::LateRequest | Trouble::LateAnswer) => &mut left.late,
            Action::Failover { .. } => &mut left.failovers,
            Action::Tick
            | Action::Run(_)
            | Action::Hear(_)
            | Action::SessionLive(..)
            | Action::Append(..)
            | Action::Land(..)
            | Action::Deliver(_)
            | Action::Wake(_) => return,
        };
        *budget -= 1;
        self.is_calm &= matches!(action, Action::Drain(_) | Action::Join(_));
    }

    fn tick(&mut self) {
        self.store.pass(NOW + TICK, TICK);
        self.replicas.iter_mut().for_each(Replica::pass);
    }

    fn run(&mut self, at: usize) -> Result<(), String> {
        for stream in self.streams.clone() {
            if let Some((append, verdict)) = self.replicas[at].desks.get_mut(&stream).unwrap().answer.take() {
                self.answered(at, &stream, append, verdict)?;
            }
        }
        let nonce = self.nonce;
        self.replicas[at].has_run = true;
        self.replicas[at].lease.handle_timeout(Now { boot: NOW, nonce });
        self.carry_out(at)?;
        self.replicas[at].suffers(Trouble::Cut);
        Ok(())
    }

    fn tell(&mut self, at: usize, input: Input) -> Result<(), String> {
        let now = Now { boot: NOW, nonce: self.nonce };
        self.replicas[at].lease.handle(input, now);
        self.carry_out(at)
    }

    fn carry_out(&mut self, at: usize) -> Result<(), String> {
        while let Some(output) = self.replicas[at].lease.poll_output() {
            if let Some(answer) = self.perform(at, output)? {
                self.replicas[at].lease.handle(answer, Now { boot: NOW, nonce: self.nonce });
            }
        }
        Ok(())
    }

    fn perform(&mut self, at: usize, output: Output) -> Result<Option<Input>, String> {
        let is_cut = self.replicas[at].trouble == Some(Trouble::Cut);
        let replica = &mut self.replicas[at];
        match output {
            Output::Renew { .. } if is_cut => return Ok(Some(Input::Unanswered(Request::Renew))),
            Output::List if is_cut => return Ok(Some(Input::Unanswered(Request::List))),
            Output::Renew { limit } => {
                self.store.renew(replica.id, limit, NOW + LIFE);
                replica.trusted_until = NOW + LIFE.mul_f64(0.6);
                return Ok(Some(Input::Renewed { members: self.store.members() }));
            }
            Output::List => {
                replica.must_look = replica.trusted_until <= NOW;
                return Ok(Some(Input::Listed { records: self.store.records.clone() }));
            }
            Output::Change { stream, expected, record } => {
                return self.request(at, Late { stream, expected, record, outcome: None }, is_cut);
            }
            Output::Beat if replica.suffers(Trouble::Loss) => (),
            Output::Send { .. } if replica.suffers(Trouble::Loss) => (),
            Output::Beat => return self.beat(at).map(|()| None),
            Output::Send { to, note } => {
                let from = replica.id;
                if let Some(other) = self.replicas.iter_mut().find(|other| other.id == to) {
                    other.inbox.push((from, note));
                }
            }
            Output::Follow { stream } | Output::Prepare { stream } => replica.open_session(&stream),
            Output::Own { stream, fence } => {
                replica.open_session(&stream);
                replica.open_log(&stream, fence, &self.store);
            }
            Output::Release { stream } => replica.release(&stream),
            Output::StepDown | Output::Resume => (),
            Output::Leave => {
                self.store.remove(replica.id);
                replica.fall();
            }
        }
        Ok(None)
    }

    fn beat(&mut self, at: usize) -> Result<(), String> {
        let from = self.replicas[at].id;
        for other in 0..self.replicas.len() {
            if other != at && self.replicas[other].is_awake() {
                self.tell(other, Input::Beat { from })?;
            }
        }
        Ok(())
    }

    fn request(&mut self, at: usize, mut change: Late, is_cut: bool) -> Result<Option<Input>, String> {
        let answer = |stream, fence, outcome| Ok(Some(Input::Changed { stream, fence, outcome }));
        if is_cut {
            return answer(change.stream, change.record.fence, Outcome::Unknown);
        }
        if self.replicas[at].suffers(Trouble::LateRequest) {
            self.nonce += 1;
            self.replicas[at].late = Some(change);
            return Ok(None);
        }
        let outcome = self.change(at, &change)?;
        if self.replicas[at].suffers(Trouble::LateAnswer) {
            change.outcome = Some(outcome);
            self.replicas[at].late = Some(change);
            return Ok(None);
        }
        answer(change.stream, change.record.fence, outcome)
    }

    /// The store changes a record: what must hold then?
    fn change(&mut self, at: usize, change: &Late) -> Result<Outcome, String> {
        let Late { stream, expected, record, .. } = change;
        let before = self.store.records.get(stream).copied();
        self.remember();
        let outcome = self.store.change(stream, *expected, *record);
        if outcome != Outcome::Done {
            self.past.pop();
            return Ok(outcome);
        }
        // The nonce of a change that was refused is known to nobody: it is drawn again, or the model had no end.
        self.nonce += 1;
        let me = self.replicas[at].id;
        if record.holder == Some(me) {
            self.may_be_taken(before, me)?;
        } else if let Some(to) = record.holder {
            self.may_be_given(stream, to)?;
        }
        Ok(outcome)
    }

    /// Nobody takes from a holder that lives, unless something went wrong.
    fn may_be_taken(&self, before: Option<Record>, taker: ReplicaId) -> Result<(), String> {
        let holder = before.and_then(|record| record.holder).filter(|holder| *holder != taker);
        match holder.filter(|holder| self.is_calm && self.store.has_member(*holder)) {
            Some(holder) => Err(format!("{taker} takes from {holder}, who is well")),
            None => Ok(()),
        }
    }

    /// Nobody is given a stream who has no session yet.
    fn may_be_given(&self, stream: &StreamName, to: ReplicaId) -> Result<(), String> {
        let successor = self.replicas.iter().find(|replica| replica.id == to).unwrap();
        if successor.is_awake() && !successor.desks[stream].was_live && self.is_calm {
            return Err(format!("{stream} is given to {to}, whose session is not live"));
        }
        Ok(())
    }

    fn remember(&mut self) {
        if self.left.failovers > 0 {
            self.past.push(self.store.memory());
            if self.past.len() > FORGOTTEN_MAX {
                self.past.remove(0);
            }
        }
    }

    fn session_live(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let desk = self.replicas[at].desks.get_mut(&stream).unwrap();
        desk.session = Session::Live;
        desk.was_live = true;
        self.tell(at, Input::Prepared { stream, live: true })
    }

    fn append(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let replica = &mut self.replicas[at];
        if replica.must_look || replica.trusted_until <= NOW {
            return Err(format!("{} appends to {stream} and has not looked whether it may", replica.id));
        }
        let append = replica.next_append(&stream);
        replica.desks.get_mut(&stream).unwrap().under_way = append;
        Ok(())
    }

    fn land(&mut self, at: usize, number: usize) -> Result<(), String> {
        let stream = self.streams[number].clone();
        let Some(append) = self.replicas[at].desks.get_mut(&stream).unwrap().under_way.take() else { return Ok(()) };
        self.remember();
        let verdict = self.store.append(&stream, append);
        match verdict {
            Verdict::Stored => self.accept(&stream, append)?,
            Verdict::Fenced | Verdict::Displaced => drop(self.past.pop()),
        }
        match self.replicas[at].vigour {
            Vigour::Awake => self.answered(at, &stream, append, verdict),
            Vigour::Asleep => {
                self.replicas[at].desks.get_mut(&stream).unwrap().answer = Some((append, verdict));
                Ok(())
            }
            Vigour::Absent | Vigour::Gone => Ok(()),
        }
    }

    /// Something is in the log for good: what must hold then?
    fn accept(&mut self, stream: &StreamName, append: Append) -> Result<(), String> {
        let by = append.entry.by;
        let holder = self.store.records.get(stream).and_then(|record| record.holder);
        if holder != Some(by) {
            return Err(format!("{by} has appended to {stream}, which {holder:?} holds"));
        }
        let place = (stream.clone(), append.epoch, append.offset);
        match self.accepted.insert(place, append.entry) {
            Some(other) if other != append.entry => Err(format!("{stream} has two entries {}", append.offset)),
            Some(_) | None => self.keeps_what_it_accepted(stream),
        }
    }

    /// Nothing that was accepted in this epoch is gone, and the position is that of the newest entry.
    fn keeps_what_it_accepted(&self, stream: &StreamName) -> Result<(), String> {
        let log = &self.store.logs[stream];
        let kept = |((of, epoch, offset), entry): (&(StreamName, u8, usize), &Entry)| {
            of != stream || *epoch != log.epoch || log.entries.get(offset - 1) == Some(entry)
        };
        if log.position == log.entries.len() && self.accepted.iter().all(kept) {
            Ok(())
        } else {
            Err(format!("{stream} has lost an entry"))
        }
    }

    fn answered(&mut self, at: usize, stream: &StreamName, append: Append, verdict: Verdict) -> Result<(), String> {
        let fence = append.entry.fence;
        let Some(mut open) = self.replicas[at].desks[stream].open.filter(|open| open.fence == fence) else {
            return Ok(());
        };
        match verdict {
            Verdict::Stored => {
                open.last = append.offset;
                self.replicas[at].desks.get_mut(stream).unwrap().open = Some(open);
                Ok(())
            }
            Verdict::Displaced => {
                self.replicas[at].open_log(stream, fence, &self.store);
                Ok(())
            }
            Verdict::Fenced => self.tell(at, Input::Fenced { stream: stream.clone(), fence }),
        }
    }

    fn deliver(&mut self, at: usize) -> Result<(), String> {
        let Some(mut late) = self.replicas[at].late.take() else { return Ok(()) };
        let outcome = match late.outcome {
            Some(outcome) => outcome,
            None => self.change(at, &late)?,
        };
        late.outcome = Some(outcome);
        match self.replicas[at].vigour {
            Vigour::Awake => self.tell(at, Input::Changed { stream: late.stream, fence: late.record.fence, outcome }),
            Vigour::Asleep => {
                self.replicas[at].late = Some(late);
                Ok(())
            }
            Vigour::Absent | Vigour::Gone => Ok(()),
        }
    }

    fn fail_over(&mut self, forgotten: usize) {
        let past = self.past.swap_remove(self.past.len() - forgotten);
        self.past.clear();
        self.accepted.clear();
        self.store = self.store.rolled_back_to(past);
    }

    /// Every stream has a holder that knows it, unless nobody is left to hold one.
    fn is_well(&self) -> bool {
        let held = |stream: &StreamName| {
            let record = self.store.records.get(stream);
            self.replicas.iter().any(|replica| {
                let right = replica.lease.right(stream, NOW).filter(|_| replica.is_awake());
                let known = record.filter(|record| record.holder == Some(replica.id)).map(|record| record.fence);
                right.is_some() && right == known
            })
        };
        self.streams.iter().all(held) || self.replicas.iter().all(|replica| replica.vigour == Vigour::Gone)
    }
}
