//! A stream that does not hear all of its topics is shown as degraded on every replica, whoever owns it.

use serde_json::Value;
use trunkline::simulator::{ALWAYS, Fault};

use super::{holder, unnumbered};
use crate::{
    harness::Redis,
    process::{
        child::{PATIENCE, eventually},
        relay::Relay,
    },
};

async fn shows(relay: &Relay, state: &str) {
    eventually(&format!("the stream is {state}"), PATIENCE, async || {
        (relay.stream().await["state"] == state).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_degraded_stream_is_shown_as_such_by_the_replica_that_does_not_own_it() {
    let server = Redis::durable();
    let site = unnumbered::site(&server, &["discovery = \"2s\""]).await;
    site.platform.inject(Fault::Rest {
        status: 403,
        times: ALWAYS,
        retry_after: None,
        path: Some("/api/v2/users".to_owned()),
    });
    let relays = [Relay::start(&site).await, Relay::start(&site).await];
    for relay in &relays {
        shows(relay, "degraded").await;
    }
    let owner = holder(&relays).await;
    let (_, ready) = relays[1 - owner].ready().await.unwrap();
    let expected: Value = "degraded".into();
    assert_eq!(ready["streams"]["calls"], expected, "{ready}");
}
