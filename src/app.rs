//! The wiring: starts every part from the configuration, owns the task groups, and drains them in order.

mod connections;
mod replicas;
mod starting;
mod trial;

pub use self::{
    starting::{StoreCheck, check_store},
    trial::{SnapshotCheck, Trial},
};

use std::{collections::BTreeMap, future::Future, net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow};
use tempfile::TempDir;

use self::{
    connections::{admin_settings, server_settings, share_descriptors},
    replicas::{join, sharing},
};
use crate::{
    admin::{self, AdminServer, Readiness, StartupProgress},
    auth::{self, Tokens},
    config::{self, Config, StreamConfig},
    coordination::{LeaseHandle, Replica},
    downstream::{
        consumers::Consumers,
        server::{
            self,
            access::{AccessControl, Verifier},
        },
    },
    event_log::EventLogs,
    model::{AccountName, StreamName},
    network::{NetworkPolicy, Resolver, TrustedRoots},
    protocol::{session::Timeouts, stream},
    store::{Store, embedded, redis},
    tasks::Tasks,
    telemetry::metrics,
    upstream::{self, StreamRegistry},
};

/// Timeout until a socket is open, and again until its first data.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Timeout of the WebSocket close handshake with the platform.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for the successor of a stream to be live. After it the stream is released without a successor.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Timeout for the handover or release of all streams.
const HANDOVER_GRACE: Duration = Duration::from_secs(10);
const REPLICAS_GRACE: Duration = Duration::from_secs(1);
/// Timeout for streams to close their sessions and flush received events.
const UPSTREAM_GRACE: Duration = Duration::from_secs(6);
/// Timeout to send subscribers their remaining entries and a close.
const DOWNSTREAM_GRACE: Duration = Duration::from_secs(5);
/// Timeout to finish a token request: a rotated refresh token must not be lost.
const ACCOUNTS_GRACE: Duration = Duration::from_secs(12);
/// One thread serves probes while the other renders a long page.
const ADMIN_THREADS: usize = 2;
/// Timeout for the last admin requests.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// A running daemon.
#[derive(Debug)]
pub struct App {
    /// Present if several processes share a store.
    replica: Option<Replica>,
    replicas: Tasks,
    accounts: Tasks,
    upstream: Tasks,
    downstream: Tasks,
    admin: Tasks,
    logs: EventLogs,
    store: Store,
    streams: StreamRegistry,
    readiness: Readiness,
    consumers_at: SocketAddr,
    admin_at: SocketAddr,
}

