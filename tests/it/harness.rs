//! The real daemon beside the simulated platform, in one process and over real loopback sockets.
//!
//! A test says what happens and waits for facts; it never reaches into a part. Nothing here waits without a bound.

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

/// No test waits longer for a single fact.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(8);
/// How often a fact is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The simulated platform.
pub(crate) struct Platform(Simulator);

impl Platform {
    /// A quiet one: it says something only when told to.
    pub(crate) async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        Self(simulator::start(settings).await.unwrap())
    }

    /// Sockets of a dialect that were opened so far.
    pub(crate) fn opened(&self, dialect: SocketDialect) -> u64 {
        self.counters().sockets(dialect).total
    }

    /// Sockets of a dialect that are open.
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

    /// The correlation ids of the notifications said since `mark` to whoever had subscribed.
    pub(crate) fn sent_since(&self, mark: u64) -> Vec<String> {
        let said = self.ledger().emitted_since(mark);
        said.into_iter().filter(|said| said.subscribed).map(|said| said.correlation).collect()
    }
}

impl Deref for Platform {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.0
    }
}

/// A client of plain HTTP. It reads no certificates, which would take longer than most tests.
pub(crate) fn http() -> reqwest::Client {
    install_crypto();
    reqwest::Client::builder().tls_certs_only([]).build().unwrap()
}

/// What the environment says of the size of a test.
#[expect(clippy::disallowed_methods, reason = "no configuration of the daemon says how long a test shall last")]
pub(crate) fn env_setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Waits until the fact is one.
pub(crate) async fn eventually(what: &str, fact: impl AsyncFnMut() -> bool) {
    within(WAIT_MAX, what, fact).await;
}

/// Waits for a fact for so long at most.
pub(crate) async fn within(span: Duration, what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let end = clock::now() + span;
    while !fact().await {
        assert!(clock::now() < end, "it never came true that {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Watches for so long that the fact stays one: for what must not happen there is nothing to wait for.
pub(crate) async fn throughout(span: Duration, what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let end = clock::now() + span;
    while clock::now() < end {
        assert!(fact().await, "it did not stay true that {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
