//! A dialect for tests: all that a new platform takes is in this file, and one line in the registry.
//!
//! Its frames are lines: `ok` accepts the opening exchange, `no` refuses it, `T:TEXT` is an event of the type T.

use std::time::Duration;

use bytestring::ByteString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Capabilities, CheckContext, CloseCode, Credential, DeliveryTerms, Dialect, Endpoint, Guarantee, Item, Liveness,
    Method, Notice, Opening, OpeningMessage, OpeningVerdict, Overlap, Preparation, PreparationStep, Probe,
    RestConversation, RestRequest, RestResponse, Resume, SettingFinding, SettingKey, Transport, Verdict,
};
use crate::model::{Body, Event, Position, Timestamp};

/// The value of `connector` in the configuration.
pub(super) const NAME: &str = "dummy";

/// Lines of text, for tests.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The WebSocket URL without the resume parameter.
    #[schemars(extend("format" = "ws-url"))]
    pub url: String,
    /// The query parameter of the token.
    pub token_parameter: Option<String>,
    /// The query parameter of the position.
    #[serde(default = "resume_parameter")]
    pub resume_parameter: String,
    /// The text that the platform answers with `pong`.
    #[serde(default = "probe")]
    pub probe: String,
    /// The endpoint comes from a REST call to this path.
    pub provision: Option<String>,
    #[serde(skip, default = "transport")]
    pub transport: Transport,
    #[serde(skip)]
    pub opening: Opening,
    #[serde(skip)]
    pub close_codes: Vec<CloseCode>,
}

fn resume_parameter() -> String {
    "after".to_owned()
}

fn probe() -> String {
    "ping".to_owned()
}

fn transport() -> Transport {
    Transport::WebSocket
}

impl Dialect for Settings {
    fn kind_default(&self) -> &str {
        "dummy.event"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            transport: self.transport,
            opening: self.opening.clone(),
            resume: Resume::None,
            overlap: Overlap::Duplicate,
            probe: Probe::Text(self.probe.clone()),
            liveness: Liveness::Reply,
            endpoint_lifetime: None,
            refresh_interval: None,
        }
    }

    fn socket_url(&self) -> Option<&str> {
        Some(&self.url)
    }

    fn prepare(&self, _subscribed: &[String]) -> (Preparation, PreparationStep) {
        let endpoint = self.endpoint();
        match &self.provision {
            None => Preparation::ready(endpoint),
            Some(path) => {
                let call = RestRequest { method: Method::Post, target: path.clone(), body: None };
                (Preparation::Calls(Box::new(Provision(endpoint))), PreparationStep::Call(call))
            }
        }
    }

    fn resume_url(&self, url: &str, position: &Position) -> String {
        format!("{url}?{}={position}", self.resume_parameter)
    }

    fn decode(&self, text: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
        items.extend(text.lines().map(|line| match (line, line.split_once(':')) {
            ("ok", _) => Item::Accepted,
            ("no", _) => Item::Notice(Notice::OpeningRefused),
            ("pong", _) => Item::ProbeAck,
            (_, Some((kind, body))) => Item::Event(event(text, kind, body, received)),
            (_, None) => Item::Undecoded(text.slice_ref(line).into_bytes()),
        }));
    }

    fn close_codes(&self) -> &[CloseCode] {
        &self.close_codes
    }

    fn guarantee(&self, terms: &DeliveryTerms) -> Guarantee {
        Guarantee { lost: terms.dropped(), duplicated: "nothing".to_owned(), reordered: "nothing".to_owned() }
    }

    fn check(&self, context: &CheckContext<'_>) -> Vec<SettingFinding> {
        let is_reserved = context.parameters.contains(&self.resume_parameter);
        let finding = || SettingFinding::mistake(SettingKey::Stream("url"), "contains the resume parameter");
        is_reserved.then(finding).into_iter().collect()
    }
}

impl Settings {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            credential: self.token_parameter.clone().map_or(Credential::InUrl, Credential::Query),
            id: None,
            topics: Vec::new(),
            refused: Vec::new(),
            subscribed: true,
            refresh_in: None,
        }
    }
}

fn event(frame: &ByteString, kind: &str, body: &str, received: Timestamp) -> Event {
    Event {
        kind: frame.slice_ref(kind),
        subject: None,
        time: None,
        sequence: None,
        correlation: None,
        partition_key: None,
        body: Body::Json(frame.slice_ref(body)),
        received,
    }
}

/// One call that returns the socket's path.
#[derive(Debug)]
struct Provision(Endpoint);

impl RestConversation for Provision {
    fn on_response(&mut self, answer: &RestResponse) -> PreparationStep {
        let path = String::from_utf8_lossy(&answer.body);
        PreparationStep::Ready(Endpoint { url: format!("{}{path}", self.0.url), ..self.0.clone() })
    }

    fn on_no_response(&mut self, why: String) -> PreparationStep {
        PreparationStep::Failed(super::Failure::Unreachable(why))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        connector::{Connector, Failure, Frame},
        model::Sequence,
        protocol::{
            Moment,
            session::{Input, Output, Session, SessionId, StartOptions, Timeouts},
        },
    };

