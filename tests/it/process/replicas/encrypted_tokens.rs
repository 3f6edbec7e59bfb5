//! Two relays seal their tokens: whoever gets hold of all that Redis has, has no token.

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use redis::cmd;

use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        relay::RelayProcess,
        secrets::{assert_clean, secret_patterns, settings, tokens_of_a_twin, write_three_streams},
        site::Site,
    },
};

/// Lives of a token before it is enough.
const TOKEN_LIFETIMES: u64 = 4;

/// A site on this Redis; with `seal`, a line of its store.
async fn site(server: &RedisServer, seal: &str) -> Site {
    let site = Site::start_with(settings(), &[]).await;
    write_three_streams(&site);
    site.use_redis(&server.url());
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("[store]\n", &format!("[store]\n{seal}\n"))).unwrap();
    site
}

/// Everything that the server has, in memory and on disk, nothing of it compressed.
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

/// Lets two relays live through some tokens, and returns what Redis has then, and what must not be in it.
async fn rotate_tokens(server: &RedisServer, seal: &str) -> (Vec<u8>, Vec<String>) {
    let site = site(server, seal).await;
    let tokens = tokens_of_a_twin().await;
    let key = STANDARD.encode([7; 32]);
    let mut relays = Vec::new();
    for _ in 0..2 {
        relays.push(RelayProcess::start_with(&site, &[("SEAL_KEY", &key)]).await);
    }
    for relay in &relays {
        relay.goes_live().await;
    }
    site.platform.emit(200);
    let granted = async || Some(site.platform.counters().grants_total()).filter(|granted| *granted >= TOKEN_LIFETIMES);
    let granted = eventually("tokens come and go", WAIT_MAX, granted).await;
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
    assert!(shown, "there is nothing to be found, so that nothing is proved");
}
