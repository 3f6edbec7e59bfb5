//! Which replica runs which stream: when it renews its membership, takes a stream, follows its holder, hands it over,
//! and when it must not trust itself any more.
//!
//! Safety never rests on what this machine believes: each append presents its fence, and the store compares it. The
//! machine sees to the rest: that every stream has a holder soon, that a planned change lets no session end before its
//! successor is live, and that a replica which slept looks before it writes.

mod membership;
mod messages;
mod placing;
mod plan;
mod seat;
#[cfg(test)]
mod tests;

pub use self::messages::{Input, Member, Note, Outcome, Output, Record, Request};

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use self::{
    membership::Membership,
    seat::{Role, Seat, Seen},
};
use crate::model::{Fence, ReplicaId, StreamName};

/// The part of a membership's life between two renewals.
const RENEWAL: f64 = 0.2;

/// The part of a membership's life, from the sending of a renewal, in which a replica trusts itself.
const TRUST: f64 = 0.6;

/// Streams that one replica is handing over at the same time; the others wait until one of these has gone.
const HANDOVERS_MAX: usize = 8;

/// A stream that has been vacant for so many lives is taken by anybody with room: whoever should have does not know it.
const PATIENCE: u32 = 2;

/// Time since the machine was started, counted on while it sleeps.
pub type Boot = Duration;

/// The moment of an input, and the random number of a new fence.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub boot: Boot,
    pub nonce: u128,
}

/// What a replica is configured with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    pub me: ReplicaId,
    pub streams: Vec<StreamName>,
    /// How many streams it takes at most.
    pub limit: usize,
    /// Streams for which some other replica than the holder keeps a session ready.
    pub standby: BTreeSet<StreamName>,
    /// How long a membership lasts that is not renewed.
    pub life: Duration,
    /// Between two beats of a holder.
    pub beat: Duration,
    /// A holder that was not heard for so long is taken for dead by its standby.
    pub silence: Duration,
    /// How long a successor may take to open its session.
    pub handover: Duration,
    /// No stream is taken so long after the start: replicas that start together find one another first.
    pub jitter: Duration,
}

/// The machine of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    settings: Settings,
    membership: Membership,
    members: Vec<Member>,
    seats: BTreeMap<StreamName, Seat>,
    /// When each member was heard last.
    heard: BTreeMap<ReplicaId, Boot>,
    look: Option<Look>,
    look_at: Boot,
    beat_at: Boot,
    /// When it may take streams that it was not given. None: not before it is sure again.
    takes_from: Option<Boot>,
    stay: Stay,
    outputs: VecDeque<Output>,
}

/// A look at the records that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Look {
    /// When the renewal was sent that the store had answered before the look was asked for.
    proved_at: Option<Boot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stay {
    Staying,
    Draining {
        until: Boot,
    },
    /// The time to hand over has passed.
    GivingUp,
    Left,
}

impl Lease {
    /// The first renewal is due at once.
    pub fn new(settings: Settings, now: Boot) -> Self {
        Self {
            membership: Membership::new(&settings, now),
            members: Vec::new(),
            seats: settings.streams.iter().map(|stream| (stream.clone(), Seat::default())).collect(),
            heard: BTreeMap::new(),
            look: None,
            look_at: now + settings.life,
            beat_at: now,
            takes_from: Some(now + settings.jitter),
            stay: Stay::Staying,
            outputs: VecDeque::new(),
            settings,
        }
    }

    pub fn handle(&mut self, input: Input, now: Now) {
        self.watch(now.boot);
        match input {
            Input::Renewed { members } => self.renewed(members, now),
            Input::Listed { records } => self.listed(&records, now.boot),
            Input::Changed { stream, fence, outcome } => self.changed(&stream, fence, outcome, now.boot),
            Input::Unanswered(Request::Renew) => self.membership.unanswered(),
            Input::Unanswered(Request::List) => self.unlisted(now.boot),
            Input::Beat { from } => self.hear_beat(from, now.boot),
            Input::Heard { from, note } => self.hear(from, note, now),
            Input::Prepared { stream, live } => self.prepared(&stream, live),
            Input::Fenced { stream, fence } => self.fenced(&stream, fence, now.boot),
            Input::Drain { until } => self.drain(until, now.boot),
        }
        self.tend(now);
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.watch(now.boot);
        self.tend(now);
    }

