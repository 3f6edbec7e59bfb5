//! Genesys-style sequenced streams: JSON arrays of numbered events, resumed by `?sequenceId=`.
//!
//! The token goes into the `Authorization` header of the upgrade, or into the query as `auth_token`. With the query the
//! socket opens even if the token is invalid, and the first frame is `{"error":"invalid_token"}`
//! (docs/platforms/genesys-cloud.md, "Sequenced streams").

use std::{fmt, time::Duration};

use bytestring::ByteString;
use schemars::JsonSchema;
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Capabilities, CheckContext, CloseCode, Credential, DeliveryTerms, Dialect, Endpoint, Guarantee, Item, Liveness,
    Notice, Opening, Overlap, Preparation, PreparationStep, Probe, RestRequest, Resume, SettingFinding, SettingKey,
    Transport, genesys,
    json::{self, LenientValue, MemberName, Members, Metadata},
};
use crate::model::{Body, Event, OverflowPolicy, Position, Sequence, Span, Timestamp};

/// Where the token is sent when a socket is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// `Authorization: Bearer`.
    #[default]
    Header,
    /// The query parameter `auth_token`, for platforms that require it. Servers often log URLs.
    Query,
}

/// Numbered events, resumed by `sequenceId`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The WebSocket URL without the resume parameter.
    #[schemars(extend("format" = "ws-url"))]
    pub url: String,
    /// Where the token is sent.
    #[serde(rename = "auth", default)]
    pub placement: Placement,
    /// The URL of the current state, which is fetched after a gap. Without it no snapshot follows a gap.
    #[schemars(extend("format" = "http-url"))]
    pub snapshot_url: Option<String>,
}

/// A platform that takes the token in the query refuses it within this time.
const REFUSAL_WAIT: Duration = Duration::from_millis(250);

/// A session is live after this time even without an answer to the probe: the upgrade proved the token.
const PROBE_ACK_WAIT: Duration = Duration::from_secs(2);

/// The value of `connector` in the configuration.
pub const NAME: &str = "genesys-sequenced";

/// The query parameters that Trunkline adds.
const RESUME_PARAMETER: &str = "sequenceId";
const TOKEN_PARAMETER: &str = "auth_token";

/// The `type` of an event without one.
const KIND_DEFAULT: &str = "genesys-sequenced.event";

/// Reports a silence that outlasts the replay window, and parameters of the URL that the connector adds itself.
fn check(context: &CheckContext<'_>) -> Vec<SettingFinding> {
    let CheckContext { silence_max, retention, parameters, .. } = context;
    let late = (silence_max >= retention).then(|| {
        let text = format!(
            "{silence_max} is not below retention, {retention}: a dead socket would be detected too late, when the \
             platform can no longer replay the missed events"
        );
        SettingFinding::mistake(SettingKey::Stream("silence_max"), text)
    });
    let reserved = [RESUME_PARAMETER, TOKEN_PARAMETER].into_iter();
    let reserved = reserved.filter(|name| parameters.iter().any(|parameter| parameter == name));
    let reserved = reserved.map(|name| {
        let text = format!("the connector adds the parameter {name}; remove it");
        SettingFinding::mistake(SettingKey::Stream("url"), text)
    });
    late.into_iter().chain(reserved).collect()
}

impl Dialect for Settings {
    fn kind_default(&self) -> &str {
        KIND_DEFAULT
    }

    fn capabilities(&self) -> Capabilities {
        let liveness = match self.placement {
            Placement::Header => Liveness::ReplyOrQuietFor(PROBE_ACK_WAIT),
            Placement::Query => Liveness::QuietFor(REFUSAL_WAIT),
        };
        Capabilities {
            transport: Transport::WebSocket,
            opening: Opening::default(),
            resume: Resume::Sequence,
            overlap: Overlap::Duplicate,
            probe: Probe::Ping,
            liveness,
            endpoint_lifetime: None,
            refresh_interval: None,
        }
    }

    fn socket_url(&self) -> Option<&str> {
        Some(&self.url)
    }

    fn prepare(&self, _subscribed: &[String]) -> (Preparation, PreparationStep) {
        let credential = match self.placement {
            Placement::Header => Credential::Header,
            Placement::Query => Credential::Query(TOKEN_PARAMETER.to_owned()),
        };
        Preparation::ready(Endpoint {
            url: self.url.clone(),
            credential,
            id: None,
            topics: Vec::new(),
            refused: Vec::new(),
            subscribed: true,
            refresh_in: None,
        })
    }

    fn resume_url(&self, url: &str, position: &Position) -> String {
        let separator = if url.contains('?') { '&' } else { '?' };
        format!("{url}{separator}{RESUME_PARAMETER}={position}")
    }

