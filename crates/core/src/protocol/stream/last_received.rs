//! When the last frame of the platform arrived, also before this process.

use std::time::{Duration, Instant};

use super::messages::LogHead;
use crate::{model::Timestamp, protocol::Moment};

/// When the last frame arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastReceived {
    /// None before the first frame of this process.
    at: Option<Instant>,
    wall: Timestamp,
}

impl LastReceived {
    /// No frame has arrived in this process. The log has the time of the last frame before.
    pub(super) fn restored(head: &LogHead, now: Moment) -> Self {
        let wall = head.checkpoint.as_ref().map_or(now.wall, |checkpoint| checkpoint.last_received_at);
        Self { at: None, wall }
    }

    pub(super) fn new(now: Moment) -> Self {
        Self { at: Some(now.at), wall: now.wall }
    }

    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.wall
    }

    /// How long the platform was silent: by the wall clock if the last frame arrived before this process started.
    pub(super) fn silence(&self, now: Moment) -> Duration {
        match self.at {
            Some(at) => now.at.saturating_duration_since(at),
            None => now.wall.since(self.wall),
        }
    }
}
