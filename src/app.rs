//! The wiring: starts every part from the configuration, owns the task groups, and drains them in order.

mod starting;

use std::{collections::BTreeMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use tempfile::TempDir;

use crate::{
    admin::{self, AdminServer, Readiness, StartupProgress},
    auth::{self, AccountStatus, Tokens},
    config::{self, Config, StreamConfig},
    coordination::{self, LeaseHandle, Registry, Replica, SharedSettings},
    downstream::server,
    event_log::{self, EventLogs},
    listener::{self, descriptors},
    model::{AccountName, ReplicaId, Source, StreamName},
    network::{NetworkPolicy, Resolver, TrustedRoots},
    protocol::{lease, session::Timeouts, stream},
    random,
    store::{
        Retention, Retry, Store,
        embedded::{self, EmbeddedStore},
        redis::{self, RedisStore, address::Address, connection::RedisTimeouts},
    },
    tasks::Tasks,
    telemetry::metrics,
    upstream::{self, StreamRegistry, StreamStatus},
};

/// Bytes of a stream's newest entries that are served from memory.
const TAIL_BYTES: usize = 4 << 20;
/// Timeout until a socket is open, and again until its first data.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Timeout of the WebSocket close handshake with the platform.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for the successor of a stream to be live. After it the stream is released without a successor.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Timeout for the handover or release of all streams.
const HANDOVER_GRACE: Duration = Duration::from_secs(10);
const REPLICAS_GRACE: Duration = Duration::from_secs(1);
/// Interval of an owner's heartbeats to its standby.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// An owner without a heartbeat for this time is considered dead.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(400);
/// Maximum delay after the start before a replica takes streams, as a share of the lease: replicas that start together
/// see each other first.
const LEASE_JITTER_SHARE: f64 = 0.5;
/// Timeout of a lease request, as a share of the lease.
const ANSWER_TIMEOUT_SHARE: f64 = 0.25;
/// Timeout of a connection for lease requests, as a share of the lease.
const CONNECT_TIMEOUT_SHARE: f64 = 0.5;
/// Timeouts for shared tokens. After them a replica continues without the other replicas.
const VAULT_LIMITS: RedisTimeouts =
    RedisTimeouts { connect: Duration::from_millis(750), response: Duration::from_millis(750) };
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
        let live = streams.clone();
        server.serve(logs.clone(), move |stream: &StreamName| live.is_live(stream));
        let readiness = Readiness::default();
        let parts = admin::AdminContext {
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
        let admin = operators;
        Ok(Self {
            replica,
            replicas,
            accounts,
            upstream,
            downstream,
            admin,
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

/// Raises the limit of open files, and divides the descriptors among the listeners.
fn share_descriptors(config: &Config) -> descriptors::ConnectionBudget {
    let limit = descriptors::raise();
    let wanted = descriptors::DescriptorDemand {
        consumers: config.http.connections,
        streams: config.streams.len(),
        accounts: config.accounts.len(),
    };
    let share = descriptors::budget(limit, wanted);
    let (consumers, operators) = (share.consumers, share.operators);
    if consumers < wanted.consumers {
        tracing::warn!(
            consumers,
            operators,
            configured = wanted.consumers,
            descriptors = limit,
            "fewer connections than http.connections: raise the hard limit of open files (ulimit -Hn, LimitNOFILE)"
        );
    } else {
        tracing::info!(consumers, operators, descriptors = limit, "connection limits of the listeners");
    }
    share
}

fn server_settings(config: &Config, connections: usize) -> server::Settings {
    let http = &config.http;
    let limits = listener::HttpListener {
        connections_max: connections,
        connections_per_address_max: http.connections_per_address,
        trusted_proxies: http.trusted_proxies.clone(),
        ..listener::HttpListener::default()
    };
    server::Settings {
        allowed_origins: http.allowed_origins.clone(),
        allowed_hosts: http.allowed_hosts.clone(),
        limits,
        ..server::Settings::new(http.listen.address())
    }
}

fn admin_settings(config: &Config, connections: usize) -> admin::Settings {
    let usual = admin::Settings::new(config.admin.listen.address());
    let limits = listener::HttpListener {
        connections_max: connections,
        connections_per_address_max: connections,
        ..usual.limits
    };
    admin::Settings { allowed_hosts: config.admin.allowed_hosts.clone(), limits, ..usual }
}

/// The accounts and streams of a configuration with a temporary log, to test them.
#[derive(Debug)]
pub struct Trial {
    config: Config,
    accounts: Tasks,
    upstream: Tasks,
    tokens: BTreeMap<AccountName, Tokens>,
    streams: StreamRegistry,
    logs: EventLogs,
    store: Store,
    folder: TempDir,
}

impl Trial {
    /// Starts every account and stream, without listeners.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let folder = temporary_folder("check")?;
        config.store.kind = config::StoreBackend::Embedded;
        config.store.path = folder.path().to_owned();
        let store = open_store(&config).await?;
        let logs = open_logs(&config, &store).await?;
        let (mut accounts, mut upstream) = (Tasks::new("accounts"), Tasks::new("upstream"));
        let tokens = start_accounts(&config, None, &mut accounts)?;
        let streams = start_streams(&config, &logs, &tokens, BTreeMap::new(), &mut upstream).await?;
        Ok(Self { config, accounts, upstream, tokens, streams, logs, store, folder })
    }

    pub fn accounts(&self) -> Vec<AccountStatus> {
        self.tokens.values().map(Tokens::status).collect()
    }

    pub fn streams(&self) -> Vec<StreamStatus> {
        self.streams.statuses()
    }

    /// Requests the snapshot URL of a stream once; `None` if the stream has no such URL.
    pub async fn snapshot(&self, name: &StreamName) -> Option<SnapshotCheck> {
        let stream = self.config.streams.get(name)?;
        let tokens = self.tokens.get(&stream.account)?;
        let settings = stream_settings(name, stream, &self.config, tokens.network());
        let request = settings.configured_snapshot()?;
        let token = tokens.watch().borrow().clone();
        Some(match token {
            None => SnapshotCheck::NoToken,
            Some(token) => match settings.try_call(request, token.secret).await {
                Ok(good) => SnapshotCheck::Answered(good),
                Err(why) => SnapshotCheck::Failed(format!("streams.{name}.snapshot_url: {why}")),
            },
        })
    }

    /// Closes every session, and removes the temporary log.
    pub async fn end(self) -> anyhow::Result<()> {
        self.upstream.drain(UPSTREAM_GRACE).await?;
        self.accounts.drain(ACCOUNTS_GRACE).await?;
        self.logs.close();
        self.store.close().await;
        self.folder.close().context("cannot remove the temporary folder")
    }
}

/// The result of a request to a snapshot URL.
#[derive(Debug)]
pub enum SnapshotCheck {
    /// The account has no token.
    NoToken,
    Answered(String),
    Failed(String),
}

/// Creates a folder in the system's temporary folder; it is removed when the value is dropped.
pub fn temporary_folder(purpose: &str) -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("trunkline-{purpose}-"))
        .tempdir()
        .context("cannot create a temporary folder")
}

/// The result of opening a store.
#[derive(Debug)]
pub struct StoreCheck {
    pub summary: String,
    /// The warnings that the daemon logs at its start.
    pub warnings: Vec<String>,
}

/// Opens and closes the configured store.
pub async fn check_store(config: &Config) -> anyhow::Result<StoreCheck> {
    match open_store(config).await {
        Ok(store) => {
            let warnings = store.warnings().to_vec();
            store.close().await;
            let found = match &config.store.kind {
                config::StoreBackend::Embedded => format!("{} is usable", config.store.path.display()),
                config::StoreBackend::Redis(redis) => format!("{} is usable", redis.address),
            };
            Ok(StoreCheck { summary: found, warnings })
        }
        Err(error) => match error.downcast_ref() {
            Some(embedded::OpenError::InUse { path, holder }) => {
                let found = format!("{} is in use by a running daemon ({holder})", path.display());
                Ok(StoreCheck { summary: found, warnings: Vec::new() })
            }
            _ => Err(error),
        },
    }
}

/// Installs the TLS provider of the process; further calls have no effect.
pub fn install_crypto() {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::trace!("the crypto provider is installed already");
    }
}

