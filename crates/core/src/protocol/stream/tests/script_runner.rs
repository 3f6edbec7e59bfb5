//! Runs scripts: a stream, its clock, and its outputs as text.

use std::time::Duration;

use bytestring::ByteString;

use super::*;
use crate::{
    connector::{Connector, Failure, Frame, genesys_notifications, genesys_sequenced},
    model::{Body, Epoch, Event, Mark, Offset, Sequence},
    protocol::{
        backoff,
        session::{SessionId, Timeouts},
    },
};

/// Steps and their outputs: `dial`, `close`, `drop socket`, `append`, …, and the state of the stream when it changes.
pub(super) type Script<'a> = &'a [(&'a str, &'a str)];

pub(super) const WALL: i64 = 1_777_901_509_570;
pub(super) const CHANNEL_1: &str = r#"answer 200 {"id":"c1","connectUri":"wss://p.test/c1"}"#;
pub(super) const CHANNEL_2: &str = r#"answer 200 {"id":"c2","connectUri":"wss://p.test/c2"}"#;

/// An unnumbered stream whose first session is live.
pub(super) const LIVE: Script<'_> = &[
    ("token 1", "call POST /api/v2/notifications/channels, connecting"),
    (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
    ("answer 200 {}", "dial 1 under 1"),
    ("open 1", "probe 1"),
    ("pong 1", "live"),
];

/// A rotation up to the overlap, where the old session was sent a probe.
pub(super) const SWAP: Script<'_> = &[
    ("rotate", ""),
    ("wait 75ms", "rotation operator, call POST /api/v2/notifications/channels"),
    (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
    ("answer 200 {}", "dial 2 under 1"),
    ("open 2", "probe 2"),
    ("pong 2", "rotated after 0ns, probe 1"),
];

pub(super) fn sequenced() -> Settings {
    let connector = Connector::Sequenced(genesys_sequenced::Settings {
        url: "wss://p.test/stream".to_owned(),
        placement: genesys_sequenced::Placement::Header,
        snapshot_url: Some("https://p.test/summary".to_owned()),
    });
    let seconds = Duration::from_secs;
    Settings {
        feed: connector.feed("https://p.test"),
        connector,
        rotation: Rotation::Overlap,
        rotation_jitter: Duration::from_millis(100),
        retention: seconds(60),
        buffer: 5_000,
        buffer_bytes: 64 << 20,
        append_max: 2_048,
        overflow: OverflowPolicy::Backpressure,
        timeouts: Timeouts { connect: seconds(10), silence: seconds(60), frame: seconds(30), close: seconds(2) },
        backoff: backoff::Settings {
            first: seconds(1),
            cap: seconds(30),
            jitter: 0.2,
            breaker_after: 5,
            stable_after: seconds(10),
        },
    }
}

pub(super) fn notifications() -> Settings {
    let connector = Connector::Notifications(genesys_notifications::Settings {
        topics: vec!["v2.conversations.c-1.transcription".to_owned()],
        channel_life: Duration::from_secs(86_400),
        discovery: Duration::from_secs(60),
    });
    Settings { feed: connector.feed("https://p.test"), connector, ..sequenced() }
}

pub(super) fn checkpoint(last: u64) -> Checkpoint {
    Checkpoint { position: Some(Position::Numbered(Sequence(last))), last_received_at: Timestamp(WALL), feed: None }
}

pub(super) fn opaque_checkpoint(text: &str) -> Checkpoint {
    Checkpoint { position: Position::opaque(text), ..checkpoint(0) }
}

pub(super) fn position(last: u64) -> LogHead {
    LogHead { checkpoint: Some(checkpoint(last)), damaged: false }
}

/// A stream, its clock, and the log that it appends to.
struct ScriptRunner {
    stream: Stream,
    now: Moment,
    call: Option<CallId>,
    sessions_started: usize,
    log: u64,
}

