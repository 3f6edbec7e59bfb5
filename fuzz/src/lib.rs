//! What must hold of every decoder, whatever bytes it is given: no panic, and for each what its reader relies on.
//!
//! A function a decoder. They call what the library offers everybody, and know nothing of its inside.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use serde_json::{Value, value::RawValue};
use trunkline::{
    config::{self, Environment},
    connector::{Connector, Frame, Item, genesys_notifications, genesys_sequenced},
    model::{Batch, BatchBuilder, Body, Cursor, Epoch, Event, Offset, Size, Source, Span, Timestamp},
    protocol::{
        lease::Note,
        refresh::{
            GENERATION_MAX,
            lifetime::{self, Claims, LIFETIME_MAX, LIFETIME_MIN, Lifetime, Stated},
        },
        retry_after,
    },
    store::redis::{
        Durability,
        registry::Heard,
        values::{self, COUNT_END},
        vault::{self, Damaged, RefreshToken, Values},
    },
};

const RECEIVED: Timestamp = Timestamp(1_777_901_509_570);

/// A frame of a numbered stream: read as a whole, or kept as a whole.
pub fn sequenced(data: &[u8]) {
    let settings = genesys_sequenced::Settings {
        url: "wss://platform.test/stream".to_owned(),
        placement: genesys_sequenced::Placement::Query,
        snapshot_url: None,
    };
    let Some((frame, items)) = decode(&Connector::Sequenced(settings), data) else { return };
    if let Some(list) = elements(&frame, &items) {
        assert_eq!(items.len(), list, "each element is one item");
    }
}

/// The elements of a frame that was read; an empty list and an empty text are one sign of life.
fn elements(frame: &str, items: &[Item]) -> Option<usize> {
    if items.iter().any(|item| matches!(item, Item::Undecoded(_))) {
        assert_eq!(items.len(), 1, "a frame is kept as a whole or not at all");
        return None;
    }
    if frame.trim_ascii().is_empty() {
        return Some(1);
    }
    // Between two elements a form feed is let pass, which JSON does not know.
    let frame = frame.replace('\x0c', " ");
    match serde_json::from_str::<Vec<&RawValue>>(&frame) {
        Ok(list) => Some(list.len().max(1)),
        Err(_) => {
            assert!(serde_json::from_str::<&RawValue>(&frame).is_ok(), "what was read is JSON");
            Some(1)
        }
    }
}

/// A frame of a notification channel: one item.
pub fn notifications(data: &[u8]) {
    let settings = genesys_notifications::Settings {
        topics: vec!["v2.users.*.presence".to_owned()],
        channel_life: Duration::from_secs(86_400),
        discovery: Duration::from_secs(60),
    };
    if let Some((_, items)) = decode(&Connector::Notifications(settings), data) {
        assert_eq!(items.len(), 1, "a frame is one item");
    }
}

/// Decodes a text frame and checks what holds for every connector.
fn decode(connector: &Connector, data: &[u8]) -> Option<(ByteString, Vec<Item>)> {
    let frame = ByteString::try_from(Bytes::copy_from_slice(data)).ok()?;
    let mut items = Vec::new();
    connector.decode(Frame::Text(frame.clone()), RECEIVED, &mut items);
    assert!(!items.is_empty(), "nothing of a frame is dropped");
    let mut events = Vec::new();
    for item in &items {
        match item {
            Item::Event(event) => events.push(event.clone()),
            Item::Undecoded(kept) => assert_eq!(*kept, *frame.as_bytes(), "what cannot be read is kept whole"),
            Item::Alive | Item::Answer | Item::Notice(_) => (),
        }
    }
    events.iter().for_each(|event| is_part_of(event, &frame));
    wrapped(&events);
    Some((frame, items))
}

/// The platform's bytes are handed on untouched, without a copy.
fn is_part_of(event: &Event, frame: &ByteString) {
    let Body::Json(body) = &event.body else { panic!("a text has a JSON body") };
    let (whole, part) = (frame.as_bytes().as_ptr_range(), body.as_bytes().as_ptr_range());
    assert!(whole.start <= part.start && part.end <= whole.end, "a body is a slice of its frame");
    serde_json::from_str::<&RawValue>(body).expect("a body is JSON");
    assert!(!event.kind.is_empty(), "an event has a type");
}

