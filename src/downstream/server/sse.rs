//! Endless responses: server-sent events and NDJSON. They end when their logs are closed.
//!
//! There is no queue per client: the next piece is rendered after the last was taken. Pieces are small, because the HTTP
//! library buffers some. An idle response sends a comment or an empty line from time to time, so that proxies keep the
//! connection and a dead client is detected.

use std::{ops::Range, sync::Arc, time::Duration};

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
    accept::ResponseForm,
    access::{self, ConsumerSession},
    buffer_pool::{BufferPool, CopyKind},
    outgoing::{OutgoingBatch, RecallError},
    position::{self, PositionReporter},
    render::{self, PIECE_LEN, TypeFilter},
    routes::OpenedRead,
};
use crate::{
    clock,
    downstream::{
        consumers::{ConsumerReader, superseded},
        merged_reader::{CursorForm, MergedReader, ReadItem, ReadProgress},
    },
    listener,
    model::Batch,
    protocol::access::AccessMessage,
    random,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// Bytes read from a log for one batch.
const TURN_LEN: usize = 128 * 1024;

/// The CloudEvents `type` of a position line.
const POSITION_KIND: &str = "trunkline.position.v1";

/// The format of an endless response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamFormat {
    Sse,
    Ndjson,
}

/// The state of an endless response.
#[derive(Debug)]
pub(super) struct EndlessResponse {
    feed: MergedReader,
    kinds: TypeFilter,
    endless: StreamFormat,
    progress: ReadProgress,
    keep_alive: Interval,
    /// Positions of a filtered reader.
    positions: Option<Box<PositionReporter>>,
    /// Bytes to send before the next entries.
    queued: Option<Bytes>,
    /// Entries that were not sent yet.
    batch: Option<Box<OutgoingBatch>>,
    memory: BufferPool,
    subscriber: metrics::SubscriberMetrics,
    stalled: listener::StallFlag,
    session: Option<Box<ConsumerSession>>,
    /// The durable consumer that reads.
    consumer: Option<Arc<ConsumerReader>>,
}

impl Drop for EndlessResponse {
    fn drop(&mut self) {
        if self.stalled.is_stalled() {
            tracing::info!("subscriber too slow, closed");
            self.subscriber.set_close_reason("too_slow");
        }
    }
}

/// Options of an endless response.
#[derive(Debug)]
pub(super) struct EndlessOptions {
    pub(super) endless: StreamFormat,
    pub(super) form: CursorForm,
    /// Idle time before a keep-alive.
    pub(super) keep_alive: Duration,
    /// Interval of positions for a filtered reader.
    pub(super) position_every: Duration,
    /// NDJSON: send position lines.
    pub(super) positions: bool,
    pub(super) memory: BufferPool,
    pub(super) stalled: listener::StallFlag,
}

/// The response, which ends when its logs are closed.
pub(super) fn response(opened: OpenedRead, kinds: TypeFilter, manner: &EndlessOptions) -> Response {
    let endless = manner.endless;
    let following = EndlessResponse::new(opened, kinds, manner);
    let pieces = stream::unfold(Some(Box::new(following)), |following| async {
        let mut following = following?;
        match following.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(following))),
            Ok(None) => None,
            Err(error) => {
                following.subscriber.set_close_reason("store");
                tracing::warn!(error = chain(&error), "response to a subscriber aborted");
                Some((Err(error), None))
            }
        }
    });
    let headers = [
        (CONTENT_TYPE, endless.form().media_type()),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (Extension(listener::EndlessBody), headers, Body::from_stream(pieces)).into_response()
}

impl StreamFormat {
    fn form(self) -> ResponseForm {
        match self {
            Self::Sse => ResponseForm::Sse,
            Self::Ndjson => ResponseForm::Ndjson,
        }
    }

    /// The bytes of a keep-alive.
    fn keep_alive_bytes(self) -> &'static [u8] {
        match self {
            Self::Sse => b":\n\n",
            Self::Ndjson => b"\n",
        }
    }

    /// One whole entry.
    fn write(self, out: &mut Vec<u8>, progress: &ReadProgress, json: &[u8]) {
        self.begin(out, progress);
        self.part(out, json);
        self.end(out);
    }

    /// Writes the bytes before an entry.
    fn begin(self, out: &mut Vec<u8>, progress: &ReadProgress) {
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

    /// Writes the bytes after an entry.
    fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Self::Sse => b"\n\n",
            Self::Ndjson => b"\n",
        });
    }

    pub(super) fn transport(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
        }
    }
}

