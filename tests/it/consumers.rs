//! Consumers: each has its own pace and transport, and gets a report of every loss.

use std::collections::BTreeMap;

use serde_json::Value;
use trunkline::simulator::SocketDialect;

use crate::harness::{
    Consumer, ConsumerTransport, Platform, Relay, RelayPlan, TcpProxy, eventually, summarize_entry, summarize_log,
};

const TRANSPORTS: [ConsumerTransport; 3] =
    [ConsumerTransport::WebSocket, ConsumerTransport::Sse, ConsumerTransport::Ndjson];

fn id(event: &Value) -> &str {
    event["id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_read_one_socket_at_their_own_offsets() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(20);
    let mut first = relay.consumer().await;
    let taken = first.take(20).await;
    let mut tenth = relay.consume(ConsumerTransport::Sse, &format!("after={}", id(&taken[9]))).await;
    let mut last = relay.consume(ConsumerTransport::Ndjson, "from=last").await;
    tenth.expect(11..=20).await;
    platform.emit(5);
    first.expect(21..=25).await;
    tenth.expect(21..=25).await;
    last.expect(21..=25).await;
    assert_eq!(platform.opened(SocketDialect::Sequenced), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_sends_the_same_events_and_resumes_after_a_cursor() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(12);
    let all = relay.consumer().await.take(12).await;
    for transport in TRANSPORTS {
        let mut consumer = relay.consume(transport, "from=first").await;
        assert_eq!(consumer.take(5).await, all[..5], "{transport:?}");
        drop(consumer);
        let mut consumer = relay.consume(transport, &format!("after={}", id(&all[4]))).await;
        assert_eq!(consumer.take(7).await, all[5..], "{transport:?}");
    }
    assert_eq!(relay.entries().await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_reconnects_resumes_after_its_last_event_id() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(9);
    let mut consumer = relay.consume(ConsumerTransport::Sse, "from=first").await;
    consumer.expect(1..=4).await;
    let last_id = consumer.last_id.clone().unwrap();
    drop(consumer);
    let target = format!("/v1/streams/{}/events?from=first", relay.name());
    let mut consumer = Consumer::reconnect(relay.consumers_at(), &target, &last_id).await;
    consumer.expect(5..=9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_valid_after_a_restart() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(6);
    let taken = relay.consumer().await.take(6).await;
    let relay = relay.restart().await;
    platform.emit(2);
    let mut consumer = relay.consume(ConsumerTransport::WebSocket, &format!("after={}", id(&taken[3]))).await;
    consumer.expect(5..=8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_lead_from_one_to_the_next() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(10);
    relay.consumer().await.expect(1..=10).await;
    let mut target = format!("/v1/streams/{}/events?from=first&limit=4", relay.name());
    let mut entries: Vec<Value> = Vec::new();
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let page = relay.page(&target).await;
        assert_eq!(page.headers()["content-type"], "application/cloudevents-batch+json");
        let link = page.headers()["link"].to_str().unwrap().to_owned();
        target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
        let events: Vec<Value> = page.json().await.unwrap();
        sizes.push(events.len());
        entries.extend(events);
    }
    assert_eq!(sizes, [4, 4, 2, 0]);
    assert_eq!(summarize_log(&entries), "1 2 3 4 5 6 7 8 9 10");
    platform.emit(1);
    eventually("a poller sees what is new", async || {
        let page: Vec<Value> = relay.page(&target).await.json().await.unwrap();
        page.iter().map(summarize_entry).eq(["11"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_before_the_oldest_entry_is_reported_as_a_gap_or_410() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).store("retention.events", 50);
    let relay = Relay::of(plan).await;
    platform.emit(2);
    let first = relay.consumer().await.take(2).await.remove(0);
    platform.emit(3_000);
    let target = format!("/v1/streams/{}/events?after={}", relay.name(), id(&first));
    eventually("the log has trimmed it", async || relay.page(&target).await.status() == 410).await;
    let problem: Value = relay.page(&target).await.json().await.unwrap();
    assert!(problem["type"].as_str().unwrap().starts_with("urn:trunkline:problem:"), "{problem}");
    relay.until("everything is in the log", |stream| stream["events"] == 3_002).await;
    for transport in TRANSPORTS {
        let mut consumer = relay.consume(transport, &format!("after={}", id(&first))).await;
        let gap = consumer.next().await.unwrap();
        assert_eq!((&gap["type"], &gap["data"]["reason"]), (&"trunkline.gap.v1".into(), &"trimmed".into()));
        assert!(gap.get("sequence").is_none());
        assert_eq!(gap["data"]["after"], id(&first));
        let held = consumer.next().await.unwrap();
        assert_eq!(gap["data"]["before"], id(&held), "{transport:?}");
        assert_eq!(gap["id"], format!("{}/trimmed", id(&held)));
        let offset: u64 = held["sequence"].as_str().unwrap().parse().unwrap();
        assert_eq!(gap["data"]["lost"], offset - 2);
        consumer.expect(offset + 1..=3_002).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_is_reported_and_never_used() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(3);
    relay.expect_log("1 2 3").await;
    let target = format!("/v1/streams/{}/events?after=0-2", relay.name());
    assert_eq!(relay.page(&target).await.status(), 410);
    let mut consumer = relay.consume(ConsumerTransport::WebSocket, "after=0-2").await;
    assert_eq!(consumer.next().await.unwrap()["data"]["reason"], "trimmed");
    consumer.expect(1..=3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_streams_share_one_connection_and_one_cursor() {
    let platform = Platform::start().await;
    let plan = RelayPlan::numbered(platform.address()).and_topics("queues", &["v2.users.*.routingStatus"]);
    let relay = Relay::of(plan).await;
    let names = relay.plan().stream_names().to_vec();
    let query = format!("/v1/events?stream={}&stream={}", names[0], names[1]);
    let mark = platform.ledger().mark();
    platform.emit(60);
    let count = 60 + platform.sent_since(mark).len();
    let at = relay.consumers_at();
    let mut consumer = Consumer::connect(at, &format!("{query}&from=first"), ConsumerTransport::Sse).await;
    let half = consumer.take(count / 2).await;
    let cursor = consumer.last_id.clone().unwrap();
    drop(consumer);
    let rest = Consumer::connect(at, &format!("{query}&after={cursor}"), ConsumerTransport::WebSocket)
        .await
        .take(count - half.len())
        .await;
    let mut by_source = BTreeMap::<&str, Vec<Value>>::new();
    for event in half.iter().chain(&rest) {
        by_source.entry(event["source"].as_str().unwrap()).or_default().push(event.clone());
    }
    let account = relay.plan().account_name();
    for name in &names {
        let events = &by_source[format!("/accounts/{account}/streams/{name}").as_str()];
        summarize_log(events);
    }
    assert_eq!(by_source.values().map(Vec::len).sum::<usize>(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_can_filter_by_type() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    platform.emit(200);
    relay.consumer().await.expect(1..=200).await;
    let wanted = "v2.users.presence";
    let all = relay.entries().await;
    let meant: Vec<&Value> = all.iter().filter(|event| event["type"] == wanted).collect();
    assert!(meant.len() > 3 && meant.len() < 200);
    for transport in TRANSPORTS {
        let mut consumer = relay.consume(transport, &format!("from=first&type={wanted}")).await;
        let received = consumer.take(meant.len()).await;
        assert!(received.iter().eq(meant.iter().copied()), "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_are_listed_with_their_cursors() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    let listed = async || relay.page("/v1/streams").await.json::<Value>().await.unwrap()["streams"][0].clone();
    let empty = listed().await;
    assert_eq!((&empty["name"], &empty["first"], &empty["live"]), (&relay.name().into(), &Value::Null, &true.into()));
    platform.emit(3);
    relay.expect_log("1 2 3").await;
    let (listed, entries) = (listed().await, relay.entries().await);
    assert_eq!((&listed["first"], &listed["last"]), (&entries[0]["id"], &entries[2]["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_consumer_path_answers_a_typed_problem() {
    let platform = Platform::start().await;
    let relay = Relay::start(&platform).await;
    for (target, status) in [
        ("/v1/streams/unknown/events", 404),
        ("/v1/nothing", 404),
        ("/v1/streams/unknown/events?aftr=1", 400),
        ("/metrics", 404),
        ("/admin/v1/status", 404),
    ] {
        let answer = relay.page(target).await;
        assert_eq!(answer.status(), status, "{target}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{target}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["type"].as_str().unwrap().starts_with("urn:trunkline:problem:"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_delivers_all_stored_events_and_closes_with_1001() {
    let platform = Platform::start().await;
    let wire = TcpProxy::to(platform.address()).await;
    let relay = Relay::of(RelayPlan::numbered(wire.address())).await;
    let mut socket = relay.consumer().await;
    let mut endless = [
        relay.consume(ConsumerTransport::Sse, "from=first").await,
        relay.consume(ConsumerTransport::Ndjson, "from=first").await,
    ];
    platform.emit(500);
    socket.expect(1..=1).await;
    let drained = relay.stop();
    let read = async {
        let mut delivered = Vec::new();
        for consumer in &mut endless {
            let mut numbers = Vec::new();
            while let Some(event) = consumer.next().await {
                numbers.push(summarize_entry(&event).parse::<u64>().unwrap());
            }
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
            delivered.push(numbers.len());
        }
        delivered
    };
    let (plan, delivered, closed) = tokio::join!(drained, read, socket.wait_for_close());
    assert_eq!(closed, (1001, "draining".to_owned()));
    // The next process resumes after the stored position.
    let _relay = Relay::of(plan).await;
    let asked = wire.upgrades().pop().unwrap();
    let position: usize = asked.split_once("sequenceId=").unwrap().1.parse().unwrap();
    assert_eq!(delivered, [position, position]);
}
