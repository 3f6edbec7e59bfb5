//! The endless bodies: server-sent events and NDJSON. They end when their logs do.
//!
//! Nothing is queued for a client: the next piece is made when the last was taken. While there is nothing to send, a
//! comment or an empty line goes out from time to time: proxies keep the connection, and a client that vanished is
//! noticed.

use std::{collections::VecDeque, time::Duration};

use axum::{
    body::Body,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::{
    accept::Form,
    memory::{Held, Memory},
    position::{self, Positions},
    render::{self, Kinds},
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Due, Feed, Progress},
    listener::Stalled,
    model::BatchView,
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// What is read from a log for one turn; the pieces of one turn are all that a client can hold of ours.
const TURN_LEN: usize = 128 * 1024;

/// The CloudEvents `type` of a line that tells a position.
const POSITION_KIND: &str = "trunkline.position.v1";

/// How an endless body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endless {
    Sse,
    Ndjson,
}

/// What an endless answer is made of.
#[derive(Debug)]
pub(super) struct Following {
    feed: Feed,
    kinds: Kinds,
    endless: Endless,
    progress: Progress,
    keep_alive: Interval,
    /// For a reader that does not see everything by itself.
    positions: Option<Box<Positions>>,
    /// Pieces of this turn that were not taken yet.
    pieces: VecDeque<Bytes>,
    memory: Memory,
    /// What this turn takes until its last piece was taken.
    held: Option<Box<Held>>,
    subscriber: metrics::Subscriber,
    stalled: Stalled,
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.stalled.is_true() {
            tracing::info!("a subscriber took nothing for too long");
            self.subscriber.closes("too_slow");
        }
    }
}

/// How an endless answer is given.
#[derive(Debug)]
pub(super) struct Manner {
    pub(super) endless: Endless,
    pub(super) form: CursorForm,
    /// After so long without an event something else is sent.
    pub(super) keep_alive: Duration,
    /// How long entries may pass a reader before it is told.
    pub(super) position_every: Duration,
    /// NDJSON: the reader wants to be told how far it has been passed.
    pub(super) positions: bool,
    pub(super) memory: Memory,
    pub(super) stalled: Stalled,
}

/// The answer that goes on until its logs end.
pub(super) fn response(feed: Feed, kinds: Kinds, manner: &Manner) -> Response {
    let endless = manner.endless;
    let following = Following::new(feed, kinds, manner);
    let pieces = stream::unfold(Some(Box::new(following)), |following| async {
        let mut following = following?;
        match following.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(following))),
            Ok(None) => {
                following.subscriber.closes("draining");
                None
            }
            Err(error) => {
                following.subscriber.closes("store");
                tracing::warn!(error = chain(&error), "a subscriber's answer was cut off");
                Some((Err(error), None))
            }
        }
    });
    let headers = [
        (CONTENT_TYPE, endless.form().media_type()),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

impl Endless {
    fn form(self) -> Form {
        match self {
            Self::Sse => Form::Sse,
            Self::Ndjson => Form::Ndjson,
        }
    }

    /// What means nothing to a client, but shows that we are there.
    fn sign_of_life(self) -> &'static [u8] {
        match self {
            Self::Sse => b":\n\n",
            Self::Ndjson => b"\n",
        }
    }

    fn transport(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
        }
    }
}

