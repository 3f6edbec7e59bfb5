//! What happens to a pair of replicas, by chance and by plan.

use std::time::Duration;

use trunkline::protocol::{
    refresh,
    stream::{Input, Overflow, Rotation},
};

use super::{Handover, Pair};
use crate::world::{
    calamity::Calamity,
    plan::{Dialect, Night, Plan},
    process::Process,
    scene::Happening,
};

/// What kind of night a pair lives through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::world) enum Fate {
    /// Hand-overs, rotations, a slow log: nothing may be missed.
    Planned,
    /// Replicas and sockets die at any instant; the platform keeps everything for resuming.
    Kills,
    /// The platform misbehaves too.
    Bad,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Blow {
    HandOver,
    /// The owner is gone from one moment to the next.
    Kill,
    /// The standby is.
    KillStandby,
    /// The standby takes the log while the owner lives.
    Usurp,
    Rotate,
    RefreshToken,
    /// Appends take their time.
    StoreStall,
    Endpoint,
    Platform(Calamity),
}

const PLANNED: [Blow; 5] = [Blow::HandOver, Blow::HandOver, Blow::Rotate, Blow::RefreshToken, Blow::StoreStall];
const KILLS: [Blow; 10] = [
    Blow::HandOver,
    Blow::Kill,
    Blow::Kill,
    Blow::KillStandby,
    Blow::Usurp,
    Blow::Rotate,
    Blow::RefreshToken,
    Blow::StoreStall,
    Blow::Platform(Calamity::Cut),
    Blow::Platform(Calamity::HangUp),
];
const BAD: [Blow; 7] =
    [Blow::HandOver, Blow::Kill, Blow::Usurp, Blow::Rotate, Blow::RefreshToken, Blow::StoreStall, Blow::Endpoint];
const PLATFORM: [Calamity; 8] = [
    Calamity::Cut,
    Calamity::HangUp,
    Calamity::Stall,
    Calamity::RefuseHandshakes,
    Calamity::RefuseCalls,
    Calamity::Revoke,
    Calamity::Flood,
    Calamity::Babble,
];
const SEQUENCED: [Calamity; 6] = [
    Calamity::Oversize,
    Calamity::Poison,
    Calamity::Repeat,
    Calamity::SkipNumbers,
    Calamity::StartOver,
    Calamity::Mutter,
];
const NOTIFICATIONS: [Calamity; 4] = [Calamity::Notice, Calamity::Evict, Calamity::Oversize, Calamity::Displace];

impl Fate {
    pub(super) fn night(self) -> Night {
        match self {
            Self::Planned => Night::Planned,
            Self::Kills | Self::Bad => Night::Bad,
        }
    }

    /// Nights of kills are about nothing but kills.
    pub(super) fn shape(self, plan: &mut Plan) {
        if self == Self::Kills {
            plan.stream.retention = Duration::from_secs(3_600);
            plan.stream.overflow = Overflow::Backpressure;
            plan.stream.rotation = Rotation::Overlap;
        }
    }
}

impl Pair {
    pub(super) fn next_blow(&mut self) {
        let pause = self.around.scene.chance.pause(self.around.scene.plan.calamity_pause);
        self.around.scene.after(pause, Happening::Strikes);
    }

    fn draw(&mut self) -> Blow {
        let chance = &mut self.around.scene.chance;
        match self.fate {
            Fate::Planned => chance.pick(&PLANNED),
            Fate::Kills => chance.pick(&KILLS),
            Fate::Bad => match (chance.number(0..3), self.around.scene.plan.dialect) {
                (0, _) => Blow::Platform(chance.pick(&PLATFORM)),
                (1, Dialect::Sequenced) => Blow::Platform(chance.pick(&SEQUENCED)),
                (1, Dialect::Notifications) => Blow::Platform(chance.pick(&NOTIFICATIONS)),
                (_, _) => chance.pick(&BAD),
            },
        }
    }

    pub(super) fn strike(&mut self) {
        let blow = self.draw();
        self.around.scene.tell(|| format!("blow: {blow:?}"));
        let anybody = self.around.scene.chance.index(self.replicas.len().max(1));
        match blow {
            Blow::HandOver => {
                if self.handover == Handover::None {
                    self.handover = Handover::Wanted;
                }
            }
            Blow::Kill => self.kill(self.owner()),
            Blow::KillStandby => self.kill(self.standby()),
            Blow::Usurp => self.let_take_over(1),
            Blow::Rotate if anybody < self.replicas.len() => self.tell(anybody, Input::Rotate),
            Blow::RefreshToken if anybody < self.replicas.len() => self.with(anybody, Process::want_token),
            Blow::Rotate | Blow::RefreshToken => (),
            Blow::StoreStall => {
                let longest = if self.fate == Fate::Planned { 5_000 } else { 20_000 };
                let stall = self.around.scene.chance.millis(100..longest);
                self.around.store.stalls_until = self.around.scene.now + stall;
            }
            Blow::Endpoint => {
                let until = self.around.scene.now + self.around.scene.chance.millis(1_000..30_000);
                self.around.endpoint = Some((refresh::Failure::Unreachable, until));
            }
            Blow::Platform(calamity) => self.around.strike_platform(calamity),
        }
    }

    /// Whoever stands by takes over a little later; somebody else comes, at once or after a while.
    fn kill(&mut self, victim: Option<usize>) {
        let Some(victim) = victim else { return };
        self.handover = Handover::None;
        let was_owner = self.owner() == Some(victim);
        self.replicas.swap_remove(victim).process.vanish(&mut self.around);
        if was_owner {
            self.let_take_over(400);
        }
        let long = self.around.scene.chance.once_in(4);
        let pause = self.around.scene.chance.millis(if long { 10_000..60_000 } else { 50..3_000 });
        self.around.scene.after(pause, Happening::Starts);
    }

    pub(super) fn let_take_over(&mut self, at_least: u64) {
        let Some(standby) = self.standby() else { return };
        let life = self.replicas[standby].process.life;
        let delay = self.around.scene.chance.millis(at_least..at_least + 1_500);
        self.around.scene.after(delay, Happening::TakesOver { life });
    }
}