/// The start time of every script.
pub(super) fn start() -> Moment {
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
    let at = Instant::now();
    Moment { at, wall: Timestamp(WALL), random: 0.5 }
}

/// A frame with these numbered events.
pub(super) fn numbered_frame(numbers: &[&str]) -> Frame {
    Frame::Text(format!("[{}]", numbers.iter().copied().map(numbered).collect::<Vec<_>>().join(",")).into())
}

pub(super) fn run_script(settings: Settings, opening: LogHead, script: Script<'_>) {
    let now = start();
    run_on(Stream::new(settings, opening, now), now, script);
}

/// Runs a script for a standby.
pub(super) fn run_standby_script(settings: Settings, script: Script<'_>) {
    let now = start();
    run_on(Stream::standby(settings, now), now, script);
}

fn run_on(stream: Stream, now: Moment, script: Script<'_>) {
    let mut runner = ScriptRunner { stream, now, call: None, sessions_started: 0, log: 0 };
    runner.drain_outputs();
    for (number, (step, expected)) in script.iter().enumerate() {
        if let Some(wanted) = step.strip_prefix("objects ") {
            assert_eq!(runner.objection(wanted), *expected, "step {number}: {step}");
            continue;
        }
        runner.step(step);
        assert_eq!(runner.drain_outputs(), *expected, "step {number}: {step}");
    }
}

/// Runs a script that begins at the overlap of two channels.
pub(super) fn run_overlap_script(settings: Settings, script: Script<'_>) {
    run_script(settings, LogHead::default(), &[LIVE, SWAP, script].concat());
}

