//! The model platform's numbered dialect: dense numbers, resumed from a number, kept for a time.

use std::fmt::Write;

use trunkline::{
    connector::{Credential, Failure, Frame},
    protocol::session::{Dial, SessionId},
};

use super::{FrameFlaw, ModelPlatform, PlatformRefusal, SentEvent, closed, unreadable};
use crate::world::{
    plan::FaultProfile,
    schedule::{Schedule, SocketId, TokenId},
};

/// The current numbering.
#[derive(Debug)]
pub(super) struct ModelNumbering {
    era: u32,
    next: u64,
    /// The first number of this era.
    first: u64,
    /// Whether the platform replays everything for a position of another era; else it replays nothing.
    replays_unknown: bool,
}

/// First numbers of the eras, so far apart that eras never overlap.
const ERAS: [u64; 4] = [30_000_000, 20_000_000, 10_000_000, 1];

impl ModelNumbering {
    pub(super) fn new(schedule: &mut Schedule) -> Self {
        Self { era: 0, next: ERAS[0], first: ERAS[0], replays_unknown: schedule.rng.one_in(2) }
    }
}

impl ModelPlatform {
    pub(super) fn resume(
        &mut self,
        incarnation: u32,
        session: SessionId,
        dial: &Dial,
        token: TokenId,
        schedule: &mut Schedule,
    ) -> Result<(), PlatformRefusal> {
        let accepted = self.accepts(token, schedule);
        if !accepted && dial.credential == Credential::Header {
            return Err(PlatformRefusal::Status(401, None));
        }
        let id = self.open(incarnation, session, token, None, schedule);
        if !accepted {
            self.send(id, Ok(Frame::Text(r#"{"error":"invalid_token"}"#.into())), schedule);
            self.close(id, closed(1008), schedule);
            return Ok(());
        }
        let position = position_in(&dial.url);
        let due = position.is_some() || self.served_incarnation == 0 || self.served_incarnation == incarnation;
        let replayed = self.replayed(position, due, schedule);
        schedule.trace(|| format!("{id:?} resumes after {position:?}: {} events", replayed.len()));
        self.send_events(id, &replayed, schedule);
        Ok(())
    }

    /// Events of a replay after `position`. Marks the requested events that are no longer held as undeliverable, if a
    /// delivery is due: a standby that requests no position gets no replay.
    fn replayed(&mut self, position: Option<u64>, due: bool, schedule: &Schedule) -> Vec<usize> {
        let kept_since = schedule.now.saturating_sub(schedule.plan.stream.retention);
        let ModelNumbering { era, next, first, replays_unknown } = self.numbering;
        let known = position.is_some_and(|position| position + 1 >= first && position < next);
        let from = match position {
            None => next,
            Some(position) if known => position + 1,
            Some(_) if replays_unknown => first,
            Some(_) => next,
        };
        let mut replayed = Vec::new();
        for (index, sent) in self.sent_events.iter_mut().enumerate().rev() {
            let after = sent.era == era && sent.number.is_some_and(|number| known && number < from);
            if after {
                break;
            }
            let wanted = sent.era == era && sent.number.is_some_and(|number| number >= from);
            if wanted && sent.sent_at >= kept_since {
                replayed.push(index);
            } else {
                sent.undeliverable |= due;
            }
        }
        replayed.reverse();
        replayed
    }

    pub(super) fn emit_numbered(&mut self, count: u64, schedule: &mut Schedule) {
        let from = self.sent_events.len();
        for _ in 0..count {
            self.record_numbered(schedule);
        }
        let events: Vec<usize> = (from..self.sent_events.len()).collect();
        for id in self.sockets_of(|socket| !socket.leaving || socket.token.generation > 0) {
            self.send_events(id, &events, schedule);
        }
    }

    fn record_numbered(&mut self, schedule: &mut Schedule) {
        let class = self.sent_events.len();
        let number = Some(self.numbering.next);
        self.numbering.next += 1;
        let flaw = self.next_flaw.take();
        let era = self.numbering.era;
        self.sent_events.push(SentEvent {
            sent_at: schedule.now,
            number,
            era,
            class,
            flaw,
            undeliverable: false,
            received_by: 0,
        });
    }

    /// Sends events in frames; the first that has a flaw ends the socket.
    fn send_events(&mut self, id: SocketId, events: &[usize], schedule: &mut Schedule) {
        let mut rest = events;
        while !rest.is_empty() && self.sockets.contains_key(&id) {
            let len = schedule.rng.number(1..schedule.plan.frame_len_max + 1) as usize;
            let (frame, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            let sound = frame.iter().take_while(|index| self.sent_events[**index].flaw.is_none()).count();
            self.send_frame(id, &frame[..sound], true, schedule);
            if let Some(flawed) = frame.get(sound) {
                self.send_flaw(id, *flawed, schedule);
            }
        }
    }

    fn send_flaw(&mut self, id: SocketId, index: usize, schedule: &mut Schedule) {
        self.sent_events[index].undeliverable = true;
        let failure = match self.sent_events[index].flaw {
            Some(FrameFlaw::Oversize) => Failure::Oversize,
            Some(FrameFlaw::Malformed) | None => unreadable(),
        };
        self.close(id, failure, schedule);
    }

    fn send_frame(&mut self, id: SocketId, events: &[usize], may_disorder: bool, schedule: &mut Schedule) {
        let mut order = events.to_vec();
        // The relay cannot detect a loss before the first event.
        let used = self.sockets.get_mut(&id).is_some_and(|socket| std::mem::replace(&mut socket.used, true));
        if may_disorder && used && schedule.plan.profile == FaultProfile::Faulty && schedule.rng.one_in(40) {
            schedule.rng.shuffle(&mut order);
        }
        let mut text = String::from("[");
        for index in &order {
            let sent = &self.sent_events[*index];
            let comma = if text.len() > 1 { "," } else { "" };
            let number = sent.number.unwrap_or(0);
            write!(text, "{comma}{{\"sequenceId\":{number},\"type\":\"e\",\"uid\":{index}}}").unwrap();
        }
        if !order.is_empty() {
            text.push(']');
            self.send(id, Ok(Frame::Text(text.into())), schedule);
        }
    }

    /// Sends the newest events without flaws again.
    pub(in crate::world) fn repeat(&mut self, schedule: &mut Schedule) {
        let era = self.numbering.era;
        let len = schedule.rng.number(1..30) as usize;
        let from = self.sent_events.len().saturating_sub(len);
        let newest = (from..self.sent_events.len()).filter(|index| self.sent_events[*index].era == era);
        let (events, flawed): (Vec<usize>, Vec<usize>) =
            newest.partition(|index| self.sent_events[*index].flaw.is_none());
        flawed.into_iter().for_each(|index| self.sent_events[index].undeliverable = true);
        schedule.trace(|| format!("platform repeats {} events", events.len()));
        for id in self.sockets_of(|_| true) {
            self.send_frame(id, &events, false, schedule);
        }
    }

    /// Skips the next numbers.
    pub(in crate::world) fn skip_numbers(&mut self, schedule: &mut Schedule) {
        let skipped = schedule.rng.number(1..300);
        schedule.trace(|| format!("platform skips {skipped} numbers after {}", self.numbering.next - 1));
        self.numbering.next += skipped;
    }

    /// Restarts the numbering.
    pub(in crate::world) fn restart_numbering(&mut self, schedule: &mut Schedule) {
        let Some(first) = ERAS.get(self.numbering.era as usize + 1) else { return };
        schedule.trace(|| format!("platform's numbering restarts at {first}"));
        self.numbering = ModelNumbering { era: self.numbering.era + 1, next: *first, first: *first, ..self.numbering };
    }

    /// Sends an event without a number.
    pub(in crate::world) fn send_unnumbered(&mut self, schedule: &mut Schedule) {
        for id in self.sockets_of(|_| true) {
            self.send(id, Ok(Frame::Text(r#"{"type":"aside"}"#.into())), schedule);
        }
    }
}

/// The resume parameter of a WebSocket URL.
pub(in crate::world) fn position_in(url: &str) -> Option<u64> {
    url.split_once("sequenceId=").map(|(_, position)| position.parse().unwrap())
}
