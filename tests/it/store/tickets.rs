//! Tickets: the same cases run on each store.

use std::time::Duration;

use futures_util::future::join_all;
use trunkline::model::Secret;

use super::fixture::{self, KEEP_ALL, StoreFixture};
use crate::harness::eventually;

on_each![a_ticket_is_taken_once_within_its_time];

const MINUTE: Duration = Duration::from_secs(60);

async fn a_ticket_is_taken_once_within_its_time(fixture: StoreFixture) {
    let store = fixture.open(KEEP_ALL);
    let [used, other, short] = ["used", "other", "short"].map(Secret::new);
    assert_eq!(store.take_ticket(&used).await.unwrap(), None);
    store.put_ticket(&used, "{\"sub\":\"é\"}".to_owned(), MINUTE).await.unwrap();
    store.put_ticket(&short, "short".to_owned(), Duration::from_millis(1)).await.unwrap();
    assert_eq!(store.take_ticket(&other).await.unwrap(), None);
    let taken = join_all((0..8).map(|_| store.take_ticket(&used))).await;
    let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(taken, ["{\"sub\":\"é\"}"]);
    let repeated = async || {
        store.put_ticket(&other, "other".to_owned(), Duration::from_millis(1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        store.take_ticket(&other).await.unwrap().is_none()
    };
    eventually("an expired ticket is not taken", repeated).await;
    assert_eq!(store.take_ticket(&short).await.unwrap(), None);
}