impl ScriptRunner {
    fn step(&mut self, step: &str) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let (subject, words) = rest.split_once(' ').unwrap_or((rest, ""));
        let id = SessionId(subject.parse().unwrap_or(0));
        let input = match verb {
            "wait" => return self.wait(subject),
            "stopped" => return self.suspend(subject),
            "token" => Input::Token(id.0),
            "open" => Input::Opened(id),
            // The socket opens, and the platform answers the ping.
            "join" => {
                self.stream.handle(Input::Opened(id), self.now);
                Input::Frame { session: id, frame: Frame::Pong }
            }
            "begin" => Input::PartialFrame(id),
            "refuse" => {
                let failure = Failure::Handshake { status: words.parse().unwrap(), retry_after: None, place: None };
                Input::ConnectFailed { session: id, failure }
            }
            "close" => {
                let failure = Failure::Closed { code: words.parse().unwrap(), reason: String::new() };
                Input::Closed { session: id, failure }
            }
            "unreadable" => Input::Closed { session: id, failure: Failure::Unreadable("reserved bits".to_owned()) },
            "oversize" => Input::Closed { session: id, failure: Failure::Oversize },
            "events" => Input::Frame { session: id, frame: numbered_frame(&words.split(' ').collect::<Vec<_>>()) },
            "text" => frame(id, format!(r#"{{"topicName":"v2.conversations.c-1.x","eventBody":"{words}"}}"#)),
            "ping" => Input::Frame { session: id, frame: Frame::Pong },
            "pong" => frame(id, r#"{"topicName":"channel.metadata","eventBody":{"message":"pong"}}"#.to_owned()),
            "heartbeat" => frame(
                id,
                r#"{"topicName":"channel.metadata","eventBody":{"message":"WebSocket Heartbeat"}}"#.to_owned(),
            ),
            "lines" => frame(id, words.replace(' ', "\n")),
            "revoke" => frame(id, r#"{"topicName":"v2.system.token_revoked.u-1","eventBody":{}}"#.to_owned()),
            "notice" => frame(id, r#"{"topicName":"v2.system.socket_closing","eventBody":{}}"#.to_owned()),
            "answer" => {
                let (status, body) = (subject.parse().unwrap(), ByteString::from(words).into_bytes());
                let call = self.call.take().expect("a call is under way");
                Input::Response { call, response: Ok(RestResponse { status, retry_after: None, body }) }
            }
            "stored" => {
                self.log += std::mem::take(&mut self.sessions_started) as u64;
                Input::Appended(Mark { epoch: Epoch(1), offset: Offset(self.log) })
            }
            "rotate" => Input::Rotate,
            "pause" => Input::Pause,
            "resume" => Input::Resume,
            "drain" => Input::Drain,
            "flush" => Input::Flush,
            "release" => Input::Release,
            "follow" => Input::Follow(Sequence(id.0)),
            "own" | "own-covered" => take_over(subject, words, verb == "own-covered", None),
            "own-other" => take_over(subject, words, false, Some(FeedId(0))),
            "kept" => {
                return assert_eq!(
                    (self.stream.standby_len(), self.stream.is_ready()),
                    (id.0 as usize, words == "live")
                );
            }
            other => panic!("no such step: {other}"),
        };
        self.stream.handle(input, self.now);
    }

    /// Advances the clock and fires every timer that is due.
    fn wait(&mut self, time: &str) {
        let end = self.now.at + time.parse::<crate::model::Span>().unwrap().0;
        while let Some(at) = self.stream.poll_timeout().filter(|at| *at <= end) {
            self.advance_to(at.max(self.now.at));
            self.stream.handle_timeout(self.now);
        }
        self.advance_to(end);
    }

    fn objection(&self, wanted: &str) -> &'static str {
        let wanted = match wanted {
            "rotate" => Input::Rotate,
            "pause" => Input::Pause,
            "resume" => Input::Resume,
            other => panic!("no operator can ask for {other}"),
        };
        self.stream.objection(&wanted).unwrap_or_default()
    }

    /// The process is suspended for this time. Its timers fire afterwards.
    fn suspend(&mut self, time: &str) {
        self.advance_to(self.now.at + time.parse::<crate::model::Span>().unwrap().0);
        self.stream.handle_timeout(self.now);
    }

    fn advance_to(&mut self, at: Instant) {
        self.now.wall.0 += i64::try_from((at - self.now.at).as_millis()).unwrap();
        self.now.at = at;
    }

    fn drain_outputs(&mut self) -> String {
        let mut words = Vec::new();
        while let Some(output) = self.stream.poll_output() {
            words.extend(self.describe(output));
        }
        words.join(", ")
    }

    fn describe(&mut self, output: Output) -> Option<String> {
        Some(match output {
            Output::Call { call, request, .. } => {
                self.call = Some(call);
                format!("call {} {}", format!("{:?}", request.method).to_uppercase(), request.target)
            }
            Output::Dial { session, generation, dial } => {
                let after = dial.url.split_once("sequenceId=").map(|(_, position)| format!(" after {position}"));
                let numbered = dial.url.contains("/stream").then(|| " after none".to_owned());
                format!("dial {} under {generation}{}", session.0, after.or(numbered).unwrap_or_default())
            }
            Output::Send { session, message, .. } => format!("send {} {}", session.0, message.text("TOKEN")),
            Output::Probe { session, .. } => format!("probe {}", session.0),
            Output::Close { session, code, .. } => format!("close {} {code}", session.0),
            Output::DropSocket(session) => format!("drop socket {}", session.0),
            Output::Append { events, checkpoint } => {
                self.sessions_started = events.len();
                let events: String = events.iter().map(|event| format!(" {}", entry(event))).collect();
                let at = checkpoint.position.map(|position| format!(" at {position}")).unwrap_or_default();
                format!("append{events}{at}")
            }
            Output::TokenRejected(generation) => format!("refuse token {generation}"),
            Output::TokenProven(_) => return None,
            Output::Flushed => "flushed".to_owned(),
            Output::Drained => "drained".to_owned(),
            Output::Report(report) => return describe_report(&report),
        })
    }
}

/// The position of the log (`-`: none, `new`: the log is empty), its newest entries, and its feed, if that is known.
fn take_over(last: &str, stored: &str, covered: bool, feed: Option<FeedId>) -> Input {
    let checkpoint = |last: &str| match last {
        "new" => None,
        "-" => Some(Checkpoint { position: None, last_received_at: Timestamp(WALL), feed }),
        opaque if opaque.starts_with('@') => Some(opaque_checkpoint(&opaque[1..])),
        number => Some(Checkpoint { feed, ..checkpoint(number.parse().unwrap()) }),
    };
    let stored = stored.split(' ').filter(|body| !body.is_empty()).map(stored_event).collect();
    Input::BecomeOwner { head: LogHead { checkpoint: checkpoint(last), damaged: false }, stored, covered }
}

/// `a` is an event with this body, `gap` a gap entry, and `old-gap` a gap entry that is two minutes old.
fn stored_event(body: &str) -> Event {
    let gap = |age: i64| Gap::unknown(GapReason::NoReplay).event(Timestamp(WALL - age));
    match body {
        "gap" => return gap(0),
        "old-gap" => return gap(120_000),
        _platform => (),
    }
    let mut event = Event::internal("e", &body, Timestamp(WALL));
    event.subject = Some("v2.conversations.c-1.x".into());
    event
}

fn describe_report(report: &StreamReport) -> Option<String> {
    match report {
        StreamReport::State(state) => Some(state.as_str().to_owned()),
        StreamReport::Gap { reason, .. } => Some(format!("gap {}", reason.as_str())),
        StreamReport::Duplicates(count) => Some(format!("dropped {count}")),
        StreamReport::Shed(count) => Some(format!("shed {count}")),
        StreamReport::RotationStarted(trigger) => Some(format!("rotation {}", trigger.as_str())),
        StreamReport::Rotated { silence, .. } => Some(format!("rotated after {silence:?}")),
        StreamReport::SessionLost { failure: failure @ Failure::Unfinished { .. }, retry_in: Some(delay) } => {
            Some(format!("{failure}, retry in {delay:?}"))
        }
        StreamReport::SessionLost { retry_in: Some(delay), .. } => Some(format!("retry in {delay:?}")),
        StreamReport::ActionRequired { retry_in, .. } => Some(format!("action required, retry in {retry_in:?}")),
        StreamReport::SessionLost { retry_in: None, .. } => Some("retry at once".to_owned()),
        StreamReport::FeedChanged => Some("other feed".to_owned()),
        StreamReport::Snapshot(fetched) => Some(if fetched.is_ok() { "snapshot" } else { "no snapshot" }.to_owned()),
        StreamReport::Connected(_)
        | StreamReport::Resuming(_)
        | StreamReport::Undecoded { .. }
        | StreamReport::RotationFailed { .. }
        | StreamReport::Breaker(_)
        | StreamReport::TopicCoverage(_) => None,
    }
}

/// An entry as text: `5` by its number, `gap(jump 4..7)`, `snapshot(0001-1)` with its gap, `a` by its body.
fn entry(event: &Event) -> String {
    let Body::Json(text) = &event.body else { return "binary".to_owned() };
    let data: serde_json::Value = serde_json::from_str(text).unwrap();
    let word = |key: &str| data[key].as_str().unwrap_or("?").to_owned();
    match (&*event.kind, event.sequence) {
        (_, Some(sequence)) => sequence.to_string(),
        ("trunkline.gap.v1", None) => format!("gap({} {}..{})", word("reason"), word("after"), word("before")),
        ("trunkline.snapshot.v1", None) => format!("snapshot({})", word("gap")),
        (_, None) => data.as_str().unwrap_or("?").to_owned(),
    }
}

fn numbered(number: &str) -> String {
    format!(r#"{{"sequenceId":{number}}}"#)
}

fn frame(session: SessionId, text: String) -> Input {
    Input::Frame { session, frame: Frame::Text(text.into()) }
}
