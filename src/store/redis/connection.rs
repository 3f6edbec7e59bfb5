//! The connection to Redis: one handle over a server, a primary behind Sentinels, or a cluster.
//!
//! It dials on demand, drops a connection that failed or whose server is not (or no longer) a primary, and dials again.
//! It never repeats a command, because only the caller can decide whether that is safe. (The cluster client repeats
//! commands after a redirection and after a lost connection, so a command that changes data must be idempotent there.)

mod dial;
mod fault;
mod listener;
mod script;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{
    Cmd, FromRedisValue, Pipeline, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr},
};
use tokio::{runtime::Handle, sync::Semaphore};

pub use self::{fault::CommandError, listener::PubSubListener, script::LuaScript};
use super::{address::Address, credentials::Credentials};
use crate::{
    clock,
    protocol::backoff::BackoffCurve,
    telemetry::{Cause, chain},
};

/// Delays between failed dials.
const REDIAL_BACKOFF: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.2 };

/// The timeouts.
#[derive(Debug, Clone, Copy)]
pub struct RedisTimeouts {
    /// From the dial to the server's greeting, including the Sentinels.
    pub connect: Duration,
    /// For the reply to one command.
    pub response: Duration,
}

impl Default for RedisTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), response: Duration::from_secs(2) }
    }
}

/// A handle. Clones share the connection, and their commands are sent in the order of the calls.
#[derive(Clone)]
pub struct RedisConnection {
    shared: Arc<ConnectionShared>,
}

struct ConnectionShared {
    address: Address,
    credentials: Credentials,
    timeouts: RedisTimeouts,
    /// The runtime of the connection's task, for every caller that dials.
    runtime: Handle,
    /// One caller dials; the others wait for the outcome.
    dialling: Semaphore,
    link: Mutex<ConnectionState>,
}

/// The state of the connection.
enum ConnectionState {
    /// `serial` identifies the connection among earlier and later ones.
    Up {
        driver: DriverConnection,
        serial: u64,
    },
    Down(Outage),
    Closed,
}

/// There is no connection.
#[derive(Debug, Clone)]
struct Outage {
    /// Failed dials since the last connection.
    failures: u32,
    /// The earliest time of the next dial; none: immediately.
    redial_at: Option<Instant>,
    why: CommandError,
    /// The serial of the last connection.
    serial: u64,
}

/// Identifies one connection of a handle among earlier and later ones. The state that a server keeps for a connection
/// (the keys that it watches) ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// One answer for each command that was sent in one batch.
pub type Answers = Vec<Result<Value, CommandError>>;

/// The client that sends commands.
#[derive(Clone)]
enum DriverConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisConnection {
    /// A handle for `address`. It does not dial yet. Connections run on the runtime of the caller.
    pub fn new(address: Address, limits: RedisTimeouts) -> Self {
        Self::with(address, Credentials::default(), limits)
    }

