//! The numbered stream over a socket: the bearer in the header or in the query, resume by `sequenceId`, arrays of
//! events. A client with a position that is too old starts at the current end, without a notice.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::FutureExt;
use tokio::sync::watch;

use super::clock::{after, now};
use super::connection::{ClientConnection, ClientInput, ConnectionEnd, ConnectionEvent};
use super::counters::SocketDialect;
use super::form;
use super::handshake::{Handshake, SocketProtocol};
use super::platform::SimulatedPlatform;
use super::reply;
use super::sequence::{RawFrame, RingCursor, RingRead};

/// Most events of one frame, for any settings.
const FRAME_MAX: usize = 50;
/// The close code of a client that is behind the entries held.
const TOO_SLOW: u16 = 1013;

/// `GET /api/v2/analytics/conversations/summary/stream`, with a bearer.
pub(super) async fn by_header(State(platform): State<Arc<SimulatedPlatform>>, request: Request) -> Response {
    let token = reply::bearer(request.headers()).map(str::to_owned);
    let checked = platform.lock().tokens.check(token.as_deref(), now());
    match checked {
        Ok(ends) => open(&platform, request, ends),
        Err(unwelcome) => reply::unauthorized(&platform, unwelcome),
    }
}

/// `GET /api/v2/analytics/events/ws?channel=&auth_token=`: the first frame reports a bad token.
pub(super) async fn by_query(State(platform): State<Arc<SimulatedPlatform>>, mut request: Request) -> Response {
    let token = query(&request, "auth_token");
    let checked = platform.lock().tokens.check(token.as_deref(), now());
    match checked {
        Ok(ends) => open(&platform, request, ends),
        Err(_) => match Handshake::accept(&platform, &mut request, SocketDialect::Sequenced, None) {
            Ok(handshake) => handshake.start(&platform, never(), InvalidToken),
            Err(answer) => *answer,
        },
    }
}

