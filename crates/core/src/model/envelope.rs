//! The CloudEvent around the platform's bytes (CloudEvents 1.0, JSON format), encoded once per event.
//!
//! The order of the attributes is fixed: equal events have equal bytes.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use bytestring::ByteString;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{AccountName, Batch, Body, Epoch, Event, Mark, Offset, Sequence, StreamName, Timestamp, batch::Slot};

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

/// The start of every envelope, before the id (the mark of the entry).
const PREFIX: &str = r#"{"specversion":"1.0","id":""#;

/// The text before the type and before the time of receipt. A JSON string has no unescaped quotes, so a search never
/// matches inside one.
const TYPE: &[u8] = br#","type":""#;
const RECEIVED_TIME: &[u8] = br#","receivedtime":""#;

/// Attributes of an envelope, located by the fixed order without parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopeHeader {
    pub epoch: Epoch,
    /// Where the `type` begins within the envelope, and its length (as written in JSON, escapes included).
    pub kind: (u16, u16),
    pub received: Timestamp,
}

impl EnvelopeHeader {
    /// The epoch of the envelope at the start of these bytes.
    pub fn epoch_of(envelope: &[u8]) -> Option<Epoch> {
        let id = envelope.strip_prefix(PREFIX.as_bytes())?;
        let digits = id.split(|byte| *byte == b'-').next()?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok().map(Epoch)
    }

    /// None if the bytes are not an envelope.
    pub fn of(envelope: &[u8]) -> Option<Self> {
        let epoch = Self::epoch_of(envelope)?;
        let (at, kind) = quoted(envelope, TYPE)?;
        let (_, receipt) = quoted(envelope, RECEIVED_TIME)?;
        let received = Timestamp::parse(std::str::from_utf8(receipt).ok()?)?;
        let kind = (u16::try_from(at).unwrap_or(0), u16::try_from(kind.len()).unwrap_or(0));
        Some(Self { epoch, kind, received })
    }
}

/// The text after `name` up to its closing quote, and its start.
fn quoted<'a>(envelope: &'a [u8], name: &[u8]) -> Option<(usize, &'a [u8])> {
    let at = memchr::memmem::find(envelope, name)? + name.len();
    let text = &envelope[at..];
    let escaped = |quote: usize| text[..quote].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
    let end = memchr::memchr_iter(b'"', text).find(|quote| !escaped(*quote))?;
    Some((at, &text[..end]))
}

