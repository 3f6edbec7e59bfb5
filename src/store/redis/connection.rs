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

pub use self::{fault::CommandError, listener::Listener, script::Script};
use super::{address::Address, credentials::Credentials};
use crate::{clock, protocol::backoff::Curve};

/// Delays between dials that failed.
const REDIAL: Curve = Curve { first: Duration::from_millis(50), cap: Duration::from_secs(1), jitter: 0.2 };

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From dialling until the server has greeted, Sentinels and all.
    pub connect: Duration,
    /// For the answer to one command.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), answer: Duration::from_secs(2) }
    }
}

/// A handle; clones share the connection, and commands of all of them are sent in the order of their calls.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    address: Address,
    credentials: Credentials,
    limits: Limits,
    /// Where the connection's own task runs, whoever happens to dial.
    runtime: Handle,
    /// One dials, the others wait for the outcome.
    dialling: Semaphore,
    link: Mutex<Link>,
}

/// The state of the connection.
enum Link {
    /// `serial` tells it from those before and after.
    Up {
        wire: Wire,
        serial: u64,
    },
    Down(Down),
    Closed,
}

/// There is no connection.
#[derive(Debug, Clone)]
struct Down {
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
pub struct Tie(u64);

/// One for each command that was sent together with others.
pub type Answers = Vec<Result<Value, CommandError>>;

/// What carries commands.
#[derive(Clone)]
enum Wire {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// A handle for `address`. It does not dial yet. Connections live on the runtime that this is called in.
    pub fn new(address: Address, limits: Limits) -> Self {
        Self::with(address, Credentials::default(), limits)
    }

    /// The same with logins that are read for each dial.
    pub fn with(address: Address, credentials: Credentials, limits: Limits) -> Self {
        let down = Down { failures: 0, redial_at: None, why: "it was not dialled yet".to_owned(), serial: 0 };
        let shared = Shared {
            address,
            credentials,
            limits,
            runtime: Handle::current(),
            dialling: Semaphore::new(1),
            link: Mutex::new(Link::Down(down)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A connection of its own to the same address: for what must not wait behind other commands. It lives on the
    /// runtime that this is called in.
    pub fn another(&self) -> Self {
        self.another_within(self.shared.limits)
    }

    /// The same with a patience of its own. Whoever has less than the connection has better tell it: an answer that
    /// nobody waits for any more does not give a dead connection away.
    pub fn another_within(&self, limits: Limits) -> Self {
        Self::with(self.shared.address.clone(), self.shared.credentials.clone(), limits)
    }

    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Whether there is a connection, else why not.
    pub fn health(&self) -> Result<(), String> {
        match &*self.shared.link() {
            Link::Up { .. } => Ok(()),
            Link::Down(down) => Err(down.why.clone()),
            Link::Closed => Err("it is closed".to_owned()),
        }
    }

    /// Whether it was ended.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.shared.link(), Link::Closed)
    }

    /// Sends one command and waits for its answer.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CommandError> {
        let (mut wire, serial) = self.wire().await?;
        let answer = match &mut wire {
            Wire::Single(wire) => wire.req_packed_command(command).await,
            Wire::Cluster(wire) => wire.req_packed_command(command).await,
        };
        let answer = answer.and_then(Value::extract_error).map_err(|error| self.judge(&error, serial))?;
        redis::from_redis_value(answer).map_err(|error| CommandError::NoAnswer(error.to_string()))
    }

    /// Sends all commands at once, and waits for their answers. They are done in order, others' may come between. In a
    /// cluster all go to the primary that has `key`.
    pub async fn run_all(&self, key: &str, commands: &Pipeline) -> Result<Vec<Value>, CommandError> {
        let (mut wire, serial) = self.wire().await?;
        let count = commands.len();
        let answers = match &mut wire {
            Wire::Single(wire) => wire.req_packed_commands(commands, 0, count).await,
            Wire::Cluster(wire) => wire.route_pipeline(commands.clone(), 0, count, primary_of(key)).await,
        };
        let answers = answers.map_err(|error| self.judge(&error, serial))?;
        let refused = answers.iter().find_map(|answer| answer.clone().extract_error().err());
        match refused {
            Some(error) => Err(self.judge(&error, serial)),
            None if answers.len() == count => Ok(answers),
            None => Err(CommandError::NoAnswer("answers are missing".to_owned())),
        }
    }

    /// The connection that what follows is sent over, dialled if need be.
    pub async fn tie(&self) -> Result<Tie, CommandError> {
        self.wire().await.map(|(_, serial)| Tie(serial))
    }

    /// Sends all commands at once over that connection, and waits for their answers, refusals among them. The first
    /// `unanswered` of them tell the server not to answer, and the one behind those that it shall again. Nothing is
    /// sent, and there are no answers, when it was lost. (Nor in a cluster, where commands go over many.)
    pub async fn run_tied(
        &self,
        tie: Tie,
        commands: &Pipeline,
        unanswered: usize,
    ) -> Result<Option<Answers>, CommandError> {
        let (wire, serial) = self.wire().await?;
        let mut wire = match wire {
            Wire::Single(wire) if tie == Tie(serial) => wire,
            Wire::Single(_) | Wire::Cluster(_) => return Ok(None),
        };
        let answers = wire.req_packed_commands(commands, 0, commands.len() - unanswered).await;
        let answers = answers.map_err(|error| self.judge(&error, serial))?;
        let judged = |answer: Value| answer.extract_error().map_err(|error| self.judge(&error, serial));
        Ok(Some(answers.into_iter().map(judged).collect()))
    }

    /// Ends that connection, of which nobody knows any more which answer belongs to which command.
    pub fn cut(&self, tie: Tie, why: &str) {
        let Tie(serial) = tie;
        self.shared.lost(serial, why);
    }

    /// Runs a script, which touches only the keys it is given (in a cluster all of one slot).
    pub async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
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
    pub async fn listen(&self, channels: &[&str]) -> Result<Listener, CommandError> {
        let Shared { address, credentials, limits, .. } = &*self.shared;
        let connecting = async {
            let address = credentials.complete(address).await;
            let address = address.map_err(|error| CommandError::NotSent(error.to_string()))?;
            listener::open(&address, *limits, channels).await.map_err(|error| match error.code() {
                Some(_) => CommandError::of(&error),
                None => CommandError::NotSent(fault::text(&error)),
            })
        };
        let opened = tokio::time::timeout(limits.connect, connecting).await;
        opened.unwrap_or_else(|_| Err(CommandError::NotSent(too_late(limits.connect))))
    }

    /// Ends it: nothing is sent any more.
    pub fn close(&self) {
        *self.shared.link() = Link::Closed;
    }

    /// The connection, dialled if need be; and its serial.
    async fn wire(&self) -> Result<(Wire, u64), CommandError> {
        if let Some(up) = self.shared.up()? {
            return Ok(up);
        }
        let _turn = self.shared.dialling.acquire().await.map_err(|_| closed())?;
        match self.shared.up()? {
            Some(up) => Ok(up),
            None => self.dial().await,
        }
    }

    async fn dial(&self) -> Result<(Wire, u64), CommandError> {
        let Shared { address, credentials, limits, runtime, .. } = &*self.shared;
        let serial = self.shared.link().serial() + 1;
        let lost = self.when_lost(serial);
        let dialling = async {
            let address = credentials.complete(address).await.map_err(|error| error.to_string())?;
            dial::dial(&address, *limits, lost).await.map_err(|error| fault::text(&error))
        };
        let outcome = tokio::time::timeout(limits.connect, dial::within(runtime, dialling)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(too_late(limits.connect)));
        self.shared.dialled(outcome, serial)
    }

    /// For a server that hangs up while nobody asks it anything.
    fn when_lost(&self, serial: u64) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.lost(serial, "the server hung up");
            }
        }
    }

    /// What an error means, here and for the caller.
    fn judge(&self, error: &redis::RedisError, serial: u64) -> CommandError {
        let error = CommandError::of(error);
        if error.ends_connection() {
            self.shared.lost(serial, &error.to_string());
        }
        error
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.shared.address.to_string()).finish_non_exhaustive()
    }
}