/// When to retry after this failure to open the store.
fn retry(error: &anyhow::Error) -> Retry {
    let redis = error.downcast_ref::<redis::UnsupportedServer>().map(redis::UnsupportedServer::retry);
    redis.or_else(|| error.downcast_ref::<embedded::OpenError>().map(embedded::OpenError::retry)).unwrap_or(Retry::Soon)
}

async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let retention = config.store.retention;
    match &config.store.kind {
        config::StoreBackend::Embedded => {
            let settings = embedded::Settings { path: config.store.path.clone(), retention };
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&settings)).await?;
            Ok(Store::Embedded(opened?))
        }
        config::StoreBackend::Redis(from) => {
            let address = from.credentials.locate(&from.address).await?;
            let store = RedisStore::new(redis_settings(from, address, retention));
            let warnings = check_redis(&store).await.with_context(|| format!("store.url: {}", from.address))?;
            for warning in &warnings {
                tracing::warn!(address = %from.address, "{warning}");
            }
            store.set_warnings(warnings);
            Ok(Store::Redis(store))
        }
    }
}

/// Whether the server can be used, and warnings for the operator.
async fn check_redis(store: &RedisStore) -> Result<Vec<String>, redis::UnsupportedServer> {
    let mut warnings = store.preflight().await?;
    warnings.extend(coordination::settings_warning(store).await?);
    Ok(warnings)
}