/// Whatever a platform says, the envelope around it is a CloudEvent, and what is stored can be read back.
fn wrapped(events: &[Event]) {
    let (account, stream) = ("acme".parse().expect("a name"), "queues".parse().expect("a name"));
    let mut builder = BatchBuilder::new(&Source::new(&account, &stream), Epoch(7), Offset(41));
    builder.reserve(events);
    events.iter().for_each(|event| builder.push(event));
    let Some(batch) = builder.finish() else { return };
    let again = Batch::restore(Epoch(7), Offset(42), batch.bytes().clone(), &batch.index());
    let again = again.expect("what was written is read back");
    for (index, event) in events.iter().enumerate() {
        let entry = batch.entry(index);
        assert_eq!(entry.json, again.entry(index).json);
        let envelope: Envelope = serde_json::from_slice(entry.json).expect("an envelope is JSON");
        let Body::Json(body) = &event.body else { continue };
        assert_eq!(envelope["data"].get(), body.trim_matches(WHITESPACE), "data is untouched");
        let kind: String = serde_json::from_str(envelope["type"].get()).expect("a type is a text");
        assert_eq!(kind, *event.kind);
        if event.kind.len() < usize::from(u16::MAX) / 6 {
            assert_eq!(format!("\"{}\"", entry.kind()), envelope["type"].get(), "the index finds the type");
        }
    }
}

type Envelope<'a> = std::collections::BTreeMap<String, &'a RawValue>;

/// JSON's own.
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A stored batch: refused, or every byte of it belongs to an entry.
pub fn batch(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<10>() else { return };
    let [len, extra, first @ ..] = *head;
    let first = Offset((u64::from_le_bytes(first) >> 1).max(1));
    let (index, bytes) = rest.split_at(rest.len().min(usize::from(len) * 16 + usize::from(extra % 16)));
    let Some(batch) = Batch::restore(Epoch(1), first, Bytes::copy_from_slice(bytes), index) else { return };
    assert_eq!(batch.index(), index, "the index is what was read");
    assert_eq!(batch.last().0 - batch.first().0 + 1, batch.len() as u64);
    let entries: Vec<_> = (0..batch.len()).map(|at| batch.entry(at)).collect();
    assert_eq!(entries.iter().flat_map(|entry| entry.json).copied().collect::<Vec<u8>>(), bytes);
    assert!(entries.iter().all(|entry| entry.kind().len() <= entry.json.len()));
}

/// A cursor prints back what was read.
pub fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
}

/// A configuration: taken, or refused with at least one finding, each on a line of its own.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment: Environment = [("ID", "id"), ("SECRET", "s3cret")].into_iter().collect();
    let Err(findings) = config::from_text("a.toml", text, &environment) else { return };
    assert!(findings.iter().count() > 0, "a refusal has a reason");
    for finding in findings.iter().map(ToString::to_string) {
        assert!(!finding.is_empty() && !finding.contains(['\n', '\x1b']), "one line each: {finding:?}");
    }
}

