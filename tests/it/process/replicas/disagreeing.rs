//! An inconsistent log and head while two relays run: the stream waits with a reason on both and does not call the
//! platform repeatedly; no two entries have the same id.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use redis::cmd;
use tokio::task::JoinSet;
use trunkline::{clock, simulator::SocketDialect};

use super::{ReplicaPair, one_owns, site};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        kill::{ReceivedEntries, RelayUrl, follow_lines},
        log::{LogEntry, pages},
        site::STREAM,
    },
};

const EVENTS_A_SECOND: u64 = 100;

/// Shortest delay after the second failed claim. The platform gets no request in this time.
const OBSERVED: Duration = Duration::from_secs(4);

/// Limit of new sockets in this time.
const SOCKETS_MAX: u64 = 6;

fn key(what: &str) -> String {
    format!("{{trunkline:{STREAM}}}:{what}")
}

async fn run<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    server.connection().run(cmd(words[0]).arg(&words[1..])).await.unwrap()
}

async fn field(server: &RedisServer, name: &str) -> String {
    run(server, &["HGET", &key("head"), name]).await
}

/// Two relays with one stream.
async fn start() -> ReplicaPair {
    let server = RedisServer::durable();
    let site = site(&server, &[]).await;
    ReplicaPair::start(server, site).await
}

impl ReplicaPair {
    /// Waits until both relays show the failed stream and the reason.
    async fn waits(&self, reason: &str) {
        for relay in &self.relays {
            eventually(&format!("the reason is shown: {reason}"), WAIT_MAX, async || {
                let stream = relay.stream().await;
                let is_named = stream["last_error"].as_str().is_some_and(|why| why.contains(reason));
                (is_named && stream["state"] == "failed").then_some(())
            })
            .await;
            let ready = relay.text(&relay.admin, "/readyz?streams=all").await;
            assert!(ready.contains("failed"), "{ready}");
        }
    }

