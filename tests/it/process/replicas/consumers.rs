//! Durable consumers at two replicas: a newer reader takes over at once, and a reader continues after a kill.

use std::time::{Duration, Instant};

use reqwest::Response;
use serde_json::{Value, json};
use trunkline::clock;

use crate::{
    harness::RedisServer,
    process::{
        child::WAIT_MAX,
        relay::{RelayProcess, client},
        site::{STREAM, Site},
    },
};

/// A newer reader at another replica supersedes the older within its interval of 300 ms, and some time on a busy machine.
const TAKEOVER_MAX: Duration = Duration::from_secs(3);

/// An endless response, read line by line.
struct LineReader {
    answer: Response,
    rest: Vec<u8>,
}

impl LineReader {
    async fn open(relay: &RelayProcess) -> Self {
        let url = format!("{}/v1/streams/{STREAM}/events?consumer=billing&from=first", relay.consumers);
        let answer = client().get(url).header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Self { answer, rest: Vec::new() }
    }

    /// The next event; none at the end of the body.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if line.len() > 1 {
                    return Some(serde_json::from_slice(&line).unwrap());
                }
            }
            let chunk = tokio::time::timeout(WAIT_MAX, self.answer.chunk()).await.expect("bytes in time");
            self.rest.extend_from_slice(&chunk.ok().flatten()?);
        }
    }

    /// The cursors of events with these offsets.
    async fn expect(&mut self, offsets: std::ops::RangeInclusive<u64>) -> Vec<String> {
        let mut cursors = Vec::new();
        for offset in offsets {
            let event = self.next().await.expect("one more event");
            assert_eq!(event["sequence"], offset.to_string(), "{event}");
            cursors.push(event["id"].as_str().unwrap().to_owned());
        }
        cursors
    }
}

async fn acknowledge(relay: &RelayProcess, cursor: &str) -> u16 {
    let url = format!("{}/v1/consumers/billing/cursor", relay.consumers);
    let body = json!({ "stream": STREAM, "cursor": cursor }).to_string();
    client().put(url).body(body).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_at_another_replica_takes_over_and_continues_after_a_kill() {
    let server = RedisServer::volatile();
    let site = Site::start().await;
    site.use_redis(&server.url());
    let first = RelayProcess::live(&site).await;
    let second = RelayProcess::live(&site).await;
    site.platform.emit(6);
    first.wait_for_number(site.platform.ledger().last_sequence()).await;
    let mut older = LineReader::open(&first).await;
    let cursors = older.expect(1..=6).await;
    assert_eq!(acknowledge(&first, &cursors[1]).await, 204);
    let mut newer = LineReader::open(&second).await;
    let opened_at: Instant = clock::now();
    assert_eq!(older.next().await, None, "the older reader ends");
    assert!(opened_at.elapsed() < TAKEOVER_MAX, "{:?}", opened_at.elapsed());
    newer.expect(3..=6).await;
    assert_eq!(acknowledge(&first, &cursors[3]).await, 204, "any replica takes an acknowledgement");
    assert_eq!(acknowledge(&second, &cursors[2]).await, 409);
    let RelayProcess { mut child, .. } = second;
    child.kill();
    let mut survivor = LineReader::open(&first).await;
    survivor.expect(5..=6).await;
    site.platform.emit(2);
    survivor.expect(7..=8).await;
    let again = LineReader::open(&first).await.expect(5..=8).await;
    assert_eq!(survivor.next().await, None, "the older reader of the same replica ends too");
    assert_eq!(acknowledge(&first, &again[3]).await, 204);
    let shown = first.text(&first.consumers, "/v1/consumers/billing").await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["streams"][STREAM], json!({ "cursor": again[3], "lag": 0 }));
}