    /// A handle for `address` with logins that are read for each dial.
    pub fn with(address: Address, credentials: Credentials, limits: RedisTimeouts) -> Self {
        let down = Outage { failures: 0, redial_at: None, why: CommandError::not_sent("not dialled yet"), serial: 0 };
        let shared = ConnectionShared {
            address,
            credentials,
            timeouts: limits,
            runtime: Handle::current(),
            dialling: Semaphore::new(1),
            link: Mutex::new(ConnectionState::Down(down)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A separate connection to the same address, for commands that must not wait behind others. It runs on the runtime
    /// of the caller.
    pub fn dedicated(&self) -> Self {
        self.dedicated_within(self.shared.timeouts)
    }

    /// A separate connection to the same address with its own timeouts. A caller that waits for a shorter time must set
    /// them: only an answer that times out here reveals a dead connection.
    pub fn dedicated_within(&self, limits: RedisTimeouts) -> Self {
        Self::with(self.shared.address.clone(), self.shared.credentials.clone(), limits)
    }

    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// The reason why there is no connection; Ok when there is one.
    pub fn health(&self) -> Result<(), CommandError> {
        match &*self.shared.link.lock() {
            ConnectionState::Up { .. } => Ok(()),
            ConnectionState::Down(down) => Err(down.why.clone()),
            ConnectionState::Closed => Err(closed()),
        }
    }

    /// Whether the handle was closed.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.shared.link.lock(), ConnectionState::Closed)
    }

    /// Sends one command and waits for its reply.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CommandError> {
        let (mut wire, serial) = self.driver().await?;
        let answer = match &mut wire {
            DriverConnection::Single(wire) => wire.req_packed_command(command).await,
            DriverConnection::Cluster(wire) => wire.req_packed_command(command).await,
        };
        let answer = answer.and_then(Value::extract_error).map_err(|error| self.classify(error, serial))?;
        redis::from_redis_value(answer).map_err(|error| CommandError::NoAnswer(Cause::new(error)))
    }

    /// Sends all commands in one batch and waits for their replies. They run in order; commands of other callers may
    /// run in between. In a cluster all go to the primary that has `key`.
    pub async fn run_all(&self, key: &str, commands: &Pipeline) -> Result<Vec<Value>, CommandError> {
        let (mut wire, serial) = self.driver().await?;
        let count = commands.len();
        let answers = match &mut wire {
            DriverConnection::Single(wire) => wire.req_packed_commands(commands, 0, count).await,
            DriverConnection::Cluster(wire) => wire.route_pipeline(commands.clone(), 0, count, primary_of(key)).await,
        };
        let answers = answers.map_err(|error| self.classify(error, serial))?;
        let refused = answers.iter().find_map(|answer| answer.clone().extract_error().err());
        match refused {
            Some(error) => Err(self.classify(error, serial)),
            None if answers.len() == count => Ok(answers),
            None => Err(CommandError::NoAnswer(Cause::new("answers are missing"))),
        }
    }

    /// The id of the current connection; dials if there is none.
    pub async fn pin(&self) -> Result<ConnectionId, CommandError> {
        self.driver().await.map(|(_, serial)| ConnectionId(serial))
    }

    /// Sends all commands in one batch over that connection and waits for their replies, including errors. The first
    /// `unanswered` commands get no reply: they run with CLIENT REPLY OFF, and the next command sets it ON again. If
    /// the connection was lost, nothing is sent and the result is none. In a cluster the result is always none, because
    /// commands go over several connections.
    pub async fn run_pinned(
        &self,
        tie: ConnectionId,
        commands: &Pipeline,
        unanswered: usize,
    ) -> Result<Option<Answers>, CommandError> {
        let (wire, serial) = self.driver().await?;
        let mut wire = match wire {
            DriverConnection::Single(wire) if tie == ConnectionId(serial) => wire,
            DriverConnection::Single(_) | DriverConnection::Cluster(_) => return Ok(None),
        };
        let answers = wire.req_packed_commands(commands, 0, commands.len() - unanswered).await;
        let answers = answers.map_err(|error| self.classify(error, serial))?;
        let judged = |answer: Value| answer.extract_error().map_err(|error| self.classify(error, serial));
        Ok(Some(answers.into_iter().map(judged).collect()))
    }

    /// Ends that connection, because its replies can no longer be matched to commands.
    pub fn discard(&self, tie: ConnectionId, why: &CommandError) {
        let ConnectionId(serial) = tie;
        self.shared.mark_lost(serial, why);
    }

    /// Runs a script, which touches only the keys in `keys` (in a cluster all of one slot).
    pub async fn call<T: FromRedisValue>(
        &self,
        script: &LuaScript,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        let by_name = self.run(&script.by_name(keys, arguments)).await;
        match by_name {
            // The server was restarted, or never had the script.
            Err(error) if error.code() == Some("NOSCRIPT") => self.run(&script.in_full(keys, arguments)).await,
            answer => answer,
        }
    }

    /// Subscribes to channels over a separate connection. Messages that are published while it is not connected are
    /// lost: then read the key in question again.
    pub async fn listen(&self, channels: &[&str]) -> Result<PubSubListener, CommandError> {
        let ConnectionShared { address, credentials, timeouts: limits, .. } = &*self.shared;
        let connecting = async {
            let address = credentials.resolve(address).await;
            let address = address.map_err(|error| CommandError::NotSent(Cause::new(error)))?;
            listener::open(&address, *limits, channels).await.map_err(|error| match error.code() {
                Some(_) => CommandError::of(error),
                None => CommandError::not_connected(error),
            })
        };
        let opened = tokio::time::timeout(limits.connect, connecting).await;
        opened.unwrap_or_else(|_| Err(connect_timed_out(limits.connect)))
    }

    /// Closes the handle: it sends no further commands.
    pub fn close(&self) {
        *self.shared.link.lock() = ConnectionState::Closed;
    }

    /// The connection and its serial; dials if there is none.
    async fn driver(&self) -> Result<(DriverConnection, u64), CommandError> {
        if let Some(up) = self.shared.current()? {
            return Ok(up);
        }
        let _turn = self.shared.dialling.acquire().await.map_err(|_| closed())?;
        match self.shared.current()? {
            Some(up) => Ok(up),
            None => self.dial().await,
        }
    }

    async fn dial(&self) -> Result<(DriverConnection, u64), CommandError> {
        let ConnectionShared { address, credentials, timeouts: limits, runtime, .. } = &*self.shared;
        let serial = self.shared.link.lock().serial() + 1;
        let lost = self.lost_callback(serial);
        let dialling = async {
            let address =
                credentials.resolve(address).await.map_err(|error| CommandError::NotSent(Cause::new(error)))?;
            dial::dial(&address, *limits, lost).await.map_err(CommandError::not_connected)
        };
        let outcome = tokio::time::timeout(limits.connect, dial::within(runtime, dialling)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(connect_timed_out(limits.connect)));
        self.shared.record_dial(outcome, serial)
    }

    /// The callback for a server that closes the connection while no command waits.
    fn lost_callback(&self, serial: u64) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.mark_lost(serial, &CommandError::not_sent("the server closed the connection"));
            }
        }
    }

    /// Converts an error for the caller, and ends the connection where the error requires it.
    fn classify(&self, error: redis::RedisError, serial: u64) -> CommandError {
        let error = CommandError::of(error);
        if error.ends_connection() {
            self.shared.mark_lost(serial, &error);
        }
        error
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.shared.address.to_string()).finish_non_exhaustive()
    }
}

