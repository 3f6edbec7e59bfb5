//! What a platform is: a few choices told as values, and pure functions that read what it says.
//!
//! A connector never holds a socket, a clock or an HTTP client: REST calls are values that go out
//! ([`Request`]) and answers that come in ([`Answer`]). It never sees a token either: the shell puts the token
//! where [`Credential`] says.

mod attributes;
pub mod genesys_notifications;
pub mod genesys_sequenced;
mod json;

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use self::json::Members;
use crate::model::{Event, Exchange, FeedId, Position, StatusMeaning, Timestamp};

/// The dialect of a platform. A closed set that we ship.
#[derive(Debug, Clone)]
pub enum Connector {
    Notifications(genesys_notifications::Settings),
    Sequenced(genesys_sequenced::Settings),
}

/// What the rules of a stream must know of its platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether and how the platform can be asked to go on where we stopped.
    pub resume: Resume,
    /// What a second socket does to the first.
    pub overlap: Overlap,
    /// What is sent to a platform that has been silent, to hear whether it lives.
    pub probe: Probe,
    /// When a new socket counts as live. One that replaces a live one has to be heard, whatever this is.
    pub liveness: Liveness,
    /// How long one endpoint may be used before it is replaced.
    pub endpoint_lifetime: Option<Duration>,
    /// How often the endpoint is tended (new topics, refused topics) while it is live.
    pub refresh_interval: Option<Duration>,
}

/// Whether a position can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Events that happen while no socket is open are gone.
    None,
    /// Events are numbered densely and replayed from a number for a time.
    Sequence,
}

/// What a second socket does to the first: the order of a swap follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Both get every event: open, prove, drop doubles, close the old one.
    Duplicate,
    /// The platform allows one only: close, then open.
    None,
}

/// The question put to a silent platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// A ping of RFC 6455 section 5.5.2.
    Ping,
    /// A text message of the platform's own.
    Text(&'static str),
}

/// When an open socket is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// When the platform said anything that is not a refusal; the probe is sent at once to make it speak.
    Reply,
    /// The same, or when it said nothing at all for this long: the handshake is the authentication.
    ReplyOrQuietFor(Duration),
    /// When it said anything that is not a refusal, or nothing at all for this long.
    QuietFor(Duration),
}

impl Liveness {
    /// After how long without a word a socket is live.
    pub fn quiet_period(self) -> Option<Duration> {
        match self {
            Self::Reply => None,
            Self::ReplyOrQuietFor(wait) | Self::QuietFor(wait) => Some(wait),
        }
    }
}

/// Where the token goes on the upgrade request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// `Authorization: Bearer …`
    Header,
    /// A query parameter of this name.
    Query(&'static str),
    /// The URL itself is the credential.
    InUrl,
}

/// How to reach the socket, until it has to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `ws://` or `wss://`, without token and resume parameter.
    pub url: String,
    pub credential: Credential,
    /// The platform's name for it, where it has one (a channel id).
    pub id: Option<String>,
    /// What is subscribed on it.
    pub topics: Vec<String>,
    /// What is configured and not heard, with the reason.
    pub refused: Vec<RefusedTopic>,
    /// False where it was made and nothing is subscribed on it yet.
    pub subscribed: bool,
    /// It is to be tended after this time, and not at the usual one: the platform asked for a pause.
    pub refresh_in: Option<Duration>,
}

impl Endpoint {
    /// A topic that is heard by this endpoint and that the platform refused to the other one.
    pub fn topic_refused_by<'a>(&self, other: &'a Self) -> Option<&'a RefusedTopic> {
        let known = |refused: &RefusedTopic| self.refused.iter().any(|known| known.topic == refused.topic);
        let heard = |refused: &RefusedTopic| {
            self.topics.iter().any(|topic| *topic == refused.topic || *topic == refused.request)
        };
        let is_less =
            |refused: &&RefusedTopic| refused.state == TopicState::Refused && !known(refused) && heard(refused);
        other.refused.iter().find(is_less)
    }

    /// The same endpoint with nothing subscribed on it.
    pub fn unsubscribed(self) -> Self {
        Self { topics: Vec::new(), refused: Vec::new(), subscribed: false, ..self }
    }
}

/// A topic that is configured and not heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTopic {
    pub topic: String,
    pub reason: String,
    pub state: TopicState,
    /// The topic that was asked for: another than `topic` where that is a part of a combined one.
    pub request: String,
}

