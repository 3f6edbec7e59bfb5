//! Genesys Cloud Notifications: a channel is created over REST, topics are subscribed on it, and one socket reads it.
//!
//! Events have no numbers and are not replayed: a disconnection is marked by a `no-replay` gap and a snapshot. The
//! channel ends with its token, so a rotation uses a second channel, and events that arrive on both sockets are
//! deduplicated (docs/platforms/genesys-cloud.md).

mod listing;
mod preparation;
mod snapshot;
mod subscription;

pub use self::{
    listing::{EXPANDED, expands},
    preparation::ChannelPreparation,
};

use std::time::Duration;

use bytestring::ByteString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Capabilities, CheckContext, CloseCode, DeliveryTerms, Dialect, Endpoint, Guarantee, Item, Liveness, Notice,
    Opening, Overlap, Preparation, PreparationStep, Probe, RestRequest, RestResponse, Resume, SettingFinding,
    SettingKey, Transport, Verdict, genesys,
    json::{self, LenientValue, Members, Metadata},
};
use crate::model::{Body, Event, Exchange, OverflowPolicy, Rotation, Span, Timestamp};

/// Genesys Cloud notifications: topics on a channel, without replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Topics, at most 1,000. `*` in place of an id stands for all queues or users.
    #[schemars(length(max = TOPICS_MAX), extend("items" = { "type": "string", "format": "topic" }))]
    pub topics: Vec<String>,
    /// The lifetime of a notification channel: it is replaced before it expires.
    #[serde(default = "channel_life", with = "Span")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub channel_life: Duration,
    /// How often the ids for `*` in topics are looked up again.
    #[serde(default = "discovery", with = "Span")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub discovery: Duration,
}

/// The platform ends a channel after this time.
fn channel_life() -> Duration {
    Duration::from_secs(86_400)
}

fn discovery() -> Duration {
    Duration::from_secs(60)
}

/// The value of `connector` in the configuration.
pub const NAME: &str = "genesys-notifications";

/// The `type` of an event without a valid one.
const KIND_DEFAULT: &str = "genesys-notifications.event";

/// The platform's limit of topics on one channel.
pub const TOPICS_MAX: usize = 1_000;

/// The platform rejects longer topics.
const TOPIC_LEN_MAX: usize = 200;

/// The platform answers this with `pong` on `channel.metadata`.
const PING: &str = r#"{"message":"ping"}"#;

/// A channel is replaced when this part of its lifetime remains.
const LIFETIME_MARGIN_DIVISOR: u32 = 24;

/// The interval of the platform's heartbeats.
const HEARTBEAT: Span = Span(Duration::from_secs(30));

/// Checks the topics, and the settings that the account of the stream needs.
fn check(settings: &Settings, context: &CheckContext<'_>) -> Vec<SettingFinding> {
    let mut findings = check_topics(&settings.topics);
    let Some(account) = context.account else { return findings };
    if account.lacks_api_url {
        let text = format!("is required by the stream's connector {NAME}");
        findings.push(SettingFinding::mistake(SettingKey::Account("api_url"), text));
    }
    if account.has_region && context.silence_max <= HEARTBEAT {
        let text = format!(
            "{} is too short: Genesys Cloud sends a heartbeat about every {HEARTBEAT}; write \"35s\" or longer",
            context.silence_max
        );
        findings.push(SettingFinding::mistake(SettingKey::Stream("silence_max"), text));
    }
    findings
}

fn check_topics(topics: &[String]) -> Vec<SettingFinding> {
    let mut findings = Vec::new();
    if topics.is_empty() {
        findings
            .push(SettingFinding::mistake(SettingKey::Stream("topics"), "is empty: the stream would receive nothing"));
    }
    for (index, topic) in topics.iter().enumerate() {
        let key = SettingKey::StreamItem("topics", index);
        findings.extend(malformed_topic(topic).map(|text| SettingFinding::mistake(key, text)));
        if topics[..index].contains(topic) {
            findings.push(SettingFinding::mistake(key, format!("{topic:?} is listed twice")));
        }
        findings.extend(unsupported_wildcard(topic).map(|text| SettingFinding::ineffective(key, text)));
    }
    findings
}

