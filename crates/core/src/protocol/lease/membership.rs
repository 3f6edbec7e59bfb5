//! Whether this replica may trust what it believes: its membership is renewed again and again, and its right to append
//! ends by its own clock well before the store would notice.

use std::{mem, time::Duration};

use super::{Boot, Settings};

/// The machine of a membership.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Membership {
    /// So long after the sending of a renewal it is still trusted.
    trust: Duration,
    every: Duration,
    every_in_doubt: Duration,
    standing: Standing,
    /// When the newest renewal was sent; none before the first.
    sent_at: Option<Boot>,
    is_under_way: bool,
    /// When the newest renewal was sent that the store answered.
    proved_at: Option<Boot>,
    due_at: Boot,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Standing {
    /// What is believed of the records holds, or the store's fence says otherwise.
    Sure { since: Boot, until: Boot },
    /// Nothing is appended before the records were looked at again.
    Doubting,
}

impl Membership {
    pub(super) fn new(settings: &Settings, now: Boot) -> Self {
        Self {
            trust: settings.life.mul_f64(super::TRUST),
            every: settings.life.mul_f64(super::RENEWAL),
            every_in_doubt: settings.beat,
            standing: Standing::Doubting,
            sent_at: None,
            is_under_way: false,
            proved_at: None,
            due_at: now,
        }
    }

    /// Whether the next renewal should be sent.
    pub(super) fn is_due(&self, now: Boot) -> bool {
        !self.is_under_way && self.due_at <= now
    }

    pub(super) fn sent(&mut self, now: Boot) {
        let every = if self.is_sure() { self.every } else { self.every_in_doubt };
        self.sent_at = Some(now);
        self.is_under_way = true;
        self.due_at = now + every;
    }

    /// The next renewal is wanted at once.
    pub(super) fn hasten(&mut self, now: Boot) {
        self.due_at = self.due_at.min(now);
    }

    /// The store answered the renewal; returns when that was sent.
    pub(super) fn renewed(&mut self) -> Option<Boot> {
        let sent = self.sent_at.filter(|_| mem::take(&mut self.is_under_way))?;
        self.proved_at = Some(sent);
        if let Standing::Sure { until, .. } = &mut self.standing {
            *until = sent + self.trust;
        }
        Some(sent)
    }

    pub(super) fn unanswered(&mut self) {
        self.is_under_way = false;
    }

    pub(super) fn is_sure(&self) -> bool {
        match self.standing {
            Standing::Sure { .. } => true,
            Standing::Doubting => false,
        }
    }

    pub(super) fn sure_since(&self) -> Option<Boot> {
        match self.standing {
            Standing::Sure { since, .. } => Some(since),
            Standing::Doubting => None,
        }
    }

    /// Whether something may be appended at this very moment, whatever timer has not fired yet.
    pub(super) fn may_append(&self, now: Boot) -> bool {
        match self.standing {
            Standing::Sure { until, .. } => now < until,
            Standing::Doubting => false,
        }
    }

    /// When the newest renewal was sent that the store answered.
    pub(super) fn proved_at(&self) -> Option<Boot> {
        self.proved_at
    }

    /// When the newest renewal was sent, answered or not.
    pub(super) fn sent_at(&self) -> Option<Boot> {
        self.sent_at
    }

    /// Whether the trust has ended and nobody was told.
    pub(super) fn has_lapsed(&self, now: Boot) -> bool {
        self.is_sure() && !self.may_append(now)
    }

    pub(super) fn doubt(&mut self, now: Boot) {
        self.standing = Standing::Doubting;
        self.hasten(now);
    }

    /// The records were looked at after a renewal that was sent at `proved`. True if there was a doubt that this ends.
    pub(super) fn looked(&mut self, proved: Option<Boot>, now: Boot) -> bool {
        let Some(until) = proved.map(|sent| sent + self.trust).filter(|until| !self.is_sure() && now < *until) else {
            return false;
        };
        self.standing = Standing::Sure { since: now, until };
        true
    }

    /// When the next renewal is due, and when the trust ends.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Boot> {
        let due = (!self.is_under_way).then_some(self.due_at);
        let until = match self.standing {
            Standing::Sure { until, .. } => Some(until),
            Standing::Doubting => None,
        };
        due.into_iter().chain(until)
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        super::rebase(self.sent_at.iter_mut().chain(&mut self.proved_at).chain([&mut self.due_at]), by);
        match &mut self.standing {
            Standing::Sure { since, until } => super::rebase([since, until], by),
            Standing::Doubting => (),
        }
    }
}
