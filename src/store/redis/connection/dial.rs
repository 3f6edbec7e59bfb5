//! Dialling: to the server itself, to the primary that a Sentinel names, or to a cluster.

use std::{future::Future, pin::pin};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushInfo, PushKind, RedisConnectionInfo, RedisError, TlsMode, Value, aio::MultiplexedConnection,
    cluster::ClusterClientBuilder, cmd, io::tcp::TcpSettings,
};
use tokio::runtime::Handle;

use super::{Limits, Wire, fault};
use crate::store::redis::address::{Address, Host, Kind, Login};

/// A cluster's client follows so many redirections of one command.
const REDIRECTIONS_MAX: u32 = 5;

/// Dials. `lost` is called when the connection ends later.
pub(super) async fn dial(
    address: &Address,
    limits: Limits,
    lost: impl Fn() + Send + Sync + 'static,
) -> Result<Wire, RedisError> {
    match &address.kind {
        Kind::Single => single(address, &address.hosts[0], limits, lost).await.map(Wire::Single),
        Kind::Sentinel { primary } => {
            let host = ask_sentinels(address, primary, limits).await?;
            let mut connection = single(address, &host, limits, lost).await?;
            must_be_primary(&mut connection).await?;
            Ok(Wire::Single(connection))
        }
        Kind::Cluster => cluster(address, limits).await,
    }
}

/// Where pub/sub is heard: every node of a cluster hears all.
pub(super) async fn client(address: &Address, limits: Limits) -> Result<Client, RedisError> {
    match &address.kind {
        Kind::Single => Client::open(info(address, &address.hosts[0])?),
        Kind::Sentinel { primary } => {
            let host = ask_sentinels(address, primary, limits).await?;
            Client::open(info(address, &host)?)
        }
        Kind::Cluster => {
            let index = fastrand::usize(..address.hosts.len());
            Client::open(info(address, &address.hosts[index])?)
        }
    }
}

async fn single(
    address: &Address,
    host: &Host,
    limits: Limits,
    lost: impl Fn() + Send + Sync + 'static,
) -> Result<MultiplexedConnection, RedisError> {
    let heard = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            lost();
        }
        Ok::<(), ()>(())
    };
    let config = settings(limits).set_push_sender(heard);
    Client::open(info(address, host)?)?.get_multiplexed_async_connection_with_config(&config).await
}

async fn cluster(address: &Address, limits: Limits) -> Result<Wire, RedisError> {
    let nodes = address.hosts.iter().map(|host| info(address, host)).collect::<Result<Vec<_>, _>>()?;
    let mut builder = ClusterClientBuilder::new(nodes)
        .retries(REDIRECTIONS_MAX)
        .connection_timeout(limits.connect)
        .response_timeout(limits.answer)
        .overall_response_timeout(Some(limits.answer))
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(tcp());
    if address.tls {
        builder = builder.tls(TlsMode::Secure);
    }
    builder.build()?.get_async_connection().await.map(Wire::Cluster)
}

/// One Sentinel after the other is asked, until one knows. Each gets its share of the time.
async fn ask_sentinels(address: &Address, primary: &str, limits: Limits) -> Result<Host, RedisError> {
    let share = limits.connect / (u32::try_from(address.hosts.len()).unwrap_or(1) + 1);
    let mut last = RedisError::from((ErrorKind::EmptySentinelList, "no Sentinel was asked"));
    for sentinel in &address.hosts {
        match tokio::time::timeout(share, ask_sentinel(address, sentinel, primary, limits)).await {
            Ok(Ok(host)) => return Ok(host),
            Ok(Err(error)) => last = named(sentinel, error),
            Err(_) => last = (ErrorKind::Io, "a Sentinel did not answer", sentinel.to_string()).into(),
        }
    }
    Err(last)
}

/// A login of the Sentinels' own is presented. The server's is presented only to a Sentinel that wants one: many have
/// none, and refuse whatever is presented.
async fn ask_sentinel(address: &Address, sentinel: &Host, primary: &str, limits: Limits) -> Result<Host, RedisError> {
    let own = address.sentinels.as_ref();
    match (ask(address.tls, sentinel, own, primary, limits).await, address.login()) {
        (Err(error), Some(login)) if own.is_none() && fault::wants_login(&error) => {
            ask(address.tls, sentinel, Some(&login), primary, limits).await
        }
        (answer, _) => answer,
    }
}

async fn ask(
    tls: bool,
    sentinel: &Host,
    login: Option<&Login>,
    primary: &str,
    limits: Limits,
) -> Result<Host, RedisError> {
    // Sentinels have no databases.
    let info = endpoint(tls, sentinel).into_connection_info()?.set_tcp_settings(tcp());
    let info = info.set_redis_settings(with_login(RedisConnectionInfo::default(), login));
    let mut connection = Client::open(info)?.get_multiplexed_async_connection_with_config(&settings(limits)).await?;
    let mut question = cmd("SENTINEL");
    question.arg("get-master-addr-by-name").arg(primary);
    let answer: Option<(String, u16)> = question.query_async(&mut connection).await?;
    let (name, port) = answer.ok_or_else(|| {
        RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "unknown to the Sentinel", primary.to_owned()))
    })?;
    Ok(Host { name, port })
}

/// The error with the Sentinel that it comes from, where its login is what is wrong.
fn named(sentinel: &Host, error: RedisError) -> RedisError {
    match fault::is_refused_login(&error) {
        true => (ErrorKind::AuthenticationFailed, "by the Sentinel", format!("{sentinel}: {error}")).into(),
        false => error,
    }
}

/// Sentinels are behind for a moment after a failover; the server itself is asked.
async fn must_be_primary(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let role: Vec<Value> = cmd("ROLE").query_async(connection).await?;
    let role: String = role.into_iter().next().map(redis::from_redis_value).transpose()?.unwrap_or_default();
    match role.as_str() {
        "master" => Ok(()),
        _ => Err((ErrorKind::Io, "the server that the Sentinels name is no primary", role).into()),
    }
}

fn settings(limits: Limits) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(limits.connect)).set_response_timeout(Some(limits.answer))
}

fn info(address: &Address, host: &Host) -> Result<ConnectionInfo, RedisError> {
    let login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(address.database)
        .set_lib_name("trunkline", env!("CARGO_PKG_VERSION"));
    let login = with_login(login, address.login().as_ref());
    let info = endpoint(address.tls, host).into_connection_info()?;
    Ok(info.set_redis_settings(login).set_tcp_settings(tcp()))
}

fn with_login(settings: RedisConnectionInfo, login: Option<&Login>) -> RedisConnectionInfo {
    let Some(Login { user, password }) = login else { return settings };
    let settings = settings.set_password(password.expose());
    match user {
        Some(user) => settings.set_username(user),
        None => settings,
    }
}

fn endpoint(tls: bool, host: &Host) -> ConnectionAddr {
    let Host { name, port } = host.clone();
    match tls {
        true => ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(name, port),
    }
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Polls `work` inside `runtime`: what it starts lives there, and not where the caller happens to wait.
pub(super) async fn within<T>(runtime: &Handle, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let _inside = runtime.enter();
        work.as_mut().poll(context)
    })
    .await
}
