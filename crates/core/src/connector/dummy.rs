//! A dialect for tests: all that a new platform takes is in this file, and one line in the registry.
//!
//! Its frames are lines: `ok` accepts the opening exchange, `no` refuses it, `T:TEXT` is an event of the type T, and
//! `@TEXT` is a position. A line `cursor=C` names the cursor of the next poll.

use std::time::Duration;

use bytestring::ByteString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Capabilities, CheckContext, CloseCode, Credential, DeliveryTerms, Dialect, Endpoint, Failure, Guarantee, Item,
    Liveness, Method, Notice, Opening, OpeningMessage, OpeningVerdict, Overlap, PollAnswer, PollCursor, Preparation,
    PreparationStep, Probe, RestConversation, RestRequest, RestResponse, Resume, SettingFinding, SettingKey, Transport,
    Verdict,
};
use crate::model::{Body, Event, Position, Timestamp};

/// The value of `connector` in the configuration.
pub(super) const NAME: &str = "dummy";

const CURSOR: &str = "cursor=";

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
            resume: Resume::Opaque,
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
        format!("{url}?{}={}", self.resume_parameter, percent_encoded(&position.to_string()))
    }

    /// The cursor replaces the resume parameter.
    fn poll_request(&self, url: &str, cursor: Option<&PollCursor>) -> RestRequest {
        let base = url.split('?').next().unwrap_or_default();
        match cursor {
            Some(PollCursor(cursor)) => RestRequest::get(&format!("{base}?{}={cursor}", self.resume_parameter)),
            None => RestRequest::get(url),
        }
    }

    /// 409: the platform has ended the session.
    fn poll_answer(&self, answer: &RestResponse) -> PollAnswer {
        let text = String::from_utf8_lossy(&answer.body);
        let next = text.lines().find_map(|line| line.strip_prefix(CURSOR)).map(|cursor| PollCursor(cursor.to_owned()));
        match PollAnswer::by_status(answer) {
            PollAnswer::Frame { .. } if text.lines().all(|line| line.starts_with(CURSOR)) => PollAnswer::Empty { next },
            PollAnswer::Frame { .. } => PollAnswer::Frame { next },
            PollAnswer::Ended(_) if answer.status == 409 => PollAnswer::Ended(Failure::Notice(Notice::EndpointGone)),
            meaning @ (PollAnswer::Empty { .. } | PollAnswer::Ended(_)) => meaning,
        }
    }

    fn decode(&self, text: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
        items.extend(text.lines().map(|line| match (line, line.split_once(':')) {
            ("ok", _) => Item::Accepted,
            ("no", _) => Item::Notice(Notice::OpeningRefused),
            ("pong", _) => Item::ProbeAck,
            (line, _) if line.starts_with(CURSOR) => Item::Heartbeat,
            (position, _) if position.starts_with('@') => match Position::opaque(&position[1..]) {
                Some(position) => Item::Position(position),
                None => Item::Undecoded(text.slice_ref(line).into_bytes()),
            },
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

/// A text as the value of a query parameter.
fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
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
        PreparationStep::Failed(Failure::Unreachable(why))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        connector::{Connector, Frame, PollExchange, PollStep},
        model::Sequence,
        protocol::{
            Moment,
            session::{Input, Output, Session, SessionId, StartOptions, Timeouts},
        },
    };

    const INTERVAL: Duration = Duration::from_secs(3);
    const TRANSPORTS: [Transport; 3] =
        [Transport::WebSocket, Transport::LongPoll, Transport::Poll { interval: INTERVAL }];

    /// A poll transport has no opening messages.
    fn settings(transport: Transport) -> Settings {
        let token = OpeningMessage::WithToken { before: r#"{"token":""#.to_owned(), after: r#""}"#.to_owned() };
        let messages = if transport == Transport::WebSocket { vec![token] } else { Vec::new() };
        Settings {
            transport,
            url: "wss://dummy.test".to_owned(),
            token_parameter: None,
            resume_parameter: resume_parameter(),
            opening: Opening { messages, verdict: OpeningVerdict::Frame },
            probe: probe(),
            close_codes: vec![CloseCode { code: 4401, verdict: Verdict::RefreshToken }],
            provision: None,
        }
    }

    fn exchange(settings: &Settings) -> PollExchange {
        PollExchange::new(Connector::Dummy(settings.clone()), settings.transport, settings.url.clone())
    }

    fn answer(status: u16, body: &str) -> RestResponse {
        RestResponse { status, retry_after: None, body: body.to_owned().into() }
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
            session.handle(Input::Response(Ok(answer(200, "/7"))), now);
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

    /// A text as a frame of the transport.
    fn frame(settings: &Settings, text: &str) -> Input {
        Input::Frame(match settings.transport {
            Transport::WebSocket => Frame::Text(text.into()),
            Transport::LongPoll | Transport::Poll { .. } => {
                exchange(settings).on_answer(answer(200, text), Duration::ZERO).unwrap().frame.unwrap()
            }
        })
    }

    #[test]
    fn a_session_is_the_same_over_every_transport() {
        for settings in TRANSPORTS.map(settings) {
            let transport = settings.transport;
            assert_eq!(Connector::Dummy(settings.clone()).capabilities().transport, transport);
            let (mut session, sent) = open(&settings, now());
            let opening: Vec<Output> = settings.opening.messages.iter().cloned().map(Output::Send).collect();
            assert_eq!(sent, opening, "no probe before the verdict");
            session.handle(frame(&settings, "ok\ncall:{}"), now());
            let [Output::Live, Output::Received(items)] = &outputs(&mut session)[..] else { panic!("{transport:?}") };
            let [Item::Event(event)] = &items[..] else { panic!("{items:?}") };
            assert_eq!((&*event.kind, &event.body), ("call", &Body::Json("{}".into())));
        }
    }

    #[test]
    fn only_an_accepting_frame_makes_a_session_with_an_opening_exchange_live() {
        for settings in TRANSPORTS.map(settings) {
            let start = now();
            let (mut session, _) = open(&settings, start);
            session.handle(frame(&settings, "pong"), start);
            assert!(!session.is_live());
            session.handle_timeout(Moment { at: start.at + Duration::from_secs(10), ..start });
            assert_eq!(outputs(&mut session), [Output::Ended(Failure::Silent)]);
        }
    }

    #[test]
    fn a_refusing_frame_ends_the_session_with_a_verdict() {
        for settings in TRANSPORTS.map(settings) {
            let (mut session, _) = open(&settings, now());
            session.handle(frame(&settings, "no"), now());
            let failure = Failure::Notice(Notice::OpeningRefused);
            assert_eq!(outputs(&mut session), [Output::Ended(failure.clone())]);
            assert_eq!(Connector::Dummy(settings).classify(&failure), Verdict::Refused);
        }
    }

    #[test]
    fn a_position_that_is_too_long_is_undecoded() {
        let connector = Connector::Dummy(settings(Transport::LongPoll));
        let mut items = Vec::new();
        let long = format!("@{}", "x".repeat(Position::LEN_MAX + 1));
        let text = format!("@a:b\n{long}");
        connector.decode(Frame::Text(text.into()), Timestamp(0), &mut items);
        assert_eq!(items, [Item::Position(Position::opaque("a:b").unwrap()), Item::Undecoded(long.into())]);
    }

    #[test]
    fn a_session_without_an_opening_exchange_is_live_after_the_answer_to_its_probe() {
        for transport in TRANSPORTS {
            let settings = Settings { opening: Opening::default(), ..settings(transport) };
            let (mut session, sent) = open(&settings, now());
            assert_eq!(sent, [Output::Probe(Probe::Text("ping".to_owned()))]);
            session.handle(frame(&settings, "pong"), now());
            assert_eq!(outputs(&mut session), [Output::Live]);
        }
    }

    #[test]
    fn an_empty_poll_is_a_sign_of_life_and_answers_the_probes_before_it() {
        let settings = Settings { opening: Opening::default(), ..settings(Transport::LongPoll) };
        let start = now();
        let (mut session, _) = open(&settings, start);
        session.handle(Input::Frame(Frame::Answered { probes: 1 }), start);
        assert_eq!(outputs(&mut session), [Output::Live]);
        session.send_flush_probe(start);
        let idle = session.poll_timeout();
        let half = Moment { at: start.at + Duration::from_secs(1), ..start };
        session.handle(Input::PartialFrame, start);
        session.handle(Input::Frame(Frame::Answered { probes: 0 }), half);
        assert!(!session.has_acked_probes(), "the request was sent before the probe");
        assert_eq!(session.poll_timeout(), idle);
        session.handle(Input::Frame(Frame::Answered { probes: 1 }), half);
        assert!(session.has_acked_probes());
        assert_eq!(outputs(&mut session), [Output::Probe(Probe::Text("ping".to_owned()))]);
        session.handle_timeout(Moment { at: start.at + Duration::from_millis(10_500), ..start });
        assert!(session.is_live(), "no answer is in progress");
    }

    #[test]
    fn an_answer_names_the_next_request() {
        for transport in &TRANSPORTS[1..] {
            let settings = settings(*transport);
            let position = Position::Numbered(Sequence(7));
            let url = Connector::Dummy(settings.clone()).url(&settings.endpoint(), Some(&position));
            let mut exchange = PollExchange::new(Connector::Dummy(settings), *transport, url);
            let mut targets = vec![exchange.request().target];
            for text in ["cursor=8\na:{}", "cursor=9", "b:{}", ""] {
                exchange.on_answer(answer(200, text), Duration::ZERO).unwrap();
                targets.push(exchange.request().target);
            }
            let cursors = ["7", "8", "9", "9", "9"].map(|cursor| format!("wss://dummy.test?after={cursor}"));
            assert_eq!(targets, cursors, "an answer without a cursor keeps it");
        }
    }

    #[test]
    fn a_request_waits_for_its_interval_and_after_events_of_a_long_poll_not_at_all() {
        let [zero, second] = [0, 1].map(Duration::from_secs);
        let [_, long_poll, poll] = TRANSPORTS;
        let table = [
            (long_poll, 200, "a:{}", zero, zero),
            (long_poll, 304, "", second, zero),
            (long_poll, 200, "cursor=1", second / 4, second * 3 / 4),
            (long_poll, 204, "", zero, second),
            (poll, 200, "a:{}", second, second * 2),
            (poll, 304, "", zero, INTERVAL),
            (poll, 200, " \n", INTERVAL * 2, zero),
        ];
        for (transport, status, body, elapsed, wait) in table {
            let step = exchange(&settings(transport)).on_answer(answer(status, body), elapsed).unwrap();
            let frame = (body == "a:{}").then(|| Frame::Binary("a:{}".into()));
            assert_eq!(step, PollStep { frame, wait }, "{transport:?} {status} {body:?}");
        }
    }

    #[test]
    fn an_error_ends_the_session_with_the_verdict_of_a_call() {
        let settings = settings(Transport::LongPoll);
        let table = [
            (401, Verdict::RefreshToken, "the poll was answered with 401"),
            (403, Verdict::Refused, "the poll was answered with 403"),
            (409, Verdict::NewEndpoint, "the channel does not exist at the platform any more (expired or evicted)"),
            (302, Verdict::BackOff, "the poll was answered with 302"),
            (503, Verdict::BackOff, "the poll was answered with 503"),
        ];
        for (status, verdict, text) in table {
            let failure = exchange(&settings).on_answer(answer(status, ""), Duration::ZERO).unwrap_err();
            assert_eq!(Connector::Dummy(settings.clone()).classify(&failure), verdict, "{status}");
            assert_eq!(failure.to_string(), text);
        }
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
        for (position, url) in [
            (Position::Numbered(Sequence(7)), "wss://dummy.test?after=7"),
            (Position::opaque("a b&c").unwrap(), "wss://dummy.test?after=a%20b%26c"),
        ] {
            assert_eq!(connector.url(&endpoint, Some(&position)), url);
        }
        let verdict = |code| connector.classify(&Failure::Closed { code, reason: String::new() });
        assert_eq!([4401, 1008, 4001].map(verdict), [Verdict::RefreshToken, Verdict::RefreshToken, Verdict::BackOff]);
        let class = |code| connector.failure_class(&Failure::Closed { code, reason: String::new() }).as_str();
        assert_eq!([4401, 1008, 4001].map(class), ["refused", "refused", "network"]);
    }

    #[test]
    fn an_opening_message_contains_the_token() {
        let opening = settings(Transport::WebSocket).opening;
        assert_eq!(opening.messages[0].text("t"), r#"{"token":"t"}"#);
        let (token, sent) = (r#"a"b\c"#, r#"{"token":"a\"b\\c"}"#);
        assert_eq!(opening.messages[0].text(token), sent, "the token is escaped");
        assert_eq!(OpeningMessage::Text("hello".to_owned()).text("t"), "hello");
    }
}
