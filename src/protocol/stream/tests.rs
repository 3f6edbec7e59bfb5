//! The main conversations of a stream, as scripts: what it is told, and what it wants done.

use bytestring::ByteString;

use super::*;
use crate::{
    connector::{genesys_notifications, genesys_sequenced},
    model::{Body, Epoch, Offset, Sequence, Timestamp},
};

/// What a step leads to: `dial`, `leave`, `forget`, `append`, … and the state of the stream when it changes.
type Script<'a> = &'a [(&'a str, &'a str)];

#[test]
fn a_first_connect_asks_for_no_position_and_goes_on_where_it_was_lost() {
    play(
        sequenced(),
        Opening::default(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("open 1", "live"),
            ("say 1 5 6", "append 5 6 at 6"),
            ("say 1 7", ""),
            ("stored", "append 7 at 7"),
            ("stored", ""),
            ("wait 20s", ""),
            ("close 1 1006", "forget 1, again in 125ms, backing-off"),
            ("wait 125ms", "dial 2 under 1 after 7, connecting"),
            ("refuse 2 503", "forget 2, again in 1s, backing-off"),
            ("wait 1s", "dial 3 under 1 after 7, connecting"),
            // The checkpoint of a quiet stream is renewed.
            ("open 3", "append at 7, live"),
            ("stored", ""),
            ("say 3 7 8", "dropped 1, append 8 at 8"),
        ],
    );
}

#[test]
fn without_a_number_to_ask_behind_what_nobody_heard_is_marked() {
    play(
        sequenced(),
        Opening::default(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("open 1", "live"),
            ("close 1 1006", "forget 1, again in 1s, backing-off"),
            ("wait 1s", "dial 2 under 1 after none, connecting"),
            ("open 2", "gap no-replay, call GET https://p.test/summary, append gap(no-replay ?..?), recovering"),
        ],
    );
}

#[test]
fn a_new_token_is_swapped_in_before_the_old_session_is_left() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("token 2", ""),
            ("wait 75ms", "rotation token, dial 2 under 2 after 4"),
            ("say 1 5", "append 5 at 5"),
            ("open 2", "rotated after 0ns, leave 1 1000"),
            ("say 2 5 6", "dropped 1"),
            ("stored", "append 6 at 6"),
            ("close 1 1000", "forget 1"),
        ],
    );
}

#[test]
fn where_one_socket_is_allowed_the_old_one_is_left_first() {
    play(
        Settings { rotation: Rotation::BreakFirst, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, leave 1 1000, dial 2 under 1 after 4, connecting"),
            ("wait 60ms", ""),
            ("open 2", "rotated after 60ms, live"),
        ],
    );
}

#[test]
fn a_rejected_token_is_never_used_again() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("close 1 1008", "forget 1, refuse token 1, again at once, starting"),
            ("wait 61s", ""),
            ("token 2", "dial 2 under 2 after none, connecting"),
        ],
    );
}

#[test]
fn a_jump_is_marked_and_its_snapshot_stands_right_behind_it() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("say 1 7 8", ""),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 4..7) at 4, recovering"),
            ("say 1 9", ""),
            ("stored", ""),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) 7 8 9 at 9, live"),
        ],
    );
}

#[test]
fn a_snapshot_that_cannot_be_had_is_owed_and_holds_nothing_up() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("say 1 7", ""),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 4..7) at 4, recovering"),
            ("stored", ""),
            ("answer 500 {}", "no snapshot, append 7 at 7, live"),
            ("stored", ""),
            ("wait 1s", "call GET https://p.test/summary"),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) at 7"),
        ],
    );
}

#[test]
fn a_position_older_than_the_retention_is_given_up() {
    play(
        sequenced(),
        Opening {
            checkpoint: Some(Checkpoint { heard_at: Timestamp(WALL - 61_000), ..checkpoint(4) }),
            damaged: false,
        },
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("open 1", "live"),
            (
                "say 1 90",
                "gap retention, call GET https://p.test/summary, append gap(retention 4..90) at 4, recovering",
            ),
        ],
    );
}

#[test]
fn a_frame_that_is_too_large_is_not_met_twice() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("say 1 7", ""),
            ("oversize 1", "forget 1, again in 1s, backing-off"),
            // What waited for 5 and 6 is not let go without a word.
            (
                "wait 1s",
                "gap oversize, call GET https://p.test/summary, append gap(oversize 4..7) at 4, dial 2 under 1 after 7, \
                 connecting",
            ),
        ],
    );
}

