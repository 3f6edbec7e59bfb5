//! The numbered stream over a socket: the bearer in the header or in the query, resume by `sequenceId`, arrays of
//! events. It refuses to tell a client that its position was too old: it starts at the present one in silence.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::FutureExt;
use tokio::sync::watch;

use super::clock::{after, now};
use super::form;
use super::handshake::{Handshake, Talk};
use super::line::{Heard, Line, Over, Woken};
use super::platform::Platform;
use super::reply;
use super::sequence::{Cursor, Found, Raw};
use super::tally::Dialect;

/// Most events of one frame, whatever the settings say.
const FRAME_MAX: usize = 50;
/// A client that fell behind what is held.
const TOO_SLOW: u16 = 1013;

/// `GET /api/v2/analytics/conversations/summary/stream`, with a bearer.
pub(super) async fn by_header(State(platform): State<Arc<Platform>>, request: Request) -> Response {
    let token = reply::bearer(request.headers()).map(str::to_owned);
    let checked = platform.lock().tokens.check(token.as_deref(), now());
    match checked {
        Ok(ends) => open(&platform, request, ends),
        Err(unwelcome) => reply::unauthorized(&platform, unwelcome),
    }
}

/// `GET /api/v2/analytics/events/ws?channel=&auth_token=`: a bad token is told in the first frame.
pub(super) async fn by_query(State(platform): State<Arc<Platform>>, mut request: Request) -> Response {
    let token = query(&request, "auth_token");
    let checked = platform.lock().tokens.check(token.as_deref(), now());
    match checked {
        Ok(ends) => open(&platform, request, ends),
        Err(_) => match Handshake::accept(&platform, &mut request, Dialect::Sequenced, None) {
            Ok(handshake) => handshake.start(&platform, never(), InvalidToken),
            Err(answer) => *answer,
        },
    }
}

fn open(platform: &Arc<Platform>, mut request: Request, token_ends: Instant) -> Response {
    let asked = query(&request, "sequenceId");
    let resume = asked.filter(|text| !text.is_empty()).map(|text| text.parse::<u64>());
    let Ok(after_sequence) = resume.transpose() else {
        return reply::bad_request("sequenceId must be a number");
    };
    match Handshake::accept(platform, &mut request, Dialect::Sequenced, None) {
        Ok(handshake) => {
            let cursor = platform.lock().sequence.enter(after_sequence, now());
            let seed = platform.settings.story_seed() ^ handshake.number();
            let feed = Feed {
                platform: platform.clone(),
                tail: platform.tail.subscribe(),
                cursor,
                rng: fastrand::Rng::with_seed(seed),
            };
            handshake.start(platform, after(token_ends, platform.settings.grace), feed)
        }
        Err(answer) => *answer,
    }
}

fn query(request: &Request, name: &str) -> Option<String> {
    let pairs = form::pairs(request.uri().query().unwrap_or_default())?;
    form::value(&pairs, name).map(str::to_owned)
}

fn never() -> Instant {
    after(now(), std::time::Duration::MAX)
}

/// Says that the token is bad, and closes.
struct InvalidToken;

impl Talk for InvalidToken {
    async fn talk(self, line: &mut Line) -> Over {
        match line.say(Raw::Text("{\"error\":\"invalid_token\"}".to_owned())).await {
            ControlFlow::Continue(()) => line.close(1008, "invalid_token").await,
            ControlFlow::Break(over) => over,
        }
    }
}

/// Reads the shared ring; there is no queue of its own.
struct Feed {
    platform: Arc<Platform>,
    tail: watch::Receiver<u64>,
    cursor: Cursor,
    rng: fastrand::Rng,
}

impl Talk for Feed {
    async fn talk(mut self, line: &mut Line) -> Over {
        loop {
            if let ControlFlow::Break(over) = self.turn(line).await {
                return over;
            }
        }
    }
}

impl Feed {
    /// Says what there is, else waits. Between two frames the client and faults have their say.
    async fn turn(&mut self, line: &mut Line) -> ControlFlow<Over> {
        if let Some(woken) = line.wake().now_or_never() {
            return answer(woken, line).await;
        }
        self.tail.mark_unchanged();
        match self.read(line) {
            Found::Events(events) => line.say(Raw::Text(self.frame(&events))).await,
            Found::Raw(raw) => line.say((*raw).clone()).await,
            Found::Fallen => ControlFlow::Break(line.close(TOO_SLOW, "too slow").await),
            Found::Nothing => self.wait(line).await,
        }
    }

    fn read(&mut self, line: &Line) -> Found {
        if line.is_muted() {
            return Found::Nothing;
        }
        let max = self.rng.usize(1..=self.platform.settings.frame_max.clamp(1, FRAME_MAX));
        self.platform.lock().sequence.read(&mut self.cursor, max)
    }

