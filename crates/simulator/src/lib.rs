//! A simulated contact-centre platform: token endpoint, REST API, notification and sequenced sockets on one plain
//! listener, with a simulated contact centre behind them and faults on demand. It is written from the platforms'
//! documents and uses no code of the daemon, so that a mistake cannot be made on both sides.
//! It has no security: it is for loopback and test networks.

mod channels;
mod clock;
mod connection;
mod control;
mod counters;
mod encoding;
mod fault;
mod fault_effects;
mod form;
mod handshake;
mod notifications;
mod oauth;
mod pending_faults;
mod platform;
mod reply;
mod response_faults;
mod rest;
mod script;
mod sequence;
mod sequenced;
mod server;
mod tokens;
mod topics;
mod world;

#[cfg(test)]
mod probe;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::time::sleep;

pub use connection::Expiry;
pub use counters::{EmittedNotification, NotificationCounters, SimulatorCounters, SocketCounters, SocketDialect};
pub use fault::{
    ALWAYS, FaultError, FaultTarget, FloodTrigger, PlatformFault, RequestKind, ResponseFault, TokenFailure,
    UndecodableFrame,
};
use platform::SimulatedPlatform;
pub use script::{FaultScript, ScheduledFault, ScriptError};
pub use sequence::RawFrame;
pub use tokens::TokenKind;
use world::WorldSettings;

/// Longest time between two steps of the scenario.
const TICK: Duration = Duration::from_millis(10);
/// Scenario time between two events when events are emitted on request only.
const ON_DEMAND_STEP: Duration = Duration::from_millis(50);

/// Settings of a platform. With the defaults it emits events on request only.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Port 0 takes a free port.
    pub listen: SocketAddr,
    /// The same seed gives the same scenario.
    pub seed: u64,
    /// Events per second; 0: only on [`Simulator::emit`].
    pub rate: f64,
    pub agents: usize,
    pub queues: usize,
    /// When the scenario begins; `None`: now.
    pub scenario_start: Option<OffsetDateTime>,
    pub token_ttl: Duration,
    pub token_kind: TokenKind,
    /// The only refresh token that is valid at the start.
    pub refresh_token: String,
    pub client_id: String,
    pub client_secret: String,
    /// Offset of the platform's wall clock from the host's, in seconds.
    pub clock_offset: i64,
    /// How long a socket or a channel outlives its token.
    pub grace: Duration,
    /// The effect of an expired token on its sockets.
    pub expiry: Expiry,
    /// How long a sequenced event can be replayed on resume.
    pub retention: Duration,
    /// Most events in one sequenced frame, 1 to 50. The seed decides the number in each frame.
    pub frame_max: usize,
    pub channel_lifetime: Duration,
    pub heartbeat: Duration,
    /// Prefixes of topics that the client has no permission for.
    pub forbidden_topics: Vec<String>,
    /// REST calls per minute for each token.
    pub requests_per_minute: u32,
    pub script: FaultScript,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            seed: 1,
            rate: 0.0,
            agents: 12,
            queues: 3,
            scenario_start: None,
            token_ttl: Duration::from_secs(3_600),
            token_kind: TokenKind::Opaque,
            refresh_token: "demo-refresh".to_owned(),
            client_id: "demo".to_owned(),
            client_secret: "demo-secret".to_owned(),
            clock_offset: 0,
            grace: Duration::ZERO,
            expiry: Expiry::Close(1008),
            retention: Duration::from_secs(60),
            frame_max: 5,
            channel_lifetime: Duration::from_secs(24 * 3_600),
            heartbeat: Duration::from_secs(30),
            forbidden_topics: Vec::new(),
            requests_per_minute: 300,
            script: FaultScript::default(),
        }
    }
}

impl Settings {
    fn scenario_seed(&self) -> u64 {
        self.script.seed.unwrap_or(self.seed)
    }

    fn world_settings(&self) -> WorldSettings {
        WorldSettings {
            seed: self.scenario_seed(),
            agents: self.script.agents.unwrap_or(self.agents),
            queues: self.script.queues.unwrap_or(self.queues),
            base: self.scenario_start.unwrap_or_else(|| clock::wall(self.clock_offset)),
            step: self.scenario_step(),
        }
    }

