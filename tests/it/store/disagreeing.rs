//! An inconsistent log and head: the next claim reports losses, no id is used twice, and claims and appends reject the
//! same states.

use redis::{Value, cmd};
use trunkline::{
    clock,
    model::{Batch, BatchBuilder, CursorValidity, Event, Lineage, Offset, Position, Sequence, Source},
    store::{Append, AppendError, LogState, ObservedLog, Store},
    telemetry::chain,
};

use super::fixture::{KEEP_ALL, LogFixture, StoreFixture, checkpoint};
use crate::harness::RedisServer;

const HEAD: &str = "{trunkline:queues}:head";
const LOG: &str = "{trunkline:queues}:log";

/// More entries than an append with replies on may have.
const MANY: usize = 20;

async fn run(server: &RedisServer, words: &[&str]) -> Value {
    server.connection().run(cmd(words[0]).arg(&words[1..])).await.unwrap()
}

/// A server, and the log of a stream on it.
async fn scene(server: RedisServer) -> (RedisServer, LogFixture) {
    let store = StoreFixture::Redis(Box::new(server));
    let log = LogFixture::open(&store.open(KEEP_ALL), "queues").await;
    let StoreFixture::Redis(server) = store else { unreachable!("the fixture is a Redis server") };
    (*server, log)
}

/// Entries whose sequence numbers are their offsets.
fn numbered(log: &LogFixture, len: usize) -> Append {
    let source = Source::new(&"acme".parse().unwrap(), &log.name);
    let mut builder = BatchBuilder::new(&source, log.state.lineage.current(), log.state.last);
    let last = log.state.last.0 + len as u64;
    for number in log.state.last.0 + 1..=last {
        builder.push(&Event { sequence: Some(Sequence(number)), ..Event::internal("test.v1", &(), clock::wall()) });
    }
    Append {
        stream: log.name.clone(),
        fence: log.state.fence,
        batches: builder.finish().map(std::sync::Arc::new).into_iter().collect(),
        checkpoint: checkpoint(last),
    }
}

async fn append(log: &mut LogFixture, len: usize) -> Result<(), AppendError> {
    let append = numbered(log, len);
    log.put(&append).await
}

async fn claim(log: &mut LogFixture) -> Result<LogState, AppendError> {
    let state = log.store.claim(&log.name, Some(log.state.fence)).await?;
    log.state = state.clone();
    Ok(state)
}

async fn refusal(log: &mut LogFixture) -> String {
    match claim(log).await {
        Err(AppendError::UnusableLog(cause)) => chain(&cause),
        other => panic!("{other:?}"),
    }
}

fn position(state: &LogState) -> Option<Position> {
    state.checkpoint.as_ref().and_then(|checkpoint| checkpoint.position.clone())
}

/// The offsets that a reader gets, possibly with holes.
async fn offsets(log: &LogFixture) -> Vec<u64> {
    let (mut after, mut found) = (Offset::START, Vec::new());
    while after < log.state.last {
        let batches = log.read(after, usize::MAX).await;
        let Some(newest) = batches.last() else { break };
        after = newest.last();
        found.extend(batches.iter().flat_map(|batch: &std::sync::Arc<Batch>| batch.first().0..=batch.last().0));
    }
    found
}

#[tokio::test]
async fn a_claim_rejects_a_log_ahead_of_its_entries() {
    for (server, is_added) in
        [(RedisServer::volatile(), true), (RedisServer::volatile(), false), (RedisServer::valkey(), false)]
    {
        let (server, mut log) = scene(server).await;
        append(&mut log, 3).await.unwrap();
        if is_added {
            run(&server, &["XADD", LOG, "1700000000000-3", "a", "b"]).await;
            run(&server, &["XDEL", LOG, "1700000000000-3"]).await;
        } else {
            run(&server, &["XSETID", LOG, "1700000000000-3"]).await;
        }
        for _ in 0..2 {
            append(&mut log, 1).await.unwrap_err();
            let why = refusal(&mut log).await;
            assert!(why.contains(LOG) && why.contains("1700000000000-3") && why.contains("XSETID"), "{why}");
        }
        run(&server, &["XSETID", LOG, "3-0"]).await;
        let state = claim(&mut log).await.unwrap();
        assert_eq!(state.last, Offset(3));
        append(&mut log, 2).await.unwrap();
        assert_eq!(offsets(&log).await, [1, 2, 3, 4, 5]);
    }
}