    /// Checks that the stream stays failed and the platform gets no requests.
    async fn still_waits(&self, reason: &str) {
        let opened = || self.site.platform.counters().sockets(SocketDialect::Sequenced).total;
        let (before, end) = (opened(), clock::now() + OBSERVED);
        while clock::now() < end {
            self.waits(reason).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(opened() - before <= SOCKETS_MAX, "{} sockets", opened() - before);
    }

    async fn complete_log(self, last_sent: u64) -> Vec<LogEntry> {
        for relay in &self.relays {
            relay.wait_until_live().await;
            relay.wait_for_number(last_sent).await;
        }
        let log = pages(&self.relays[0].consumers).await;
        assert!(log == pages(&self.relays[1].consumers).await, "both replicas have the same log");
        log
    }
}

/// Checks that each number is there once and in order.
fn assert_numbers(log: &[LogEntry], last_sent: u64) {
    let numbers: Vec<u64> = log.iter().filter_map(|entry| entry.number).collect();
    let expected: Vec<u64> = (numbers[0]..=last_sent).collect();
    assert!(numbers == expected, "nothing is missing or duplicated: {numbers:?}");
}

fn gaps(log: &[LogEntry]) -> usize {
    let gaps: Vec<&LogEntry> = log.iter().filter(|entry| entry.kind == "trunkline.gap.v1").collect();
    assert!(gaps.iter().all(|gap| gap.json.contains(r#""reason":"store""#)), "{gaps:?}");
    gaps.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_ahead_of_its_entries_waits_with_a_reason_and_does_not_call_the_platform() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    let id: String = run(&scene.server, &["XADD", &key("log"), "*", "foo", "bar"]).await;
    run::<u8>(&scene.server, &["XDEL", &key("log"), &id]).await;
    scene.waits("XSETID").await;
    scene.still_waits("XSETID").await;
    let last = field(&scene.server, "last").await;
    run::<String>(&scene.server, &["XSETID", &key("log"), &format!("{last}-0")]).await;
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    let log = scene.complete_log(last_sent).await;
    assert_numbers(&log, last_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_redis_refused_within_a_transaction_are_sent_again() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    run::<String>(&scene.server, &["XSETID", &key("log"), "999999999-0"]).await;
    scene.waits("XSETID").await;
    let entries: Vec<(String, Vec<String>)> =
        run(&scene.server, &["XREVRANGE", &key("log"), "+", "-", "COUNT", "1"]).await;
    run::<String>(&scene.server, &["XSETID", &key("log"), &entries[0].0]).await;
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    let log = scene.complete_log(last_sent).await;
    assert_numbers(&log, last_sent);
    assert!(gaps(&log) <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_with_an_invalid_epoch_fails_on_both_replicas_until_it_is_repaired() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    let epoch = field(&scene.server, "epoch").await;
    run::<u8>(&scene.server, &["HSET", &key("head"), "epoch", ""]).await;
    scene.waits("the field epoch is").await;
    scene.still_waits("the field epoch is").await;
    run::<u8>(&scene.server, &["HSET", &key("head"), "epoch", &epoch]).await;
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    let log = scene.complete_log(last_sent).await;
    assert_numbers(&log, last_sent);
    assert_eq!(gaps(&log), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_field_that_only_followers_read_hides_no_entries() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    for (name, value) in [("first", "x"), ("safe", "x"), ("first", "999999999"), ("first", "")] {
        scene.wait_for_progress().await;
        run::<u8>(&scene.server, &["HSET", &key("head"), name, value]).await;
        scene.wait_for_progress().await;
    }
    let last_sent = traffic.stop().await;
    let log = scene.complete_log(last_sent).await;
    assert_numbers(&log, last_sent);
}

/// Serialized copies of both keys, read in one step.
async fn dump_key(server: &RedisServer) -> (Vec<u8>, Vec<u8>) {
    const SCRIPT: &str = "return {redis.call('DUMP', KEYS[1]), redis.call('DUMP', KEYS[2])}";
    server.connection().run(cmd("EVAL").arg(SCRIPT).arg(2).arg(key("head")).arg(key("log"))).await.unwrap()
}

async fn roll_back(server: &RedisServer, (head, log): &(Vec<u8>, Vec<u8>)) {
    const SCRIPT: &str = "for i = 1, 2 do redis.call('RESTORE', KEYS[i], 0, ARGV[i], 'REPLACE') end return 1";
    let mut command = cmd("EVAL");
    command.arg(SCRIPT).arg(2).arg(key("head")).arg(key("log")).arg(head).arg(log);
    server.connection().run::<u8>(&command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_under_the_same_server_starts_an_epoch_and_every_id_stays_unique() {
    let scene = start().await;
    let (mut readers, mut tasks) = (Vec::new(), JoinSet::new());
    for relay in &scene.relays {
        let (relay_url, seen) = (Arc::new(RelayUrl::default()), Arc::new(ReceivedEntries::default()));
        relay_url.put(Some(relay.consumers.clone()));
        tasks.spawn(follow_lines(relay_url, Arc::clone(&seen)));
        readers.push(seen);
    }
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    let dumps = dump_key(&scene.server).await;
    let epoch = field(&scene.server, "epoch").await;
    scene.wait_for_progress().await;
    roll_back(&scene.server, &dumps).await;
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    assert_ne!(field(&scene.server, "epoch").await, epoch, "a new epoch starts");
    one_owns(&scene.relays).await;
    let log = scene.complete_log(last_sent).await;
    assert_numbers(&log, last_sent);
    let mut ids = BTreeMap::new();
    for reader in &readers {
        let is_at_end = async || (reader.last_id() == log.last().map(|entry| entry.id.clone())).then_some(());
        eventually("a reader is at the end", WAIT_MAX, is_at_end).await;
        for entry in reader.all().into_iter().chain(log.clone()) {
            let before = ids.insert(entry.id.clone(), entry.json.clone());
            assert!(before.is_none_or(|before| before == entry.json), "one id, two entries: {}", entry.json);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_key_of_the_wrong_type_is_reported_with_the_remedy() {
    let scene = start().await;
    let known = "{trunkline:replicas}:known";
    run::<String>(&scene.server, &["SET", known, "a text"]).await;
    for relay in &scene.relays {
        let is_named = async || {
            let (status, shown) = relay.ready().await?;
            let why = shown["checks"]["replica"].as_str()?.to_owned();
            (status == 503 && why.contains(known) && why.contains("holds a string") && why.contains("DEL"))
                .then_some(())
        };
        eventually("the key is named", WAIT_MAX, is_named).await;
    }
    run::<u8>(&scene.server, &["DEL", known]).await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    assert_numbers(&scene.complete_log(last_sent).await, last_sent);
}
