//! Two relays encrypt their tokens: Redis contains no plaintext token.

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use redis::cmd;

use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        relay::RelayProcess,
        secrets::{assert_clean, predicted_tokens, secret_patterns, settings, write_three_streams},
        site::Site,
    },
};

/// Number of token lifetimes.
const TOKEN_LIFETIMES: u64 = 4;

/// A site on this Redis, with an additional line in its store table.
async fn site(server: &RedisServer, seal: &str) -> Site {
    let site = Site::start_with(settings(), &[]).await;
    write_three_streams(&site);
    site.use_redis(&server.url());
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("[store]\n", &format!("[store]\n{seal}\n"))).unwrap();
    site
}

/// The uncompressed data of the server, in memory and on disk.
async fn dump_server(server: &RedisServer) -> Vec<u8> {
    let connection = server.connection();
    connection.run::<()>(cmd("CONFIG").arg("SET").arg("rdbcompression").arg("no")).await.unwrap();
    let mut bytes = server.files();
    let keys: Vec<String> = connection.run(cmd("KEYS").arg("*")).await.unwrap();
    for key in &keys {
        let dump: Option<Vec<u8>> = connection.run(cmd("DUMP").arg(key)).await.unwrap();
        bytes.extend(key.bytes().chain(dump.unwrap_or_default()));
    }
    assert!(keys.iter().any(|key| key.contains("token")) && bytes.len() > 10_000, "{keys:?}");
    bytes
}

/// Runs two relays for some token lifetimes. Returns the data of Redis and the patterns that it must not contain.
async fn rotate_tokens(server: &RedisServer, seal: &str) -> (Vec<u8>, Vec<String>) {
    let site = site(server, seal).await;
    let tokens = predicted_tokens().await;
    let key = STANDARD.encode([7; 32]);
    let mut relays = Vec::new();
    for _ in 0..2 {
        relays.push(RelayProcess::start_with(&site, &[("SEAL_KEY", &key)]).await);
    }
    for relay in &relays {
        relay.wait_until_live().await;
    }
    site.platform.emit(200);
    let granted = async || Some(site.platform.counters().grants_total()).filter(|granted| *granted >= TOKEN_LIFETIMES);
    let granted = eventually("tokens are renewed", WAIT_MAX, granted).await;
    let found = dump_server(server).await;
    let mut needles = secret_patterns(&tokens[..usize::try_from(granted).unwrap() + 1]);
    needles.push(key);
    (found, needles)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_plaintext_token_is_in_a_shared_redis() {
    let server = RedisServer::durable();
    let (found, needles) = rotate_tokens(&server, "seal_key = { env = \"SEAL_KEY\" }").await;
    assert_clean("Redis", &found, &needles);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sealing_key_the_search_finds_the_tokens() {
    let server = RedisServer::durable();
    let (found, needles) = rotate_tokens(&server, "").await;
    let shown = needles.iter().any(|needle| memchr::memmem::find(&found, needle.as_bytes()).is_some());
    assert!(shown, "the search finds no token, so it proves nothing");
}
