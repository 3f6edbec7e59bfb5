//! Replicas that share a token: one request per token, also with faults of Redis, its messages and the requesting replica.

mod lifetimes;
mod refresh;
mod replicas;
mod status;
mod vault;

use std::time::Duration;

use redis::cmd;
use trunkline::{
    clock,
    simulator::{PlatformFault, Settings, TokenFailure},
};

use self::replicas::{TokenReplica, TokenReplicas};
use crate::harness::{Platform, RedisServer, eventually, throughout};

/// Enough replicas for contention on a small machine.
const REPLICA_COUNT: usize = 20;

async fn platform(lifetime: u64) -> Platform {
    Platform::with(Settings { token_ttl: Duration::from_secs(lifetime), ..Settings::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_with_a_granted_token_costs_one_request() {
    let (platform, mut redis) = (platform(12).await, RedisServer::durable());
    // The renewals are due three seconds and one second before the end.
    let (early, late) = (TokenReplica::with("300s", &platform, &redis), TokenReplica::with("1s", &platform, &redis));
    early.reach(1).await;
    late.reach(1).await;
    let connection = redis.connection();
    platform.inject(PlatformFault::Token {
        failure: TokenFailure::Slow { duration: Duration::from_millis(200) },
        times: 1,
    });
    let lock = TokenReplica::key("lock");
    let locked = async || connection.run::<i64>(cmd("EXISTS").arg(&lock)).await == Ok(1);
    let end = clock::now() + Duration::from_secs(12);
    while !locked().await {
        assert!(clock::now() < end, "no replica takes the lock");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    redis.kill();
    eventually("it is granted", async || platform.counters().grants_total() == 2).await;
    early.crash().await;
    redis.restart();
    late.reach(2).await;
    assert!(late.has_a_token());
    assert_eq!(platform.counters().grants_total(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_every_replica_has_its_own_token_and_sharing_resumes_afterwards() {
    let (platform, mut redis) = (platform(4).await, RedisServer::volatile());
    let replicas = TokenReplicas::start(5, &platform, &redis);
    replicas.reach(2).await;
    redis.kill();
    let span = Duration::from_secs(9);
    throughout(span, "all have a token", async || {
        replicas.all_have_a_token();
        true
    })
    .await;
    let alone = platform.counters().grants_total() - 2;
    assert!(alone <= 5 * 4, "{alone} requests in nine seconds");
    redis.restart();
    eventually("they agree again", async || replicas.have_same_token()).await;
    let (newest, granted) = (replicas.newest(), platform.counters().grants_total());
    while replicas.newest() < newest + 2 {
        replicas.all_have_a_token();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    replicas.reach(newest + 2).await;
    assert_eq!(platform.counters().grants_total(), granted + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_that_all_replicas_receive_costs_one_request() {
    let (platform, redis) = (platform(600).await, RedisServer::volatile());
    let replicas = TokenReplicas::start(REPLICA_COUNT, &platform, &redis);
    replicas.reach(1).await;
    // A token that had live sessions is replaced immediately at any age.
    for refused in [1, 2] {
        replicas.refuse(refused);
        replicas.reach(refused + 1).await;
        replicas.agree();
        assert_eq!(platform.counters().grants_total(), refused + 1);
    }
    replicas.refuse_unused(3);
    throughout(Duration::from_millis(300), "the next one waits", async || platform.counters().grants_total() == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_for_one_replica_applies_to_all() {
    let (platform, redis) = (platform(600).await, RedisServer::volatile());
    let failure = TokenFailure::TooManyRequests { retry_after: Some("2".to_owned()) };
    platform.inject(PlatformFault::Token { failure, times: 1 });
    let begin = clock::now();
    let replicas = TokenReplicas::start(5, &platform, &redis);
    replicas.reach(1).await;
    assert!(begin.elapsed() >= Duration::from_secs(2));
    let counters = platform.counters();
    assert_eq!((counters.grants_total(), counters.token_failures), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_generation_is_reset_and_sharing_continues() {
    for number in ["18446744073709551615", "18446744073709551614", "9007199254740991"] {
        let (platform, redis) = (platform(600).await, RedisServer::volatile());
        let replicas = TokenReplicas::start(2, &platform, &redis);
        replicas.reach(1).await;
        redis.connection().run::<()>(cmd("SET").arg(TokenReplica::key("generation")).arg(number)).await.unwrap();
        replicas.refuse(1);
        replicas.reach(2).await;
        replicas.agree();
        assert_eq!(platform.counters().grants_total(), 2, "{number}");
        // A later replica gets it, too.
        let late = TokenReplica::with("300s", &platform, &redis);
        late.reach(2).await;
        assert_eq!((late.generation(), platform.counters().grants_total()), (2, 2), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_replica_makes_no_request_and_sealing_keys_rotate_without_one() {
    let (platform, redis) = (platform(600).await, RedisServer::durable());
    let first = TokenReplica::sealed(&[1], &platform, &redis);
    first.reach(1).await;
    let second = TokenReplica::sealed(&[2, 1], &platform, &redis);
    second.reach(1).await;
    assert_eq!(first.secret(), second.secret());
    assert_eq!(platform.counters().grants_total(), 1);
    let connection = redis.connection();
    let stored: Vec<Vec<u8>> = connection.run(cmd("HVALS").arg(TokenReplica::key("token"))).await.unwrap();
    let token = first.secret().expose().as_bytes().to_vec();
    assert!(stored.iter().all(|value| !value.windows(token.len()).any(|part| part == token)));
    let on_disk = redis.files();
    assert!(on_disk.len() > 100 && !on_disk.windows(token.len()).any(|part| part == token));
}