#[tokio::test]
async fn an_epoch_without_entries_is_replaced_and_every_entry_stays_readable() {
    for (field, value) in [("epoch", "abcd1234"), ("earlier", "abcd1234:3 "), ("earlier", "")] {
        let (server, mut log) = scene(RedisServer::volatile()).await;
        append(&mut log, 3).await.unwrap();
        let before = log.mark(3);
        if field == "earlier" {
            // The entries are of an earlier epoch, as after a failover.
            run(&server, &["HSET", HEAD, "replid", "0"]).await;
            claim(&mut log).await.unwrap();
        }
        run(&server, &["HSET", HEAD, field, value]).await;
        let state = claim(&mut log).await.unwrap();
        assert!(!state.damaged, "{field} {value:?}");
        assert_eq!((state.last, position(&state)), (Offset(3), Some(Position::Numbered(Sequence(3)))));
        assert_eq!(state.lineage.validity(before, state.last), CursorValidity::Valid(Offset(3)), "{field} {value:?}");
        append(&mut log, 2).await.unwrap();
        assert_eq!(offsets(&log).await, [1, 2, 3, 4, 5]);
        assert_eq!(claim(&mut log).await.unwrap().lineage, state.lineage, "the claim creates no other epoch");
    }
}

#[tokio::test]
async fn an_older_log_restored_under_a_running_writer_is_detected_by_the_next_claim() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    append(&mut log, 3).await.unwrap();
    let before = log.mark(3);
    let Value::BulkString(dump) = run(&server, &["DUMP", LOG]).await else { panic!("no dump") };
    run(&server, &["FLUSHALL"]).await;
    let mut log = LogFixture::open(&log.store, "queues").await;
    append(&mut log, 5).await.unwrap();
    server.connection().run::<()>(cmd("RESTORE").arg(LOG).arg(0).arg(dump).arg("REPLACE")).await.unwrap();
    append(&mut log, 1).await.unwrap();
    let state = claim(&mut log).await.unwrap();
    assert!(state.damaged, "two entries are missing");
    assert_eq!(state.lineage.validity(before, state.last), CursorValidity::Valid(Offset(3)));
    append(&mut log, 1).await.unwrap();
    assert_eq!(offsets(&log).await, [1, 2, 3, 6, 7]);
}

/// Valkey cannot set the last id of a stream below that of a deleted entry.
#[tokio::test]
async fn a_log_that_cannot_be_reset_is_renamed_and_the_stream_continues_behind_its_end() {
    let (server, mut log) = scene(RedisServer::valkey()).await;
    append(&mut log, 3).await.unwrap();
    run(&server, &["XADD", LOG, "1700000000000-3", "a", "b"]).await;
    run(&server, &["XDEL", LOG, "1700000000000-3"]).await;
    let why = refusal(&mut log).await;
    assert!(why.contains("max_deleted_entry_id") && why.contains("RENAME"), "{why}");
    run(&server, &["RENAME", LOG, "{trunkline:queues}:moved"]).await;
    let state = claim(&mut log).await.unwrap();
    assert!(state.damaged);
    assert_eq!((state.last, position(&state)), (Offset(3), Some(Position::Numbered(Sequence(3)))));
    append(&mut log, 2).await.unwrap();
    assert_eq!(offsets(&log).await, [4, 5]);
}

