//! The model platform: what it says, to whom, and how it misbehaves. What both dialects share is here.
//!
//! It knows the truth: every event that was ever said, and which of them it could not bring.

mod notifications;
mod sequenced;

pub(super) use self::sequenced::position_in;

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    connector::{Answer, Failure, Frame, Request},
    protocol::{
        session::{Dial, SessionId},
        stream::CallId,
    },
};

use self::{notifications::Channel, sequenced::Numbering};
use super::{
    plan::Dialect,
    scene::{Happening, Moment, News, Scene, SocketId, TokenId},
};

/// One event as the platform knows it.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) at: Moment,
    /// Its number; none on a platform that numbers nothing.
    pub(super) number: Option<u64>,
    /// Which numbering the number belongs to.
    pub(super) era: u32,
    /// Equal for events that are equal on purpose.
    pub(super) class: usize,
    pub(super) flaw: Option<Flaw>,
    /// The platform could not or was not asked to bring it.
    pub(super) withheld: bool,
    /// In which life of the process it was last heard in time; 0 for none.
    pub(super) heard_in: u32,
}

impl Said {
    /// What was withheld once and comes by a repetition comes too late.
    pub(super) fn heard_in(&mut self, life: u32) {
        if !self.withheld {
            self.heard_in = life;
        }
    }
}

/// What is wrong with an event: whoever is sent it loses the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Oversize,
    /// Its bytes break the protocol.
    Poison,
}

/// One end of an open socket.
#[derive(Debug)]
struct Socket {
    /// Which process opened it.
    life: u32,
    token: TokenId,
    channel: Option<usize>,
    /// It has carried events.
    used: bool,
    /// It is open, and nothing goes through it any more.
    stalled: bool,
    /// The relay said farewell, or is just about to hear ours.
    leaving: bool,
    /// When the newest thing sent arrives: nothing overtakes it.
    arrives: Moment,
}

/// How attempts to reach the platform fail for a while.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    Status(u16, Option<Duration>),
    Unreachable,
    /// Nobody answers.
    Silence,
}

/// The platform.
#[derive(Debug)]
pub(super) struct Platform {
    pub(super) said: Vec<Said>,
    sockets: BTreeMap<SocketId, Socket>,
    sockets_ever: u64,
    /// Lines that were cut: what would arrive later does not.
    cut: BTreeMap<SocketId, Moment>,
    /// When each token ends here.
    tokens: BTreeMap<TokenId, Moment>,
    /// Handshakes and calls fail like this until then.
    pub(super) handshakes: Option<(Refusal, Moment)>,
    pub(super) calls: Option<(Refusal, Moment)>,
    /// A call for a snapshot failed or was late.
    pub(super) snapshot_failed: bool,
    numbering: Numbering,
    channels: Vec<Channel>,
    queues: u64,
    refused_topic: Option<String>,
    /// The next event has this flaw.
    pub(super) flaw: Option<Flaw>,
    /// The life that is owed what is said; 0: any.
    pub(super) owed_to: u32,
}

/// Between a stalled line's last sign and the relay's patience lie these: a shell gives a call up after a while.
const CALL_MAX: Duration = Duration::from_secs(10);

impl Platform {
    pub(super) fn new(scene: &mut Scene) -> Self {
        Self {
            said: Vec::new(),
            sockets: BTreeMap::new(),
            sockets_ever: 0,
            cut: BTreeMap::new(),
            tokens: BTreeMap::new(),
            handshakes: None,
            calls: None,
            snapshot_failed: false,
            numbering: Numbering::new(scene),
            channels: Vec::new(),
            queues: 2,
            refused_topic: None,
            flaw: None,
            owed_to: 0,
        }
    }

    /// Whether there is anything that it could bring and was asked to.
    pub(super) fn owes(&self) -> bool {
        self.said.iter().any(|said| !said.withheld)
    }

    /// How many events there are that end the session of whoever is sent them.
    pub(super) fn flaws(&self) -> usize {
        self.said.iter().filter(|said| said.flaw.is_some()).count()
    }

    pub(super) fn issue(&mut self, token: TokenId, scene: &mut Scene) {
        let ends = scene.now + scene.plan.token_life;
        self.tokens.insert(token, ends);
        scene.at(ends, Happening::TokenEnds(token));
    }

