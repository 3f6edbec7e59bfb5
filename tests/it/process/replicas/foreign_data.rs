//! Redis values that this version did not write: the affected stream waits with a reason, and all others continue.

use std::fs;

use redis::cmd;
use serde_json::Value;
use trunkline::clock;

use super::{site, wait_for_progress};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        relay::RelayProcess,
        site::{STREAM, Site},
    },
};

/// The stream with damaged keys. The other stream of the site is [`STREAM`].
pub(super) const INVALID_VALUE: &str = "spoilt";

pub(super) async fn with_two_streams(server: &RedisServer) -> Site {
    let site = site(server, &[]).await;
    let text = fs::read_to_string(&site.config).unwrap();
    let (_, stream) = text.split_once(&format!("[streams.{STREAM}]")).unwrap();
    fs::write(&site.config, format!("{text}[streams.{INVALID_VALUE}]{stream}")).unwrap();
    site
}

pub(super) async fn run(server: &RedisServer, words: &[&str]) {
    server.connection().run::<redis::Value>(cmd(words[0]).arg(&words[1..])).await.unwrap();
}

/// The status of the stream with damaged keys.
async fn spoilt(relay: &RelayProcess) -> Value {
    let status = relay.status().await;
    status["streams"].as_array().unwrap().iter().find(|stream| stream["stream"] == INVALID_VALUE).unwrap().clone()
}

pub(super) async fn waits(relay: &RelayProcess, reason: &str) {
    eventually(&format!("the status contains {reason}"), WAIT_MAX, async || {
        let stream = spoilt(relay).await;
        let is_reported = stream["last_error"].as_str().is_some_and(|error| error.contains(reason));
        (is_reported && stream["state"] == "failed").then_some(())
    })
    .await;
}

fn key(what: &str) -> String {
    format!("{{trunkline:{INVALID_VALUE}}}:{what}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_read_is_reported_and_the_others_append() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let relay = RelayProcess::live(&site).await;
    let (known, lives) = ("{trunkline:replicas}:known", "{trunkline:replicas}:lives:");
    for (id, value) in [("00000000000000aa", "{\"v\":2}"), ("invalid", "9 calls written,1,2,3")] {
        run(&server, &["SADD", known, id]).await;
        run(&server, &["SET", &format!("{lives}{id}"), value]).await;
    }
    run(&server, &["SADD", known, "00000000000000bb"]).await;
    run(&server, &["RPUSH", &format!("{lives}00000000000000bb"), "a list"]).await;
    let traffic = site.start_traffic(100);
    wait_for_progress(&site, &relay, clock::now()).await;
    let reported = async || {
        let (status, shown) = relay.ready().await?;
        let warnings = shown["warnings"].to_string();
        let named = ["aa", "invalid", "bb"].iter().all(|id| warnings.contains(id));
        (status == 200 && named && shown["checks"]["replica"] == "ok").then_some(())
    };
    eventually("each id is reported", WAIT_MAX, reported).await;
    // Another replica starts, too.
    let second = RelayProcess::live(&site).await;
    wait_for_progress(&site, &second, clock::now()).await;
    eventually("both are counted", WAIT_MAX, async || {
        let metrics = relay.text(&relay.admin, "/metrics").await;
        metrics.contains("trunkline_replica_members 2").then_some(())
    })
    .await;
    traffic.stop().await;
    let lines = relay
        .child
        .stderr()
        .lines()
        .filter(|line| line.contains("membership of another replica cannot be read"))
        .count();
    assert_eq!(lines, 3, "each value is logged once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_is_not_renewed_shows_in_readiness_and_metrics() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let relay = RelayProcess::live(&site).await;
    run(&server, &["DEL", "{trunkline:replicas}:known"]).await;
    run(&server, &["SET", "{trunkline:replicas}:known", "a text"]).await;
    let not_ready = async || {
        let (status, shown) = relay.ready().await?;
        (status == 503 && shown["checks"]["replica"].as_str()?.contains("WRONGTYPE")).then_some(())
    };
    eventually("it is not ready, with a reason", WAIT_MAX, not_ready).await;
    let metrics = relay.text(&relay.admin, "/metrics").await;
    assert!(!metrics.contains("trunkline_replica_renewal_failures_total 0"));
    run(&server, &["DEL", "{trunkline:replicas}:known"]).await;
    relay.wait_until_live().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_foreign_keys_waits_alone_and_resumes_after_repair() {
    for (spoil, reason, repair) in [
        (vec!["SET", "head", "a text"], "expected a hash", vec!["DEL", "head"]),
        (vec!["SET", "log", "a text"], "expected a stream", vec!["DEL", "log"]),
        (vec!["HSET", "head", "epoch", "7", "last", "xyz"], "the field last", vec!["DEL", "head"]),
        (vec!["HSET", "head", "epoch", "7", "last", "18446744073709551615"], "the field last", vec!["DEL", "head"]),
        (vec!["HSET", "head", "epoch", "7", "last", "0", "bytes", "many"], "the field bytes", vec!["DEL", "head"]),
        (vec!["HSET", "head", "number", "x", "nonce", "y"], "found number", vec!["DEL", "head"]),
        (vec!["HSET", "head", "number", "18446744073709551615", "nonce", "ff"], "found number", vec!["DEL", "head"]),
        (vec!["XADD", "log", "1700000000000-3", "a", "b"], "did not write", vec!["DEL", "log"]),
    ] {
        let server = RedisServer::durable();
        let site = with_two_streams(&server).await;
        let keyed = |words: &[&str]| {
            words
                .iter()
                .map(|word| match *word {
                    "head" | "log" => key(word),
                    other => other.to_owned(),
                })
                .collect::<Vec<_>>()
        };
        let spoil = keyed(&spoil);
        run(&server, &spoil.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let relay = RelayProcess::start(&site).await;
        waits(&relay, reason).await;
        let traffic = site.start_traffic(100);
        wait_for_progress(&site, &relay, clock::now()).await;
        assert_eq!(relay.ready().await.unwrap().0, 200, "the other stream is served: {spoil:?}");
        let kept: u8 = server.connection().run(cmd("EXISTS").arg(&spoil[1])).await.unwrap();
        assert_eq!(kept, 1, "foreign data is not deleted");
        let repair = keyed(&repair);
        run(&server, &repair.iter().map(String::as_str).collect::<Vec<_>>()).await;
        relay.wait_until_live().await;
        traffic.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_becomes_foreign_while_it_is_written_stops_that_stream_alone() {
    let server = RedisServer::durable();
    let site = with_two_streams(&server).await;
    let relay = RelayProcess::live(&site).await;
    let traffic = site.start_traffic(100);
    run(&server, &["XADD", &key("log"), "1700000000000-3", "a", "b"]).await;
    waits(&relay, "did not write").await;
    wait_for_progress(&site, &relay, clock::now()).await;
    run(&server, &["DEL", &key("log")]).await;
    run(&server, &["DEL", &key("head")]).await;
    relay.wait_until_live().await;
    traffic.stop().await;
}
