//! The records of sinks: the same cases run on each store.

use futures_util::future::join_all;
use trunkline::{
    model::{ConsumerName, Epoch, Fence, Mark, Offset, ReplicaId, StreamName, Timestamp},
    protocol::lease::LeaseRecord,
    store::{
        AppendError, Store,
        sinks::{DEAD_LETTERS_MAX, DEAD_LETTERS_PAGE_MAX, DeadLetter, SinkAdvance},
    },
};

use super::fixture::{self, KEEP_ALL, StoreFixture};

on_each![
    a_sink_lease_changes_only_from_its_expected_fence,
    only_one_of_many_concurrent_sink_claims_succeeds,
    a_sink_cursor_moves_only_under_the_present_fence,
    dead_letters_are_stored_in_the_step_that_passes_them,
    dead_letters_are_listed_in_pages_and_removed_by_number,
    a_sink_with_too_many_dead_letters_does_not_advance,
];

fn sink(name: &str) -> ConsumerName {
    name.parse().unwrap()
}

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn mark(offset: u64) -> Mark {
    Mark { epoch: Epoch(7), offset: Offset(offset) }
}

fn owned(fence: Fence) -> LeaseRecord {
    LeaseRecord { holder: Some(ReplicaId(u64::MAX)), fence }
}

fn letter(offset: u64) -> DeadLetter {
    DeadLetter {
        stream: stream("queues"),
        mark: mark(offset),
        failed_at: Timestamp(1_777_901_509_570),
        cause: format!("status 500 for \"entry\" {offset}\n\u{0}é"),
        envelope: format!("{{\"id\":\"{}\"}}", mark(offset)).into(),
    }
}

/// The lease of the sink `webhook`, which has delivered nothing.
async fn claimed(store: &Store) -> Fence {
    let fence = Fence { number: 1, nonce: 11 };
    assert!(store.change_sink_lease(&sink("webhook"), None, owned(fence)).await.unwrap());
    fence
}

fn advance(fence: Fence, from: Option<u64>, to: u64, dead_letters: Vec<DeadLetter>) -> SinkAdvance {
    let (sink, stream) = (sink("webhook"), stream("queues"));
    SinkAdvance { sink, fence, stream, from: from.map(mark), to: mark(to), dead_letters }
}

async fn numbers(store: &Store, after: u64, limit: usize) -> Vec<u64> {
    let found = store.dead_letters(&sink("webhook"), after, limit).await.unwrap();
    found.into_iter().map(|letter| letter.number).collect()
}

async fn a_sink_lease_changes_only_from_its_expected_fence(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let webhook = sink("webhook");
    assert_eq!(store.sink_lease(&webhook).await.unwrap(), None);
    let first = Fence { number: 1, nonce: u128::MAX };
    let second = first.next(5);
    let released = LeaseRecord { holder: None, fence: second.next(6) };
    let forged = Fence { nonce: 5, ..first };
    let (number_alone, later) = (Fence { nonce: 9, ..second }, second.next(9));
    for (expected, record, changes) in [
        (Some(first), owned(second), false),
        (None, owned(first), true),
        // The answer was lost, so the call is repeated.
        (None, owned(first), true),
        (None, owned(second), false),
        (Some(forged), owned(second), false),
        (Some(first), owned(second), true),
        (Some(first), owned(number_alone), false),
        (Some(second), released, true),
        (Some(second), owned(later), false),
    ] {
        let changed = store.change_sink_lease(&webhook, expected, record).await.unwrap();
        assert_eq!(changed, changes, "{expected:?} to {record:?}");
    }
    assert_eq!(store.sink_lease(&sink("nats")).await.unwrap(), None);
    store.close().await;
    assert_eq!(bed.open(KEEP_ALL).sink_lease(&webhook).await.unwrap(), Some(released));
}

async fn only_one_of_many_concurrent_sink_claims_succeeds(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let webhook = sink("webhook");
    let record = |nonce| owned(Fence { number: 1, nonce });
    let claims = join_all((1..=20).map(|nonce| store.change_sink_lease(&webhook, None, record(nonce)))).await;
    let winners: Vec<u128> = (1..).zip(claims).filter(|(_, won)| *won.as_ref().unwrap()).map(|(one, _)| one).collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(store.sink_lease(&webhook).await.unwrap(), Some(record(winners[0])));
}

async fn a_sink_cursor_moves_only_under_the_present_fence(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let (webhook, queues) = (sink("webhook"), stream("queues"));
    let unclaimed = store.advance_sink(advance(Fence { number: 1, nonce: 11 }, None, 4, Vec::new())).await;
    assert!(matches!(unclaimed, Err(AppendError::Fenced)), "{unclaimed:?}");
    let fence = claimed(&store).await;
    assert_eq!(store.sink_cursor(&webhook, &queues).await.unwrap(), None);
    for (from, to, moves) in
        [(Some(3), 4, false), (None, 4, true), (None, 4, true), (None, 5, false), (Some(4), 9, true)]
    {
        let moved = store.advance_sink(advance(fence, from, to, Vec::new())).await.unwrap();
        assert_eq!(moved, moves, "{from:?} to {to}");
    }
    let successor = fence.next(12);
    assert!(store.change_sink_lease(&webhook, Some(fence), owned(successor)).await.unwrap());
    for stale in [fence, Fence { nonce: 13, ..successor }] {
        let refused = store.advance_sink(advance(stale, Some(9), 10, vec![letter(10)])).await;
        assert!(matches!(refused, Err(AppendError::Fenced)), "{stale} {refused:?}");
    }
    assert!(store.advance_sink(advance(successor, Some(9), 11, Vec::new())).await.unwrap());
    assert_eq!(store.sink_cursor(&webhook, &stream("agents")).await.unwrap(), None);
    assert_eq!(store.sink_cursor(&sink("nats"), &queues).await.unwrap(), None);
    assert_eq!(store.cursor(&webhook, &queues).await.unwrap(), None, "a consumer of that name has its own cursor");
    assert!(numbers(&store, 0, 10).await.is_empty());
    store.close().await;
    let store = bed.open(KEEP_ALL);
    assert_eq!(store.sink_cursor(&webhook, &queues).await.unwrap(), Some(mark(11)));
    assert_eq!(store.sink_lease(&webhook).await.unwrap(), Some(owned(successor)));
}

