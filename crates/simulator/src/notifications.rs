//! Notification sockets: one a channel, heartbeats, pings, subscriptions on the socket. It refuses to keep what
//! was said while no socket was open.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::channels::{Attached, Change, ChannelError, Said};
use super::clock::{after, now};
use super::handshake::{Handshake, Talk};
use super::line::{Heard, Line, Order, Over};
use super::platform::{Platform, State as Inner};
use super::reply;
use super::rest::notifications::wanted;
use super::sequence::Raw;
use super::tally::Dialect;

/// Notifications that wait for one socket; a client that lets them pile up is cut off.
const OUTBOX_MAX: usize = 16_384;
/// Notifications written between two flushes.
const WRITE_BATCH: usize = 64;
/// A channel whose second socket has come.
const REPLACED: u16 = 1001;

/// `GET /channels/{id}`: no token; who knows the address may listen.
pub(super) async fn open(
    State(platform): State<Arc<Platform>>,
    Path(channel): Path<String>,
    mut request: Request,
) -> Response {
    let Some(ends) = platform.lock().channels.ends(&channel, now()) else {
        return reply::not_found(&platform, "channel not found");
    };
    let name = Some(channel.clone());
    match Handshake::accept(&platform, &mut request, Dialect::Notifications, name) {
        Ok(handshake) => attach(&platform, channel, ends, handshake),
        Err(answer) => *answer,
    }
}

fn attach(platform: &Arc<Platform>, channel: String, ends: Instant, handshake: Handshake) -> Response {
    let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
    let attached = Attached { socket: handshake.number(), outbox };
    let mut state = platform.lock();
    match state.channels.attach(&channel, attached, now()) {
        Ok(Some(replaced)) => state.order_one(replaced, closing("Another socket of this channel was opened")),
        Ok(None) => (),
        Err(ChannelError::Gone | ChannelError::TooManyTopics) => {
            drop(state);
            return reply::not_found(platform, "channel not found");
        }
    }
    drop(state);
    let heartbeat = heartbeat(platform);
    handshake.start(platform, ends, Feed { platform: platform.clone(), channel, inbox, heartbeat })
}

/// Tells a socket that its channel has another one, or is gone.
pub(super) fn closing(reason: &str) -> Order {
    Order::Close { code: REPLACED, reason: reason.to_owned() }
}

