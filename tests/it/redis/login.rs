//! Logins at servers and Sentinels, in the URL and outside of it.

use std::{fs, path::Path};

use redis::cmd;
use trunkline::{
    model::SecretRef,
    store::redis::{
        Credentials,
        connection::{CommandError, RedisConnection},
    },
    telemetry::chain,
};

use crate::harness::{RedisServer, eventually, redis_limits};

/// A secret in a file.
fn secret(folder: &Path, text: &str) -> SecretRef {
    let path = folder.join(text);
    fs::write(&path, text).unwrap();
    SecretRef::File(path)
}

fn connection(url: &str, credentials: Credentials) -> RedisConnection {
    RedisConnection::with(url.parse().unwrap(), credentials, redis_limits())
}

async fn greeted(connection: &RedisConnection) -> Result<(), CommandError> {
    connection.run::<String>(&cmd("PING")).await.map(drop)
}

#[tokio::test]
async fn a_sentinel_that_requires_a_login_gets_its_own_or_that_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let primary = RedisServer::start(&["--appendonly", "no", "--requirepass", "shared", "--masterauth", "shared"]);
    for (wanted, own, is_good) in [
        ("", None, true),
        ("shared", None, true),
        ("other", Some("other"), true),
        ("other", None, false),
        ("shared", Some("other"), false),
    ] {
        let wants = if wanted.is_empty() { String::new() } else { format!("requirepass {wanted}\n") };
        let sentinel = RedisServer::sentinel_with(&primary, &format!("sentinel auth-pass main shared\n{wants}"));
        let credentials = Credentials {
            password: Some(secret(folder.path(), "shared")),
            sentinel_password: own.map(|own| secret(folder.path(), own)),
            ..Credentials::default()
        };
        let connection = connection(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port()), credentials);
        if is_good {
            let found = async || greeted(&connection).await.is_ok();
            eventually("the Sentinel names the server", found).await;
        } else {
            let error = greeted(&connection).await.unwrap_err();
            assert!(error.is_refused_login(), "{wanted} {own:?}: {error}");
            let text = chain(&error);
            assert!(text.contains("by the Sentinel"), "{text}");
            assert!(!text.contains("other") && !text.contains("shared"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_configured_user_overrides_the_one_in_the_url() {
    let folder = tempfile::tempdir().unwrap();
    let server = RedisServer::volatile();
    let rule = cmd("ACL").arg("SETUSER").arg(&["ann", "on", ">good", "~*", "&*", "+@all"]).clone();
    server.connection().run::<()>(&rule).await.unwrap();
    let url = format!("redis://eve:wrong@127.0.0.1:{}/0", server.port());
    let credentials = Credentials {
        username: Some("ann".to_owned()),
        password: Some(secret(folder.path(), "good")),
        ..Credentials::default()
    };
    let connection = connection(&url, credentials);
    assert_eq!(connection.run::<String>(cmd("ACL").arg("WHOAMI")).await, Ok("ann".to_owned()));
    assert!(connection.listen(&["news"]).await.is_ok(), "a listener has the same login");
}