/// Explains why a text is not a topic; none if it is one.
fn malformed_topic(text: &str) -> Option<String> {
    if text.len() > TOPIC_LEN_MAX {
        return Some(format!("a topic has at most {TOPIC_LEN_MAX} characters, this one {}", text.len()));
    }
    if text.contains(['{', '}']) {
        return Some(format!("{text:?} contains a placeholder; write an id, or * for all ids"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'*' | b'?' | b'&');
    if !text.starts_with("v2.") || !text.bytes().all(allowed) || text.split('.').any(str::is_empty) {
        return Some(format!("expected a topic such as \"v2.analytics.queues.*.observations\", found {text:?}"));
    }
    let whole = |part: &str| part == "*" || part.starts_with("*?") || !part.contains('*');
    (!text.split('.').all(whole)).then(|| format!("{text:?}: * must replace a whole id between two dots"))
}

/// Explains why a `*` in a topic is not expanded; none if it is.
fn unsupported_wildcard(topic: &str) -> Option<String> {
    match topic.matches('*').count() {
        0 => None,
        1 if expands(topic) => None,
        1 => Some(format!(
            "* is supported for {} only, not in {topic:?}; write one topic per id",
            EXPANDED.join(" and ")
        )),
        _ => Some(format!("{topic:?} has more than one *; only one is supported")),
    }
}

impl Dialect for Settings {
    fn kind_default(&self) -> &str {
        KIND_DEFAULT
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            transport: Transport::WebSocket,
            opening: Opening::default(),
            resume: Resume::None,
            overlap: Overlap::Duplicate,
            probe: Probe::Text(PING.to_owned()),
            liveness: Liveness::Reply,
            endpoint_lifetime: Some(self.channel_life - self.channel_life / LIFETIME_MARGIN_DIVISOR),
            refresh_interval: Some(self.discovery),
        }
    }

    fn socket_url(&self) -> Option<&str> {
        None
    }

    fn prepare(&self, subscribed: &[String]) -> (Preparation, PreparationStep) {
        calls(ChannelPreparation::begin(self, subscribed))
    }

    fn resume(&self, spare: &Endpoint, subscribed: &[String]) -> (Preparation, PreparationStep) {
        calls(ChannelPreparation::resume(self, spare, subscribed))
    }

    fn refresh_subscriptions(&self, endpoint: &Endpoint) -> (Preparation, PreparationStep) {
        calls(ChannelPreparation::refresh(self, endpoint))
    }

    fn decode(&self, frame: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
        decode(frame, received, items);
    }

    fn snapshot(&self, endpoint: Option<&Endpoint>) -> Vec<RestRequest> {
        snapshot::snapshot(endpoint.map_or(&self.topics, |endpoint| &endpoint.topics))
    }

    fn snapshot_next(&self, request: &RestRequest, answer: &RestResponse) -> Option<RestRequest> {
        snapshot::next_page(request, answer)
    }

    /// The channel no longer exists, or its token is no longer valid.
    fn status_verdict(&self, exchange: Exchange, status: u16) -> Option<Verdict> {
        let is_gone = match exchange {
            Exchange::Upgrade => matches!(status, 401 | 403 | 404),
            Exchange::Call => status == 404,
            Exchange::TokenRequest => false,
        };
        is_gone.then_some(Verdict::NewEndpoint)
    }

    fn close_codes(&self) -> &[CloseCode] {
        &genesys::CLOSE_CODES
    }

    fn guarantee(&self, terms: &DeliveryTerms) -> Guarantee {
        guarantee(terms)
    }

    fn check(&self, context: &CheckContext<'_>) -> Vec<SettingFinding> {
        check(self, context)
    }
}

fn calls((preparation, step): (ChannelPreparation, PreparationStep)) -> (Preparation, PreparationStep) {
    (Preparation::Calls(Box::new(preparation)), step)
}

fn guarantee(terms: &DeliveryTerms) -> Guarantee {
    let overflow = match terms.overflow {
        OverflowPolicy::Backpressure => {
            format!("{}, the socket is not read, and the platform may close it (no-replay)", terms.when_full())
        }
        OverflowPolicy::DropOldest => terms.dropped(),
    };
    let (rotation, duplicated, reordered) = match terms.rotation {
        Rotation::Overlap => (
            "a planned rotation loses nothing",
            "events that the platform sends twice on one socket: they carry no sequence number; \
             duplicates during a rotation are dropped",
            "during a rotation, events of different topics; otherwise nothing",
        ),
        Rotation::BreakFirst => (
            "this includes every planned rotation",
            "events that the platform sends twice, because they carry no sequence number",
            "nothing: events keep the order of arrival on one socket",
        ),
    };
    Guarantee {
        lost: format!(
            "events during a disconnection, because the platform cannot replay; a gap marks them (no-replay); \
             {rotation}; {overflow}"
        ),
        duplicated: duplicated.to_owned(),
        reordered: reordered.to_owned(),
    }
}

impl Settings {
    /// The configured topic whose `*` stands for the id of `topic`.
    fn expansion_of(&self, topic: &str) -> Option<&String> {
        let expands_to = |pattern: &&String| {
            let (before, behind) = pattern.split_once('*').unwrap_or((pattern, ""));
            let id = topic.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
            expands(pattern) && id.is_some_and(|id| !id.is_empty() && !id.contains(['.', '?']))
        };
        self.topics.iter().find(expands_to)
    }
}

/// The outermost object of a frame. Control replies have no `topicName`.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(rename = "topicName", borrow, default)]
    topic: Option<LenientValue<'a>>,
    #[serde(rename = "eventBody", borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    result: Option<LenientValue<'a>>,
}

