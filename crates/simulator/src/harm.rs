//! What a fault does to the platform's state: sockets are told, cut or lied to. It refuses to decide which.

use std::time::Duration;

use serde_json::{Value, json};

use super::Settings;
use super::clock::{after, now};
use super::fault::{Target, Undecodable};
use super::line::Order;
use super::platform::State;
use super::sequence::Raw;
use super::tally::Dialect;
use super::wording::{envelope, notification_text, sequenced_text};
use super::world::{Event, ORGANIZATION, uuid};

/// How deep the frame that nobody can read is nested.
const DEEP: usize = 10_000;
/// How many bytes of a frame that is no JSON or no UTF-8.
const BROKEN: usize = 64;

impl State {
    /// Resets one connection.
    pub(super) fn cut(&self, number: u64) {
        if let Some(socket) = self.sockets.get(&number) {
            socket.fate.seal();
        }
    }

    /// Tells one socket to do something.
    pub(super) fn order_one(&self, number: u64, order: Order) {
        if let Some(socket) = self.sockets.get(&number) {
            // Full: the socket is stalled and hears nothing anyway.
            let _dropped = socket.orders.try_send(order);
        }
    }

    /// Tells every socket of a kind to do something.
    pub(super) fn order(&self, on: Target, order: &Order) {
        for (number, socket) in &self.sockets {
            if on.includes(socket.dialect) {
                self.order_one(*number, order.clone());
            }
        }
    }

    /// Resets every connection of a kind.
    pub(super) fn drop_sockets(&self, on: Target) {
        for socket in self.sockets.values().filter(|socket| on.includes(socket.dialect)) {
            socket.fate.seal();
        }
    }

    /// Sockets that are open, and those that will be.
    pub(super) fn close_quiet(&mut self, on: Target, after: Duration) {
        for dialect in [Dialect::Sequenced, Dialect::Notifications] {
            if on.includes(dialect) && after.is_zero() {
                self.trouble.quiet.remove(&dialect);
            } else if on.includes(dialect) {
                self.trouble.quiet.insert(dialect, after);
            }
        }
        self.order(on, &Order::CloseQuiet(after));
    }

    /// The notice now, the close after the lead time.
    pub(super) fn announce_closing(&mut self, lead: Duration) {
        for (number, channel) in self.channel_sockets() {
            let notice = json!({"channelId": channel, "message": "The socket is about to be closed"});
            let text = self.system_text("v2.system.socket_closing", &notice);
            self.order_one(number, Order::Say(Raw::Text(text)));
        }
        let close = Order::CloseIn { lead, code: 1001, reason: "Maintenance".to_owned() };
        self.order(Target::Notifications, &close);
    }

    /// Every token ends now, and with it, after the grace, every socket.
    pub(super) fn revoke_tokens(&mut self, settings: &Settings) {
        self.system_message("token_revoked", "user_tokens_revoked", settings);
        let now = now();
        self.tokens.revoke_all(now);
        let ends = after(now, settings.grace);
        self.channels.end_all(ends);
        self.order(Target::All, &Order::EndAt(ends));
    }

    /// As if another client had taken them.
    pub(super) fn take_subscriptions(&mut self, settings: &Settings) {
        self.channels.clear_all();
        self.system_message("no_longer_subscribed", "another_channel_subscribed", settings);
    }

    /// Tells each notifications socket, with its own channel in the body.
    fn system_message(&mut self, kind: &str, reason: &str, settings: &Settings) {
        let user = self.world.cast().agents[0].id.clone();
        for (number, channel) in self.channel_sockets() {
            let body = json!({
                "channelId": channel, "systemTopicType": kind, "organizationId": ORGANIZATION, "userId": user,
                "oauthClientId": settings.client_id, "reason": reason, "message": "", "data": {},
            });
            let text = self.system_text(&format!("v2.system.{kind}.{user}"), &body);
            self.order_one(number, Order::Say(Raw::Text(text)));
        }
    }

    fn channel_sockets(&self) -> Vec<(u64, String)> {
        self.sockets.iter().filter_map(|(number, socket)| Some((*number, socket.channel.clone()?))).collect()
    }

    fn system_text(&mut self, topic: &str, body: &Value) -> String {
        let correlation = uuid(&mut self.rng);
        envelope(topic, body, &correlation)
    }

    /// Says a frame that is no event.
    pub(super) fn say_on(&mut self, on: Target, raw: &Raw) {
        if on.includes(Dialect::Sequenced) {
            self.sequence.say_raw(now(), raw.clone());
        }
        if on.includes(Dialect::Notifications) {
            self.order(Target::Notifications, &Order::Say(raw.clone()));
        }
    }

    /// Says an event larger than any reader expects; on the sequenced stream it has a number.
    pub(super) fn say_oversize(&mut self, on: Target, bytes: usize) {
        let body = json!({ "padding": "x".repeat(bytes) });
        let event = Event {
            topic: "v2.simulated.oversize".to_owned(),
            kind: "v2.simulated.oversize",
            at: self.world.story_time(),
            body,
            correlation: uuid(&mut self.rng),
        };
        if on.includes(Dialect::Sequenced) {
            self.sequence.say(now(), |sequence| sequenced_text(sequence, &event));
        }
        if on.includes(Dialect::Notifications) {
            self.order(Target::Notifications, &Order::Say(Raw::Text(notification_text(&event))));
        }
    }
}

/// A frame that nobody can read.
pub(super) fn undecodable(what: Undecodable) -> Raw {
    match what {
        Undecodable::Binary => Raw::Binary((0..BROKEN as u8).collect()),
        Undecodable::InvalidJson => Raw::Text("{\"sequenceId\": 12, \"eventBody\": {\"cut off".to_owned()),
        Undecodable::WrongShape => Raw::Text("\"a string is no event\"".to_owned()),
        Undecodable::Deep => Raw::Text("[".repeat(DEEP) + &"]".repeat(DEEP)),
        Undecodable::InvalidUtf8 => Raw::InvalidText(vec![0xff; BROKEN]),
    }
}
