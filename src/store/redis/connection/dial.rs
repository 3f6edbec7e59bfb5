//! Dials the server, the primary that a Sentinel names, or a cluster.

use std::{future::Future, pin::pin};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushInfo, PushKind, RedisConnectionInfo, RedisError, TlsMode, Value, aio::MultiplexedConnection,
    cluster::ClusterClientBuilder, cmd, io::tcp::TcpSettings,
};
use tokio::runtime::Handle;

use super::{DriverConnection, RedisTimeouts, fault};
use crate::store::redis::address::{Address, RedisHost, RedisLogin, Topology};

/// The maximum number of redirections of one command that the cluster client follows.
const REDIRECTIONS_MAX: u32 = 5;

/// Dials. Calls `lost` when the connection ends later.
pub(super) async fn dial(
    address: &Address,
    limits: RedisTimeouts,
    lost: impl Fn() + Send + Sync + 'static,
) -> Result<DriverConnection, RedisError> {
    match &address.topology {
        Topology::Single => single(address, &address.hosts[0], limits, lost).await.map(DriverConnection::Single),
        Topology::Sentinel { primary } => {
            let host = resolve_primary(address, primary, limits).await?;
            let mut connection = single(address, &host, limits, lost).await?;
            require_primary(&mut connection).await?;
            Ok(DriverConnection::Single(connection))
        }
        Topology::Cluster => cluster(address, limits).await,
    }
}

/// A client for pub/sub. In a cluster every node delivers all messages.
pub(super) async fn client(address: &Address, limits: RedisTimeouts) -> Result<Client, RedisError> {
    match &address.topology {
        Topology::Single => Client::open(info(address, &address.hosts[0])?),
        Topology::Sentinel { primary } => {
            let host = resolve_primary(address, primary, limits).await?;
            Client::open(info(address, &host)?)
        }
        Topology::Cluster => {
            let index = fastrand::usize(..address.hosts.len());
            Client::open(info(address, &address.hosts[index])?)
        }
    }
}

async fn single(
    address: &Address,
    host: &RedisHost,
    limits: RedisTimeouts,
    lost: impl Fn() + Send + Sync + 'static,
) -> Result<MultiplexedConnection, RedisError> {
    let on_push = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            lost();
        }
        Ok::<(), ()>(())
    };
    let config = driver_config(limits).set_push_sender(on_push);
    Client::open(info(address, host)?)?.get_multiplexed_async_connection_with_config(&config).await
}

async fn cluster(address: &Address, limits: RedisTimeouts) -> Result<DriverConnection, RedisError> {
    let nodes = address.hosts.iter().map(|host| info(address, host)).collect::<Result<Vec<_>, _>>()?;
    let mut builder = ClusterClientBuilder::new(nodes)
        .retries(REDIRECTIONS_MAX)
        .connection_timeout(limits.connect)
        .response_timeout(limits.response)
        .overall_response_timeout(Some(limits.response))
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(tcp());
    if address.tls {
        builder = builder.tls(TlsMode::Secure);
    }
    builder.build()?.get_async_connection().await.map(DriverConnection::Cluster)
}

/// Asks the Sentinels one after the other until one names the primary. Each gets its share of the timeout.
async fn resolve_primary(address: &Address, primary: &str, limits: RedisTimeouts) -> Result<RedisHost, RedisError> {
    let share = limits.connect / (u32::try_from(address.hosts.len()).unwrap_or(1) + 1);
    let mut last = RedisError::from((ErrorKind::EmptySentinelList, "no Sentinel was asked"));
    for sentinel in &address.hosts {
        match tokio::time::timeout(share, resolve_primary_at(address, sentinel, primary, limits)).await {
            Ok(Ok(host)) => return Ok(host),
            Ok(Err(error)) => last = with_sentinel(sentinel, error),
            Err(_) => last = (ErrorKind::Io, "a Sentinel did not answer", sentinel.to_string()).into(),
        }
    }
    Err(last)
}

/// Uses the Sentinels' own login if there is one. Sends the server's login only to a Sentinel that requires one: many
/// Sentinels have none and reject any login.
async fn resolve_primary_at(
    address: &Address,
    sentinel: &RedisHost,
    primary: &str,
    limits: RedisTimeouts,
) -> Result<RedisHost, RedisError> {
    let own = address.sentinels.as_ref();
    match (query_sentinel(address.tls, sentinel, own, primary, limits).await, address.login()) {
        (Err(error), Some(login)) if own.is_none() && fault::wants_login(&error) => {
            query_sentinel(address.tls, sentinel, Some(&login), primary, limits).await
        }
        (answer, _) => answer,
    }
}

async fn query_sentinel(
    tls: bool,
    sentinel: &RedisHost,
    login: Option<&RedisLogin>,
    primary: &str,
    limits: RedisTimeouts,
) -> Result<RedisHost, RedisError> {
    // Sentinels have no databases.
    let info = endpoint(tls, sentinel).into_connection_info()?.set_tcp_settings(tcp());
    let info = info.set_redis_settings(with_login(RedisConnectionInfo::default(), login));
    let mut connection =
        Client::open(info)?.get_multiplexed_async_connection_with_config(&driver_config(limits)).await?;
    let mut query = cmd("SENTINEL");
    query.arg("get-master-addr-by-name").arg(primary);
    let answer: Option<(String, u16)> = query.query_async(&mut connection).await?;
    let (name, port) = answer.ok_or_else(|| {
        RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "unknown to the Sentinel", primary.to_owned()))
    })?;
    Ok(RedisHost { name, port })
}

/// Adds the Sentinel's name to an error about its login.
fn with_sentinel(sentinel: &RedisHost, error: RedisError) -> RedisError {
    match fault::is_refused_login(&error) {
        true => (ErrorKind::AuthenticationFailed, "by the Sentinel", format!("{sentinel}: {error}")).into(),
        false => error,
    }
}

/// Asks the server for its role, because Sentinels can return an outdated primary shortly after a failover.
async fn require_primary(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let role: Vec<Value> = cmd("ROLE").query_async(connection).await?;
    let role: String = role.into_iter().next().map(redis::from_redis_value).transpose()?.unwrap_or_default();
    match role.as_str() {
        "master" => Ok(()),
        _ => Err((ErrorKind::Io, "the server that the Sentinels name is no primary", role).into()),
    }
}

fn driver_config(limits: RedisTimeouts) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limits.connect))
        .set_response_timeout(Some(limits.response))
}

fn info(address: &Address, host: &RedisHost) -> Result<ConnectionInfo, RedisError> {
    let login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(address.database)
        .set_lib_name("trunkline", env!("CARGO_PKG_VERSION"));
    let login = with_login(login, address.login().as_ref());
    let info = endpoint(address.tls, host).into_connection_info()?;
    Ok(info.set_redis_settings(login).set_tcp_settings(tcp()))
}

fn with_login(settings: RedisConnectionInfo, login: Option<&RedisLogin>) -> RedisConnectionInfo {
    let Some(RedisLogin { user, password }) = login else { return settings };
    let settings = settings.set_password(password.expose());
    match user {
        Some(user) => settings.set_username(user),
        None => settings,
    }
}

fn endpoint(tls: bool, host: &RedisHost) -> ConnectionAddr {
    let RedisHost { name, port } = host.clone();
    match tls {
        true => ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(name, port),
    }
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Polls `work` inside `runtime`: the tasks that it starts run there, not on the runtime of the caller.
pub(super) async fn within<T>(runtime: &Handle, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let _inside = runtime.enter();
        work.as_mut().poll(context)
    })
    .await
}