impl<'a> Message<'a> {
    /// Parses each member alone, for a frame with an invalid member that is not needed.
    fn of(members: &Members<'a>) -> Option<Self> {
        let (topic, metadata) = (Some(members.member("topicName")?), members.member("metadata"));
        Some(Self { topic, body: members.get("eventBody"), metadata: metadata.unwrap_or_default(), result: None })
    }
}

/// Reads one frame: one object, or nothing.
fn decode(frame: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
    if frame.trim_ascii().is_empty() {
        // A keepalive.
        return items.push(Item::Heartbeat);
    }
    let message = serde_json::from_str(frame).ok().or_else(|| Message::of(&Members::read(frame.as_bytes())?));
    let item = message.and_then(|message| read(frame, &message, received));
    items.push(item.unwrap_or_else(|| Item::Undecoded(frame.as_bytes().clone())));
}

fn read(frame: &ByteString, message: &Message<'_>, received: Timestamp) -> Option<Item> {
    let Some(topic) = message.topic.as_ref() else {
        let gone = message.result.as_ref()?.number() == Some(404);
        return Some(if gone { Item::Notice(Notice::EndpointGone) } else { Item::Heartbeat });
    };
    let topic = topic.text_in(frame)?;
    if topic.eq_ignore_ascii_case("channel.metadata") {
        return Some(if message.body.is_some_and(is_pong) { Item::ProbeAck } else { Item::Heartbeat });
    }
    if let Some(notice) = system_notice(&topic) {
        return Some(notice);
    }
    let (kind, body) = (kind_of(&topic), message.body?.get());
    // A CloudEvent must have a type.
    (!kind.is_empty() && json::is_within_depth(body)).then(|| {
        Item::Event(Event {
            kind: kind.into(),
            time: event_time(frame, body),
            sequence: None,
            correlation: message.metadata.correlation.as_ref().and_then(|id| id.text_in(frame)),
            partition_key: id_of(&topic).map(|id| topic.slice_ref(id)),
            body: Body::Json(frame.slice_ref(body)),
            received,
            subject: Some(topic),
        })
    })
}

/// Whether a message of `channel.metadata` answers a ping. Heartbeats use the same topic.
fn is_pong(body: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct PongBody<'a> {
        message: &'a str,
    }
    serde_json::from_str(body.get()).is_ok_and(|body: PongBody<'_>| body.message.eq_ignore_ascii_case("pong"))
}

/// A system topic (docs/platforms/genesys-cloud.md, "Messages on the socket").
fn system_notice(topic: &str) -> Option<Item> {
    let system = topic.strip_prefix("v2.system.")?;
    let name = system.split('.').next().unwrap_or_default();
    match name {
        "socket_closing" => Some(Item::Notice(Notice::Closing)),
        "token_revoked" => Some(Item::Notice(Notice::TokenRevoked)),
        "no_longer_subscribed" => Some(Item::Notice(Notice::Displaced)),
        _ => None,
    }
}

/// The time fields of events. Only top-level fields are read.
#[derive(Deserialize)]
struct EventTimes<'a> {
    #[serde(rename = "eventTime", borrow, default)]
    event: Option<LenientValue<'a>>,
    #[serde(rename = "modifiedDate", borrow, default)]
    modified: Option<LenientValue<'a>>,
    #[serde(rename = "routingStatus", borrow, default)]
    status: Option<StatusTimes<'a>>,
    #[serde(rename = "adherenceChangeTime", borrow, default)]
    adherence: Option<LenientValue<'a>>,
}

#[derive(Deserialize)]
struct StatusTimes<'a> {
    #[serde(rename = "startTime", borrow, default)]
    start: Option<LenientValue<'a>>,
}

fn event_time(frame: &ByteString, body: &str) -> Option<ByteString> {
    let times: EventTimes<'_> = serde_json::from_str(body).ok()?;
    let start = times.status.and_then(|status| status.start);
    let named = [times.event, times.modified, start, times.adherence];
    named.iter().flatten().find_map(|time| time.time_in(frame))
}

