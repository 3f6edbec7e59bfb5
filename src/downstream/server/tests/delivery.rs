//! Delivery over every transport: all events once and in order, or a gap with the missing range.

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{RelayFixture, RelaySetup, TIMEOUT, TestHttpClient, sequences};

const QUEUES: &str = "/v1/streams/queues/events";
const SSE: (&str, &str) = ("Accept", "text/event-stream");
const NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");

#[tokio::test]
async fn every_transport_delivers_the_same_events_in_the_same_order() {
    let relay = RelayFixture::start().await;
    relay
        .append("queues", &["1", "{\"a\":\r\n[1,\n2]}", "\"ünï ☎\"", &format!("\"{}\"", "x".repeat(70_000)), "5"])
        .await;
    relay.say("queues", 6..=40).await;
    let from_first = format!("{QUEUES}?from=first");
    let page = relay.get(&from_first, &[]).await.json().await;
    let page = page.as_array().unwrap();
    assert_eq!(sequences(page), (1..=40).collect::<Vec<_>>());
    assert_eq!(page[1]["data"], json!({"a": [1, 2]}));
    assert_eq!(page[1]["source"], "/accounts/acme/streams/queues");
    assert_eq!(&relay.subscribe(&from_first).await.events(40).await, page);
    assert_eq!(&relay.get(&from_first, &[SSE]).await.sse_events(40).await, page);
    assert_eq!(&relay.get(&from_first, &[NDJSON]).await.lines(40).await, page);
    let both = "/v1/events?stream=queues&stream=agents&from=first";
    assert_eq!(&relay.get(both, &[SSE]).await.sse_events(40).await, page);
    relay.drain().await;
}

#[tokio::test]
async fn a_subscriber_gets_events_appended_after_it_joined() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=3).await;
    let mut ws = relay.subscribe(QUEUES).await;
    let mut sse = relay.get(QUEUES, &[SSE]).await;
    let mut lines = relay.get(QUEUES, &[NDJSON]).await;
    relay.say("queues", 4..=30).await;
    let expected: Vec<u64> = (4..=30).collect();
    assert_eq!(sequences(&ws.events(27).await), expected);
    assert_eq!(sequences(&sse.sse_events(27).await), expected);
    assert_eq!(sequences(&lines.lines(27).await), expected);
    drop((ws, sse, lines));
    relay.drain().await;
}

#[tokio::test]
async fn an_sse_stream_starts_with_its_cursor_and_resumes_after_last_event_id() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=5).await;
    let mut sse = relay.get(QUEUES, &[SSE]).await;
    let cursor = relay.mark("queues", 5).to_string();
    assert_eq!(sse.until("\n\n").await.unwrap(), format!("retry: 1000\nid: {cursor}"));
    assert_eq!(sse.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(sse.header("x-accel-buffering").as_deref(), Some("no"));
    drop(sse);
    relay.say("queues", 6..=9).await;
    let mut sse = relay.get(QUEUES, &[SSE, ("Last-Event-ID", &cursor)]).await;
    let (id, event) = sse.sse().await.unwrap();
    assert_eq!((id.as_str(), event["id"].as_str().unwrap()), (id.as_str(), id.as_str()));
    assert_eq!(sequences(&sse.sse_events(3).await), [7, 8, 9]);
    relay.drain().await;
}

#[tokio::test]
async fn several_streams_are_merged_and_one_cursor_covers_them_all() {
    let relay = RelayFixture::start().await;
    let both = "/v1/events?stream=queues&stream=agents";
    let mut sse = relay.get(&format!("{both}&from=first"), &[SSE]).await;
    let mut ws = relay.subscribe(&format!("{both}&from=first")).await;
    for round in 0..20 {
        relay.say("queues", round * 3 + 1..=round * 3 + 3).await;
        relay.say("agents", round + 1..=round + 1).await;
    }
    let mut cursor = String::new();
    let mut events = Vec::new();
    for _ in 0..50 {
        let (id, event) = sse.sse().await.unwrap();
        cursor = id;
        events.push(event);
    }
    let resumed = relay.get(both, &[SSE, ("Last-Event-ID", &cursor)]).await.sse_events(30).await;
    events.extend(resumed);
    check_merged(&events);
    check_merged(&ws.events(80).await);
    drop((ws, sse));
    relay.drain().await;
}

