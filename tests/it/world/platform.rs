//! The model platform: the parts that both dialects share.
//!
//! It records every event that it sent, and which of them it could not deliver. The checks compare the log with this.

mod notifications;
mod sequenced;

pub(super) use self::sequenced::position_in;

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    connector::{Failure, Frame, RestRequest, RestResponse},
    protocol::{
        session::{Dial, SessionId},
        stream::CallId,
    },
};

use self::{notifications::ModelChannel, sequenced::ModelNumbering};
use super::{
    plan::ConnectorKind,
    schedule::{ProcessInput, Schedule, ScheduledEvent, SocketId, TokenId, WorldTime},
};

/// One event of the platform.
#[derive(Debug, Clone)]
pub(super) struct SentEvent {
    pub(super) sent_at: WorldTime,
    /// Its sequence number; `None` in the unnumbered dialect.
    pub(super) number: Option<u64>,
    /// The numbering that the number belongs to.
    pub(super) era: u32,
    /// The same for events with equal text.
    pub(super) class: usize,
    pub(super) flaw: Option<FrameFlaw>,
    /// The platform could not deliver it, or had no subscription for it.
    pub(super) undeliverable: bool,
    /// The last process that received it in time; 0 for none.
    pub(super) received_by: u32,
}

impl SentEvent {
    /// Records the receipt. An event that was undeliverable before arrives too late to count.
    pub(super) fn mark_received(&mut self, incarnation: u32) {
        if !self.undeliverable {
            self.received_by = incarnation;
        }
    }
}

/// A flaw of an event that ends the socket on which it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameFlaw {
    Oversize,
    /// Its bytes violate the protocol.
    Malformed,
}

/// The platform's end of an open socket.
#[derive(Debug)]
struct ModelSocket {
    /// The process that opened it.
    incarnation: u32,
    token: TokenId,
    channel: Option<usize>,
    /// It has delivered events.
    used: bool,
    /// It is open, but transfers no more data.
    stalled: bool,
    /// One side has started the close handshake.
    leaving: bool,
    /// Arrival time of the newest frame. Later frames arrive after it.
    newest_arrival: WorldTime,
}

/// How requests to the platform fail during an outage.
#[derive(Debug, Clone, Copy)]
pub(super) enum PlatformRefusal {
    Status(u16, Option<Duration>),
    Unreachable,
    /// No reply.
    NoReply,
}

/// The model of a platform.
#[derive(Debug)]
pub(super) struct ModelPlatform {
    pub(super) sent_events: Vec<SentEvent>,
    sockets: BTreeMap<SocketId, ModelSocket>,
    sockets_opened: u64,
    /// Connections that were cut: frames that would arrive later do not.
    cut_sockets: BTreeMap<SocketId, WorldTime>,
    /// When each token expires.
    tokens: BTreeMap<TokenId, WorldTime>,
    /// How handshakes fail, and until when.
    pub(super) handshakes: Option<(PlatformRefusal, WorldTime)>,
    pub(super) calls: Option<(PlatformRefusal, WorldTime)>,
    /// A snapshot call failed or was late.
    pub(super) snapshot_failed: bool,
    numbering: ModelNumbering,
    channels: Vec<ModelChannel>,
    queues: u64,
    refused_topic: Option<String>,
    /// Flaw of the next event.
    pub(super) next_flaw: Option<FrameFlaw>,
    /// The process to which events must be delivered; 0 for any.
    pub(super) served_incarnation: u32,
}

/// Call timeout of the model shell.
const CALL_MAX: Duration = Duration::from_secs(10);

impl ModelPlatform {
    pub(super) fn new(schedule: &mut Schedule) -> Self {
        Self {
            sent_events: Vec::new(),
            sockets: BTreeMap::new(),
            sockets_opened: 0,
            cut_sockets: BTreeMap::new(),
            tokens: BTreeMap::new(),
            handshakes: None,
            calls: None,
            snapshot_failed: false,
            numbering: ModelNumbering::new(schedule),
            channels: Vec::new(),
            queues: 2,
            refused_topic: None,
            next_flaw: None,
            served_incarnation: 0,
        }
    }

    /// Whether there is a deliverable event.
    pub(super) fn can_deliver(&self) -> bool {
        self.sent_events.iter().any(|sent| !sent.undeliverable)
    }

    /// Number of events that end the session on which they are sent.
    pub(super) fn flawed_count(&self) -> usize {
        self.sent_events.iter().filter(|sent| sent.flaw.is_some()).count()
    }

    pub(super) fn issue(&mut self, token: TokenId, schedule: &mut Schedule) {
        let ends = schedule.now + schedule.plan.token_lifetime;
        self.tokens.insert(token, ends);
        schedule.at(ends, ScheduledEvent::TokenEnds(token));
    }