    /// Reads an array of objects, one object, or nothing. An element that is not an event is undecoded alone, if the
    /// frame holds others.
    fn decode(&self, frame: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
        decode(frame, received, items);
    }

    fn snapshot(&self, _endpoint: Option<&Endpoint>) -> Vec<RestRequest> {
        self.snapshot_url.as_deref().map(RestRequest::get).into_iter().collect()
    }

    fn close_codes(&self) -> &[CloseCode] {
        &genesys::CLOSE_CODES
    }

    fn guarantee(&self, terms: &DeliveryTerms) -> Guarantee {
        let snapshot = match self.snapshot_url {
            Some(_) => "and a snapshot follows the gap",
            None => "and no snapshot follows, because snapshot_url is not set",
        };
        let overflow = match terms.overflow {
            OverflowPolicy::Backpressure => {
                format!("{}, the socket is not read until there is room", terms.when_full())
            }
            OverflowPolicy::DropOldest => terms.dropped(),
        };
        Guarantee {
            lost: format!(
                "nothing if a disconnection is shorter than the replay window of {}; \
                 after a longer one, events that the platform no longer has; a gap marks them (retention), {snapshot}; \
                 {overflow}",
                Span(terms.retention)
            ),
            duplicated: "nothing: repeated events are recognised by their sequence number".to_owned(),
            reordered: "nothing: events are stored in the order of their sequence numbers".to_owned(),
        }
    }

    fn check(&self, context: &CheckContext<'_>) -> Vec<SettingFinding> {
        check(context)
    }
}

fn decode(frame: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
    let before = items.len();
    let is_read = read_events(frame, received, items).is_some();
    let is_undecoded = |item: &Item| matches!(item, Item::Undecoded(_));
    if !is_read || items[before..].iter().all(is_undecoded) {
        items.truncate(before);
        items.push(Item::Undecoded(frame.as_bytes().clone()));
    }
}

/// Parses each element in place, in one pass: an element ends where the parser stops.
fn read_events(frame: &ByteString, received: Timestamp, items: &mut Vec<Item>) -> Option<()> {
    let text: &str = frame;
    let body = text.trim_ascii();
    if body.is_empty() {
        // A keepalive.
        items.push(Item::Heartbeat);
        return Some(());
    }
    let Some(list) = body.strip_prefix('[') else {
        let end = read_event(frame, body, received, items)?;
        return body[end..].trim_ascii().is_empty().then_some(());
    };
    let mut rest = list.trim_ascii_start();
    if let Some(behind) = rest.strip_prefix(']') {
        items.push(Item::Heartbeat);
        return behind.is_empty().then_some(());
    }
    loop {
        let end = read_event(frame, rest, received, items)?;
        rest = rest[end..].trim_ascii_start();
        if let Some(more) = rest.strip_prefix(',') {
            rest = more.trim_ascii_start();
        } else {
            return (rest == "]").then_some(());
        }
    }
}

/// Reads the object at the start of `text`. Returns its length in bytes.
fn read_event(frame: &ByteString, text: &str, received: Timestamp, items: &mut Vec<Item>) -> Option<usize> {
    let mut parser = serde_json::Deserializer::from_str(text).into_iter::<EventHeader<'_>>();
    let Ok(header) = parser.next()? else { return read_malformed_event(frame, text, received, items) };
    let end = parser.byte_offset();
    items.push(item(frame, &text[..end], &header, received));
    Some(end)
}

/// Reads a value that is not an object, or an object with an invalid member. Each member is parsed alone.
#[cold]
fn read_malformed_event(frame: &ByteString, text: &str, received: Timestamp, items: &mut Vec<Item>) -> Option<usize> {
    let mut parser = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    parser.next()?.ok()?;
    let end = parser.byte_offset();
    let members = Members::read(&text.as_bytes()[..end]);
    items.push(match members.as_ref().map(EventHeader::of) {
        Some(header) => item(frame, &text[..end], &header, received),
        None => undecoded(frame, &text[..end]),
    });
    Some(end)
}

fn item(frame: &ByteString, value: &str, header: &EventHeader<'_>, received: Timestamp) -> Item {
    if !json::is_within_depth(value) {
        return undecoded(frame, value);
    }
    match &header.error {
        Some(LenientValue::Text(error)) if error == "invalid_token" => Item::Notice(Notice::TokenInvalid),
        Some(_) | None => Item::Event(event(frame, value, header, received)),
    }
}

fn undecoded(frame: &ByteString, value: &str) -> Item {
    Item::Undecoded(frame.slice_ref(value).into_bytes())
}

