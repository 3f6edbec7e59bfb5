//! Rotating refresh tokens: after one replica uses a token, the others have the next one.

use std::time::Duration;

use redis::cmd;
use trunkline::{clock, coordination::vault::RefreshToken};

use super::{platform, replicas::TokenReplica};
use crate::harness::{RedisServer, eventually};

const ROTATIONS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_survive_ten_rotations_of_a_refresh_token() {
    let (platform, redis) = (platform(2).await, RedisServer::durable());
    let replicas = [TokenReplica::refreshing(&platform, &redis), TokenReplica::refreshing(&platform, &redis)];
    let mut tokens = Vec::new();
    for generation in 1..=ROTATIONS {
        for replica in &replicas {
            replica.reach(generation).await;
            assert!(replica.has_a_token());
        }
        tokens.extend([replicas[0].secret().expose().to_owned(), replicas[0].refresh_token()]);
    }
    assert_eq!(platform.counters().grants_total(), replicas[0].generation());
    assert_eq!(platform.counters().token_failures, 0, "no refresh token was used twice");
    nothing_readable(&redis, &tokens).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_replica_continues_with_the_token_of_a_stopped_one() {
    let (platform, redis) = (platform(2).await, RedisServer::volatile());
    let mut last = TokenReplica::refreshing(&platform, &redis);
    last.reach(1).await;
    for _ in 0..3 {
        let next = TokenReplica::refreshing(&platform, &redis);
        next.reach(last.generation()).await;
        last.crash().await;
        next.reach(next.generation() + 1).await;
        last = next;
    }
    assert_eq!(platform.counters().token_failures, 0, "no refresh token was used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_rotated_while_redis_was_down_is_shared_afterwards() {
    let (platform, mut redis) = (platform(3).await, RedisServer::durable());
    let first = TokenReplica::refreshing(&platform, &redis);
    first.reach(1).await;
    redis.kill();
    first.reach(3).await;
    redis.restart();
    let rotated = async || first.refresh_token() != "demo-refresh" && shared(&redis).await >= 3;
    eventually("the vault has the newest", rotated).await;
    let second = TokenReplica::refreshing(&platform, &redis);
    second.reach(first.generation()).await;
    first.crash().await;
    let end = clock::now() + Duration::from_secs(10);
    while !second.has_a_token() || second.generation() < 5 {
        assert!(clock::now() < end, "no token in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(platform.counters().token_failures, 0, "no refresh token was used twice");
}

#[tokio::test]
async fn a_refresh_token_is_stored_over_an_older_one_only() {
    let redis = RedisServer::volatile();
    let vault = super::vault::vault(&redis);
    assert_eq!(vault.refresh_token("x").await, Ok(None));
    let token = |number: u64| RefreshToken { number, secret: vec![0, 255, number as u8] };
    for (number, kept) in [(1, 1), (3, 3), (2, 3), (3, 3), (4, 4)] {
        vault.store_refresh_token("x", &token(number)).await.unwrap();
        assert_eq!(vault.refresh_token("x").await, Ok(Some(token(kept))));
    }
    assert_eq!(vault.refresh_token("y").await, Ok(None), "each configured token has its own entry");
}

/// Number of rotations in the vault.
async fn shared(redis: &RedisServer) -> u64 {
    let connection = redis.connection();
    let keys: Vec<String> = connection.run(cmd("KEYS").arg("*:refresh:*")).await.unwrap_or_default();
    let Some(key) = keys.first() else { return 0 };
    connection.run::<u64>(cmd("HGET").arg(key).arg("number")).await.unwrap_or_default()
}

/// Checks that neither the memory nor the files of the server contain a token.
async fn nothing_readable(redis: &RedisServer, tokens: &[String]) {
    let connection = redis.connection();
    let keys: Vec<String> = connection.run(cmd("KEYS").arg("*")).await.unwrap();
    assert!(keys.iter().any(|key| key.contains(":refresh:")), "{keys:?}");
    let mut bytes = redis.files();
    for key in &keys {
        let dump: Option<Vec<u8>> = connection.run(cmd("DUMP").arg(key)).await.unwrap();
        bytes.extend(key.bytes().chain(dump.unwrap_or_default()));
        let values: Vec<Vec<u8>> = connection.run(cmd("HVALS").arg(key)).await.unwrap_or_default();
        bytes.extend(values.concat());
    }
    assert!(bytes.len() > 500 && tokens.len() as u64 == 2 * ROTATIONS);
    for token in tokens {
        assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()), "{token}");
    }
}