impl App {
    /// Binds both listeners, opens the store, with retries until it succeeds, and starts every account and stream.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// A listener cannot be bound, or a part cannot be started.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        install_crypto();
        metrics::register_series();
        let connections = share_descriptors(&config);
        let server = server::ConsumerServer::bind(server_settings(&config, connections.consumers))
            .with_context(|| format!("http.listen: cannot listen on {}", config.http.listen.address()))?;
        let admin = AdminServer::bind(admin_settings(&config, connections.operators))
            .with_context(|| format!("admin.listen: cannot listen on {}", config.admin.listen.address()))?;
        let mut replicas = Tasks::new("replicas");
        let mut accounts = Tasks::new("accounts");
        // Separate threads: events of the platform do not wait for a thousand subscribers.
        let mut upstream =
            Tasks::on_own_threads("upstream", config.streams.len()).context("cannot start threads for the streams")?;
        let mut downstream = Tasks::new("downstream");
        // Separate threads: admin requests do not wait for a thousand subscribers.
        let mut operators =
            Tasks::on_own_threads("admin", ADMIN_THREADS).context("cannot start threads for operators")?;
        let (consumers_at, admin_at) = (server.address(), admin.address());
        let progress = StartupProgress::default();
        let server = server.accept(&mut downstream);
        let admin =
            admin.start(&mut operators, progress.clone(), config.streams.keys().cloned().collect(), connections);
        tracing::info!(consumers = %consumers_at, admin = %admin_at, "listening");
        let (store, logs) = starting::open(&config, &progress).await;
        let sharing = sharing(&config, &store).await?;
        let tokens = start_accounts(&config, sharing.as_ref(), &mut accounts)?;
        let (replica, leases) = join(&config, &store, &mut replicas);
        let streams = start_streams(&config, &logs, &tokens, leases, &mut upstream).await?;
        let durable = Consumers::start(store.clone(), logs.clone(), config.consumers.clone(), &mut downstream);
        let access = start_access(&config, &store, connections.consumers, &mut downstream).await?;
        let live = streams.clone();
        server.with_access(access.clone()).serve(logs.clone(), durable, move |stream| live.is_live(stream));
        let readiness = Readiness::default();
        let parts = admin::AdminContext {
            access,
            store: store.clone(),
            streams: streams.clone(),
            accounts: tokens.into_values().collect(),
            replica: replica.clone(),
            readiness: readiness.clone(),
            logs: logs.clone(),
            connections,
        };
        admin.serve(parts);
        start_store_maintenance(&store, &mut operators);
        Ok(Self {
            replica,
            replicas,
            accounts,
            upstream,
            downstream,
            admin: operators,
            logs,
            store,
            streams,
            readiness,
            consumers_at,
            admin_at,
        })
    }

    /// The address of the listener for consumers.
    pub fn consumers_at(&self) -> SocketAddr {
        self.consumers_at
    }

    /// The address of the admin listener.
    pub fn admin_at(&self) -> SocketAddr {
        self.admin_at
    }

    /// The streams, with their status and commands.
    pub fn streams(&self) -> &StreamRegistry {
        &self.streams
    }

    /// The logs of all streams.
    pub fn logs(&self) -> &EventLogs {
        &self.logs
    }

    /// Runs until `stop`, or until a part fails; then drains: hands streams over, closes sessions, flushes received
    /// events, sends them to subscribers, and closes.
    ///
    /// # Errors
    ///
    /// A part failed, or did not drain in time.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            () = stop => Ok(()),
            fault = self.accounts.fault() => Err(anyhow!(fault)),
            fault = self.upstream.fault() => Err(anyhow!(fault)),
            fault = self.replicas.fault() => Err(anyhow!(fault)),
            fault = self.downstream.fault() => Err(anyhow!(fault)),
            fault = self.admin.fault() => Err(anyhow!(fault)),
        };
        self.readiness.drain();
        if let Some(replica) = &self.replica {
            let handing_over = replica.drain(HANDOVER_MAX);
            if tokio::time::timeout(HANDOVER_GRACE, handing_over).await.is_err() {
                tracing::warn!(
                    "handover incomplete; other replicas take the remaining streams after the lease expires"
                );
            }
        }
        // In parallel: streams need no new token now, so they do not wait for a pending refresh.
        let accounts = self.accounts.drain(ACCOUNTS_GRACE);
        let streams = async {
            let upstream = self.upstream.drain(UPSTREAM_GRACE).await;
            let replicas = self.replicas.drain(REPLICAS_GRACE).await;
            self.logs.close();
            [upstream, replicas, self.downstream.drain(DOWNSTREAM_GRACE).await]
        };
        let (accounts, [upstream, replicas, downstream]) = tokio::join!(accounts, streams);
        let drained = [upstream, replicas, accounts, downstream, self.admin.drain(ADMIN_GRACE).await];
        self.store.close().await;
        let first = drained.into_iter().find_map(Result::err);
        outcome.and(first.map_or(Ok(()), |fault| Err(anyhow!(fault))))
    }
}

/// Creates a folder in the system's temporary folder; it is removed when the value is dropped.
pub fn temporary_folder(purpose: &str) -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("trunkline-{purpose}-"))
        .tempdir()
        .context("cannot create a temporary folder")
}

/// Installs the cryptography of the process, for TLS and tokens; further calls have no effect.
pub fn install_crypto() {
    let tls = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tokens = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    if tls.is_err() || tokens.is_err() {
        tracing::trace!("the crypto provider is installed already");
    }
}