    fn accepts(&self, token: TokenId, schedule: &Schedule) -> bool {
        self.tokens.get(&token).is_some_and(|ends| schedule.now < *ends)
    }

    /// A token expired or was revoked.
    pub(super) fn on_token_expired(&mut self, token: TokenId, schedule: &mut Schedule) {
        self.tokens.remove(&token);
        match schedule.plan.dialect {
            ConnectorKind::Sequenced => {
                let code = schedule.rng.pick(&[1008, 4001]);
                for id in self.sockets_of(|socket| socket.token == token) {
                    self.close(id, closed(code), schedule);
                }
            }
            ConnectorKind::Notifications => self.end_channels_of_token(token, schedule),
        }
    }

    /// Revokes the newest token.
    pub(super) fn revoke_token(&mut self, schedule: &mut Schedule) {
        let Some(token) = self.tokens.keys().next_back().copied() else { return };
        schedule.trace(|| format!("platform revokes {token:?}"));
        if schedule.plan.dialect == ConnectorKind::Notifications {
            self.send_revocation(token, schedule);
        }
        self.on_token_expired(token, schedule);
    }

    pub(super) fn on_dial(
        &mut self,
        incarnation: u32,
        session: SessionId,
        dial: &Dial,
        token: TokenId,
        schedule: &mut Schedule,
    ) {
        let refusal = self.handshakes.filter(|(_, until)| schedule.now < *until).map(|(refusal, _)| refusal);
        let refusal = match (refusal, schedule.plan.dialect) {
            (Some(refusal), _) => Some(refusal),
            (None, ConnectorKind::Sequenced) => self.resume(incarnation, session, dial, token, schedule).err(),
            (None, ConnectorKind::Notifications) => self.connect(incarnation, session, dial, token, schedule).err(),
        };
        let failure = match refusal {
            Some(PlatformRefusal::Status(status, retry_after)) => {
                Failure::Handshake { status, retry_after, place: None }
            }
            Some(PlatformRefusal::Unreachable) => Failure::Unreachable("no route".to_owned()),
            Some(PlatformRefusal::NoReply) | None => return,
        };
        let delay = schedule.latency();
        schedule.after(delay, ScheduledEvent::Process { incarnation, input: ProcessInput::Refused(session, failure) });
    }

    /// Opens a new socket. Frames on it arrive after its opening.
    fn open(
        &mut self,
        incarnation: u32,
        session: SessionId,
        token: TokenId,
        channel: Option<usize>,
        schedule: &mut Schedule,
    ) -> SocketId {
        self.sockets_opened += 1;
        let id = SocketId(self.sockets_opened);
        let arrives = schedule.now + schedule.latency();
        schedule.at(arrives, ScheduledEvent::Process { incarnation, input: ProcessInput::Opened(session, id) });
        self.sockets.insert(
            id,
            ModelSocket {
                incarnation,
                token,
                channel,
                used: false,
                stalled: false,
                leaving: false,
                newest_arrival: arrives,
            },
        );
        schedule.trace(|| format!("platform opens {id:?} for {session:?} of incarnation {incarnation}"));
        id
    }

    pub(super) fn on_call(
        &mut self,
        incarnation: u32,
        call: CallId,
        request: &RestRequest,
        token: TokenId,
        schedule: &mut Schedule,
    ) {
        let refusal = self.calls.filter(|(_, until)| schedule.now < *until).map(|(refusal, _)| refusal);
        let answer = match refusal {
            _ if !self.accepts(token, schedule) => Ok(status(401, None)),
            None => Ok(self.answer(request, token, schedule)),
            Some(PlatformRefusal::Status(code, retry_after)) => Ok(status(code, retry_after)),
            Some(PlatformRefusal::Unreachable) => Err("no route".to_owned()),
            Some(PlatformRefusal::NoReply) => Err("no reply in time".to_owned()),
        };
        let sound = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        self.snapshot_failed |= matches!(call, CallId::Snapshot(_)) && !sound;
        let silent = matches!(refusal, Some(PlatformRefusal::NoReply));
        let delay = if silent { CALL_MAX } else { schedule.latency() };
        let status = answer.as_ref().map(|answer| answer.status);
        schedule.trace(|| format!("{incarnation}: call {call:?} {} -> {status:?}", request.target));
        schedule.after(delay, ScheduledEvent::Process { incarnation, input: ProcessInput::Answered(call, answer) });
    }

