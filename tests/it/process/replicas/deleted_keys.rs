//! Deletion of single Redis keys while two relays run: a gap marks the loss, and no other stream is affected.

use redis::cmd;

use super::{
    ReplicaPair,
    foreign_data::{INVALID_VALUE as OTHER, run, with_two_streams},
    one_owns,
};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        log::{LogEntry, assert_complete, pages, pages_of},
        site::STREAM,
    },
};

const EVENTS_A_SECOND: u64 = 100;

/// Two relays with two streams.
async fn start() -> ReplicaPair {
    let server = RedisServer::durable();
    let site = with_two_streams(&server).await;
    ReplicaPair::start(server, site).await
}

impl ReplicaPair {
    /// Keys that match a pattern.
    async fn keys(&self, pattern: &str) -> Vec<String> {
        self.server.connection().run(cmd("KEYS").arg(pattern)).await.unwrap()
    }

    /// Waits until the stream's log on both relays has a gap `store`, and at most `count` of them.
    async fn is_marked(&self, count: usize) {
        for relay in &self.relays {
            let marked = async || (gaps(&pages(&relay.consumers).await).len() >= count).then_some(());
            eventually("the gap is in the log", WAIT_MAX, marked).await;
        }
    }

    /// Returns the stream's log, which both replicas have, and checks that the other stream's log is complete.
    async fn ends(self, last_sent: u64) -> Vec<LogEntry> {
        for relay in &self.relays {
            relay.wait_until_live().await;
            relay.wait_for_number(last_sent).await;
            let complete = async || {
                let log = pages_of(&relay.consumers, OTHER).await;
                (log.last()?.number? == last_sent).then_some(log)
            };
            let log = eventually("the other log is complete", WAIT_MAX, complete).await;
            assert_complete(&log, last_sent);
        }
        one_owns(&self.relays).await;
        let log = pages(&self.relays[0].consumers).await;
        assert!(log == pages(&self.relays[1].consumers).await, "both replicas have the same log");
        log
    }
}

/// The offsets of the gap entries. All must have the reason `store`.
fn gaps(log: &[LogEntry]) -> Vec<u64> {
    let gaps: Vec<&LogEntry> = log.iter().filter(|entry| entry.kind == "trunkline.gap.v1").collect();
    assert!(gaps.iter().all(|gap| gap.json.contains(r#""reason":"store""#)), "{gaps:?}");
    gaps.iter().map(|gap| gap.offset).collect()
}

/// Checks that offsets are dense and that each number is there once, in order, and without a loss between two gaps.
fn assert_accounted(log: &[LogEntry]) {
    for pair in log.windows(2) {
        assert_eq!(pair[1].offset, pair[0].offset + 1, "offsets are dense: {}", pair[1].json);
        if let (Some(before), Some(after)) = (pair[0].number, pair[1].number) {
            assert_eq!(after, before + 1, "nothing is missing or duplicated: {}", pair[1].json);
        }
    }
    let numbers: Vec<u64> = log.iter().filter_map(|entry| entry.number).collect();
    assert!(numbers.is_sorted_by(|before, after| before < after), "nothing is duplicated across a gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_deleted_is_a_gap_behind_the_entries_that_are_left() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    for count in 1..=2 {
        scene.wait_for_progress().await;
        run(&scene.server, &["DEL", &format!("{{trunkline:{STREAM}}}:head")]).await;
        scene.is_marked(count).await;
        scene.wait_for_progress().await;
    }
    let log = scene.ends(traffic.stop().await).await;
    assert_accounted(&log);
    assert_eq!(log[0].offset, 1, "no entry is lost");
    assert_eq!(gaps(&log).len(), 2);
    let epoch = |entry: &LogEntry| entry.id.split_once('-').unwrap().0.to_owned();
    for gap in gaps(&log) {
        let index = usize::try_from(gap).unwrap() - 1;
        assert_ne!(epoch(&log[index - 1]), epoch(&log[index]), "the gap starts an epoch");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_log_starts_with_a_gap_behind_its_former_end() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    let mut former_end = 0;
    for _ in 0..2 {
        scene.wait_for_progress().await;
        former_end = scene.relays[0].newest().await.unwrap().offset;
        run(&scene.server, &["DEL", &format!("{{trunkline:{STREAM}}}:log")]).await;
        scene.is_marked(1).await;
        scene.wait_for_progress().await;
    }
    let log = scene.ends(traffic.stop().await).await;
    assert_accounted(&log);
    assert_eq!(gaps(&log), [log[0].offset], "the gap replaces the entries");
    assert!(log[0].offset > former_end, "no offset is used twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_lease_record_is_recreated_and_loses_nothing() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    let head = format!("{{trunkline:{STREAM}}}:head");
    for fields in [&["number", "nonce", "holder", "turn"][..], &["number", "nonce"], &["holder"], &["turn"]] {
        scene.wait_for_progress().await;
        run(&scene.server, &[&["HDEL", &head], fields].concat()).await;
        scene.wait_for_progress().await;
    }
    let last_sent = traffic.stop().await;
    assert_complete(&scene.ends(last_sent).await, last_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memberships_that_are_deleted_are_renewed_and_lose_nothing() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    for pattern in ["{trunkline:replicas}:lives:*", "{trunkline:replicas}:known", "{trunkline:replicas}:*"] {
        scene.wait_for_progress().await;
        for key in scene.keys(pattern).await {
            run(&scene.server, &["DEL", &key]).await;
        }
        let both = async || (scene.keys("{trunkline:replicas}:*").await.len() == 3).then_some(());
        eventually("both are members again", WAIT_MAX, both).await;
        scene.wait_for_progress().await;
    }
    let last_sent = traffic.stop().await;
    assert_complete(&scene.ends(last_sent).await, last_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_deleted_stay_in_use_and_the_next_one_is_shared() {
    let scene = start().await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    let (keys, grants) = ("{trunkline:token:demo}:", || scene.site.platform.counters().grants_total());
    for deleted in [&["token"][..], &["generation"], &["lock", "pause"], &["token", "generation"]] {
        scene.wait_for_progress().await;
        let granted = grants();
        for key in deleted {
            run(&scene.server, &["DEL", &format!("{keys}{key}")]).await;
        }
        scene.relays[0].operator_request("accounts/demo/refresh").await;
        let shared = async || (scene.keys(&format!("{keys}token")).await.len() == 1).then_some(());
        eventually("the next token is stored", WAIT_MAX, shared).await;
        eventually("it is granted", WAIT_MAX, async || (grants() > granted).then_some(())).await;
        scene.wait_for_progress().await;
        assert!(grants() <= granted + 2, "{deleted:?}: {} requests", grants() - granted);
    }
    let last_sent = traffic.stop().await;
    assert_complete(&scene.ends(last_sent).await, last_sent);
}