/// Encodes events into one buffer and numbers them.
#[derive(Debug)]
pub struct BatchBuilder {
    epoch: Epoch,
    first: Offset,
    /// The start of every envelope up to the number in its id.
    head: String,
    /// The text between the id and the type.
    source: String,
    /// The newest time of receipt as text. Consecutive events often share it.
    received_text: (Timestamp, String),
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

/// The approximate size of an envelope without the body.
const ATTRIBUTES_LEN: usize = 448;

impl BatchBuilder {
    /// Starts a batch whose first entry follows `last`.
    pub fn new(source: &Source, epoch: Epoch, last: Offset) -> Self {
        Self {
            epoch,
            first: last.next(),
            head: format!("{PREFIX}{epoch}-"),
            source: format!(r#"","source":"{}","type":"#, source.as_str()),
            received_text: (Timestamp(i64::MIN), String::new()),
            bytes: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Reserves the bytes for `events` before the first push, in one allocation.
    pub fn reserve(&mut self, events: &[Event]) {
        let bodies: usize = events.iter().map(|event| event.body.len()).sum();
        self.bytes.reserve(bodies + events.len() * ATTRIBUTES_LEN);
        self.slots.reserve(events.len());
    }

    /// The mark of the next pushed event.
    pub fn next_mark(&self) -> Mark {
        Mark { epoch: self.epoch, offset: Offset(self.first.0 + self.slots.len() as u64) }
    }

    /// Encodes one event.
    pub fn push(&mut self, event: &Event) {
        if self.received_text.0 != event.received {
            self.received_text = (event.received, event.received.to_string());
        }
        let offset = self.next_mark().offset;
        let start = self.bytes.len();
        let kind_at = self.identity(offset, start);
        text(&mut self.bytes, &event.kind);
        let kind_len = self.bytes.len() - 1 - start - kind_at;
        self.attributes(event, offset);
        body(&mut self.bytes, &event.body);
        self.bytes.push(b'}');
        self.slots.push(Slot {
            end: u32::try_from(self.bytes.len()).expect("a batch is bounded far below 4 GiB"),
            kind_at: u16::try_from(kind_at).unwrap_or(0),
            kind_len: u16::try_from(kind_len).unwrap_or(0),
            received: event.received,
        });
    }

    /// Writes everything up to the opening quote of the type. Returns the start of the type in the envelope.
    fn identity(&mut self, offset: Offset, start: usize) -> usize {
        let out = &mut self.bytes;
        out.extend_from_slice(self.head.as_bytes());
        digits(out, offset.0);
        out.extend_from_slice(self.source.as_bytes());
        out.len() + 1 - start
    }

    fn attributes(&mut self, event: &Event, offset: Offset) {
        let (out, receipt) = (&mut self.bytes, &self.received_text.1);
        optional(out, r#","subject":"#, event.subject.as_deref());
        optional(out, r#","time":"#, Some(event.time.as_deref().unwrap_or(receipt)));
        number(out, r#","sequence":"#, offset.0);
        if let Some(sequence) = event.sequence {
            number(out, r#","platformsequence":"#, sequence.0);
        }
        optional(out, r#","correlationid":"#, event.correlation.as_deref());
        optional(out, r#","partitionkey":"#, event.partition_key.as_deref());
        optional(out, r#","receivedtime":"#, Some(receipt));
    }

    /// The number of entries so far.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no entry was pushed.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The batch; none without entries.
    pub fn finish(mut self) -> Option<Batch> {
        // The memory limits count lengths, so the capacity must not be much larger.
        if self.bytes.capacity() - self.bytes.len() > self.bytes.len() / 4 {
            self.bytes.shrink_to_fit();
        }
        let some = !self.slots.is_empty();
        some.then(|| Batch::new(self.epoch, self.first, Bytes::from(self.bytes), self.slots.into_boxed_slice()))
    }
}

/// The attributes that identify an event.
#[derive(Deserialize)]
struct EnvelopeFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow)]
    platformsequence: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
}

/// The event of an envelope, without its times and further attributes.
pub(super) fn parse_event(json: &[u8], received: Timestamp) -> Option<Event> {
    let fields: EnvelopeFields<'_> = serde_json::from_slice(json).ok()?;
    let body = match (fields.data, fields.data_base64) {
        (Some(data), _) => Body::Json(ByteString::from(data.get())),
        (None, Some(text)) => Body::Binary(STANDARD.decode(&*text).ok()?.into()),
        (None, None) => return None,
    };
    Some(Event {
        kind: ByteString::from(&*fields.kind),
        subject: fields.subject.map(|subject| ByteString::from(&*subject)),
        time: None,
        sequence: fields.platformsequence.and_then(|digits| digits.parse().ok()).map(Sequence),
        correlation: None,
        partition_key: None,
        body,
        received,
    })
}

fn optional(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.extend_from_slice(name.as_bytes());
        text(out, value);
    }
}

/// A number as a JSON string: CloudEvents attributes have no 64-bit numbers.
fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    out.extend_from_slice(name.as_bytes());
    out.push(b'"');
    digits(out, value);
    out.push(b'"');
}

const DIGITS_MAX: usize = 20;

fn digits(out: &mut Vec<u8>, mut value: u64) {
    let mut reversed = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        reversed[at] = b'0' + u8::try_from(value % 10).expect("a digit");
        value /= 10;
        if value == 0 {
            return out.extend_from_slice(&reversed[at..]);
        }
    }
}

/// A JSON string. Escapes are rare.
fn text(out: &mut Vec<u8>, value: &str) {
    // Without an early exit the compiler vectorizes the loop.
    let escape = value.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\'));
    if escape {
        return serde_json::to_writer(out, value).expect("a string always serializes");
    }
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Json(json) => {
            out.extend_from_slice(br#","datacontenttype":"application/json","data":"#);
            out.extend_from_slice(json.as_bytes());
        }
        Body::Binary(bytes) => {
            out.extend_from_slice(br#","datacontenttype":"application/octet-stream","data_base64":""#);
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{BatchView, Gap, GapReason};

    const RECEIVED: Timestamp = Timestamp(1_777_901_509_570);

    fn source() -> Source {
        Source::new(&"acme".parse().unwrap(), &"queues".parse().unwrap())
    }

    fn wrap(events: &[Event], last: u64) -> Batch {
        let mut builder = BatchBuilder::new(&source(), Epoch(0x4f2a), Offset(last));
        builder.reserve(events);
        events.iter().for_each(|event| builder.push(event));
        builder.finish().unwrap()
    }

    #[test]
    fn an_envelope_header_matches_the_event_it_was_built_from() {
        for hostile in ["v2.users", "", "a\"b\\", "\",\"type\":\"", ",\"receivedtime\":\"x\""] {
            let text = ByteString::from(hostile);
            let event = Event { kind: text.clone(), subject: Some(text), ..full() };
            let batch = wrap(&[event], 0);
            let entry = batch.entry(0);
            let expected = EnvelopeHeader { epoch: Epoch(0x4f2a), kind: entry.kind_span(), received: RECEIVED };
            assert_eq!(EnvelopeHeader::of(entry.json), Some(expected), "{hostile}");
        }
        for other in [&b"{}"[..], br#"{"specversion":"1.0","id":"x-1""#, br#"{"specversion":"1.0","id":""#] {
            assert_eq!(EnvelopeHeader::of(other), None);
        }
    }

    fn full() -> Event {
        Event {
            kind: ByteString::from("v2.analytics.queues.observations"),
            subject: Some(ByteString::from("v2.analytics.queues.3fa85f64.observations")),
            time: Some(ByteString::from("2026-05-04T13:31:49.123Z")),
            sequence: Some(Sequence(u64::MAX)),
            correlation: Some(ByteString::from("c-1")),
            partition_key: Some(ByteString::from("3fa85f64")),
            body: Body::Json(ByteString::from(r#"{ "metric": 1.50 }"#)),
            received: RECEIVED,
        }
    }

    fn lines(batch: &Batch) -> Vec<String> {
        (0..batch.len()).map(|index| String::from_utf8(batch.entry(index).json.to_vec()).unwrap()).collect()
    }

    #[test]
    fn an_envelope_has_its_attributes_in_this_order_and_the_body_byte_for_byte() {
        let gap = Gap::between(GapReason::Jump, Some(Sequence(4)), Some(Sequence(9))).event(RECEIVED);
        let undecoded = Event::undecoded(Bytes::from_static(b"\xff\x00?"), RECEIVED);
        assert_eq!(
            lines(&wrap(&[full(), gap, undecoded], 16)),
            [
                concat!(
                    r#"{"specversion":"1.0","id":"4f2a-17","source":"/accounts/acme/streams/queues","#,
                    r#""type":"v2.analytics.queues.observations","subject":"v2.analytics.queues.3fa85f64.observations","#,
                    r#""time":"2026-05-04T13:31:49.123Z","sequence":"17","platformsequence":"18446744073709551615","#,
                    r#""correlationid":"c-1","partitionkey":"3fa85f64","receivedtime":"2026-05-04T13:31:49.570Z","#,
                    r#""datacontenttype":"application/json","data":{ "metric": 1.50 }}"#
                ),
                concat!(
                    r#"{"specversion":"1.0","id":"4f2a-18","source":"/accounts/acme/streams/queues","#,
                    r#""type":"trunkline.gap.v1","time":"2026-05-04T13:31:49.570Z","sequence":"18","#,
                    r#""receivedtime":"2026-05-04T13:31:49.570Z","datacontenttype":"application/json","#,
                    r#""data":{"reason":"jump","after":"4","before":"9","lost":4,"silence_ms":null}}"#
                ),
                concat!(
                    r#"{"specversion":"1.0","id":"4f2a-19","source":"/accounts/acme/streams/queues","#,
                    r#""type":"trunkline.undecoded.v1","time":"2026-05-04T13:31:49.570Z","sequence":"19","#,
                    r#""receivedtime":"2026-05-04T13:31:49.570Z","datacontenttype":"application/octet-stream","#,
                    r#""data_base64":"/wA/"}"#
                ),
            ]
        );
    }

    #[test]
    fn every_envelope_is_json_for_any_text_of_the_platform() {
        for hostile in ["", "\"", "\\", "a\nb", "\u{1}", "ü€😀", "\u{2028}"] {
            let mut event = full();
            event.kind = ByteString::from(hostile);
            event.subject = Some(ByteString::from(hostile));
            let batch = wrap(&[event], 0);
            let json: serde_json::Value = serde_json::from_slice(batch.entry(0).json).unwrap();
            assert_eq!((json["type"].as_str(), json["subject"].as_str()), (Some(hostile), Some(hostile)));
            let kind: String = serde_json::from_str(&format!("\"{}\"", batch.entry(0).kind())).unwrap();
            assert_eq!(kind, hostile, "the type is found without parsing");
        }
    }

    #[test]
    fn an_event_survives_the_round_trip_through_its_envelope() {
        let undecoded = Event::undecoded(Bytes::from_static(b"\xff\x00?"), RECEIVED);
        let mut odd = full();
        odd.subject = Some(ByteString::from("a\"\\\nb"));
        for event in [full(), undecoded, odd] {
            let batch = wrap(std::slice::from_ref(&event), 16);
            let same = Event { time: None, correlation: None, partition_key: None, ..event };
            assert_eq!(batch.entry(0).event(), Some(same));
        }
    }

    #[test]
    fn numbers_are_written_in_full() {
        for value in [0, 9, 10, 99, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            digits(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }

    #[test]
    fn a_stored_batch_is_read_back_as_it_was() {
        let mut later = full();
        later.received = Timestamp(RECEIVED.0 + 5);
        let batch = wrap(&[full(), later, full()], 41);
        let restored = Batch::restore(batch.epoch(), batch.first(), batch.bytes().clone(), &batch.index()).unwrap();
        assert_eq!((restored.first(), restored.last()), (Offset(42), Offset(44)));
        assert_eq!(lines(&restored), lines(&batch));
        for index in 0..3 {
            assert_eq!(restored.entry(index).kind(), "v2.analytics.queues.observations");
            assert_eq!(restored.entry(index).received, batch.entry(index).received);
        }
    }

    #[test]
    fn an_inconsistent_batch_is_rejected() {
        let batch = wrap(&[full(), full()], 0);
        let restore = |bytes: Bytes, index: &[u8]| Batch::restore(batch.epoch(), batch.first(), bytes, index);
        let (bytes, index) = (batch.bytes().clone(), batch.index());
        assert!(restore(bytes.slice(1..), &index).is_none(), "bytes are missing");
        assert!(restore(bytes.clone(), &index[..16]).is_none(), "an entry is missing");
        assert!(restore(bytes.clone(), &index[..31]).is_none(), "the index is torn");
        assert!(restore(bytes.clone(), &[]).is_none(), "the index is empty");
        let swapped = [&index[16..], &index[..16]].concat();
        assert!(restore(bytes, &swapped).is_none(), "the ends do not rise");
    }

    #[test]
    fn a_view_starts_where_the_reader_stopped() {
        let batch = Arc::new(wrap(&[full(), full(), full()], 0));
        let view = BatchView { batch, from: 1 };
        let offsets: Vec<u64> = view.entries().map(|entry| entry.mark.offset.0).collect();
        assert_eq!(offsets, [2, 3]);
    }
}
