//! The model platform's numbered dialect: dense numbers, resumed from a number, kept for a time.

use std::fmt::Write;

use trunkline::{
    connector::{Credential, Failure, Frame},
    protocol::session::{Dial, SessionId},
};

use super::{Flaw, Platform, Refusal, Said, closed, unreadable};
use crate::world::{
    plan::Night,
    scene::{Scene, SocketId, TokenId},
};

/// The numbering in force.
#[derive(Debug)]
pub(super) struct Numbering {
    era: u32,
    next: u64,
    /// The first number of this era.
    first: u64,
    /// A position of another era is answered with what is held, else with nothing.
    replays_unknown: bool,
}

/// Where numbering starts over, era by era: so far apart that no era reaches the one before.
const ERAS: [u64; 4] = [30_000_000, 20_000_000, 10_000_000, 1];

impl Numbering {
    pub(super) fn new(scene: &mut Scene) -> Self {
        Self { era: 0, next: ERAS[0], first: ERAS[0], replays_unknown: scene.chance.once_in(2) }
    }
}

impl Platform {
    pub(super) fn resume(
        &mut self,
        life: u32,
        session: SessionId,
        dial: &Dial,
        token: TokenId,
        scene: &mut Scene,
    ) -> Result<(), Refusal> {
        let accepted = self.accepts(token, scene);
        if !accepted && dial.credential == Credential::Header {
            return Err(Refusal::Status(401, None));
        }
        let id = self.open(life, session, token, None, scene);
        if !accepted {
            self.send(id, Ok(Frame::Text(r#"{"error":"invalid_token"}"#.into())), scene);
            self.close(id, closed(1008), scene);
            return Ok(());
        }
        let position = position_in(&dial.url);
        let owed = position.is_some() || self.owed_to == 0 || self.owed_to == life;
        let replayed = self.replayed(position, owed, scene);
        scene.tell(|| format!("{id:?} asked to go on after {position:?}: {} events", replayed.len()));
        self.send_events(id, &replayed, scene);
        Ok(())
    }

    /// What is sent again to whoever goes on after `position`. What should be and cannot be is withheld; not from a
    /// standby that asks for nothing, since that is owed nothing.
    fn replayed(&mut self, position: Option<u64>, owed: bool, scene: &Scene) -> Vec<usize> {
        let kept_since = scene.now.saturating_sub(scene.plan.stream.retention);
        let Numbering { era, next, first, replays_unknown } = self.numbering;
        let known = position.is_some_and(|position| position + 1 >= first && position < next);
        let from = match position {
            None => next,
            Some(position) if known => position + 1,
            Some(_) if replays_unknown => first,
            Some(_) => next,
        };
        let mut replayed = Vec::new();
        for (index, said) in self.said.iter_mut().enumerate().rev() {
            let after = said.era == era && said.number.is_some_and(|number| known && number < from);
            if after {
                break;
            }
            let wanted = said.era == era && said.number.is_some_and(|number| number >= from);
            if wanted && said.at >= kept_since {
                replayed.push(index);
            } else {
                said.withheld |= owed;
            }
        }
        replayed.reverse();
        replayed
    }

    pub(super) fn speak_numbered(&mut self, count: u64, scene: &mut Scene) {
        let from = self.said.len();
        for _ in 0..count {
            self.say_numbered(scene);
        }
        let events: Vec<usize> = (from..self.said.len()).collect();
        for id in self.sockets_of(|socket| !socket.leaving || socket.token.generation > 0) {
            self.send_events(id, &events, scene);
        }
    }

    fn say_numbered(&mut self, scene: &mut Scene) {
        let class = self.said.len();
        let number = Some(self.numbering.next);
        self.numbering.next += 1;
        let flaw = self.flaw.take();
        let era = self.numbering.era;
        self.said.push(Said { at: scene.now, number, era, class, flaw, withheld: false, heard_in: 0 });
    }

    /// Sends events in frames; the first that has a flaw ends the socket.
    fn send_events(&mut self, id: SocketId, events: &[usize], scene: &mut Scene) {
        let mut rest = events;
        while !rest.is_empty() && self.sockets.contains_key(&id) {
            let len = scene.chance.number(1..scene.plan.frame_len_max + 1) as usize;
            let (frame, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            let sound = frame.iter().take_while(|index| self.said[**index].flaw.is_none()).count();
            self.send_frame(id, &frame[..sound], true, scene);
            if let Some(flawed) = frame.get(sound) {
                self.send_flaw(id, *flawed, scene);
            }
        }
    }

    fn send_flaw(&mut self, id: SocketId, index: usize, scene: &mut Scene) {
        self.said[index].withheld = true;
        let failure = match self.said[index].flaw {
            Some(Flaw::Oversize) => Failure::Oversize,
            Some(Flaw::Poison) | None => unreadable(),
        };
        self.close(id, failure, scene);
    }

    fn send_frame(&mut self, id: SocketId, events: &[usize], may_disorder: bool, scene: &mut Scene) {
        let mut order = events.to_vec();
        // What is missing in front of the very first event nobody can know.
        let used = self.sockets.get_mut(&id).is_some_and(|socket| std::mem::replace(&mut socket.used, true));
        if may_disorder && used && scene.plan.night == Night::Bad && scene.chance.once_in(40) {
            scene.chance.shuffle(&mut order);
        }
        let mut text = String::from("[");
        for index in &order {
            let said = &self.said[*index];
            let comma = if text.len() > 1 { "," } else { "" };
            let number = said.number.unwrap_or(0);
            write!(text, "{comma}{{\"sequenceId\":{number},\"type\":\"e\",\"uid\":{index}}}").unwrap();
        }
        if !order.is_empty() {
            text.push(']');
            self.send(id, Ok(Frame::Text(text.into())), scene);
        }
    }

    /// Says the newest events once more, but for those that have a flaw.
    pub(in crate::world) fn repeat(&mut self, scene: &mut Scene) {
        let era = self.numbering.era;
        let len = scene.chance.number(1..30) as usize;
        let from = self.said.len().saturating_sub(len);
        let newest = (from..self.said.len()).filter(|index| self.said[*index].era == era);
        let (events, flawed): (Vec<usize>, Vec<usize>) = newest.partition(|index| self.said[*index].flaw.is_none());
        flawed.into_iter().for_each(|index| self.said[index].withheld = true);
        scene.tell(|| format!("platform repeats {} events", events.len()));
        for id in self.sockets_of(|_| true) {
            self.send_frame(id, &events, false, scene);
        }
    }

    /// The next numbers are never used.
    pub(in crate::world) fn skip_numbers(&mut self, scene: &mut Scene) {
        let skipped = scene.chance.number(1..300);
        scene.tell(|| format!("platform skips {skipped} numbers after {}", self.numbering.next - 1));
        self.numbering.next += skipped;
    }

    /// The numbering starts over.
    pub(in crate::world) fn start_over(&mut self, scene: &mut Scene) {
        let Some(first) = ERAS.get(self.numbering.era as usize + 1) else { return };
        scene.tell(|| format!("platform's numbering starts over at {first}"));
        self.numbering = Numbering { era: self.numbering.era + 1, next: *first, first: *first, ..self.numbering };
    }

    /// An event that has no number.
    pub(in crate::world) fn mutter(&mut self, scene: &mut Scene) {
        for id in self.sockets_of(|_| true) {
            self.send(id, Ok(Frame::Text(r#"{"type":"aside"}"#.into())), scene);
        }
    }
}

/// The resume parameter of a socket's address.
pub(in crate::world) fn position_in(url: &str) -> Option<u64> {
    url.split_once("sequenceId=").map(|(_, position)| position.parse().unwrap())
}
