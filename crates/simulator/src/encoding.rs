//! The JSON of an event on each kind of socket.

use serde::Serialize;
use serde_json::Value;

use super::clock::stamp;
use super::world::PlatformEvent;

#[derive(Serialize)]
struct EventMetadata<'a> {
    #[serde(rename = "CorrelationId")]
    correlation: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SequencedFrame<'a> {
    sequence_id: u64,
    event_type: &'a str,
    topic_name: &'a str,
    event_time: String,
    event_body: &'a Value,
    metadata: EventMetadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotificationFrame<'a> {
    topic_name: &'a str,
    version: &'a str,
    event_body: &'a Value,
    metadata: EventMetadata<'a>,
}

/// One event of the numbered stream.
pub(super) fn sequenced_text(sequence: u64, event: &PlatformEvent) -> String {
    write(&SequencedFrame {
        sequence_id: sequence,
        event_type: event.kind,
        topic_name: &event.topic,
        event_time: stamp(event.at),
        event_body: &event.body,
        metadata: EventMetadata { correlation: &event.correlation },
    })
}

/// How a fault changes the number and the time in the JSON of an event.
#[derive(Clone, Debug, Default)]
pub(super) struct EncodingOverride {
    /// `1.0` in place of `1`.
    pub(super) decimal: bool,
    pub(super) time: Option<String>,
}

impl EncodingOverride {
    pub(super) fn apply(&self, text: String) -> String {
        let mut text = text;
        if self.decimal {
            text = text.replacen(",\"eventType\"", ".0,\"eventType\"", 1);
        }
        match (&self.time, text.split_once("\"eventTime\":\"")) {
            (Some(time), Some((before, after))) => {
                let rest = after.split_once('"').map_or("", |(_, rest)| rest);
                format!("{before}\"eventTime\":{}{rest}", serde_json::Value::from(time.as_str()))
            }
            _as_it_is => text,
        }
    }
}

/// One event as a notification.
pub(super) fn notification_text(event: &PlatformEvent) -> String {
    envelope(&event.topic, &event.body, &event.correlation)
}

/// The envelope around any notification; `version` is always the text "2".
pub(super) fn envelope(topic: &str, body: &Value, correlation: &str) -> String {
    write(&NotificationFrame {
        topic_name: topic,
        version: "2",
        event_body: body,
        metadata: EventMetadata { correlation },
    })
}

fn write(what: &impl Serialize) -> String {
    serde_json::to_string(what).expect("texts, numbers and JSON values can always be written")
}
