//! Faults and planned changes of a world.

use std::time::Duration;

use trunkline::protocol::{refresh, stream::Input};

use super::{
    TestEnvironment, World,
    log_check::NumberedLogCheck,
    plan::{ConnectorKind, FaultProfile},
    platform::{FrameFlaw, PlatformRefusal},
    schedule::{ProcessInput, Schedule, ScheduledEvent},
};

/// One kind of fault or planned change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorldFault {
    Rotate,
    RefreshToken,
    CloseNotice,
    CutConnections,
    CloseSockets,
    StallSockets,
    RefuseHandshakes,
    RefuseCalls,
    RevokeToken,
    Crash,
    Restart,
    WipeStore,
    Pause,
    StoreStall,
    TokenEndpoint,
    SendGarbage,
    OversizeFrame,
    MalformedFrame,
    Burst,
    Repeat,
    SkipNumbers,
    RestartNumbering,
    SendUnnumbered,
    EvictChannels,
    AddQueue,
    RefuseTopic,
    TakeOverSubscriptions,
}

const PLANNED: [WorldFault; 2] = [WorldFault::Rotate, WorldFault::RefreshToken];
const PLANNED_NOTIFICATIONS: [WorldFault; 4] =
    [WorldFault::Rotate, WorldFault::RefreshToken, WorldFault::CloseNotice, WorldFault::AddQueue];
const SEQUENCED: [WorldFault; 22] = [
    WorldFault::Rotate,
    WorldFault::RefreshToken,
    WorldFault::CutConnections,
    WorldFault::CloseSockets,
    WorldFault::StallSockets,
    WorldFault::RefuseHandshakes,
    WorldFault::RefuseCalls,
    WorldFault::RevokeToken,
    WorldFault::Crash,
    WorldFault::Restart,
    WorldFault::WipeStore,
    WorldFault::Pause,
    WorldFault::StoreStall,
    WorldFault::TokenEndpoint,
    WorldFault::SendGarbage,
    WorldFault::OversizeFrame,
    WorldFault::MalformedFrame,
    WorldFault::Burst,
    WorldFault::Repeat,
    WorldFault::SkipNumbers,
    WorldFault::RestartNumbering,
    WorldFault::SendUnnumbered,
];
const NOTIFICATIONS: [WorldFault; 22] = [
    WorldFault::Rotate,
    WorldFault::RefreshToken,
    WorldFault::CloseNotice,
    WorldFault::CutConnections,
    WorldFault::CloseSockets,
    WorldFault::StallSockets,
    WorldFault::RefuseHandshakes,
    WorldFault::RefuseCalls,
    WorldFault::RevokeToken,
    WorldFault::Crash,
    WorldFault::Restart,
    WorldFault::WipeStore,
    WorldFault::Pause,
    WorldFault::StoreStall,
    WorldFault::TokenEndpoint,
    WorldFault::SendGarbage,
    WorldFault::OversizeFrame,
    WorldFault::Burst,
    WorldFault::EvictChannels,
    WorldFault::AddQueue,
    WorldFault::RefuseTopic,
    WorldFault::TakeOverSubscriptions,
];

impl WorldFault {
    /// The kinds that a profile permits.
    pub(super) fn of(profile: FaultProfile, dialect: ConnectorKind) -> &'static [Self] {
        match (profile, dialect) {
            (FaultProfile::Planned, ConnectorKind::Sequenced) => &PLANNED,
            (FaultProfile::Planned, ConnectorKind::Notifications) => &PLANNED_NOTIFICATIONS,
            (FaultProfile::Faulty, ConnectorKind::Sequenced) => &SEQUENCED,
            (FaultProfile::Faulty, ConnectorKind::Notifications) => &NOTIFICATIONS,
        }
    }
}

impl TestEnvironment {
    /// Injects a fault of the platform.
    pub(super) fn inject_platform_fault(&mut self, fault: WorldFault) {
        let (platform, schedule) = (&mut self.platform, &mut self.schedule);
        match fault {
            WorldFault::CloseNotice => platform.send_close_notice(schedule),
            WorldFault::CutConnections => platform.cut_connections(schedule),
            WorldFault::CloseSockets => {
                let code = schedule.rng.pick(&[1000, 1001, 1006, 1011, 1012, 1013, 3999]);
                platform.close_sockets(code, schedule);
            }
            WorldFault::StallSockets => platform.stall_sockets(schedule),
            WorldFault::RefuseHandshakes => platform.handshakes = Some(outage(schedule)),
            WorldFault::RefuseCalls => platform.calls = Some(outage(schedule)),
            WorldFault::RevokeToken => platform.revoke_token(schedule),
            WorldFault::SendGarbage => platform.send_garbage(schedule),
            WorldFault::OversizeFrame => platform.next_flaw = Some(FrameFlaw::Oversize),
            WorldFault::MalformedFrame => platform.next_flaw = Some(FrameFlaw::Malformed),
            WorldFault::Burst => {
                let count = schedule.rng.number(50..500);
                platform.emit_events(count, schedule);
            }
            WorldFault::Repeat => platform.repeat(schedule),
            WorldFault::SkipNumbers => platform.skip_numbers(schedule),
            WorldFault::RestartNumbering => platform.restart_numbering(schedule),
            WorldFault::SendUnnumbered => platform.send_unnumbered(schedule),
            WorldFault::EvictChannels => platform.evict_channels(schedule),
            WorldFault::AddQueue => platform.add_queue(),
            WorldFault::RefuseTopic => platform.refuse_topic(schedule),
            WorldFault::TakeOverSubscriptions => platform.take_over_subscriptions(schedule),
            WorldFault::Rotate
            | WorldFault::RefreshToken
            | WorldFault::Pause
            | WorldFault::Crash
            | WorldFault::Restart
            | WorldFault::WipeStore
            | WorldFault::StoreStall
            | WorldFault::TokenEndpoint => unreachable!("not a fault of the platform"),
        }
    }
}