#[test]
fn a_frame_that_does_not_end_is_waited_for_only_so_long_whatever_comes_between_its_parts() {
    play(
        notifications(),
        Opening::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            // One that is whole in time is no matter.
            ("begin 1", ""),
            ("wait 29s", ""),
            ("tell 1 a", "append a"),
            ("stored", ""),
            ("begin 1", ""),
            ("wait 20s", ""),
            // The checkpoint of a quiet stream is renewed.
            ("ping 1", "append"),
            ("stored", ""),
            ("wait 9s", ""),
            ("ping 1", ""),
            ("wait 999ms", ""),
            ("wait 1ms", "forget 1, a message not complete in 30 s, again in 125ms, backing-off"),
        ],
    );
}

#[test]
fn a_frame_that_never_ends_is_not_met_for_ever() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("begin 1", ""),
            ("wait 30s", "forget 1, a message not complete in 30 s, again in 125ms, backing-off"),
            ("wait 125ms", "dial 2 under 1 after 4, connecting"),
            ("open 2", "append at 4, live"),
            ("stored", ""),
            ("begin 2", ""),
            ("wait 30s", "forget 2, a message not complete in 30 s, again in 125ms, backing-off"),
            ("wait 125ms", "dial 3 under 1 after none, connecting"),
        ],
    );
}

#[test]
fn a_frame_is_not_late_while_frames_are_left_unread() {
    play(
        Settings { buffer: 2, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("begin 1", ""),
            ("say 1 5", "append 5 at 5"),
            ("begin 1", ""),
            ("say 1 6 7 8", ""),
            ("begin 1", ""),
            ("wait 50s", ""),
            ("stored", "append 6 7 8 at 8"),
            ("wait 20s", ""),
            ("stored", ""),
            ("wait 29s", ""),
        ],
    );
}

#[test]
fn a_full_buffer_keeps_the_order_of_what_was_held() {
    play(
        Settings { buffer: 3, overflow: Overflow::DropOldest, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("say 1 7 8 9 10 11", ""),
            (
                "wait 200ms",
                "gap jump, shed 3, call GET https://p.test/summary, append gap(shed 4..10) gap(jump 4..7) 10 11 at 11",
            ),
        ],
    );
}

#[test]
fn a_channel_is_replaced_by_a_second_one_and_the_old_is_left_when_it_has_answered() {
    play(
        notifications(),
        Opening::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            ("tell 1 a", "append a"),
            ("notice 1", ""),
            ("wait 75ms", "rotation notice, call POST /api/v2/notifications/channels"),
            (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 2 under 1"),
            ("open 2", "probe 2"),
            ("pong 2", "rotated after 0ns, probe 1"),
            // The old one may still bring what lies before it.
            ("tell 2 b", ""),
            ("stored", ""),
            ("tell 1 ab", "append ab"),
            ("tell 1 b", ""),
            ("stored", "append b"),
            ("pong 1", "dropped 1"),
            ("tell 2 bc", ""),
            ("wait 1s", "leave 1 1000"),
            ("tell 1 c", ""),
            ("close 1 1000", "forget 1"),
            ("tell 2 c", "dropped 1"),
        ],
    );
}

#[test]
fn a_revoked_token_is_what_its_rotation_is_counted_under() {
    play(
        notifications(),
        Opening::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            ("revoke 1", "refuse token 1"),
            ("token 2", ""),
            ("wait 75ms", "rotation revoked, call POST /api/v2/notifications/channels"),
            (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 2 under 2"),
            ("open 2", "probe 2"),
            ("pong 2", "rotated after 0ns, probe 1"),
            // The next one is revoked while the two overlap, and replaced before they are done.
            ("revoke 2", "refuse token 2"),
            ("token 3", ""),
            ("pong 1", ""),
            ("wait 1s", "leave 1 1000"),
            ("wait 75ms", "rotation revoked, call POST /api/v2/notifications/channels"),
        ],
    );
}

#[test]
fn a_channel_that_died_unnoticed_is_told_when_its_successor_is_live() {
    play_overlap(
        notifications(),
        &[("tell 2 c", ""), ("wait 5s", "gap no-replay, leave 1 1000, append gap(no-replay ?..?) c")],
    );
}

#[test]
fn a_successor_that_brings_more_than_can_wait_gives_the_silent_channel_up() {
    play_overlap(
        Settings { buffer: 2, ..notifications() },
        &[("tell 2 c", ""), ("tell 2 d", "gap no-replay, append gap(no-replay ?..?) c d"), ("wait 1s", "leave 1 1000")],
    );
}