/// Why a topic is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// The platform refused it, or the look-up of what it stands for.
    Refused,
    /// There is no room for it, or nothing that it stands for could be found or read.
    Unavailable,
}

impl RefusedTopic {
    pub(crate) fn new(topic: &str, reason: String, state: TopicState) -> Self {
        Self { topic: topic.to_owned(), reason, state, request: topic.to_owned() }
    }
}

/// A REST call. The shell adds the token and the account's API address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestRequest {
    pub method: Method,
    /// Path and query below the account's API address, or an absolute URL where the configuration gives one.
    pub target: String,
    pub body: Option<String>,
}

/// The methods that platforms use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
}

impl RestRequest {
    /// How the call is named in errors: without its query, which may be long, or a secret.
    pub fn call(&self) -> String {
        let method = match self.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        };
        format!("{method} {}", self.target.split(['?', '#']).next().unwrap_or_default())
    }
}

/// What came back from a REST call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestResponse {
    pub status: u16,
    /// `Retry-After`, as a time to wait from receipt on.
    pub retry_after: Option<Duration>,
    /// The body, bounded by the shell.
    pub body: Bytes,
}

/// What getting an endpoint needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreparationStep {
    Call(RestRequest),
    Ready(Endpoint),
    Failed(Failure),
}

/// A conversation of REST calls that ends in an [`Endpoint`].
#[derive(Debug, Clone)]
pub enum Preparation {
    Notifications(Box<genesys_notifications::ChannelPreparation>),
    Sequenced(Endpoint),
}

/// A frame as the socket gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Text(ByteString),
    Binary(Bytes),
    /// The answer to [`Probe::Ping`], or a ping of the platform's own.
    Pong,
}

/// What a frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Event(Event),
    /// The platform lives; nothing else.
    Heartbeat,
    /// The answer to a [`Probe::Text`]: one comes for each, in their order.
    ProbeAck,
    Notice(Notice),
    /// Nobody can read it.
    Undecoded(Bytes),
}

/// What a platform says about the conversation itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It will close this socket soon.
    Closing,
    /// The token was revoked.
    TokenRevoked,
    /// It does not take this token.
    TokenInvalid,
    /// The endpoint is gone (expired or evicted).
    EndpointGone,
    /// Somebody else took the subscriptions over.
    Displaced,
}

/// Why a conversation failed, before anybody judged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The upgrade was answered with another status than 101. `place`: where it was asked for, without secrets.
    Handshake { status: u16, retry_after: Option<Duration>, place: Option<String> },
    /// A REST call was answered with an error. `call`: its method and path, and what the answer says.
    Call { call: String, status: u16, retry_after: Option<Duration> },
    /// No connection, no answer in time, or an answer that makes no sense.
    Unreachable(String),
    /// The socket was closed: RFC 6455 section 7.4; 1006 when nobody said why.
    Closed { code: u16, reason: String },
    /// The platform was not heard within the window.
    Silent,
    /// A frame beyond `frame_max`.
    Oversize,
    /// A frame that was not whole within this time.
    Unfinished { within: Duration },
    /// A data frame that cannot be taken in: it breaks the protocol, or is a text that is not UTF-8.
    Unreadable(String),
    /// The platform said so in a frame.
    Notice(Notice),
    /// A topic that the session before it hears is not subscribed on the successor.
    Unsubscribed { topic: String, reason: String },
}

/// How sure it is that an upgrade was refused because of the position that it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionDoubt {
    Certain,
    /// Only if the same attempt is refused again.
    WhenRepeated,
}

/// What to do about a failure. One for each; obeyed, never looked behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The network's or the platform's trouble: back off. A session that was stable is tried again at once.
    BackOff,
    /// The platform restarts and hung up on everybody: back off, with no immediate attempt.
    Restarting,
    /// It asked for this much time.
    WaitFor(Duration),
    /// The token is not taken (any more): get another one, then go on at once.
    RefreshToken,
    /// The endpoint is dead: get another one.
    NewEndpoint,
    /// The platform understood and does not want it. Once it may pass; repeated, an operator must act.
    Refused,
}

/// A platform that is overloaded (close code 1013) is left alone for this long.
const OVERLOADED_WAIT: Duration = Duration::from_secs(5);

