//! The properties of every decoder on any bytes: it does not panic, and its result has what its callers rely on.
//!
//! One function per decoder. They use the public interface of the library only.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use reqwest::{
    Url, Version,
    header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Value, value::RawValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use trunkline::{
    config::{self, Environment},
    connector::{
        Connector, Credential, Endpoint, Failure, Frame, Item, Preparation, PreparationStep, RestResponse,
        genesys_notifications, genesys_sequenced,
    },
    coordination::{
        self, IncomingMessage,
        vault::{self, DamagedKey, RefreshToken, VaultValues},
    },
    listener::{IpNetwork, forwarded, host},
    model::{Batch, BatchBuilder, Body, Cursor, Epoch, Event, Offset, Secret, Size, Source, Span, Timestamp},
    network::{Proxies, Proxy},
    protocol::{
        lease::PeerMessage,
        refresh::{
            GENERATION_MAX,
            lifetime::{self, Claims, LIFETIME_MAX, LIFETIME_MIN, Lifetime, LifetimeHints},
        },
        retry_after,
    },
    store::redis::{
        Durability,
        values::{self, COUNT_END},
    },
    upstream::transport::websocket::{SocketEvent, UpgradeRequest, UpstreamSocket},
};

const RECEIVED: Timestamp = Timestamp(1_777_901_509_570);

/// A frame of a numbered stream: each element is an item, or the frame is stored as a whole.
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

/// The number of elements of a decoded frame. An empty list and an empty text are one heartbeat.
fn elements(frame: &str, items: &[Item]) -> Option<usize> {
    if matches!(items, [Item::Undecoded(_)]) {
        return None;
    }
    if frame.trim_ascii().is_empty() {
        return Some(1);
    }
    // The decoder accepts a form feed between two elements; JSON does not.
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
            Item::Undecoded(kept) => is_kept(kept, &frame, items.len()),
            Item::Position(_) | Item::Heartbeat | Item::ProbeAck | Item::Accepted | Item::Notice(_) => (),
        }
    }
    events.iter().for_each(|event| is_part_of(event, &frame));
    wrapped(&events);
    Some((frame, items))
}

/// Undecoded bytes are stored whole: the frame, or one element of several.
fn is_kept(kept: &Bytes, frame: &ByteString, items: usize) {
    let (whole, part) = (frame.as_bytes().as_ptr_range(), kept.as_ptr_range());
    assert!(whole.start <= part.start && part.end <= whole.end, "it is a slice of its frame");
    let is_value = serde_json::from_slice::<&RawValue>(kept).is_ok();
    assert!(kept == frame.as_bytes() || (items > 1 && is_value), "it is whole");
}

/// A body is a slice of its frame: the platform's bytes are neither changed nor copied.
fn is_part_of(event: &Event, frame: &ByteString) {
    let Body::Json(body) = &event.body else { panic!("a text has a JSON body") };
    let (whole, part) = (frame.as_bytes().as_ptr_range(), body.as_bytes().as_ptr_range());
    assert!(whole.start <= part.start && part.end <= whole.end, "a body is a slice of its frame");
    serde_json::from_str::<&RawValue>(body).expect("a body is JSON");
    assert!(!event.kind.is_empty(), "an event has a type");
    let is_own = event.kind.to_ascii_lowercase().starts_with("trunkline.");
    assert!(
        !is_own && !event.kind.contains(char::is_whitespace),
        "the type is not one of Trunkline's: {:?}",
        event.kind
    );
    for text in [Some(&event.kind), event.subject.as_ref(), event.correlation.as_ref()].into_iter().flatten() {
        assert!(!text.is_empty() && !text.contains(char::is_control), "CloudEvents permits it: {text:?}");
    }
}

/// The envelope around any event is a CloudEvent, and a stored batch can be read back.
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

/// White space of JSON.
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A stored batch: rejected, or every byte of it belongs to an entry.
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

/// The text of a parsed cursor parses to the same cursor.
pub fn cursor(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
}

/// A configuration: accepted, or rejected with at least one finding, each on one line.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment: Environment = [("ID", "id"), ("SECRET", "s3cret")].into_iter().collect();
    let Err(findings) = config::from_text("a.toml", text, &environment) else { return };
    assert!(findings.iter().count() > 0, "a refusal has a reason");
    for finding in findings.iter().map(ToString::to_string) {
        assert!(!finding.is_empty() && !finding.contains(['\n', '\x1b']), "one line each: {finding:?}");
    }
}