/// `Retry-After`: a pause within its bounds, or none.
pub fn retry_after(data: &[u8]) {
    let Some((answered, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Some(pause) = retry_after::of_answer(Some(text), None, Timestamp(i64::from_le_bytes(*answered))) {
        assert!((retry_after::RETRY_AFTER_MIN..=retry_after::RETRY_AFTER_MAX).contains(&pause), "{pause:?}");
    }
}

/// What a token and the answer it came in tell of its life: some life within its bounds, whatever they say.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (token, expires_in) = text.split_once('\n').unwrap_or((text, "null"));
    let value: Value = serde_json::from_str(expires_in).unwrap_or(Value::Null);
    let stated = Stated {
        expires_in: lifetime::seconds(&value),
        claims: Claims::of(token),
        answered: retry_after::http_date(token),
    };
    let life = Lifetime::weigh(&stated, Duration::from_secs(600)).scheduled;
    assert!((LIFETIME_MIN..=LIFETIME_MAX).contains(&life), "{life:?}");
}

/// The values of a token vault's keys in Redis, a line each: whatever stands there, what is read is within bounds, and a
/// damaged value is named. The order: newest number, the token's number, lifetime and time left, pause, secret.
pub fn vault(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut value = || lines.next().filter(|line| *line != b"-").map(<[u8]>::to_vec);
    let millis =
        |value: Option<Vec<u8>>| value.and_then(|value| String::from_utf8(value).ok()?.parse().ok()).unwrap_or(-2);
    let (last, generation, lifetime) = (value(), value(), value());
    let (left, pause, secret) = (millis(value()), millis(value()), value());
    let values = Values { last, generation, lifetime, secret, left, pause };
    let (content, damaged) = values.read();
    assert!(content.last < GENERATION_MAX, "there is a next number");
    assert!(content.pause.is_none_or(|pause| pause <= 2 * retry_after::RETRY_AFTER_MAX), "a pause ends");
    if let Some(token) = &content.token {
        assert!(token.generation <= content.last && token.lifetime <= LIFETIME_MAX && token.left <= token.lifetime);
        assert!(!token.left.is_zero() && Some(&token.secret) == values.secret.as_ref());
    }
    for (text, damage) in [(&values.last, Damaged::Generation), (&values.generation, Damaged::TokenGeneration)] {
        let bad = text.as_deref().is_some_and(|text| vault::number(text).is_none());
        assert_eq!(bad, damaged.contains(&damage), "what is no number is told");
    }
    let refresh = RefreshToken::read(values.generation.as_deref(), values.secret.clone());
    assert_eq!(refresh.is_err(), damaged.contains(&Damaged::TokenGeneration));
    assert!(refresh.is_ok_and(|token| token.is_none_or(|token| token.number < GENERATION_MAX)) || !damaged.is_empty());
}

/// The values of the other keys in Redis, a line each, after one that says which: what is read is within bounds, so that
/// whoever counts on from there does not wrap; anything else is none.
pub fn redis(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (what, rest) = text.split_once('\n').unwrap_or((text, ""));
    let lines: Vec<String> = rest.split('\n').map(str::to_owned).collect();
    let line = |at: usize| lines.get(at).map_or("", String::as_str);
    match what {
        "look" => looked(&lines),
        "claim" => claimed(&lines),
        "record" => {
            let record = values::record(line(0), line(1), lines.get(2).map(String::as_str));
            assert!(record.is_none_or(|record| record.fence.number < COUNT_END), "the next holder has a number");
        }
        "member" => {
            if let Some(life) = values::life(line(0), line(1)) {
                assert!(line(1).split(' ').count() >= 2 && !line(0).is_empty(), "{life:?}");
            }
        }
        "terms" => {
            let said = values::terms(line(0));
            assert_eq!(said.as_deref().and_then(values::terms), said, "settings are said as they were read");
        }
        "word" => match values::heard(line(0) == "beat", line(1)) {
            Some(Heard::Note { note: Note::Given { fence, .. }, .. }) => assert!(fence.number < COUNT_END),
            Some(Heard::Note { .. } | Heard::Beat { .. }) | None => (),
        },
        "entry" => {
            let mark = values::entry(line(0), &[b"event", line(1).as_bytes()]);
            assert!(mark.is_none_or(|mark| mark.offset.0 < COUNT_END), "an entry can be followed");
        }
        "cursor" => {
            let mark = values::cursor(line(0));
            assert!(mark.is_none_or(|mark| mark.offset.0 < COUNT_END), "a reader can go on behind it");
        }
        _ => revoked(&lines),
    }
}

const DURABILITIES: [Durability; 2] = [Durability::Written, Durability::Replicated];

fn looked(answer: &[String]) {
    for extent in DURABILITIES.into_iter().filter_map(|durability| values::extent(answer, durability)) {
        assert!(extent.last.0 < COUNT_END && extent.first.0 <= COUNT_END, "{extent:?}");
    }
}

fn claimed(answer: &[String]) {
    for state in DURABILITIES.into_iter().filter_map(|durability| values::claimed(answer, durability, RECEIVED)) {
        assert!(state.last.0 < COUNT_END && state.safe <= state.last && state.fence.number < COUNT_END, "{state:?}");
    }
}

/// Each field is read or named; none keeps another from being read.
fn revoked(lines: &[String]) {
    let split = |line: &String| line.split_once(' ').map(|(whose, at)| (whose.to_owned(), at.to_owned()));
    let found: std::collections::BTreeMap<String, String> = lines.iter().filter_map(split).collect();
    let found: Vec<_> = found.into_iter().collect();
    let (revoked, unreadable) = values::revocations(&found);
    assert!(
        revoked.len() + unreadable.len() <= found.len()
            && (found.is_empty() || !(revoked.is_empty() && unreadable.is_empty()))
    );
}

/// No setting is longer.
const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Durations, sizes and times of a configuration or a query print back what was read.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(span) = text.parse::<Span>().ok().filter(|span| span.0 < CENTURY) {
        assert_eq!(span.to_string().parse(), Ok(span), "{text:?}");
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size), "{text:?}");
    }
    if let Some(time) = Timestamp::parse(text) {
        assert_eq!(Timestamp::parse(&time.to_string()), Some(time), "{text:?}");
    }
}