fn redis_settings(from: &config::RedisConfig, address: Address, retention: Retention) -> redis::Settings {
    redis::Settings {
        address,
        credentials: from.credentials.clone(),
        prefix: from.prefix.clone(),
        durability: from.durability,
        retention,
        timeouts: RedisTimeouts::default(),
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

async fn open_logs(config: &Config, store: &Store) -> anyhow::Result<EventLogs> {
    let streams: Vec<(StreamName, Source)> =
        config.streams.iter().map(|(name, stream)| (name.clone(), Source::new(&stream.account, name))).collect();
    let settings = event_log::Settings { tail_bytes: TAIL_BYTES };
    EventLogs::open(store.clone(), &streams, &settings).await.context("cannot open the logs")
}

/// Settings to share tokens with the replicas on the same Redis, over a connection without appends.
async fn sharing(config: &Config, store: &Store) -> anyhow::Result<Option<auth::TokenSharingSettings>> {
    let (config::StoreBackend::Redis(from), Store::Redis(store)) = (&config.store.kind, store) else { return Ok(None) };
    let seal = auth::read_seal(from.seal_key.as_ref()).await.context("store.seal_key")?;
    let connection = store.connection().dedicated_within(VAULT_LIMITS);
    Ok(Some(auth::TokenSharingSettings { connection, prefix: from.prefix.clone(), seal: Arc::new(seal) }))
}

/// Joins the replicas on the same Redis, so that each stream has one owner.
fn join(config: &Config, store: &Store, tasks: &mut Tasks) -> (Option<Replica>, BTreeMap<StreamName, LeaseHandle>) {
    let (config::StoreBackend::Redis(from), Store::Redis(store)) = (&config.store.kind, store) else {
        metrics::replica_members(1);
        return (None, BTreeMap::new());
    };
    let me = ReplicaId(random::u64());
    let standby = config.streams.iter().filter(|(_, stream)| stream.keys.standby).map(|(name, _)| name.clone());
    let settings = lease::Settings {
        me,
        streams: config.streams.keys().cloned().collect(),
        limit: from.streams_max,
        standby: standby.collect(),
        lease_ttl: from.lease,
        heartbeat_interval: HEARTBEAT_INTERVAL,
        heartbeat_timeout: HEARTBEAT_TIMEOUT,
        handover_timeout: HANDOVER_MAX,
        start_delay: from.lease.mul_f64(LEASE_JITTER_SHARE * fastrand::f64()),
    };
    // A separate connection: lease requests do not wait for appends.
    let limits = RedisTimeouts {
        connect: from.lease.mul_f64(CONNECT_TIMEOUT_SHARE),
        response: from.lease.mul_f64(ANSWER_TIMEOUT_SHARE),
    };
    let shared_settings = SharedSettings::of(store.settings());
    let registry = Registry::new(store.connection().dedicated_within(limits), &from.prefix, me, shared_settings);
    let (replica, leases) = Replica::join(settings, registry, tasks);
    tracing::info!(replica = %me, "joined");
    (Some(replica), leases)
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
