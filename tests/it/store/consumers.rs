//! The records of durable consumers: the same cases run on each store.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use trunkline::{
    model::{ConsumerName, Epoch, Fence, Mark, Offset, StreamName, Timestamp},
    protocol::consumer::ConsumerRecord,
    store::{AppendError, consumers::CONSUMERS_MAX},
};

use super::fixture::{self, KEEP_ALL, StoreFixture};

on_each![
    a_consumer_changes_only_from_its_expected_record,
    each_claim_of_a_consumer_is_newer_than_the_former,
    a_deleted_consumer_leaves_no_cursor,
    the_number_of_consumers_is_bounded,
];

const NOW: Timestamp = Timestamp(1_777_901_509_570);

fn consumer(name: &str) -> ConsumerName {
    name.parse().unwrap()
}

fn mark(offset: u64) -> Mark {
    Mark { epoch: Epoch(7), offset: Offset(offset) }
}

async fn a_consumer_changes_only_from_its_expected_record(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let billing = consumer("billing");
    assert_eq!(store.consumer(&billing).await.unwrap(), None);
    let created = ConsumerRecord::created(NOW);
    let claimed = ConsumerRecord { claim: Fence { number: 1, nonce: u128::MAX }, ..created };
    let used = claimed.used(NOW.after(Duration::from_secs(60)));
    for (from, to, changes) in [
        (Some(created), Some(claimed), false),
        (None, Some(created), true),
        // The answer was lost, so the call is repeated.
        (None, Some(created), true),
        (None, Some(claimed), false),
        (Some(created), Some(claimed), true),
        (Some(created), Some(used), false),
        (Some(created), None, false),
        (Some(claimed), Some(used), true),
        (Some(used), None, true),
        (Some(used), None, true),
        (None, Some(used), true),
    ] {
        assert_eq!(store.change_consumer(&billing, from, to).await.unwrap(), changes, "{from:?} to {to:?}");
    }
    store.change_consumer(&consumer("wallboard"), None, Some(created)).await.unwrap();
    store.close().await;
    let store = fixture.open(KEEP_ALL);
    assert_eq!(store.consumer(&billing).await.unwrap(), Some(used));
    let all = BTreeMap::from([(billing, used), (consumer("wallboard"), created)]);
    assert_eq!(store.consumers().await.unwrap(), all);
}

async fn each_claim_of_a_consumer_is_newer_than_the_former(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let billing = consumer("billing");
    let claims = join_all((0..10).map(|_| store.claim_consumer(&billing, NOW))).await;
    let mut claims: Vec<_> = claims.into_iter().map(|claimed| claimed.unwrap().claim).collect();
    claims.sort_by_key(|claim| claim.number);
    assert_eq!(claims.iter().map(|claim| claim.number).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    let newest = ConsumerRecord { claim: claims[9], used_at: NOW };
    assert_eq!(store.consumer(&billing).await.unwrap(), Some(newest));
}

async fn a_deleted_consumer_leaves_no_cursor(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let (billing, wallboard) = (consumer("billing"), consumer("wallboard"));
    let streams: [StreamName; 2] = ["queues", "agents"].map(|name| name.parse().unwrap());
    let former = store.claim_consumer(&billing, NOW).await.unwrap();
    for (stream, name, offset) in [(0, &billing, 4), (1, &billing, 5), (1, &wallboard, 6)] {
        assert!(store.move_cursor(name, &streams[stream], None, mark(offset)).await.unwrap());
    }
    let both = BTreeMap::from([(billing.clone(), mark(5)), (wallboard.clone(), mark(6))]);
    assert_eq!(store.cursors(&streams[1]).await.unwrap(), both);
    let present = store.claim_consumer(&billing, NOW).await.unwrap();
    assert!(!store.delete_consumer(&billing, Some(former), streams.iter()).await.unwrap(), "it was used since");
    assert_eq!(store.cursors(&streams[1]).await.unwrap(), both);
    assert!(store.delete_consumer(&billing, Some(present), streams.iter()).await.unwrap());
    assert_eq!(store.consumer(&billing).await.unwrap(), None);
    assert!(store.cursors(&streams[0]).await.unwrap().is_empty());
    assert_eq!(store.cursors(&streams[1]).await.unwrap(), BTreeMap::from([(wallboard, mark(6))]));
    assert!(!store.move_cursor(&billing, &streams[0], Some(mark(4)), mark(9)).await.unwrap(), "its reader is late");
    assert!(store.claim_consumer(&billing, NOW).await.unwrap().claim != former.claim);
}

async fn the_number_of_consumers_is_bounded(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let created = Some(ConsumerRecord::created(NOW));
    let numbers: Vec<u64> = (0..CONSUMERS_MAX).collect();
    for some in numbers.chunks(500) {
        let names: Vec<_> = some.iter().map(|number| consumer(&number.to_string())).collect();
        let created = join_all(names.iter().map(|name| store.change_consumer(name, None, created))).await;
        assert!(created.into_iter().all(Result::unwrap));
    }
    let (first, next) = (consumer("0"), consumer("next"));
    let refused = store.claim_consumer(&next, NOW).await.unwrap_err();
    assert!(matches!(&refused, AppendError::Unavailable(cause) if cause.to_string().contains("10000")), "{refused:?}");
    store.claim_consumer(&first, NOW).await.unwrap();
    let record = store.consumer(&first).await.unwrap();
    assert!(store.change_consumer(&first, record, None).await.unwrap());
    store.claim_consumer(&next, NOW).await.unwrap();
    assert_eq!(store.consumers().await.unwrap().len() as u64, CONSUMERS_MAX);
}