impl ConnectionState {
    fn serial(&self) -> u64 {
        match self {
            Self::Up { serial, .. } | Self::Down(Outage { serial, .. }) => *serial,
            Self::Closed => 0,
        }
    }
}

impl ConnectionShared {
    /// The connection; none when the caller may dial now.
    fn current(&self) -> Result<Option<(DriverConnection, u64)>, CommandError> {
        match &*self.link.lock() {
            ConnectionState::Up { driver: wire, serial } => Ok(Some((wire.clone(), *serial))),
            ConnectionState::Down(down) if down.redial_at.is_some_and(|at| clock::now() < at) => Err(down.why.clone()),
            ConnectionState::Down(_) => Ok(None),
            ConnectionState::Closed => Err(closed()),
        }
    }

    fn record_dial(
        &self,
        outcome: Result<DriverConnection, CommandError>,
        serial: u64,
    ) -> Result<(DriverConnection, u64), CommandError> {
        let mut link = self.link.lock();
        let failures = match &*link {
            ConnectionState::Up { .. } => 0,
            ConnectionState::Down(down) => down.failures,
            ConnectionState::Closed => return Err(closed()),
        };
        match outcome {
            Ok(wire) => {
                *link = ConnectionState::Up { driver: wire.clone(), serial };
                Ok((wire, serial))
            }
            Err(why) => {
                let redial_at = Some(clock::now() + REDIAL_BACKOFF.delay(failures, fastrand::f64()));
                *link = ConnectionState::Down(Outage { failures: failures + 1, redial_at, why: why.clone(), serial });
                Err(why)
            }
        }
    }

    /// Marks the connection with this serial as lost; the next command dials.
    fn mark_lost(&self, lost: u64, why: &CommandError) {
        let mut link = self.link.lock();
        if let ConnectionState::Up { serial, .. } = &*link
            && *serial == lost
        {
            tracing::info!(address = %self.address, error = chain(why), "connection to Redis lost");
            *link = ConnectionState::Down(Outage { failures: 0, redial_at: None, why: why.clone(), serial: lost });
        }
    }
}

fn primary_of(key: &str) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

fn closed() -> CommandError {
    CommandError::not_sent("the connection is closed")
}

fn connect_timed_out(limit: Duration) -> CommandError {
    CommandError::not_sent(format!("not connected within {limit:?}"))
}
