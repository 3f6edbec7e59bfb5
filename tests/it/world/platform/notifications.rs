//! The model platform's unnumbered dialect: channels are created over REST, have one socket each and end with their
//! token.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trunkline::{
    connector::{Frame, Method, RestRequest, RestResponse},
    protocol::session::{Dial, SessionId},
};

use super::{FrameFlaw, ModelPlatform, PlatformRefusal, SentEvent, closed, ok, status, unreadable};
use crate::world::{
    plan::FaultProfile,
    schedule::{Schedule, ScheduledEvent, SocketId, TokenId},
};

/// A channel with its topics.
#[derive(Debug)]
pub(super) struct ModelChannel {
    token: TokenId,
    topics: Vec<String>,
    is_gone: bool,
}

/// Interval of heartbeats.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(30);

impl ModelPlatform {
    pub(super) fn connect(
        &mut self,
        incarnation: u32,
        session: SessionId,
        dial: &Dial,
        token: TokenId,
        schedule: &mut Schedule,
    ) -> Result<(), PlatformRefusal> {
        let index = dial.url.rsplit_once("/c").and_then(|(_, index)| index.parse().ok()).unwrap_or(usize::MAX);
        if self.channels.get(index).is_none_or(|channel| channel.is_gone) {
            return Err(PlatformRefusal::Status(404, None));
        }
        for older in self.sockets_of(|socket| socket.channel == Some(index)) {
            self.close(older, closed(1000), schedule);
        }
        let id = self.open(incarnation, session, token, Some(index), schedule);
        schedule.after(HEARTBEAT, ScheduledEvent::Heartbeat(id));
        Ok(())
    }

    pub(in crate::world) fn heartbeat(&mut self, id: SocketId, schedule: &mut Schedule) {
        if self.sockets.contains_key(&id) {
            self.send(id, Ok(metadata("WebSocket Heartbeat")), schedule);
            schedule.after(HEARTBEAT, ScheduledEvent::Heartbeat(id));
        }
    }

    pub(super) fn answer(&mut self, request: &RestRequest, token: TokenId, schedule: &mut Schedule) -> RestResponse {
        let target = request.target.as_str();
        if target.ends_with("/channels") {
            return self.create_channel(token, schedule);
        }
        if target.contains("/subscriptions") {
            return self.subscribe(request);
        }
        if target.starts_with("/api/v2/routing/queues") {
            return self.list_queues(target);
        }
        let pages = if target.contains("/users") { 2 } else { 1 };
        ok(json!({"entities": [], "results": [], "pageCount": pages}).to_string())
    }

    fn create_channel(&mut self, token: TokenId, schedule: &mut Schedule) -> RestResponse {
        let index = self.channels.len();
        self.channels.push(ModelChannel { token, topics: Vec::new(), is_gone: false });
        let incarnation = match &schedule.plan.stream.connector {
            trunkline::connector::Connector::Notifications(settings) => settings.channel_life,
            trunkline::connector::Connector::Sequenced(_) => return status(404, None),
        };
        schedule.after(incarnation, ScheduledEvent::ChannelEnds(index));
        let id = format!("c{index}");
        ok(json!({"id": id, "connectUri": format!("wss://platform.test/{id}")}).to_string())
    }

    fn subscribe(&mut self, request: &RestRequest) -> RestResponse {
        let name = request.target.split('/').nth(5).and_then(|name| name.strip_prefix('c'));
        let channel = name.and_then(|name| name.parse::<usize>().ok()).and_then(|index| self.channels.get_mut(index));
        let Some(channel) = channel.filter(|channel| !channel.is_gone) else { return status(404, None) };
        let asked: Vec<Value> = serde_json::from_str(request.body.as_deref().unwrap_or("[]")).unwrap();
        if request.method == Method::Put {
            channel.topics.clear();
        }
        let mut entities = Vec::new();
        for topic in asked.iter().filter_map(|topic| topic["id"].as_str()) {
            if self.refused_topic.as_deref() == Some(topic) {
                entities.push(json!({"id": topic, "state": "Rejected", "rejectionReason": "not now"}));
            } else {
                channel.topics.push(topic.to_owned());
                entities.push(json!({"id": topic, "state": "Permitted"}));
            }
        }
        ok(json!({"entities": entities}).to_string())
    }

    /// Lists the queues in two pages, so that paging is always necessary.
    fn list_queues(&self, target: &str) -> RestResponse {
        let first = target.ends_with("pageNumber=1");
        let queues = (1..=self.queues).filter(|queue| (queue % 2 == 0) == first);
        let entities: Vec<Value> = queues.map(|queue| json!({"id": format!("q-{queue}")})).collect();
        ok(json!({"entities": entities, "pageCount": 2}).to_string())
    }

    /// All topics. A channel may have subscribed only some of them.
    fn topics(&self, schedule: &Schedule) -> Vec<String> {
        let trunkline::connector::Connector::Notifications(settings) = &schedule.plan.stream.connector else {
            return Vec::new();
        };
        let all = |topic: &String| match topic.contains('*') {
            true => (1..=self.queues).map(|queue| topic.replace('*', &format!("q-{queue}"))).collect(),
            false => vec![topic.clone()],
        };
        settings.topics.iter().flat_map(all).collect()
    }