/// Checks for sixty events of one stream and twenty of the other, each stream in order.
fn check_merged(events: &[Value]) {
    for (stream, count) in [("queues", 60), ("agents", 20)] {
        let of_stream = events.iter().filter(|event| event["source"].as_str().unwrap().ends_with(stream));
        let of_stream: Vec<Value> = of_stream.cloned().collect();
        assert_eq!(sequences(&of_stream), (1..=count).collect::<Vec<_>>(), "{stream}");
    }
}

#[tokio::test]
async fn a_quiet_stream_is_not_starved_by_a_busy_one() {
    let relay = RelayFixture::start().await;
    let body = format!("\"{}\"", "x".repeat(4_000));
    let many = vec![body.as_str(); 500];
    for _ in 0..4 {
        relay.append("agents", &many).await;
    }
    relay.say("queues", 1..=1).await;
    let mut ws = relay.subscribe("/v1/events?stream=agents&stream=queues&from=first").await;
    let events = ws.events(700).await;
    assert!(events.iter().any(|event| event["source"].as_str().unwrap().ends_with("queues")));
    drop(ws);
    relay.drain().await;
}

#[tokio::test]
async fn pages_follow_one_another_and_an_empty_one_repeats_its_cursor() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=25).await;
    let mut seen = Vec::new();
    let mut path = format!("{QUEUES}?from=first&limit=10");
    for expected in [10, 10, 5, 0, 0] {
        let mut page = relay.get(&path, &[]).await;
        assert_eq!(page.header("content-type").as_deref(), Some("application/cloudevents-batch+json"));
        let events = page.json().await;
        assert_eq!(events.as_array().unwrap().len(), expected);
        seen.extend(sequences(events.as_array().unwrap()));
        path = page.next_page();
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    let end = relay.mark("queues", 25);
    assert_eq!(path, format!("{QUEUES}?limit=10&after={end}"));
    relay.say("queues", 26..=26).await;
    let page = relay.get(&path, &[]).await.json().await;
    assert_eq!(sequences(page.as_array().unwrap()), [26]);
    relay.drain().await;
}

#[tokio::test]
async fn pages_over_several_streams_lose_nothing() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=60).await;
    relay.say("agents", 1..=20).await;
    let mut events = Vec::new();
    let mut path = "/v1/events?stream=queues&stream=agents&limit=9&from=first".to_owned();
    while events.len() < 80 {
        let mut page = relay.get(&path, &[]).await;
        let body = page.json().await;
        assert_ne!(body, json!([]));
        events.extend(body.as_array().unwrap().iter().cloned());
        path = page.next_page();
    }
    check_merged(&events);
    relay.drain().await;
}

#[tokio::test]
async fn a_type_is_picked_out_by_every_transport() {
    let relay = RelayFixture::start().await;
    let bodies: Vec<String> = (0..300).map(|number| format!("\"{}{number}\"", ["a", "b", "b"][number % 3])).collect();
    for some in bodies.chunks(40) {
        relay.append("queues", &some.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let path = format!("{QUEUES}?from=first&type=*.a");
    let expected: Vec<u64> = (1..=300).step_by(3).collect();
    assert_eq!(sequences(&relay.subscribe(&path).await.events(100).await), expected);
    assert_eq!(sequences(&relay.get(&path, &[SSE]).await.sse_events(100).await), expected);
    assert_eq!(sequences(&relay.get(&path, &[NDJSON]).await.lines(100).await), expected);
    let page = relay.get(&path, &[]).await.json().await;
    assert_eq!(sequences(page.as_array().unwrap()), expected);
    let mut nothing = relay.get(&format!("{QUEUES}?from=first&type=none"), &[]).await;
    assert_eq!(nothing.json().await, json!([]));
    assert!(nothing.next_page().ends_with(&format!("after={}", relay.mark("queues", 300))), "the cursor moved on");
    relay.drain().await;
}

#[tokio::test]
async fn since_begins_with_the_first_entry_received_then_or_later() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=5).await;
    for (since, expected) in [("2026-05-04T13:31:49.570Z", vec![1, 2, 3, 4, 5]), ("2026-05-04T13:31:49.571Z", vec![])] {
        let page = relay.get(&format!("{QUEUES}?since={since}"), &[]).await.json().await;
        assert_eq!(sequences(page.as_array().unwrap()), expected, "{since}");
    }
    relay.drain().await;
}