impl Connector {
    /// The name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Notifications(_) => "genesys-notifications",
            Self::Sequenced(_) => "genesys-sequenced",
        }
    }

    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Notifications(settings) => settings.choices(),
            Self::Sequenced(settings) => settings.choices(),
        }
    }

    /// The socket's URL, where the configuration names it.
    pub fn socket_url(&self) -> Option<&str> {
        match self {
            Self::Notifications(_) => None,
            Self::Sequenced(settings) => Some(&settings.url),
        }
    }

    /// Whose numbers a position of it is in: the socket's URL where the configuration names it, else the account's API.
    pub fn feed(&self, api_url: &str) -> FeedId {
        FeedId::of(self.name(), self.socket_url().unwrap_or(api_url))
    }

    /// Begins to get an endpoint. The topics that were subscribed before are subscribed again, whatever a listing of this
    /// moment holds.
    pub fn prepare(&self, subscribed: &[String]) -> (Preparation, PreparationStep) {
        match self {
            Self::Notifications(settings) => {
                let (preparation, step) = genesys_notifications::ChannelPreparation::begin(settings, subscribed);
                (Preparation::Notifications(Box::new(preparation)), step)
            }
            Self::Sequenced(settings) => {
                let endpoint = settings.endpoint();
                (Preparation::Sequenced(endpoint.clone()), PreparationStep::Ready(endpoint))
            }
        }
    }

    /// Goes on with an endpoint that was made and never subscribed.
    pub fn resume(&self, spare: &Endpoint, subscribed: &[String]) -> (Preparation, PreparationStep) {
        match self {
            Self::Notifications(settings) => {
                let (preparation, step) =
                    genesys_notifications::ChannelPreparation::resume(settings, spare, subscribed);
                (Preparation::Notifications(Box::new(preparation)), step)
            }
            Self::Sequenced(_) => self.prepare(subscribed),
        }
    }

    /// Begins to tend a live endpoint; its end is the endpoint as it is then.
    pub fn refresh_subscriptions(&self, endpoint: &Endpoint) -> (Preparation, PreparationStep) {
        match self {
            Self::Notifications(settings) => {
                let (preparation, step) = genesys_notifications::ChannelPreparation::tend(settings, endpoint);
                (Preparation::Notifications(Box::new(preparation)), step)
            }
            Self::Sequenced(_) => (Preparation::Sequenced(endpoint.clone()), PreparationStep::Ready(endpoint.clone())),
        }
    }

    /// The URL to open: the endpoint's, with the resume parameter where there is a position.
    pub fn url(&self, endpoint: &Endpoint, resume: Option<Position>) -> String {
        match (self, resume) {
            (Self::Sequenced(settings), Some(position)) => settings.resume_url(&endpoint.url, position),
            (Self::Notifications(_), _) | (Self::Sequenced(_), None) => endpoint.url.clone(),
        }
    }

    /// The `type` of an event that names none, or none that may stand in an envelope.
    fn kind_default(&self) -> &'static str {
        match self {
            Self::Notifications(_) => "genesys-notifications.event",
            Self::Sequenced(_) => genesys_sequenced::KIND_DEFAULT,
        }
    }

    /// Reads a frame. Everything in it is accounted for: what cannot be read comes out as [`Item::Undecoded`].
    pub fn decode(&self, frame: Frame, received: Timestamp, items: &mut Vec<Item>) {
        let before = items.len();
        self.decode_frame(frame, received, items);
        for item in &mut items[before..] {
            if let Item::Event(event) = item {
                attributes::normalize(event, self.kind_default());
            }
        }
    }

    fn decode_frame(&self, frame: Frame, received: Timestamp, items: &mut Vec<Item>) {
        match frame {
            Frame::Pong => items.push(Item::Heartbeat),
            // Some platforms and gateways send their texts in binary frames.
            Frame::Binary(bytes) => match ByteString::try_from(bytes.clone()) {
                Ok(text) => self.decode_text(&text, received, items),
                Err(_) => items.push(Item::Undecoded(bytes)),
            },
            Frame::Text(text) => self.decode_text(&text, received, items),
        }
    }

    fn decode_text(&self, text: &ByteString, received: Timestamp, items: &mut Vec<Item>) {
        match self {
            Self::Notifications(_) => genesys_notifications::decode(text, received, items),
            Self::Sequenced(_) => genesys_sequenced::decode(text, received, items),
        }
    }

    /// The REST calls whose answers show the current state, for after a gap.
    pub fn snapshot(&self, endpoint: Option<&Endpoint>) -> Vec<RestRequest> {
        match self {
            Self::Notifications(settings) => {
                genesys_notifications::snapshot(endpoint.map_or(&settings.topics, |endpoint| &endpoint.topics))
            }
            Self::Sequenced(settings) => settings.snapshot(),
        }
    }

    /// The call for the page that follows, where an answer was one page of several.
    pub fn snapshot_next(&self, request: &RestRequest, answer: &RestResponse) -> Option<RestRequest> {
        match self {
            Self::Notifications(_) => genesys_notifications::next_page(request, answer),
            Self::Sequenced(_) => None,
        }
    }

    /// Judges a failure.
    pub fn classify(&self, failure: &Failure) -> Verdict {
        match failure {
            Failure::Handshake { status, retry_after, .. } => match self {
                Self::Notifications(_) if matches!(status, 401 | 403 | 404) => Verdict::NewEndpoint,
                Self::Notifications(_) | Self::Sequenced(_) => {
                    verdict_for_status(Exchange::Upgrade, *status, *retry_after)
                }
            },
            Failure::Call { status, retry_after, .. } => match self {
                // A channel that is not there any more is made anew.
                Self::Notifications(_) if *status == 404 => Verdict::NewEndpoint,
                Self::Notifications(_) | Self::Sequenced(_) => {
                    verdict_for_status(Exchange::Call, *status, *retry_after)
                }
            },
            Failure::Closed { code, .. } => verdict_for_close_code(*code),
            Failure::Unreachable(_)
            | Failure::Silent
            | Failure::Oversize
            | Failure::Unfinished { .. }
            | Failure::Unreadable(_) => Verdict::BackOff,
            Failure::Notice(Notice::TokenInvalid | Notice::TokenRevoked) => Verdict::RefreshToken,
            Failure::Notice(Notice::EndpointGone | Notice::Closing) => Verdict::NewEndpoint,
            Failure::Notice(Notice::Displaced) | Failure::Unsubscribed { .. } => Verdict::Refused,
        }
    }
}