    fn accepts(&self, token: TokenId, scene: &Scene) -> bool {
        self.tokens.get(&token).is_some_and(|ends| scene.now < *ends)
    }

    /// A token's life is over, or it was revoked.
    pub(super) fn token_ended(&mut self, token: TokenId, scene: &mut Scene) {
        self.tokens.remove(&token);
        match scene.plan.dialect {
            Dialect::Sequenced => {
                let code = scene.chance.pick(&[1008, 4001]);
                for id in self.sockets_of(|socket| socket.token == token) {
                    self.close(id, closed(code), scene);
                }
            }
            Dialect::Notifications => self.channels_of_token_end(token, scene),
        }
    }

    /// The newest token is taken back.
    pub(super) fn revoke(&mut self, scene: &mut Scene) {
        let Some(token) = self.tokens.keys().next_back().copied() else { return };
        scene.tell(|| format!("platform revokes {token:?}"));
        if scene.plan.dialect == Dialect::Notifications {
            self.tell_revoked(token, scene);
        }
        self.token_ended(token, scene);
    }

    pub(super) fn dialled(&mut self, life: u32, session: SessionId, dial: &Dial, token: TokenId, scene: &mut Scene) {
        let refusal = self.handshakes.filter(|(_, until)| scene.now < *until).map(|(refusal, _)| refusal);
        let refusal = match (refusal, scene.plan.dialect) {
            (Some(refusal), _) => Some(refusal),
            (None, Dialect::Sequenced) => self.resume(life, session, dial, token, scene).err(),
            (None, Dialect::Notifications) => self.connect(life, session, dial, token, scene).err(),
        };
        let failure = match refusal {
            Some(Refusal::Status(status, retry_after)) => Failure::Handshake { status, retry_after, place: None },
            Some(Refusal::Unreachable) => Failure::Unreachable("no route".to_owned()),
            Some(Refusal::Silence) | None => return,
        };
        let delay = scene.latency();
        scene.after(delay, Happening::Process { life, news: News::Refused(session, failure) });
    }

    /// A new socket; what is sent on it arrives behind its opening.
    fn open(
        &mut self,
        life: u32,
        session: SessionId,
        token: TokenId,
        channel: Option<usize>,
        scene: &mut Scene,
    ) -> SocketId {
        self.sockets_ever += 1;
        let id = SocketId(self.sockets_ever);
        let arrives = scene.now + scene.latency();
        scene.at(arrives, Happening::Process { life, news: News::Opened(session, id) });
        self.sockets.insert(id, Socket { life, token, channel, used: false, stalled: false, leaving: false, arrives });
        scene.tell(|| format!("platform opens {id:?} for {session:?} of life {life}"));
        id
    }

    pub(super) fn called(&mut self, life: u32, call: CallId, request: &Request, token: TokenId, scene: &mut Scene) {
        let refusal = self.calls.filter(|(_, until)| scene.now < *until).map(|(refusal, _)| refusal);
        let answer = match refusal {
            _ if !self.accepts(token, scene) => Ok(status(401, None)),
            None => Ok(self.answer(request, token, scene)),
            Some(Refusal::Status(code, retry_after)) => Ok(status(code, retry_after)),
            Some(Refusal::Unreachable) => Err("no route".to_owned()),
            Some(Refusal::Silence) => Err("no answer in time".to_owned()),
        };
        let sound = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        self.snapshot_failed |= matches!(call, CallId::Snapshot(_)) && !sound;
        let silent = matches!(refusal, Some(Refusal::Silence));
        let delay = if silent { CALL_MAX } else { scene.latency() };
        let told = answer.as_ref().map(|answer| answer.status);
        scene.tell(|| format!("{life}: call {call:?} {} -> {told:?}", request.target));
        scene.after(delay, Happening::Process { life, news: News::Answered(call, answer) });
    }

