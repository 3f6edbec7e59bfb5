//! The daemon and the simulated platform in one process, connected by real loopback sockets.
//!
//! Tests use public interfaces only and wait for conditions. Every wait has a bound.

mod consumer;
mod firehose;
mod peers;
mod plan;
mod redis;
mod redis_link;
mod relay;
mod resp;
mod tcp;

use std::{ops::Deref, str::FromStr, time::Duration};

use trunkline::{
    app::install_crypto,
    clock,
    simulator::{self, FaultTarget, PlatformFault, Settings, Simulator, SocketDialect},
};

pub(crate) use self::{
    consumer::{Consumer, ConsumerTransport, summarize_entry, summarize_log},
    firehose::Firehose,
    peers::{ForwardProxy, ListingPlatform, SilentPlatform},
    plan::RelayPlan,
    redis::{RedisServer, documented_rules, free_port, limits as redis_limits},
    redis_link::{HoldMode, RedisLink},
    relay::Relay,
    resp::{CommandMatch, ERRORS, FaultReply, RespFault, RespProxy, error_code},
    tcp::{ForeignHost, GarbageServer, ScriptedPlatform, TcpProxy, UpgradeReply, frame, numbered},
};

/// Longest wait for one condition.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(8);
/// Interval between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The simulated platform.
pub(crate) struct Platform(Simulator);

impl Platform {
    /// A platform without traffic: it sends events only when a test calls it.
    pub(crate) async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        Self(simulator::start(settings).await.unwrap())
    }

    /// Number of sockets of a dialect that were opened so far.
    pub(crate) fn opened(&self, dialect: SocketDialect) -> u64 {
        self.counters().sockets(dialect).total
    }

    /// Number of open sockets of a dialect.
    pub(crate) fn open(&self, dialect: SocketDialect) -> u64 {
        self.counters().sockets(dialect).open
    }

    /// Closes every socket with a code.
    pub(crate) fn close(&self, code: u16) {
        self.inject(PlatformFault::Close { on: FaultTarget::All, code, reason: "simulated".to_owned() });
    }

    /// Answers the next handshakes with a status.
    pub(crate) fn refuse(&self, status: u16, times: u32) {
        self.inject(PlatformFault::Refuse { on: FaultTarget::All, status, times, retry_after: None });
    }

    /// Correlation ids of the subscribed notifications since `mark`.
    pub(crate) fn sent_since(&self, mark: u64) -> Vec<String> {
        let sent = self.ledger().emitted_since(mark);
        sent.into_iter().filter(|sent| sent.subscribed).map(|sent| sent.correlation).collect()
    }
}

impl Deref for Platform {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.0
    }
}

/// A client for plain HTTP. It loads no certificates, which would take longer than most tests.
pub(crate) fn http() -> reqwest::Client {
    install_crypto();
    reqwest::Client::builder().tls_certs_only([]).build().unwrap()
}

/// The value of an environment variable that sets the size of a test.
#[expect(clippy::disallowed_methods, reason = "the size of a test is not a setting of the daemon")]
pub(crate) fn env_setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Waits until the condition is true.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    within(WAIT_MAX, what, condition).await;
}

/// Waits at most for `span` until the condition is true.
pub(crate) async fn within(span: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = clock::now() + span;
    while !condition().await {
        assert!(clock::now() < end, "not within {span:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits until a value stays the same for `span`, and returns it.
pub(crate) async fn settled<T: PartialEq>(span: Duration, what: &str, read: impl AsyncFn() -> T) -> T {
    let end = clock::now() + span + 3 * WAIT_MAX;
    let (mut value, mut since) = (read().await, clock::now());
    while clock::now() < since + span {
        assert!(clock::now() < end, "not the same for {span:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
        let next = read().await;
        if next != value {
            (value, since) = (next, clock::now());
        }
    }
    value
}

/// Checks during `span` that the condition stays true.
pub(crate) async fn throughout(span: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = clock::now() + span;
    while clock::now() < end {
        assert!(condition().await, "no longer true: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