/// The verdict on a status that is not the wanted one. A success that cannot be used is tried again like a server error.
fn verdict_for_status(exchange: Exchange, status: u16, retry_after: Option<Duration>) -> Verdict {
    match StatusMeaning::of(exchange, status, retry_after) {
        StatusMeaning::Throttled(Some(wait)) => Verdict::WaitFor(wait),
        StatusMeaning::Success | StatusMeaning::Transient | StatusMeaning::Throttled(None) => Verdict::BackOff,
        StatusMeaning::Unauthenticated => Verdict::RefreshToken,
        StatusMeaning::Refused => Verdict::Refused,
    }
}

/// RFC 6455 section 7.4.1, and 4001, by which sequenced streams say that the token expired.
fn verdict_for_close_code(code: u16) -> Verdict {
    match code {
        1008 | 4001 => Verdict::RefreshToken,
        1011 | 1012 => Verdict::Restarting,
        1013 => Verdict::WaitFor(OVERLOADED_WAIT),
        _ => Verdict::BackOff,
    }
}

impl Preparation {
    /// Takes the answer to the call of the last step.
    pub fn on_response(&mut self, answer: &RestResponse) -> PreparationStep {
        match self {
            Self::Notifications(preparation) => preparation.answered(answer),
            Self::Sequenced(endpoint) => PreparationStep::Ready(endpoint.clone()),
        }
    }

    /// Takes the fact that the call of the last step has no answer.
    pub fn on_no_response(&mut self, why: String) -> PreparationStep {
        match self {
            Self::Notifications(preparation) => preparation.unanswered(why),
            Self::Sequenced(_) => PreparationStep::Failed(Failure::Unreachable(why)),
        }
    }

    /// An endpoint that was made on the way and can be gone on with.
    pub fn spare(&self) -> Option<&Endpoint> {
        match self {
            Self::Notifications(preparation) => preparation.spare(),
            Self::Sequenced(_) => None,
        }
    }
}

