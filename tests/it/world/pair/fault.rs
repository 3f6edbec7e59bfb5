//! Faults and planned changes of a pair of replicas.

use std::time::Duration;

use trunkline::protocol::{
    refresh,
    stream::{Input, OverflowPolicy, Rotation},
};

use super::{HandoverPhase, PairWorld};
use crate::world::{
    fault::WorldFault,
    plan::{ConnectorKind, FaultProfile, WorldPlan},
    process::ModelProcess,
    schedule::ScheduledEvent,
};

/// Which faults a pair gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::world) enum PairFaultProfile {
    /// Handovers, rotations and a slow log only: nothing may be lost.
    Planned,
    /// Replicas crash and sockets break at any moment; the platform keeps everything for a replay.
    Crashes,
    /// Like `Crashes`, and the platform has faults, too.
    Faulty,
}

/// One fault or planned change.
#[derive(Debug, Clone, Copy)]
enum PairFault {
    HandOver,
    /// The owner crashes.
    CrashOwner,
    /// The standby crashes.
    CrashStandby,
    /// The standby takes over while the owner still runs.
    PrematureTakeover,
    Rotate,
    RefreshToken,
    /// Appends are slow.
    StoreStall,
    TokenEndpoint,
    Platform(WorldFault),
}

const PLANNED: [PairFault; 5] =
    [PairFault::HandOver, PairFault::HandOver, PairFault::Rotate, PairFault::RefreshToken, PairFault::StoreStall];
const CRASHES: [PairFault; 10] = [
    PairFault::HandOver,
    PairFault::CrashOwner,
    PairFault::CrashOwner,
    PairFault::CrashStandby,
    PairFault::PrematureTakeover,
    PairFault::Rotate,
    PairFault::RefreshToken,
    PairFault::StoreStall,
    PairFault::Platform(WorldFault::CutConnections),
    PairFault::Platform(WorldFault::CloseSockets),
];
const FAULTY: [PairFault; 7] = [
    PairFault::HandOver,
    PairFault::CrashOwner,
    PairFault::PrematureTakeover,
    PairFault::Rotate,
    PairFault::RefreshToken,
    PairFault::StoreStall,
    PairFault::TokenEndpoint,
];
const PLATFORM: [WorldFault; 8] = [
    WorldFault::CutConnections,
    WorldFault::CloseSockets,
    WorldFault::StallSockets,
    WorldFault::RefuseHandshakes,
    WorldFault::RefuseCalls,
    WorldFault::RevokeToken,
    WorldFault::Burst,
    WorldFault::SendGarbage,
];
const SEQUENCED: [WorldFault; 6] = [
    WorldFault::OversizeFrame,
    WorldFault::MalformedFrame,
    WorldFault::Repeat,
    WorldFault::SkipNumbers,
    WorldFault::RestartNumbering,
    WorldFault::SendUnnumbered,
];
const NOTIFICATIONS: [WorldFault; 4] =
    [WorldFault::CloseNotice, WorldFault::EvictChannels, WorldFault::OversizeFrame, WorldFault::TakeOverSubscriptions];

impl PairFaultProfile {
    pub(super) fn fault_profile(self) -> FaultProfile {
        match self {
            Self::Planned => FaultProfile::Planned,
            Self::Crashes | Self::Faulty => FaultProfile::Faulty,
        }
    }

    /// Disables everything but crashes for the profile of crashes.
    pub(super) fn adjust_plan(self, plan: &mut WorldPlan) {
        if self == Self::Crashes {
            plan.stream.retention = Duration::from_secs(3_600);
            plan.stream.overflow = OverflowPolicy::Backpressure;
            plan.stream.rotation = Rotation::Overlap;
        }
    }
}

impl PairWorld {
    pub(super) fn schedule_fault(&mut self) {
        let pause = self.env.schedule.rng.pause(self.env.schedule.plan.fault_interval);
        self.env.schedule.after(pause, ScheduledEvent::InjectPairFault);
    }

    fn draw_fault(&mut self) -> PairFault {
        let rng = &mut self.env.schedule.rng;
        match self.profile {
            PairFaultProfile::Planned => rng.pick(&PLANNED),
            PairFaultProfile::Crashes => rng.pick(&CRASHES),
            PairFaultProfile::Faulty => match (rng.number(0..3), self.env.schedule.plan.dialect) {
                (0, _) => PairFault::Platform(rng.pick(&PLATFORM)),
                (1, ConnectorKind::Sequenced) => PairFault::Platform(rng.pick(&SEQUENCED)),
                (1, ConnectorKind::Notifications) => PairFault::Platform(rng.pick(&NOTIFICATIONS)),
                (_, _) => rng.pick(&FAULTY),
            },
        }
    }

    pub(super) fn inject(&mut self) {
        let fault = self.draw_fault();
        self.env.schedule.trace(|| format!("fault: {fault:?}"));
        let anybody = self.env.schedule.rng.index(self.replicas.len().max(1));
        match fault {
            PairFault::HandOver => {
                if self.handover == HandoverPhase::None {
                    self.handover = HandoverPhase::Wanted;
                }
            }
            PairFault::CrashOwner => self.kill(self.owner()),
            PairFault::CrashStandby => self.kill(self.standby()),
            PairFault::PrematureTakeover => self.schedule_takeover(1),
            PairFault::Rotate if anybody < self.replicas.len() => self.send_input(anybody, Input::Rotate),
            PairFault::RefreshToken if anybody < self.replicas.len() => self.with(anybody, ModelProcess::request_token),
            PairFault::Rotate | PairFault::RefreshToken => (),
            PairFault::StoreStall => {
                let longest = if self.profile == PairFaultProfile::Planned { 5_000 } else { 20_000 };
                let stall = self.env.schedule.rng.millis(100..longest);
                self.env.store.stalls_until = self.env.schedule.now + stall;
            }
            PairFault::TokenEndpoint => {
                let until = self.env.schedule.now + self.env.schedule.rng.millis(1_000..30_000);
                self.env.token_endpoint_failure = Some((refresh::GrantFailure::Unreachable, until));
            }
            PairFault::Platform(fault) => self.env.inject_platform_fault(fault),
        }
    }

    /// Crashes a replica. A standby takes over shortly after, and a new replica starts later.
    fn kill(&mut self, victim: Option<usize>) {
        let Some(victim) = victim else { return };
        self.handover = HandoverPhase::None;
        let was_owner = self.owner() == Some(victim);
        self.replicas.swap_remove(victim).process.crash(&mut self.env);
        if was_owner {
            self.schedule_takeover(400);
        }
        let long = self.env.schedule.rng.one_in(4);
        let pause = self.env.schedule.rng.millis(if long { 10_000..60_000 } else { 50..3_000 });
        self.env.schedule.after(pause, ScheduledEvent::StartProcess);
    }

    pub(super) fn schedule_takeover(&mut self, at_least: u64) {
        let Some(standby) = self.standby() else { return };
        let incarnation = self.replicas[standby].process.incarnation;
        let delay = self.env.schedule.rng.millis(at_least..at_least + 1_500);
        self.env.schedule.after(delay, ScheduledEvent::TakeOver { incarnation });
    }
}
