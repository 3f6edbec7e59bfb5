//! The membership of this replica: when it is renewed, and until when this replica may append. The right to append ends
//! by the local clock before the membership expires in the store.

use std::{mem, time::Duration};

use super::{
    boot_time::{self, BootTime},
    settings::Settings,
};

/// A membership is renewed after this part of its lifetime.
pub(super) const RENEWAL_PART: f64 = 0.2;

/// A membership counts as valid for this part of its lifetime, from the sending of a renewal.
const VALID_PART: f64 = 0.6;

/// The machine of a membership.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Membership {
    /// The membership is valid for this time after the sending of a renewal.
    valid_for: Duration,
    renewal_interval: Duration,
    recovery_interval: Duration,
    validity: Validity,
    /// When the newest renewal was sent; none before the first.
    sent_at: Option<BootTime>,
    is_in_flight: bool,
    /// When the newest renewal was sent that the store answered.
    confirmed_at: Option<BootTime>,
    due_at: BootTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Validity {
    /// The known records are valid. The store's fence check covers the rest.
    Valid { since: BootTime, until: BootTime },
    /// Nothing is appended until the records are read again.
    Invalid,
}

impl Membership {
    pub(super) fn new(settings: &Settings, now: BootTime) -> Self {
        Self {
            valid_for: settings.lease_ttl.mul_f64(VALID_PART),
            renewal_interval: settings.lease_ttl.mul_f64(RENEWAL_PART),
            recovery_interval: settings.heartbeat_interval,
            validity: Validity::Invalid,
            sent_at: None,
            is_in_flight: false,
            confirmed_at: None,
            due_at: now,
        }
    }

    /// Whether the next renewal should be sent.
    pub(super) fn is_due(&self, now: BootTime) -> bool {
        !self.is_in_flight && self.due_at <= now
    }

    pub(super) fn on_renewal_sent(&mut self, now: BootTime) {
        let every = if self.is_valid() { self.renewal_interval } else { self.recovery_interval };
        self.sent_at = Some(now);
        self.is_in_flight = true;
        self.due_at = now + every;
    }

    /// Sends the next renewal at once.
    pub(super) fn renew_now(&mut self, now: BootTime) {
        self.due_at = self.due_at.min(now);
    }

    /// The store answered the renewal. Returns when that was sent.
    pub(super) fn on_renewed(&mut self) -> Option<BootTime> {
        let sent = self.sent_at.filter(|_| mem::take(&mut self.is_in_flight))?;
        self.confirmed_at = Some(sent);
        if let Validity::Valid { until, .. } = &mut self.validity {
            *until = sent + self.valid_for;
        }
        Some(sent)
    }

    pub(super) fn on_renewal_failed(&mut self) {
        self.is_in_flight = false;
    }

    pub(super) fn is_valid(&self) -> bool {
        match self.validity {
            Validity::Valid { .. } => true,
            Validity::Invalid => false,
        }
    }

    pub(super) fn valid_since(&self) -> Option<BootTime> {
        match self.validity {
            Validity::Valid { since, .. } => Some(since),
            Validity::Invalid => None,
        }
    }

    /// Whether this replica may append now, independent of pending timers.
    pub(super) fn may_append(&self, now: BootTime) -> bool {
        match self.validity {
            Validity::Valid { until, .. } => now < until,
            Validity::Invalid => false,
        }
    }

    /// When the newest renewal was sent that the store answered.
    pub(super) fn confirmed_at(&self) -> Option<BootTime> {
        self.confirmed_at
    }

    /// When the newest renewal was sent, answered or not.
    pub(super) fn sent_at(&self) -> Option<BootTime> {
        self.sent_at
    }

    /// Whether the validity has ended and this is not reported yet.
    pub(super) fn has_expired(&self, now: BootTime) -> bool {
        self.is_valid() && !self.may_append(now)
    }

    pub(super) fn invalidate(&mut self, now: BootTime) {
        self.validity = Validity::Invalid;
        self.renew_now(now);
    }

    /// The records were read after the renewal that was sent at `proved`. Returns whether this makes the membership
    /// valid again.
    pub(super) fn on_records_read(&mut self, proved: Option<BootTime>, now: BootTime) -> bool {
        let Some(until) = proved.map(|sent| sent + self.valid_for).filter(|until| !self.is_valid() && now < *until)
        else {
            return false;
        };
        self.validity = Validity::Valid { since: now, until };
        true
    }

    /// When the next renewal is due, and when the validity ends.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = BootTime> {
        let due = (!self.is_in_flight).then_some(self.due_at);
        let until = match self.validity {
            Validity::Valid { until, .. } => Some(until),
            Validity::Invalid => None,
        };
        due.into_iter().chain(until)
    }

    pub(super) fn rebase(&mut self, by: Duration) {
        boot_time::rebase(self.sent_at.iter_mut().chain(&mut self.confirmed_at).chain([&mut self.due_at]), by);
        match &mut self.validity {
            Validity::Valid { since, until } => boot_time::rebase([since, until], by),
            Validity::Invalid => (),
        }
    }
}