#[tokio::test]
async fn an_append_that_redis_refuses_within_its_transaction_does_not_count() {
    for count in [1, MANY] {
        for (end, last) in [("3-0", 3), ("5-0", 5), ("4-0", 4)] {
            let (server, mut log) = scene(RedisServer::volatile()).await;
            append(&mut log, 3).await.unwrap();
            let before = log.mark(3);
            // The connection that watches the key gets no notification of this.
            run(&server, &["XSETID", LOG, "1000000-0"]).await;
            append(&mut log, count).await.unwrap_err();
            let looked = log.store.bounds(&log.name).await.unwrap();
            assert_eq!(looked.last, Offset(3), "readers get the existing entries");
            refusal(&mut log).await;
            run(&server, &["XSETID", LOG, end]).await;
            let expected = if last <= 3 + count as u64 { last } else { 3 + count as u64 };
            if expected < last {
                refusal(&mut log).await;
                continue;
            }
            let mut epochs = Vec::new();
            for _ in 0..2 {
                let state = claim(&mut log).await.unwrap();
                assert!(state.damaged, "until the next append, each claim detects the loss");
                assert_eq!((state.last, position(&state)), (Offset(expected), Some(Position::Numbered(Sequence(3)))));
                assert_eq!(state.lineage.validity(before, state.last), CursorValidity::Valid(Offset(3)));
                epochs.push(state.lineage);
            }
            assert_eq!(epochs[0], epochs[1], "the claim starts one epoch");
            append(&mut log, 2).await.unwrap();
            assert_eq!(offsets(&log).await, [1, 2, 3, expected + 1, expected + 2]);
            assert!(!claim(&mut log).await.unwrap().damaged, "it was reported");
        }
    }
}

#[tokio::test]
async fn entries_missing_in_the_middle_are_reported_once_and_block_no_reader() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    append(&mut log, 3).await.unwrap();
    // The first entries of the next append are refused, the others are added.
    run(&server, &["XSETID", LOG, "8-0"]).await;
    append(&mut log, MANY).await.unwrap_err();
    assert!(claim(&mut log).await.unwrap().damaged);
    assert!(claim(&mut log).await.unwrap().damaged, "the loss is not reported yet");
    append(&mut log, 1).await.unwrap();
    assert_eq!(offsets(&log).await, (1..=3).chain(9..=24).collect::<Vec<_>>());
    assert!(!claim(&mut log).await.unwrap().damaged, "it was reported");
    run(&server, &["XDEL", LOG, "2-0"]).await;
    assert!(claim(&mut log).await.unwrap().damaged, "another one is missing");
}

/// Serialized copies of both keys.
async fn dumped(server: &RedisServer) -> [Vec<u8>; 2] {
    let dump = async |key: &str| server.connection().run::<Vec<u8>>(cmd("DUMP").arg(key)).await.unwrap();
    [dump(HEAD).await, dump(LOG).await]
}

async fn restore(server: &RedisServer, key: &str, dump: &[u8]) {
    let mut command = cmd("RESTORE");
    command.arg(key).arg(0).arg(dump).arg("REPLACE");
    server.connection().run::<String>(&command).await.unwrap();
}

#[tokio::test]
async fn a_rolled_back_log_starts_an_epoch_if_its_claimant_saw_more() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    append(&mut log, 3).await.unwrap();
    let [head, entries] = dumped(&server).await;
    append(&mut log, 4).await.unwrap();
    let (lineage, fence) = (log.state.lineage.clone(), log.state.fence);
    let current = lineage.current();
    restore(&server, HEAD, &head).await;
    restore(&server, LOG, &entries).await;
    assert!(matches!(append(&mut log, 1).await, Err(AppendError::Diverged(_))));
    let after = async |lineage: &Lineage, last: u64| {
        let seen = ObservedLog { lineage: lineage.clone(), last: Offset(last) };
        log.store.claim_after(&log.name, Some(fence), &seen).await.unwrap()
    };
    assert_eq!(after(&lineage, 3).await.lineage, lineage, "the claimant has not seen more than the log has");
    assert_eq!(
        after(&Lineage::new(trunkline::model::Epoch(1)), 9).await.lineage,
        lineage,
        "the lineage is of another log"
    );
    let begun = after(&lineage, 7).await;
    assert!(!begun.damaged, "the position was rolled back with the entries");
    assert_eq!((begun.last, begun.lineage.earlier()), (Offset(3), &[(current, Offset(3))][..]));
    assert_eq!(begun.lineage.validity(log.mark(7), Offset(9)), CursorValidity::AheadOfLog);
    // Roll back to the time before the newest epoch that the claimant saw.
    restore(&server, HEAD, &head).await;
    let later = begun.lineage;
    let again = after(&later, 3).await.lineage;
    assert!(again.current() != current && again.current() != later.current());
}

