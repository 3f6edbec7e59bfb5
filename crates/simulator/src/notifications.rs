//! Notification sockets: one per channel, with heartbeats, pings, and subscriptions over the socket. A notification
//! without an open socket is lost.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::channels::{ChannelError, OutboundNotification, SocketAttachment, SubscriptionChange};
use super::clock::{after, now};
use super::connection::{ClientConnection, ClientInput, ConnectionCommand, ConnectionEnd};
use super::counters::SocketDialect;
use super::handshake::{Handshake, SocketProtocol};
use super::platform::{PlatformState as Inner, SimulatedPlatform};
use super::reply;
use super::rest::notifications::select_topics;
use super::sequence::RawFrame;

/// Notifications in the outbox of one socket. A client with a full outbox is disconnected.
const OUTBOX_MAX: usize = 16_384;
/// Notifications written between two flushes.
const WRITE_BATCH: usize = 64;
/// The close code of a socket whose channel has another one.
const REPLACED_CLOSE_CODE: u16 = 1001;

/// `GET /channels/{id}`: needs no token; the address is the credential.
pub(super) async fn open(
    State(platform): State<Arc<SimulatedPlatform>>,
    Path(channel): Path<String>,
    mut request: Request,
) -> Response {
    let Some(ends) = platform.lock().channels.ends_at(&channel, now()) else {
        return reply::not_found(&platform, "channel not found");
    };
    let name = Some(channel.clone());
    match Handshake::accept(&platform, &mut request, SocketDialect::Notifications, name) {
        Ok(handshake) => attach(&platform, channel, ends, handshake),
        Err(answer) => *answer,
    }
}

fn attach(platform: &Arc<SimulatedPlatform>, channel: String, ends: Instant, handshake: Handshake) -> Response {
    let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
    let attached = SocketAttachment { socket: handshake.number(), outbox };
    let mut state = platform.lock();
    match state.channels.attach(&channel, attached, now()) {
        Ok(Some(replaced)) => state.send_command(replaced, closing("Another socket of this channel was opened")),
        Ok(None) => (),
        Err(ChannelError::Gone | ChannelError::TooManyTopics) => {
            drop(state);
            return reply::not_found(platform, "channel not found");
        }
    }
    drop(state);
    let heartbeat = heartbeat(platform);
    handshake.start(platform, ends, NotificationFeed { platform: platform.clone(), channel, inbox, heartbeat })
}

/// The command that closes a socket whose channel has another one or has ended.
pub(super) fn closing(reason: &str) -> ConnectionCommand {
    ConnectionCommand::Close { code: REPLACED_CLOSE_CODE, reason: reason.to_owned() }
}