impl Link {
    fn serial(&self) -> u64 {
        match self {
            Self::Up { serial, .. } | Self::Down(Down { serial, .. }) => *serial,
            Self::Closed => 0,
        }
    }
}

impl Shared {
    fn link(&self) -> std::sync::MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; none when it is time to dial.
    fn up(&self) -> Result<Option<(Wire, u64)>, CommandError> {
        match &*self.link() {
            Link::Up { wire, serial } => Ok(Some((wire.clone(), *serial))),
            Link::Down(down) if down.redial_at.is_some_and(|at| clock::now() < at) => {
                Err(CommandError::NotSent(down.why.clone()))
            }
            Link::Down(_) => Ok(None),
            Link::Closed => Err(closed()),
        }
    }

    fn dialled(&self, outcome: Result<Wire, String>, serial: u64) -> Result<(Wire, u64), CommandError> {
        let mut link = self.link();
        let failures = match &*link {
            Link::Up { .. } => 0,
            Link::Down(down) => down.failures,
            Link::Closed => return Err(closed()),
        };
        match outcome {
            Ok(wire) => {
                *link = Link::Up { wire: wire.clone(), serial };
                Ok((wire, serial))
            }
            Err(why) => {
                let redial_at = Some(clock::now() + REDIAL.delay(failures, fastrand::f64()));
                *link = Link::Down(Down { failures: failures + 1, redial_at, why: why.clone(), serial });
                Err(CommandError::NotSent(why))
            }
        }
    }

    /// The connection with this serial is of no use any more; the next command dials.
    fn lost(&self, lost: u64, why: &str) {
        let mut link = self.link();
        if let Link::Up { serial, .. } = &*link
            && *serial == lost
        {
            tracing::info!(address = %self.address, why, "the connection to Redis is lost");
            *link = Link::Down(Down { failures: 0, redial_at: None, why: why.to_owned(), serial: lost });
        }
    }
}

fn primary_of(key: &str) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

fn closed() -> CommandError {
    CommandError::NotSent("the connection is closed".to_owned())
}

fn too_late(limit: Duration) -> String {
    format!("no connection within {limit:?}")
}
