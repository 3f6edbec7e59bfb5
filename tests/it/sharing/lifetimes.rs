//! Many lives of a token that many replicas share: the platform's grants are counted.
//!
//! `TRUNKLINE_ROUNDS` says how many lives; with it there are fifty replicas and lives of ten seconds.

use std::time::{Duration, Instant};

use redis::cmd;
use trunkline::{
    clock,
    simulator::{PlatformFault, TokenFailure},
    store::redis::connection::RedisConnection,
};

use super::{
    platform,
    replicas::{ThreadedReplica, TokenReplicas},
};
use crate::harness::{Platform, RedisServer, env_setting};

/// How often it is looked whether everybody has a token.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Who looks so much later than it wanted to was not running, and neither was anybody else.
const SUSPENSION_MIN: Duration = Duration::from_millis(500);

/// A lack is one when it is seen for so long: a look may be the last thing before a sleep.
const LACK_MAX: Duration = Duration::from_millis(250);

/// How much of it is played.
struct LoadScale {
    lifetimes: u64,
    lifetime_secs: u64,
    replicas: usize,
}

impl LoadScale {
    /// So many lives of so many seconds, where nobody says otherwise.
    fn of(lives: u64, life: u64) -> Self {
        match env_setting("TRUNKLINE_ROUNDS") {
            Some(lives) => Self { lifetimes: lives, lifetime_secs: 10, replicas: 50 },
            None => Self { lifetimes: lives, lifetime_secs: life, replicas: super::REPLICA_COUNT },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_replicas_make_one_request_per_token_lifetime() {
    let LoadScale { lifetimes, lifetime_secs, replicas } = LoadScale::of(3, 4);
    let (platform, redis) = (platform(lifetime_secs).await, RedisServer::volatile());
    let replicas = TokenReplicas::start(replicas, &platform, &redis);
    replicas.reach(1).await;
    let mut watch = TokenMonitor::start(&redis);
    while replicas.newest() < lifetimes {
        watch.sample(&replicas).await;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    replicas.reach(lifetimes).await;
    replicas.agree();
    let granted = platform.counters().grants_total();
    println!("{lifetimes} token lifetimes: {granted} grants");
    assert_eq!(granted, replicas.newest());
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_messages_cost_no_request() {
    let LoadScale { lifetimes, lifetime_secs, replicas } = LoadScale::of(3, 4);
    let (platform, redis) = (platform(lifetime_secs).await, RedisServer::volatile());
    let replicas = TokenReplicas::start(replicas, &platform, &redis);
    replicas.reach(1).await;
    let connection = redis.connection();
    while replicas.newest() < lifetimes {
        replicas.all_have_a_token();
        let killed = connection.run::<i64>(cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub")).await;
        assert!(killed.is_ok(), "{killed:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    replicas.reach(lifetimes).await;
    let granted = platform.counters().grants_total();
    println!("{lifetimes} token lifetimes without pub/sub messages: {granted} grants");
    assert_eq!(granted, replicas.newest());
}

/// What befalls the replica that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockHolderFault {
    /// It dies after the token was granted, and before anybody else knows it.
    Killed,
    /// It sleeps until its lock has ended and another has asked.
    Suspended,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holder_that_dies_or_is_suspended_costs_one_request() {
    // Long lives: what a fault leaves of one must be enough for a busy machine, or the machine is a fault of its own.
    let LoadScale { lifetimes, lifetime_secs, replicas } = LoadScale::of(3, 12);
    let (platform, redis) = (platform(lifetime_secs).await, RedisServer::volatile());
    // Who asks first is known: it renews at three quarters of a life, the others at seven eighths.
    let mut first = ThreadedReplica::with("300s", &platform, &redis);
    let others = TokenReplicas::with(&format!("{}ms", lifetime_secs * 1_000 / 8), replicas, &platform, &redis);
    others.reach(1).await;
    let mut faults = 0;
    while others.newest() < lifetimes {
        let fate = if faults % 2 == 0 { LockHolderFault::Killed } else { LockHolderFault::Suspended };
        first = apply_fault(first, fate, &platform, &redis, &others).await;
        faults += 1;
    }
    let granted = platform.counters().grants_total();
    println!("{} lives, {faults} faults: {granted} grants", others.newest());
    assert!(granted <= others.newest() + faults, "{granted} grants");
    assert!(granted > others.newest(), "no fault hit what it was meant to hit");
}

/// Plays one fate, and returns who is to be the next.
async fn apply_fault(
    first: ThreadedReplica,
    fate: LockHolderFault,
    platform: &Platform,
    redis: &RedisServer,
    others: &TokenReplicas,
) -> ThreadedReplica {
    let slow = TokenFailure::Slow { duration: Duration::from_millis(300) };
    platform.inject(PlatformFault::Token { failure: slow, times: 1 });
    let (tally, newest) = (platform.counters(), others.newest());
    let asked = async || platform.counters().token_failures > tally.token_failures;
    until("the request under the lock has arrived", redis, others, asked).await;
    let thaw = first.freeze().await;
    until("it was granted", redis, others, async || platform.counters().grants_total() > tally.grants_total()).await;
    if fate == LockHolderFault::Killed {
        drop(thaw);
        until("it is dead", redis, others, async || first.has_exited()).await;
    } else {
        until("another has asked", redis, others, async || others.newest() > newest).await;
        thaw.send(()).unwrap();
    }
    until("everybody has the next one", redis, others, async || others.oldest() > newest).await;
    if fate == LockHolderFault::Killed { ThreadedReplica::with("300s", platform, redis) } else { first }
}

/// Sees to it that everybody has a token at every moment. When the whole test or its server was asleep, by no fault of
/// ours, nobody could be sure to have one.
struct TokenMonitor {
    server: RedisConnection,
    sampled_at: Instant,
    suspended_until: Instant,
    /// Since when somebody has had none.
    without_token_since: Option<Instant>,
}

impl TokenMonitor {
    fn start(redis: &RedisServer) -> Self {
        let now = clock::now();
        Self { server: redis.connection(), sampled_at: now, suspended_until: now, without_token_since: None }
    }

    #[expect(clippy::print_stdout, reason = "whoever reads the figures should know")]
    async fn sample(&mut self, all: &TokenReplicas) {
        // No answer in time is a long time, too.
        self.server.run::<String>(&cmd("PING")).await.unwrap_or_default();
        let now = clock::now();
        if now - self.sampled_at > SUSPENSION_MIN {
            println!("everything was asleep for {:?}", now - self.sampled_at);
            self.suspended_until = now + 6 * SUSPENSION_MIN;
        }
        self.sampled_at = now;
        if all.have_a_token() || now < self.suspended_until {
            self.without_token_since = None;
        } else if now - *self.without_token_since.get_or_insert(now) > LACK_MAX {
            all.all_have_a_token();
        }
    }
}

/// Waits for a fact; meanwhile all of them have a token, whatever happens to the one.
async fn until(what: &str, redis: &RedisServer, all: &TokenReplicas, mut fact: impl AsyncFnMut() -> bool) {
    let (end, mut watch) = (clock::now() + Duration::from_secs(30), TokenMonitor::start(redis));
    while !fact().await {
        watch.sample(all).await;
        assert!(clock::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
