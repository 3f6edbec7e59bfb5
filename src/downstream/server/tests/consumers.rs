//! Durable consumers over real sockets: acknowledgement, takeover, seek, and cursors that retention removed.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::harness::{RelayFixture, RelaySetup, TestHttpClient, TestWsClient, sequences};
use crate::{
    clock,
    model::{ConsumerName, StreamName},
    protocol::consumer::ConsumerRecord,
};

const QUEUES: &str = "/v1/streams/queues/events?consumer=billing";

impl RelayFixture {
    /// The status and the body of a request with a JSON body.
    async fn request(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let headers = [("Content-Length", &*body.len().to_string())];
        let mut answer = TestHttpClient::send_with_body(&self.authority, method, path, &headers, &body).await;
        let status = answer.status();
        (status, if status == 204 { Value::Null } else { answer.json().await })
    }

    async fn put_cursor(&self, offset: u64) -> u16 {
        let body = json!({ "stream": "queues", "cursor": self.mark("queues", offset).to_string() });
        self.request("PUT", "/v1/consumers/billing/cursor", &body).await.0
    }

    async fn seek(&self, to: &str) -> (u16, Value) {
        self.request("POST", "/v1/consumers/billing/seek", &json!({ "stream": "queues", "to": to })).await
    }

    async fn stored(&self) -> Option<u64> {
        let (consumer, stream) = ("billing".parse().unwrap(), "queues".parse::<StreamName>().unwrap());
        self.store.cursor(&consumer, &stream).await.unwrap().map(|mark| mark.offset.0)
    }

    /// Waits until the stored cursor is at this offset.
    async fn acknowledged(&self, offset: u64) {
        for _ in 0..1_000 {
            if self.stored().await == Some(offset) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the cursor is at {:?}, not at {offset}", self.stored().await);
    }
}

async fn acknowledge(client: &mut TestWsClient, cursor: &str) {
    let message = json!({ "type": "trunkline.session.ack", "data": { "cursor": cursor } });
    client.0.send(Message::text(message.to_string())).await.unwrap();
}

#[tokio::test]
async fn a_consumer_continues_after_what_it_acknowledged_by_message() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=3).await;
    let mut client = relay.subscribe(QUEUES).await;
    relay.say("queues", 4..=9).await;
    let events = client.events(6).await;
    assert_eq!(sequences(&events), [4, 5, 6, 7, 8, 9], "it is created with the next new entry as its first");
    acknowledge(&mut client, events[1]["id"].as_str().unwrap()).await;
    acknowledge(&mut client, events[3]["id"].as_str().unwrap()).await;
    acknowledge(&mut client, events[0]["id"].as_str().unwrap()).await;
    drop(client);
    relay.acknowledged(7).await;
    let again = relay.subscribe(&format!("{QUEUES}&from=first")).await.events(2).await;
    assert_eq!(sequences(&again), [8, 9], "only what was not acknowledged is repeated");
    relay.drain().await;
}

#[tokio::test]
async fn an_acknowledgement_before_a_close_is_stored() {
    let relay = RelayFixture::start().await;
    let mut client = relay.subscribe(QUEUES).await;
    relay.say("queues", 1..=5).await;
    let events = client.events(5).await;
    acknowledge(&mut client, events[4]["id"].as_str().unwrap()).await;
    client.0.close(None).await.unwrap();
    relay.acknowledged(5).await;
    relay.drain().await;
}

#[tokio::test]
async fn an_acknowledgement_that_the_reader_cannot_make_closes_it() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=2).await;
    let beyond = relay.mark("queues", 3).to_string();
    for cursor in [beyond.as_str(), "agents:4f2a-1", "17"] {
        let mut client = relay.subscribe(QUEUES).await;
        acknowledge(&mut client, cursor).await;
        assert_eq!(client.closed().await, (1008, "cursor_invalid".to_owned()), "{cursor}");
    }
    assert_eq!(relay.stored().await, Some(2));
    relay.drain().await;
}

#[tokio::test]
async fn a_cursor_moves_forward_by_put_and_never_back() {
    let relay = RelayFixture::start().await;
    let mut events = relay.get(&format!("{QUEUES}&from=first"), &[("Accept", "text/event-stream")]).await;
    relay.say("queues", 1..=9).await;
    events.sse_events(9).await;
    for (offset, status, stored) in [(4, 204, 4), (4, 204, 4), (3, 409, 4), (10, 400, 4), (9, 204, 9)] {
        assert_eq!(relay.put_cursor(offset).await, status, "{offset}");
        assert_eq!(relay.stored().await, Some(stored));
    }
    for (path, body, status) in [
        ("/v1/consumers/billing/cursor", json!({ "stream": "queues", "cursor": "4f2a-1" }), 410),
        ("/v1/consumers/billing/cursor", json!({ "stream": "queues", "cursor": "17" }), 400),
        ("/v1/consumers/billing/cursor", json!({ "stream": "queues" }), 400),
        ("/v1/consumers/billing/cursor", json!({ "stream": "unknown", "cursor": "4f2a-1" }), 404),
        ("/v1/consumers/other/cursor", json!({ "stream": "queues", "cursor": "4f2a-1" }), 404),
        ("/v1/consumers/Other/cursor", json!({ "stream": "queues", "cursor": "4f2a-1" }), 404),
    ] {
        assert_eq!(relay.request("PUT", path, &body).await.0, status, "{path} {body}");
    }
    // An event source repeats the id that it received; the consumer starts at what it acknowledged.
    let seen = relay.mark("queues", 2).to_string();
    let headers = [("Accept", "text/event-stream"), ("Last-Event-ID", &*seen)];
    let mut again = relay.get(QUEUES, &headers).await;
    relay.say("queues", 10..=10).await;
    assert_eq!(sequences(&again.sse_events(1).await), [10]);
    relay.drain().await;
}

