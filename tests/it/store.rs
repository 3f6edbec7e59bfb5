//! Conformance tests: each case runs on every kind of store.

mod disagreeing;
mod fixture;
mod following;
mod redis_only;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use trunkline::{
    clock,
    model::{
        Batch, BatchBuilder, Checkpoint, ConsumerName, CursorValidity, Epoch, Event, FeedId, Fence, Mark, Offset,
        Position, Revocation, RevocationTarget, Sequence, Source, StreamName, Timestamp,
    },
    store::{Append, AppendError, Retention},
};

use self::fixture::{KEEP_ALL, LogFixture, StoreFixture, assert_found, checkpoint};
use crate::harness::eventually;

/// Runs a case on each store.
macro_rules! on_each {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            use super::fixture::StoreFixture;
            $(#[tokio::test] async fn $case() { super::$case(StoreFixture::embedded()).await; })*
        }
        mod redis {
            use super::fixture::StoreFixture;
            $(#[tokio::test] async fn $case() { super::$case(StoreFixture::redis()).await; })*
        }
        mod valkey {
            use super::fixture::StoreFixture;
            $(#[tokio::test] async fn $case() { super::$case(StoreFixture::valkey()).await; })*
        }
        mod cluster {
            use super::fixture::StoreFixture;
            $(#[tokio::test] async fn $case() { super::$case(StoreFixture::cluster().await).await; })*
        }
    };
}

mod consumers;
mod sinks;
mod tickets;

on_each![
    appended_entries_are_read_back_unchanged,
    a_former_holder_is_rejected,
    reading_the_bounds_changes_nothing,
    a_claim_under_a_fence_needs_exactly_that_fence,
    an_append_that_would_leave_a_hole_or_a_duplicate_is_rejected_as_a_whole,
    a_position_is_stored_with_and_without_entries,
    a_position_is_stored_with_its_feed,
    an_opaque_position_is_stored_with_its_feed,
    all_entries_survive_a_close,
    streams_do_not_mix,
    a_read_is_bounded_and_starts_anywhere,
    an_offset_is_found_by_its_time_exactly,
    each_bound_of_the_retention_trims_and_the_newest_stays,
    a_closed_store_rejects_calls_with_a_reason,
    a_cursor_moves_only_from_its_expected_position,
    only_one_of_many_concurrent_cursor_moves_succeeds,
    a_revoked_consumer_is_rejected_for_a_time,
];

fn mark(epoch: u32, offset: u64) -> Mark {
    Mark { epoch: Epoch(epoch), offset: Offset(offset) }
}

async fn a_cursor_moves_only_from_its_expected_position(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let (billing, queues): (ConsumerName, StreamName) = ("billing".parse().unwrap(), "queues".parse().unwrap());
    assert_eq!(store.cursor(&billing, &queues).await.unwrap(), None);
    let steps = [
        (None, mark(7, 4), true),
        (None, mark(7, 5), false),
        (Some(mark(7, 5)), mark(7, 9), false),
        (Some(mark(8, 4)), mark(8, 9), false),
        (Some(mark(7, 4)), mark(7, 9), true),
        // A retry after a lost reply.
        (Some(mark(7, 4)), mark(7, 9), true),
        (Some(mark(7, 9)), mark(9, 1), true),
    ];
    for (from, to, moves) in steps {
        assert_eq!(store.move_cursor(&billing, &queues, from, to).await.unwrap(), moves, "{from:?} to {to:?}");
    }
    for other in [("billing", "agents"), ("wallboard", "queues")] {
        assert_eq!(store.cursor(&other.0.parse().unwrap(), &other.1.parse().unwrap()).await.unwrap(), None);
    }
    store.close().await;
    assert_eq!(fixture.open(KEEP_ALL).cursor(&billing, &queues).await.unwrap(), Some(mark(9, 1)));
}

async fn only_one_of_many_concurrent_cursor_moves_succeeds(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let (billing, queues): (ConsumerName, StreamName) = ("billing".parse().unwrap(), "queues".parse().unwrap());
    let moves = (1..=20).map(|offset| store.move_cursor(&billing, &queues, None, mark(7, offset)));
    let moved = futures_util::future::join_all(moves).await;
    let winners: Vec<usize> = (0..moved.len()).filter(|index| *moved[*index].as_ref().unwrap()).collect();
    assert_eq!(winners.len(), 1, "{moved:?}");
    assert_eq!(store.cursor(&billing, &queues).await.unwrap(), Some(mark(7, winners[0] as u64 + 1)));
}

async fn a_revoked_consumer_is_rejected_for_a_time(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let revoke = async |whose: &RevocationTarget, at: i64, lasting: Duration| {
        store.revoke(&Revocation { target: whose.clone(), at: Timestamp(at), ttl: lasting }).await.unwrap();
    };
    assert!(store.revoked().await.unwrap().is_empty());
    let (session, subject) =
        (RevocationTarget::Session("4f2a".to_owned()), RevocationTarget::Subject("4f2a".to_owned()));
    revoke(&session, 1_777_901_509_570, Duration::from_secs(60)).await;
    revoke(&subject, 20, Duration::from_millis(1)).await;
    // The latest revocation and the longest lifetime count.
    revoke(&session, 5, Duration::from_millis(1)).await;
    let expected = BTreeMap::from([(session.clone(), Timestamp(1_777_901_509_570))]);
    eventually("the subject's revocation has expired", async || store.revoked().await.unwrap() == expected).await;
    revoke(&subject, 20, Duration::from_secs(60)).await;
    store.close().await;
    let expected = BTreeMap::from([(session, Timestamp(1_777_901_509_570)), (subject, Timestamp(20))]);
    assert_eq!(fixture.open(KEEP_ALL).revoked().await.unwrap(), expected);
}

async fn appended_entries_are_read_back_unchanged(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    let mut appended = Vec::new();
    for len in [1, 5, 70, 400] {
        appended.extend(log.append(len).await.unwrap().batches);
    }
    let shown = |batches: &[Arc<Batch>]| -> Vec<String> {
        let entries = batches.iter().flat_map(|batch| (0..batch.len()).map(|index| batch.entry(index)));
        entries.map(|entry| format!("{} {} {:?} {:?}", entry.mark, entry.kind(), entry.received, entry.json)).collect()
    };
    let read = log.read(Offset::START, usize::MAX).await;
    assert_eq!(shown(&read), shown(&appended));
    assert_eq!(log.entries().await, (1..=476).collect::<Vec<_>>());
    assert_eq!(store.first(&log.name), Offset(1));
}

async fn a_former_holder_is_rejected(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut former = LogFixture::open(&store, "queues").await;
    former.append(1).await.unwrap();
    let mut holder = LogFixture::open(&store, "queues").await;
    assert_eq!(holder.state.fence.number, former.state.fence.number + 1);
    assert!(matches!(former.append(1).await, Err(AppendError::Fenced)));
    holder.append(1).await.unwrap();
    let mut forged = LogFixture::open(&store, "queues").await;
    forged.state.fence.nonce ^= 1;
    assert!(matches!(forged.append(1).await, Err(AppendError::Fenced)));
    assert_eq!(holder.entries().await, [1, 2]);
}

async fn reading_the_bounds_changes_nothing(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let name: StreamName = "queues".parse().unwrap();
    let nothing = store.bounds(&name).await.unwrap();
    assert_eq!((nothing.lineage.current(), nothing.first, nothing.last), (Epoch::NONE, Offset(1), Offset::START));
    assert_eq!(store.bounds(&name).await.unwrap(), nothing);
    let mut log = LogFixture::open(&store, "queues").await;
    assert_eq!(log.state.fence.number, 1, "reading the bounds creates no fence");
    log.append(4).await.unwrap();
    let found = store.bounds(&name).await.unwrap();
    assert_eq!((found.lineage, found.first, found.last), (log.state.lineage.clone(), Offset(1), Offset(4)));
    log.append(1).await.unwrap();
    store.close().await;
    let store = fixture.open(KEEP_ALL);
    let found = store.bounds(&name).await.unwrap();
    assert_eq!((found.lineage, found.first, found.last), (log.state.lineage.clone(), Offset(1), Offset(5)));
    let read = store.read(&name, Offset::START, found.last, usize::MAX).await.unwrap();
    assert_eq!(read.iter().map(|batch| batch.len()).sum::<usize>(), 5, "it can be read without a claim");
    assert_eq!(store.offset_before(&name, found.last, Timestamp(i64::MAX)).await.unwrap(), Offset(5));
}

async fn a_claim_under_a_fence_needs_exactly_that_fence(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let name: StreamName = "queues".parse().unwrap();
    assert!(matches!(store.claim(&name, Some(Fence { number: 1, nonce: 2 })).await, Err(AppendError::Fenced)));
    let mut former = LogFixture::open(&store, "queues").await;
    former.append(1).await.unwrap();
    let log = LogFixture::open(&store, "queues").await;
    let fence = log.state.fence;
    let wrong = [
        former.state.fence,
        Fence { number: fence.number + 1, ..fence },
        Fence { number: fence.number - 1, ..fence },
        Fence { nonce: fence.nonce ^ 1, ..fence },
        Fence::NONE,
    ];
    for wrong in wrong {
        assert!(matches!(store.claim(&name, Some(wrong)).await, Err(AppendError::Fenced)), "{wrong}");
    }
    let state = store.claim(&name, Some(fence)).await.unwrap();
    assert_eq!((state.fence, state.last, state.high_watermark), (fence, Offset(1), Offset(1)));
    assert_eq!(state.lineage, log.state.lineage);
    assert_found(&state.checkpoint, &checkpoint(1));
    let mut log = LogFixture { state, ..log };
    for _ in 0..3 {
        log.append(2).await.unwrap();
        let state = store.claim(&name, Some(fence)).await.unwrap();
        log = LogFixture { state, ..log };
    }
    assert!(matches!(former.append(1).await, Err(AppendError::Fenced)));
    assert_eq!(log.entries().await, (1..=7).collect::<Vec<_>>());
}

async fn an_append_that_would_leave_a_hole_or_a_duplicate_is_rejected_as_a_whole(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    log.append(2).await.unwrap();
    let mut twice = log.next(1, clock::wall());
    twice.batches.push(Arc::clone(&twice.batches[0]));
    assert!(matches!(store.append(twice).await, Err(AppendError::Broken(_))));
    for last in [0, 1, 3] {
        let mut diverged = log.clone();
        diverged.state.last = Offset(last);
        assert!(matches!(diverged.append(1).await, Err(AppendError::Broken(_))), "after {last}");
    }
    assert_eq!(log.entries().await, [1, 2]);
    log.append(1).await.unwrap();
}

async fn a_position_is_stored_with_and_without_entries(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    assert_eq!(log.state.checkpoint, None);
    log.append(3).await.unwrap();
    let log = LogFixture::open(&store, "queues").await;
    assert_found(&log.state.checkpoint, &checkpoint(3));
    let none = Checkpoint { position: None, last_received_at: Timestamp(7), feed: None };
    for expected in [checkpoint(u64::MAX), none.clone()] {
        let append = Append { checkpoint: expected, ..log.next(0, Timestamp(0)) };
        store.append(append).await.unwrap();
    }
    let log = LogFixture::open(&store, "queues").await;
    assert_found(&log.state.checkpoint, &none);
    assert_eq!(log.state.last, Offset(3));
}

async fn a_position_is_stored_with_its_feed(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    assert_eq!(store.feed(&log.name).await.unwrap(), None);
    for (feed, len) in [(None, 1), (Some(7), 0), (Some(u64::MAX), 2), (None, 0), (Some(7), 1)] {
        let feed = feed.map(FeedId);
        for position in [true, false] {
            let mut append = log.next(len, clock::wall());
            append.checkpoint.feed = feed;
            append.checkpoint.position = append.checkpoint.position.filter(|_| position);
            log.put(&append).await.unwrap();
            assert_eq!(store.feed(&log.name).await.unwrap(), feed, "{len} entries");
            let state = store.claim(&log.name, Some(log.state.fence)).await.unwrap();
            assert_found(&state.checkpoint, &append.checkpoint);
            log = LogFixture { state, ..log };
        }
    }
    store.close().await;
    let store = fixture.open(KEEP_ALL);
    assert_eq!(store.feed(&log.name).await.unwrap(), Some(FeedId(7)));
    assert_eq!(LogFixture::open(&store, "queues").await.state.checkpoint.unwrap().feed, Some(FeedId(7)));
}

async fn an_opaque_position_is_stored_with_its_feed(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    let longest = "é".repeat(Position::LEN_MAX / 2);
    let texts = ["77", "=77", "2026-05-04 13:31:49Z", &longest].map(|text| Position::opaque(text).unwrap());
    let number = Position::Numbered(Sequence(77));
    let mut stored = None;
    for (len, position) in texts.into_iter().chain([number, Position::opaque("77").unwrap()]).enumerate() {
        let mut append = log.next(len, clock::wall());
        append.checkpoint.position = Some(position);
        append.checkpoint.feed = Some(FeedId(7));
        log.put(&append).await.unwrap();
        assert_eq!(store.feed(&log.name).await.unwrap(), Some(FeedId(7)));
        let state = store.claim(&log.name, Some(log.state.fence)).await.unwrap();
        assert_found(&state.checkpoint, &append.checkpoint);
        log = LogFixture { state, ..log };
        stored = Some(append.checkpoint);
    }
    store.close().await;
    let log = LogFixture::open(&fixture.open(KEEP_ALL), "queues").await;
    assert_found(&log.state.checkpoint, &stored.unwrap());
}

async fn all_entries_survive_a_close(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    log.append(7).await.unwrap();
    store.close().await;
    let store = fixture.open(KEEP_ALL);
    let mut again = LogFixture::open(&store, "queues").await;
    assert_eq!(again.state.lineage, log.state.lineage);
    assert_eq!((again.state.first, again.state.last), (Offset(1), Offset(7)));
    assert_found(&again.state.checkpoint, &checkpoint(7));
    assert!(!again.state.damaged);
    again.append(3).await.unwrap();
    assert_eq!(again.entries().await, (1..=10).collect::<Vec<_>>());
    store.close().await;
}

async fn streams_do_not_mix(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let (mut queues, mut agents) = (LogFixture::open(&store, "queues").await, LogFixture::open(&store, "agents").await);
    queues.append(2).await.unwrap();
    agents.append(3).await.unwrap();
    queues.append(1).await.unwrap();
    assert_eq!((queues.entries().await.len(), agents.entries().await.len()), (3, 3));
    assert_ne!(queues.state.lineage, agents.state.lineage);
}

async fn a_read_is_bounded_and_starts_anywhere(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    for _ in 0..30 {
        log.append(10).await.unwrap();
    }
    for after in [0, 1, 9, 10, 11, 150, 299] {
        let read = log.read(Offset(after), 1).await;
        assert!(read[0].first() <= Offset(after + 1) && read[0].last() > Offset(after), "after {after}");
        let bytes: usize = read.iter().map(|batch| batch.bytes().len()).sum();
        assert!(bytes < 100_000, "{bytes} bytes after {after}");
    }
    assert!(log.read(Offset(300), usize::MAX).await.is_empty());
    let (mut after, mut seen) = (Offset::START, 0);
    while after < log.state.last {
        for batch in log.read(after, 20_000).await {
            assert!(batch.first() <= after.next());
            seen += batch.last().0 - after.0;
            after = batch.last();
        }
    }
    assert_eq!(seen, 300);
}

async fn an_offset_is_found_by_its_time_exactly(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let log = LogFixture::open(&store, "queues").await;
    assert_eq!(store.offset_before(&log.name, log.state.last, Timestamp(5)).await.unwrap(), Offset::START);
    let source = Source::new(&"acme".parse().unwrap(), &log.name);
    let mut last = Offset::START;
    // Entry n was received at 10 n, in batches of 1 to 7.
    for len in (0..15).map(|n| n % 7 + 1) {
        let mut builder = BatchBuilder::new(&source, log.state.lineage.current(), last);
        for _ in 0..len {
            let received = Timestamp(i64::try_from(builder.next_mark().offset.0 * 10).unwrap());
            builder.push(&Event::internal("test.v1", &(), received));
        }
        let batch = Arc::new(builder.finish().unwrap());
        last = batch.last();
        store.append(Append { batches: vec![batch], ..log.next(0, Timestamp(0)) }).await.unwrap();
    }
    for (moment, expected) in [(0, 0), (10, 0), (i64::MAX, last.0)] {
        assert_eq!(
            store.offset_before(&log.name, last, Timestamp(moment)).await.unwrap(),
            Offset(expected),
            "{moment}"
        );
    }
    for offset in 1..=last.0 {
        let moment = Timestamp(i64::try_from(offset * 10).unwrap() + 1);
        assert_eq!(store.offset_before(&log.name, last, moment).await.unwrap(), Offset(offset));
    }
}

/// Stores 100 entries in batches of 10, the first half two days old, and checks bounds of what retention keeps.
async fn each_bound_of_the_retention_trims_and_the_newest_stays(fixture: StoreFixture) {
    let day = Duration::from_secs(86_400);
    for (index, (retention, least, most)) in [
        (Retention { events: 25, ..KEEP_ALL }, 25, 34),
        (Retention { bytes: 40_000, ..KEEP_ALL }, 30, 60),
        (Retention { age: day, ..KEEP_ALL }, 50, 50),
        (Retention { events: 0, ..KEEP_ALL }, 1, 10),
    ]
    .into_iter()
    .enumerate()
    {
        let store = fixture.open(retention);
        let mut log = LogFixture::open(&store, &format!("s{index}")).await;
        for batch in 0..10 {
            let age = if batch < 5 { day * 2 } else { Duration::ZERO };
            log.append_received(10, clock::wall().before(age)).await.unwrap();
        }
        fixture.wait_until_trimmed(&store, &log.name, |first| (least..=most).contains(&(101 - first.0))).await;
        let first = store.first(&log.name);
        assert_eq!(log.entries().await, (first.0..=100).collect::<Vec<_>>(), "{retention:?}");
        store.close().await;
        let store = fixture.open(retention);
        let log = LogFixture::open(&store, &format!("s{index}")).await;
        assert_eq!((log.state.first, log.state.last), (first, Offset(100)));
        store.close().await;
    }
}

async fn a_closed_store_rejects_calls_with_a_reason(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let mut log = LogFixture::open(&store, "queues").await;
    log.append(1).await.unwrap();
    assert_eq!(store.health(), Ok(()));
    let standing = log.state.lineage.validity(log.mark(1), Offset(1));
    assert_eq!(standing, CursorValidity::Valid(Offset(1)));
    store.close().await;
    assert!(log.append(1).await.is_err());
    assert!(store.health().is_err());
}
