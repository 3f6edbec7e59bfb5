//! Everything in Redis is gone while relays run: whoever subscribed is told so where it is, and goes on in the new log.

use std::sync::Arc;

use redis::cmd;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{holder, site};
use crate::{
    harness::RedisServer,
    process::{
        child::{WAIT_MAX, eventually},
        kill::{ReceivedEntries, RelayUrl, follow_lines, follow_messages},
        log::{LogEntry, pages},
        redis::follow_events,
        relay::{RelayProcess, client},
        site::STREAM,
    },
};

/// Everyone has had so many entries.
async fn all_have(readers: &[Arc<ReceivedEntries>], count: usize) {
    for seen in readers {
        eventually("a subscriber has all", WAIT_MAX, async || (seen.len() >= count).then_some(())).await;
        assert_eq!(seen.len(), count, "{:?}", seen.last_id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_of_a_wiped_log_get_a_gap_and_continue_in_the_new_one() {
    let server = RedisServer::volatile();
    let site = site(&server, &[]).await;
    let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let (readers, mut tasks) = ([(); 6].map(|()| Arc::new(ReceivedEntries::default())), JoinSet::new());
    for (relay, seen) in relays.iter().zip(readers.chunks(3)) {
        let board = Arc::new(RelayUrl::default());
        board.put(Some(relay.consumers.clone()));
        tasks.spawn(follow_lines(Arc::clone(&board), Arc::clone(&seen[0])));
        tasks.spawn(follow_events(Arc::clone(&board), Arc::clone(&seen[1])));
        tasks.spawn(follow_messages(board, Arc::clone(&seen[2])));
    }
    site.platform.emit(5);
    all_have(&readers, 5).await;
    let last = readers[0].last_id().unwrap();

    server.connection().run::<()>(&cmd("FLUSHALL")).await.unwrap();
    // The owner learns of it with its next renewal or append. Where the other replica claims the lease first, what was sent until its session lies in the gap.
    eventually("the new log goes on", WAIT_MAX, async || {
        let newest = relays[0].newest().await?;
        let sent = site.platform.ledger().last_sequence();
        match newest.number {
            Some(number) if epoch(&newest.id) != epoch(&last) => (number == sent).then_some(()),
            _ => {
                site.platform.emit(1);
                None
            }
        }
    })
    .await;
    let index = holder(&relays).await;
    let log = pages(&relays[index].consumers).await;
    assert!(log.iter().all(|entry| epoch(&entry.id) == epoch(&log[0].id)), "nothing of the old log is left");
    let marked = |entry: &LogEntry| entry.kind == "trunkline.gap.v1" && entry.json.contains("\"store\"");
    assert!(log.iter().any(marked), "the new log says that the store lost what was before");
    let told = relays.iter().map(|relay| relay.child.stderr()).collect::<String>();
    assert!(!told.contains("another replica has the stream"), "{told}");
    assert!(told.contains("gone from the store") || told.contains("head of the log is gone"), "{told}");

    all_have(&readers, 5 + 1 + log.len()).await;
    for seen in &readers {
        let all = seen.all();
        assert_gap_reported(&all[5], &last, &log[0]);
        assert!(all[6..] == log[..], "and then comes all of the new log");
        assert_eq!(seen.connections(), 1, "nobody was sent away");
    }
    for relay in &relays {
        let url = format!("{}/v1/streams/{STREAM}/events?after={last}", relay.consumers);
        let page = client().get(url).header("accept", "application/cloudevents-batch+json").send().await.unwrap();
        assert_eq!(page.status(), 410, "a page has no place for a gap");
    }
}

fn epoch(id: &str) -> &str {
    id.split_once('-').unwrap().0
}

/// The gap is for this subscriber alone: no entry of the log, right before the first one that is held.
fn assert_gap_reported(gap: &LogEntry, last: &str, first: &LogEntry) {
    let told: Value = serde_json::from_str(&gap.json).unwrap();
    assert_eq!(told["type"], "trunkline.gap.v1", "{told}");
    assert_eq!(told["id"], format!("{}/trimmed", first.id));
    assert!(told.get("sequence").is_none(), "{told}");
    let expected = json!({"reason": "trimmed", "after": last, "before": first.id, "lost": null, "silence_ms": null});
    assert_eq!(told["data"], expected);
}
