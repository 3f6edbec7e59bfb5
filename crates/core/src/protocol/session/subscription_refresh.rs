//! The refresh of a live session's subscriptions, which platforms limit in time.

use std::time::{Duration, Instant};

use crate::connector::{Connector, Endpoint, Preparation, PreparationStep};

/// The REST calls of a refresh in flight, and when the next one begins.
#[derive(Debug)]
pub(super) struct SubscriptionRefresh {
    /// None if subscriptions do not expire.
    interval: Option<Duration>,
    due_at: Option<Instant>,
    in_flight: Option<Preparation>,
}

impl SubscriptionRefresh {
    /// The first refresh is due after the pause that the endpoint states, else after `interval`.
    pub(super) fn new(interval: Option<Duration>, endpoint: Option<&Endpoint>, now: Instant) -> Self {
        let pause = endpoint.and_then(|endpoint| endpoint.refresh_in);
        Self { interval, due_at: interval.map(|interval| now + pause.unwrap_or(interval)), in_flight: None }
    }

    /// When the next refresh is due; none while one is in flight.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due_at.filter(|_| self.in_flight.is_none())
    }

    pub(super) fn in_flight(&mut self) -> Option<&mut Preparation> {
        self.in_flight.as_mut()
    }

    pub(super) fn start(&mut self, connector: &Connector, endpoint: &Endpoint, now: Instant) -> PreparationStep {
        self.due_at = self.interval.map(|interval| now + interval);
        let (preparation, step) = connector.refresh_subscriptions(endpoint);
        self.in_flight = Some(preparation);
        step
    }

    /// Records the step that follows an answer. A failed refresh does not affect the live session. The next refresh
    /// tries again.
    pub(super) fn record(&mut self, step: &PreparationStep, now: Instant) {
        match step {
            PreparationStep::Call(_) => (),
            PreparationStep::Failed(_) => self.in_flight = None,
            PreparationStep::Ready(endpoint) => {
                self.in_flight = None;
                self.due_at = endpoint.refresh_in.map(|pause| now + pause).or(self.due_at);
            }
        }
    }
}
