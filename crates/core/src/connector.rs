//! The interface of a platform: capabilities as values, and pure functions that read its frames and failures.
//!
//! A connector holds no socket, clock or HTTP client: REST calls go out as values ([`RestRequest`]) and their answers
//! come in ([`RestResponse`]). It never sees a token: the shell puts the token where [`Credential`] or
//! [`OpeningMessage`] defines.
//!
//! A new dialect is one file with its settings and an `impl Dialect`, and one line in the registry below. The
//! configuration takes the keys, their schema, their defaults and their checks from the registry.

mod attributes;
mod capabilities;
#[cfg(test)]
pub(crate) mod dummy;
mod endpoint;
mod failure;
mod frame;
mod genesys;
pub mod genesys_notifications;
pub mod genesys_sequenced;
mod guarantee;
mod json;
mod poll;
mod rest;
mod settings;

pub use capabilities::{
    Capabilities, Credential, Liveness, Opening, OpeningMessage, OpeningVerdict, Overlap, Probe, Resume, Transport,
};
pub use endpoint::{Endpoint, RefusedTopic, TopicState};
pub use failure::{CloseCode, Failure, FailureClass, PositionDoubt, Verdict};
pub use frame::{Frame, Item, Notice};
pub use guarantee::{DeliveryTerms, Guarantee};
pub use poll::{PollAnswer, PollCursor, PollExchange, PollStep};
pub use rest::{Method, Preparation, PreparationStep, RestConversation, RestRequest, RestResponse};
pub use settings::{AccountContext, CheckContext, DialectKeys, SettingFinding, SettingKey, Severity};

use std::sync::LazyLock;

use bytestring::ByteString;

use crate::model::{Exchange, FeedId, OverflowPolicy, Position, Timestamp};

/// The dialect of a platform: everything that the rules need to know of it.
///
/// Settings implement it. Defaults suit a platform with one fixed URL that replays nothing.
pub trait Dialect: std::fmt::Debug {
    /// The `type` of an event without a valid one.
    fn kind_default(&self) -> &str;

    /// The capabilities of the platform.
    fn capabilities(&self) -> Capabilities;

    /// The socket's URL, if it is configured.
    fn socket_url(&self) -> Option<&str>;

    /// Starts to get an endpoint. The `subscribed` topics of the session before are subscribed again.
    fn prepare(&self, subscribed: &[String]) -> (Preparation, PreparationStep);

    /// Continues with an endpoint that was created and never subscribed.
    fn resume(&self, _spare: &Endpoint, subscribed: &[String]) -> (Preparation, PreparationStep) {
        self.prepare(subscribed)
    }

    /// Starts to refresh the subscriptions of a live endpoint. The last step returns the changed endpoint.
    fn refresh_subscriptions(&self, endpoint: &Endpoint) -> (Preparation, PreparationStep) {
        Preparation::ready(endpoint.clone())
    }

    /// The URL that resumes after a position. It encodes an opaque text for the place in the URL.
    fn resume_url(&self, url: &str, _position: &Position) -> String {
        url.to_owned()
    }

    /// The request of a poll transport: for the first one the endpoint's URL, with the resume parameter if there is a
    /// position. A cursor replaces that parameter.
    fn poll_request(&self, url: &str, _cursor: Option<&PollCursor>) -> RestRequest {
        RestRequest::get(url)
    }

    /// The meaning of the answer to a poll.
    fn poll_answer(&self, answer: &RestResponse) -> PollAnswer {
        PollAnswer::by_status(answer)
    }

    /// Reads a text frame. A part that cannot be read becomes [`Item::Undecoded`].
    fn decode(&self, text: &ByteString, received: Timestamp, items: &mut Vec<Item>);

    /// The REST calls that fetch the current state after a gap. Without an endpoint, the configured topics count.
    fn snapshot(&self, _endpoint: Option<&Endpoint>) -> Vec<RestRequest> {
        Vec::new()
    }