    /// Sends one thing on a socket, behind what was sent before.
    fn send(&mut self, id: SocketId, what: Result<Frame, Failure>, scene: &mut Scene) {
        let spread = scene.plan.spread_max.as_millis() as u64;
        let delay = scene.latency() + scene.chance.millis(0..spread + 1);
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| !socket.stalled) else { return };
        socket.arrives = socket.arrives.max(scene.now + delay);
        let arrives = socket.arrives;
        scene.at(arrives, Happening::Arrives { socket: id, what, certain: false });
    }

    /// Ends a socket in good order: what was sent before arrives.
    fn close(&mut self, id: SocketId, failure: Failure, scene: &mut Scene) {
        scene.tell(|| format!("platform closes {id:?}: {failure}"));
        self.send(id, Err(failure), scene);
        self.sockets.remove(&id);
    }

    /// Cuts the line: what is on its way is lost. A relay that has said farewell gets the rest.
    pub(super) fn cut(&mut self, scene: &mut Scene) {
        for id in self.sockets_of(|socket| !socket.leaving && !socket.stalled) {
            scene.tell(|| format!("the line of {id:?} is cut"));
            self.sockets.remove(&id);
            self.cut.insert(id, scene.now);
            let delay = scene.latency();
            scene.after(delay, Happening::Arrives { socket: id, what: Err(closed(1006)), certain: true });
        }
    }

    /// Whether what arrives on a socket at this moment still gets through.
    pub(super) fn gets_through(&self, id: SocketId) -> bool {
        !self.cut.contains_key(&id)
    }

    /// Hangs up on everybody.
    pub(super) fn hang_up(&mut self, code: u16, scene: &mut Scene) {
        for id in self.sockets_of(|socket| !socket.leaving) {
            self.close(id, closed(code), scene);
        }
    }

    /// The open sockets go dead without a word.
    pub(super) fn stall(&mut self, scene: &mut Scene) {
        for (id, socket) in self.sockets.iter_mut().filter(|(_, socket)| !socket.leaving) {
            socket.stalled = true;
            scene.tell(|| format!("{id:?} stalls"));
        }
    }

    pub(super) fn probed(&mut self, id: SocketId, scene: &mut Scene) {
        let pong = match scene.plan.dialect {
            Dialect::Sequenced => Frame::Pong,
            Dialect::Notifications => notifications::metadata("pong"),
        };
        self.send(id, Ok(pong), scene);
    }

    pub(super) fn left(&mut self, id: SocketId, scene: &mut Scene) {
        if self.sockets.contains_key(&id) {
            self.close(id, closed(1000), scene);
        }
    }

    /// The relay is about to say farewell on it.
    pub(super) fn leaves(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.leaving = true;
        }
    }

    pub(super) fn dropped(&mut self, id: SocketId) {
        self.sockets.remove(&id);
    }

    fn sockets_of(&self, wanted: impl Fn(&Socket) -> bool) -> Vec<SocketId> {
        self.sockets.iter().filter(|(_, socket)| wanted(socket)).map(|(id, _)| *id).collect()
    }

    /// A frame that nobody can read.
    pub(super) fn babble(&mut self, scene: &mut Scene) {
        let garbage = scene.chance.pick(&["{\"half", "[1]", "?", "{}{}"]);
        for id in self.sockets_of(|_| true) {
            self.send(id, Ok(Frame::Text(garbage.into())), scene);
        }
    }

    /// Says so many events.
    pub(super) fn speak(&mut self, count: u64, scene: &mut Scene) {
        match scene.plan.dialect {
            Dialect::Sequenced => self.speak_numbered(count, scene),
            Dialect::Notifications => self.speak_on_topics(count, scene),
        }
    }

    /// The faults are over, but for lines that are dead already.
    pub(super) fn recover(&mut self) {
        self.handshakes = None;
        self.calls = None;
        self.flaw = None;
        self.refused_topic = None;
        // A poisoned place is met twice before it is given up, which is one meeting too many for what is said next.
        self.said.iter_mut().for_each(|said| said.flaw = said.flaw.filter(|flaw| *flaw != Flaw::Poison));
    }
}

pub(super) fn closed(code: u16) -> Failure {
    Failure::Closed { code, reason: String::new() }
}

/// A data frame that breaks the protocol.
pub(super) fn unreadable() -> Failure {
    Failure::Unreadable("a text that is not UTF-8".to_owned())
}

fn status(status: u16, retry_after: Option<Duration>) -> Answer {
    Answer { status, retry_after, body: "{}".into() }
}

fn ok(body: String) -> Answer {
    Answer { status: 200, retry_after: None, body: body.into() }
}