    /// With a rate, scenario time follows the clock.
    fn scenario_step(&self) -> Duration {
        if self.rate > 0.0 {
            Duration::try_from_secs_f64(1.0 / self.rate).unwrap_or(ON_DEMAND_STEP)
        } else {
            ON_DEMAND_STEP
        }
    }
}

/// A running platform. Dropping it stops it; [`Self::stop`] also waits for the end.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    platform: Arc<SimulatedPlatform>,
}

/// Starts a platform.
///
/// # Errors
/// The address cannot be bound.
pub async fn start(settings: Settings) -> io::Result<Simulator> {
    let listener = TcpListener::bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let platform = Arc::new(SimulatedPlatform::new(settings));
    platform.tasks.spawn(server::serve(listener, router(&platform), platform.clone()));
    platform.tasks.spawn(emit_at_rate(platform.clone()));
    platform.tasks.spawn(run_script(platform.clone()));
    Ok(Simulator { address, platform })
}

impl Simulator {
    /// The address of its listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:4242`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Emits exactly `n` events: each is one sequenced event and one notification.
    pub fn emit(&self, n: u64) {
        self.platform.emit(n);
    }

    /// Sends a frame unchanged to every sequenced socket.
    pub fn emit_raw_sequenced(&self, frame: RawFrame) {
        self.platform.emit_raw_sequenced(frame);
    }

    /// Sends a frame unchanged to every notifications socket.
    pub fn emit_raw_notification(&self, frame: RawFrame) {
        self.platform.emit_raw_notification(frame);
    }

    /// Injects a fault now.
    pub fn inject(&self, fault: PlatformFault) {
        self.platform.inject(fault);
    }

    pub fn counters(&self) -> SimulatorCounters {
        self.platform.counters()
    }

    /// The labels of the faults since a mark (0: the start), and the next mark.
    pub fn injected_since(&self, mark: u64) -> (Vec<String>, u64) {
        self.platform.injected_since(mark)
    }

    /// How many faults still wait for their request.
    pub fn pending_faults(&self) -> usize {
        self.platform.lock().faults.pending_count()
    }

    /// The emitted events, to compare them with the received ones.
    pub fn ledger(&self) -> EmissionLedger {
        EmissionLedger { platform: self.platform.clone() }
    }

    /// The ids of the world's queues.
    pub fn queue_ids(&self) -> Vec<String> {
        self.platform.lock().world.roster().queues.iter().map(|queue| queue.id.clone()).collect()
    }

    /// The ids of the world's agents: the platform's users.
    pub fn agent_ids(&self) -> Vec<String> {
        self.platform.lock().world.roster().agents.iter().map(|agent| agent.id.clone()).collect()
    }

    /// Ends every connection and waits for every task.
    pub async fn stop(self) {
        self.platform.stop.cancel();
        self.platform.tasks.close();
        self.platform.tasks.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.platform.stop.cancel();
    }
}

/// The events that the platform emitted. The sequenced stream needs no list: its numbers are dense.
#[derive(Clone, Debug)]
pub struct EmissionLedger {
    platform: Arc<SimulatedPlatform>,
}

impl EmissionLedger {
    /// A mark for [`Self::emitted_since`]: only later notifications count.
    pub fn mark(&self) -> u64 {
        self.platform.lock().notification_log.next_number()
    }

    /// The notifications that were emitted since a mark, oldest first. At most the last 250,000 are held.
    pub fn emitted_since(&self, mark: u64) -> Vec<EmittedNotification> {
        self.platform.lock().notification_log.since(mark)
    }

    /// The highest number on the sequenced stream.
    pub fn last_sequence(&self) -> u64 {
        self.platform.lock().sequence.last()
    }
}