    /// The call for the next page of a snapshot, or none after the last page.
    fn snapshot_next(&self, _request: &RestRequest, _answer: &RestResponse) -> Option<RestRequest> {
        None
    }

    /// The verdict on an HTTP status that has a special meaning on this platform.
    fn status_verdict(&self, _exchange: Exchange, _status: u16) -> Option<Verdict> {
        None
    }

    /// The close codes that the platform adds to those of RFC 6455.
    fn close_codes(&self) -> &[CloseCode] {
        &[]
    }

    /// The guarantee that the platform and the settings of the stream allow.
    fn guarantee(&self, terms: &DeliveryTerms) -> Guarantee;

    /// Checks the settings against each other and against those outside the dialect.
    fn check(&self, _context: &CheckContext<'_>) -> Vec<SettingFinding> {
        Vec::new()
    }
}

macro_rules! dialects {
    ($($(#[$attribute:meta])* $variant:ident($module:ident),)+) => {
        /// The dialect of one stream. A closed set.
        #[derive(Debug, Clone)]
        pub enum Connector {
            $($(#[$attribute])* $variant($module::Settings),)+
        }

        impl Connector {
            /// All dialects.
            pub fn dialects() -> &'static [DialectKeys] {
                static DIALECTS: LazyLock<Vec<DialectKeys>> = LazyLock::new(|| {
                    Vec::from([
                        $($(#[$attribute])* DialectKeys::of::<$module::Settings>($module::NAME, |settings| {
                            serde_json::from_value(settings).map(Connector::$variant)
                        }),)+
                    ])
                });
                &DIALECTS
            }

            /// The name in the configuration. It is part of the stored [`FeedId`].
            pub fn name(&self) -> &'static str {
                match self {
                    $($(#[$attribute])* Self::$variant(_) => $module::NAME,)+
                }
            }

            /// The keys of the dialect in the configuration with their values.
            pub fn settings(&self) -> serde_json::Value {
                let settings = match self {
                    $($(#[$attribute])* Self::$variant(settings) => serde_json::to_value(settings),)+
                };
                settings.expect("every key has a JSON form")
            }

            fn dialect(&self) -> &dyn Dialect {
                match self {
                    $($(#[$attribute])* Self::$variant(settings) => settings,)+
                }
            }

            /// Static dispatch: it runs for every frame.
            fn decode_text(&self, text: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
                match self {
                    $($(#[$attribute])* Self::$variant(settings) => settings.decode(text, received, items),)+
                }
            }
        }
    };
}

// The registry: one line for each dialect, with its module. The module has `NAME`, the value of `connector` in the
// configuration, and `Settings`.
dialects! {
    Notifications(genesys_notifications),
    Sequenced(genesys_sequenced),
    #[cfg(test)]
    Dummy(dummy),
}

impl Connector {
    /// The capabilities of the platform.
    pub fn capabilities(&self) -> Capabilities {
        self.dialect().capabilities()
    }

    /// The socket's URL, if it is configured.
    pub fn socket_url(&self) -> Option<&str> {
        self.dialect().socket_url()
    }

    /// The feed of its positions: the socket's URL where the configuration names it, else the account's API.
    pub fn feed(&self, api_url: &str) -> FeedId {
        FeedId::of(self.name(), self.socket_url().unwrap_or(api_url))
    }

    /// Starts to get an endpoint. The `subscribed` topics of the session before are subscribed again, even if a listing
    /// does not contain them.
    pub fn prepare(&self, subscribed: &[String]) -> (Preparation, PreparationStep) {
        self.dialect().prepare(subscribed)
    }

    /// Continues with an endpoint that was created and never subscribed.
    pub fn resume(&self, spare: &Endpoint, subscribed: &[String]) -> (Preparation, PreparationStep) {
        self.dialect().resume(spare, subscribed)
    }

    /// Starts to refresh the subscriptions of a live endpoint. The last step returns the changed endpoint.
    pub fn refresh_subscriptions(&self, endpoint: &Endpoint) -> (Preparation, PreparationStep) {
        self.dialect().refresh_subscriptions(endpoint)
    }

    /// The URL to open: the endpoint's, with the resume parameter if there is a position.
    pub fn url(&self, endpoint: &Endpoint, resume: Option<&Position>) -> String {
        match resume {
            Some(position) => self.dialect().resume_url(&endpoint.url, position),
            None => endpoint.url.clone(),
        }
    }

    fn poll_request(&self, url: &str, cursor: Option<&PollCursor>) -> RestRequest {
        self.dialect().poll_request(url, cursor)
    }

    fn poll_answer(&self, answer: &RestResponse) -> PollAnswer {
        self.dialect().poll_answer(answer)
    }

    /// Reads a frame. A part that cannot be read becomes [`Item::Undecoded`].
    pub fn decode(&self, frame: Frame, received: Timestamp, items: &mut Vec<Item>) {
        let before = items.len();
        self.decode_frame(frame, received, items);
        let kind_default = self.dialect().kind_default();
        for item in &mut items[before..] {
            if let Item::Event(event) = item {
                attributes::normalize(event, kind_default);
            }
        }
    }

    fn decode_frame(&self, frame: Frame, received: Timestamp, items: &mut Vec<Item>) {
        match frame {
            Frame::Pong | Frame::Answered { probes: 0 } => items.push(Item::Heartbeat),
            Frame::Answered { probes } => items.extend((0..probes).map(|_| Item::ProbeAck)),
            // Some platforms and gateways send text in binary frames.
            Frame::Binary(bytes) => match ByteString::try_from(bytes.clone()) {
                Ok(text) => self.decode_text(&text, received, items),
                Err(_) => items.push(Item::Undecoded(bytes)),
            },
            Frame::Text(text) => self.decode_text(&text, received, items),
        }
    }

    /// The REST calls that fetch the current state after a gap. Without an endpoint, the configured topics count.
    pub fn snapshot(&self, endpoint: Option<&Endpoint>) -> Vec<RestRequest> {
        self.dialect().snapshot(endpoint)
    }

    /// The call for the next page of a snapshot, or none after the last page.
    pub fn snapshot_next(&self, request: &RestRequest, answer: &RestResponse) -> Option<RestRequest> {
        self.dialect().snapshot_next(request, answer)
    }

    /// The verdict on a failure.
    pub fn classify(&self, failure: &Failure) -> Verdict {
        let dialect = self.dialect();
        failure.verdict(|exchange, status| dialect.status_verdict(exchange, status), dialect.close_codes())
    }

    /// The `class` label of a lost session in the metrics.
    pub fn failure_class(&self, failure: &Failure) -> FailureClass {
        failure.class(self.dialect().close_codes())
    }

    /// The guarantee that the platform and the settings of the stream allow.
    pub fn guarantee(&self, terms: &DeliveryTerms) -> Guarantee {
        self.dialect().guarantee(terms)
    }

    /// Checks the settings against each other and against those outside the dialect.
    pub fn check(&self, context: &CheckContext<'_>) -> Vec<SettingFinding> {
        self.dialect().check(context)
    }

    /// What happens when the buffer is full, if it is not configured.
    pub fn overflow_default(&self) -> OverflowPolicy {
        match self.capabilities().resume {
            Resume::Sequence | Resume::Opaque => OverflowPolicy::Backpressure,
            Resume::None => OverflowPolicy::DropOldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sequenced() -> Connector {
        Connector::Sequenced(genesys_sequenced::Settings {
            url: "wss://platform.test/stream".to_owned(),
            placement: genesys_sequenced::Placement::Header,
            snapshot_url: None,
        })
    }

    #[test]
    fn every_close_code_has_its_verdict() {
        let table = [
            (1000, Verdict::BackOff, "clean"),
            (1001, Verdict::BackOff, "network"),
            (1002, Verdict::BackOff, "protocol"),
            (1006, Verdict::BackOff, "network"),
            (1007, Verdict::BackOff, "protocol"),
            (1008, Verdict::RefreshToken, "refused"),
            (1009, Verdict::BackOff, "protocol"),
            (1011, Verdict::Restarting, "restart"),
            (1012, Verdict::Restarting, "restart"),
            (1013, Verdict::WaitFor(Duration::from_secs(5)), "restart"),
            (3999, Verdict::BackOff, "network"),
            (4001, Verdict::RefreshToken, "refused"),
        ];
        for (code, verdict, class) in table {
            let failure = Failure::Closed { code, reason: String::new() };
            assert_eq!(
                (sequenced().classify(&failure), sequenced().failure_class(&failure).as_str()),
                (verdict, class),
                "{code}"
            );
        }
    }

    #[test]
    fn notices_have_plain_descriptions() {
        for (notice, words) in [
            (Notice::Closing, "closes the socket"),
            (Notice::TokenRevoked, "revoked the token"),
            (Notice::TokenInvalid, "refused the token"),
            (Notice::EndpointGone, "channel does not exist"),
            (Notice::Displaced, "another channel took the subscriptions"),
        ] {
            let shown = Failure::Notice(notice.clone()).to_string();
            assert!(shown.contains(words) && !shown.contains(&format!("{notice:?}")), "{shown}");
        }
    }

    #[test]
    fn a_platform_event_never_has_a_reserved_type() {
        let settings = genesys_notifications::Settings {
            topics: Vec::new(),
            channel_life: Duration::from_secs(1),
            discovery: Duration::from_secs(1),
        };
        let texts = [
            (sequenced(), r#"[{"sequenceId":4,"type":"trunkline.gap.v1"},{"type":"a\r\nb","topicName":"t\n"}]"#),
            (Connector::Notifications(settings), r#"{"topicName":"trunkline.gap.v1\n","eventBody":{}}"#),
        ];
        for (connector, text) in texts {
            let mut items = Vec::new();
            connector.decode(Frame::Binary(text.into()), Timestamp(0), &mut items);
            for item in items {
                let Item::Event(event) = item else { panic!("{item:?}") };
                assert_eq!(event.kind, format!("{}.event", connector.name()));
                assert!(event.subject.is_none_or(|subject| subject.ends_with("\\u000a")));
            }
        }
    }

    #[test]
    fn an_incomplete_frame_is_retried_and_its_message_has_the_timeout() {
        let failure = Failure::Unfinished { within: Duration::from_secs(30) };
        assert_eq!(
            (sequenced().classify(&failure), sequenced().failure_class(&failure).as_str()),
            (Verdict::BackOff, "protocol")
        );
        assert_eq!(failure.to_string(), "a message not complete in 30 s");
    }

    #[test]
    fn a_refused_upgrade_is_retried_and_a_refused_call_needs_an_operator() {
        let second = Some(Duration::from_secs(1));
        // status, Retry-After; upgrade, REST call
        let table = [
            (200, None, Verdict::BackOff, Verdict::BackOff),
            (302, None, Verdict::BackOff, Verdict::BackOff),
            (401, None, Verdict::RefreshToken, Verdict::RefreshToken),
            (403, None, Verdict::BackOff, Verdict::Refused),
            (404, None, Verdict::BackOff, Verdict::Refused),
            (421, None, Verdict::BackOff, Verdict::BackOff),
            (429, second, Verdict::WaitFor(Duration::from_secs(1)), Verdict::WaitFor(Duration::from_secs(1))),
            (429, None, Verdict::BackOff, Verdict::BackOff),
            (500, second, Verdict::BackOff, Verdict::BackOff),
            (503, second, Verdict::WaitFor(Duration::from_secs(1)), Verdict::WaitFor(Duration::from_secs(1))),
        ];
        for (status, retry_after, upgrade, call) in table {
            let failures = [
                Failure::Handshake { status, retry_after, place: None },
                Failure::Call { call: String::new(), status, retry_after },
            ];
            let verdicts = failures.map(|failure| sequenced().classify(&failure));
            assert_eq!(verdicts, [upgrade, call], "{status}");
        }
    }
}
