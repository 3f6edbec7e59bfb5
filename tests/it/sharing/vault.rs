//! The vault's scripts, by what they must refuse.

use std::time::Duration;

use trunkline::store::redis::vault::{Stored, Token, Vault};

use crate::harness::{Redis, eventually};

const LONG: Duration = Duration::from_secs(60);

fn token(generation: u64) -> Token {
    Token { generation, lifetime: LONG, left: Duration::from_secs(30), secret: vec![0, 255, generation as u8] }
}

pub(super) fn vault(redis: &Redis) -> Vault {
    Vault::new(redis.connection(), "test", &"acme".parse().unwrap())
}

#[tokio::test]
async fn a_lock_is_given_back_and_renewed_by_its_owner_only_and_ends_by_itself() {
    let redis = Redis::volatile();
    let vault = vault(&redis);
    assert_eq!(vault.lock("a", LONG).await, Ok(true));
    assert_eq!(vault.lock("b", LONG).await, Ok(false));
    vault.release("b", None).await.unwrap();
    assert_eq!(vault.renew("b", LONG).await, Ok(false));
    assert_eq!(vault.lock("b", LONG).await, Ok(false), "it is still a's");
    assert_eq!(vault.renew("a", LONG).await, Ok(true));
    vault.release("a", None).await.unwrap();
    assert_eq!(vault.lock("b", Duration::from_millis(100)).await, Ok(true));
    eventually("it has ended", async || vault.lock("c", LONG).await == Ok(true)).await;
    assert_eq!(vault.renew("b", LONG).await, Ok(false));
    vault.release("b", None).await.unwrap();
    assert_eq!(vault.lock("d", LONG).await, Ok(false), "it is c's");
}

#[tokio::test]
async fn a_token_is_stored_over_an_older_one_only_and_under_nobody_elses_lock() {
    let redis = Redis::volatile();
    let vault = vault(&redis);
    assert_eq!(vault.look().await.unwrap().last, 0);
    vault.lock("a", LONG).await.unwrap();
    assert_eq!(vault.publish("b", &token(1)).await, Ok(Stored::Lost));
    assert_eq!(vault.publish("a", &token(5)).await, Ok(Stored::Done));
    assert_eq!(vault.lock("b", LONG).await, Ok(true), "the lock is given back");
    for old in [4, 5] {
        assert_eq!(vault.publish("a", &token(old)).await, Ok(Stored::Newer));
    }
    assert_eq!(vault.publish("a", &token(6)).await, Ok(Stored::Lost));
    assert_eq!(vault.publish("b", &token(5)).await, Ok(Stored::Newer));
    assert_eq!(vault.lock("c", LONG).await, Ok(true), "the lock is given back though nothing was stored");
    vault.release("c", None).await.unwrap();
    assert_eq!(vault.publish("a", &token(7)).await, Ok(Stored::Done), "nobody has the lock");
    let content = vault.look().await.unwrap();
    let found = content.token.unwrap();
    assert_eq!((content.last, found.generation, found.lifetime, found.secret), (7, 7, LONG, token(7).secret));
    assert!(found.left <= Duration::from_secs(30) && found.left > Duration::from_secs(20));
}

#[tokio::test]
async fn a_token_that_ended_leaves_its_number() {
    let redis = Redis::volatile();
    let vault = vault(&redis);
    let short = Token { left: Duration::from_millis(20), ..token(3) };
    assert_eq!(vault.publish("a", &short).await, Ok(Stored::Done));
    eventually("it has ended", async || vault.look().await.unwrap().token.is_none()).await;
    assert_eq!(vault.look().await.unwrap().last, 3);
    assert_eq!(vault.publish("a", &token(3)).await, Ok(Stored::Newer));
}

#[tokio::test]
async fn a_pause_is_for_everybody_and_word_of_a_token_is_heard() {
    let redis = Redis::volatile();
    let vault = vault(&redis);
    vault.release("a", Some(Duration::from_millis(300))).await.unwrap();
    assert!(vault.look().await.unwrap().pause.is_some());
    eventually("it is over", async || vault.look().await.unwrap().pause.is_none()).await;
    let mut news = vault.listen().await.unwrap();
    vault.publish("a", &token(9)).await.unwrap();
    assert_eq!(news.next().await, Some(9));
}
