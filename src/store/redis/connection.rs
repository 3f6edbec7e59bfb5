//! The way to Redis: one handle over a server, a primary behind Sentinels, or a cluster.
//!
//! It dials when it is needed, forgets a connection that failed or leads to a server that is no primary (any more), and
//! dials anew. It never sends a command twice by itself: whether that may be done only the caller knows. (The client of
//! a cluster does, after a redirection and after a lost connection: what changes something must bear it.)

mod dial;
mod fault;
mod listener;
mod script;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{
    Cmd, FromRedisValue, Pipeline, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr},
};
use tokio::{runtime::Handle, sync::Semaphore};

pub use self::{fault::CommandError, listener::PubSubListener, script::LuaScript};
use super::{address::Address, credentials::Credentials};
use crate::{clock, protocol::backoff::BackoffCurve};

/// Delays between dials that failed.
const REDIAL_BACKOFF: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.2 };

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct RedisTimeouts {
    /// From dialling until the server has greeted, Sentinels and all.
    pub connect: Duration,
    /// For the answer to one command.
    pub response: Duration,
}

impl Default for RedisTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), response: Duration::from_secs(2) }
    }
}

/// A handle; clones share the connection, and commands of all of them are sent in the order of their calls.
#[derive(Clone)]
pub struct RedisConnection {
    shared: Arc<ConnectionShared>,
}

struct ConnectionShared {
    address: Address,
    credentials: Credentials,
    timeouts: RedisTimeouts,
    /// Where the connection's own task runs, whoever happens to dial.
    runtime: Handle,
    /// One dials, the others wait for the outcome.
    dialling: Semaphore,
    link: Mutex<ConnectionState>,
}

/// The state of the connection.
enum ConnectionState {
    /// `serial` tells it from those before and after.
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
    /// Dials that failed since there was one.
    failures: u32,
    /// Not before then; none is at once.
    redial_at: Option<Instant>,
    why: String,
    /// Of the last connection.
    serial: u64,
}

/// One of a handle's connections, told from those before and after. What a server remembers of a connection (the keys
/// it watches) is forgotten with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// One for each command that was sent together with others.
pub type Answers = Vec<Result<Value, CommandError>>;

/// What carries commands.
#[derive(Clone)]
enum DriverConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisConnection {
    /// A handle for `address`. It does not dial yet. Connections live on the runtime that this is called in.
    pub fn new(address: Address, limits: RedisTimeouts) -> Self {
        Self::with(address, Credentials::default(), limits)
    }

    /// The same with logins that are read for each dial.
    pub fn with(address: Address, credentials: Credentials, limits: RedisTimeouts) -> Self {
        let down = Outage { failures: 0, redial_at: None, why: "it was not dialled yet".to_owned(), serial: 0 };
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

    /// A connection of its own to the same address: for what must not wait behind other commands. It lives on the
    /// runtime that this is called in.
    pub fn dedicated(&self) -> Self {
        self.dedicated_within(self.shared.timeouts)
    }

    /// The same with a patience of its own. Whoever has less than the connection has better tell it: an answer that
    /// nobody waits for any more does not give a dead connection away.
    pub fn dedicated_within(&self, limits: RedisTimeouts) -> Self {
        Self::with(self.shared.address.clone(), self.shared.credentials.clone(), limits)
    }

    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Whether there is a connection, else why not.
    pub fn health(&self) -> Result<(), String> {
        match &*self.shared.link() {
            ConnectionState::Up { .. } => Ok(()),
            ConnectionState::Down(down) => Err(down.why.clone()),
            ConnectionState::Closed => Err("it is closed".to_owned()),
        }
    }

    /// Whether it was ended.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.shared.link(), ConnectionState::Closed)
    }