fn open(platform: &Arc<SimulatedPlatform>, mut request: Request, token_ends: Instant) -> Response {
    let requested = query(&request, "sequenceId");
    let resume = requested.filter(|text| !text.is_empty()).map(|text| text.parse::<u64>());
    let Ok(after_sequence) = resume.transpose() else {
        return reply::bad_request("sequenceId must be a number");
    };
    match Handshake::accept(platform, &mut request, SocketDialect::Sequenced, None) {
        Ok(handshake) => {
            let cursor = platform.lock().sequence.open_cursor(after_sequence, now());
            let seed = platform.settings.scenario_seed() ^ handshake.number();
            let feed = SequencedFeed {
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

/// Reports the bad token and closes.
struct InvalidToken;

impl SocketProtocol for InvalidToken {
    async fn run(self, connection: &mut ClientConnection) -> ConnectionEnd {
        match connection.send(RawFrame::Text("{\"error\":\"invalid_token\"}".to_owned())).await {
            ControlFlow::Continue(()) => connection.close(1008, "invalid_token").await,
            ControlFlow::Break(over) => over,
        }
    }
}

/// A socket that reads the shared ring; it has no queue.
struct SequencedFeed {
    platform: Arc<SimulatedPlatform>,
    tail: watch::Receiver<u64>,
    cursor: RingCursor,
    rng: fastrand::Rng,
}

impl SocketProtocol for SequencedFeed {
    async fn run(mut self, connection: &mut ClientConnection) -> ConnectionEnd {
        loop {
            if let ControlFlow::Break(over) = self.step(connection).await {
                return over;
            }
        }
    }
}

impl SequencedFeed {
    /// Sends what is available, or waits. Client input and commands are handled between two frames.
    async fn step(&mut self, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
        if let Some(woken) = connection.next_event().now_or_never() {
            return handle_event(woken, connection).await;
        }
        self.tail.mark_unchanged();
        match self.read(connection) {
            RingRead::Events(events) => connection.send(RawFrame::Text(self.frame(&events))).await,
            RingRead::Raw(raw) => connection.send((*raw).clone()).await,
            RingRead::Overrun => ControlFlow::Break(connection.close(TOO_SLOW, "too slow").await),
            RingRead::Nothing => self.wait(connection).await,
        }
    }

    fn read(&mut self, connection: &ClientConnection) -> RingRead {
        if connection.sends_suspended() {
            return RingRead::Nothing;
        }
        let max = self.rng.usize(1..=self.platform.settings.frame_max.clamp(1, FRAME_MAX));
        self.platform.lock().sequence.read(&mut self.cursor, max)
    }

    async fn wait(&mut self, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
        let event = tokio::select! {
            biased;
            woken = connection.next_event() => woken,
            _stopping = self.tail.changed() => return ControlFlow::Continue(()),
        };
        handle_event(event, connection).await
    }

    /// An array of events; a single event is sometimes sent without the array.
    fn frame(&mut self, events: &[Arc<str>]) -> String {
        if let [event] = events
            && self.rng.u8(0..4) == 0
        {
            return event.to_string();
        }
        format!("[{}]", events.join(","))
    }
}

/// The stream takes no requests; client messages are ignored.
async fn handle_event(event: ConnectionEvent, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
    match connection.handle(event).await? {
        Some(ClientInput::Expired) => connection.expire().await,
        Some(ClientInput::Text(_)) | None => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use crate::probe::{ProbeSocket, SimulatorProbe, eventually, refused};
    use crate::{Expiry, FaultTarget, PlatformFault, RawFrame, Settings, SocketDialect, UndecodableFrame};

    #[tokio::test]
    async fn emitted_events_arrive_numbered_and_complete() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.emit(50);
        let events = socket.events(50).await;
        let sequences: Vec<u64> = events.iter().map(|event| event["sequenceId"].as_u64().unwrap()).collect();
        assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
        for event in &events {
            let kind = event["eventType"].as_str().unwrap();
            assert!(kind.starts_with("v2.") && event["topicName"].as_str().unwrap().len() > kind.len());
            assert!(event["eventBody"].is_object() && event["metadata"]["CorrelationId"].is_string());
            assert!(event["eventTime"].as_str().unwrap().ends_with('Z'));
        }
        assert!(socket.is_silent().await);
        assert_eq!(probe.simulator.counters().last_sequence, 50);
    }

    #[tokio::test]
    async fn resume_replays_events_after_the_position() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        probe.simulator.emit(9);
        let mut socket = probe.stream(Some(4)).await.unwrap();
        assert_eq!(socket.sequences(5).await, [5, 6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn a_position_too_old_is_ignored() {
        let settings = Settings { retention: Duration::ZERO, ..Settings::default() };
        let probe = SimulatorProbe::start(settings).await;
        probe.simulator.emit(9);
        let mut socket = probe.stream(Some(4)).await.unwrap();
        probe.simulator.emit(1);
        assert_eq!(socket.sequences(1).await, [10]);
    }

    #[tokio::test]
    async fn a_frame_holds_one_to_frame_max_events_and_may_be_bare() {
        let probe = SimulatorProbe::start(Settings { frame_max: 7, ..Settings::default() }).await;
        let mut socket = probe.stream(Some(0)).await.unwrap();
        probe.simulator.emit(400);
        let (mut sizes, mut bare, mut received) = (Vec::new(), 0, 0);
        while received < 400 {
            match socket.json().await.as_array() {
                Some(events) => sizes.push(events.len()),
                None => bare += 1,
            }
            received = sizes.iter().sum::<usize>() + bare;
        }
        assert!(sizes.iter().all(|size| (1..=7).contains(size)) && sizes.contains(&7) && bare > 0);
    }

    #[tokio::test]
    async fn a_bad_bearer_is_refused_with_401() {
        let mut probe = SimulatorProbe::start(Settings::default()).await;
        probe.token = "nonsense".to_owned();
        assert_eq!(refused(probe.stream(None).await), 401);
        assert_eq!(
            refused(ProbeSocket::open(&probe.ws("/api/v2/analytics/conversations/summary/stream"), None).await),
            401
        );
    }

    #[tokio::test]
    async fn with_a_query_token_a_bad_token_is_reported_in_the_first_frame() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let path =
            |token: &str| probe.ws(&format!("/api/v2/analytics/events/ws?channel=queue_stats&auth_token={token}"));
        let mut socket = ProbeSocket::open(&path("nonsense"), None).await.unwrap();
        assert_eq!(socket.json().await, json!({"error": "invalid_token"}));
        assert_eq!(socket.closed().await, Some(1008));
        let mut socket = ProbeSocket::open(&path(&probe.token), None).await.unwrap();
        probe.simulator.emit(3);
        assert_eq!(socket.sequences(3).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_socket_ends_with_its_token() {
        for (expiry, code) in [(Expiry::Close(1008), 1008), (Expiry::Close(4001), 4001)] {
            let settings = Settings { token_ttl: Duration::from_millis(300), expiry, ..Settings::default() };
            let probe = SimulatorProbe::start(settings).await;
            let mut socket = probe.stream(None).await.unwrap();
            assert_eq!(socket.closed().await, Some(code));
            assert_eq!(refused(probe.stream(None).await), 401);
        }
    }

    #[tokio::test]
    async fn an_expired_token_may_leave_the_socket_open_and_silent() {
        let settings =
            Settings { token_ttl: Duration::from_millis(200), expiry: Expiry::Silence, ..Settings::default() };
        let probe = SimulatorProbe::start(settings).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.wait_until_expired().await;
        probe.simulator.emit(3);
        assert!(socket.is_silent().await);
    }

    #[tokio::test]
    async fn a_drop_resets_the_connection_without_a_close_frame() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::Drop { on: FaultTarget::Notifications });
        assert!(socket.is_silent().await);
        probe.simulator.inject(PlatformFault::Drop { on: FaultTarget::Sequenced });
        assert!(socket.is_reset().await);
        eventually(|| probe.simulator.counters().sockets(SocketDialect::Sequenced).open == 0).await;
        let sockets = probe.simulator.counters().sockets(SocketDialect::Sequenced);
        assert_eq!((sockets.total, sockets.deserted), (1, 1));
    }

    #[tokio::test]
    async fn a_stalled_socket_sends_nothing_and_answers_no_ping() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::Stall { on: FaultTarget::All, duration: Duration::from_millis(600) });
        probe.simulator.emit(1);
        socket.ping().await;
        assert!(socket.is_silent().await);
        assert_eq!(socket.sequences(1).await, [1]);
    }

    #[tokio::test]
    async fn a_drop_ends_a_stalled_socket_at_once() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::Stall { on: FaultTarget::All, duration: Duration::from_secs(3_600) });
        probe.simulator.inject(PlatformFault::Drop { on: FaultTarget::All });
        assert_eq!(socket.closed().await, None);
    }

    #[tokio::test]
    async fn closes_and_refusals_follow_the_injected_fault() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::Close { on: FaultTarget::All, code: 1012, reason: "x".repeat(500) });
        assert_eq!(socket.closed().await, Some(1012));
        let refuse =
            PlatformFault::Refuse { on: FaultTarget::All, status: 503, times: 2, retry_after: Some("1".to_owned()) };
        probe.simulator.inject(refuse);
        assert_eq!(refused(probe.stream(None).await), 503);
        assert_eq!(refused(probe.stream(None).await), 503);
        assert!(probe.stream(None).await.is_ok());
        assert_eq!(probe.simulator.counters().handshakes_refused, 2);
    }

    #[tokio::test]
    async fn numbers_can_jump_reset_repeat_and_be_reordered() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        let simulator = &probe.simulator;
        simulator.emit(2);
        simulator.inject(PlatformFault::Jump { n: 10 });
        simulator.emit(1);
        simulator.inject(PlatformFault::Duplicate { n: 2 });
        simulator.inject(PlatformFault::Reset {});
        simulator.inject(PlatformFault::Reorder { n: 3 });
        simulator.emit(4);
        assert_eq!(socket.sequences(9).await, [1, 2, 13, 2, 13, 3, 2, 1, 4]);
    }

    #[tokio::test]
    async fn undecodable_frames_are_sent_unchanged() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let mut socket = probe.stream(None).await.unwrap();
        let inject = |what| {
            probe.simulator.inject(PlatformFault::Undecodable { on: FaultTarget::Sequenced, what });
        };
        inject(UndecodableFrame::InvalidJson);
        assert!(serde_json::from_str::<serde_json::Value>(&socket.text().await).is_err());
        inject(UndecodableFrame::WrongShape);
        assert!(socket.json().await.is_string());
        inject(UndecodableFrame::Deep);
        assert!(socket.text().await.starts_with("[[[["));
        inject(UndecodableFrame::Binary);
        assert!(socket.message().await.unwrap().unwrap().is_binary());
        probe.simulator.emit_raw_sequenced(RawFrame::Fragments { text: "{\"a\":\"é€\"}".to_owned(), pieces: 4 });
        assert_eq!(socket.json().await, json!({"a": "é€"}));
        inject(UndecodableFrame::InvalidUtf8);
        assert!(socket.message().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn an_oversize_event_is_numbered_and_replayed() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        probe.simulator.emit(1);
        probe.simulator.inject(PlatformFault::Oversize { on: FaultTarget::Sequenced, bytes: 300_000 });
        for _ in 0..2 {
            let mut socket = probe.stream(Some(1)).await.unwrap();
            let event = socket.events(1).await.remove(0);
            assert_eq!(event["sequenceId"], 2);
            assert!(event.to_string().len() > 300_000);
        }
    }

    #[tokio::test]
    async fn frames_can_be_delayed_fragmented_and_trickled() {
        let probe = SimulatorProbe::start(Settings { frame_max: 1, ..Settings::default() }).await;
        let mut socket = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::Fragments { on: FaultTarget::All, n: 5 });
        probe.simulator.emit(1);
        assert_eq!(socket.sequences(1).await, [1]);
        probe.simulator.inject(PlatformFault::Delay { duration: Duration::from_millis(400) });
        probe.simulator.emit(1);
        assert!(socket.is_silent().await);
        assert_eq!(socket.sequences(1).await, [2]);
        probe.simulator.inject(PlatformFault::Delay { duration: Duration::ZERO });
        probe.simulator.inject(PlatformFault::SlowLoris { on: FaultTarget::All, every: Duration::from_millis(1) });
        probe.simulator.emit(2);
        assert!(socket.is_silent().await);
        assert_eq!(socket.sequences(2).await, [3, 4]);
    }
}