    pub(super) fn emit_on_topics(&mut self, count: u64, schedule: &mut Schedule) {
        let topics = self.topics(schedule);
        for _ in 0..count {
            let topic = topics[schedule.rng.index(topics.len())].clone();
            let class = self.sent_events.len();
            let flaw = self.next_flaw.take();
            let times = if schedule.rng.one_in(12) && flaw.is_none() { 2 } else { 1 };
            for _ in 0..times {
                self.send_on_topic(&topic, class, flaw, schedule);
            }
        }
    }

    fn send_on_topic(&mut self, topic: &str, class: usize, flaw: Option<FrameFlaw>, schedule: &mut Schedule) {
        let frame = format!(r#"{{"topicName":"{topic}","eventBody":{{"uid":{class}}}}}"#);
        // By process: whether a subscribed socket got the event.
        let mut sent: BTreeMap<u32, bool> = BTreeMap::new();
        for id in self.sockets_of(|_| true) {
            let hearing = self.sockets.get(&id).filter(|socket| !socket.stalled).map(|socket| socket.incarnation);
            if let Some(incarnation) = hearing {
                sent.entry(incarnation).or_default();
            }
            let channel = self.sockets.get(&id).and_then(|socket| socket.channel);
            let subscribed = |index: usize| self.channels[index].topics.iter().any(|held| held == topic);
            if !channel.is_some_and(subscribed) {
                continue;
            }
            sent.extend(hearing.map(|incarnation| (incarnation, true)));
            match flaw {
                None => self.send(id, Ok(Frame::Text(frame.as_str().into())), schedule),
                Some(FrameFlaw::Oversize) => self.close(id, trunkline::connector::Failure::Oversize, schedule),
                Some(FrameFlaw::Malformed) => self.close(id, unreadable(), schedule),
            }
        }
        // No delivery is due without a subscription: a new queue, a refused topic, a family whose look-up failed. Either
        // of two processes may append the event.
        let withheld = sent.values().any(|sent| !sent);
        self.sent_events.push(SentEvent {
            sent_at: schedule.now,
            number: None,
            era: 0,
            class,
            flaw,
            undeliverable: withheld,
            received_by: 0,
        });
    }

    /// Schedules the end of a token's channels.
    pub(super) fn end_channels_of_token(&mut self, token: TokenId, schedule: &mut Schedule) {
        let grace = schedule.plan.channel_grace;
        for index in 0..self.channels.len() {
            if self.channels[index].token == token {
                schedule.after(grace, ScheduledEvent::ChannelEnds(index));
            }
        }
    }

    pub(in crate::world) fn on_channel_expired(&mut self, index: usize, schedule: &mut Schedule) {
        let Some(channel) = self.channels.get_mut(index).filter(|channel| !channel.is_gone) else { return };
        channel.is_gone = true;
        schedule.trace(|| format!("channel {index} ends"));
        let way = schedule.rng.number(0..3);
        for id in self.sockets_of(|socket| socket.channel == Some(index)) {
            if way == 0 {
                self.send(id, Ok(Frame::Text(r#"{"result":"404","message":"gone"}"#.into())), schedule);
            }
            self.close(id, closed(if way == 1 { 1001 } else { 1000 }), schedule);
        }
    }

    pub(super) fn send_revocation(&mut self, token: TokenId, schedule: &mut Schedule) {
        for id in self.sockets_of(|socket| socket.token == token) {
            self.send(id, Ok(system("token_revoked.3f0f-1")), schedule);
        }
    }

    /// Announces that the platform closes its sockets soon.
    pub(in crate::world) fn send_close_notice(&mut self, schedule: &mut Schedule) {
        schedule.trace(|| "platform sends a close notice".to_owned());
        for id in self.sockets_of(|socket| !socket.leaving) {
            self.send(id, Ok(system("socket_closing")), schedule);
            let ahead = match schedule.plan.profile {
                FaultProfile::Planned => schedule.rng.millis(10_000..30_000),
                FaultProfile::Faulty => schedule.rng.millis(0..60_000),
            };
            schedule.after(ahead, ScheduledEvent::SocketCloses(id));
        }
    }

    pub(in crate::world) fn close_after_notice(&mut self, id: SocketId, schedule: &mut Schedule) {
        if self.sockets.contains_key(&id) {
            self.close(id, closed(1001), schedule);
        }
    }

    /// Another client takes over the subscriptions.
    pub(in crate::world) fn take_over_subscriptions(&mut self, schedule: &mut Schedule) {
        for id in self.sockets_of(|_| true) {
            self.send(id, Ok(system("no_longer_subscribed.3f0f-1")), schedule);
            self.close(id, closed(1000), schedule);
        }
    }

    /// Evicts all channels.
    pub(in crate::world) fn evict_channels(&mut self, schedule: &mut Schedule) {
        for index in 0..self.channels.len() {
            self.on_channel_expired(index, schedule);
        }
    }

    pub(in crate::world) fn add_queue(&mut self) {
        self.queues += 1;
    }

    /// Refuses one topic to later subscriptions.
    pub(in crate::world) fn refuse_topic(&mut self, schedule: &mut Schedule) {
        let topics = self.topics(schedule);
        self.refused_topic = topics.get(schedule.rng.index(topics.len())).cloned();
    }
}

pub(super) fn metadata(message: &str) -> Frame {
    Frame::Text(format!(r#"{{"topicName":"channel.metadata","eventBody":{{"message":"{message}"}}}}"#).into())
}

fn system(name: &str) -> Frame {
    Frame::Text(format!(r#"{{"topicName":"v2.system.{name}","eventBody":{{}}}}"#).into())
}
