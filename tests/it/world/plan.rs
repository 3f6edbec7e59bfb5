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

use super::{fault::WorldFault, rng::SeededRng};

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

    pub(super) fn draw(profile: FaultProfile, rng: &mut SeededRng) -> Self {
        let dialect = rng.pick(&[ConnectorKind::Sequenced, ConnectorKind::Sequenced, ConnectorKind::Notifications]);
        let bad = profile == FaultProfile::Faulty;
        let snapshots = !rng.one_in(4);
        let calm_or = |rng: &mut SeededRng, calm, bad_range| if bad { rng.millis(bad_range) } else { calm };
        let (pause, burst_max) = rng.pick(&[(100, 2), (500, 8), (2_000, 40), (20_000, 8)]);
        let kinds = WorldFault::of(profile, dialect);
        Self {
            profile,
            dialect,
            stream: stream(profile, dialect, snapshots, rng),
            refresh: refresh::Settings {
                buffer: Duration::from_secs(300),
                interval_min: rng.millis(5_000..60_000),
                jitter_max: Duration::from_secs(2),
                sharing: refresh::TokenSharing::None,
            },
            token_lifetime: if bad { rng.millis(4_000..180_000) } else { rng.millis(20_000..90_000) },
            latency_max: calm_or(rng, Duration::from_millis(60), 5..150),
            spread_max: spread(dialect, rng),
            pause: Duration::from_millis(pause),
            burst_max,
            frame_len_max: rng.pick(&[1, 4, 50]),
            channel_grace: if bad { rng.millis(0..5_000) } else { Duration::from_secs(2) },
            fault_duration: rng.millis(30_000..150_000),
            fault_interval: if bad { rng.millis(500..10_000) } else { rng.millis(300..5_000) },
            // A night knows a few kinds of fault, so that each gets its chance to meet each other.
            faults: (0..rng.number(1..8)).map(|_| rng.pick(kinds)).collect(),
        }
    }
}

fn spread(dialect: ConnectorKind, rng: &mut SeededRng) -> Duration {
    match dialect {
        ConnectorKind::Sequenced => rng.millis(0..60),
        ConnectorKind::Notifications => rng.pick(&[50, 500, 1_800].map(Duration::from_millis)),
    }
}

fn stream(profile: FaultProfile, dialect: ConnectorKind, snapshots: bool, rng: &mut SeededRng) -> Settings {
    let bad = profile == FaultProfile::Faulty;
    let rotation = if bad { rng.pick(&[Rotation::Overlap, Rotation::BreakFirst]) } else { Rotation::Overlap };
    let connector = connector(dialect, snapshots, rng);
    Settings {
        feed: connector.feed("https://platform.test"),
        connector,
        rotation,
        rotation_jitter: Duration::from_millis(100),
        retention: rng.millis(5_000..60_000),
        append_max: 2_048,
        buffer_bytes: 64 << 20,
        buffer: if bad { rng.pick(&[20, 100, 1_000, 5_000]) } else { 5_000 },
        overflow: if bad {
            rng.pick(&[OverflowPolicy::Backpressure, OverflowPolicy::DropOldest])
        } else {
            OverflowPolicy::Backpressure
        },
        timeouts: Timeouts {
            connect: rng.millis(3_000..10_000),
            silence: rng.millis(6_000..35_000),
            frame: Duration::from_secs(30),
            close: Duration::from_secs(2),
        },
        backoff: backoff::Settings {
            first: rng.millis(200..1_000),
            cap: rng.millis(2_000..30_000),
            jitter: 0.2,
            breaker_after: 5,
            stable_after: rng.millis(2_000..10_000),
        },
    }
}

fn connector(dialect: ConnectorKind, snapshots: bool, rng: &mut SeededRng) -> Connector {
    match dialect {
        ConnectorKind::Sequenced => Connector::Sequenced(genesys_sequenced::Settings {
            url: "wss://platform.test/stream".to_owned(),
            placement: rng.pick(&[genesys_sequenced::Placement::Header, genesys_sequenced::Placement::Query]),
            snapshot_url: snapshots.then(|| "https://platform.test/summary".to_owned()),
        }),
        ConnectorKind::Notifications => {
            let topics: &[&str] = if snapshots {
                rng.pick(&[
                    &["v2.analytics.queues.*.observations"] as &[&str],
                    &["v2.analytics.queues.*.observations", "v2.users.u-1.presence"],
                ])
            } else {
                &["v2.conversations.c-1.transcription"]
            };
            Connector::Notifications(genesys_notifications::Settings {
                topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
                // A twenty-fourth of it is the time for a swap.
                channel_life: rng.millis(100_000..200_000),
                discovery: rng.millis(3_000..30_000),
            })
        }
    }
}
