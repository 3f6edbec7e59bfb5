//! What goes wrong in a world, or is changed on purpose.

use std::time::Duration;

use trunkline::protocol::{refresh, stream::Input};

use super::{
    Around, World,
    plan::{Dialect, Night},
    platform::{Flaw, Refusal},
    scene::{Happening, News, Scene},
    verdict::Ledger,
};

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calamity {
    Rotate,
    RefreshToken,
    Notice,
    Cut,
    HangUp,
    Stall,
    RefuseHandshakes,
    RefuseCalls,
    Revoke,
    Crash,
    Restart,
    Wipe,
    Pause,
    StoreStall,
    Endpoint,
    Babble,
    Oversize,
    Poison,
    Flood,
    Repeat,
    SkipNumbers,
    StartOver,
    Mutter,
    Evict,
    AddQueue,
    RefuseTopic,
    Displace,
}

const PLANNED: [Calamity; 2] = [Calamity::Rotate, Calamity::RefreshToken];
const PLANNED_NOTIFICATIONS: [Calamity; 4] =
    [Calamity::Rotate, Calamity::RefreshToken, Calamity::Notice, Calamity::AddQueue];
const SEQUENCED: [Calamity; 22] = [
    Calamity::Rotate,
    Calamity::RefreshToken,
    Calamity::Cut,
    Calamity::HangUp,
    Calamity::Stall,
    Calamity::RefuseHandshakes,
    Calamity::RefuseCalls,
    Calamity::Revoke,
    Calamity::Crash,
    Calamity::Restart,
    Calamity::Wipe,
    Calamity::Pause,
    Calamity::StoreStall,
    Calamity::Endpoint,
    Calamity::Babble,
    Calamity::Oversize,
    Calamity::Poison,
    Calamity::Flood,
    Calamity::Repeat,
    Calamity::SkipNumbers,
    Calamity::StartOver,
    Calamity::Mutter,
];
const NOTIFICATIONS: [Calamity; 22] = [
    Calamity::Rotate,
    Calamity::RefreshToken,
    Calamity::Notice,
    Calamity::Cut,
    Calamity::HangUp,
    Calamity::Stall,
    Calamity::RefuseHandshakes,
    Calamity::RefuseCalls,
    Calamity::Revoke,
    Calamity::Crash,
    Calamity::Restart,
    Calamity::Wipe,
    Calamity::Pause,
    Calamity::StoreStall,
    Calamity::Endpoint,
    Calamity::Babble,
    Calamity::Oversize,
    Calamity::Flood,
    Calamity::Evict,
    Calamity::AddQueue,
    Calamity::RefuseTopic,
    Calamity::Displace,
];

impl Calamity {
    /// The kinds that a night may bring.
    pub(super) fn of(night: Night, dialect: Dialect) -> &'static [Self] {
        match (night, dialect) {
            (Night::Planned, Dialect::Sequenced) => &PLANNED,
            (Night::Planned, Dialect::Notifications) => &PLANNED_NOTIFICATIONS,
            (Night::Bad, Dialect::Sequenced) => &SEQUENCED,
            (Night::Bad, Dialect::Notifications) => &NOTIFICATIONS,
        }
    }
}

impl Around {
    /// What goes wrong at the platform.
    pub(super) fn strike_platform(&mut self, calamity: Calamity) {
        let (platform, scene) = (&mut self.platform, &mut self.scene);
        match calamity {
            Calamity::Notice => platform.give_notice(scene),
            Calamity::Cut => platform.cut(scene),
            Calamity::HangUp => {
                let code = scene.chance.pick(&[1000, 1001, 1006, 1011, 1012, 1013, 3999]);
                platform.hang_up(code, scene);
            }
            Calamity::Stall => platform.stall(scene),
            Calamity::RefuseHandshakes => platform.handshakes = Some(outage(scene)),
            Calamity::RefuseCalls => platform.calls = Some(outage(scene)),
            Calamity::Revoke => platform.revoke(scene),
            Calamity::Babble => platform.babble(scene),
            Calamity::Oversize => platform.flaw = Some(Flaw::Oversize),
            Calamity::Poison => platform.flaw = Some(Flaw::Poison),
            Calamity::Flood => {
                let count = scene.chance.number(50..500);
                platform.speak(count, scene);
            }
            Calamity::Repeat => platform.repeat(scene),
            Calamity::SkipNumbers => platform.skip_numbers(scene),
            Calamity::StartOver => platform.start_over(scene),
            Calamity::Mutter => platform.mutter(scene),
            Calamity::Evict => platform.evict(scene),
            Calamity::AddQueue => platform.add_queue(),
            Calamity::RefuseTopic => platform.refuse_topic(scene),
            Calamity::Displace => platform.displace(scene),
            Calamity::Rotate
            | Calamity::RefreshToken
            | Calamity::Pause
            | Calamity::Crash
            | Calamity::Restart
            | Calamity::Wipe
            | Calamity::StoreStall
            | Calamity::Endpoint => unreachable!("not the platform's"),
        }
    }
}