#[test]
fn what_a_lost_successor_brought_waits_for_the_session_that_is_left() {
    play_overlap(
        notifications(),
        &[
            ("tell 2 c", ""),
            ("close 2 1006", "forget 2"),
            ("tell 1 b", "append b"),
            ("stored", ""),
            (
                "close 1 1006",
                "forget 1, gap no-replay, again in 1s, gap no-replay, append gap(no-replay ?..?) c gap(no-replay ?..?), \
                 backing-off",
            ),
        ],
    );
}

#[test]
fn a_call_that_fails_is_tried_again() {
    play(
        notifications(),
        Opening::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            ("answer 500 {}", "forget 1, again in 1s, backing-off"),
            ("wait 1s", "call POST /api/v2/notifications/channels, connecting"),
            ("answer 401 {}", "forget 2, refuse token 1, again at once, starting"),
        ],
    );
}

#[test]
fn a_drain_takes_in_what_still_comes_and_ends_when_it_is_durable() {
    play(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "live"),
            ("say 1 5", "append 5 at 5"),
            ("drain", "leave 1 1000, paused"),
            ("say 1 6", ""),
            ("close 1 1000", "forget 1"),
            ("stored", "append 6 at 6"),
            ("stored", "drained"),
        ],
    );
}

const WALL: i64 = 1_777_901_509_570;
const CHANNEL_1: &str = r#"answer 200 {"id":"c1","connectUri":"wss://p.test/c1"}"#;
const CHANNEL_2: &str = r#"answer 200 {"id":"c2","connectUri":"wss://p.test/c2"}"#;

fn sequenced() -> Settings {
    let connector = Connector::Sequenced(genesys_sequenced::Settings {
        url: "wss://p.test/stream".to_owned(),
        placement: genesys_sequenced::Placement::Header,
        snapshot_url: Some("https://p.test/summary".to_owned()),
    });
    let seconds = Duration::from_secs;
    Settings {
        connector,
        rotation: Rotation::Overlap,
        rotation_jitter: Duration::from_millis(100),
        retention: seconds(60),
        buffer: 5_000,
        overflow: Overflow::Backpressure,
        patience: Patience { connect: seconds(10), silence: seconds(60), frame: seconds(30), farewell: seconds(2) },
        backoff: backoff::Settings {
            first: seconds(1),
            cap: seconds(30),
            jitter: 0.2,
            breaker_after: 5,
            stable_after: seconds(10),
        },
    }
}

fn notifications() -> Settings {
    let connector = Connector::Notifications(genesys_notifications::Settings {
        topics: vec!["v2.conversations.c-1.transcription".to_owned()],
        channel_life: Duration::from_secs(86_400),
        discovery: Duration::from_secs(60),
    });
    Settings { connector, ..sequenced() }
}

fn checkpoint(last: u64) -> Checkpoint {
    Checkpoint { position: Some(Position(Sequence(last))), heard_at: Timestamp(WALL) }
}

fn position(last: u64) -> Opening {
    Opening { checkpoint: Some(checkpoint(last)), damaged: false }
}

/// A stream, its clock, and the log that it appends to.
struct Desk {
    stream: Stream,
    now: Now,
    call: Option<CallId>,
    begun: usize,
    log: u64,
}

fn play(settings: Settings, opening: Opening, script: Script<'_>) {
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
    let at = Instant::now();
    let now = Now { at, wall: Timestamp(WALL), unit: 0.5 };
    let mut desk = Desk { stream: Stream::new(settings, opening, now), now, call: None, begun: 0, log: 0 };
    desk.told();
    for (number, (step, expected)) in script.iter().enumerate() {
        desk.step(step);
        assert_eq!(desk.told(), *expected, "step {number}: {step}");
    }
}

