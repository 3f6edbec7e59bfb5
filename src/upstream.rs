//! One task per stream: carries out what the stream's machine says, over real sockets and REST calls.

use std::sync::Arc;

use serde::Serialize;

use crate::model::{AccountName, Mark, StreamName};

/// What `status` and the admin API show of a stream.
#[derive(Debug, Clone, Serialize)]
pub struct StreamStatus {
    pub stream: StreamName,
    pub account: AccountName,
    pub connector: &'static str,
    /// One of `starting`, `connecting`, `live`, `recovering`, `backing-off`, `paused`, `failed`.
    pub state: &'static str,
    /// Newest entry of its log.
    pub last: Mark,
    /// Where the platform would be asked to go on.
    pub position: Option<String>,
    pub events: u64,
    pub gaps: u64,
    pub duplicates: u64,
    pub rotations: u64,
    pub reconnects: u64,
    pub buffered: usize,
    /// Seconds since the platform was last heard.
    pub silent_seconds: Option<f64>,
    /// A snapshot that could not be fetched yet.
    pub snapshot_owed: bool,
    /// Topics that the platform refused, each with its reason (at most 20).
    pub refused_topics: Vec<String>,
    pub last_error: Option<String>,
}

/// No such stream is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such stream")]
pub struct UnknownStream;

/// What an operator may ask of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Rotate,
    Pause,
    Resume,
}

/// The handle to all streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    shared: Arc<()>,
}

impl Streams {
    /// Every stream, in the order of names.
    pub fn statuses(&self) -> Vec<StreamStatus> {
        let () = *self.shared;
        unimplemented!()
    }

    /// Tells a stream what an operator wants. Takes effect within its next step; asking twice is harmless.
    pub fn wish(&self, _stream: &StreamName, _wish: Wish) -> Result<(), UnknownStream> {
        unimplemented!()
    }
}