impl World {
    /// Lets it happen.
    pub(super) fn strike(&mut self, calamity: Calamity) {
        self.around.scene.tell(|| format!("calamity: {calamity:?}"));
        match calamity {
            Calamity::Rotate => self.wish(Input::Rotate),
            Calamity::RefreshToken => self.want_token(),
            Calamity::Pause => self.pause(),
            Calamity::Crash => self.crash(),
            Calamity::Restart => {
                // A drain waits for no snapshot.
                self.around.crowded = true;
                self.wish(Input::Drain);
            }
            Calamity::Wipe => {
                self.crash();
                self.around.store.wipe();
                self.around.ledger = Ledger::default();
            }
            Calamity::StoreStall => {
                let stall = self.around.scene.chance.millis(100..20_000);
                self.around.store.stalls_until = self.around.scene.now + stall;
                self.around.crowded = true;
            }
            Calamity::Endpoint => self.trouble_endpoint(),
            Calamity::Notice
            | Calamity::Cut
            | Calamity::HangUp
            | Calamity::Stall
            | Calamity::RefuseHandshakes
            | Calamity::RefuseCalls
            | Calamity::Revoke
            | Calamity::Babble
            | Calamity::Oversize
            | Calamity::Poison
            | Calamity::Flood
            | Calamity::Repeat
            | Calamity::SkipNumbers
            | Calamity::StartOver
            | Calamity::Mutter
            | Calamity::Evict
            | Calamity::AddQueue
            | Calamity::RefuseTopic
            | Calamity::Displace => self.around.strike_platform(calamity),
        }
    }

    fn wish(&mut self, wish: Input) {
        if let Some(process) = &mut self.process {
            process.tell(wish, &mut self.around);
        }
    }

    fn want_token(&mut self) {
        if let Some(process) = &mut self.process {
            process.want_token(&mut self.around);
        }
    }

    fn pause(&mut self) {
        let Some(process) = &mut self.process else { return };
        let life = process.life;
        process.tell(Input::Pause, &mut self.around);
        let pause = self.around.scene.chance.millis(100..30_000);
        self.around.scene.after(pause, Happening::Process { life, news: News::Unpaused });
    }

    fn trouble_endpoint(&mut self) {
        let scene = &mut self.around.scene;
        let failure = match scene.chance.number(0..5) {
            0 => refresh::Failure::Rejected,
            1 => refresh::Failure::Throttled(Some(scene.chance.millis(1_000..20_000))),
            _ => refresh::Failure::Unreachable,
        };
        let until = scene.now + scene.chance.millis(1_000..30_000);
        self.around.endpoint = Some((failure, until));
    }

    /// The process is gone from one moment to the next.
    pub(super) fn crash(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.vanish(&mut self.around);
        self.rise_again();
    }

    pub(super) fn rise_again(&mut self) {
        let long = self.around.scene.chance.once_in(4);
        let pause = self.around.scene.chance.millis(if long { 10_000..90_000 } else { 50..3_000 });
        self.around.scene.after(pause, Happening::Starts);
    }
}

fn outage(scene: &mut Scene) -> (Refusal, Duration) {
    let told = Some(scene.chance.millis(500..20_000));
    let refusal = match scene.chance.number(0..13) {
        0 => Refusal::Status(429, told),
        1 => Refusal::Status(503, told),
        2 => Refusal::Status(500, None),
        3 => Refusal::Status(401, None),
        4 => Refusal::Status(403, None),
        7 => Refusal::Status(404, None),
        8 => Refusal::Status(302, None),
        9 | 10 => Refusal::Status(410, None),
        5 | 6 => Refusal::Silence,
        _ => Refusal::Unreachable,
    };
    (refusal, scene.now + scene.chance.millis(200..40_000))
}
