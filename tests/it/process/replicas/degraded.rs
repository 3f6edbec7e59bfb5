//! Every replica shows a stream without all of its topics as degraded.

use serde_json::Value;
use trunkline::simulator::{ALWAYS, PlatformFault};

use super::{holder, unnumbered};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        relay::RelayProcess,
    },
};

async fn shows(relay: &RelayProcess, state: &str) {
    eventually(&format!("the stream is {state}"), WAIT_MAX, async || {
        (relay.stream().await["state"] == state).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_shows_that_a_stream_is_degraded() {
    let server = RedisServer::durable();
    let site = unnumbered::site(&server, &["discovery = \"2s\""]).await;
    site.platform.inject(PlatformFault::Rest {
        status: 403,
        times: ALWAYS,
        retry_after: None,
        path: Some("/api/v2/users".to_owned()),
    });
    let relays = [RelayProcess::start(&site).await, RelayProcess::start(&site).await];
    for relay in &relays {
        shows(relay, "degraded").await;
    }
    let owner = holder(&relays).await;
    let (_, ready) = relays[1 - owner].ready().await.unwrap();
    let expected: Value = "degraded".into();
    assert_eq!(ready["streams"]["calls"], expected, "{ready}");
}