#[tokio::test]
async fn a_head_restored_alone_adopts_the_entries_of_its_log() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    append(&mut log, 5).await.unwrap();
    let (before, lineage) = (log.mark(5), log.state.lineage.clone());
    run(&server, &["HSET", HEAD, "last", "2", "position", "2"]).await;
    assert!(matches!(append(&mut log, 1).await, Err(AppendError::Diverged(_))));
    let state = claim(&mut log).await.unwrap();
    assert!(state.damaged && state.lineage.current() != lineage.current());
    assert_eq!((state.last, position(&state)), (Offset(5), Some(Position::Numbered(Sequence(5)))));
    assert_eq!(state.lineage.validity(before, state.last), CursorValidity::Valid(Offset(5)));
    append(&mut log, 1).await.unwrap();
    assert_eq!(offsets(&log).await, [1, 2, 3, 4, 5, 6]);
    // Foreign entries are still rejected.
    run(&server, &["XADD", LOG, "7-0", "event", "{\"specversion\":\"1.0\",\"id\":\"7-8\"}"]).await;
    let why = refusal(&mut log).await;
    assert!(why.contains("7-0") && why.contains("did not write"), "{why}");
}

#[tokio::test]
async fn a_log_restored_alone_returns_to_the_position_of_its_entries() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    append(&mut log, 3).await.unwrap();
    let [_, entries] = dumped(&server).await;
    append(&mut log, 4).await.unwrap();
    let (seen, before) = (log.mark(7), log.mark(3));
    restore(&server, LOG, &entries).await;
    let state = claim(&mut log).await.unwrap();
    assert!(state.damaged);
    assert_eq!((state.last, position(&state)), (Offset(3), Some(Position::Numbered(Sequence(3)))));
    assert_eq!(state.lineage.validity(seen, Offset(9)), CursorValidity::AheadOfLog);
    assert_eq!(state.lineage.validity(before, Offset(9)), CursorValidity::Valid(Offset(3)));
    append(&mut log, 1).await.unwrap();
    assert_eq!(offsets(&log).await, [1, 2, 3, 4]);
}

/// For any value of a field, either the claim rejects it or the next append succeeds. Else the stream would be claimed
/// again and again.
#[tokio::test]
async fn a_claim_rejects_every_field_that_an_append_rejects() {
    let (server, mut log) = scene(RedisServer::volatile()).await;
    let [fields, values] = [
        &["number", "nonce", "epoch", "turn", "last", "safe", "bytes", "first", "position", "heard_at", "earlier"][..],
        &["", " ", "x", "0", "007", "+7", "7 ", "0000000A", "a", "99999999999999999999", "-1", "1.5", "\u{7f}é"],
    ];
    for field in fields {
        for value in values {
            run(&server, &["DEL", HEAD, LOG]).await;
            log = LogFixture::open(&log.store, "queues").await;
            append(&mut log, 12).await.unwrap();
            run(&server, &["HSET", HEAD, field, value]).await;
            let first = append(&mut log, 1).await;
            match log.store.claim(&log.name, None).await {
                Ok(state) => {
                    log.state = state;
                    append(&mut log, 1).await.unwrap_or_else(|error| panic!("{field} {value:?}: {error}, {first:?}"));
                }
                Err(AppendError::UnusableLog(why)) => {
                    assert!(why.to_string().contains(&format!("{HEAD}: the field {field}")), "{why}");
                }
                Err(other) => panic!("{field} {value:?}: {other}"),
            }
        }
    }
    assert!(matches!(log.store, Store::Redis(_)));
}