#[tokio::test]
async fn the_next_page_acknowledges_the_former() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=9).await;
    let first = format!("{QUEUES}&from=first&limit=4");
    let mut page = relay.get(&first, &[]).await;
    assert_eq!(sequences(page.json().await.as_array().unwrap()), [1, 2, 3, 4]);
    assert_eq!(relay.stored().await, Some(0));
    let mut repeated = relay.get(&first, &[]).await;
    assert_eq!(sequences(repeated.json().await.as_array().unwrap()), [1, 2, 3, 4], "it was not acknowledged");
    let next = page.next_page();
    let mut page = relay.get(&next, &[]).await;
    assert_eq!(sequences(page.json().await.as_array().unwrap()), [5, 6, 7, 8]);
    assert_eq!(relay.stored().await, Some(4));
    relay.get(&page.next_page(), &[]).await;
    assert_eq!(relay.stored().await, Some(8));
    let mut behind = relay.get(&next, &[]).await;
    assert_eq!((behind.status(), behind.problem().await.0), (409, "cursor-behind".to_owned()));
    let mut conflict = relay.get(&format!("{QUEUES}&after=4f2a-1"), &[("Accept", "text/event-stream")]).await;
    assert_eq!(conflict.problem().await.0, "conflicting-parameters", "an endless reader acknowledges by itself");
    relay.drain().await;
}

#[tokio::test]
async fn a_newer_reader_takes_over_the_name() {
    let relay = RelayFixture::start().await;
    let mut first = relay.subscribe(QUEUES).await;
    relay.say("queues", 1..=2).await;
    let events = first.events(2).await;
    let mut second = relay.get(QUEUES, &[("Accept", "text/event-stream")]).await;
    assert_eq!(first.closed().await, (1008, "superseded".to_owned()));
    assert_eq!(sequences(&second.sse_events(2).await), [1, 2], "nothing was acknowledged");
    let mut third = relay.get(QUEUES, &[("Accept", "application/x-ndjson")]).await;
    assert_eq!(second.sse().await, None, "the older response ends");
    third.lines(2).await;
    let mut fourth = relay.subscribe(QUEUES).await;
    assert_eq!(third.line().await, None);
    assert_eq!(sequences(&fourth.events(2).await), [1, 2]);
    acknowledge(&mut fourth, events[1]["id"].as_str().unwrap()).await;
    relay.acknowledged(2).await;
    let other = relay.subscribe("/v1/streams/queues/events?consumer=other").await;
    relay.say("queues", 3..=3).await;
    assert_eq!(sequences(&fourth.events(1).await), [3], "another name is another reader");
    drop(other);
    relay.drain().await;
}

#[tokio::test]
async fn a_seek_moves_the_cursor_and_its_reader_continues_there() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=9).await;
    assert_eq!(relay.seek("first").await.0, 404);
    let mut reader = relay.subscribe(QUEUES).await;
    relay.say("queues", 10..=10).await;
    reader.events(1).await;
    let fifth = relay.mark("queues", 5).to_string();
    let (status, answer) = relay.seek(&fifth).await;
    assert_eq!((status, &answer["cursor"]), (200, &json!(fifth)));
    assert_eq!(reader.closed().await, (1008, "superseded".to_owned()));
    assert_eq!(sequences(&relay.subscribe(QUEUES).await.events(5).await), [6, 7, 8, 9, 10]);
    for (to, stored) in [("first", 0), ("last", 10), ("2026-05-04T00:00:00Z", 0), ("1s", 10)] {
        assert_eq!(relay.seek(to).await.0, 200, "{to}");
        assert_eq!(relay.stored().await, Some(stored), "{to}");
    }
    for (to, status) in [("middle", 400), (&*relay.mark("queues", 11).to_string(), 400), ("4f2a-1", 410)] {
        assert_eq!(relay.seek(to).await.0, status, "{to}");
    }
    relay.drain().await;
}

