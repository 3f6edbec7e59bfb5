//! Redis loses all data while relays run: subscribers get a gap at their position and continue in the new log.

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

/// Waits until all readers have `count` entries.
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
        let relay_url = Arc::new(RelayUrl::default());
        relay_url.put(Some(relay.consumers.clone()));
        tasks.spawn(follow_lines(Arc::clone(&relay_url), Arc::clone(&seen[0])));
        tasks.spawn(follow_events(Arc::clone(&relay_url), Arc::clone(&seen[1])));
        tasks.spawn(follow_messages(relay_url, Arc::clone(&seen[2])));
    }
    site.platform.emit(5);
    all_have(&readers, 5).await;
    let last = readers[0].last_id().unwrap();

    server.connection().run::<()>(&cmd("FLUSHALL")).await.unwrap();
    // The owner detects it with its next renewal or append. If the other replica claims the lease first, the gap covers
    // the events until its session.
    eventually("the new log grows", WAIT_MAX, async || {
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
    assert!(log.iter().all(|entry| epoch(&entry.id) == epoch(&log[0].id)), "no entry of the old log is left");
    let marked = |entry: &LogEntry| entry.kind == "trunkline.gap.v1" && entry.json.contains("\"store\"");
    assert!(log.iter().any(marked), "the new log has a gap `store`");
    let text = relays.iter().map(|relay| relay.child.stderr()).collect::<String>();
    assert!(!text.contains("another replica has the stream"), "{text}");
    assert!(text.contains("gone from the store") || text.contains("head of the log is gone"), "{text}");

    all_have(&readers, 5 + 1 + log.len()).await;
    for seen in &readers {
        let all = seen.all();
        assert_gap_reported(&all[5], &last, &log[0]);
        assert!(all[6..] == log[..], "all of the new log follows");
        assert_eq!(seen.connections(), 1, "no subscriber was disconnected");
    }
    for relay in &relays {
        let url = format!("{}/v1/streams/{STREAM}/events?after={last}", relay.consumers);
        let page = client().get(url).header("accept", "application/cloudevents-batch+json").send().await.unwrap();
        assert_eq!(page.status(), 410, "a page cannot contain the gap");
    }
}

fn epoch(id: &str) -> &str {
    id.split_once('-').unwrap().0
}

/// Checks the gap of a subscriber: it is not an entry of the log, and directly precedes the first stored entry.
fn assert_gap_reported(gap: &LogEntry, last: &str, first: &LogEntry) {
    let text: Value = serde_json::from_str(&gap.json).unwrap();
    assert_eq!(text["type"], "trunkline.gap.v1", "{text}");
    assert_eq!(text["id"], format!("{}/trimmed", first.id));
    assert!(text.get("sequence").is_none(), "{text}");
    let expected = json!({"reason": "trimmed", "after": last, "before": first.id, "lost": null, "silence_ms": null});
    assert_eq!(text["data"], expected);
}
