//! A replica of the model: the machine that is checked, and a simple shell around it.

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    model::{Fence, ReplicaId, StreamName},
    protocol::lease::{Boot, Lease, Note, Outcome, Record, Settings},
};

use super::store::{Append, Store, Verdict};

/// Time passes in these steps: a fifth of a membership's life.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The moment it always is: clocks are set back with each tick, so that moments that look alike are alike. No
/// rule looks further back than this.
pub(super) const NOW: Boot = Duration::from_secs(3);

/// How long a membership lasts.
pub(super) const LIFE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) lease: Lease,
    pub(super) vigour: Vigour,
    /// Its timers have fired in this tick.
    pub(super) has_run: bool,
    /// What goes wrong next time.
    pub(super) trouble: Option<Trouble>,
    pub(super) inbox: Vec<(ReplicaId, Note)>,
    pub(super) late: Option<Late>,
    pub(super) desks: BTreeMap<StreamName, Desk>,
    /// Its renewals protect it up to then, as the store sees it.
    pub(super) trusted_until: Boot,
    /// It was without protection, and has not looked at the records since.
    pub(super) must_look: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Vigour {
    /// Not started yet.
    Absent,
    Awake,
    Asleep,
    Gone,
}

/// Something that goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// The store is not reached while this replica runs its timers.
    Cut,
    /// The next change reaches the store late.
    LateRequest,
    /// The answer to the next change comes late.
    LateAnswer,
    /// The next note or beat is lost.
    Loss,
}

/// A change that is on its way longer than others, or its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Late {
    pub(super) stream: StreamName,
    pub(super) expected: Option<Fence>,
    pub(super) record: Record,
    pub(super) outcome: Option<Outcome>,
}

/// What a replica does for one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Desk {
    pub(super) session: Session,
    /// A session was live since the record last moved.
    pub(super) was_live: bool,
    pub(super) open: Option<Open>,
    pub(super) under_way: Option<Append>,
    pub(super) answer: Option<(Append, Verdict)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Session {
    #[default]
    None,
    Opening,
    Live,
}

/// The log as its holder found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Open {
    pub(super) fence: Fence,
    pub(super) epoch: u8,
    pub(super) last: usize,
}

impl Replica {
    pub(super) fn new(id: ReplicaId, streams: &[StreamName], vigour: Vigour) -> Self {
        let settings = Settings {
            me: id,
            streams: streams.to_vec(),
            limit: 9,
            standby: streams.iter().cloned().collect(),
            life: LIFE,
            beat: TICK,
            silence: TICK * 2,
            handover: TICK * 3,
            jitter: Duration::ZERO,
        };
        Self {
            id,
            lease: Lease::new(settings, NOW),
            vigour,
            has_run: false,
            trouble: None,
            inbox: Vec::new(),
            late: None,
            desks: streams.iter().map(|stream| (stream.clone(), Desk::default())).collect(),
            trusted_until: Duration::ZERO,
            must_look: true,
        }
    }

    pub(super) fn is_awake(&self) -> bool {
        self.vigour == Vigour::Awake
    }

    /// Whether the trouble is this one; it happens once.
    pub(super) fn suffers(&mut self, trouble: Trouble) -> bool {
        self.trouble.take_if(|found| *found == trouble).is_some()
    }

    pub(super) fn open_session(&mut self, stream: &StreamName) {
        let desk = self.desks.get_mut(stream).unwrap();
        if desk.session == Session::None {
            desk.session = Session::Opening;
        }
    }

    /// Reads the log that it has become the writer of.
    pub(super) fn open_log(&mut self, stream: &StreamName, fence: Fence, store: &Store) {
        let (epoch, last) = store.logs.get(stream).map_or((0, 0), |log| (log.epoch, log.entries.len()));
        self.desks.get_mut(stream).unwrap().open = Some(Open { fence, epoch, last });
    }

    pub(super) fn release(&mut self, stream: &StreamName) {
        let desk = self.desks.get_mut(stream).unwrap();
        let under_way = desk.under_way.take();
        *desk = Desk { under_way, ..Desk::default() };
    }

    /// Forgets everything but what is on its way.
    pub(super) fn fall(&mut self) {
        let streams: Vec<_> = self.desks.keys().cloned().collect();
        let fallen = Self::new(self.id, &streams, Vigour::Gone);
        let Self { late, desks, .. } = std::mem::replace(self, fallen);
        self.late = late.filter(|late| late.outcome.is_none());
        for (stream, desk) in desks {
            self.desks.insert(stream, Desk { under_way: desk.under_way, ..Desk::default() });
        }
    }

    /// The append that the machine allows right now.
    pub(super) fn next_append(&self, stream: &StreamName) -> Option<Append> {
        let desk = &self.desks[stream];
        let open = desk.open.filter(|_| desk.under_way.is_none() && desk.answer.is_none())?;
        let fence = self.lease.right(stream, NOW).filter(|fence| *fence == open.fence)?;
        let entry = super::store::Entry { by: self.id, fence };
        Some(Append { entry, epoch: open.epoch, offset: open.last + 1 })
    }

    /// Lets a tick pass.
    pub(super) fn pass(&mut self) {
        if self.vigour == Vigour::Gone || self.vigour == Vigour::Absent {
            return;
        }
        self.has_run = false;
        self.lease.rebase(TICK);
        self.trusted_until = self.trusted_until.saturating_sub(TICK);
        self.must_look |= self.trusted_until <= NOW;
    }
}
