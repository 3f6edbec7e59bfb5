//! The CloudEvent around the platform's bytes (CloudEvents 1.0, JSON format), written once per event.
//!
//! The order of the attributes is fixed, so that equal events give equal bytes.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{AccountName, Batch, Body, Epoch, Event, Mark, Offset, StreamName, batch::Slot};

macro_rules! put {
    ($out:expr, $($form:tt)*) => {
        write!($out, $($form)*).expect("writing to memory does not fail")
    };
}

/// The CloudEvents `source` of a stream: `/accounts/{account}/streams/{stream}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(String);

impl Source {
    pub fn new(account: &AccountName, stream: &StreamName) -> Self {
        Self(format!("/accounts/{account}/streams/{stream}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Wraps events one behind the other and numbers them.
#[derive(Debug)]
pub struct BatchBuilder<'a> {
    source: &'a Source,
    epoch: Epoch,
    first: Offset,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    receipt: (super::Timestamp, String),
}

/// An envelope's attributes take about this many bytes beside the body.
const ATTRIBUTES_LEN: usize = 384;

impl<'a> BatchBuilder<'a> {
    /// Starts a batch whose first entry follows `last`.
    pub fn new(source: &'a Source, epoch: Epoch, last: Offset) -> Self {
        let receipt = (super::Timestamp(i64::MIN), String::new());
        Self { source, epoch, first: last.next(), bytes: Vec::new(), slots: Vec::new(), receipt }
    }

    /// Room for `events` before the first is written, so that the bytes are allocated once.
    pub fn reserve(&mut self, events: &[Event]) {
        let bodies: usize = events.iter().map(|event| event.body.len()).sum();
        self.bytes.reserve(bodies + events.len() * ATTRIBUTES_LEN);
        self.slots.reserve(events.len());
    }

    /// The mark that the next pushed event will get.
    pub fn next_mark(&self) -> Mark {
        Mark { epoch: self.epoch, offset: Offset(self.first.0 + self.slots.len() as u64) }
    }

    /// Wraps one event.
    pub fn push(&mut self, event: &Event) {
        let mark = self.next_mark();
        let start = self.bytes.len();
        let out = &mut self.bytes;
        put!(out, r#"{{"specversion":"1.0","id":"{mark}","source":"{}","type":"#, self.source.as_str());
        let kind_at = out.len() + 1 - start;
        text(out, &event.kind);
        let kind_len = out.len() - 1 - start - kind_at;
        if self.receipt.0 != event.received {
            self.receipt = (event.received, event.received.to_string());
        }
        optional(out, "subject", event.subject.as_deref());
        optional(out, "time", Some(event.time.as_deref().unwrap_or(&self.receipt.1)));
        put!(out, r#","sequence":"{}""#, mark.offset);
        if let Some(sequence) = event.sequence {
            put!(out, r#","platformsequence":"{sequence}""#);
        }
        optional(out, "correlationid", event.correlation.as_deref());
        optional(out, "partitionkey", event.partition_key.as_deref());
        optional(out, "receivedtime", Some(&self.receipt.1));
        body(out, &event.body);
        out.push(b'}');
        let end = u32::try_from(out.len()).expect("a batch is bounded far below 4 GiB");
        self.slots.push(Slot {
            end,
            kind_at: u16::try_from(kind_at).unwrap_or(0),
            kind_len: u16::try_from(kind_len).unwrap_or(0),
            received: event.received,
        });
    }

    /// How many entries so far.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The batch; none when nothing was pushed.
    pub fn finish(self) -> Option<Batch> {
        let some = !self.slots.is_empty();
        some.then(|| Batch::new(self.epoch, self.first, Bytes::from(self.bytes), self.slots.into_boxed_slice()))
    }
}

fn optional(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        put!(out, r#","{name}":"#);
        text(out, value);
    }
}

/// A JSON string; almost none of ours needs an escape.
fn text(out: &mut Vec<u8>, value: &str) {
    if value.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, value).expect("a string always serializes");
    }
}

fn body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Json(json) => {
            out.extend_from_slice(br#","datacontenttype":"application/json","data":"#);
            out.extend_from_slice(json.as_bytes());
        }
        Body::Binary(bytes) => {
            put!(out, r#","datacontenttype":"application/octet-stream","data_base64":"{}""#, STANDARD.encode(bytes));
        }
    }
}