impl World {
    /// Injects a fault or a planned change.
    pub(super) fn inject(&mut self, fault: WorldFault) {
        self.env.schedule.trace(|| format!("fault: {fault:?}"));
        match fault {
            WorldFault::Rotate => self.send_input(Input::Rotate),
            WorldFault::RefreshToken => self.request_token(),
            WorldFault::Pause => self.pause(),
            WorldFault::Crash => self.crash(),
            WorldFault::Restart => {
                // A drain does not wait for a snapshot.
                self.env.was_congested = true;
                self.send_input(Input::Drain);
            }
            WorldFault::WipeStore => {
                self.crash();
                self.env.store.wipe();
                self.env.numbered_check = NumberedLogCheck::default();
            }
            WorldFault::StoreStall => {
                let stall = self.env.schedule.rng.millis(100..20_000);
                self.env.store.stalls_until = self.env.schedule.now + stall;
                self.env.was_congested = true;
            }
            WorldFault::TokenEndpoint => self.fail_token_endpoint(),
            WorldFault::CloseNotice
            | WorldFault::CutConnections
            | WorldFault::CloseSockets
            | WorldFault::StallSockets
            | WorldFault::RefuseHandshakes
            | WorldFault::RefuseCalls
            | WorldFault::RevokeToken
            | WorldFault::SendGarbage
            | WorldFault::OversizeFrame
            | WorldFault::MalformedFrame
            | WorldFault::Burst
            | WorldFault::Repeat
            | WorldFault::SkipNumbers
            | WorldFault::RestartNumbering
            | WorldFault::SendUnnumbered
            | WorldFault::EvictChannels
            | WorldFault::AddQueue
            | WorldFault::RefuseTopic
            | WorldFault::TakeOverSubscriptions => self.env.inject_platform_fault(fault),
        }
    }

    fn send_input(&mut self, input: Input) {
        if let Some(process) = &mut self.process {
            process.handle_stream_input(input, &mut self.env);
        }
    }

    fn request_token(&mut self) {
        if let Some(process) = &mut self.process {
            process.request_token(&mut self.env);
        }
    }

    fn pause(&mut self) {
        let Some(process) = &mut self.process else { return };
        let incarnation = process.incarnation;
        process.handle_stream_input(Input::Pause, &mut self.env);
        let pause = self.env.schedule.rng.millis(100..30_000);
        self.env.schedule.after(pause, ScheduledEvent::Process { incarnation, input: ProcessInput::Unpaused });
    }

    fn fail_token_endpoint(&mut self) {
        let schedule = &mut self.env.schedule;
        let failure = match schedule.rng.number(0..5) {
            0 => refresh::GrantFailure::Rejected,
            1 => refresh::GrantFailure::Throttled(Some(schedule.rng.millis(1_000..20_000))),
            _ => refresh::GrantFailure::Unreachable,
        };
        let until = schedule.now + schedule.rng.millis(1_000..30_000);
        self.env.token_endpoint_failure = Some((failure, until));
    }

    /// The process ends without a drain.
    pub(super) fn crash(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.crash(&mut self.env);
        self.schedule_restart();
    }

    pub(super) fn schedule_restart(&mut self) {
        let long = self.env.schedule.rng.one_in(4);
        let pause = self.env.schedule.rng.millis(if long { 10_000..90_000 } else { 50..3_000 });
        self.env.schedule.after(pause, ScheduledEvent::StartProcess);
    }
}

fn outage(schedule: &mut Schedule) -> (PlatformRefusal, Duration) {
    let retry_after = Some(schedule.rng.millis(500..20_000));
    let refusal = match schedule.rng.number(0..13) {
        0 => PlatformRefusal::Status(429, retry_after),
        1 => PlatformRefusal::Status(503, retry_after),
        2 => PlatformRefusal::Status(500, None),
        3 => PlatformRefusal::Status(401, None),
        4 => PlatformRefusal::Status(403, None),
        7 => PlatformRefusal::Status(404, None),
        8 => PlatformRefusal::Status(302, None),
        9 | 10 => PlatformRefusal::Status(410, None),
        5 | 6 => PlatformRefusal::NoReply,
        _ => PlatformRefusal::Unreachable,
    };
    (refusal, schedule.now + schedule.rng.millis(200..40_000))
}
