//! The endless bodies: server-sent events and NDJSON. They end when their logs do.
//!
//! Nothing is queued for a client: the next piece is made when the last was taken.

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
    render::{self, Kinds},
};
use crate::{
    clock,
    downstream::feed::{CursorForm, Due, Feed, Progress},
    model::BatchView,
    store::ReadError,
    telemetry::{chain, metrics},
};

/// What is read from a log for one turn; the pieces of one turn are all that a client can hold of ours.
const TURN_LEN: usize = 128 * 1024;

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
    /// Pieces of this turn that were not taken yet.
    pieces: VecDeque<Bytes>,
    _subscriber: metrics::Subscriber,
}

/// The answer that goes on until its logs end.
pub(super) fn response(feed: Feed, kinds: Kinds, endless: Endless, form: CursorForm, keep_alive: Duration) -> Response {
    let following = Following::new(feed, kinds, endless, form, keep_alive);
    let pieces = stream::unfold(Some(Box::new(following)), |following| async {
        let mut following = following?;
        match following.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(following))),
            Ok(None) => None,
            Err(error) => {
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

    fn transport(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
        }
    }
}

impl Following {
    fn new(feed: Feed, kinds: Kinds, endless: Endless, form: CursorForm, keep_alive: Duration) -> Self {
        let progress = Progress::of(&feed, form);
        let mut ticks = interval_at(tokio::time::Instant::from_std(clock::now()) + keep_alive, keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pieces = match endless {
            // The cursor comes first, so that a client that loses the connection before the first event loses nothing.
            Endless::Sse => VecDeque::from([Bytes::from(format!("retry: 1000\nid: {}\n\n", progress.cursor()))]),
            Endless::Ndjson => VecDeque::new(),
        };
        let _subscriber = metrics::Subscriber::connected(endless.transport());
        Self { feed, kinds, endless, progress, keep_alive: ticks, pieces, _subscriber }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.keep_alive.reset();
                return Ok(Some(piece));
            }
            tokio::select! {
                biased;
                due = self.feed.next(TURN_LEN) => match due? {
                    Some(due) => self.wrap(&due),
                    None => return Ok(None),
                },
                _ = self.keep_alive.tick(), if self.endless == Endless::Sse => {
                    return Ok(Some(Bytes::from_static(b":\n\n")));
                }
            }
        }
    }

    fn wrap(&mut self, due: &Due) {
        match due {
            Due::Entries { lane, views } => {
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
    }

    fn wrap_view(&mut self, lane: usize, view: &BatchView) {
        if self.endless == Endless::Sse && self.progress.form() == CursorForm::Bare {
            let rendering = view.batch.sse(render::sse);
            let wanted = self.kinds.runs(view).map(|run| rendering.bytes.slice(render::span(rendering, &run)));
            self.pieces.extend(wanted);
            return;
        }
        let mut out = Vec::new();
        for entry in view.entries() {
            self.progress.reached(lane, entry.mark);
            if self.kinds.wants(entry.kind()) {
                self.write(&mut out, entry.json);
            }
        }
        if !out.is_empty() {
            self.pieces.push_back(out.into());
        }
    }

    fn write(&self, out: &mut Vec<u8>, json: &[u8]) {
        match self.endless {
            Endless::Sse => render::sse_event(out, self.progress.cursor(), json),
            Endless::Ndjson => render::line(out, json),
        }
    }
}
