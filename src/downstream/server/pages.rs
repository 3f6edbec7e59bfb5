//! One page of events as a JSON array, and where the next begins. It never waits for events, and it looks at a bounded
//! number of entries: the cursor moves on even when none of them was wanted.
//!
//! A page must be complete before its head is sent, since the head says where the next begins. It waits a little for its
//! share of the room that all clients have in common, and is refused then.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{
        Uri,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LINK},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::Stream;

use super::{
    accept::Form,
    error::Refusal,
    memory::{Memory, Room},
    render::{Kinds, PIECE_LEN},
};
use crate::{
    downstream::feed::{CursorForm, Due, Feed, Progress},
    model::BatchView,
    telemetry::metrics,
};

/// Entries that one request looks at.
const SCAN_MAX: usize = 10_000;
/// A page that has grown to this is served as it is, whatever its limit.
const PAGE_LEN_MAX: usize = 8 * 1024 * 1024;
/// What is read from a log at a time.
const READ_LEN: usize = 1024 * 1024;
struct Page {
    body: Pieces,
    progress: Progress,
    left: usize,
    scanned: usize,
    taken: usize,
}

/// A text in pieces, so that what its client took is freed.
#[derive(Debug, Default)]
struct Pieces {
    done: VecDeque<Bytes>,
    open: Vec<u8>,
    len: usize,
}

/// Reads and answers.
pub(super) async fn response(
    mut feed: Feed,
    kinds: &Kinds,
    limit: usize,
    form: CursorForm,
    uri: &Uri,
    memory: &Memory,
) -> Result<Response, Refusal> {
    let subscriber = metrics::Subscriber::connected("page");
    let mut room = memory.room(PAGE_LEN_MAX).await?;
    let progress = Progress::of(&feed, form);
    let mut page = Page { body: Pieces::default(), progress, left: limit, scanned: 0, taken: 0 };
    page.body.push(b"[");
    while !page.full() {
        match feed.next_now(READ_LEN).await? {
            Some(Due::Entries { lane, views }) => page.take(lane, &views, kinds),
            Some(Due::Trimmed { gap, .. }) if page.scanned == 0 => {
                return Err(Refusal::Trimmed { mark: gap.after, first: gap.first });
            }
            // What was read before retention overtook this request is good; the next one is told.
            Some(Due::Trimmed { .. }) | None => break,
        }
    }
    page.body.push(b"]");
    room.fit(page.body.len).await?;
    subscriber.delivered(page.taken);
    Ok(page.finish(uri, room))
}

impl Page {
    fn full(&self) -> bool {
        self.left == 0 || self.scanned >= SCAN_MAX || self.body.len >= PAGE_LEN_MAX
    }

    fn take(&mut self, lane: usize, views: &[BatchView], kinds: &Kinds) {
        for entry in views.iter().flat_map(BatchView::entries) {
            if self.full() {
                return;
            }
            self.scanned += 1;
            self.progress.reached(lane, entry.mark);
            if kinds.wants(entry.kind()) {
                self.left -= 1;
                if self.taken > 0 {
                    self.body.push(b",");
                }
                self.taken += 1;
                self.body.push(entry.json);
            }
        }
    }

    fn finish(self, uri: &Uri, room: Room) -> Response {
        let next = next_link(uri, &self.progress.cursor().to_string());
        let headers = [(CONTENT_TYPE, Form::Page.media_type()), (CACHE_CONTROL, "no-store")];
        let len = self.body.len.to_string();
        let body = Body::from_stream(Sent { pieces: self.body.finish(), room });
        (headers, [(LINK, next), (CONTENT_LENGTH, len)], body).into_response()
    }
}

impl Pieces {
    fn push(&mut self, text: &[u8]) {
        self.open.extend_from_slice(text);
        self.len += text.len();
        if self.open.len() >= PIECE_LEN {
            self.close();
        }
    }

    fn close(&mut self) {
        self.done.push_back(std::mem::take(&mut self.open).into());
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        self.close();
        self.done
    }
}

/// A page on its way: what the connection takes of it is no longer counted.
#[derive(Debug)]
struct Sent {
    pieces: VecDeque<Bytes>,
    room: Room,
}

impl Stream for Sent {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(piece) = self.pieces.pop_front() else { return Poll::Ready(None) };
        self.room.taken(piece.len());
        Poll::Ready(Some(Ok(piece)))
    }
}

/// The address of the next page: the same question, begun after `cursor`.
fn next_link(uri: &Uri, cursor: &str) -> String {
    let begins = |pair: &&str| ["after=", "since=", "from="].iter().any(|name| pair.starts_with(name));
    let kept = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !begins(pair));
    let query: Vec<&str> = kept.collect();
    let separator = if query.is_empty() { "" } else { "&" };
    format!("<{}?{}{separator}after={cursor}>; rel=\"next\"", uri.path(), query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_asks_the_same_question_from_where_this_one_ended() {
        for (asked, next) in [
            ("/v1/streams/queues/events", "/v1/streams/queues/events?after=4f2a-17"),
            ("/v1/streams/queues/events?from=first", "/v1/streams/queues/events?after=4f2a-17"),
            (
                "/v1/streams/queues/events?limit=5&after=4f2a-3&type=a%2Ab",
                "/v1/streams/queues/events?limit=5&type=a%2Ab&after=4f2a-17",
            ),
            ("/v1/events?stream=a&since=10m&stream=b", "/v1/events?stream=a&stream=b&after=4f2a-17"),
        ] {
            let link = next_link(&asked.parse().unwrap(), "4f2a-17");
            assert_eq!(link, format!("<{next}>; rel=\"next\""), "{asked}");
        }
    }
}
