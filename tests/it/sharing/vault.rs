//! The Redis scripts of the token vault, and their rejections.

use std::time::Duration;

use redis::cmd;
use trunkline::{
    coordination::vault::{RefreshToken, Token, TokenPublishOutcome, TokenVault},
    store::redis::connection::RedisConnection,
};

use crate::harness::{RedisServer, eventually, redis_limits};

const LONG: Duration = Duration::from_secs(60);

fn token(generation: u64) -> Token {
    Token { generation, lifetime: LONG, remaining: Duration::from_secs(30), secret: vec![0, 255, generation as u8] }
}

pub(super) fn vault(redis: &RedisServer) -> TokenVault {
    TokenVault::new(redis.connection(), "test", &"acme".parse().unwrap())
}

#[tokio::test]
async fn a_lock_is_released_and_renewed_by_its_owner_only_and_expires() {
    let redis = RedisServer::volatile();
    let vault = vault(&redis);
    assert_eq!(vault.lock("a", LONG).await, Ok(true));
    assert_eq!(vault.lock("b", LONG).await, Ok(false));
    vault.release("b", None).await.unwrap();
    assert_eq!(vault.renew("b", LONG).await, Ok(false));
    assert_eq!(vault.lock("b", LONG).await, Ok(false), "a still has the lock");
    assert_eq!(vault.renew("a", LONG).await, Ok(true));
    vault.release("a", None).await.unwrap();
    assert_eq!(vault.lock("b", Duration::from_millis(100)).await, Ok(true));
    eventually("it has expired", async || vault.lock("c", LONG).await == Ok(true)).await;
    assert_eq!(vault.renew("b", LONG).await, Ok(false));
    vault.release("b", None).await.unwrap();
    assert_eq!(vault.lock("d", LONG).await, Ok(false), "c has the lock");
}

#[tokio::test]
async fn a_token_replaces_only_an_older_one_and_never_under_a_foreign_lock() {
    let redis = RedisServer::volatile();
    let vault = vault(&redis);
    assert_eq!(vault.read().await.unwrap().last, 0);
    vault.lock("a", LONG).await.unwrap();
    assert_eq!(vault.publish("b", &token(1)).await, Ok(TokenPublishOutcome::LockLost));
    assert_eq!(vault.publish("a", &token(5)).await, Ok(TokenPublishOutcome::Stored));
    assert_eq!(vault.lock("b", LONG).await, Ok(true), "the lock is released");
    for old in [4, 5] {
        assert_eq!(vault.publish("a", &token(old)).await, Ok(TokenPublishOutcome::Superseded));
    }
    assert_eq!(vault.publish("a", &token(6)).await, Ok(TokenPublishOutcome::LockLost));
    assert_eq!(vault.publish("b", &token(5)).await, Ok(TokenPublishOutcome::Superseded));
    assert_eq!(vault.lock("c", LONG).await, Ok(true), "the lock is released although nothing was stored");
    vault.release("c", None).await.unwrap();
    assert_eq!(vault.publish("a", &token(7)).await, Ok(TokenPublishOutcome::Stored), "the lock is free");
    let content = vault.read().await.unwrap();
    let found = content.token.unwrap();
    assert_eq!((content.last, found.generation, found.lifetime, found.secret), (7, 7, LONG, token(7).secret));
    assert!(found.remaining <= Duration::from_secs(30) && found.remaining > Duration::from_secs(20));
}

#[tokio::test]
async fn an_expired_token_leaves_its_generation() {
    let redis = RedisServer::volatile();
    let vault = vault(&redis);
    let short = Token { remaining: Duration::from_millis(20), ..token(3) };
    assert_eq!(vault.publish("a", &short).await, Ok(TokenPublishOutcome::Stored));
    eventually("it has expired", async || vault.read().await.unwrap().token.is_none()).await;
    assert_eq!(vault.read().await.unwrap().last, 3);
    assert_eq!(vault.publish("a", &token(3)).await, Ok(TokenPublishOutcome::Superseded));
}

#[tokio::test]
async fn a_pause_applies_to_all_and_a_token_message_is_received() {
    let redis = RedisServer::volatile();
    let vault = vault(&redis);
    vault.release("a", Some(Duration::from_millis(300))).await.unwrap();
    assert!(vault.read().await.unwrap().pause.is_some());
    eventually("the pause has ended", async || vault.read().await.unwrap().pause.is_none()).await;
    let mut news = vault.listen().await.unwrap();
    vault.publish("a", &token(9)).await.unwrap();
    assert_eq!(news.next().await, Some(9));
}