    async fn wait(&mut self, line: &mut Line) -> ControlFlow<Over> {
        let woken = tokio::select! {
            biased;
            woken = line.wake() => woken,
            _stopping = self.tail.changed() => return ControlFlow::Continue(()),
        };
        answer(woken, line).await
    }

    /// An array; a single event also stands bare now and then.
    fn frame(&mut self, events: &[Arc<str>]) -> String {
        if let [event] = events
            && self.rng.u8(0..4) == 0
        {
            return event.to_string();
        }
        format!("[{}]", events.join(","))
    }
}

/// The stream takes no requests; whatever a client says is passed over.
async fn answer(woken: Woken, line: &mut Line) -> ControlFlow<Over> {
    match line.attend(woken).await? {
        Some(Heard::Ended) => line.expire().await,
        Some(Heard::Text(_)) | None => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use crate::probe::{Ear, Probe, eventually, refused};
    use crate::{Dialect, Expiry, Fault, Raw, Settings, Target, Undecodable};

    #[tokio::test]
    async fn what_is_said_arrives_numbered_and_in_full() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.say(50);
        let events = ear.events(50).await;
        let sequences: Vec<u64> = events.iter().map(|event| event["sequenceId"].as_u64().unwrap()).collect();
        assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
        for event in &events {
            let kind = event["eventType"].as_str().unwrap();
            assert!(kind.starts_with("v2.") && event["topicName"].as_str().unwrap().len() > kind.len());
            assert!(event["eventBody"].is_object() && event["metadata"]["CorrelationId"].is_string());
            assert!(event["eventTime"].as_str().unwrap().ends_with('Z'));
        }
        assert!(ear.is_silent().await);
        assert_eq!(probe.simulator.tally().last_sequence, 50);
    }

    #[tokio::test]
    async fn resume_says_again_what_came_after_the_position() {
        let probe = Probe::start(Settings::default()).await;
        probe.simulator.say(9);
        let mut ear = probe.stream(Some(4)).await.unwrap();
        assert_eq!(ear.sequences(5).await, [5, 6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn a_position_too_old_is_passed_over_in_silence() {
        let settings = Settings { retention: Duration::ZERO, ..Settings::default() };
        let probe = Probe::start(settings).await;
        probe.simulator.say(9);
        let mut ear = probe.stream(Some(4)).await.unwrap();
        probe.simulator.say(1);
        assert_eq!(ear.sequences(1).await, [10]);
    }

    #[tokio::test]
    async fn a_frame_holds_one_to_frame_max_events_and_may_be_bare() {
        let probe = Probe::start(Settings { frame_max: 7, ..Settings::default() }).await;
        let mut ear = probe.stream(Some(0)).await.unwrap();
        probe.simulator.say(400);
        let (mut sizes, mut bare, mut heard) = (Vec::new(), 0, 0);
        while heard < 400 {
            match ear.json().await.as_array() {
                Some(events) => sizes.push(events.len()),
                None => bare += 1,
            }
            heard = sizes.iter().sum::<usize>() + bare;
        }
        assert!(sizes.iter().all(|size| (1..=7).contains(size)) && sizes.contains(&7) && bare > 0);
    }

    #[tokio::test]
    async fn a_bad_bearer_is_refused_with_401() {
        let mut probe = Probe::start(Settings::default()).await;
        probe.token = "nonsense".to_owned();
        assert_eq!(refused(probe.stream(None).await), 401);
        assert_eq!(refused(Ear::open(&probe.ws("/api/v2/analytics/conversations/summary/stream"), None).await), 401);
    }

    #[tokio::test]
    async fn by_query_a_bad_token_is_told_in_the_first_frame() {
        let probe = Probe::start(Settings::default()).await;
        let path =
            |token: &str| probe.ws(&format!("/api/v2/analytics/events/ws?channel=queue_stats&auth_token={token}"));
        let mut ear = Ear::open(&path("nonsense"), None).await.unwrap();
        assert_eq!(ear.json().await, json!({"error": "invalid_token"}));
        assert_eq!(ear.closed().await, Some(1008));
        let mut ear = Ear::open(&path(&probe.token), None).await.unwrap();
        probe.simulator.say(3);
        assert_eq!(ear.sequences(3).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_socket_ends_with_its_token() {
        for (expiry, code) in [(Expiry::Close(1008), 1008), (Expiry::Close(4001), 4001)] {
            let settings = Settings { token_ttl: Duration::from_millis(300), expiry, ..Settings::default() };
            let probe = Probe::start(settings).await;
            let mut ear = probe.stream(None).await.unwrap();
            assert_eq!(ear.closed().await, Some(code));
            assert_eq!(refused(probe.stream(None).await), 401);
        }
    }

    #[tokio::test]
    async fn a_token_may_end_in_silence() {
        let settings =
            Settings { token_ttl: Duration::from_millis(200), expiry: Expiry::Silence, ..Settings::default() };
        let probe = Probe::start(settings).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.expired().await;
        probe.simulator.say(3);
        assert!(ear.is_silent().await);
    }

    #[tokio::test]
    async fn a_drop_loses_the_connection_without_a_goodbye() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::Drop { on: Target::Notifications });
        assert!(ear.is_silent().await);
        probe.simulator.inject(Fault::Drop { on: Target::Sequenced });
        assert!(ear.is_reset().await);
        eventually(|| probe.simulator.tally().sockets(Dialect::Sequenced).open == 0).await;
        let sockets = probe.simulator.tally().sockets(Dialect::Sequenced);
        assert_eq!((sockets.total, sockets.deserted), (1, 1));
    }

    #[tokio::test]
    async fn a_stalled_socket_says_nothing_and_answers_no_ping() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::Stall { on: Target::All, lasting: Duration::from_millis(600) });
        probe.simulator.say(1);
        ear.ping().await;
        assert!(ear.is_silent().await);
        assert_eq!(ear.sequences(1).await, [1]);
    }

    #[tokio::test]
    async fn a_drop_ends_a_stalled_socket_at_once() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::Stall { on: Target::All, lasting: Duration::from_secs(3_600) });
        probe.simulator.inject(Fault::Drop { on: Target::All });
        assert_eq!(ear.closed().await, None);
    }

    #[tokio::test]
    async fn closes_and_refusals_come_as_ordered() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::Close { on: Target::All, code: 1012, reason: "x".repeat(500) });
        assert_eq!(ear.closed().await, Some(1012));
        let refuse = Fault::Refuse { on: Target::All, status: 503, times: 2, retry_after: Some("1".to_owned()) };
        probe.simulator.inject(refuse);
        assert_eq!(refused(probe.stream(None).await), 503);
        assert_eq!(refused(probe.stream(None).await), 503);
        assert!(probe.stream(None).await.is_ok());
        assert_eq!(probe.simulator.tally().handshakes_refused, 2);
    }

    #[tokio::test]
    async fn numbers_jump_start_over_come_twice_and_in_disorder() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        let simulator = &probe.simulator;
        simulator.say(2);
        simulator.inject(Fault::Jump { n: 10 });
        simulator.say(1);
        simulator.inject(Fault::Duplicate { n: 2 });
        simulator.inject(Fault::Reset {});
        simulator.inject(Fault::Reorder { n: 3 });
        simulator.say(4);
        assert_eq!(ear.sequences(9).await, [1, 2, 13, 2, 13, 3, 2, 1, 4]);
    }

    #[tokio::test]
    async fn frames_nobody_can_read_are_sent_as_they_are() {
        let probe = Probe::start(Settings::default()).await;
        let mut ear = probe.stream(None).await.unwrap();
        let inject = |what| {
            probe.simulator.inject(Fault::Undecodable { on: Target::Sequenced, what });
        };
        inject(Undecodable::InvalidJson);
        assert!(serde_json::from_str::<serde_json::Value>(&ear.text().await).is_err());
        inject(Undecodable::WrongShape);
        assert!(ear.json().await.is_string());
        inject(Undecodable::Deep);
        assert!(ear.text().await.starts_with("[[[["));
        inject(Undecodable::Binary);
        assert!(ear.message().await.unwrap().unwrap().is_binary());
        probe.simulator.say_raw_sequenced(Raw::Fragments { text: "{\"a\":\"é€\"}".to_owned(), pieces: 4 });
        assert_eq!(ear.json().await, json!({"a": "é€"}));
        inject(Undecodable::InvalidUtf8);
        assert!(ear.message().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn an_oversize_event_has_a_number_and_is_said_again() {
        let probe = Probe::start(Settings::default()).await;
        probe.simulator.say(1);
        probe.simulator.inject(Fault::Oversize { on: Target::Sequenced, bytes: 300_000 });
        for _ in 0..2 {
            let mut ear = probe.stream(Some(1)).await.unwrap();
            let event = ear.events(1).await.remove(0);
            assert_eq!(event["sequenceId"], 2);
            assert!(event.to_string().len() > 300_000);
        }
    }

    #[tokio::test]
    async fn frames_come_late_in_pieces_and_byte_by_byte() {
        let probe = Probe::start(Settings { frame_max: 1, ..Settings::default() }).await;
        let mut ear = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::Fragments { on: Target::All, n: 5 });
        probe.simulator.say(1);
        assert_eq!(ear.sequences(1).await, [1]);
        probe.simulator.inject(Fault::Delay { lasting: Duration::from_millis(400) });
        probe.simulator.say(1);
        assert!(ear.is_silent().await);
        assert_eq!(ear.sequences(1).await, [2]);
        probe.simulator.inject(Fault::Delay { lasting: Duration::ZERO });
        probe.simulator.inject(Fault::SlowLoris { on: Target::All, every: Duration::from_millis(1) });
        probe.simulator.say(2);
        assert!(ear.is_silent().await);
        assert_eq!(ear.sequences(2).await, [3, 4]);
    }
}