/// Whether a segment of a topic is an id. Names of the platform contain only letters (`routingStatus`).
fn is_id(segment: &str) -> bool {
    !segment.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

/// The topic without its ids: `v2.analytics.queues.observations`.
fn kind_of(topic: &str) -> String {
    let mut kind = String::with_capacity(topic.len());
    for (index, segment) in topic.split('.').enumerate() {
        if index == 0 || !is_id(segment) {
            if index > 0 {
                kind.push('.');
            }
            kind.push_str(segment);
        }
    }
    kind
}

/// The first id of a topic. A combined topic (`v2.users.{id}?presence&station`) has it before the `?`.
fn id_of(topic: &str) -> Option<&str> {
    let named = topic.split('?').next()?;
    named.split('.').skip(1).find(|segment| is_id(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(frame: &str) -> Item {
        let mut items = Vec::new();
        decode(&ByteString::from(frame), Timestamp(0), &mut items);
        assert_eq!(items.len(), 1);
        items.remove(0)
    }

    #[test]
    fn ids_are_removed_from_a_topic() {
        let table = [
            (
                "v2.analytics.queues.9c1e0f5a-3f0e-4a52-8a5b-1f5e6f1c2d33.observations",
                "v2.analytics.queues.observations",
            ),
            ("v2.users.6b1f2a9e-0000-4000-8000-000000000001.routingStatus", "v2.users.routingStatus"),
            (
                "v2.detail.events.conversation.2f7bf00a-0fc2.customer.start",
                "v2.detail.events.conversation.customer.start",
            ),
            (
                "v2.workforcemanagement.managementunits.mu-1.adherence",
                "v2.workforcemanagement.managementunits.adherence",
            ),
        ];
        for (topic, kind) in table {
            assert_eq!(kind_of(topic), kind);
        }
    }

    #[test]
    fn a_text_that_is_no_topic_is_rejected() {
        for good in ["v2.users.*?presence&routingStatus", "v2.detail.events.conversation.2f7bf00a-0fc2.acd.end"] {
            assert_eq!(malformed_topic(good), None);
        }
        for bad in ["v2.users.{id}.presence", "users.presence", "v2.users..presence", "v2.users.a*.presence"] {
            assert!(malformed_topic(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn an_event_is_its_body_under_its_topic() {
        let item = read_one(
            r#"{"topicName":"v2.users.6b1f-1.presence","version":"2","eventBody":{"a" : 1,"modifiedDate":"2026-05-04T13:31:49.570Z"},"metadata":{"CorrelationId":"c1"}}"#,
        );
        let Item::Event(event) = item else { panic!("{item:?}") };
        assert_eq!(event.kind, "v2.users.presence");
        assert_eq!(event.subject.as_deref(), Some("v2.users.6b1f-1.presence"));
        assert_eq!(event.partition_key.as_deref(), Some("6b1f-1"));
        assert_eq!(event.time.as_deref(), Some("2026-05-04T13:31:49.570Z"));
        assert_eq!(event.correlation.as_deref(), Some("c1"));
        assert_eq!(event.body, Body::Json(r#"{"a" : 1,"modifiedDate":"2026-05-04T13:31:49.570Z"}"#.into()));
    }

    #[test]
    fn platform_notices_are_not_events() {
        let table = [
            (r#"{"topicName":"channel.metadata","eventBody":{"message":"WebSocket Heartbeat"}}"#, Item::Heartbeat),
            (r#"{"topicName":"channel.metadata","eventBody":{"message":"pong"}}"#, Item::ProbeAck),
            (r#"{"topicName":"v2.system.socket_closing","eventBody":{}}"#, Item::Notice(Notice::Closing)),
            (r#"{"topicName":"v2.system.token_revoked.3f0f","eventBody":{}}"#, Item::Notice(Notice::TokenRevoked)),
            (r#"{"topicName":"v2.system.no_longer_subscribed.3f0f"}"#, Item::Notice(Notice::Displaced)),
            (r#"{"result":"404","message":"gone"}"#, Item::Notice(Notice::EndpointGone)),
            (r#"{"result":"200","status":"subscribed","topics":[]}"#, Item::Heartbeat),
            ("", Item::Heartbeat),
            (" \n", Item::Heartbeat),
        ];
        for (frame, item) in table {
            assert_eq!(read_one(frame), item, "{frame}");
        }
    }

    #[test]
    fn an_undecodable_frame_is_stored_verbatim() {
        for frame in [
            "[]",
            "{}",
            "{\"topicName\":7,\"eventBody\":{}}",
            "{\"topicName\":\"\",\"eventBody\":{}}",
            "{\"topicName\":\"v2.users.1.presence\"}",
            "x",
        ] {
            assert_eq!(read_one(frame), Item::Undecoded(frame.to_owned().into()), "{frame}");
        }
    }
}