#[tokio::test]
async fn consumers_are_listed_shown_and_deleted() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=4).await;
    assert_eq!(relay.get("/v1/consumers", &[]).await.json().await, json!({ "consumers": [] }));
    let both = "/v1/events?stream=queues&stream=agents&consumer=billing&from=first";
    let mut reader = relay.subscribe(both).await;
    let events = reader.events(4).await;
    acknowledge(&mut reader, &format!("queues:{}", events[2]["id"].as_str().unwrap())).await;
    relay.acknowledged(3).await;
    let shown = relay.get("/v1/consumers/billing", &[]).await.json().await;
    let queues = json!({ "cursor": relay.mark("queues", 3).to_string(), "lag": 1 });
    let agents = json!({ "cursor": relay.mark("agents", 0).to_string(), "lag": 0 });
    assert_eq!(shown["streams"], json!({ "agents": agents, "queues": queues }), "{shown}");
    assert_eq!((&shown["name"], &shown["expired"]), (&json!("billing"), &json!(false)));
    assert_eq!(relay.get("/v1/consumers", &[]).await.json().await, json!({ "consumers": [shown] }));
    let mut deleted = TestHttpClient::send(&relay.authority, "DELETE", "/v1/consumers/billing", &[]).await;
    assert_eq!(deleted.status(), 204);
    assert_eq!(reader.closed().await, (1008, "superseded".to_owned()));
    assert_eq!(relay.stored().await, None);
    deleted = TestHttpClient::send(&relay.authority, "DELETE", "/v1/consumers/billing", &[]).await;
    assert_eq!((deleted.status(), deleted.problem().await.0), (404, "unknown-consumer".to_owned()));
    assert_eq!(sequences(&relay.subscribe(both).await.events(1).await), [1], "it is created again");
    relay.drain().await;
}

#[tokio::test]
async fn a_cursor_that_retention_removed_is_a_gap_or_a_rejected_page() {
    let relay = RelayFixture::with(RelaySetup { retention: 5, tail_bytes: 1, ..RelaySetup::default() }).await;
    drop(relay.get(&format!("{QUEUES}&from=first"), &[]).await);
    assert_eq!(relay.stored().await, Some(0));
    relay.say("queues", 1..=70).await;
    let first = loop {
        let first = relay.log("queues").end().first.0;
        if first > 50 {
            break first;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let mut page = relay.get(QUEUES, &[]).await;
    assert_eq!((page.status(), page.problem().await.0), (410, "cursor-trimmed".to_owned()));
    let mut reader = relay.subscribe(QUEUES).await;
    let gap = reader.event().await;
    assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("trunkline.gap.v1"), &json!("trimmed")), "{gap}");
    assert_eq!(gap["data"]["after"], relay.mark("queues", 0).to_string());
    assert_eq!(sequences(&[reader.event().await]), [first]);
    relay.drain().await;
}

#[tokio::test]
async fn metrics_show_what_a_consumer_received_and_its_lag() {
    let relay = RelayFixture::start().await;
    let path = "/v1/streams/queues/events?consumer=metered&from=first";
    let mut reader = relay.subscribe(path).await;
    relay.say("queues", 1..=7).await;
    reader.events(7).await;
    let series = r#"{consumer="metered",stream="queues"}"#;
    let expected =
        [format!("trunkline_consumer_delivered_total{series} 7"), format!("trunkline_consumer_lag_events{series} 7")];
    let lag = format!("trunkline_consumer_lag_seconds{series} ");
    for _ in 0..2_000 {
        let page = crate::telemetry::metrics::page();
        let lag: Option<f64> =
            page.lines().find_map(|line| line.strip_prefix(&lag)).map(|value| value.parse().unwrap());
        if expected.iter().all(|line| page.lines().any(|found| found == line)) && lag.is_some_and(|lag| lag > 0.0) {
            drop(reader);
            TestHttpClient::send(&relay.authority, "DELETE", "/v1/consumers/metered", &[]).await;
            return metrics_are_gone(relay, series).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", crate::telemetry::metrics::page());
}

/// Waits until a deleted consumer has no series.
async fn metrics_are_gone(relay: RelayFixture, series: &str) {
    for _ in 0..2_000 {
        if !crate::telemetry::metrics::page().contains(series) {
            return relay.drain().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", crate::telemetry::metrics::page());
}

#[tokio::test]
async fn an_unused_consumer_is_deleted_and_a_used_one_stays() {
    let relay = RelayFixture::start().await;
    let (old, read): (ConsumerName, ConsumerName) = ("old".parse().unwrap(), "read".parse().unwrap());
    let long_ago = ConsumerRecord::created(clock::wall().before(Duration::from_secs(30 * 86_400)));
    let queues: StreamName = "queues".parse().unwrap();
    for consumer in [&old, &read] {
        assert!(relay.store.change_consumer(consumer, None, Some(long_ago)).await.unwrap());
        assert!(relay.store.move_cursor(consumer, &queues, None, relay.mark("queues", 0)).await.unwrap());
    }
    let reader = relay.subscribe("/v1/streams/queues/events?consumer=read").await;
    for _ in 0..2_000 {
        if relay.store.consumer(&old).await.unwrap().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(relay.store.consumer(&old).await.unwrap(), None);
    let cursors = relay.store.cursors(&queues).await.unwrap();
    assert_eq!(cursors.keys().collect::<Vec<_>>(), [&read]);
    drop(reader);
    relay.drain().await;
}