fn event(frame: &ByteString, object: &str, header: &EventHeader<'_>, received: Timestamp) -> Event {
    let text = |value: &Option<LenientValue<'_>>| value.as_ref().and_then(|value| value.text_in(frame));
    let kind = text(&header.kind).or_else(|| text(&header.event_type)).or_else(|| text(&header.topic));
    Event {
        kind: kind.filter(|kind| !kind.is_empty()).unwrap_or(ByteString::from_static(KIND_DEFAULT)),
        subject: text(&header.topic),
        time: header.time.as_ref().and_then(|time| time.time_in(frame)),
        // 0 stands for "no number" (docs/platforms/genesys-cloud.md, "Sequenced streams").
        sequence: header.sequence.as_ref().and_then(LenientValue::number).filter(|number| *number > 0).map(Sequence),
        correlation: text(&header.metadata.correlation),
        partition_key: None,
        body: Body::Json(frame.slice_ref(object)),
        received,
    }
}

/// The fields that are read. The last one of equal keys counts.
#[derive(Debug, Default)]
struct EventHeader<'a> {
    sequence: Option<LenientValue<'a>>,
    kind: Option<LenientValue<'a>>,
    event_type: Option<LenientValue<'a>>,
    topic: Option<LenientValue<'a>>,
    time: Option<LenientValue<'a>>,
    error: Option<LenientValue<'a>>,
    metadata: Metadata<'a>,
}