/// Starts the periodic maintenance of a store.
fn start_store_maintenance(store: &Store, tasks: &mut Tasks) {
    match store {
        Store::Embedded(_) => (),
        Store::Redis(store) => {
            let (store, stop) = (store.clone(), tasks.stop());
            tasks.start("store", async move {
                store.run_maintenance(stop).await;
                Ok(())
            });
        }
    }
}

fn start_accounts(
    config: &Config,
    sharing: Option<&auth::TokenSharingSettings>,
    tasks: &mut Tasks,
) -> anyhow::Result<BTreeMap<AccountName, Tokens>> {
    // The accounts share the trusted roots and the resolver.
    let (trust, resolver) = (TrustedRoots::of_machine().context("cannot set up TLS")?, Resolver::default());
    let start = |(name, account): (&AccountName, &config::AccountConfig)| {
        let network = NetworkPolicy::new(account.network.clone(), trust.clone(), resolver.clone());
        let tokens = match sharing {
            Some(sharing) => Tokens::start_shared(account.auth.clone(), &network, sharing.clone(), tasks),
            None => Tokens::start(account.auth.clone(), &network, tasks),
        };
        Ok((name.clone(), tokens.with_context(|| format!("accounts.{name}"))?))
    };
    config.accounts.iter().map(start).collect()
}

/// The access of consumers, if they authenticate. It accepts tokens when the revocations are read.
async fn start_access(
    config: &Config,
    store: &Store,
    connections_max: usize,
    tasks: &mut Tasks,
) -> anyhow::Result<Option<AccessControl>> {
    let Some(settings) = &config.http.auth else { return Ok(None) };
    let trust = TrustedRoots::of_machine().context("cannot set up TLS")?;
    let network = NetworkPolicy::new(config.key_network.clone(), trust, Resolver::default());
    let verifier = Verifier::start(settings, &network, tasks).await.context("http.auth")?;
    Ok(Some(AccessControl::start(settings, verifier, store.clone(), connections_max, tasks)))
}

async fn start_streams(
    config: &Config,
    logs: &EventLogs,
    tokens: &BTreeMap<AccountName, Tokens>,
    leases: BTreeMap<StreamName, LeaseHandle>,
    tasks: &mut Tasks,
) -> anyhow::Result<StreamRegistry> {
    let settings = |(name, stream): (&StreamName, &StreamConfig)| {
        let tokens = tokens.get(&stream.account).context("every stream has an account")?;
        Ok(stream_settings(name, stream, config, tokens.network()))
    };
    let settings: anyhow::Result<Vec<_>> = config.streams.iter().map(settings).collect();
    StreamRegistry::start(settings?, logs, tokens, leases, tasks).await
}

/// The settings of a stream from its configuration.
fn stream_settings(
    name: &StreamName,
    from: &StreamConfig,
    config: &Config,
    network: &NetworkPolicy,
) -> upstream::Settings {
    let api_url = config.accounts.get(&from.account).and_then(|account| account.api_url.clone());
    let api_url = api_url.unwrap_or_default();
    upstream::Settings {
        stream: name.clone(),
        account: from.account.clone(),
        network: network.clone(),
        frame_max: from.keys.frame_max,
        rules: stream::Settings {
            feed: from.connector.feed(&api_url),
            connector: from.connector.clone(),
            rotation: from.keys.rotation,
            rotation_jitter: from.keys.rotation_jitter,
            retention: from.keys.retention,
            buffer: from.keys.buffer,
            buffer_bytes: from.keys.buffer_bytes,
            append_max: match &config.store.kind {
                config::StoreBackend::Embedded => embedded::APPEND_MAX,
                config::StoreBackend::Redis(_) => redis::APPEND_MAX,
            },
            overflow: from.overflow,
            timeouts: Timeouts {
                connect: CONNECT_MAX,
                silence: from.keys.silence_max,
                frame: from.keys.frame_time_max,
                close: CLOSE_TIMEOUT,
            },
            backoff: from.keys.backoff,
        },
        api_url,
    }
}
