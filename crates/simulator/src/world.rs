//! A simulated contact centre that produces one event at a time. The same seed gives the same scenario: event `k`
//! always has the same content. It uses no sockets, tokens or clocks; its time is
//! `base + k * step`.

mod model;
mod roster;
mod scenario;
mod shapes;
mod view;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use model::ScenarioEvent;
pub(super) use roster::{ORGANIZATION, Queue, Roster, uuid};
use scenario::ScenarioEngine;
pub(super) use view::WorldView;

/// Settings of a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorldSettings {
    pub(super) seed: u64,
    pub(super) agents: usize,
    pub(super) queues: usize,
    /// The moment before the first event.
    pub(super) base: OffsetDateTime,
    /// Scenario time between two events.
    pub(super) step: Duration,
}

/// One event of the platform.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlatformEvent {
    /// The full topic, with its ids.
    pub(super) topic: String,
    /// The topic without its ids.
    pub(super) kind: &'static str,
    pub(super) at: OffsetDateTime,
    pub(super) body: Value,
    pub(super) correlation: String,
}

#[derive(Debug)]
pub(super) struct ContactCentre {
    origin: WorldSettings,
    emitted: u64,
    scenario: ScenarioEngine,
    /// Events of the last step that were not emitted yet.
    pending: VecDeque<ScenarioEvent>,
    view: WorldView,
}

impl ContactCentre {
    pub(super) fn new(origin: WorldSettings) -> Self {
        let scenario = ScenarioEngine::start(
            origin.seed,
            Roster::generate(origin.seed, origin.agents, origin.queues),
            origin.base,
        );
        let view = WorldView::initial(&scenario);
        Self { origin, emitted: 0, scenario, pending: VecDeque::new(), view }
    }

    /// Produces the next event. The view changes with it, so a snapshot matches exactly the events so far.
    pub(super) fn next_event(&mut self) -> PlatformEvent {
        self.emitted += 1;
        let at = self.time_of(self.emitted);
        let scenario_event = self.next_scenario_event(at);
        self.view.apply(&scenario_event);
        let formatted = shapes::format_event(&scenario_event, self.scenario.roster(), at);
        PlatformEvent {
            topic: formatted.topic,
            kind: formatted.kind,
            at,
            body: formatted.body,
            correlation: self.correlation(),
        }
    }

    pub(super) fn view(&self) -> &WorldView {
        &self.view
    }

    pub(super) fn roster(&self) -> &Roster {
        self.scenario.roster()
    }

    /// Scenario time: the time of the last event.
    pub(super) fn scenario_time(&self) -> OffsetDateTime {
        self.time_of(self.emitted)
    }

    fn next_scenario_event(&mut self, at: OffsetDateTime) -> ScenarioEvent {
        while self.pending.is_empty() {
            self.scenario.step(at, &mut self.pending);
        }
        self.pending.pop_front().expect("the loop above ends with something pending")
    }

    fn time_of(&self, number: u64) -> OffsetDateTime {
        let nanos = self.origin.step.as_nanos().saturating_mul(u128::from(number));
        let seconds = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
        let rest = i32::try_from(nanos % 1_000_000_000).expect("a remainder of a thousand million fits");
        self.origin.base.saturating_add(time::Duration::new(seconds, rest))
    }

    fn correlation(&self) -> String {
        let mixed = self.origin.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.emitted;
        uuid(&mut fastrand::Rng::with_seed(mixed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let (mut one, mut other) = (ContactCentre::new(origin(7)), ContactCentre::new(origin(7)));
        for _ in 0..2_000 {
            assert_eq!(one.next_event(), other.next_event());
        }
    }

    #[test]
    fn another_seed_gives_other_events() {
        let (mut one, mut other) = (ContactCentre::new(origin(7)), ContactCentre::new(origin(8)));
        assert_ne!(one.next_event(), other.next_event());
    }

    #[test]
    fn every_kind_of_event_is_emitted_with_a_unique_correlation_id() {
        let mut world = ContactCentre::new(origin(1));
        let mut kinds = HashMap::<&str, u32>::new();
        let mut correlations = std::collections::HashSet::new();
        for _ in 0..5_000 {
            let event = world.next_event();
            *kinds.entry(event.kind).or_default() += 1;
            assert!(correlations.insert(event.correlation));
        }
        for kind in shapes::KINDS {
            assert!(kinds.contains_key(kind), "{kind} is never emitted");
        }
    }

    #[test]
    fn events_have_realistic_sizes() {
        let mut world = ContactCentre::new(origin(3));
        let sizes: Vec<usize> = (0..2_000).map(|_| world.next_event().body.to_string().len()).collect();
        assert!(sizes.iter().all(|size| (80..4_096).contains(size)), "{:?}", sizes.iter().max());
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((250..1_500).contains(&mean), "mean {mean}");
    }

    #[test]
    fn time_increases_monotonically() {
        let mut world = ContactCentre::new(origin(3));
        let mut last = world.scenario_time();
        for _ in 0..100 {
            let at = world.next_event().at;
            assert_eq!(at - last, time::Duration::milliseconds(50));
            last = at;
        }
    }

    #[test]
    fn the_view_equals_the_sum_of_the_events() {
        let mut world = ContactCentre::new(origin(5));
        let mut statuses = HashMap::new();
        let mut waiting = HashMap::new();
        for _ in 0..5_000 {
            let event = world.next_event();
            if event.kind == "v2.users.routingStatus" {
                statuses.insert(event.body["id"].clone(), event.body["routingStatus"]["status"].clone());
            }
            if event.kind == "v2.analytics.queues.observations" {
                let metrics = &event.body["data"][0]["metrics"];
                waiting.insert(event.body["group"]["queueId"].clone(), metrics[0]["stats"]["count"].clone());
            }
        }
        let users = world.view().users(world.roster());
        assert!(statuses.len() > 5 && waiting.len() > 1);
        for user in users {
            if let Some(status) = statuses.get(&user["id"]) {
                assert_eq!(status, &user["routingStatus"]["status"]);
            }
        }
        for (queue, count) in waiting {
            let queue = world.roster().queue(queue.as_str().unwrap()).unwrap();
            let observation = world.view().observation(world.roster(), queue, false);
            assert_eq!(count, observation["data"][0]["stats"]["count"]);
        }
    }

    fn origin(seed: u64) -> WorldSettings {
        let base = datetime!(2026-05-04 12:00 UTC);
        WorldSettings { seed, agents: 12, queues: 3, base, step: Duration::from_millis(50) }
    }
}
