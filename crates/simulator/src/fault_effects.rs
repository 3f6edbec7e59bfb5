//! The effect of a fault on the state of the platform and on its sockets.

use std::time::Duration;

use serde_json::{Value, json};

use super::Settings;
use super::clock::{after, now};
use super::connection::ConnectionCommand;
use super::counters::SocketDialect;
use super::encoding::{envelope, notification_text, sequenced_text};
use super::fault::{FaultTarget, UndecodableFrame};
use super::platform::PlatformState;
use super::sequence::RawFrame;
use super::world::{ORGANIZATION, PlatformEvent, uuid};

/// Nesting depth of an undecodable frame.
const NESTING_DEPTH: usize = 10_000;
/// Length of a frame that is not JSON or not UTF-8.
const BROKEN_FRAME_LEN: usize = 64;

impl PlatformState {
    /// Resets one connection.
    pub(super) fn reset_connection(&self, number: u64) {
        if let Some(socket) = self.sockets.get(&number) {
            socket.control.reset();
        }
    }

    /// Sends a command to one socket.
    pub(super) fn send_command(&self, number: u64, command: ConnectionCommand) {
        if let Some(socket) = self.sockets.get(&number) {
            // The queue is full only while the socket is stalled.
            let _dropped = socket.commands.try_send(command);
        }
    }

    /// Sends a command to every socket of a kind.
    pub(super) fn broadcast_command(&self, on: FaultTarget, command: &ConnectionCommand) {
        for (number, socket) in &self.sockets {
            if on.includes(socket.dialect) {
                self.send_command(*number, command.clone());
            }
        }
    }

    /// Resets every connection of a kind.
    pub(super) fn reset_connections(&self, on: FaultTarget) {
        for socket in self.sockets.values().filter(|socket| on.includes(socket.dialect)) {
            socket.control.reset();
        }
    }

    /// Sets the idle timeout of open and future sockets; zero removes it.
    pub(super) fn close_idle(&mut self, on: FaultTarget, after: Duration) {
        for dialect in [SocketDialect::Sequenced, SocketDialect::Notifications] {
            if on.includes(dialect) && after.is_zero() {
                self.faults.idle_timeouts.remove(&dialect);
            } else if on.includes(dialect) {
                self.faults.idle_timeouts.insert(dialect, after);
            }
        }
        self.broadcast_command(on, &ConnectionCommand::CloseIdle(after));
    }

    /// Sends the notice now and closes after the lead time.
    pub(super) fn announce_closing(&mut self, lead: Duration) {
        for (number, channel) in self.channel_sockets() {
            let notice = json!({"channelId": channel, "message": "The socket is about to be closed"});
            let text = self.system_text("v2.system.socket_closing", &notice);
            self.send_command(number, ConnectionCommand::Send(RawFrame::Text(text)));
        }
        let close = ConnectionCommand::CloseIn { lead, code: 1001, reason: "Maintenance".to_owned() };
        self.broadcast_command(FaultTarget::Notifications, &close);
    }

    /// Ends every token now, and every socket after the grace.
    pub(super) fn revoke_tokens(&mut self, settings: &Settings) {
        self.system_message("token_revoked", "user_tokens_revoked", settings);
        let now = now();
        self.tokens.revoke_all(now);
        let ends = after(now, settings.grace);
        self.channels.expire_all(ends);
        self.broadcast_command(FaultTarget::All, &ConnectionCommand::ExpireAt(ends));
    }

    /// Removes all subscriptions, as if another client had taken them.
    pub(super) fn clear_subscriptions(&mut self, settings: &Settings) {
        self.channels.clear_all();
        self.system_message("no_longer_subscribed", "another_channel_subscribed", settings);
    }

    /// Sends a system notification to each notifications socket, with its own channel in the body.
    fn system_message(&mut self, kind: &str, reason: &str, settings: &Settings) {
        let user = self.world.roster().agents[0].id.clone();
        for (number, channel) in self.channel_sockets() {
            let body = json!({
                "channelId": channel, "systemTopicType": kind, "organizationId": ORGANIZATION, "userId": user,
                "oauthClientId": settings.client_id, "reason": reason, "message": "", "data": {},
            });
            let text = self.system_text(&format!("v2.system.{kind}.{user}"), &body);
            self.send_command(number, ConnectionCommand::Send(RawFrame::Text(text)));
        }
    }

    fn channel_sockets(&self) -> Vec<(u64, String)> {
        self.sockets.iter().filter_map(|(number, socket)| Some((*number, socket.channel.clone()?))).collect()
    }

    fn system_text(&mut self, topic: &str, body: &Value) -> String {
        let correlation = uuid(&mut self.rng);
        envelope(topic, body, &correlation)
    }

    /// Sends a frame that is not an event.
    pub(super) fn send_raw(&mut self, on: FaultTarget, raw: &RawFrame) {
        if on.includes(SocketDialect::Sequenced) {
            self.sequence.push_raw(now(), raw.clone());
        }
        if on.includes(SocketDialect::Notifications) {
            self.broadcast_command(FaultTarget::Notifications, &ConnectionCommand::Send(raw.clone()));
        }
    }

    /// Sends an oversized event; on the sequenced stream it has a number.
    pub(super) fn send_oversize(&mut self, on: FaultTarget, bytes: usize) {
        let body = json!({ "padding": "x".repeat(bytes) });
        let event = PlatformEvent {
            topic: "v2.simulated.oversize".to_owned(),
            kind: "v2.simulated.oversize",
            at: self.world.scenario_time(),
            body,
            correlation: uuid(&mut self.rng),
        };
        if on.includes(SocketDialect::Sequenced) {
            self.sequence.push_event(now(), |sequence| sequenced_text(sequence, &event));
        }
        if on.includes(SocketDialect::Notifications) {
            self.broadcast_command(
                FaultTarget::Notifications,
                &ConnectionCommand::Send(RawFrame::Text(notification_text(&event))),
            );
        }
    }
}

/// A frame that cannot be decoded.
pub(super) fn undecodable(what: UndecodableFrame) -> RawFrame {
    match what {
        UndecodableFrame::Binary => RawFrame::Binary((0..BROKEN_FRAME_LEN as u8).collect()),
        UndecodableFrame::InvalidJson => RawFrame::Text("{\"sequenceId\": 12, \"eventBody\": {\"cut off".to_owned()),
        UndecodableFrame::WrongShape => RawFrame::Text("\"a string is no event\"".to_owned()),
        UndecodableFrame::Deep => RawFrame::Text("[".repeat(NESTING_DEPTH) + &"]".repeat(NESTING_DEPTH)),
        UndecodableFrame::InvalidUtf8 => RawFrame::InvalidText(vec![0xff; BROKEN_FRAME_LEN]),
    }
}