fn heartbeat(platform: &Platform) -> Interval {
    let every = platform.settings.heartbeat.max(std::time::Duration::from_millis(1));
    let mut heartbeat = interval_at(after(now(), every).into(), every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

struct Feed {
    platform: Arc<Platform>,
    channel: String,
    inbox: mpsc::Receiver<Said>,
    heartbeat: Interval,
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
    async fn turn(&mut self, line: &mut Line) -> ControlFlow<Over> {
        let mut batch = Vec::new();
        let listening = !line.is_muted();
        let woken = tokio::select! {
            biased;
            woken = line.wake() => woken,
            _ = self.heartbeat.tick() => return line.say(metadata("WebSocket Heartbeat")).await,
            _count = self.inbox.recv_many(&mut batch, WRITE_BATCH), if listening && !self.is_detached() => {
                return self.deliver(batch, line).await;
            }
        };
        match line.attend(woken).await? {
            Some(Heard::Text(text)) => {
                self.deliver_pending(line).await?;
                line.say(self.answer(&text)).await
            }
            Some(Heard::Ended) => self.end(line).await,
            None => ControlFlow::Continue(()),
        }
    }

    /// The channel has given its outbox away, and what was in it has been said.
    fn is_detached(&self) -> bool {
        self.inbox.is_closed() && self.inbox.is_empty()
    }

    /// Sends what was sent to the channel before a request came: its answer must not overtake that.
    async fn deliver_pending(&mut self, line: &mut Line) -> ControlFlow<Over> {
        if line.is_muted() {
            return ControlFlow::Continue(());
        }
        let pending = self.inbox.len();
        let batch = std::iter::from_fn(|| self.inbox.try_recv().ok()).take(pending).collect();
        self.deliver(batch, line).await
    }

    async fn deliver(&self, batch: Vec<Said>, line: &mut Line) -> ControlFlow<Over> {
        let numbers: Vec<u64> = batch.iter().map(|said| said.number).collect();
        for said in batch {
            line.put(Raw::Text(said.text.as_str().to_owned())).await?;
        }
        line.flush().await?;
        let mut state = self.platform.lock();
        for number in numbers {
            let first = state.said.written(number);
            state.tally.notifications.delivered += u64::from(first);
        }
        ControlFlow::Continue(())
    }

    /// The moment came that was known when the socket opened; a channel may have been extended since.
    async fn end(&self, line: &mut Line) -> ControlFlow<Over> {
        let ends = self.platform.lock().channels.ends(&self.channel, now());
        match ends {
            Some(later) => {
                line.ends_at(later);
                ControlFlow::Continue(())
            }
            None => line.expire().await,
        }
    }

    fn answer(&self, text: &str) -> Raw {
        let Ok(request) = serde_json::from_str::<Asked>(text) else {
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

    fn change(&self, request: &Asked, done: &str) -> Raw {
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
        let wanted = wanted(topics, state.world.cast(), &self.platform.settings.forbidden_topics);
        state.channels.subscribe(&self.channel, wanted.permitted, Change::Add, now())
    }
}

/// What a client says on the socket.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    message: String,
    topics: Option<Vec<String>>,
    correlation_id: Option<String>,
}

fn metadata(message: &str) -> Raw {
    reply_text(&json!({"topicName": "channel.metadata", "eventBody": {"message": message}}))
}

fn failure(request: &Asked, result: &str, message: &str) -> Raw {
    reply_text(&json!({
        "correlationId": request.correlation_id, "topics": [], "result": result, "status": "error",
        "message": message,
    }))
}

fn reply_text(value: &Value) -> Raw {
    Raw::Text(value.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use serde_json::json;

    use crate::probe::{Ear, Probe, eventually, refused};
    use crate::{Dialect, Expiry, Fault, Raw, Settings, Target};

    #[tokio::test]
    async fn only_subscribed_topics_arrive_and_the_ledger_knows_which() {
        let probe = Probe::start(Settings::default()).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut ear) = probe.listen(std::slice::from_ref(&topic)).await;
        let mark = probe.simulator.ledger().mark();
        probe.simulator.say(200);
        let said = probe.simulator.ledger().said_since(mark);
        let expected: Vec<String> =
            said.iter().filter(|said| said.topic == topic).map(|said| said.correlation.clone()).collect();
        assert!(expected.len() > 3 && said.len() == 200);
        for correlation in &expected {
            let event = ear.json().await;
            assert_eq!(event["topicName"], *topic);
            assert_eq!(event["version"], "2");
            assert_eq!(event["metadata"]["CorrelationId"], *correlation);
        }
        assert!(ear.is_silent().await);
        let said = probe.simulator.ledger().said_since(mark);
        assert!(said.iter().all(|said| said.written == (said.topic == topic) && said.subscribed == said.written));
        let tally = probe.simulator.tally().notifications;
        assert_eq!((tally.said, tally.delivered), (200, expected.len() as u64));
        assert_eq!(tally.gone, 200 - tally.delivered);
    }

    #[tokio::test]
    async fn a_combined_topic_brings_events_under_their_own_names() {
        let probe = Probe::start(Settings { agents: 1, queues: 1, ..Settings::default() }).await;
        let user = probe.simulator.agent_ids().remove(0);
        let (_, mut ear) = probe.listen(&[format!("v2.users.{user}?routingStatus&activity")]).await;
        probe.simulator.say(200);
        let mut names = HashSet::new();
        while names.len() < 2 {
            names.insert(ear.json().await["topicName"].as_str().unwrap().to_owned());
        }
        assert_eq!(
            names,
            HashSet::from([format!("v2.users.{user}.routingStatus"), format!("v2.users.{user}.activity")])
        );
    }

    #[tokio::test]
    async fn what_is_said_while_no_socket_is_open_is_gone() {
        let probe = Probe::start(Settings::default()).await;
        let (id, uri) = probe.channel().await;
        probe.subscribe(&id, &probe.all_topics()).await;
        probe.simulator.say(20);
        let mut ear = Ear::open(&uri, None).await.unwrap();
        assert!(ear.is_silent().await);
        assert_eq!(probe.simulator.tally().notifications.gone, 20);
        assert!(probe.simulator.ledger().said_since(0).iter().any(|said| said.subscribed && !said.written));
    }

    #[tokio::test]
    async fn the_subscriptions_survive_a_reconnect_to_the_same_channel() {
        let probe = Probe::start(Settings::default()).await;
        let (id, uri) = probe.channel().await;
        probe.subscribe(&id, &probe.all_topics()).await;
        drop(Ear::open(&uri, None).await.unwrap());
        let mut ear = Ear::open(&uri, None).await.unwrap();
        probe.simulator.say(20);
        assert!(ear.json().await["eventBody"].is_object());
    }

    #[tokio::test]
    async fn a_second_socket_of_a_channel_disconnects_the_first() {
        let probe = Probe::start(Settings::default()).await;
        let (id, mut first) = probe.listen(&probe.all_topics()).await;
        let mut second = Ear::open(&probe.ws(&format!("/channels/{id}")), None).await.unwrap();
        assert!(first.closed().await.is_some());
        eventually(|| probe.simulator.tally().sockets(Dialect::Notifications).open == 1).await;
        probe.simulator.say(20);
        assert!(second.json().await["topicName"].is_string());
    }

    #[tokio::test]
    async fn two_channels_both_get_every_event() {
        let probe = Probe::start(Settings::default()).await;
        let topics = probe.all_topics();
        let ((_, mut one), (_, mut other)) = (probe.listen(&topics).await, probe.listen(&topics).await);
        probe.simulator.say(30);
        for _ in 0..10 {
            assert_eq!(one.text().await, other.text().await);
        }
    }

    #[tokio::test]
    async fn heartbeats_come_by_themselves_and_pings_are_answered() {
        let probe = Probe::start(Settings { heartbeat: Duration::from_millis(250), ..Settings::default() }).await;
        let (_, mut ear) = probe.listen(&[]).await;
        ear.send(json!({"message": "ping"})).await;
        assert_eq!(ear.json().await, json!({"topicName": "channel.metadata", "eventBody": {"message": "pong"}}));
        for _ in 0..2 {
            let heartbeat = json!({"topicName": "channel.metadata", "eventBody": {"message": "WebSocket Heartbeat"}});
            assert_eq!(ear.json().await, heartbeat);
        }
    }

    #[tokio::test]
    async fn an_answer_comes_after_what_was_sent_before_its_request() {
        let probe = Probe::start(Settings::default()).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut ear) = probe.listen(std::slice::from_ref(&topic)).await;
        probe.simulator.inject(Fault::Delay { lasting: Duration::from_millis(2) });
        let mark = probe.simulator.ledger().mark();
        probe.simulator.say(1_000);
        let sent = probe.simulator.ledger().said_since(mark).iter().filter(|said| said.topic == topic).count();
        assert!(sent > 20, "{sent}");
        ear.send(json!({"message": "ping"})).await;
        for _ in 0..sent {
            assert_eq!(ear.json().await["topicName"], topic);
        }
        assert_eq!(ear.json().await["eventBody"]["message"], "pong");
    }

    #[tokio::test]
    async fn topics_come_and_go_on_the_socket_too() {
        let probe = Probe::start(Settings { agents: 1, queues: 1, ..Settings::default() }).await;
        let topic = format!("v2.analytics.queues.{}.observations", probe.simulator.queue_ids()[0]);
        let (_, mut ear) = probe.listen(&[]).await;
        ear.send(json!({"message": "subscribe", "topics": [topic], "correlationId": "c1"})).await;
        let expected = json!({"result": "200", "status": "subscribed", "topics": [topic], "correlationId": "c1"});
        assert_eq!(ear.json().await, expected);
        probe.simulator.say(10);
        assert_eq!(ear.json().await["topicName"], *topic);
        ear.send(json!({"message": "unsubscribe", "topics": [topic], "correlationId": "c2"})).await;
        while ear.json().await["status"] != "unsubscribed" {}
        probe.simulator.say(10);
        assert!(ear.is_silent().await);
        ear.send(json!({"message": "subscribe", "correlationId": "c3"})).await;
        let answer = ear.json().await;
        assert_eq!((&answer["result"], &answer["correlationId"]), (&json!("400"), &json!("c3")));
    }

    #[tokio::test]
    async fn a_channel_dies_with_its_token_and_its_address_with_it() {
        let probe = Probe::start(Settings { token_ttl: Duration::from_millis(300), ..Settings::default() }).await;
        let (id, mut ear) = probe.listen(&[]).await;
        assert_eq!(ear.closed().await, Some(1008));
        assert_eq!(refused(Ear::open(&probe.ws(&format!("/channels/{id}")), None).await), 404);
    }

    #[tokio::test]
    async fn a_channel_that_died_in_silence_answers_404_and_says_nothing_more() {
        let settings =
            Settings { token_ttl: Duration::from_millis(200), expiry: Expiry::Silence, ..Settings::default() };
        let probe = Probe::start(settings).await;
        let (_, mut ear) = probe.listen(&probe.all_topics()).await;
        probe.expired().await;
        probe.simulator.say(20);
        assert!(ear.is_silent().await);
        ear.send(json!({"message": "subscribe", "topics": [], "correlationId": "c"})).await;
        assert_eq!(ear.json().await["result"], "404");
    }

    #[tokio::test]
    async fn a_channel_outlives_its_token_by_the_grace() {
        let (token_ttl, grace) = (Duration::from_millis(300), Duration::from_secs(3_600));
        let probe = Probe::start(Settings { token_ttl, grace, ..Settings::default() }).await;
        let (_, mut ear) = probe.listen(&probe.all_topics()).await;
        probe.expired().await;
        probe.simulator.say(20);
        assert!(ear.json().await["topicName"].is_string());
    }

    #[tokio::test]
    async fn a_closing_notice_comes_before_the_close() {
        let probe = Probe::start(Settings::default()).await;
        let (_, mut ear) = probe.listen(&[]).await;
        probe.simulator.inject(Fault::SocketClosing { lead: Duration::from_millis(100) });
        assert_eq!(ear.json().await["topicName"], "v2.system.socket_closing");
        assert_eq!(ear.closed().await, Some(1001));
    }

    #[tokio::test]
    async fn a_revoked_token_is_told_and_ends_everything() {
        let probe = Probe::start(Settings::default()).await;
        let (id, mut ear) = probe.listen(&[]).await;
        let mut stream = probe.stream(None).await.unwrap();
        probe.simulator.inject(Fault::TokenRevoked {});
        let notice = ear.json().await;
        assert!(notice["topicName"].as_str().unwrap().starts_with("v2.system.token_revoked."));
        assert_eq!(notice["eventBody"]["channelId"], *id);
        assert_eq!(notice["eventBody"]["reason"], "user_tokens_revoked");
        assert_eq!((ear.closed().await, stream.closed().await), (Some(1008), Some(1008)));
        assert_eq!(probe.get("/api/v2/users").await["code"], "credentials.expired");
    }

    #[tokio::test]
    async fn taken_subscriptions_are_told() {
        let probe = Probe::start(Settings::default()).await;
        let (id, mut ear) = probe.listen(&probe.all_topics()).await;
        probe.simulator.inject(Fault::NoLongerSubscribed {});
        assert_eq!(ear.json().await["eventBody"]["reason"], "another_channel_subscribed");
        probe.simulator.say(20);
        assert!(ear.is_silent().await);
        let path = format!("/api/v2/notifications/channels/{id}/subscriptions");
        assert_eq!(probe.get(&path).await, json!({"entities": []}));
    }

    #[tokio::test]
    async fn a_handshake_may_be_refused_and_a_raw_frame_said() {
        let probe = Probe::start(Settings::default()).await;
        let (id, mut ear) = probe.listen(&[]).await;
        probe.simulator.say_raw_notification(Raw::Text("not json".to_owned()));
        assert_eq!(ear.text().await, "not json");
        let refuse = Fault::Refuse { on: Target::Notifications, status: 403, times: 1, retry_after: None };
        probe.simulator.inject(refuse);
        assert_eq!(refused(Ear::open(&probe.ws(&format!("/channels/{id}")), None).await), 403);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off_and_nothing_piles_up() {
        let probe = Probe::start(Settings::default()).await;
        let (_, ear) = probe.listen(&probe.all_topics()).await;
        for _ in 0..40 {
            probe.simulator.say(1_000);
            if probe.simulator.tally().sockets(Dialect::Notifications).open == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        eventually(|| probe.simulator.tally().sockets(Dialect::Notifications).open == 0).await;
        drop(ear);
    }
}