    /// Sends one command and waits for its answer.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CommandError> {
        let (mut wire, serial) = self.driver().await?;
        let answer = match &mut wire {
            DriverConnection::Single(wire) => wire.req_packed_command(command).await,
            DriverConnection::Cluster(wire) => wire.req_packed_command(command).await,
        };
        let answer = answer.and_then(Value::extract_error).map_err(|error| self.classify(&error, serial))?;
        redis::from_redis_value(answer).map_err(|error| CommandError::NoAnswer(error.to_string()))
    }

    /// Sends all commands at once, and waits for their answers. They are done in order, others' may come between. In a
    /// cluster all go to the primary that has `key`.
    pub async fn run_all(&self, key: &str, commands: &Pipeline) -> Result<Vec<Value>, CommandError> {
        let (mut wire, serial) = self.driver().await?;
        let count = commands.len();
        let answers = match &mut wire {
            DriverConnection::Single(wire) => wire.req_packed_commands(commands, 0, count).await,
            DriverConnection::Cluster(wire) => wire.route_pipeline(commands.clone(), 0, count, primary_of(key)).await,
        };
        let answers = answers.map_err(|error| self.classify(&error, serial))?;
        let refused = answers.iter().find_map(|answer| answer.clone().extract_error().err());
        match refused {
            Some(error) => Err(self.classify(&error, serial)),
            None if answers.len() == count => Ok(answers),
            None => Err(CommandError::NoAnswer("answers are missing".to_owned())),
        }
    }

    /// The connection that what follows is sent over, dialled if need be.
    pub async fn pin(&self) -> Result<ConnectionId, CommandError> {
        self.driver().await.map(|(_, serial)| ConnectionId(serial))
    }

    /// Sends all commands at once over that connection, and waits for their answers, refusals among them. The first
    /// `unanswered` of them tell the server not to answer, and the one behind those that it shall again. Nothing is
    /// sent, and there are no answers, when it was lost. (Nor in a cluster, where commands go over many.)
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
        let answers = answers.map_err(|error| self.classify(&error, serial))?;
        let judged = |answer: Value| answer.extract_error().map_err(|error| self.classify(&error, serial));
        Ok(Some(answers.into_iter().map(judged).collect()))
    }

    /// Ends that connection, of which nobody knows any more which answer belongs to which command.
    pub fn discard(&self, tie: ConnectionId, why: &str) {
        let ConnectionId(serial) = tie;
        self.shared.mark_lost(serial, why);
    }

    /// Runs a script, which touches only the keys it is given (in a cluster all of one slot).
    pub async fn call<T: FromRedisValue>(
        &self,
        script: &LuaScript,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, CommandError> {
        let by_name = self.run(&script.by_name(keys, arguments)).await;
        match by_name {
            // The server was restarted, or never saw it.
            Err(error) if error.code() == Some("NOSCRIPT") => self.run(&script.in_full(keys, arguments)).await,
            answer => answer,
        }
    }

    /// Hears what is published on channels, over a connection of its own. What was published while there was none is
    /// lost: read the key that it was about anew.
    pub async fn listen(&self, channels: &[&str]) -> Result<PubSubListener, CommandError> {
        let ConnectionShared { address, credentials, timeouts: limits, .. } = &*self.shared;
        let connecting = async {
            let address = credentials.resolve(address).await;
            let address = address.map_err(|error| CommandError::NotSent(error.to_string()))?;
            listener::open(&address, *limits, channels).await.map_err(|error| match error.code() {
                Some(_) => CommandError::of(&error),
                None => CommandError::NotSent(fault::text(&error)),
            })
        };
        let opened = tokio::time::timeout(limits.connect, connecting).await;
        opened.unwrap_or_else(|_| Err(CommandError::NotSent(connect_timed_out(limits.connect))))
    }

    /// Ends it: nothing is sent any more.
    pub fn close(&self) {
        *self.shared.link() = ConnectionState::Closed;
    }

    /// The connection, dialled if need be; and its serial.
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
        let serial = self.shared.link().serial() + 1;
        let lost = self.lost_callback(serial);
        let dialling = async {
            let address = credentials.resolve(address).await.map_err(|error| error.to_string())?;
            dial::dial(&address, *limits, lost).await.map_err(|error| fault::text(&error))
        };
        let outcome = tokio::time::timeout(limits.connect, dial::within(runtime, dialling)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(connect_timed_out(limits.connect)));
        self.shared.record_dial(outcome, serial)
    }

    /// For a server that hangs up while nobody asks it anything.
    fn lost_callback(&self, serial: u64) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.mark_lost(serial, "the server hung up");
            }
        }
    }

    /// What an error means, here and for the caller.
    fn classify(&self, error: &redis::RedisError, serial: u64) -> CommandError {
        let error = CommandError::of(error);
        if error.ends_connection() {
            self.shared.mark_lost(serial, &error.to_string());
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
    fn link(&self) -> std::sync::MutexGuard<'_, ConnectionState> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; none when it is time to dial.
    fn current(&self) -> Result<Option<(DriverConnection, u64)>, CommandError> {
        match &*self.link() {
            ConnectionState::Up { driver: wire, serial } => Ok(Some((wire.clone(), *serial))),
            ConnectionState::Down(down) if down.redial_at.is_some_and(|at| clock::now() < at) => {
                Err(CommandError::NotSent(down.why.clone()))
            }
            ConnectionState::Down(_) => Ok(None),
            ConnectionState::Closed => Err(closed()),
        }
    }

    fn record_dial(
        &self,
        outcome: Result<DriverConnection, String>,
        serial: u64,
    ) -> Result<(DriverConnection, u64), CommandError> {
        let mut link = self.link();
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
                Err(CommandError::NotSent(why))
            }
        }
    }

    /// The connection with this serial is of no use any more; the next command dials.
    fn mark_lost(&self, lost: u64, why: &str) {
        let mut link = self.link();
        if let ConnectionState::Up { serial, .. } = &*link
            && *serial == lost
        {
            tracing::info!(address = %self.address, why, "the connection to Redis is lost");
            *link = ConnectionState::Down(Outage { failures: 0, redial_at: None, why: why.to_owned(), serial: lost });
        }
    }
}

fn primary_of(key: &str) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

fn closed() -> CommandError {
    CommandError::NotSent("the connection is closed".to_owned())
}

fn connect_timed_out(limit: Duration) -> String {
    format!("no connection within {limit:?}")
}