impl Failure {
    /// A call that was answered with an error, and what the answer says about it (`reference/genesys-cloud.md`
    /// section 1.4).
    pub fn from_response(call: &str, answer: &RestResponse) -> Self {
        let members = Members::read(&answer.body);
        let member = |name| members.as_ref().and_then(|members| members.text(name)).filter(|text| !text.is_empty());
        let words = [member("code"), member("message")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let params = members.as_ref().and_then(|members| Members::read(members.get("messageParams")?.get().as_bytes()));
        let permissions =
            params.and_then(|params| params.text("permissions")).filter(|known| !words.contains(known.as_str()));
        let says =
            [Some(words).filter(|words| !words.is_empty()), permissions].into_iter().flatten().collect::<Vec<_>>();
        let call = match says.is_empty() {
            true => call.to_owned(),
            false => format!("{call} ({})", json::truncated(&says.join("; missing permissions: "))),
        };
        Self::Call { call, status: answer.status, retry_after: answer.retry_after }
    }

    /// The same failure of an attempt with the place that it was made at.
    pub fn with_context(self, place: &str) -> Self {
        match self {
            Self::Handshake { status, retry_after, place: None } => {
                Self::Handshake { status, retry_after, place: Some(place.to_owned()) }
            }
            Self::Unreachable(why) => Self::Unreachable(format!("{place}: {why}")),
            failure @ (Self::Handshake { .. }
            | Self::Call { .. }
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. }) => failure,
        }
    }

    /// Whether an upgrade or a call was answered, and not in a way that passes by itself when it is repeated. One such
    /// answer is tried again like any trouble; several in a row are for an operator.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Handshake { status, .. } | Self::Call { status, .. } => {
                !matches!(status, 401 | 408 | 425 | 429 | 500..=599)
            }
            Self::Unreachable(_)
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. } => false,
        }
    }

    /// Whether an upgrade that asked for a position may have been refused because of it. A 404 may be both: that, or a
    /// stream that is not there for a moment.
    pub fn position_doubt(&self) -> Option<PositionDoubt> {
        match self {
            Self::Handshake { status: 400 | 409 | 410 | 416, .. } => Some(PositionDoubt::Certain),
            Self::Handshake { status: 404, .. } => Some(PositionDoubt::WhenRepeated),
            Self::Handshake { .. }
            | Self::Call { .. }
            | Self::Unreachable(_)
            | Self::Closed { .. }
            | Self::Silent
            | Self::Oversize
            | Self::Unfinished { .. }
            | Self::Unreadable(_)
            | Self::Notice(_)
            | Self::Unsubscribed { .. } => None,
        }
    }

    /// Under which class a lost session is counted.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Handshake { .. } | Self::Call { .. } => "refused",
            Self::Unreachable(_) => "network",
            Self::Silent => "silence",
            Self::Oversize | Self::Unfinished { .. } | Self::Unreadable(_) => "protocol",
            Self::Notice(_) | Self::Unsubscribed { .. } => "refused",
            Self::Closed { code, .. } => match code {
                1000 => "clean",
                1002 | 1003 | 1007 | 1009 | 1010 => "protocol",
                1008 | 4001 => "refused",
                1011..=1013 => "restart",
                _ => "network",
            },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handshake { status, place: None, .. } => write!(f, "the upgrade was answered with {status}"),
            Self::Handshake { status, place: Some(place), .. } => {
                write!(f, "the upgrade of {place} was answered with {status}")
            }
            Self::Call { call, status, .. } => write!(f, "{call} was answered with {status}"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Closed { code, reason } if reason.is_empty() => write!(f, "closed with {code}"),
            Self::Closed { code, reason } => write!(f, "closed with {code} {reason:?}"),
            Self::Silent => write!(f, "not heard within the window"),
            Self::Oversize => write!(f, "a frame beyond frame_max"),
            Self::Unfinished { within } => write!(f, "a message not complete in {} s", within.as_secs_f64()),
            Self::Unreadable(why) => write!(f, "a frame that cannot be read: {why}"),
            Self::Unsubscribed { topic, reason } => write!(f, "{topic} is not subscribed: {reason}"),
            Self::Notice(notice) => notice.fmt(f),
        }
    }
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closing => "the platform announced that it closes the socket",
            Self::TokenRevoked => "the platform revoked the token",
            Self::TokenInvalid => "the platform refused the token on the open socket",
            Self::EndpointGone => "the channel does not exist at the platform any more (expired or evicted)",
            Self::Displaced => "another channel took the subscriptions over",
        })
    }
}

#[cfg(test)]
mod tests {
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
            (1013, Verdict::WaitFor(OVERLOADED_WAIT), "restart"),
            (3999, Verdict::BackOff, "network"),
            (4001, Verdict::RefreshToken, "refused"),
        ];
        for (code, verdict, class) in table {
            let failure = Failure::Closed { code, reason: String::new() };
            assert_eq!((sequenced().classify(&failure), failure.class()), (verdict, class), "{code}");
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
        assert_eq!((sequenced().classify(&failure), failure.class()), (Verdict::BackOff, "protocol"));
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
