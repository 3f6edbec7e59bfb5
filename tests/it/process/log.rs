//! A stream's log as consumers get it, and its invariants.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{relay::client, site::STREAM};

/// Entries per page: the maximum.
const PAGE: usize = 1_000;

/// One entry as the consumer received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) offset: u64,
    /// The platform's sequence number.
    pub(crate) number: Option<u64>,
    pub(crate) correlation: Option<String>,
    /// The complete text.
    pub(crate) json: String,
}

#[derive(Deserialize)]
struct EntryAttributes {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    sequence: Option<String>,
    platformsequence: Option<String>,
    correlationid: Option<String>,
}

impl LogEntry {
    pub(crate) fn read(json: &str) -> Self {
        let read: EntryAttributes = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        let number = |text: Option<String>| text.map(|text| text.parse().unwrap());
        Self {
            id: read.id,
            kind: read.kind,
            offset: number(read.sequence).unwrap_or(0),
            number: number(read.platformsequence),
            correlation: read.correlationid,
            json: json.to_owned(),
        }
    }
}

/// The whole log of the default stream.
pub(crate) async fn pages(consumers: &str) -> Vec<LogEntry> {
    pages_of(consumers, STREAM).await
}

/// The log of a stream up to its current end, page by page.
pub(crate) async fn pages_of(consumers: &str, stream: &str) -> Vec<LogEntry> {
    let end = end_of(consumers, stream).await;
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut next = format!("/v1/streams/{stream}/events?limit={PAGE}&from=first");
    loop {
        let url = format!("{consumers}{next}");
        let answer = client().get(&url).header("accept", "application/cloudevents-batch+json").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{url}");
        let link = answer.headers()["link"].to_str().unwrap().to_owned();
        next = link.strip_prefix('<').and_then(|link| link.split_once('>')).unwrap().0.to_owned();
        let body = answer.text().await.unwrap();
        let page: Vec<&RawValue> = serde_json::from_str(&body).unwrap();
        entries.extend(page.iter().map(|event| LogEntry::read(event.get())));
        if page.is_empty() || entries.last().is_some_and(|last| last.offset >= end) {
            return entries;
        }
    }
}

/// The newest offset of a stream; 0 for an empty log.
async fn end_of(consumers: &str, stream: &str) -> u64 {
    let answer = client().get(format!("{consumers}/v1/streams")).send().await.unwrap();
    let streams: Value = answer.json().await.unwrap();
    let found = streams["streams"].as_array().unwrap().iter().find(|found| found["name"] == stream);
    let last = found.and_then(|found| found["last"].as_str()).and_then(|last| last.split_once('-'));
    last.map_or(0, |(_, offset)| offset.parse().unwrap())
}

/// Checks that the log has each number from its first to `last_sent` once, in order, with dense offsets and without a
/// gap.
pub(crate) fn assert_complete(log: &[LogEntry], last_sent: u64) {
    let first = log.first().and_then(|entry| entry.number).expect("the log starts with an event");
    for (index, entry) in log.iter().enumerate() {
        let index = index as u64;
        assert_eq!(entry.offset, index + 1, "offsets are dense: {}", entry.json);
        assert_eq!(entry.number, Some(first + index), "nothing is missing or duplicated: {}", entry.json);
    }
    assert_eq!(log.last().and_then(|entry| entry.number), Some(last_sent), "the last event is there");
}
