//! Status and metrics of tokens on every replica, whichever requests the token.

use std::time::Duration;

use trunkline::{
    auth::AccountStatus,
    coordination::vault::{Token, TokenVault},
    simulator::{PlatformFault, TokenFailure},
};

use super::{platform, replicas::TokenReplica};
use crate::harness::{RedisServer, eventually};

fn waits_for(status: &AccountStatus, what: &str) -> bool {
    status.waiting_for.is_some_and(|words| words.contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_is_shown_on_both_replicas_and_cleared_afterwards() {
    let (platform, redis) = (platform(600).await, RedisServer::volatile());
    let failure = TokenFailure::TooManyRequests { retry_after: Some("4".to_owned()) };
    platform.inject(PlatformFault::Token { failure, times: 1 });
    let replicas = [TokenReplica::with("300s", &platform, &redis), TokenReplica::with("300s", &platform, &redis)];
    for replica in &replicas {
        eventually("the delay is shown", async || waits_for(&replica.status(), "Retry-After")).await;
        let status = replica.status();
        assert_eq!(status.state, "waiting", "{status:?}");
        // Four seconds plus a jitter of two.
        assert!(status.waiting_seconds.is_some_and(|seconds| seconds <= 6.0), "{status:?}");
        assert!(status.last_error.as_ref().is_some_and(|error| error.contains("Retry-After")), "{status:?}");
        assert!(status.last_error_at.as_ref().is_some_and(|at| at.ends_with('Z')), "{status:?}");
    }
    for replica in &replicas {
        replica.reach(1).await;
        eventually("no delay is shown", async || replica.status().waiting_for.is_none()).await;
        let status = replica.status();
        assert_eq!((status.state, status.last_error, status.last_error_at), ("valid", None, None));
    }
    assert_eq!(platform.counters().grants_total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_distinguishes_the_requesting_replica_from_the_waiting_one() {
    let (platform, redis) = (platform(600).await, RedisServer::volatile());
    // Long enough to be observed on a busy machine, and shorter than the endpoint timeout.
    let slow = TokenFailure::Slow { duration: Duration::from_secs(7) };
    platform.inject(PlatformFault::Token { failure: slow, times: 1 });
    let replicas = [TokenReplica::with("300s", &platform, &redis), TokenReplica::with("300s", &platform, &redis)];
    let shown = |what: &str| replicas.iter().filter(|replica| waits_for(&replica.status(), what)).count();
    eventually("one requests, one waits for it", async || {
        shown("token endpoint") == 1 && shown("another replica") == 1
    })
    .await;
    for replica in &replicas {
        let status = replica.status();
        assert!(status.waiting_seconds.is_some_and(|seconds| seconds <= 10.0), "{status:?}");
        replica.reach(1).await;
    }
    // Rejects a token that never had a live session.
    replicas[1].refuse_unused(1);
    eventually("the minimal interval is shown", async || waits_for(&replicas[1].status(), "refresh_interval_min"))
        .await;
    let status = replicas[1].status();
    assert!(status.waiting_seconds.is_some_and(|seconds| (0.0..=60.0).contains(&seconds)), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_only_adopts_tokens_shows_how_long_they_live() {
    let (platform, redis) = (platform(600).await, RedisServer::volatile());
    let account = "adopting";
    let vault = TokenVault::new(redis.connection(), "trunkline", &account.parse().unwrap());
    let (lifetime, remaining) = (Duration::from_secs(3_000), Duration::from_secs(2_000));
    vault
        .publish("another-replica", &Token { generation: 7, lifetime, remaining, secret: b"\0a-token".to_vec() })
        .await
        .unwrap();
    let replica = TokenReplica::of(account, &platform, &redis);
    replica.reach(7).await;
    eventually("the lifetime is shown", async || gauge("token_lifetime_seconds", account) == 3_000.0).await;
    let left = async || (1_900.0..=2_000.0).contains(&gauge("token_remaining_seconds", account));
    eventually("the remaining time is shown", left).await;
    assert_eq!(platform.counters().grants_total(), 0);
}

fn gauge(name: &str, account: &str) -> f64 {
    let page = trunkline::telemetry::metrics::page();
    let series = format!("trunkline_{name}{{account=\"{account}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&series)).expect(name).parse().unwrap()
}
