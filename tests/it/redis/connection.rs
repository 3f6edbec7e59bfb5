//! Redis connections.

use std::time::Duration;

use redis::{Value, cmd, pipe};
use trunkline::{
    store::redis::connection::{CommandError, LuaScript, RedisConnection},
    telemetry::chain,
};

use crate::harness::{RedisServer, eventually};

async fn set(connection: &RedisConnection, key: &str, value: &str) -> Result<(), CommandError> {
    connection.run(cmd("SET").arg(key).arg(value)).await
}

async fn get(connection: &RedisConnection, key: &str) -> Result<Option<String>, CommandError> {
    connection.run(cmd("GET").arg(key)).await
}

#[tokio::test]
async fn a_command_gets_a_reply_and_an_error_has_its_code() {
    let redis = RedisServer::volatile();
    let connection = redis.connection();
    set(&connection, "a", "1").await.unwrap();
    assert_eq!(get(&connection, "a").await, Ok(Some("1".to_owned())));
    let refused = connection.run::<i64>(cmd("LPUSH").arg("a").arg("b")).await.unwrap_err();
    assert_eq!(refused.code(), Some("WRONGTYPE"));
    assert_eq!(get(&connection, "a").await, Ok(Some("1".to_owned())), "an error reply ends no connection");
}

#[tokio::test]
async fn commands_sent_together_are_done_in_order() {
    let redis = RedisServer::volatile();
    let mut commands = pipe();
    commands.cmd("SET").arg("n").arg(5).cmd("INCR").arg("n").cmd("GET").arg("n");
    let answers = redis.connection().run_all("n", &commands).await.unwrap();
    assert_eq!(answers, [Value::Okay, Value::Int(6), Value::BulkString(b"6".to_vec())]);
}

#[tokio::test]
async fn a_script_is_loaded_into_a_server_that_lacks_it() {
    let mut redis = RedisServer::durable();
    let connection = redis.connection();
    let script = LuaScript::new("#!lua\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])");
    assert_eq!(connection.call(&script, &["n"], &[b"2"]).await, Ok(2));
    assert_eq!(connection.call(&script, &["n"], &[b"2"]).await, Ok(4));
    redis.kill();
    redis.restart();
    eventually("the server is reached again", async || connection.call::<i64>(&script, &["n"], &[b"0"]).await.is_ok())
        .await;
    assert_eq!(connection.call(&script, &["n"], &[b"2"]).await, Ok(6));
}

#[tokio::test]
async fn without_a_server_nothing_is_sent_and_its_return_is_detected() {
    let mut redis = RedisServer::durable();
    let connection = redis.connection();
    set(&connection, "a", "1").await.unwrap();
    redis.kill();
    eventually("the loss is detected without a command", async || connection.health().is_err()).await;
    assert!(matches!(set(&connection, "a", "2").await, Err(CommandError::NotSent(_))));
    redis.restart();
    eventually("the server is back", async || get(&connection, "a").await == Ok(Some("1".to_owned()))).await;
    assert_eq!(connection.health(), Ok(()));
}

#[tokio::test]
async fn a_server_that_never_replies_leaves_the_outcome_unknown() {
    let redis = RedisServer::volatile();
    let connection = redis.connection();
    set(&connection, "a", "1").await.unwrap();
    redis.pause();
    assert!(matches!(set(&connection, "a", "2").await, Err(CommandError::NoAnswer(_))));
    assert!(matches!(set(&connection, "a", "3").await, Err(CommandError::NotSent(_))), "it dials without a greeting");
    redis.resume();
    eventually("the server is back", async || get(&connection, "a").await == Ok(Some("2".to_owned()))).await;
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_disconnected() {
    let (old, new) = (RedisServer::volatile(), RedisServer::volatile());
    let connection = old.connection();
    set(&connection, "a", "1").await.unwrap();
    let before: i64 = connection.run(cmd("CLIENT").arg("ID")).await.unwrap();
    connection.run::<()>(cmd("REPLICAOF").arg("127.0.0.1").arg(new.port())).await.unwrap();
    assert_eq!(set(&connection, "a", "2").await.unwrap_err().code(), Some("READONLY"));
    let after: i64 = connection.run(cmd("CLIENT").arg("ID")).await.unwrap();
    assert_ne!(before, after, "the connection is a new one");
}

#[tokio::test]
async fn a_password_is_sent_and_a_wrong_one_is_not_repeated() {
    let redis = RedisServer::start(&["--requirepass", "swordfish"]);
    let to = |login: &str| {
        let url = format!("redis://{login}@127.0.0.1:{}", redis.port());
        RedisConnection::new(url.parse().unwrap(), crate::harness::redis_limits())
    };
    set(&to(":swordfish"), "a", "1").await.unwrap();
    let error = set(&to(":sw%6Frdfisch"), "a", "1").await.unwrap_err();
    assert!(matches!(error, CommandError::LoginRefused(_)), "{error}");
    let text = chain(&error);
    assert!(text.contains("user or password is refused") && !text.contains("fisch"), "{text}");
}

#[tokio::test]
async fn published_messages_are_received_until_the_connection_is_lost() {
    let mut redis = RedisServer::volatile();
    let connection = redis.connection();
    let mut listener = connection.listen(&["news"]).await.unwrap();
    connection.run::<i64>(cmd("PUBLISH").arg("news").arg("one")).await.unwrap();
    assert_eq!(listener.next().await, Some(("news".to_owned(), b"one".to_vec())));
    redis.kill();
    let end = tokio::time::timeout(Duration::from_secs(5), listener.next()).await;
    assert_eq!(end, Ok(None));
}

#[tokio::test]
async fn a_connection_outlives_the_runtime_that_dialled() {
    let redis = RedisServer::volatile();
    let connection = redis.connection();
    let shared = connection.clone();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { shared.run::<i64>(cmd("CLIENT").arg("ID")).await.unwrap() })
    });
    let dialled = tokio::task::spawn_blocking(move || other.join().unwrap()).await.unwrap();
    assert_eq!(connection.run::<i64>(cmd("CLIENT").arg("ID")).await, Ok(dialled), "it is the same connection");
}

#[tokio::test]
async fn nothing_is_sent_on_a_closed_connection() {
    let redis = RedisServer::volatile();
    let connection = redis.connection();
    set(&connection, "a", "1").await.unwrap();
    connection.close();
    assert!(matches!(set(&connection, "a", "2").await, Err(CommandError::NotSent(_))));
    assert_eq!(get(&connection.dedicated(), "a").await, Ok(Some("1".to_owned())));
}
