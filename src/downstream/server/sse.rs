//! The endless bodies: server-sent events and NDJSON. They end when their logs do.
//!
//! Nothing is queued for a client: the next piece is made when the last was taken, and a small one, since the HTTP library
//! keeps some of them for a client that takes nothing. While there is nothing to send, a
//! comment or an empty line goes out from time to time: proxies keep the connection, and a client that vanished is
//! noticed.

use std::{ops::Range, time::Duration};

use axum::{
    Extension,
    body::Body,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::{
    accept::Form,
    memory::{Copies, Memory},
    position::{self, Positions},
    render::{self, Kinds, PIECE_LEN},
    turn::{Lost, Turn},
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Due, Feed, Progress},
    listener,
    model::Batch,
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// What is read from a log for one turn.
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
    /// What goes before the next entries and is no entry itself.
    ahead: Option<Bytes>,
    /// Entries that were not taken yet.
    turn: Option<Box<Turn>>,
    memory: Memory,
    subscriber: metrics::Subscriber,
    stalled: listener::Stalled,
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
    pub(super) stalled: listener::Stalled,
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
    (Extension(listener::Endless), headers, Body::from_stream(pieces)).into_response()
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

    /// One whole entry.
    fn write(self, out: &mut Vec<u8>, progress: &Progress, json: &[u8]) {
        self.begin(out, progress);
        self.part(out, json);
        self.end(out);
    }

    /// What goes before an entry.
    fn begin(self, out: &mut Vec<u8>, progress: &Progress) {
        match self {
            Self::Sse => render::sse_begin(out, progress.cursor()),
            Self::Ndjson => (),
        }
    }

    /// Part of an entry.
    fn part(self, out: &mut Vec<u8>, json: &[u8]) {
        match self {
            Self::Sse => render::sse_part(out, json),
            Self::Ndjson => render::line_part(out, json),
        }
    }

    /// What goes behind an entry.
    fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Self::Sse => b"\n\n",
            Self::Ndjson => b"\n",
        });
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
        let ahead = match endless {
            // The cursor comes first, so that a client that loses the connection before the first event loses nothing.
            Endless::Sse => Some(Bytes::from(format!("retry: 1000\nid: {}\n\n", progress.cursor()))),
            Endless::Ndjson => None,
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
            ahead,
            turn: None,
            memory,
            subscriber,
            stalled,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(piece) = self.piece().await? {
                self.keep_alive.reset();
                return Ok(Some(piece));
            }
            tokio::select! {
                biased;
                due = self.feed.next(self.memory.read_len(TURN_LEN)) => match due? {
                    Some(due) => self.begin(due),
                    None => return Ok(None),
                },
                () = position::time(&mut self.positions) => self.tell_position(),
                _ = self.keep_alive.tick() => return Ok(Some(Bytes::from_static(self.endless.sign_of_life()))),
            }
        }
    }

    /// Readers of one stream are sent the same server-sent events.
    fn copies(&self) -> Copies {
        match (self.endless, self.progress.form()) {
            (Endless::Sse, CursorForm::Bare) => Copies::WithSse,
            (Endless::Sse, CursorForm::Named) | (Endless::Ndjson, _) => Copies::Plain,
        }
    }

    fn begin(&mut self, due: Due) {
        match due {
            Due::Entries { lane, views } => {
                let copies = self.copies();
                let turn = Turn::of(lane, views, copies, &self.kinds, &self.subscriber, &mut self.positions);
                self.turn = Some(Box::new(turn));
            }
            Due::Trimmed { lane, gap } => {
                let envelope = gap.envelope(self.feed.source(lane), clock::wall());
                self.progress.reached(lane, gap.resume_after());
                let mut out = Vec::new();
                self.endless.write(&mut out, &self.progress, envelope.as_bytes());
                self.ahead = Some(out.into());
            }
        }
    }

    /// What goes next of what there is; none when all of it was taken.
    async fn piece(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.ahead.is_some() {
            return Ok(self.ahead.take());
        }
        let Some(mut turn) = self.turn.take() else { return Ok(None) };
        while !turn.course.is_done() {
            if let Some(piece) = self.piece_of(&mut turn) {
                if turn.course.is_done() {
                    self.tell_position_if_due();
                } else {
                    // Whether the client takes it is not to be seen from here.
                    turn.wait(&self.memory, &self.feed);
                    self.turn = Some(turn);
                }
                return Ok(Some(piece));
            }
            // On the heap: few subscribers ever come here, and all would keep room for it.
            Box::pin(self.recall(&mut turn)).await?;
        }
        self.tell_position_if_due();
        Ok(self.ahead.take())
    }

    fn tell_position_if_due(&mut self) {
        if self.positions.as_ref().is_some_and(|positions| positions.due()) {
            self.tell_position();
        }
    }

    async fn recall(&self, turn: &mut Turn) -> Result<(), ReadError> {
        turn.recall(&self.memory, &self.feed).await.map_err(|lost| match lost {
            Lost::Trimmed => {
                ReadError("the entries are not held any more that a slow reader was being sent".to_owned())
            }
            Lost::Unreadable(error) => error,
        })
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
        self.ahead = Some(out.into());
    }

    /// The next entries of a turn, or part of one; none when none is at hand.
    fn piece_of(&mut self, turn: &mut Turn) -> Option<Bytes> {
        let views = turn.stock.views();
        let shared = self.copies() == Copies::WithSse && turn.course.sent == 0;
        let first = turn.course.first(&views).filter(|_| shared);
        if let Some((piece, count)) = first.and_then(|(batch, run)| batch.sse(render::sse).begin(&run)) {
            turn.course.pass(count);
            return Some(piece);
        }
        let mut out = Vec::new();
        let lane = turn.lane();
        while out.len() < PIECE_LEN
            && let Some((batch, run)) = turn.course.first(&views)
        {
            let sent = turn.course.sent;
            let (passed, sent) = self.copy(&mut out, lane, batch, run, sent);
            turn.course.pass(passed);
            turn.course.sent = sent;
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Copies entries of a run until a piece is full: how many went as a whole, and how many bytes of the next one's JSON.
    /// A part of a large batch is copied so that the HTTP library does not keep the whole.
    fn copy(
        &mut self,
        out: &mut Vec<u8>,
        lane: usize,
        batch: &Batch,
        run: Range<usize>,
        mut sent: usize,
    ) -> (usize, usize) {
        for (passed, index) in run.clone().enumerate() {
            let room = PIECE_LEN.saturating_sub(out.len());
            if room == 0 {
                return (passed, 0);
            }
            let entry = batch.entry(index);
            self.progress.reached(lane, entry.mark);
            let end = entry.json.len().min(sent + room);
            if sent == 0 {
                self.endless.begin(out, &self.progress);
            }
            self.endless.part(out, &entry.json[sent..end]);
            if end < entry.json.len() {
                return (passed, end);
            }
            self.endless.end(out);
            sent = 0;
        }
        (run.len(), 0)
    }
}
