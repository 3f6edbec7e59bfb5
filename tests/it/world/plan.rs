//! What a seed draws before its world begins: the stream, its settings, the platform's manners, the faults.

use std::time::Duration;

use trunkline::{
    connector::{Connector, genesys_notifications, genesys_sequenced},
    protocol::{
        backoff, refresh,
        session::Patience,
        stream::{Overflow, Rotation, Settings},
    },
};

use super::{calamity::Calamity, chance::Chance};

/// What kind of night a world lives through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Night {
    /// Only planned changes: tokens, notices, channel ends, an operator's wish. Nothing may be missed.
    Planned,
    /// Anything that can break does.
    Bad,
}

/// How the platform speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sequenced,
    Notifications,
}

/// One world's choices.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) night: Night,
    pub(super) dialect: Dialect,
    pub(super) stream: Settings,
    pub(super) refresh: refresh::Settings,
    pub(super) token_life: Duration,
    /// One way over the network takes at most this long.
    pub(super) latency_max: Duration,
    /// A platform's socket may lag behind another by this much.
    pub(super) spread_max: Duration,
    /// The mean pause between two bursts of events, and their largest size.
    pub(super) pause: Duration,
    pub(super) burst_max: u64,
    pub(super) frame_len_max: u64,
    /// How long a channel outlives its token.
    pub(super) grace: Duration,
    /// For so long there are faults, this far apart.
    pub(super) trouble: Duration,
    pub(super) calamity_pause: Duration,
    pub(super) calamities: Vec<Calamity>,
}

impl Plan {
    /// By so much one socket may lag behind another.
    pub(super) fn lag(&self) -> Duration {
        self.spread_max + self.latency_max * 2
    }

    pub(super) fn draw(night: Night, chance: &mut Chance) -> Self {
        let dialect = chance.pick(&[Dialect::Sequenced, Dialect::Sequenced, Dialect::Notifications]);
        let bad = night == Night::Bad;
        let snapshots = !chance.once_in(4);
        let calm_or = |chance: &mut Chance, calm, bad_range| if bad { chance.millis(bad_range) } else { calm };
        let (pause, burst_max) = chance.pick(&[(100, 2), (500, 8), (2_000, 40), (20_000, 8)]);
        let kinds = Calamity::of(night, dialect);
        Self {
            night,
            dialect,
            stream: stream(night, dialect, snapshots, chance),
            refresh: refresh::Settings {
                buffer: Duration::from_secs(300),
                interval_min: chance.millis(5_000..60_000),
                jitter_max: Duration::from_secs(2),
                sharing: refresh::Sharing::None,
            },
            token_life: if bad { chance.millis(4_000..180_000) } else { chance.millis(20_000..90_000) },
            latency_max: calm_or(chance, Duration::from_millis(60), 5..150),
            spread_max: spread(dialect, chance),
            pause: Duration::from_millis(pause),
            burst_max,
            frame_len_max: chance.pick(&[1, 4, 50]),
            grace: if bad { chance.millis(0..5_000) } else { Duration::from_secs(2) },
            trouble: chance.millis(30_000..150_000),
            calamity_pause: if bad { chance.millis(500..10_000) } else { chance.millis(300..5_000) },
            // A night knows a few kinds of fault, so that each gets its chance to meet each other.
            calamities: (0..chance.number(1..8)).map(|_| chance.pick(kinds)).collect(),
        }
    }
}

fn spread(dialect: Dialect, chance: &mut Chance) -> Duration {
    match dialect {
        Dialect::Sequenced => chance.millis(0..60),
        Dialect::Notifications => chance.pick(&[50, 500, 1_800].map(Duration::from_millis)),
    }
}

fn stream(night: Night, dialect: Dialect, snapshots: bool, chance: &mut Chance) -> Settings {
    let bad = night == Night::Bad;
    let rotation = if bad { chance.pick(&[Rotation::Overlap, Rotation::BreakFirst]) } else { Rotation::Overlap };
    let connector = connector(dialect, snapshots, chance);
    Settings {
        feed: connector.feed("https://platform.test"),
        connector,
        rotation,
        rotation_jitter: Duration::from_millis(100),
        retention: chance.millis(5_000..60_000),
        append_max: 2_048,
        buffer_bytes: 64 << 20,
        buffer: if bad { chance.pick(&[20, 100, 1_000, 5_000]) } else { 5_000 },
        overflow: if bad {
            chance.pick(&[Overflow::Backpressure, Overflow::DropOldest])
        } else {
            Overflow::Backpressure
        },
        patience: Patience {
            connect: chance.millis(3_000..10_000),
            silence: chance.millis(6_000..35_000),
            frame: Duration::from_secs(30),
            farewell: Duration::from_secs(2),
        },
        backoff: backoff::Settings {
            first: chance.millis(200..1_000),
            cap: chance.millis(2_000..30_000),
            jitter: 0.2,
            breaker_after: 5,
            stable_after: chance.millis(2_000..10_000),
        },
    }
}

fn connector(dialect: Dialect, snapshots: bool, chance: &mut Chance) -> Connector {
    match dialect {
        Dialect::Sequenced => Connector::Sequenced(genesys_sequenced::Settings {
            url: "wss://platform.test/stream".to_owned(),
            placement: chance.pick(&[genesys_sequenced::Placement::Header, genesys_sequenced::Placement::Query]),
            snapshot_url: snapshots.then(|| "https://platform.test/summary".to_owned()),
        }),
        Dialect::Notifications => {
            let topics: &[&str] = if snapshots {
                chance.pick(&[
                    &["v2.analytics.queues.*.observations"] as &[&str],
                    &["v2.analytics.queues.*.observations", "v2.users.u-1.presence"],
                ])
            } else {
                &["v2.conversations.c-1.transcription"]
            };
            Connector::Notifications(genesys_notifications::Settings {
                topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
                // A twenty-fourth of it is the time for a swap.
                channel_life: chance.millis(100_000..200_000),
                discovery: chance.millis(3_000..30_000),
            })
        }
    }
}