/// A relay that stores only the newest of 2,000 events, and the offset of the oldest stored one.
async fn trimmed() -> (RelayFixture, u64) {
    let relay = RelayFixture::with(RelaySetup { retention: 100, tail_bytes: 0, ..RelaySetup::default() }).await;
    relay.say("queues", 1..=2_000).await;
    let first = wait_for_first(&relay).await;
    (relay, first)
}

async fn wait_for_first(relay: &RelayFixture) -> u64 {
    for _ in 0..1_000 {
        let first = relay.log("queues").end().first.0;
        if first > 1 {
            return first;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("retention never trimmed");
}

#[tokio::test]
async fn a_cursor_beyond_retention_gets_a_gap_and_then_all_stored_entries() {
    let (relay, first) = trimmed().await;
    let after = relay.mark("queues", 3);
    let path = format!("{QUEUES}?after={after}");
    let mut ws = relay.subscribe(&path).await;
    let gap = ws.event().await;
    check_gap(&gap, &json!({"after": after, "before": relay.mark("queues", first), "lost": first - 4}), first, &relay);
    let expected: Vec<u64> = (first..=2_000).collect();
    assert_eq!(sequences(&ws.events(expected.len()).await), expected);
    let mut sse = relay.get(&path, &[SSE]).await;
    let (id, gap) = sse.sse().await.unwrap();
    assert_eq!(gap["type"], "trunkline.gap.v1");
    let mut resumed = relay.get(QUEUES, &[SSE, ("Last-Event-ID", &id)]).await;
    assert_eq!(sequences(&resumed.sse_events(expected.len()).await), expected, "the gap's id is a cursor");
    let mut lines = relay.get(&format!("{QUEUES}?after={}", gap["id"].as_str().unwrap()), &[NDJSON]).await;
    assert_eq!(sequences(&lines.lines(expected.len()).await), expected, "the id of the gap event is a cursor");
    drop((ws, sse, resumed, lines));
    relay.drain().await;
}

#[tokio::test]
async fn a_cursor_of_another_epoch_gets_a_gap_and_is_refused_a_page() {
    let (relay, first) = trimmed().await;
    let foreign =
        "0-17".replace('0', if relay.mark("queues", 1).to_string().starts_with("00aa-") { "00ab" } else { "00aa" });
    let path = format!("{QUEUES}?after={foreign}");
    let mut ws = relay.subscribe(&path).await;
    let gap = ws.event().await;
    check_gap(&gap, &json!({"after": foreign, "before": relay.mark("queues", first), "lost": null}), first, &relay);
    assert_eq!(sequences(&ws.events(3).await), [first, first + 1, first + 2]);
    let mut page = relay.get(&path, &[]).await;
    assert_eq!((page.status(), page.problem().await.0.as_str()), (410, "cursor-foreign"));
    drop((ws, page));
    relay.drain().await;
}

fn check_gap(gap: &Value, bounds: &Value, first: u64, relay: &RelayFixture) {
    assert_eq!(gap["type"], "trunkline.gap.v1");
    assert_eq!(gap["id"], format!("{}/trimmed", relay.mark("queues", first)));
    assert_eq!(gap["source"], "/accounts/acme/streams/queues");
    assert_eq!(gap.get("sequence"), None);
    assert_eq!(gap["data"]["reason"], "trimmed");
    for bound in ["after", "before", "lost"] {
        assert_eq!(gap["data"][bound], bounds[bound], "{bound}");
    }
}

#[tokio::test]
async fn a_page_beyond_retention_is_gone_and_one_beyond_the_end_is_refused() {
    let (relay, first) = trimmed().await;
    let mut gone = relay.get(&format!("{QUEUES}?after={}", relay.mark("queues", 3)), &[]).await;
    let (kind, detail) = gone.problem().await;
    assert_eq!((gone.status(), kind.as_str()), (410, "cursor-trimmed"));
    assert!(detail.contains(&relay.mark("queues", first).to_string()), "{detail}");
    let beyond = format!("{QUEUES}?after={}", relay.mark("queues", 2_001));
    for headers in [&[][..], &[SSE], &[NDJSON], &UPGRADE] {
        let mut refused = relay.get(&beyond, headers).await;
        assert_eq!((refused.status(), refused.problem().await.0.as_str()), (400, "cursor-beyond-end"));
    }
    relay.drain().await;
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test]
async fn a_paused_reader_gets_everything_and_blocks_no_other() {
    let relay = RelayFixture::with(RelaySetup { tail_bytes: 256 * 1024, ..RelaySetup::default() }).await;
    let mut slow = relay.subscribe(QUEUES).await;
    let mut slow_sse = relay.get(QUEUES, &[SSE]).await;
    let mut quick = relay.subscribe(QUEUES).await;
    let body = format!("\"{}\"", "x".repeat(8_000));
    let some = vec![body.as_str(); 100];
    for round in 0..40 {
        relay.append("queues", &some).await;
        assert_eq!(sequences(&quick.events(100).await), (round * 100 + 1..=round * 100 + 100).collect::<Vec<_>>());
    }
    let expected: Vec<u64> = (1..=4_000).collect();
    assert_eq!(sequences(&slow.events(4_000).await), expected);
    assert_eq!(sequences(&slow_sse.sse_events(4_000).await), expected);
    drop((slow, slow_sse, quick));
    relay.drain().await;
}

/// JSON of about this many bytes, with line breaks between its tokens, and different text in each position.
fn large(number: usize, len: usize) -> String {
    let items: Vec<String> = (0..len / 8).map(|item| format!("{:06}", number * 100_000 + item)).collect();
    format!("[1{}]", items.iter().map(|item| format!(",\r\n1{item}")).collect::<String>())
}

/// Large and small entries; a filter matches every other one.
fn mixed() -> Vec<String> {
    (0..10)
        .map(|number| match number % 3 {
            0 => large(number, 240_000),
            1 => format!("\"{number}\""),
            _ => large(number, 40_000),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_share_a_memory_bound_and_lose_nothing() {
    let mut setup = RelaySetup { tail_bytes: 0, ..RelaySetup::default() };
    setup.server.held_len_max = 1024 * 1024;
    // A long timeout, so that no reader is closed on a busy machine.
    setup.server.limits.stall_max = Duration::from_secs(600);
    let relay = RelayFixture::with(setup).await;
    let bodies = mixed();
    for body in &bodies {
        relay.append("queues", &[body]).await;
        relay.append("agents", &[body]).await;
    }
    let expected: Vec<Value> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    let quoted: Vec<Value> = expected.iter().filter(|data| data.is_string()).cloned().collect();
    let data = |events: Vec<Value>| events.into_iter().map(|mut event| event["data"].take()).collect::<Vec<_>>();
    let (first, filtered) = (format!("{QUEUES}?from=first"), format!("{QUEUES}?from=first&type=test.%5B0-9%5D"));
    let several = "/v1/events?from=first&stream=agents&stream=queues";
    let (mut sockets, mut endless) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        for path in [&first, &filtered] {
            sockets.push(relay.subscribe_over(relay.connect_with_small_buffer().await, path).await);
            for accept in [SSE, NDJSON] {
                endless.push(
                    TestHttpClient::send_over(
                        relay.connect_with_small_buffer().await,
                        &relay.authority,
                        "GET",
                        path,
                        &[accept],
                    )
                    .await,
                );
            }
        }
        endless.push(
            TestHttpClient::send_over(
                relay.connect_with_small_buffer().await,
                &relay.authority,
                "GET",
                several,
                &[SSE],
            )
            .await,
        );
    }
    // The other readers are stalled meanwhile, and their entries are evicted.
    for pair in sockets.chunks_mut(2) {
        assert_eq!(data(pair[0].events(expected.len()).await), expected);
        assert_eq!(data(pair[1].events(quoted.len()).await), quoted);
    }
    for five in endless.chunks_mut(5) {
        assert_eq!(data(five[0].sse_events(expected.len()).await), expected);
        assert_eq!(data(five[1].lines(expected.len()).await), expected);
        assert_eq!(data(five[2].sse_events(quoted.len()).await), quoted);
        assert_eq!(data(five[3].lines(quoted.len()).await), quoted);
        let (agents, queues): (Vec<_>, Vec<_>) = five[4]
            .sse_events(2 * expected.len())
            .await
            .into_iter()
            .partition(|event| event["source"].as_str().unwrap().ends_with("agents"));
        assert_eq!((data(agents), data(queues)), (expected.clone(), expected.clone()));
    }
    drop((sockets, endless));
    relay.drain().await;
}

#[tokio::test]
async fn a_thousand_subscribers_all_get_everything() {
    let relay = RelayFixture::start().await;
    let mut clients = Vec::new();
    for _ in 0..1_000 {
        clients.push(relay.subscribe(QUEUES).await);
    }
    relay.say("queues", 1..=50).await;
    let expected: Vec<u64> = (1..=50).collect();
    for client in &mut clients {
        assert_eq!(sequences(&client.events(50).await), expected);
    }
    drop(clients);
    relay.drain().await;
}

#[tokio::test]
async fn the_list_of_streams_shows_first_and_last_mark() {
    let relay = RelayFixture::start().await;
    relay.say("queues", 1..=3).await;
    let shown = relay.get("/v1/streams", &[]).await.json().await;
    assert_eq!(
        shown,
        json!({"streams": [
            {"name": "agents", "first": null, "last": relay.mark("agents", 0), "live": false},
            {"name": "queues", "first": relay.mark("queues", 1), "last": relay.mark("queues", 3), "live": true},
        ]})
    );
    let last = shown["streams"][0]["last"].as_str().unwrap();
    let from_start = relay.get(&format!("/v1/streams/agents/events?after={last}"), &[]).await;
    assert_eq!(from_start.status(), 200, "the end of an empty log is a cursor");
    relay.drain().await;
}

#[tokio::test]
async fn an_idle_sse_stream_sends_keep_alives() {
    let mut setup = RelaySetup::default();
    setup.server.keep_alive_interval = std::time::Duration::from_millis(20);
    let relay = RelayFixture::with(setup).await;
    let mut sse: TestHttpClient = relay.get(QUEUES, &[SSE]).await;
    assert!(sse.until("\n\n").await.unwrap().starts_with("retry: 1000\n"));
    assert_eq!(tokio::time::timeout(TIMEOUT, sse.until("\n\n")).await.unwrap().unwrap(), ":");
    relay.drain().await;
}

/// Entries that a reader of `test.w` filters out.
async fn append_unmatched(relay: &RelayFixture, stream: &str, hundreds: usize) {
    for _ in 0..hundreds {
        relay.append(stream, &["\"x\""; 100]).await;
    }
}

const WANTED: &str = "\"w\"";

#[tokio::test]
async fn a_filtered_sse_reader_resumes_after_retention_and_misses_nothing() {
    let relay = RelayFixture::with(RelaySetup { retention: 1_500, ..RelaySetup::default() }).await;
    let path = format!("{QUEUES}?type=test.w");
    let mut sse = relay.get(&path, &[SSE]).await;
    relay.append("queues", &[WANTED]).await;
    assert_eq!(sequences(&sse.sse_events(1).await), [1]);
    append_unmatched(&relay, "queues", 30).await;
    let mut last_id = String::new();
    while last_id.is_empty() || offset(&last_id) <= 2_001 {
        last_id = sse.sse_id().await.expect("an id that advances");
    }
    drop(sse);
    assert!(relay.log("queues").end().first.0 > 2, "retention has trimmed the first event");
    relay.append("queues", &[WANTED]).await;
    let event = relay.get(&path, &[SSE, ("Last-Event-ID", &last_id)]).await.sse().await.unwrap().1;
    assert_eq!((event["type"].as_str(), event["sequence"].as_str()), (Some("test.w"), Some("3002")), "{event}");
    let stale = relay.mark("queues", 1).to_string();
    let event = relay.get(&path, &[SSE, ("Last-Event-ID", &stale)]).await.sse().await.unwrap().1;
    assert_eq!(event["data"]["reason"], "trimmed", "a reader without the ids gets this gap");
    relay.drain().await;
}

fn offset(mark: &str) -> u64 {
    mark.rsplit_once('-').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn a_filtered_reader_of_several_streams_gets_the_whole_cursor() {
    let relay = RelayFixture::start().await;
    let path = "/v1/events?stream=agents&stream=queues&type=test.w";
    let mut sse = relay.get(path, &[SSE]).await;
    relay.append("agents", &[WANTED]).await;
    assert_eq!(sse.sse_events(1).await.len(), 1);
    append_unmatched(&relay, "queues", 10).await;
    let agents = relay.mark("agents", 1);
    let last_id = loop {
        let last_id = sse.sse_id().await.expect("an id that advances");
        if last_id.ends_with("-1000") {
            break last_id;
        }
    };
    assert!(last_id.contains(&format!("agents:{agents}")) && last_id.contains("queues:"), "{last_id}");
    relay.append("queues", &[WANTED]).await;
    let event = relay.get(path, &[SSE, ("Last-Event-ID", &last_id)]).await.sse().await.unwrap().1;
    assert_eq!(event["sequence"], "1001");
    drop(sse);
    relay.drain().await;
}

#[tokio::test]
async fn websocket_and_ndjson_send_positions_on_request() {
    let relay = RelayFixture::start().await;
    let one = format!("{QUEUES}?type=test.w");
    let session = [("sec-websocket-protocol", "trunkline.v1")];
    let (mut last_id, response) = relay.offer(&one, &session).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "trunkline.v1");
    let (mut plain, _) = relay.offer(&one, &[("sec-websocket-protocol", "cloudevents.json")]).await;
    let (mut several, _) = relay.offer("/v1/events?stream=agents&stream=queues", &session).await;
    let (mut whole, _) = relay.offer(QUEUES, &session).await;
    let mut lines = relay.get(&format!("{one}&positions=true"), &[NDJSON]).await;
    let mut bare = relay.get(&one, &[NDJSON]).await;
    append_unmatched(&relay, "queues", 10).await;
    relay.append("queues", &[WANTED]).await;
    let end = relay.mark("queues", 1_000).to_string();
    for (event, kind) in
        [(last_id.event().await, "trunkline.session.position"), (lines.line().await.unwrap(), "trunkline.position.v1")]
    {
        assert_eq!((event["type"].as_str(), &event["data"]), (Some(kind), &json!({"cursor": end})));
        assert_eq!((event["specversion"].as_str(), event["sequence"].as_str()), (Some("1.0"), None));
        assert!(event["id"].is_string() && event["source"].is_string(), "{event}");
    }
    for event in [last_id.event().await, plain.event().await, lines.line().await.unwrap(), bare.line().await.unwrap()] {
        assert_eq!((event["type"].as_str(), event["sequence"].as_str()), (Some("test.w"), Some("1001")));
    }
    let events = whole.events(1_001).await;
    assert_eq!(sequences(&events), (1..=1_001).collect::<Vec<_>>(), "an unfiltered reader gets no positions");
    let position = loop {
        let event = several.event().await;
        if event["type"] == "trunkline.session.position" {
            break event;
        }
    };
    let cursor = position["data"]["cursor"].as_str().unwrap();
    assert!(cursor.contains("agents:") && cursor.contains("queues:"), "{cursor}");
    drop((last_id, plain, several, whole, lines, bare));
    relay.drain().await;
}

#[tokio::test]
async fn a_filtered_out_position_is_reported_within_the_interval() {
    let mut setup = RelaySetup::default();
    setup.server.position_interval = std::time::Duration::from_millis(50);
    let relay = RelayFixture::with(setup).await;
    let mut sse = relay.get(&format!("{QUEUES}?type=test.w"), &[SSE]).await;
    let mut all = relay.get(QUEUES, &[SSE]).await;
    relay.append("queues", &["\"x\""; 3]).await;
    let end = relay.mark("queues", 3).to_string();
    while sse.sse_id().await.expect("an id that advances") != end {}
    assert_eq!(sequences(&all.sse_events(3).await), [1, 2, 3]);
    drop((sse, all));
    relay.drain().await;
}
