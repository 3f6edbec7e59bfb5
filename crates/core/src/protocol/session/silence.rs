//! Whether the platform is alive: when probes are sent, and when a session without frames ends.

use std::time::{Duration, Instant};

use super::messages::Timeouts;
use crate::connector::{Failure, Frame};

/// Without frames, probes are sent after these quarters of the silence timeout.
const PROBE_QUARTERS: [u32; 2] = [2, 3];
/// A keepalive probe is sent when nothing was sent for the silence timeout divided by this.
const KEEPALIVE_PART: u32 = 2;

/// The times of the newest frames and probes.
#[derive(Debug)]
pub(super) struct SilenceWatch {
    silence: Duration,
    frame: Duration,
    last_received_at: Instant,
    /// When the frame that has begun must be complete.
    frame_deadline: Option<Instant>,
    /// How many silence probes were sent since the last frame, and when the newest was sent.
    probes: u32,
    probed_at: Instant,
    /// When the last probe was sent, or the socket opened.
    sent_at: Instant,
}

impl SilenceWatch {
    pub(super) fn new(timeouts: Timeouts, now: Instant) -> Self {
        let Timeouts { silence, frame, .. } = timeouts;
        Self { silence, frame, last_received_at: now, frame_deadline: None, probes: 0, probed_at: now, sent_at: now }
    }

    /// When the last frame arrived.
    pub(super) fn last_received_at(&self) -> Instant {
        self.last_received_at
    }

    pub(super) fn on_opened(&mut self, now: Instant) {
        self.last_received_at = now;
        self.sent_at = now;
    }

    /// A probe is sent, whatever its purpose.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.sent_at = now;
    }

    pub(super) fn on_partial_frame(&mut self, now: Instant) {
        self.frame_deadline = Some(now + self.frame);
    }

    pub(super) fn on_frame(&mut self, frame: &Frame, now: Instant) {
        self.last_received_at = now;
        self.probes = 0;
        match frame {
            Frame::Text(_) | Frame::Binary(_) | Frame::Answered { .. } => self.frame_deadline = None,
            // A pong may arrive between the parts of a data frame.
            Frame::Pong => (),
        }
    }

    /// Frames are not read: the timeouts begin again.
    pub(super) fn suspend(&mut self, now: Instant) {
        self.last_received_at = now;
        self.probes = 0;
        self.frame_deadline = self.frame_deadline.map(|_| now + self.frame);
    }

    /// When a probe or a timeout is due.
    pub(super) fn deadline(&self) -> Instant {
        let due = self.silence_due_at().min(self.keepalive_at());
        self.frame_deadline.map_or(due, |by| by.min(due))
    }

    /// Checks the timeouts. Returns whether a probe must be sent.
    pub(super) fn check(&mut self, now: Instant) -> Result<bool, Failure> {
        let is_silent = now >= self.silence_due_at();
        if is_silent && self.probes as usize >= PROBE_QUARTERS.len() {
            return Err(Failure::Silent);
        }
        if self.frame_deadline.is_some_and(|by| now >= by) {
            return Err(Failure::Unfinished { within: self.frame });
        }
        if is_silent {
            self.probes += 1;
            self.probed_at = now;
        }
        Ok(is_silent || now >= self.keepalive_at())
    }

    /// When the next silence probe or the silence timeout is due. A probe has a quarter of the timeout for its answer,
    /// even if it was sent late because the process was suspended.
    fn silence_due_at(&self) -> Instant {
        let quarters = PROBE_QUARTERS.get(self.probes as usize).copied().unwrap_or(4);
        let due = self.last_received_at + self.silence * quarters / 4;
        if self.probes == 0 { due } else { due.max(self.probed_at + self.silence / 4) }
    }

    /// When a keepalive probe is due: a platform may close the connection of a client that sends nothing.
    fn keepalive_at(&self) -> Instant {
        self.sent_at + self.silence / KEEPALIVE_PART
    }
}