#[tokio::test]
async fn values_that_no_replica_can_have_written_are_reset() {
    let redis = RedisServer::volatile();
    let (vault, connection) = (vault(&redis), redis.connection());
    let key = |what: &str| format!("{{test:token:acme}}:{what}");
    let run = async |words: &[&str]| connection.run::<redis::Value>(cmd(words[0]).arg(&words[1..])).await.unwrap();
    let there = async |what: &str| connection.run::<i64>(cmd("EXISTS").arg(key(what))).await == Ok(1);
    for number in ["18446744073709551615", "18446744073709551614", "9007199254740991", "-1", "1e3", "abc", ""] {
        run(&["SET", &key("generation"), number]).await;
        assert_eq!(vault.read().await.unwrap().last, 0, "{number}");
        assert!(!there("generation").await, "{number}");
        run(&["HSET", &key("token"), "generation", number, "lifetime", "60000", "secret", "s"]).await;
        run(&["PEXPIRE", &key("token"), "30000"]).await;
        assert_eq!(vault.read().await.unwrap().token, None, "{number}");
        assert!(!there("token").await, "{number}");
        run(&["HSET", &key("refresh:x"), "number", number, "secret", "s"]).await;
        assert_eq!(vault.refresh_token("x").await, Ok(None), "{number}");
        assert!(!there("refresh:x").await, "{number}");
    }
    run(&["HSET", &key("token"), "generation", "3", "lifetime", "172800001", "secret", "s"]).await;
    assert_eq!(vault.read().await.unwrap().token, None);
    assert!(!there("token").await);
    run(&["SET", &key("pause"), "1", "PX", "999999999999"]).await;
    assert_eq!(vault.read().await.unwrap().pause, None);
    assert!(!there("pause").await);
    for lock in [&["SET", &key("lock"), "a"][..], &["SET", &key("lock"), "a", "PX", "999999999"]] {
        run(lock).await;
        assert_eq!(vault.lock("b", LONG).await, Ok(false), "an invalid lock is read before it is deleted");
        assert_eq!(vault.lock("b", LONG).await, Ok(true));
        vault.release("b", None).await.unwrap();
    }
    assert_eq!(vault.publish("a", &token(1)).await, Ok(TokenPublishOutcome::Stored), "the generations restart");
}

#[tokio::test]
async fn a_cluster_stores_tokens_like_a_single_server() {
    let nodes = RedisServer::cluster().await;
    let address = format!("redis-cluster://127.0.0.1:{}", nodes[1].port());
    let connection = RedisConnection::new(address.parse().unwrap(), redis_limits());
    for account in ["acme", "globex", "initech"] {
        let vault = TokenVault::new(connection.clone(), "test", &account.parse().unwrap());
        let mut news = vault.listen().await.unwrap();
        assert_eq!(vault.read().await.unwrap().last, 0);
        assert_eq!(vault.lock("a", LONG).await, Ok(true));
        assert_eq!(vault.lock("b", LONG).await, Ok(false));
        assert_eq!(vault.renew("a", LONG).await, Ok(true));
        assert_eq!(vault.publish("b", &token(5)).await, Ok(TokenPublishOutcome::LockLost));
        assert_eq!(vault.publish("a", &token(5)).await, Ok(TokenPublishOutcome::Stored));
        assert_eq!(vault.publish("a", &token(5)).await, Ok(TokenPublishOutcome::Superseded));
        assert_eq!(news.next().await, Some(5), "{account}");
        let content = vault.read().await.unwrap();
        assert_eq!((content.last, content.token.unwrap().secret), (5, token(5).secret));
        vault.release("a", Some(LONG)).await.unwrap();
        assert!(vault.read().await.unwrap().pause.is_some_and(|pause| pause <= LONG));
        vault.store_refresh_token("x", &RefreshToken { number: 2, secret: vec![1] }).await.unwrap();
        assert_eq!(vault.refresh_token("x").await.unwrap().unwrap().number, 2);
        let generation = format!("{{test:token:{account}}}:generation");
        connection.run::<()>(cmd("SET").arg(&generation).arg("18446744073709551615")).await.unwrap();
        // The token's own number is valid.
        assert_eq!(vault.read().await.unwrap().last, 5);
    }
}