/// `Retry-After`, and after a line feed `Date`: a pause within its bounds, or none.
pub fn retry_after(data: &[u8]) {
    let Some((answered, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (text, date) = text.split_once('\n').map_or((text, None), |(text, date)| (text, Some(date)));
    if let Some(pause) = retry_after::of_answer(Some(text), date, Timestamp(i64::from_le_bytes(*answered))) {
        assert!((retry_after::RETRY_AFTER_MIN..=retry_after::RETRY_AFTER_MAX).contains(&pause), "{pause:?}");
    }
}

/// A token and its answer: the lifetime is within its bounds.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (token, expires_in) = text.split_once('\n').unwrap_or((text, "null"));
    let value: Value = serde_json::from_str(expires_in).unwrap_or(Value::Null);
    let stated = LifetimeHints {
        expires_in: lifetime::seconds(&value),
        claims: Claims::of(token),
        answered_at: retry_after::http_date(token),
    };
    let life = Lifetime::resolve(&stated, Duration::from_secs(600)).scheduled;
    assert!((LIFETIME_MIN..=LIFETIME_MAX).contains(&life), "{life:?}");
}

/// The values of a token vault's keys in Redis, one per line: parsed values are within bounds, and a damaged value is
/// named. The order: newest number, the token's number, lifetime and time left, pause, secret.
pub fn vault(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut value = || lines.next().filter(|line| *line != b"-").map(<[u8]>::to_vec);
    let millis =
        |value: Option<Vec<u8>>| value.and_then(|value| String::from_utf8(value).ok()?.parse().ok()).unwrap_or(-2);
    let (last, generation, lifetime) = (value(), value(), value());
    let (remaining, pause, secret) = (millis(value()), millis(value()), value());
    let values = VaultValues { last, generation, lifetime, secret, remaining, pause };
    let (content, damaged) = values.read();
    assert!(content.last < GENERATION_MAX, "there is a next number");
    assert!(content.pause.is_none_or(|pause| pause <= 2 * retry_after::RETRY_AFTER_MAX), "a pause ends");
    if let Some(token) = &content.token {
        assert!(
            token.generation <= content.last && token.lifetime <= LIFETIME_MAX && token.remaining <= token.lifetime
        );
        assert!(!token.remaining.is_zero() && Some(&token.secret) == values.secret.as_ref());
    }
    for (text, damage) in [(&values.last, DamagedKey::Generation), (&values.generation, DamagedKey::TokenGeneration)] {
        let bad = text.as_deref().is_some_and(|text| vault::number(text).is_none());
        assert_eq!(bad, damaged.contains(&damage), "an invalid number is reported");
    }
    let refresh = RefreshToken::read(values.generation.as_deref(), values.secret.clone());
    assert_eq!(refresh.is_err(), damaged.contains(&DamagedKey::TokenGeneration));
    assert!(refresh.is_ok_and(|token| token.is_none_or(|token| token.number < GENERATION_MAX)) || !damaged.is_empty());
}

/// The values of the other keys in Redis, one per line, after a line with their kind. Parsed values are within bounds, so
/// that the next number does not overflow; other values are none.
pub fn redis(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (what, rest) = text.split_once('\n').unwrap_or((text, ""));
    let lines: Vec<String> = rest.split('\n').map(str::to_owned).collect();
    let line = |at: usize| lines.get(at).map_or("", String::as_str);
    match what {
        "bounds" => looked(&lines),
        "claim" => claimed(&lines),
        "record" => {
            let record = coordination::values::record(line(0), line(1), lines.get(2).map(String::as_str));
            assert!(record.is_none_or(|record| record.fence.number < COUNT_END), "the next holder has a number");
        }
        "member" => {
            if let Some(life) = coordination::values::member(line(0), line(1)) {
                assert!(line(1).split(' ').count() >= 2 && !line(0).is_empty(), "{life:?}");
            }
        }
        "settings" => {
            let settings = coordination::values::shared_settings(line(0));
            let again = settings.as_deref().and_then(coordination::values::shared_settings);
            assert_eq!(again, settings, "settings are written as they were read");
        }
        "message" => match coordination::values::message(line(0) == "heartbeat", line(1)) {
            Some(IncomingMessage::Direct { note: PeerMessage::HandedOver { fence, .. }, .. }) => {
                assert!(fence.number < COUNT_END);
            }
            Some(IncomingMessage::Direct { .. } | IncomingMessage::Heartbeat { .. }) | None => (),
        },
        "entry" => {
            let mark = values::entry(line(0), &[b"event", line(1).as_bytes()]);
            assert!(mark.is_none_or(|mark| mark.offset.0 < COUNT_END), "an entry has a next one");
        }
        "cursor" => {
            let mark = values::cursor(line(0));
            assert!(mark.is_none_or(|mark| mark.offset.0 < COUNT_END), "a reader can continue after it");
        }
        _ => revoked(&lines),
    }
}

const DURABILITIES: [Durability; 2] = [Durability::Written, Durability::Replicated];

fn looked(answer: &[String]) {
    for extent in DURABILITIES.into_iter().filter_map(|durability| values::bounds(answer, durability)) {
        assert!(extent.last.0 < COUNT_END && extent.first.0 <= COUNT_END, "{extent:?}");
    }
}

fn claimed(answer: &[String]) {
    for state in DURABILITIES.into_iter().filter_map(|durability| values::claimed(answer, durability, RECEIVED)) {
        assert!(
            state.last.0 < COUNT_END && state.high_watermark <= state.last && state.fence.number < COUNT_END,
            "{state:?}"
        );
    }
}

/// Each field is parsed or named as unreadable, independently of the others.
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

/// Longer than any valid setting.
const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);