fn router(platform: &Arc<SimulatedPlatform>) -> Router {
    Router::new()
        .route("/oauth/token", post(oauth::grant))
        .route("/api/v2/oauth/token", post(oauth::grant))
        .route("/channels/{id}", get(notifications::open))
        .route("/api/v2/analytics/conversations/summary/stream", get(sequenced::by_header))
        .route("/api/v2/analytics/events/ws", get(sequenced::by_query))
        .merge(rest::router(platform))
        .merge(control::router())
        .layer(from_fn_with_state(platform.clone(), response_faults::layer))
        .fallback(reply::unknown)
        .with_state(platform.clone())
}

/// Emits events at the rate of the settings.
async fn emit_at_rate(platform: Arc<SimulatedPlatform>) {
    let rate = platform.settings.rate;
    if rate <= 0.0 {
        return;
    }
    let started_at = clock::now();
    let mut emitted = 0;
    loop {
        let pause = TICK.max(platform.settings.scenario_step().min(Duration::from_secs(1)));
        tokio::select! {
            biased;
            () = platform.stop.cancelled() => return,
            () = sleep(pause) => (),
        }
        let due = (started_at.elapsed().as_secs_f64() * rate) as u64;
        platform.emit(due - emitted);
        emitted = due;
    }
}

/// Injects the faults of the script at their times.
async fn run_script(platform: Arc<SimulatedPlatform>) {
    let started_at = clock::now();
    let mut done = None;
    while let Some((at, faults)) = platform.settings.script.next(done) {
        tokio::select! {
            biased;
            () = platform.stop.cancelled() => return,
            () = tokio::time::sleep_until(clock::after(started_at, at).into()) => (),
        }
        for fault in faults {
            platform.inject(fault);
        }
        done = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::probe::{SimulatorProbe, eventually};
    use super::*;

    #[tokio::test]
    async fn it_listens_at_once_and_stops_cleanly() {
        let started_at = clock::now();
        let probe = SimulatorProbe::start(Settings::default()).await;
        assert!(started_at.elapsed() < Duration::from_secs(1));
        let mut socket = probe.stream(None).await.unwrap();
        let address = probe.simulator.address();
        probe.simulator.stop().await;
        assert_eq!(socket.closed().await, None);
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn events_are_emitted_at_the_configured_rate() {
        let probe = SimulatorProbe::start(Settings { rate: 500.0, ..Settings::default() }).await;
        let mut socket = probe.stream(Some(0)).await.unwrap();
        let sequences = socket.sequences_at_least(100).await;
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[tokio::test]
    async fn two_platforms_with_one_seed_emit_the_same_events() {
        let base = time::macros::datetime!(2026-05-04 12:00 UTC);
        let settings = Settings { scenario_start: Some(base), ..Settings::default() };
        let (one, other) = (SimulatorProbe::start(settings.clone()).await, SimulatorProbe::start(settings).await);
        let (mut here, mut there) = (one.stream(None).await.unwrap(), other.stream(None).await.unwrap());
        one.simulator.emit(60);
        for _ in 0..60 {
            other.simulator.emit(1);
        }
        assert_eq!(here.events(60).await, there.events(60).await);
    }

    #[tokio::test]
    async fn a_script_injects_its_faults_on_schedule() {
        let script = FaultScript::parse(
            "[[fault]]\nat = '20ms'\nevery = '20ms'\nfault = 'jump'\nn = 1\n\
             [[fault]]\nat = '0s'\nfault = 'refuse'\nstatus = 429\nretry_after = '9'",
        );
        let probe = SimulatorProbe::start(Settings { script: script.unwrap(), ..Settings::default() }).await;
        eventually(|| probe.simulator.counters().last_sequence >= 3).await;
        assert_eq!(probe::refused(probe.stream(None).await), 429);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_does_not_slow_the_others() {
        let probe = SimulatorProbe::start(Settings { frame_max: 50, ..Settings::default() }).await;
        let slow_socket = probe.stream(None).await.unwrap();
        let mut socket = probe.stream(None).await.unwrap();
        for _ in 0..20 {
            probe.simulator.emit(1_000);
            assert_eq!(socket.sequences_at_least(1_000).await.len(), 1_000);
        }
        drop(slow_socket);
    }
}
