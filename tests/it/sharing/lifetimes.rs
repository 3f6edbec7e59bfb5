//! Many token lifetimes with many replicas: the tests count the platform's grants.
//!
//! `TRUNKLINE_ROUNDS` is the number of lifetimes, and selects fifty replicas and lifetimes of ten seconds.

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

/// Interval between two checks that all replicas have a token.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A check that is later than this shows that the whole test was suspended.
const SUSPENSION_MIN: Duration = Duration::from_millis(500);

/// Longest time without a token. A single check may precede a suspension.
const LACK_MAX: Duration = Duration::from_millis(250);

/// Size of a test.
struct LoadScale {
    lifetimes: u64,
    lifetime_secs: u64,
    replicas: usize,
}

impl LoadScale {
    /// This number of lifetimes of this many seconds, unless the environment overrides them.
    fn of(lifetimes: u64, lifetime_secs: u64) -> Self {
        match env_setting("TRUNKLINE_ROUNDS") {
            Some(lifetimes) => Self { lifetimes, lifetime_secs: 10, replicas: 50 },
            None => Self { lifetimes, lifetime_secs, replicas: super::REPLICA_COUNT },
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

/// The fault of the requesting replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockHolderFault {
    /// It is killed after the grant, before the other replicas have the token.
    Killed,
    /// It is suspended until its lock has expired and another replica has requested a token.
    Suspended,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_holder_that_dies_or_is_suspended_costs_one_request() {
    // Long lifetimes, so that the rest after a fault suffices on a busy machine.
    let LoadScale { lifetimes, lifetime_secs, replicas } = LoadScale::of(3, 12);
    let (platform, redis) = (platform(lifetime_secs).await, RedisServer::volatile());
    // The first replica renews at three quarters of a lifetime, the others at seven eighths.
    let mut first = ThreadedReplica::with("300s", &platform, &redis);
    let others = TokenReplicas::with(&format!("{}ms", lifetime_secs * 1_000 / 8), replicas, &platform, &redis);
    others.reach(1).await;
    let mut faults = 0;
    while others.newest() < lifetimes {
        let fault = if faults % 2 == 0 { LockHolderFault::Killed } else { LockHolderFault::Suspended };
        first = apply_fault(first, fault, &platform, &redis, &others).await;
        faults += 1;
    }
    let granted = platform.counters().grants_total();
    println!("{} lifetimes, {faults} faults: {granted} grants", others.newest());
    assert!(granted <= others.newest() + faults, "{granted} grants");
    assert!(granted > others.newest(), "no fault hit a token request");
}

/// Injects one fault and returns the replica for the next.
async fn apply_fault(
    first: ThreadedReplica,
    fault: LockHolderFault,
    platform: &Platform,
    redis: &RedisServer,
    others: &TokenReplicas,
) -> ThreadedReplica {
    let slow = TokenFailure::Slow { duration: Duration::from_millis(300) };
    platform.inject(PlatformFault::Token { failure: slow, times: 1 });
    let (counters, newest) = (platform.counters(), others.newest());
    let asked = async || platform.counters().token_failures > counters.token_failures;
    until("the request under the lock has arrived", redis, others, asked).await;
    let thaw = first.freeze().await;
    until("it was granted", redis, others, async || platform.counters().grants_total() > counters.grants_total()).await;
    if fault == LockHolderFault::Killed {
        drop(thaw);
        until("it is dead", redis, others, async || first.has_exited()).await;
    } else {
        until("another replica has requested a token", redis, others, async || others.newest() > newest).await;
        thaw.send(()).unwrap();
    }
    until("all replicas have the next token", redis, others, async || others.oldest() > newest).await;
    if fault == LockHolderFault::Killed { ThreadedReplica::with("300s", platform, redis) } else { first }
}

/// Checks that all replicas have a token at every moment, except after a suspension of the whole test or its server.
struct TokenMonitor {
    server: RedisConnection,
    sampled_at: Instant,
    suspended_until: Instant,
    /// Since when a replica has had none.
    without_token_since: Option<Instant>,
}

impl TokenMonitor {
    fn start(redis: &RedisServer) -> Self {
        let now = clock::now();
        Self { server: redis.connection(), sampled_at: now, suspended_until: now, without_token_since: None }
    }

    #[expect(clippy::print_stdout, reason = "suspensions affect the measurements")]
    async fn sample(&mut self, all: &TokenReplicas) {
        // A missing reply counts as a suspension, too.
        self.server.run::<String>(&cmd("PING")).await.unwrap_or_default();
        let now = clock::now();
        if now - self.sampled_at > SUSPENSION_MIN {
            println!("the test was suspended for {:?}", now - self.sampled_at);
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

/// Waits for a condition and checks that all replicas have a token in the meantime.
async fn until(what: &str, redis: &RedisServer, all: &TokenReplicas, mut condition: impl AsyncFnMut() -> bool) {
    let (end, mut watch) = (clock::now() + Duration::from_secs(30), TokenMonitor::start(redis));
    while !condition().await {
        watch.sample(all).await;
        assert!(clock::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