/// The text of a parsed duration, size or time parses to the same value.
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

/// Largest accepted message, in bytes.
const FRAME_MAX: usize = 1_000;
/// An answer that opens a WebSocket. `{accept}` is replaced by the value for the request.
const OPENED: &[u8] =
    b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n";
const ACCEPT: &[u8] = b"{accept}";

/// A platform that sends its bytes in pieces, is pending before each, and then closes the connection.
#[derive(Debug)]
struct Platform {
    sends: VecDeque<u8>,
    /// Bytes of one piece.
    piece: usize,
    /// It reads after the upgrade request.
    takes: bool,
    asked: Vec<u8>,
    is_idle: bool,
}

impl AsyncRead for Platform {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_idle = !self.is_idle;
        if self.is_idle {
            return Poll::Pending;
        }
        let len = self.piece.min(buffer.remaining()).min(self.sends.len());
        buffer.put_slice(&self.sends.drain(..len).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Platform {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.asked.ends_with(b"\r\n\r\n") {
            return if self.takes { Poll::Ready(Ok(bytes.len())) } else { Poll::Pending };
        }
        self.asked.extend_from_slice(bytes);
        if self.asked.ends_with(b"\r\n\r\n") {
            let accept = accept(&String::from_utf8_lossy(&self.asked));
            let sends: Vec<u8> = self.sends.drain(..).collect();
            self.sends = replaced(&sends, accept.as_bytes()).into();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The right `Sec-WebSocket-Accept`.
fn accept(request: &str) -> String {
    let key = request.lines().filter_map(|line| line.split_once(": "));
    let mut key = key.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key);
    derive_accept_key(key.next().expect("an upgrade has a key").as_bytes())
}

/// The bytes with the first placeholder replaced.
fn replaced(bytes: &[u8], accept: &[u8]) -> Vec<u8> {
    match bytes.windows(ACCEPT.len()).position(|window| window == ACCEPT) {
        Some(at) => [&bytes[..at], accept, &bytes[at + ACCEPT.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

/// Why no WebSocket was opened, or its frames and its end.
type Exchange = Result<(Vec<Frame>, Failure), String>;

/// Runs a socket on a platform that sends these bytes in pieces of this size.
#[expect(clippy::unwrap_in_result, reason = "a panic is a finding")]
fn exchange(sends: &[u8], piece: usize, takes: bool) -> Exchange {
    // Two polls for each byte, if each comes alone, and some for the request and the end.
    let mut polls = 2 * sends.len() + 100;
    let url = Url::parse("ws://platform.test/").expect("a URL");
    let upgrade = UpgradeRequest::new(&url, &Credential::InUrl, &Secret::new("t")).expect("an upgrade");
    let platform = Platform { sends: sends.iter().copied().collect(), piece, takes, asked: Vec::new(), is_idle: false };
    let opened = {
        let mut opening = pin!(UpstreamSocket::upgrade(Box::new(platform), upgrade, FRAME_MAX));
        until_ready(&mut polls, |cx| opening.as_mut().poll(cx))
    };
    let mut socket = opened.map_err(|error| error.to_string())?.map_err(|failure| failure.to_string())?;
    let (mut brought, mut beginnings) = (Vec::new(), 0);
    loop {
        match until_ready(&mut polls, |cx| socket.poll_frame(cx)) {
            Ok(SocketEvent::Frame(frame)) => brought.push(frame),
            Ok(SocketEvent::PartialFrame) => beginnings += 1,
            Err(failure) => {
                // One message is in progress, and one may begin inside it, which ends the session.
                assert!(beginnings <= brought.len() + 2, "a message begins once");
                return Ok((brought, failure));
            }
        }
    }
}

/// Polls until it is ready, a limited number of times.
fn until_ready<T>(polls: &mut usize, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    loop {
        *polls = polls.checked_sub(1).expect("it ends with its bytes");
        if let Poll::Ready(ready) = poll(&mut Context::from_waker(Waker::noop())) {
            return ready;
        }
    }
}

fn is_one_short_line(text: &str) -> bool {
    text.chars().count() <= 1_000 && !text.chars().any(char::is_control)
}

/// The answer to an upgrade, after a byte with the size of its pieces: the pieces make no difference, and a rejection has
/// a short reason.
pub fn handshake(data: &[u8]) {
    let Some((piece, answer)) = data.split_first() else { return };
    let whole = exchange(answer, usize::MAX, true);
    assert_eq!(whole, exchange(answer, usize::from(*piece).max(1), true), "the pieces make no difference");
    match whole {
        Err(why) => assert!(!why.is_empty() && is_one_short_line(&why), "{why:?}"),
        Ok(_) => {
            let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
            let parts = ["101", "websocket", "upgrade", "{accept}"];
            assert!(parts.iter().all(|part| text.contains(part)), "it is the answer to the request: {text:?}");
        }
    }
}

/// The bytes after a successful upgrade, after a byte with the size of their pieces: messages and end follow RFC 6455, in
/// any pieces, also if the platform reads nothing.
pub fn frames(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    let sends = [OPENED, bytes].concat();
    let (brought, failure) = exchange(&sends, usize::MAX, true).expect("it opens");
    let expected = ExpectedFrames::of(bytes);
    assert_eq!(brought, expected.frames);
    let is_right = match (&failure, expected.end) {
        (Failure::Closed { code, reason }, End::Lost) => *code == 1006 && is_one_short_line(reason),
        (Failure::Closed { code, reason }, End::Closed(expected)) => *code == expected && reason.len() <= 125,
        (Failure::Unreadable(why), End::Unreadable) => is_one_short_line(why),
        (Failure::Oversize, End::Oversize) => true,
        _ => false,
    };
    assert!(is_right, "{failure:?} is not {:?}", expected.end);
    for takes in [true, false] {
        let pieces = exchange(&sends, usize::from(*piece).max(1), takes);
        assert_eq!(pieces, Ok((brought.clone(), failure.clone())), "the pieces make no difference");
    }
}

/// The frames that RFC 6455 gives for some bytes.
#[derive(Debug)]
struct ExpectedFrames {
    frames: Vec<Frame>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The bytes end, or a control frame is malformed.
    Lost,
    Closed(u16),
    /// A data frame breaks the protocol, or a text is not UTF-8.
    Unreadable,
    Oversize,
}

struct Header {
    first: u8,
    is_masked: bool,
    len: u64,
}

impl Header {
    fn of<'a>(bytes: &mut &'a [u8]) -> Option<Self> {
        let mut take = |len: usize| -> Option<&'a [u8]> {
            let (taken, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Some(taken)
        };
        let [first, second] = *take(2)? else { return None };
        let extended = match second & 0x7f {
            126 => take(2)?,
            127 => take(8)?,
            _ => &[second & 0x7f][..],
        };
        let len = extended.iter().fold(0_u64, |len, byte| (len << 8) | u64::from(*byte));
        let is_masked = second & 0x80 != 0;
        if is_masked {
            take(4)?;
        }
        Some(Self { first, is_masked, len })
    }
}

impl ExpectedFrames {
    fn of(mut bytes: &[u8]) -> Self {
        let (mut frames, mut begun) = (Vec::new(), None);
        let end = loop {
            let Some(header) = Header::of(&mut bytes) else { break End::Lost };
            match next(&header, &mut bytes, &mut begun) {
                Ok(frame) => {
                    let broken = frame.as_ref().is_some_and(|(frame, opcode)| is_broken(frame, *opcode));
                    frames.extend(frame.map(|(frame, _)| frame));
                    if broken {
                        break End::Unreadable;
                    }
                }
                Err(end) => break end,
            }
        };
        Self { frames, end }
    }
}

fn is_broken(frame: &Frame, opcode: u8) -> bool {
    opcode == 1 && matches!(frame, Frame::Binary(_))
}

/// A partial message: its opcode, and its bytes so far.
type PartialMessage = Option<(u8, Vec<u8>)>;

fn next(header: &Header, bytes: &mut &[u8], begun: &mut PartialMessage) -> Result<Option<(Frame, u8)>, End> {
    let (opcode, reserved, is_final) = (header.first & 0x0f, header.first & 0x70, header.first & 0x80 != 0);
    if opcode >= 8 {
        let is_malformed = opcode > 10 || reserved != 0 || header.is_masked || !is_final || header.len > 125;
        let payload = if is_malformed { None } else { payload(header.len, bytes) };
        let payload = payload.ok_or(End::Lost)?;
        return if opcode == 8 { Err(closed(payload)) } else { Ok(Some((Frame::Pong, opcode))) };
    }
    if opcode > 2 {
        return Err(End::Unreadable);
    }
    if header.len > FRAME_MAX as u64 {
        return Err(End::Oversize);
    }
    let payload = payload(header.len, bytes).ok_or(End::Lost)?;
    if reserved != 0 || header.is_masked || (opcode == 0) != begun.is_some() {
        return Err(End::Unreadable);
    }
    let (opcode, message) = begun.get_or_insert_with(|| (opcode, Vec::new()));
    message.extend_from_slice(payload);
    if message.len() > FRAME_MAX {
        return Err(End::Oversize);
    }
    let opcode = *opcode;
    Ok(begun.take_if(|_| is_final).map(|(_, message)| (frame(opcode, message.into()), opcode)))
}

fn payload<'a>(len: u64, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (payload, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
    *bytes = rest;
    Some(payload)
}

fn frame(opcode: u8, message: Bytes) -> Frame {
    match opcode {
        1 => ByteString::try_from(message.clone()).map_or(Frame::Binary(message), Frame::Text),
        _ => Frame::Binary(message),
    }
}

/// RFC 6455 sections 5.5.1 and 7.4: a code that must not be sent is a protocol error.
fn closed(payload: &[u8]) -> End {
    match payload {
        [] => End::Closed(1005),
        [high, low, reason @ ..] if std::str::from_utf8(reason).is_ok() => match u16::from_be_bytes([*high, *low]) {
            code @ (1000..=1003 | 1007..=1013 | 3000..=4999) => End::Closed(code),
            _ => End::Closed(1002),
        },
        _ => End::Lost,
    }
}

/// Statuses with different handling.
const STATUSES: [u16; 8] = [200, 204, 302, 401, 403, 404, 429, 503];
const CONFIGURED: [&str; 4] = [
    "v2.users.*?presence&routingStatus",
    "v2.analytics.queues.*.observations",
    "v2.routing.queues.q1.users",
    "v2.users.u1.presence",
];

/// Answers of REST calls in order, separated by NUL, each after a byte for its status: the preparation of a channel ends,
/// its calls are valid, and every configured topic is subscribed or named.
pub fn rest(data: &[u8]) {
    let mut answers = data.split(|byte| *byte == 0).filter_map(|answer| answer.split_first()).map(answer);
    let connector = Connector::Notifications(genesys_notifications::Settings {
        topics: CONFIGURED.map(str::to_owned).to_vec(),
        channel_life: Duration::from_secs(86_400),
        discovery: Duration::from_secs(60),
    });
    let Some(endpoint) = prepared(connector.prepare(&[]), &mut answers) else { return };
    let Some(endpoint) = prepared(connector.refresh_subscriptions(&endpoint), &mut answers) else { return };
    let Some(_next) = prepared(connector.prepare(&endpoint.topics), &mut answers) else { return };
    for request in connector.snapshot(Some(&endpoint)) {
        let mut request = Some(request);
        while let (Some(made), Some(answer)) = (&request, answers.next()) {
            request = connector.snapshot_next(made, &answer);
        }
    }
}

fn answer((status, body): (&u8, &[u8])) -> RestResponse {
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    RestResponse { status, retry_after: None, body: Bytes::copy_from_slice(body) }
}

fn prepared(
    (mut preparation, mut step): (Preparation, PreparationStep),
    answers: &mut impl Iterator<Item = RestResponse>,
) -> Option<Endpoint> {
    // At most two look-ups, the channel and its topics are called without an answer.
    let mut unanswered = 4;
    loop {
        step = match step {
            PreparationStep::Call(request) => {
                let target = &request.target;
                assert!(
                    target.starts_with('/') || target.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("http"))
                );
                assert!(!target.contains(char::is_whitespace) && !target.contains(char::is_control), "{target:?}");
                match answers.next() {
                    Some(answer) => preparation.on_response(&answer),
                    None => {
                        unanswered -= 1;
                        assert!(unanswered >= 0, "it ends");
                        preparation.on_no_response("gone".to_owned())
                    }
                }
            }
            PreparationStep::Ready(endpoint) => {
                is_accounted_for(&endpoint);
                return Some(endpoint);
            }
            PreparationStep::Failed(failure) => {
                assert!(is_one_short_line(&failure.to_string()), "{failure}");
                return None;
            }
        };
    }
}

fn is_accounted_for(endpoint: &Endpoint) {
    assert!(endpoint.topics.len() <= genesys_notifications::TOPICS_MAX);
    for topic in CONFIGURED {
        let (start, rest) = topic.split_once('*').unwrap_or((topic, ""));
        let is_subscribed = endpoint.topics.iter().any(|topic| topic.starts_with(start) && topic.ends_with(rest));
        let mut named = endpoint.refused.iter().flat_map(|refused| [&refused.topic, &refused.request]);
        assert!(is_subscribed || named.any(|named| named.starts_with(start)), "{topic}: {endpoint:?}");
    }
    for refused in &endpoint.refused {
        assert!(is_one_short_line(&refused.reason), "{refused:?}");
    }
}

/// The variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, one per line, and then a URL: an error quotes
/// nothing, a printed proxy has no login, and loopback addresses are reached directly.
pub fn proxies(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines: Vec<&str> = text.split('\n').collect();
    let names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    let value = |name: &str| names.iter().position(|known| *known == name).and_then(|at| lines.get(at).copied());
    for proxy in lines.iter().filter_map(|line| Proxy::parse(line).ok()) {
        assert_eq!(Proxy::parse(proxy.url_with_login().as_str()).as_ref(), Ok(&proxy), "a login is decoded once");
        assert!(Proxy::parse(&proxy.to_string()).is_ok_and(|shown| shown.authorization().is_none()));
        assert!(proxy.url_with_login().port_or_known_default().is_some() && proxy.url_with_login().has_host());
    }
    match Proxies::of_environment(value, &[]) {
        Ok(proxies) => {
            for proxy in lines.iter().filter_map(|line| proxies.of(&Url::parse(line).ok()?)) {
                assert!(!proxy.to_string().contains('@'), "no login is shown");
            }
            assert_eq!(proxies.of(&Url::parse("wss://localhost:1/").expect("a URL")), None);
        }
        Err(error) => assert!(error.to_string().len() < 200),
    }
}

/// A client's `Forwarded` or `X-Forwarded-For` does not change what the proxy adds after it.
pub fn forwarded(data: &[u8]) {
    let proxy = IpAddr::from([10, 0, 0, 1]);
    let trusted: [IpNetwork; 1] = ["10.0.0.0/8".parse().expect("a network")];
    let client = IpAddr::from([192, 0, 2, 7]);
    for (name, adds) in [(FORWARDED, ", for=192.0.2.7"), (HeaderName::from_static("x-forwarded-for"), ", 192.0.2.7")] {
        let own = HeaderValue::from_bytes(data);
        let both = HeaderValue::from_bytes(&[data, adds.as_bytes()].concat());
        let (Ok(own), Ok(both)) = (own, both) else { return };
        let found = |value| forwarded::client(&HeaderMap::from_iter([(name.clone(), value)]), proxy, &trusted);
        assert_eq!(found(both), client, "{name}: the address from the proxy counts");
        found(own);
    }
}

/// `Host`, once or several times: an accepted one is one host, and a rejection is short.
pub fn host(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for value in data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        headers.append(HOST, value);
    }
    match host::check(Version::HTTP_11, &headers) {
        Ok(()) => {
            let value = headers.get(HOST).and_then(|value| value.to_str().ok()).expect("a host");
            assert!(headers.len() == 1 && !value.is_empty() && !value.contains(['/', '@', ' ', '"', '\\', '?', '#']));
        }
        Err(error) => assert!(is_one_short_line(&error.to_string()), "{error}"),
    }
}