impl EndlessResponse {
    fn new(opened: OpenedRead, kinds: TypeFilter, manner: &EndlessOptions) -> Self {
        let OpenedRead { feed, session, consumer } = opened;
        let &EndlessOptions { endless, form, keep_alive, position_every, positions, ref memory, ref stalled } = manner;
        let (memory, stalled) = (memory.clone(), stalled.clone());
        let progress = ReadProgress::of(&feed, form);
        let mut ticks = interval_at(tokio::time::Instant::from_std(clock::now()) + keep_alive, keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ahead = match endless {
            // Send the cursor first, so that a client that reconnects before the first event misses nothing.
            StreamFormat::Sse => Some(Bytes::from(format!("retry: 1000\nid: {}\n\n", progress.cursor()))),
            StreamFormat::Ndjson => None,
        };
        let subscriber = metrics::SubscriberMetrics::connected(endless.transport());
        let partial = match endless {
            StreamFormat::Sse => !kinds.matches_all(),
            StreamFormat::Ndjson => positions && (!kinds.matches_all() || feed.stream_count() > 1),
        };
        let carried = endless == StreamFormat::Sse || feed.stream_count() == 1;
        let positions = partial.then(|| Box::new(PositionReporter::new(carried, position_every)));
        Self {
            feed,
            kinds,
            endless,
            progress,
            keep_alive: ticks,
            positions,
            queued: ahead,
            batch: None,
            memory,
            subscriber,
            stalled,
            session,
            consumer,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(piece) = self.next_piece().await? {
                self.keep_alive.reset();
                return Ok(Some(piece));
            }
            tokio::select! {
                biased;
                () = superseded(self.consumer.as_deref()) => return Ok(self.end("superseded")),
                due = self.feed.next(self.memory.read_len(TURN_LEN)) => match due? {
                    Some(due) => self.begin(due),
                    None => return Ok(self.end("draining")),
                },
                message = access::due(&mut self.session) => match message {
                    AccessMessage::Close(reason) => return Ok(self.end(reason.as_str())),
                    // A client that only reads cannot renew its session: it connects again with a new token.
                    AccessMessage::Expiring(_) => (),
                },
                () = position::wait_until_due(&mut self.positions) => self.queue_position(),
                _ = self.keep_alive.tick() => return Ok(Some(Bytes::from_static(self.endless.keep_alive_bytes()))),
            }
        }
    }

    /// Ends the response.
    fn end(&mut self, reason: &'static str) -> Option<Bytes> {
        self.subscriber.set_close_reason(reason);
        None
    }

    /// The shared rendering: server-sent events of one stream are the same for all readers.
    fn copy_kind(&self) -> CopyKind {
        match (self.endless, self.progress.form()) {
            (StreamFormat::Sse, CursorForm::Bare) => CopyKind::WithSse,
            (StreamFormat::Sse, CursorForm::Named) | (StreamFormat::Ndjson, _) => CopyKind::Plain,
        }
    }

    fn begin(&mut self, due: ReadItem) {
        match due {
            ReadItem::Entries { lane, views } => {
                let (copies, consumer) = (self.copy_kind(), self.consumer.as_deref());
                let (kinds, subscriber, positions) = (&self.kinds, &self.subscriber, &mut self.positions);
                let turn = OutgoingBatch::of(lane, views, copies, kinds, subscriber, consumer, positions);
                self.batch = Some(Box::new(turn));
            }
            ReadItem::Trimmed { lane, gap } => {
                let envelope = gap.envelope(self.feed.source(lane), clock::wall());
                self.progress.reached(lane, gap.resume_after());
                let mut out = Vec::new();
                self.endless.write(&mut out, &self.progress, envelope.as_bytes());
                self.queued = Some(out.into());
            }
        }
    }

    /// The next piece of the current batch; none after the last.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.queued.is_some() {
            return Ok(self.queued.take());
        }
        let Some(mut turn) = self.batch.take() else { return Ok(None) };
        while !turn.unsent.is_done() {
            if let Some(piece) = self.piece_of(&mut turn) {
                if turn.unsent.is_done() {
                    self.queue_position_if_due();
                } else {
                    // The HTTP library does not show whether the client reads.
                    turn.hold(&self.memory, &self.feed);
                    self.batch = Some(turn);
                }
                return Ok(Some(piece));
            }
            // Boxed, because few subscribers need this future.
            Box::pin(self.reload(&mut turn)).await?;
        }
        self.queue_position_if_due();
        Ok(self.queued.take())
    }

    fn queue_position_if_due(&mut self) {
        if self.positions.as_ref().is_some_and(|positions| positions.is_due()) {
            self.queue_position();
        }
    }

    async fn reload(&self, turn: &mut OutgoingBatch) -> Result<(), ReadError> {
        turn.reload(&self.memory, &self.feed).await.map_err(|lost| match lost {
            RecallError::Trimmed => ReadError::new("entries of a slow reader are no longer stored"),
            RecallError::Unreadable(error) => error,
        })
    }

    /// Queues the position of the reader. A server-sent event without data is not dispatched, but the client resumes from its
    /// `id`.
    fn queue_position(&mut self) {
        let Some(positions) = &mut self.positions else { return };
        positions.on_reported();
        let reached = ReadProgress::of(&self.feed, self.progress.form());
        let mut out = Vec::new();
        match self.endless {
            StreamFormat::Sse => out.extend_from_slice(format!("id: {}\n\n", reached.cursor()).as_bytes()),
            StreamFormat::Ndjson => {
                let nonce = random::u64();
                let position = reached.envelope(POSITION_KIND, self.feed.source(0).as_str(), nonce, clock::wall());
                render::line(&mut out, position.as_bytes());
            }
        }
        self.queued = Some(out.into());
    }

    /// The next entries of a batch, or part of one; none if they were evicted.
    fn piece_of(&mut self, turn: &mut OutgoingBatch) -> Option<Bytes> {
        let views = turn.entries.views();
        let shared = self.copy_kind() == CopyKind::WithSse && turn.unsent.sent == 0;
        let first = turn.unsent.first(&views).filter(|_| shared);
        if let Some((piece, count)) = first.and_then(|(batch, run)| batch.sse(render::sse).slice_from(&run)) {
            turn.unsent.advance(count);
            return Some(piece);
        }
        let mut out = Vec::new();
        let lane = turn.lane();
        while out.len() < PIECE_LEN
            && let Some((batch, run)) = turn.unsent.first(&views)
        {
            let sent = turn.unsent.sent;
            let (passed, sent) = self.copy_entries(&mut out, lane, batch, run, sent);
            turn.unsent.advance(passed);
            turn.unsent.sent = sent;
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Copies entries of a run until a piece is full. Returns the number of whole entries and the bytes of the next one. A
    /// copy prevents that the HTTP library keeps a whole batch alive.
    fn copy_entries(
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