impl<'a> EventHeader<'a> {
    /// Ignores members that cannot be read.
    fn of(members: &Members<'a>) -> Self {
        Self {
            sequence: members.member("sequenceId"),
            kind: members.member("type"),
            event_type: members.member("eventType"),
            topic: members.member("topicName"),
            time: ["time", "timestamp", "eventTime"].into_iter().find_map(|name| members.member(name)),
            error: members.member("error"),
            metadata: members.member("metadata").unwrap_or_default(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for EventHeader<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = EventHeader<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut header = EventHeader::default();
        while let Some(MemberName(key)) = map.next_key()? {
            match &*key {
                "sequenceId" => header.sequence = Some(map.next_value()?),
                "type" => header.kind = Some(map.next_value()?),
                "eventType" => header.event_type = Some(map.next_value()?),
                "topicName" => header.topic = Some(map.next_value()?),
                "time" | "timestamp" | "eventTime" => header.time = Some(map.next_value()?),
                "error" => header.error = Some(map.next_value()?),
                "metadata" => header.metadata = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frame: &str) -> Vec<Item> {
        let mut items = Vec::new();
        decode(&ByteString::from(frame), Timestamp(0), &mut items);
        items
    }

    fn summary(items: &[Item]) -> Vec<String> {
        let show = |item: &Item| match item {
            Item::Event(event) => {
                let Body::Json(body) = &event.body else { return "binary".to_owned() };
                let sequence = event.sequence.map_or("-".to_owned(), |sequence| sequence.to_string());
                format!("{sequence} {} {body}", event.kind)
            }
            Item::Undecoded(bytes) => format!("undecoded {}", bytes.len()),
            Item::Heartbeat | Item::ProbeAck | Item::Accepted => "alive".to_owned(),
            Item::Position(position) => format!("position {position}"),
            Item::Notice(notice) => format!("{notice:?}"),
        };
        items.iter().map(show).collect()
    }

    #[test]
    fn a_frame_is_split_into_its_events_byte_for_byte() {
        let table: [(&str, &[&str]); 20] = [
            (
                r#"[{"sequenceId":1,"type":"a"},{"sequenceId":2}]"#,
                &[r#"1 a {"sequenceId":1,"type":"a"}"#, r#"2 genesys-sequenced.event {"sequenceId":2}"#],
            ),
            (
                " [ {\"sequenceId\" : 1 , \"x\":[1, 2]} \n,\t{ }\r\n] ",
                &[r#"1 genesys-sequenced.event {"sequenceId" : 1 , "x":[1, 2]}"#, "- genesys-sequenced.event { }"],
            ),
            (
                r#"{"sequenceId":"7","eventType":"e","topicName":"t"}"#,
                &[r#"7 e {"sequenceId":"7","eventType":"e","topicName":"t"}"#],
            ),
            (
                r#"{"sequenceId":1,"a":"}]\\\"{","topicName":"q\u0041"}"#,
                &[r#"1 qA {"sequenceId":1,"a":"}]\\\"{","topicName":"q\u0041"}"#],
            ),
            (
                r#"{"sequenceId":1.5,"type":{"a":1}}"#,
                &[r#"- genesys-sequenced.event {"sequenceId":1.5,"type":{"a":1}}"#],
            ),
            (r#"{"sequenceId":1.0}"#, &[r#"1 genesys-sequenced.event {"sequenceId":1.0}"#]),
            (r#"{"sequenceId":2e0}"#, &[r#"2 genesys-sequenced.event {"sequenceId":2e0}"#]),
            (r#"{"sequenceId":0}"#, &[r#"- genesys-sequenced.event {"sequenceId":0}"#]),
            (r#"{"sequenceId":"0"}"#, &[r#"- genesys-sequenced.event {"sequenceId":"0"}"#]),
            (r#"{"sequenceId":0.0}"#, &[r#"- genesys-sequenced.event {"sequenceId":0.0}"#]),
            (r#"{"sequenceId":-1}"#, &[r#"- genesys-sequenced.event {"sequenceId":-1}"#]),
            (r#"{"sequenceId":1e17}"#, &[r#"- genesys-sequenced.event {"sequenceId":1e17}"#]),
            (r#"{"sequenceId":1,"sequenceId":2}"#, &[r#"2 genesys-sequenced.event {"sequenceId":1,"sequenceId":2}"#]),
            (r#"{"error":"invalid_token"}"#, &["TokenInvalid"]),
            (
                r#"[{"sequenceId":1},null,7,{"sequenceId":2,"type":"t.\ud800"},[{}],{"sequenceId":3,"x":"\ud800"}]"#,
                &[
                    r#"1 genesys-sequenced.event {"sequenceId":1}"#,
                    "undecoded 4",
                    "undecoded 1",
                    r#"2 genesys-sequenced.event {"sequenceId":2,"type":"t.\ud800"}"#,
                    "undecoded 4",
                    r#"3 genesys-sequenced.event {"sequenceId":3,"x":"\ud800"}"#,
                ],
            ),
            (
                &format!(r#"[{{"sequenceId":1}},{{"a":{}{}}}]"#, "[".repeat(100), "]".repeat(100)),
                &[r#"1 genesys-sequenced.event {"sequenceId":1}"#, "undecoded 206"],
            ),
            ("[]", &["alive"]),
            ("", &["alive"]),
            (" \r\n", &["alive"]),
            (
                r#"{"sequenceId":18446744073709551615}"#,
                &[r#"18446744073709551615 genesys-sequenced.event {"sequenceId":18446744073709551615}"#],
            ),
        ];
        for (frame, expected) in table {
            assert_eq!(summary(&read(frame)), expected, "{frame}");
        }
    }

    #[test]
    fn an_undecodable_frame_is_stored_verbatim() {
        for frame in [
            "hello",
            "[1]",
            "[{}",
            "[{},]",
            "[{}]x",
            "{}{}",
            "[[{}]]",
            "null",
            r#"{"a":}"#,
            r#"[{"sequenceId":1},{"a":01}]"#,
            "\u{feff}{}",
            &format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000)),
        ] {
            assert_eq!(summary(&read(frame)), [format!("undecoded {}", frame.len())], "{frame:.60}");
        }
    }

    #[test]
    fn time_and_correlation_are_used_where_they_are_valid() {
        let read_one = |frame: &str| match read(frame).remove(0) {
            Item::Event(event) => (event.time.map(|time| time.to_string()), event.correlation.map(|id| id.to_string())),
            other @ (Item::Position(_)
            | Item::Heartbeat
            | Item::ProbeAck
            | Item::Accepted
            | Item::Notice(_)
            | Item::Undecoded(_)) => {
                panic!("{other:?}")
            }
        };
        let time = Some("2026-05-04T13:31:49.570Z".to_owned());
        assert_eq!(
            read_one(r#"{"timestamp":"2026-05-04T13:31:49.570Z","metadata":{"CorrelationId":"c"}}"#),
            (time.clone(), Some("c".to_owned()))
        );
        assert_eq!(read_one(r#"{"eventTime":1777901509570,"metadata":[1]}"#), (time, None));
        assert_eq!(read_one(r#"{"time":"yesterday","metadata":"none"}"#), (None, None));
    }

    #[test]
    fn the_resume_parameter_joins_what_the_url_has() {
        let settings = |url: &str| Settings { url: url.to_owned(), placement: Placement::Header, snapshot_url: None };
        let position = Position::Numbered(Sequence(9));
        assert_eq!(settings("wss://p/s").resume_url("wss://p/s", &position), "wss://p/s?sequenceId=9");
        assert_eq!(
            settings("wss://p/s?channel=q").resume_url("wss://p/s?channel=q", &position),
            "wss://p/s?channel=q&sequenceId=9"
        );
    }
}