/// The same from where two channels overlap and the old one has been asked.
fn play_overlap(settings: Settings, script: Script<'_>) {
    let swap = [
        ("token 1", "call POST /api/v2/notifications/channels, connecting"),
        (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
        ("answer 200 {}", "dial 1 under 1"),
        ("open 1", "probe 1"),
        ("pong 1", "live"),
        ("rotate", ""),
        ("wait 75ms", "rotation operator, call POST /api/v2/notifications/channels"),
        (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
        ("answer 200 {}", "dial 2 under 1"),
        ("open 2", "probe 2"),
        ("pong 2", "rotated after 0ns, probe 1"),
    ];
    play(settings, Opening::default(), &[&swap, script].concat());
}

impl Desk {
    fn step(&mut self, step: &str) {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        let (subject, words) = rest.split_once(' ').unwrap_or((rest, ""));
        let id = SessionId(subject.parse().unwrap_or(0));
        let input = match verb {
            "wait" => return self.wait(subject),
            "token" => Input::Token(id.0),
            "open" => Input::Opened(id),
            "begin" => Input::Begun(id),
            "refuse" => {
                let failure = Failure::Handshake { status: words.parse().unwrap(), retry_after: None };
                Input::Refused { session: id, failure }
            }
            "close" => {
                let failure = Failure::Closed { code: words.parse().unwrap(), reason: String::new() };
                Input::Closed { session: id, failure }
            }
            "oversize" => Input::Closed { session: id, failure: Failure::Oversize },
            "say" => frame(id, format!("[{}]", words.split(' ').map(numbered).collect::<Vec<_>>().join(","))),
            "tell" => frame(id, format!(r#"{{"topicName":"v2.conversations.c-1.x","eventBody":"{words}"}}"#)),
            "ping" => Input::Frame { session: id, frame: Frame::Pong },
            "pong" => frame(id, r#"{"topicName":"channel.metadata","eventBody":{"message":"pong"}}"#.to_owned()),
            "revoke" => frame(id, r#"{"topicName":"v2.system.token_revoked.u-1","eventBody":{}}"#.to_owned()),
            "notice" => frame(id, r#"{"topicName":"v2.system.socket_closing","eventBody":{}}"#.to_owned()),
            "answer" => {
                let (status, body) = (subject.parse().unwrap(), ByteString::from(words).into_bytes());
                let call = self.call.take().expect("a call is under way");
                Input::Answered { call, answer: Ok(Answer { status, retry_after: None, body }) }
            }
            "stored" => {
                self.log += std::mem::take(&mut self.begun) as u64;
                Input::Appended(Mark { epoch: Epoch(1), offset: Offset(self.log) })
            }
            "rotate" => Input::Rotate,
            "drain" => Input::Drain,
            other => panic!("no such step: {other}"),
        };
        self.stream.handle(input, self.now);
    }

    /// Lets the time go by, and every timer fire that is due.
    fn wait(&mut self, time: &str) {
        let end = self.now.at + time.parse::<crate::model::Span>().unwrap().0;
        while let Some(at) = self.stream.poll_timeout().filter(|at| *at <= end) {
            self.go_on(at.max(self.now.at));
            self.stream.handle_timeout(self.now);
        }
        self.go_on(end);
    }

    fn go_on(&mut self, at: Instant) {
        self.now.wall.0 += i64::try_from((at - self.now.at).as_millis()).unwrap();
        self.now.at = at;
    }

    fn told(&mut self) -> String {
        let mut words = Vec::new();
        while let Some(output) = self.stream.poll_output() {
            words.extend(self.tell(output));
        }
        words.join(", ")
    }

    fn tell(&mut self, output: Output) -> Option<String> {
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
            Output::Probe { session, .. } => format!("probe {}", session.0),
            Output::Leave { session, code, .. } => format!("leave {} {code}", session.0),
            Output::Forget(session) => format!("forget {}", session.0),
            Output::Append { events, checkpoint } => {
                self.begun = events.len();
                let events: String = events.iter().map(|event| format!(" {}", entry(event))).collect();
                let at = checkpoint.position.map(|position| format!(" at {position}")).unwrap_or_default();
                format!("append{events}{at}")
            }
            Output::RefuseToken(generation) => format!("refuse token {generation}"),
            Output::Drained => "drained".to_owned(),
            Output::Report(report) => return tell_report(&report),
        })
    }
}

fn tell_report(report: &Report) -> Option<String> {
    match report {
        Report::State(state) => Some(state.as_str().to_owned()),
        Report::Gap { reason, .. } => Some(format!("gap {}", reason.as_str())),
        Report::Duplicates(count) => Some(format!("dropped {count}")),
        Report::Shed(count) => Some(format!("shed {count}")),
        Report::RotationBegins(trigger) => Some(format!("rotation {}", trigger.as_str())),
        Report::Rotated { silence, .. } => Some(format!("rotated after {silence:?}")),
        Report::Lost { failure: failure @ Failure::Unfinished { .. }, retry_in: Some(delay) } => {
            Some(format!("{failure}, again in {delay:?}"))
        }
        Report::Lost { retry_in: Some(delay), .. } => Some(format!("again in {delay:?}")),
        Report::Lost { retry_in: None, .. } => Some("again at once".to_owned()),
        Report::Snapshot { taken } => Some(if *taken { "snapshot" } else { "no snapshot" }.to_owned()),
        Report::Connected(_)
        | Report::Resuming(_)
        | Report::Undecoded { .. }
        | Report::RotationFailed { .. }
        | Report::GivenUp(_)
        | Report::Breaker(_)
        | Report::Refused(_) => None,
    }
}

/// An entry in a word: `5` by its number, `gap(jump 4..7)`, `snapshot(0001-1)` with its gap, `a` by its body.
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