async fn dead_letters_are_stored_in_the_step_that_passes_them(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let fence = claimed(&store).await;
    let (webhook, queues) = (sink("webhook"), stream("queues"));
    let step = advance(fence, None, 5, vec![letter(3), letter(5)]);
    assert!(!store.advance_sink(SinkAdvance { from: Some(mark(1)), ..step.clone() }).await.unwrap());
    assert!(numbers(&store, 0, 10).await.is_empty(), "a cursor that does not move stores nothing");
    for _ in 0..2 {
        assert!(store.advance_sink(step.clone()).await.unwrap());
        assert_eq!(numbers(&store, 0, 10).await, [1, 2], "a repeated call stores nothing again");
    }
    assert!(store.advance_sink(advance(fence, Some(5), 6, vec![letter(6)])).await.unwrap());
    assert!(store.dead_letters(&sink("nats"), 0, 10).await.unwrap().is_empty());
    store.close().await;
    let store = bed.open(KEEP_ALL);
    let found = store.dead_letters(&webhook, 0, 10).await.unwrap();
    let found: Vec<(u64, DeadLetter)> = found.into_iter().map(|stored| (stored.number, stored.letter)).collect();
    assert_eq!(found, [(1, letter(3)), (2, letter(5)), (3, letter(6))]);
    assert_eq!(store.sink_cursor(&webhook, &queues).await.unwrap(), Some(mark(6)));
}

async fn dead_letters_are_listed_in_pages_and_removed_by_number(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let fence = claimed(&store).await;
    let webhook = sink("webhook");
    assert!(!store.remove_dead_letter(&webhook, 1).await.unwrap());
    assert!(store.advance_sink(advance(fence, None, 250, (1..=250).map(letter).collect())).await.unwrap());
    assert_eq!(numbers(&store, 0, 3).await, [1, 2, 3]);
    assert_eq!(numbers(&store, 0, usize::MAX).await, (1..=DEAD_LETTERS_PAGE_MAX as u64).collect::<Vec<_>>());
    assert_eq!(numbers(&store, 248, 10).await, [249, 250]);
    assert!(numbers(&store, u64::MAX, 10).await.is_empty());
    for number in (1..=120).chain([130]) {
        assert!(store.remove_dead_letter(&webhook, number).await.unwrap(), "{number}");
        assert!(!store.remove_dead_letter(&webhook, number).await.unwrap(), "{number}");
    }
    assert!(!store.remove_dead_letter(&webhook, u64::MAX).await.unwrap());
    assert_eq!(numbers(&store, 0, 2).await, [121, 122]);
    assert_eq!(numbers(&store, 128, 2).await, [129, 131]);
    assert!(store.advance_sink(advance(fence, Some(250), 251, vec![letter(251)])).await.unwrap());
    assert_eq!(numbers(&store, 249, 10).await, [250, 251], "a number is used once");
}

async fn a_sink_with_too_many_dead_letters_does_not_advance(bed: StoreFixture) {
    let store = bed.open(KEEP_ALL);
    let fence = claimed(&store).await;
    let webhook = sink("webhook");
    for step in 0..10 {
        let (from, to) = (step * DEAD_LETTERS_MAX / 10, (step + 1) * DEAD_LETTERS_MAX / 10);
        let letters = (from + 1..=to).map(letter).collect();
        let present = Some(from).filter(|from| *from > 0);
        assert!(store.advance_sink(advance(fence, present, to, letters)).await.unwrap());
    }
    let next = advance(fence, Some(DEAD_LETTERS_MAX), DEAD_LETTERS_MAX + 1, vec![letter(DEAD_LETTERS_MAX + 1)]);
    for (remove, done) in [(None, false), (Some(2), false), (Some(1), true)] {
        if let Some(number) = remove {
            assert!(store.remove_dead_letter(&webhook, number).await.unwrap());
        }
        let outcome = store.advance_sink(next.clone()).await;
        match outcome {
            Ok(moved) => assert!(moved && done, "after removing {remove:?}"),
            Err(AppendError::Unavailable(cause)) => assert!(!done && cause.to_string().contains("webhook"), "{cause}"),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        store.advance_sink(advance(fence, Some(DEAD_LETTERS_MAX + 1), DEAD_LETTERS_MAX + 2, Vec::new())).await.unwrap()
    );
    assert_eq!(numbers(&store, DEAD_LETTERS_MAX, 10).await, [DEAD_LETTERS_MAX + 1]);
}
