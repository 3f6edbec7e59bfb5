//! What a seed draws before its world starts: the stream, its settings, the platform's behaviour, the faults.

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

/// Which faults a world gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultProfile {
    /// Only planned changes: tokens, notices, channel ends, operator commands. Nothing may be lost.
    Planned,
    /// All faults.
    Faulty,
}

/// The platform's dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectorKind {
    Sequenced,
    Notifications,
}

/// The drawn values of one world.
#[derive(Debug)]
pub(super) struct WorldPlan {
    pub(super) profile: FaultProfile,
    pub(super) dialect: ConnectorKind,
    pub(super) stream: Settings,
    pub(super) refresh: refresh::Settings,
    pub(super) token_lifetime: Duration,
    /// Longest network delay in one direction.
    pub(super) latency_max: Duration,
    /// Longest additional delay of one of the platform's sockets.
    pub(super) spread_max: Duration,
    /// Mean pause between two bursts of events.
    pub(super) pause: Duration,
    pub(super) burst_max: u64,
    pub(super) frame_len_max: u64,
    /// Time from the end of a token to the end of its channels.
    pub(super) channel_grace: Duration,
    /// How long faults are injected.
    pub(super) fault_duration: Duration,
    pub(super) fault_interval: Duration,
    pub(super) faults: Vec<WorldFault>,
}

impl WorldPlan {
    /// Longest time by which one socket may lag behind another.
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
            // A few kinds of fault a world, so that each pair of kinds occurs often enough.
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
                // The rules use a twenty-fourth of the lifetime for a swap.
                channel_life: rng.millis(100_000..200_000),
                discovery: rng.millis(3_000..30_000),
            })
        }
    }
}