impl Following {
    fn new(feed: Feed, kinds: Kinds, manner: &Manner) -> Self {
        let &Manner { endless, form, keep_alive, position_every, positions, ref memory, ref stalled } = manner;
        let (memory, stalled) = (memory.clone(), stalled.clone());
        let progress = Progress::of(&feed, form);
        let mut ticks = interval_at(tokio::time::Instant::from_std(clock::now()) + keep_alive, keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pieces = match endless {
            // The cursor comes first, so that a client that loses the connection before the first event loses nothing.
            Endless::Sse => VecDeque::from([Bytes::from(format!("retry: 1000\nid: {}\n\n", progress.cursor()))]),
            Endless::Ndjson => VecDeque::new(),
        };
        let subscriber = metrics::Subscriber::connected(endless.transport());
        let partial = match endless {
            Endless::Sse => !kinds.all(),
            Endless::Ndjson => positions && (!kinds.all() || feed.width() > 1),
        };
        let carried = endless == Endless::Sse || feed.width() == 1;
        let positions = partial.then(|| Box::new(Positions::new(carried, position_every)));
        Self {
            feed,
            kinds,
            endless,
            progress,
            keep_alive: ticks,
            positions,
            pieces,
            memory,
            held: None,
            subscriber,
            stalled,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.keep_alive.reset();
                return Ok(Some(piece));
            }
            self.held = None;
            tokio::select! {
                biased;
                due = self.feed.next(self.memory.read_len(TURN_LEN)) => match due? {
                    Some(due) => self.wrap(&due),
                    None => return Ok(None),
                },
                () = position::time(&mut self.positions) => self.tell_position(),
                _ = self.keep_alive.tick() => return Ok(Some(Bytes::from_static(self.endless.sign_of_life()))),
            }
        }
    }

    fn wrap(&mut self, due: &Due) {
        match due {
            Due::Entries { lane, views } => {
                self.held = self.memory.hold(views);
                for view in views {
                    self.wrap_view(*lane, view);
                }
            }
            Due::Trimmed { lane, gap } => {
                let envelope = gap.envelope(self.feed.source(*lane), clock::wall());
                self.progress.reached(*lane, gap.resume_after());
                let mut out = Vec::new();
                self.write(&mut out, envelope.as_bytes());
                self.pieces.push_back(out.into());
            }
        }
        if self.positions.as_ref().is_some_and(|positions| positions.due()) {
            self.tell_position();
        }
    }

    /// Tells the reader how far everything has gone that was handed out, wanted or not. A server-sent event without data
    /// is not dispatched, but its `id` is what the client comes back with.
    fn tell_position(&mut self) {
        let Some(positions) = &mut self.positions else { return };
        positions.told();
        let reached = Progress::of(&self.feed, self.progress.form());
        let mut out = Vec::new();
        match self.endless {
            Endless::Sse => out.extend_from_slice(format!("id: {}\n\n", reached.cursor()).as_bytes()),
            Endless::Ndjson => {
                let nonce = random::u64();
                let told = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
                render::line(&mut out, told.as_bytes());
            }
        }
        self.pieces.push_back(out.into());
    }

    fn wrap_view(&mut self, lane: usize, view: &BatchView) {
        if self.endless == Endless::Sse && self.progress.form() == CursorForm::Bare {
            let rendering = view.batch.sse(render::sse);
            let (mut delivered, mut end) = (0, None);
            for run in self.kinds.runs(view) {
                self.pieces.push_back(rendering.bytes.slice(render::span(rendering, &run)));
                delivered += run.len();
                end = Some(run.end);
            }
            self.delivered(view, delivered, end);
            return;
        }
        let mut out = Vec::new();
        let (mut delivered, mut end) = (0, None);
        for (index, entry) in (view.from..).zip(view.entries()) {
            self.progress.reached(lane, entry.mark);
            if self.kinds.wants(entry.kind()) {
                self.write(&mut out, entry.json);
                delivered += 1;
                end = Some(index + 1);
            }
        }
        if !out.is_empty() {
            self.pieces.push_back(out.into());
        }
        self.delivered(view, delivered, end);
    }

    fn delivered(&mut self, view: &BatchView, count: usize, end: Option<usize>) {
        self.subscriber.delivered(count);
        if let Some(positions) = &mut self.positions {
            positions.saw(view, end);
        }
    }

    fn write(&self, out: &mut Vec<u8>, json: &[u8]) {
        match self.endless {
            Endless::Sse => render::sse_event(out, self.progress.cursor(), json),
            Endless::Ndjson => render::line(out, json),
        }
    }
}
