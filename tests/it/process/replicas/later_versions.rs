//! Redis values of a later version: known parts are used, and an unreadable value affects only one stream.

use redis::cmd;
use trunkline::clock;

use super::{
    foreign_data::{INVALID_VALUE as OTHER, run, waits, with_two_streams},
    site, wait_for_progress,
};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_complete, pages},
        relay::{RelayProcess, client},
        site::STREAM,
    },
};

const EVENTS_A_SECOND: u64 = 100;
const TOKEN: &str = "{trunkline:token:demo}:token";

fn key(stream: &str, what: &str) -> String {
    format!("{{trunkline:{stream}}}:{what}")
}

async fn fields(server: &RedisServer, key: &str, names: &[&str]) -> Vec<Option<String>> {
    server.connection().run(cmd("HMGET").arg(key).arg(names)).await.unwrap()
}

/// Appends an entry with a field that this version does not know.
async fn append_as_a_later_version(server: &RedisServer, relay_last: &str) {
    let log = key(STREAM, "log");
    type Found = Vec<(String, Vec<String>)>;
    let range = cmd("XREVRANGE").arg(&log).arg("+").arg("-").arg("COUNT").arg(1).clone();
    let newest: Found = server.connection().run(&range).await.unwrap();
    let (epoch, offset) = relay_last.split_once('-').unwrap();
    let next = (offset.parse::<u64>().unwrap() + 1).to_string();
    let json = newest[0].1[1].replace(&format!("{epoch}-{offset}"), &format!("{epoch}-{next}"));
    let json = json.replace(&format!("\"{offset}\""), &format!("\"{next}\""));
    run(server, &["XADD", &log, &format!("{next}-0"), "event", &json, "checksum", "7", "zone", "a"]).await;
    run(server, &["HSET", &key(STREAM, "head"), "last", &next, "position", &next]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_added_by_a_later_version_are_ignored_and_preserved() {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(20);
    relay.wait_for_number(20).await;
    let last = relay.stream().await["last"].as_str().unwrap().to_owned();
    relay.child.signal("TERM");
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 0, "{}", relay.child.printed_output());
    site.platform.emit(1);
    append_as_a_later_version(&server, &last).await;
    let (head, refused) = (key(STREAM, "head"), "{trunkline:access}:refused");
    let member = "{trunkline:replicas}:lives:00000000000000cc";
    for words in [
        &["HSET", &head, "format", "1", "codec", "zstd"][..],
        &["HSET", TOKEN, "scope", "all", "format", "2"],
        &["HSET", &key(STREAM, "cursors"), "wallboard", "{\"v\":2}"],
        &["HSET", refused, "group:7", "{\"v\":2}"],
        &["SADD", "{trunkline:replicas}:known", "00000000000000cc"],
        // The later replica takes no streams.
        &["SET", member, "0 ~calls,+more written,1,2,3 zone=a"],
        &["SET", "{trunkline:token:demo}:shape", "a new key"],
    ] {
        run(&server, words).await;
    }
    let granted = site.platform.counters().grants_total();
    let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    for relay in &relays {
        wait_for_progress(&site, relay, clock::now()).await;
        let counted = async || relay.text(&relay.admin, "/metrics").await.contains("replica_members 3").then_some(());
        eventually("the later replica is counted", WAIT_MAX, counted).await;
    }
    let last_sent = traffic.stop().await;
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        assert_complete(&pages(&relay.consumers).await, last_sent);
    }
    assert_eq!(site.platform.counters().grants_total(), granted, "the token is adopted");
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(fields(&server, &head, &["format", "codec"]).await, [text("1"), text("zstd")]);
    assert_eq!(fields(&server, TOKEN, &["scope", "format"]).await, [text("all"), text("2")]);
    assert_eq!(fields(&server, &key(STREAM, "cursors"), &["wallboard"]).await, [text("{\"v\":2}")]);
    assert_eq!(fields(&server, refused, &["group:7"]).await, [text("{\"v\":2}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_a_later_format_is_not_changed_until_its_format_is_known_again() {
    let server = RedisServer::durable();
    let site = with_two_streams(&server).await;
    let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    wait_for_progress(&site, &relays[0], clock::now()).await;
    let head = key(OTHER, "head");
    // A replica of a later version takes the stream.
    run(&server, &["HSET", &head, "format", "2", "number", "77", "nonce", "ff", "holder", "cc", "last", "v2:900"])
        .await;
    for relay in &relays {
        waits(relay, "has the format").await;
        wait_for_progress(&site, relay, clock::now()).await;
        assert_eq!(relay.ready().await.unwrap().0, 200, "the other stream is served");
    }
    let text = |text: &str| Some(text.to_owned());
    let held = fields(&server, &head, &["format", "number", "nonce", "holder", "last"]).await;
    assert_eq!(held, ["2", "77", "ff", "cc", "v2:900"].map(text), "the head is unchanged");
    // A downgrade to this version.
    run(&server, &["HDEL", &head, "format", "number", "nonce", "holder", "last", "epoch"]).await;
    for relay in &relays {
        relay.wait_until_live().await;
    }
    traffic.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_later_format_is_reported_to_its_readers_and_blocks_nothing() {
    let server = RedisServer::durable();
    let site = with_two_streams(&server).await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(10);
    relay.wait_for_number(10).await;
    let log = key(OTHER, "log");
    let held = async || (server.connection().run::<u64>(cmd("XLEN").arg(&log)).await == Ok(10)).then_some(());
    eventually("the other log has them, too", WAIT_MAX, held).await;
    // Rewrite the log so that the fifth entry is one of a later version.
    type Found = Vec<(String, Vec<String>)>;
    let entries: Found = server.connection().run(cmd("XRANGE").arg(&log).arg("-").arg("+")).await.unwrap();
    drop(relay);
    run(&server, &["DEL", &log]).await;
    for (index, (id, fields)) in entries.iter().enumerate() {
        let field = if index == 4 { "event+zstd" } else { "event" };
        run(&server, &["XADD", &log, id, field, &fields[1]]).await;
    }
    let relay = RelayProcess::live(&site).await;
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    wait_for_progress(&site, &relay, clock::now()).await;
    let page = async |query: &str| {
        let url = format!("{}/v1/streams/{OTHER}/events?{query}", relay.consumers);
        client().get(url).header("accept", "application/cloudevents-batch+json").send().await.unwrap()
    };
    let answer = page("from=first&limit=1000").await;
    assert_eq!(answer.status(), 503, "{:?}", answer.text().await);
    let named = async || relay.child.stderr().contains("has the entry \\\"5-0\\\"").then_some(());
    eventually("the entry is named", WAIT_MAX, named).await;
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    assert_complete(&pages(&relay.consumers).await, last_sent);
}
