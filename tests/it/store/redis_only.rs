//! Faults of a Redis store: the server is killed, does not reply, is full, or is replaced by another.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use redis::cmd;
use trunkline::{
    clock,
    downstream::merged_reader::{MergedReader, ReadItem, ReadStart},
    event_log::{self, EventLogs},
    model::{CursorValidity, Epoch, FeedId, Mark, Offset, Position, Sequence, Source, StreamName},
    store::{
        Append, AppendError, Retention, Store,
        redis::{Durability, RedisStore, connection::RedisConnection},
    },
    telemetry::chain,
};

use super::fixture::{KEEP_ALL, LogFixture, StoreFixture, assert_found, redis_settings, redis_store};
use crate::harness::{HoldMode, RedisLink, RedisServer, documented_rules, eventually, free_port, redis_limits};

/// More entries than an append with replies on may have.
const MANY: usize = 20;

fn store(server: &RedisServer) -> Store {
    Store::Redis(redis_store(server, KEEP_ALL, Durability::Written))
}

/// Checks that no entry is missing or duplicated.
async fn assert_complete(log: &LogFixture, count: usize) {
    assert_eq!(log.entries().await, (1..=count as u64).collect::<Vec<_>>());
}

/// Retries an append until it succeeds, as a stream does.
async fn until_done(log: &mut LogFixture, append: &Append) {
    let end = clock::now() + Duration::from_secs(8);
    loop {
        match log.put(append).await {
            Ok(()) => return,
            Err(AppendError::Unavailable(_)) => assert!(clock::now() < end, "the append does not succeed"),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn acknowledged_entries_survive_kills_and_the_writer_continues() {
    let mut server = RedisServer::durable();
    let store = store(&server);
    let mut log = LogFixture::open(&store, "queues").await;
    for round in 1..=5 {
        log.append(3).await.unwrap();
        server.kill();
        let append = log.next(2, clock::wall());
        assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
        assert!(store.health().is_err());
        server.restart();
        until_done(&mut log, &append).await;
        assert_eq!(store.health(), Ok(()));
        assert_eq!(log.entries().await, (1..=round * 5).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_restarted_server_may_have_lost_entries_so_a_new_epoch_starts_at_the_end() {
    let mut server = RedisServer::durable();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(3).await.unwrap();
    server.kill();
    server.restart();
    let mut again = LogFixture::open(&store(&server), "queues").await;
    assert_ne!(again.state.lineage.current(), log.state.lineage.current());
    assert_eq!(again.state.lineage.earlier(), [(log.state.lineage.current(), Offset(3))]);
    again.append(2).await.unwrap();
    let epochs: Vec<_> = again.read(Offset::START, usize::MAX).await.iter().map(|batch| batch.epoch()).collect();
    assert_eq!(epochs, [log.state.lineage.current(), again.state.lineage.current()]);
    assert_eq!(again.entries().await, [1, 2, 3, 4, 5]);
}

/// An earlier version writes during a rolling update or after a rollback of the update.
#[tokio::test]
async fn the_feed_of_a_position_that_an_earlier_version_moved_is_not_known() {
    let server = RedisServer::volatile();
    let store = store(&server);
    let mut log = LogFixture::open(&store, "queues").await;
    let mut append = log.next(1, clock::wall());
    append.checkpoint.feed = Some(FeedId(7));
    log.put(&append).await.unwrap();
    let head = "{trunkline:queues}:head";
    for (field, value, position, feed) in [
        ("position", "99", 99, None),
        ("feed", "0000000000000008 99 and more", 99, Some(FeedId(8))),
        ("feed", "what a later version writes", 99, None),
    ] {
        server.connection().run::<i64>(cmd("HSET").arg(head).arg(field).arg(value)).await.unwrap();
        assert_eq!(store.feed(&log.name).await.unwrap(), feed, "{value}");
        let checkpoint = LogFixture::open(&store, "queues").await.state.checkpoint.unwrap();
        assert_eq!(
            (checkpoint.position, checkpoint.feed),
            (Some(Position::Numbered(Sequence(position))), feed),
            "{value}"
        );
    }
}

/// A second server starts with a copy of the first server's files.
#[tokio::test]
async fn a_copy_of_a_server_and_its_original_never_give_the_same_id_to_different_entries() {
    let original = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&original), "queues").await;
    log.append(5).await.unwrap();
    original.connection().run::<String>(&cmd("SAVE")).await.unwrap();
    let copy = RedisServer::copy_of(&original);
    log.append(4).await.unwrap();
    let mut copied = LogFixture::open(&store(&copy), "queues").await;
    copied.append(10).await.unwrap();
    let lineage = &copied.state.lineage;
    assert_eq!(lineage.earlier(), [(log.state.lineage.current(), Offset(5))]);
    assert_eq!(lineage.validity(log.mark(9), Offset(15)), CursorValidity::AheadOfLog);
    assert_eq!(lineage.validity(log.mark(5), Offset(15)), CursorValidity::Valid(Offset(5)));
}

#[tokio::test]
async fn an_append_whose_reply_was_lost_is_applied_once() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(1).await.unwrap();
    let mut whole = 1;
    for count in [2, MANY, 2] {
        server.pause();
        let append = log.next(count, clock::wall());
        assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
        assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
        server.resume();
        until_done(&mut log, &append).await;
        whole += count;
        assert_complete(&log, whole).await;
    }
    log.append(1).await.unwrap();
    assert_eq!(LogFixture::open(&store(&server), "queues").await.state.last, log.state.last);
}

#[tokio::test]
async fn a_position_whose_reply_was_lost_is_not_overwritten_later() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(1).await.unwrap();
    server.pause();
    let position = log.next(0, clock::wall());
    assert!(matches!(log.put(&position).await, Err(AppendError::Unavailable(_))));
    server.resume();
    until_done(&mut log, &position).await;
    log.append(4).await.unwrap();
    assert_found(&LogFixture::open(&store(&server), "queues").await.state.checkpoint, &super::checkpoint(5));
}

#[tokio::test]
async fn a_command_that_arrives_long_after_its_retry_changes_nothing() {
    let server = RedisServer::volatile();
    for entries in [0, 2, MANY] {
        let road = RedisLink::to(server.port()).await;
        let url = format!("redis://127.0.0.1:{}", road.port());
        let store = Store::Redis(RedisStore::new(redis_settings(&url, KEEP_ALL, Durability::Written)));
        let mut log = LogFixture::open(&store, "queues").await;
        log.append(1).await.unwrap();
        road.hold(HoldMode::First);
        let append = log.next(entries, clock::wall());
        assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
        until_done(&mut log, &append).await;
        // No other entry follows that would reveal the late command.
        let newest = Append { checkpoint: super::checkpoint(99), ..log.next(0, clock::wall()) };
        log.put(&newest).await.unwrap();
        let last = log.state.last.0;
        let before = transactions(&server).await;
        road.hold(HoldMode::Nothing);
        eventually("the late command has arrived", async || transactions(&server).await > before).await;
        assert_complete(&log, usize::try_from(last).unwrap()).await;
        let found = LogFixture::open(&store, "queues").await.state;
        assert_eq!(found.last.0, last);
        assert_found(&found.checkpoint, &newest.checkpoint);
    }
}

#[tokio::test]
async fn many_cold_streams_at_once_cost_no_more_than_one_by_one() {
    const STREAMS: usize = 16;
    let server = RedisServer::volatile();
    let store = store(&server);
    let mut names = Vec::new();
    for index in 0..STREAMS {
        let mut log = LogFixture::open(&store, &format!("cold-{index}")).await;
        for _ in 0..20 {
            log.append(MANY).await.unwrap();
        }
        let source = Source::new(&"acme".parse().unwrap(), &log.name);
        names.push((log.name.clone(), source));
    }
    let (mut one_by_one, mut together) = (0, 0);
    for (name, source) in &names {
        one_by_one += read_bytes(&server, &store, &[(name.clone(), source.clone())]).await;
    }
    together += read_bytes(&server, &store, &names).await;
    assert!(together < one_by_one * 3 / 2, "{together} bytes together, {one_by_one} one by one");
}

/// Bytes that the server sends while one subscription reads all entries of these cold streams.
async fn read_bytes(server: &RedisServer, store: &Store, streams: &[(StreamName, Source)]) -> u64 {
    let logs = EventLogs::open(store.clone(), streams, &event_log::Settings { tail_bytes: 1 }).await.unwrap();
    let before = sent(server).await;
    let beginning = ReadStart { after: Offset::START, unknown_mark: None };
    let mut feed = MergedReader::new(logs.iter().map(|(_, log)| (log.clone(), beginning)));
    let mut left = streams.len() * 20 * MANY;
    while left > 0 {
        let next = tokio::time::timeout(Duration::from_secs(30), feed.next(16 * 1024)).await;
        match next.expect("more in time").unwrap().unwrap() {
            ReadItem::Entries { views, .. } => left -= views.iter().map(|view| view.entries().len()).sum::<usize>(),
            other @ ReadItem::Trimmed { .. } => panic!("{other:?}"),
        }
    }
    sent(server).await - before
}

async fn sent(server: &RedisServer) -> u64 {
    let about: String = server.connection().run(cmd("INFO").arg("stats")).await.unwrap();
    let (_, bytes) = about.split_once("total_net_output_bytes:").unwrap();
    bytes.lines().next().unwrap().trim().parse().unwrap()
}

async fn transactions(server: &RedisServer) -> u64 {
    let about: String = server.connection().run(cmd("INFO").arg("commandstats")).await.unwrap();
    let (_, calls) = about.split_once("cmdstat_exec:calls=").unwrap();
    calls.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_append_that_may_have_succeeded_is_not_replaced() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    server.pause();
    let append = log.next(2, clock::wall());
    assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
    let other = log.next(3, clock::wall());
    assert!(matches!(log.put(&other).await, Err(AppendError::Broken(_))));
}

#[tokio::test]
async fn foreign_changes_to_the_head_or_the_log_void_no_append() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(2).await.unwrap();
    let others = server.connection();
    for round in 1..=3 {
        others.run::<u8>(cmd("HSET").arg("{trunkline:queues}:head").arg("holder").arg(round)).await.unwrap();
        log.append(MANY).await.unwrap();
        others.run::<u8>(cmd("XDEL").arg("{trunkline:queues}:log").arg(format!("{round}-0"))).await.unwrap();
        log.append(1).await.unwrap();
    }
    assert_eq!(log.entries().await, (4..=5 + 3 * MANY as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_foreign_entry_in_a_log_is_reported_and_nothing_is_appended() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(2).await.unwrap();
    let (others, log_key) = (server.connection(), "{trunkline:queues}:log");
    let mut whole = 2;
    for (count, stays) in [(1, true), (MANY, true), (1, false), (MANY, false)] {
        let foreign = format!("{}-0", whole + 30);
        let remove = cmd("XDEL").arg(log_key).arg(&foreign).clone();
        others.run::<String>(cmd("XADD").arg(log_key).arg(&foreign).arg("a").arg("b")).await.unwrap();
        if !stays {
            others.run::<u8>(&remove).await.unwrap();
        }
        let append = log.next(count, clock::wall());
        let Err(AppendError::UnusableLog(cause)) = log.put(&append).await else { panic!("the append succeeded") };
        let why = cause.to_string();
        let named = why.contains(log_key) && why.contains(&foreign);
        assert!(named && why.contains(if stays { "XDEL" } else { "XSETID" }), "{why}");
        assert_eq!(last_of(&server).await, Some(whole.to_string()));
        others.run::<u8>(&remove).await.unwrap();
        assert!(matches!(log.put(&append).await, Err(AppendError::UnusableLog(_))), "the id is still taken");
        others.run::<String>(cmd("XSETID").arg(log_key).arg(format!("{whole}-0"))).await.unwrap();
        log.put(&append).await.unwrap();
        whole += count;
    }
    assert_complete(&log, whole).await;
}

#[tokio::test]
async fn a_full_server_is_unavailable_until_it_has_memory() {
    let server = RedisServer::volatile();
    let store = store(&server);
    let mut log = LogFixture::open(&store, "queues").await;
    log.append(1).await.unwrap();
    let set = async |bytes: &str| {
        server.connection().run::<()>(cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes)).await.unwrap();
    };
    for count in [5, MANY] {
        let before = log.entries().await;
        set("1").await;
        let append = log.next(count, clock::wall());
        let refused = log.put(&append).await.unwrap_err();
        assert!(
            matches!(&refused, AppendError::Unavailable(cause) if cause.to_string().contains("OOM")),
            "{refused:?}"
        );
        assert_eq!(log.entries().await, before, "it can still be read");
        set("0").await;
        log.put(&append).await.unwrap();
    }
    assert_complete(&log, 6 + MANY).await;
}

#[tokio::test]
async fn a_wiped_server_rejects_its_former_holder_and_starts_a_new_log() {
    let server = RedisServer::volatile();
    let mut log = LogFixture::open(&store(&server), "queues").await;
    log.append(3).await.unwrap();
    server.connection().run::<()>(&cmd("FLUSHALL")).await.unwrap();
    assert!(matches!(log.append(1).await, Err(AppendError::Fenced)));
    let reopened = LogFixture::open(&store(&server), "queues").await;
    assert_eq!(reopened.state.last, Offset::START);
    assert_eq!(reopened.state.lineage.validity(log.mark(2), Offset::START), CursorValidity::UnknownEpoch);
}

/// A connection to the server that has the keys.
fn keys_of(fixture: &StoreFixture) -> RedisConnection {
    match fixture {
        StoreFixture::Embedded(_) => panic!("an embedded store has no keys"),
        StoreFixture::Redis(server) => server.connection(),
        StoreFixture::Cluster(nodes) => {
            let url = format!("redis-cluster://127.0.0.1:{}", nodes[0].port());
            RedisConnection::new(url.parse().unwrap(), redis_limits())
        }
    }
}

async fn delete(fixture: &StoreFixture, key: &str) {
    assert_eq!(keys_of(fixture).run::<u8>(cmd("DEL").arg(format!("{{trunkline:queues}}:{key}"))).await, Ok(1), "{key}");
}

#[tokio::test]
async fn a_log_whose_entries_were_deleted_continues_behind_its_end_after_a_new_claim() {
    for fixture in [StoreFixture::redis(), StoreFixture::valkey(), StoreFixture::cluster().await] {
        let store = fixture.open(KEEP_ALL);
        let mut log = LogFixture::open(&store, "queues").await;
        log.append(3).await.unwrap();
        for count in [1, MANY] {
            let end = log.state.last;
            delete(&fixture, "log").await;
            let refused = log.append(count).await.unwrap_err();
            assert!(
                matches!(&refused, AppendError::Diverged(cause) if cause.to_string().contains("deleted")),
                "{refused}"
            );
            // Until the next append, each claim detects the loss.
            for _ in 0..2 {
                let state = store.claim(&log.name, Some(log.state.fence)).await.unwrap();
                assert!(state.damaged);
                assert_eq!((state.first, state.last), (end.next(), end));
                assert_found(&state.checkpoint, &super::checkpoint(end.0));
                log = LogFixture { state, ..log };
            }
            log.append(count).await.unwrap();
            assert_eq!(log.entries().await, (end.0 + 1..=end.0 + count as u64).collect::<Vec<_>>());
            assert!(!store.claim(&log.name, Some(log.state.fence)).await.unwrap().damaged, "it was reported");
            log = LogFixture::open(&store, "queues").await;
        }
    }
}

#[tokio::test]
async fn a_log_whose_head_was_deleted_continues_behind_its_entries_with_all_epochs() {
    for fixture in [StoreFixture::redis(), StoreFixture::valkey(), StoreFixture::cluster().await] {
        let store = fixture.open(KEEP_ALL);
        let mut log = LogFixture::open(&store, "queues").await;
        let mut epochs = Vec::new();
        for len in [3, 1, MANY, 2] {
            log.append(len).await.unwrap();
            epochs.push((log.state.lineage.current(), log.state.last));
            delete(&fixture, "head").await;
            assert!(matches!(log.append(1).await, Err(AppendError::Fenced)));
            for _ in 0..2 {
                log = LogFixture::open(&store, "queues").await;
                assert!(log.state.damaged, "until the next append, each claim detects the loss");
                assert_eq!(log.state.checkpoint, None);
                assert_eq!(log.state.lineage.earlier(), epochs);
            }
        }
        log.append(1).await.unwrap();
        assert!(!LogFixture::open(&store, "queues").await.state.damaged, "it was reported");
        assert_complete(&log, 7 + MANY).await;
    }
}

/// Two servers. The second was promoted when the log had 5 entries; the first has the writer and 3 more entries.
async fn diverged_servers() -> (RedisServer, RedisServer, LogFixture) {
    let (old, new) = (RedisServer::volatile(), RedisServer::volatile());
    let mut log = LogFixture::open(&store(&old), "queues").await;
    follow(&new, &old).await;
    log.append(5).await.unwrap();
    eventually("the replica has it", async || last_of(&new).await == Some("5".to_owned())).await;
    promote(&new).await;
    log.append(3).await.unwrap();
    (old, new, log)
}

#[tokio::test]
async fn after_a_failover_that_lost_entries_cursors_are_valid_up_to_the_failover() {
    let (_old, new, log) = diverged_servers().await;
    let mut after = LogFixture::open(&store(&new), "queues").await;
    assert_eq!(after.state.last, Offset(5));
    // The position was rolled back with the log.
    assert_found(&after.state.checkpoint, &super::checkpoint(5));
    assert_eq!(after.state.lineage.validity(log.mark(5), Offset(5)), CursorValidity::Valid(Offset(5)));
    assert_eq!(after.state.lineage.validity(log.mark(6), Offset(5)), CursorValidity::AheadOfLog);
    after.append(4).await.unwrap();
    assert_eq!(after.state.lineage.validity(log.mark(6), Offset(9)), CursorValidity::AheadOfLog);
    assert_eq!(after.entries().await, (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_writer_that_is_ahead_of_the_new_primary_stops() {
    let (old, new, mut log) = diverged_servers().await;
    // The former primary follows the new one, so its additional entries are lost.
    follow(&old, &new).await;
    promote(&old).await;
    assert!(matches!(log.append(1).await, Err(AppendError::Diverged(_))));
}

#[tokio::test]
async fn replicated_means_that_a_replica_has_it() {
    let (primary, replica) = (RedisServer::volatile(), RedisServer::volatile());
    let store = Store::Redis(redis_store(&primary, KEEP_ALL, Durability::Replicated));
    let mut log = LogFixture::open(&store, "queues").await;
    let append = log.next(2, clock::wall());
    assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))), "there is no replica");
    assert!(store.health().is_err());
    follow(&replica, &primary).await;
    until_done(&mut log, &append).await;
    assert_eq!(last_of(&replica).await, Some("2".to_owned()));
    log.append(2).await.unwrap();
    assert_eq!(last_of(&replica).await, Some("4".to_owned()));
    replica.pause();
    let append = log.next(1, clock::wall());
    assert!(matches!(log.put(&append).await, Err(AppendError::Unavailable(_))));
    replica.resume();
    until_done(&mut log, &append).await;
    assert_eq!(log.entries().await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_log_grows_while_another_reads_it_and_neither_sees_a_hole() {
    let server = RedisServer::volatile();
    let store = Arc::new(store(&server));
    let mut log = LogFixture::open(&store, "queues").await;
    let appending = async {
        for round in 0..60 {
            log.append(round % 9 + 1).await.unwrap();
        }
        log.state.last
    };
    let reading = async {
        let name = "queues".parse().unwrap();
        let mut after = Offset::START;
        while after < Offset(290) {
            for batch in store.read(&name, after, Offset(u64::MAX >> 1), 10_000).await.unwrap() {
                assert_eq!(batch.first(), after.next());
                after = batch.last();
            }
            tokio::task::yield_now().await;
        }
    };
    let (last, ()) = tokio::join!(appending, reading);
    assert_eq!(last, Offset(291));
}

pub(super) async fn follow(replica: &RedisServer, primary: &RedisServer) {
    let command = cmd("REPLICAOF").arg("127.0.0.1").arg(primary.port()).clone();
    replica.connection().run::<()>(&command).await.unwrap();
    let synced = async || {
        let about: String = replica.connection().run(cmd("INFO").arg("replication")).await.unwrap_or_default();
        about.contains("master_link_status:up")
    };
    eventually("the replica follows", synced).await;
}

/// A Sentinel that knows the primary's replica, and a URL that names it and an unreachable Sentinel.
pub(super) async fn watched(primary: &RedisServer) -> (RedisServer, String) {
    let sentinel = RedisServer::sentinel(primary);
    let watcher = sentinel.connection();
    eventually("the Sentinel knows the replica", async || {
        let known: Vec<redis::Value> = watcher.run(cmd("SENTINEL").arg("replicas").arg("main")).await.unwrap();
        known.len() == 1
    })
    .await;
    let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port());
    (sentinel, url)
}

pub(super) async fn promote(replica: &RedisServer) {
    replica.connection().run::<()>(cmd("REPLICAOF").arg("NO").arg("ONE")).await.unwrap();
}

/// The last offset on this server.
pub(super) async fn last_of(server: &RedisServer) -> Option<String> {
    server.connection().run(cmd("HGET").arg("{trunkline:queues}:head").arg("last")).await.unwrap()
}

async fn grant(server: &RedisServer, rules: &[String]) {
    server.connection().run::<()>(cmd("ACL").arg("SETUSER").arg("trunkline").arg(rules)).await.unwrap();
}

fn as_user(server: &RedisServer, durability: Durability) -> RedisStore {
    let url = format!("redis://trunkline:PASSWORD@127.0.0.1:{}", server.port());
    RedisStore::new(redis_settings(&url, KEEP_ALL, durability))
}

#[tokio::test]
async fn the_permissions_of_the_shipped_configuration_are_enough() {
    let (server, replica) = (RedisServer::volatile(), RedisServer::volatile());
    follow(&replica, &server).await;
    grant(&server, &documented_rules()).await;
    let redis = as_user(&server, Durability::Replicated);
    assert_eq!(redis.preflight().await.unwrap().len(), 1, "the only warning is about persistence");
    let store = Store::Redis(redis.clone());
    let mut log = LogFixture::open(&store, "queues").await;
    let append = log.next(3, clock::wall());
    until_done(&mut log, &append).await;
    redis.trim(&log.name).await.unwrap();
    assert_eq!(log.entries().await, [1, 2, 3]);
    let keys: Vec<String> = server.connection().run(cmd("KEYS").arg("*")).await.unwrap();
    assert!(keys.iter().all(|key| key.starts_with("{trunkline:queues}:")), "{keys:?}");
}

#[tokio::test]
async fn the_permissions_of_the_shipped_configuration_are_enough_for_durable_consumers() {
    let server = RedisServer::volatile();
    grant(&server, &documented_rules()).await;
    let store = Store::Redis(as_user(&server, Durability::Written));
    let (billing, queues) = ("billing".parse().unwrap(), "queues".parse().unwrap());
    let record = store.claim_consumer(&billing, clock::wall()).await.unwrap();
    let mark = Mark { epoch: Epoch(7), offset: Offset(4) };
    assert!(store.move_cursor(&billing, &queues, None, mark).await.unwrap());
    assert_eq!(store.consumers().await.unwrap().get(&billing), Some(&record));
    assert_eq!(store.cursors(&queues).await.unwrap().get(&billing), Some(&mark));
    assert!(store.delete_consumer(&billing, Some(record), [&queues].into_iter()).await.unwrap());
    assert_eq!(store.cursor(&billing, &queues).await.unwrap(), None);
    let refused: Vec<redis::Value> = server.connection().run(cmd("ACL").arg("LOG")).await.unwrap();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test]
async fn a_valkey_is_supported_with_the_same_permissions() {
    let server = RedisServer::valkey();
    grant(&server, &documented_rules()).await;
    let redis = as_user(&server, Durability::Written);
    assert_eq!(redis.preflight().await.unwrap().len(), 1, "the only warning is about persistence");
    let mut log = LogFixture::open(&Store::Redis(redis), "queues").await;
    for count in [1, MANY] {
        log.append(count).await.unwrap();
    }
    assert_complete(&log, 1 + MANY).await;
}

/// Commands without which a start works, or a user cannot even connect.
const NOT_ASKED: [&str; 6] = ["ping", "role", "select", "config|get", "cluster|slots", "unsubscribe"];

#[tokio::test]
async fn each_missing_permission_is_reported() {
    let server = RedisServer::volatile();
    let rules = documented_rules();
    let commands = rules.iter().filter_map(|rule| rule.strip_prefix('+'));
    for command in commands.filter(|command| !NOT_ASKED.contains(command)) {
        let without = [&["reset".to_owned()], &rules[..], &[format!("-{command}")]].concat();
        grant(&server, &without).await;
        let refused = as_user(&server, Durability::Replicated).preflight().await.expect_err(command);
        let refused = chain(&refused);
        assert!(refused.contains(command) && refused.contains("may not run"), "-{command}: {refused}");
    }
}

#[tokio::test]
async fn a_server_that_loses_reply_off_permission_gets_each_append_once() {
    let server = RedisServer::volatile();
    grant(&server, &documented_rules()).await;
    let mut log = LogFixture::open(&Store::Redis(as_user(&server, Durability::Written)), "queues").await;
    log.append(2).await.unwrap();
    let connections = async || -> BTreeSet<String> {
        let list: String = server.connection().run(cmd("CLIENT").arg("LIST")).await.unwrap();
        let ours = list.lines().filter(|line| line.contains(" user=trunkline "));
        ours.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let before = connections().await;
    grant(&server, &["-client|reply".to_owned()]).await;
    let append = log.next(MANY, clock::wall());
    assert!(
        matches!(log.put(&append).await, Err(AppendError::Unavailable(_))),
        "replies cannot be assigned to commands"
    );
    until_done(&mut log, &append).await;
    log.append(MANY).await.unwrap();
    assert_complete(&log, 2 + 2 * MANY).await;
    let left = connections().await;
    assert_eq!(before.difference(&left).count(), 1, "the connection was replaced: {before:?}, {left:?}");
}

#[tokio::test]
async fn when_a_sentinel_promotes_a_replica_the_writer_continues_there() {
    let (mut primary, replica) = (RedisServer::volatile(), RedisServer::volatile());
    follow(&replica, &primary).await;
    let (_sentinel, url) = watched(&primary).await;
    let redis = RedisStore::new(redis_settings(&url, KEEP_ALL, Durability::Written));
    redis.preflight().await.unwrap();
    let mut log = LogFixture::open(&Store::Redis(redis), "queues").await;
    log.append(5).await.unwrap();
    eventually("the replica has it", async || last_of(&replica).await == Some("5".to_owned())).await;
    primary.kill();
    let append = log.next(2, clock::wall());
    until_done(&mut log, &append).await;
    assert_eq!(last_of(&replica).await, Some("7".to_owned()));
    assert_eq!(log.entries().await, (1..=7).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_jump_of_the_wall_clock_deletes_nothing_at_once() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let server = RedisServer::volatile();
    let redis = redis_store(&server, Retention { age: HOUR, ..KEEP_ALL }, Durability::Written);
    let store = Store::Redis(redis.clone());
    let mut log = LogFixture::open(&store, "queues").await;
    for _ in 0..3 {
        log.append(1).await.unwrap();
    }
    let (ahead, boot) = (clock::wall().after(25 * HOUR), clock::boot());
    let second = Duration::from_secs(1);
    for passed in [second, 2 * second] {
        redis.trim_at(&log.name, ahead.after(passed), boot + passed).await.unwrap();
        assert_eq!(log.entries().await, [1, 2, 3], "{passed:?}");
    }
    // The clock stays ahead, but entries age at the pace of the monotonic clock.
    redis.trim_at(&log.name, ahead.after(2 * HOUR), boot + 2 * HOUR).await.unwrap();
    assert_eq!(store.first(&log.name), Offset(3), "the newest entry is kept");
}