    fn settings(transport: Transport) -> Settings {
        let token = OpeningMessage::WithToken { before: r#"{"token":""#.to_owned(), after: r#""}"#.to_owned() };
        Settings {
            transport,
            url: "wss://dummy.test".to_owned(),
            token_parameter: None,
            resume_parameter: resume_parameter(),
            opening: Opening { messages: vec![token], verdict: OpeningVerdict::Frame },
            probe: probe(),
            close_codes: vec![CloseCode { code: 4401, verdict: Verdict::RefreshToken }],
            provision: None,
        }
    }

    /// A session whose transport is open, and its outputs since then.
    fn open(settings: &Settings, now: Moment) -> (Session, Vec<Output>) {
        let timeout = Duration::from_secs(10);
        let timeouts = Timeouts { connect: timeout, silence: timeout, frame: timeout, close: timeout };
        let start = StartOptions { reuse: None, subscribed: &[] };
        let connector = Connector::Dummy(settings.clone());
        let mut session = Session::start(SessionId(1), 1, &connector, timeouts, start, now);
        if settings.provision.is_some() {
            assert!(matches!(session.poll_output(), Some(Output::Call(_))));
            let answer = RestResponse { status: 200, retry_after: None, body: "/7".into() };
            session.handle(Input::Response(Ok(answer)), now);
        }
        assert!(matches!(session.poll_output(), Some(Output::Dial(_))));
        session.handle(Input::Opened, now);
        let outputs = outputs(&mut session);
        (session, outputs)
    }

    fn outputs(session: &mut Session) -> Vec<Output> {
        std::iter::from_fn(|| session.poll_output()).collect()
    }

    fn now() -> Moment {
        #[expect(clippy::disallowed_methods, reason = "any instant serves as the start")]
        let at = Instant::now();
        Moment { at, wall: Timestamp(0), random: 0.0 }
    }

    fn frame(text: &str) -> Input {
        Input::Frame(Frame::Text(text.into()))
    }

    #[test]
    fn a_session_is_the_same_over_every_transport() {
        let poll = Transport::Poll { interval: Duration::from_secs(3) };
        for transport in [Transport::WebSocket, Transport::LongPoll, poll] {
            let settings = settings(transport);
            assert_eq!(Connector::Dummy(settings.clone()).capabilities().transport, transport);
            let (mut session, sent) = open(&settings, now());
            assert_eq!(sent, [Output::Send(settings.opening.messages[0].clone())], "no probe before the verdict");
            session.handle(frame("ok\ncall:{}"), now());
            let [Output::Live, Output::Received(items)] = &outputs(&mut session)[..] else { panic!("{transport:?}") };
            let [Item::Event(event)] = &items[..] else { panic!("{items:?}") };
            assert_eq!((&*event.kind, &event.body), ("call", &Body::Json("{}".into())));
        }
    }

    #[test]
    fn only_an_accepting_frame_makes_a_session_with_an_opening_exchange_live() {
        let start = now();
        let (mut session, _) = open(&settings(Transport::WebSocket), start);
        session.handle(frame("pong"), start);
        assert!(!session.is_live());
        session.handle_timeout(Moment { at: start.at + Duration::from_secs(10), ..start });
        assert_eq!(outputs(&mut session), [Output::Ended(Failure::Silent)]);
    }

    #[test]
    fn a_refusing_frame_ends_the_session_with_a_verdict() {
        let settings = settings(Transport::WebSocket);
        let (mut session, _) = open(&settings, now());
        session.handle(frame("no"), now());
        let failure = Failure::Notice(Notice::OpeningRefused);
        assert_eq!(outputs(&mut session), [Output::Ended(failure.clone())]);
        assert_eq!(Connector::Dummy(settings).classify(&failure), Verdict::Refused);
    }

    #[test]
    fn a_session_without_an_opening_exchange_is_live_after_the_answer_to_its_probe() {
        let settings = Settings { opening: Opening::default(), ..settings(Transport::WebSocket) };
        let (mut session, sent) = open(&settings, now());
        assert_eq!(sent, [Output::Probe(Probe::Text("ping".to_owned()))]);
        session.handle(frame("pong"), now());
        assert_eq!(outputs(&mut session), [Output::Live]);
    }

    #[test]
    fn an_endpoint_can_come_from_a_rest_call() {
        let settings = Settings { provision: Some("/channels".to_owned()), ..settings(Transport::LongPoll) };
        let (session, _) = open(&settings, now());
        assert_eq!(session.provisioned().unwrap().endpoint.url, "wss://dummy.test/7");
    }

    #[test]
    fn parameters_and_close_codes_come_from_the_settings() {
        let settings = Settings { token_parameter: Some("key".to_owned()), ..settings(Transport::WebSocket) };
        let connector = Connector::Dummy(settings.clone());
        let endpoint = settings.endpoint();
        assert_eq!(endpoint.credential, Credential::Query("key".to_owned()));
        assert_eq!(connector.url(&endpoint, Some(&Position::Numbered(Sequence(7)))), "wss://dummy.test?after=7");
        let verdict = |code| connector.classify(&Failure::Closed { code, reason: String::new() });
        assert_eq!([4401, 1008, 4001].map(verdict), [Verdict::RefreshToken, Verdict::RefreshToken, Verdict::BackOff]);
    }

    #[test]
    fn an_opening_message_contains_the_token() {
        let opening = settings(Transport::WebSocket).opening;
        assert_eq!(opening.messages[0].text("t"), r#"{"token":"t"}"#);
        assert_eq!(OpeningMessage::Text("hello".to_owned()).text("t"), "hello");
    }
}
