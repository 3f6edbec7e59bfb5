//! What a seed draws before its world begins: the stream, its settings, the platform's manners, the faults.

use std::time::Duration;

use trunkline::{
    connector::{Connector, genesys_notifications, genesys_sequenced},
    protocol::{
        backoff, refresh,
        session::Timeouts,
        stream::{OverflowPolicy, Rotation, Settings},
    },
};

use super::{calamity::WorldFault, chance::SeededRng};

/// What kind of night a world lives through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultProfile {
    /// Only planned changes: tokens, notices, channel ends, an operator's wish. Nothing may be missed.
    Planned,
    /// Anything that can break does.
    Faulty,
}

/// How the platform speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectorKind {
    Sequenced,
    Notifications,
}

/// One world's choices.
#[derive(Debug)]
pub(super) struct WorldPlan {
    pub(super) profile: FaultProfile,
    pub(super) dialect: ConnectorKind,
    pub(super) stream: Settings,
    pub(super) refresh: refresh::Settings,
    pub(super) token_lifetime: Duration,
    /// One way over the network takes at most this long.
    pub(super) latency_max: Duration,
    /// A platform's socket may lag behind another by this much.
    pub(super) spread_max: Duration,
    /// The mean pause between two bursts of events, and their largest size.
    pub(super) pause: Duration,
    pub(super) burst_max: u64,
    pub(super) frame_len_max: u64,
    /// How long a channel outlives its token.
    pub(super) channel_grace: Duration,
    /// For so long there are faults, this far apart.
    pub(super) fault_duration: Duration,
    pub(super) fault_interval: Duration,
    pub(super) faults: Vec<WorldFault>,
}

impl WorldPlan {
    /// By so much one socket may lag behind another.
    pub(super) fn lag(&self) -> Duration {
        self.spread_max + self.latency_max * 2
    }

    pub(super) fn draw(night: FaultProfile, chance: &mut SeededRng) -> Self {
        let dialect = chance.pick(&[ConnectorKind::Sequenced, ConnectorKind::Sequenced, ConnectorKind::Notifications]);
        let bad = night == FaultProfile::Faulty;
        let snapshots = !chance.one_in(4);
        let calm_or = |chance: &mut SeededRng, calm, bad_range| if bad { chance.millis(bad_range) } else { calm };
        let (pause, burst_max) = chance.pick(&[(100, 2), (500, 8), (2_000, 40), (20_000, 8)]);
        let kinds = WorldFault::of(night, dialect);
        Self {
            profile: night,
            dialect,
            stream: stream(night, dialect, snapshots, chance),
            refresh: refresh::Settings {
                buffer: Duration::from_secs(300),
                interval_min: chance.millis(5_000..60_000),
                jitter_max: Duration::from_secs(2),
                sharing: refresh::TokenSharing::None,
            },
            token_lifetime: if bad { chance.millis(4_000..180_000) } else { chance.millis(20_000..90_000) },
            latency_max: calm_or(chance, Duration::from_millis(60), 5..150),
            spread_max: spread(dialect, chance),
            pause: Duration::from_millis(pause),
            burst_max,
            frame_len_max: chance.pick(&[1, 4, 50]),
            channel_grace: if bad { chance.millis(0..5_000) } else { Duration::from_secs(2) },
            fault_duration: chance.millis(30_000..150_000),
            fault_interval: if bad { chance.millis(500..10_000) } else { chance.millis(300..5_000) },
            // A night knows a few kinds of fault, so that each gets its chance to meet each other.
            faults: (0..chance.number(1..8)).map(|_| chance.pick(kinds)).collect(),
        }
    }
}

fn spread(dialect: ConnectorKind, chance: &mut SeededRng) -> Duration {
    match dialect {
        ConnectorKind::Sequenced => chance.millis(0..60),
        ConnectorKind::Notifications => chance.pick(&[50, 500, 1_800].map(Duration::from_millis)),
    }
}

fn stream(night: FaultProfile, dialect: ConnectorKind, snapshots: bool, chance: &mut SeededRng) -> Settings {
    let bad = night == FaultProfile::Faulty;
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
            chance.pick(&[OverflowPolicy::Backpressure, OverflowPolicy::DropOldest])
        } else {
            OverflowPolicy::Backpressure
        },
        timeouts: Timeouts {
            connect: chance.millis(3_000..10_000),
            silence: chance.millis(6_000..35_000),
            frame: Duration::from_secs(30),
            close: Duration::from_secs(2),
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

fn connector(dialect: ConnectorKind, snapshots: bool, chance: &mut SeededRng) -> Connector {
    match dialect {
        ConnectorKind::Sequenced => Connector::Sequenced(genesys_sequenced::Settings {
            url: "wss://platform.test/stream".to_owned(),
            placement: chance.pick(&[genesys_sequenced::Placement::Header, genesys_sequenced::Placement::Query]),
            snapshot_url: snapshots.then(|| "https://platform.test/summary".to_owned()),
        }),
        ConnectorKind::Notifications => {
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