    pub fn poll_timeout(&self) -> Option<Boot> {
        if self.stay == Stay::Left {
            return None;
        }
        let look = self.look.is_none().then_some(self.look_at).filter(|_| self.membership.is_sure());
        let beat = self.beats().then_some(self.beat_at);
        let drain = match self.stay {
            Stay::Draining { until } => Some(until),
            Stay::Staying | Stay::GivingUp | Stay::Left => None,
        };
        let waits = self.seats.values().filter_map(Seat::wait).map(|(_, until)| until);
        let followed = self.seats.values().filter_map(|seat| self.suspicion(seat)).map(Suspicion::at);
        self.membership.deadlines().chain(look).chain(beat).chain(drain).chain(waits).chain(followed).min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The fence to append with at this very moment. To be asked right before each append: a process that was asleep
    /// learns here that it may not.
    pub fn right(&self, stream: &StreamName, now: Boot) -> Option<Fence> {
        self.seats.get(stream)?.fence().filter(|_| self.membership.may_append(now))
    }

    /// Who has the stream, as far as this replica knows.
    pub fn holder(&self, stream: &StreamName) -> Option<ReplicaId> {
        let seat = self.seats.get(stream)?;
        if seat.fence().is_some() { Some(self.settings.me) } else { seat.holder() }
    }

    /// Stops trusting itself when the time has come, before anything else is considered.
    fn watch(&mut self, now: Boot) {
        if self.membership.has_lapsed(now) {
            self.membership.doubt(now);
            self.takes_from = None;
            self.outputs.push_back(Output::StepDown);
        }
    }

    fn tend(&mut self, now: Now) {
        if self.stay == Stay::Left {
            return;
        }
        self.end_waits(now.boot);
        self.suspect(now);
        self.leave_when_done(now);
        if self.membership.is_due(now.boot) {
            self.membership.sent(now.boot);
            self.outputs.push_back(Output::Renew { limit: self.limit() });
        }
        if self.membership.is_sure() && self.look.is_none() && self.look_at <= now.boot {
            self.look(now.boot);
        }
        if self.beats() && self.beat_at <= now.boot {
            self.beat_at = now.boot + self.settings.beat;
            self.outputs.push_back(Output::Beat);
        }
    }

    fn look(&mut self, now: Boot) {
        self.look = Some(Look { proved_at: self.membership.proved_at() });
        self.look_at = now + self.settings.life;
        self.outputs.push_back(Output::List);
    }

    /// What was believed of a record is wrong. A look at once could become a race with whoever changes it.
    fn look_soon(&mut self, now: Boot) {
        self.look_at = self.look_at.min(now + self.settings.beat);
    }

    fn renewed(&mut self, mut members: Vec<Member>, now: Now) {
        let Some(sent) = self.membership.renewed() else { return };
        for member in members.iter_mut().filter(|member| member.replica == self.settings.me) {
            member.limit = self.limit();
        }
        members.sort_unstable_by_key(|member| member.replica);
        if members != self.members {
            self.look_at = now.boot;
        }
        self.heard.retain(|replica, _| members.iter().any(|member| member.replica == *replica));
        self.members = members;
        if self.membership.is_sure() {
            self.place(sent, now);
        } else if self.look.is_none() {
            self.look(now.boot);
        }
    }

    fn listed(&mut self, records: &BTreeMap<StreamName, Record>, now: Boot) {
        let Some(look) = self.look.take() else { return };
        for stream in &self.settings.streams.clone() {
            if self.seats.get_mut(stream).is_some_and(Seat::heeds_look) {
                self.settle(stream, records.get(stream).copied(), now);
            }
        }
        if self.membership.looked(look.proved_at, now) {
            // Whatever cut this replica off may have cut off the holders: they have a life to come back in, and what
            // they kept meanwhile is worth more than a session that begins anew.
            self.takes_from.get_or_insert(now + self.settings.life);
            self.outputs.push_back(Output::Resume);
        }
    }

    fn unlisted(&mut self, now: Boot) {
        self.look = None;
        self.look_at = self.look_at.min(now + self.settings.life.mul_f64(RENEWAL));
    }

    fn changed(&mut self, stream: &StreamName, fence: Fence, outcome: Outcome, now: Boot) {
        let Some(seat) = self.seats.get_mut(stream) else { return };
        let Some(record) = seat.asked_for.take_if(|record| record.fence == fence) else { return };
        seat.outruns_look = self.look.is_some();
        match outcome {
            Outcome::Done => {
                self.settle(stream, Some(record), now);
                if let Some(to) = record.holder.filter(|holder| *holder != self.settings.me) {
                    self.outputs.push_back(Output::Send { to, note: Note::Given { stream: stream.clone(), fence } });
                }
            }
            Outcome::Refused | Outcome::Unknown => {
                seat.seen = None;
                self.look_soon(now);
            }
        }
    }

    /// The record is known to be this: what does that make of us?
    fn settle(&mut self, stream: &StreamName, record: Option<Record>, now: Boot) {
        let Some(seat) = self.seats.get_mut(stream) else { return };
        seat.seen = Some(Seen { record, at: now });
        let mine = record.filter(|record| record.holder == Some(self.settings.me)).map(|record| record.fence);
        match (seat.fence(), mine) {
            (None, None) => (),
            (Some(believed), Some(fence)) if believed == fence => (),
            (_, Some(fence)) => {
                seat.role = Role::Owning { fence };
                self.outputs.push_back(Output::Own { stream: stream.clone(), fence });
            }
            (Some(_), None) => self.release(stream),
        }
    }

    fn release(&mut self, stream: &StreamName) {
        if let Some(seat) = self.seats.get_mut(stream) {
            seat.role = Role::Apart;
            self.outputs.push_back(Output::Release { stream: stream.clone() });
        }
    }

    fn fenced(&mut self, stream: &StreamName, fence: Fence, now: Boot) {
        let Some(seat) = self.seats.get_mut(stream).filter(|seat| seat.fence() == Some(fence)) else { return };
        seat.seen = None;
        seat.outruns_look = self.look.is_some();
        self.look_soon(now);
        self.release(stream);
    }

    fn hear_beat(&mut self, from: ReplicaId, now: Boot) {
        if self.members.iter().any(|member| member.replica == from) {
            self.heard.insert(from, now);
        }
    }

    fn hear(&mut self, from: ReplicaId, note: Note, now: Now) {
        match note {
            Note::Ask { stream } => self.asked(from, &stream, now.boot),
            Note::Ready { stream } => self.give(from, &stream, now),
            Note::Given { stream, fence } => self.given(from, &stream, fence, now.boot),
        }
    }

    /// Whether there is something that a standby should know to be alive.
    fn beats(&self) -> bool {
        let followed = |stream: &StreamName| self.seats.get(stream).is_some_and(|seat| seat.fence().is_some());
        self.membership.is_sure() && self.settings.standby.iter().any(followed)
    }

    fn limit(&self) -> usize {
        match self.stay {
            Stay::Staying => self.settings.limit,
            Stay::Draining { .. } | Stay::GivingUp | Stay::Left => 0,
        }
    }

    /// Streams that are held, or will be if the store agrees.
    fn held_len(&self) -> usize {
        let me = Some(self.settings.me);
        let held = |seat: &&Seat| seat.fence().is_some() || seat.asked_for.is_some_and(|record| record.holder == me);
        self.seats.values().filter(held).count()
    }

    fn has_room(&self) -> bool {
        self.held_len() < self.limit()
    }
}

/// What a standby thinks of the holder it follows.
#[derive(Debug, Clone, Copy)]
enum Suspicion {
    /// Half of the silence has passed then: is it our own line that is dead?
    Doubt(Boot),
    /// The store answered since: it is not. The holder counts as dead then.
    Death(Boot),
}

impl Suspicion {
    fn at(self) -> Boot {
        match self {
            Self::Doubt(at) | Self::Death(at) => at,
        }
    }
}

/// Counts these moments from a later zero; what lies before it is at zero.
fn rebase<'a>(moments: impl IntoIterator<Item = &'a mut Boot>, by: Duration) {
    for moment in moments {
        *moment = moment.saturating_sub(by);
    }
}