fn heartbeat(platform: &SimulatedPlatform) -> Interval {
    let every = platform.settings.heartbeat.max(std::time::Duration::from_millis(1));
    let mut heartbeat = interval_at(after(now(), every).into(), every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

struct NotificationFeed {
    platform: Arc<SimulatedPlatform>,
    channel: String,
    inbox: mpsc::Receiver<OutboundNotification>,
    heartbeat: Interval,
}

impl SocketProtocol for NotificationFeed {
    async fn run(mut self, connection: &mut ClientConnection) -> ConnectionEnd {
        loop {
            if let ControlFlow::Break(over) = self.step(connection).await {
                return over;
            }
        }
    }
}

impl NotificationFeed {
    async fn step(&mut self, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
        let mut batch = Vec::new();
        let listening = !connection.sends_suspended();
        let event = tokio::select! {
            biased;
            woken = connection.next_event() => woken,
            _ = self.heartbeat.tick() => return connection.send(metadata("WebSocket Heartbeat")).await,
            _count = self.inbox.recv_many(&mut batch, WRITE_BATCH), if listening && !self.is_detached() => {
                return self.deliver(batch, connection).await;
            }
        };
        match connection.handle(event).await? {
            Some(ClientInput::Text(text)) => {
                self.deliver_pending(connection).await?;
                connection.send(self.answer(&text)).await
            }
            Some(ClientInput::Expired) => self.end(connection).await,
            None => ControlFlow::Continue(()),
        }
    }

    /// The channel has replaced this outbox, and its last notification was sent.
    fn is_detached(&self) -> bool {
        self.inbox.is_closed() && self.inbox.is_empty()
    }

    /// Sends what is queued before the answer to a request: the answer must not overtake it.
    async fn deliver_pending(&mut self, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
        if connection.sends_suspended() {
            return ControlFlow::Continue(());
        }
        let pending = self.inbox.len();
        let batch = std::iter::from_fn(|| self.inbox.try_recv().ok()).take(pending).collect();
        self.deliver(batch, connection).await
    }

    async fn deliver(
        &self,
        batch: Vec<OutboundNotification>,
        connection: &mut ClientConnection,
    ) -> ControlFlow<ConnectionEnd> {
        let numbers: Vec<u64> = batch.iter().map(|sent| sent.number).collect();
        for notification in batch {
            connection.feed(RawFrame::Text(notification.text.as_str().to_owned())).await?;
        }
        connection.flush().await?;
        let mut state = self.platform.lock();
        for number in numbers {
            let first = state.notification_log.mark_written(number);
            state.counters.notifications.delivered += u64::from(first);
        }
        ControlFlow::Continue(())
    }

    /// Handles the expiry that was known when the socket opened. The channel may have been extended since.
    async fn end(&self, connection: &mut ClientConnection) -> ControlFlow<ConnectionEnd> {
        let ends = self.platform.lock().channels.ends_at(&self.channel, now());
        match ends {
            Some(later) => {
                connection.set_expiry(later);
                ControlFlow::Continue(())
            }
            None => connection.expire().await,
        }
    }

    fn answer(&self, text: &str) -> RawFrame {
        let Ok(request) = serde_json::from_str::<ClientRequest>(text) else {
            return reply_text(
                &json!({"result": "400", "status": "error", "topics": [], "message": "Invalid request."}),
            );
        };
        match request.message.as_str() {
            "ping" => metadata("pong"),
            "subscribe" => self.change(&request, "subscribed"),
            "unsubscribe" => self.change(&request, "unsubscribed"),
            _other => failure(&request, "400", "Unknown message."),
        }
    }

    fn change(&self, request: &ClientRequest, done: &str) -> RawFrame {
        let Some(topics) = &request.topics else {
            let kind = if done == "subscribed" { "subscribe" } else { "unsubscribe" };
            return failure(request, "400", &format!("Required data missing from {kind} request."));
        };
        let mut state = self.platform.lock();
        let changed = if done == "subscribed" {
            self.subscribe(&mut state, topics)
        } else {
            state.channels.unsubscribe(&self.channel, topics, now())
        };
        drop(state);
        match changed {
            Ok(()) => reply_text(&json!({
                "result": "200", "status": done, "topics": topics, "correlationId": request.correlation_id,
            })),
            Err(ChannelError::Gone) => failure(request, "404", "Channel not found."),
            Err(ChannelError::TooManyTopics) => failure(request, "400", "Too many topics."),
        }
    }

    fn subscribe(&self, state: &mut Inner, topics: &[String]) -> Result<(), ChannelError> {
        let wanted = select_topics(topics, state.world.roster(), &self.platform.settings.forbidden_topics);
        state.channels.subscribe(&self.channel, wanted.permitted, SubscriptionChange::Add, now())
    }
}

/// A message of the client on the socket.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientRequest {
    message: String,
    topics: Option<Vec<String>>,
    correlation_id: Option<String>,
}

fn metadata(message: &str) -> RawFrame {
    reply_text(&json!({"topicName": "channel.metadata", "eventBody": {"message": message}}))
}

fn failure(request: &ClientRequest, result: &str, message: &str) -> RawFrame {
    reply_text(&json!({
        "correlationId": request.correlation_id, "topics": [], "result": result, "status": "error",
        "message": message,
    }))
}

fn reply_text(value: &Value) -> RawFrame {
    RawFrame::Text(value.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use serde_json::json;

    use crate::probe::{ProbeSocket, SimulatorProbe, eventually, refused};
    use crate::{Expiry, FaultTarget, PlatformFault, RawFrame, Settings, SocketDialect};

    #[tokio::test]
    async fn only_subscribed_topics_arrive_and_the_ledger_knows_which() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut socket) = probe.open_channel(std::slice::from_ref(&topic)).await;
        let mark = probe.simulator.ledger().mark();
        probe.simulator.emit(200);
        let emitted = probe.simulator.ledger().emitted_since(mark);
        let expected: Vec<String> =
            emitted.iter().filter(|sent| sent.topic == topic).map(|sent| sent.correlation.clone()).collect();
        assert!(expected.len() > 3 && emitted.len() == 200);
        for correlation in &expected {
            let event = socket.json().await;
            assert_eq!(event["topicName"], *topic);
            assert_eq!(event["version"], "2");
            assert_eq!(event["metadata"]["CorrelationId"], *correlation);
        }
        assert!(socket.is_silent().await);
        let emitted = probe.simulator.ledger().emitted_since(mark);
        assert!(emitted.iter().all(|sent| sent.written == (sent.topic == topic) && sent.subscribed == sent.written));
        let counters = probe.simulator.counters().notifications;
        assert_eq!((counters.said, counters.delivered), (200, expected.len() as u64));
        assert_eq!(counters.gone, 200 - counters.delivered);
    }

    #[tokio::test]
    async fn a_combined_topic_delivers_events_under_their_own_topic_names() {
        let probe = SimulatorProbe::start(Settings { agents: 1, queues: 1, ..Settings::default() }).await;
        let user = probe.simulator.agent_ids().remove(0);
        let (_, mut socket) = probe.open_channel(&[format!("v2.users.{user}?routingStatus&activity")]).await;
        probe.simulator.emit(200);
        let mut names = HashSet::new();
        while names.len() < 2 {
            names.insert(socket.json().await["topicName"].as_str().unwrap().to_owned());
        }
        assert_eq!(
            names,
            HashSet::from([format!("v2.users.{user}.routingStatus"), format!("v2.users.{user}.activity")])
        );
    }

    #[tokio::test]
    async fn notifications_emitted_without_a_socket_are_lost() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, uri) = probe.channel().await;
        probe.subscribe(&id, &probe.all_topics()).await;
        probe.simulator.emit(20);
        let mut socket = ProbeSocket::open(&uri, None).await.unwrap();
        assert!(socket.is_silent().await);
        assert_eq!(probe.simulator.counters().notifications.gone, 20);
        assert!(probe.simulator.ledger().emitted_since(0).iter().any(|sent| sent.subscribed && !sent.written));
    }

    #[tokio::test]
    async fn the_subscriptions_survive_a_reconnect_to_the_same_channel() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, uri) = probe.channel().await;
        probe.subscribe(&id, &probe.all_topics()).await;
        drop(ProbeSocket::open(&uri, None).await.unwrap());
        let mut socket = ProbeSocket::open(&uri, None).await.unwrap();
        probe.simulator.emit(20);
        assert!(socket.json().await["eventBody"].is_object());
    }

    #[tokio::test]
    async fn a_second_socket_of_a_channel_disconnects_the_first() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, mut first) = probe.open_channel(&probe.all_topics()).await;
        let mut second = ProbeSocket::open(&probe.ws(&format!("/channels/{id}")), None).await.unwrap();
        assert!(first.closed().await.is_some());
        eventually(|| probe.simulator.counters().sockets(SocketDialect::Notifications).open == 1).await;
        probe.simulator.emit(20);
        assert!(second.json().await["topicName"].is_string());
    }

    #[tokio::test]
    async fn two_channels_both_get_every_event() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let topics = probe.all_topics();
        let ((_, mut one), (_, mut other)) = (probe.open_channel(&topics).await, probe.open_channel(&topics).await);
        probe.simulator.emit(30);
        for _ in 0..10 {
            assert_eq!(one.text().await, other.text().await);
        }
    }

    #[tokio::test]
    async fn heartbeats_are_sent_and_pings_are_answered() {
        let probe =
            SimulatorProbe::start(Settings { heartbeat: Duration::from_millis(250), ..Settings::default() }).await;
        let (_, mut socket) = probe.open_channel(&[]).await;
        socket.send(json!({"message": "ping"})).await;
        assert_eq!(socket.json().await, json!({"topicName": "channel.metadata", "eventBody": {"message": "pong"}}));
        for _ in 0..2 {
            let heartbeat = json!({"topicName": "channel.metadata", "eventBody": {"message": "WebSocket Heartbeat"}});
            assert_eq!(socket.json().await, heartbeat);
        }
    }

    #[tokio::test]
    async fn a_reply_follows_notifications_sent_before_the_request() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut socket) = probe.open_channel(std::slice::from_ref(&topic)).await;
        probe.simulator.inject(PlatformFault::Delay { duration: Duration::from_millis(2) });
        let mark = probe.simulator.ledger().mark();
        probe.simulator.emit(1_000);
        let sent = probe.simulator.ledger().emitted_since(mark).iter().filter(|sent| sent.topic == topic).count();
        assert!(sent > 20, "{sent}");
        socket.send(json!({"message": "ping"})).await;
        for _ in 0..sent {
            assert_eq!(socket.json().await["topicName"], topic);
        }
        assert_eq!(socket.json().await["eventBody"]["message"], "pong");
    }

    #[tokio::test]
    async fn topics_can_be_changed_over_the_socket() {
        let probe = SimulatorProbe::start(Settings { agents: 1, queues: 1, ..Settings::default() }).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut socket) = probe.open_channel(&[]).await;
        socket.send(json!({"message": "subscribe", "topics": [topic], "correlationId": "c1"})).await;
        let expected = json!({"result": "200", "status": "subscribed", "topics": [topic], "correlationId": "c1"});
        assert_eq!(socket.json().await, expected);
        probe.simulator.emit(10);
        assert_eq!(socket.json().await["topicName"], *topic);
        socket.send(json!({"message": "unsubscribe", "topics": [topic], "correlationId": "c2"})).await;
        while socket.json().await["status"] != "unsubscribed" {}
        probe.simulator.emit(10);
        assert!(socket.is_silent().await);
        socket.send(json!({"message": "subscribe", "correlationId": "c3"})).await;
        let answer = socket.json().await;
        assert_eq!((&answer["result"], &answer["correlationId"]), (&json!("400"), &json!("c3")));
    }

    #[tokio::test]
    async fn a_channel_and_its_url_expire_with_the_token() {
        let probe =
            SimulatorProbe::start(Settings { token_ttl: Duration::from_millis(300), ..Settings::default() }).await;
        let (id, mut socket) = probe.open_channel(&[]).await;
        assert_eq!(socket.closed().await, Some(1008));
        assert_eq!(refused(ProbeSocket::open(&probe.ws(&format!("/channels/{id}")), None).await), 404);
    }

    #[tokio::test]
    async fn an_expired_channel_answers_404_and_sends_nothing() {
        let settings =
            Settings { token_ttl: Duration::from_millis(200), expiry: Expiry::Silence, ..Settings::default() };
        let probe = SimulatorProbe::start(settings).await;
        let (_, mut socket) = probe.open_channel(&probe.all_topics()).await;
        probe.wait_until_expired().await;
        probe.simulator.emit(20);
        assert!(socket.is_silent().await);
        socket.send(json!({"message": "subscribe", "topics": [], "correlationId": "c"})).await;
        assert_eq!(socket.json().await["result"], "404");
    }

    #[tokio::test]
    async fn a_channel_outlives_its_token_by_the_grace() {
        let (token_ttl, grace) = (Duration::from_millis(300), Duration::from_secs(3_600));
        let probe = SimulatorProbe::start(Settings { token_ttl, grace, ..Settings::default() }).await;
        let (_, mut socket) = probe.open_channel(&probe.all_topics()).await;
        probe.wait_until_expired().await;
        probe.simulator.emit(20);
        assert!(socket.json().await["topicName"].is_string());
    }

    #[tokio::test]
    async fn a_closing_notice_comes_before_the_close() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (_, mut socket) = probe.open_channel(&[]).await;
        probe.simulator.inject(PlatformFault::SocketClosing { lead: Duration::from_millis(100) });
        assert_eq!(socket.json().await["topicName"], "v2.system.socket_closing");
        assert_eq!(socket.closed().await, Some(1001));
    }

    #[tokio::test]
    async fn a_revoked_token_is_announced_and_closes_everything() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, mut socket) = probe.open_channel(&[]).await;
        let mut stream = probe.stream(None).await.unwrap();
        probe.simulator.inject(PlatformFault::TokenRevoked {});
        let notice = socket.json().await;
        assert!(notice["topicName"].as_str().unwrap().starts_with("v2.system.token_revoked."));
        assert_eq!(notice["eventBody"]["channelId"], *id);
        assert_eq!(notice["eventBody"]["reason"], "user_tokens_revoked");
        assert_eq!((socket.closed().await, stream.closed().await), (Some(1008), Some(1008)));
        assert_eq!(probe.get("/api/v2/users").await["code"], "credentials.expired");
    }

    #[tokio::test]
    async fn lost_subscriptions_are_announced() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, mut socket) = probe.open_channel(&probe.all_topics()).await;
        probe.simulator.inject(PlatformFault::NoLongerSubscribed {});
        assert_eq!(socket.json().await["eventBody"]["reason"], "another_channel_subscribed");
        probe.simulator.emit(20);
        assert!(socket.is_silent().await);
        let path = format!("/api/v2/notifications/channels/{id}/subscriptions");
        assert_eq!(probe.get(&path).await, json!({"entities": []}));
    }

    #[tokio::test]
    async fn a_handshake_can_be_refused_and_a_raw_frame_sent() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (id, mut socket) = probe.open_channel(&[]).await;
        probe.simulator.emit_raw_notification(RawFrame::Text("not json".to_owned()));
        assert_eq!(socket.text().await, "not json");
        let refuse = PlatformFault::Refuse { on: FaultTarget::Notifications, status: 403, times: 1, retry_after: None };
        probe.simulator.inject(refuse);
        assert_eq!(refused(ProbeSocket::open(&probe.ws(&format!("/channels/{id}")), None).await), 403);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_disconnected_and_memory_stays_bounded() {
        let probe = SimulatorProbe::start(Settings::default()).await;
        let (_, socket) = probe.open_channel(&probe.all_topics()).await;
        for _ in 0..40 {
            probe.simulator.emit(1_000);
            if probe.simulator.counters().sockets(SocketDialect::Notifications).open == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        eventually(|| probe.simulator.counters().sockets(SocketDialect::Notifications).open == 0).await;
        drop(socket);
    }
}