    /// Sends a frame on a socket, or ends it; arrives after earlier frames.
    fn send(&mut self, id: SocketId, what: Result<Frame, Failure>, schedule: &mut Schedule) {
        let spread = schedule.plan.spread_max.as_millis() as u64;
        let delay = schedule.latency() + schedule.rng.millis(0..spread + 1);
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| !socket.stalled) else { return };
        socket.newest_arrival = socket.newest_arrival.max(schedule.now + delay);
        let arrives = socket.newest_arrival;
        schedule.at(arrives, ScheduledEvent::FrameArrives { socket: id, what, certain: false });
    }

    /// Closes a socket in order: earlier frames arrive.
    fn close(&mut self, id: SocketId, failure: Failure, schedule: &mut Schedule) {
        schedule.trace(|| format!("platform closes {id:?}: {failure}"));
        self.send(id, Err(failure), schedule);
        self.sockets.remove(&id);
    }

    /// Cuts connections: frames in flight are lost. A socket in its close handshake still gets them.
    pub(super) fn cut_connections(&mut self, schedule: &mut Schedule) {
        for id in self.sockets_of(|socket| !socket.leaving && !socket.stalled) {
            schedule.trace(|| format!("the connection of {id:?} is cut"));
            self.sockets.remove(&id);
            self.cut_sockets.insert(id, schedule.now);
            let delay = schedule.latency();
            schedule.after(delay, ScheduledEvent::FrameArrives { socket: id, what: Err(closed(1006)), certain: true });
        }
    }

    /// Whether a frame that arrives on a socket now is received.
    pub(super) fn gets_through(&self, id: SocketId) -> bool {
        !self.cut_sockets.contains_key(&id)
    }

    /// Closes all sockets.
    pub(super) fn close_sockets(&mut self, code: u16, schedule: &mut Schedule) {
        for id in self.sockets_of(|socket| !socket.leaving) {
            self.close(id, closed(code), schedule);
        }
    }

    /// Stalls the open sockets without a close.
    pub(super) fn stall_sockets(&mut self, schedule: &mut Schedule) {
        for (id, socket) in self.sockets.iter_mut().filter(|(_, socket)| !socket.leaving) {
            socket.stalled = true;
            schedule.trace(|| format!("{id:?} stalls"));
        }
    }

    pub(super) fn on_probe(&mut self, id: SocketId, schedule: &mut Schedule) {
        let pong = match schedule.plan.dialect {
            ConnectorKind::Sequenced => Frame::Pong,
            ConnectorKind::Notifications => notifications::metadata("pong"),
        };
        self.send(id, Ok(pong), schedule);
    }

    pub(super) fn on_close_received(&mut self, id: SocketId, schedule: &mut Schedule) {
        if self.sockets.contains_key(&id) {
            self.close(id, closed(1000), schedule);
        }
    }

    /// The relay starts the close handshake.
    pub(super) fn on_close_started(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.leaving = true;
        }
    }

    pub(super) fn on_socket_dropped(&mut self, id: SocketId) {
        self.sockets.remove(&id);
    }

    fn sockets_of(&self, wanted: impl Fn(&ModelSocket) -> bool) -> Vec<SocketId> {
        self.sockets.iter().filter(|(_, socket)| wanted(socket)).map(|(id, _)| *id).collect()
    }

    /// Sends an undecodable frame.
    pub(super) fn send_garbage(&mut self, schedule: &mut Schedule) {
        let garbage = schedule.rng.pick(&["{\"half", "[1]", "?", "{}{}"]);
        for id in self.sockets_of(|_| true) {
            self.send(id, Ok(Frame::Text(garbage.into())), schedule);
        }
    }

    /// Sends `count` events.
    pub(super) fn emit_events(&mut self, count: u64, schedule: &mut Schedule) {
        match schedule.plan.dialect {
            ConnectorKind::Sequenced => self.emit_numbered(count, schedule),
            ConnectorKind::Notifications => self.emit_on_topics(count, schedule),
        }
    }

    /// Ends the faults, except stalled sockets.
    pub(super) fn recover(&mut self) {
        self.handshakes = None;
        self.calls = None;
        self.next_flaw = None;
        self.refused_topic = None;
        // The relay meets a malformed event twice before it skips it, which would delay the next events too long.
        self.sent_events.iter_mut().for_each(|sent| sent.flaw = sent.flaw.filter(|flaw| *flaw != FrameFlaw::Malformed));
    }
}

pub(super) fn closed(code: u16) -> Failure {
    Failure::Closed { code, reason: String::new() }
}

/// The failure of a data frame that violates the protocol.
pub(super) fn unreadable() -> Failure {
    Failure::Unreadable("text is not UTF-8".to_owned())
}

fn status(status: u16, retry_after: Option<Duration>) -> RestResponse {
    RestResponse { status, retry_after, body: "{}".into() }
}

fn ok(body: String) -> RestResponse {
    RestResponse { status: 200, retry_after: None, body: body.into() }
}
