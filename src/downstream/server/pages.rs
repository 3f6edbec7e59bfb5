//! A page of events as a JSON array, with a link to the next page. It never waits for events and reads a bounded number
//! of entries, so the cursor advances even if no entry matches.
//!
//! A page is complete before its head is sent, because the head has the link. It waits a short time for memory, then is
//! rejected.

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
    accept::ResponseForm,
    buffer_pool::{BufferPool, PageReservation},
    error::ConsumerRequestError,
    render::{PIECE_LEN, TypeFilter},
};
use crate::{
    downstream::{
        consumers::ConsumerReader,
        merged_reader::{CursorForm, MergedReader, ReadItem, ReadProgress},
    },
    model::BatchView,
    telemetry::metrics,
};

/// Maximum entries read per request.
const SCAN_MAX: usize = 10_000;
/// Maximum bytes of a page; it ends there even below its limit of entries.
const PAGE_LEN_MAX: usize = 8 * 1024 * 1024;
/// Bytes read from a log at a time.
const READ_LEN: usize = 1024 * 1024;
struct PageBuilder {
    body: BodyPieces,
    progress: ReadProgress,
    left: usize,
    scanned: usize,
    delivered: usize,
}

/// A body in pieces, each freed after it was sent.
#[derive(Debug, Default)]
struct BodyPieces {
    done: VecDeque<Bytes>,
    open: Vec<u8>,
    len: usize,
}

/// Reads the entries and returns the response.
pub(super) async fn response(
    mut feed: MergedReader,
    kinds: &TypeFilter,
    limit: usize,
    form: CursorForm,
    uri: &Uri,
    memory: &BufferPool,
    consumer: Option<&ConsumerReader>,
) -> Result<Response, ConsumerRequestError> {
    let subscriber = metrics::SubscriberMetrics::connected("page");
    let mut room = memory.reserve_page(PAGE_LEN_MAX).await?;
    let progress = ReadProgress::of(&feed, form);
    let mut page = PageBuilder { body: BodyPieces::default(), progress, left: limit, scanned: 0, delivered: 0 };
    page.body.push(b"[");
    while !page.is_full() {
        match feed.next_now(READ_LEN).await? {
            Some(ReadItem::Entries { lane, views }) => {
                let before = page.delivered;
                page.append_entries(lane, &views, kinds);
                if let Some(consumer) = consumer {
                    consumer.record_delivery(lane, &views, page.delivered - before);
                }
            }
            Some(ReadItem::Trimmed { gap, .. }) if page.scanned == 0 => {
                return Err(ConsumerRequestError::Trimmed { mark: gap.after, first: gap.first });
            }
            // Entries read before the gap are valid; the next request gets the error.
            Some(ReadItem::Trimmed { .. }) | None => break,
        }
    }
    page.body.push(b"]");
    room.resize(page.body.len).await?;
    subscriber.delivered(page.delivered);
    Ok(page.finish(uri, room))
}

impl PageBuilder {
    fn is_full(&self) -> bool {
        self.left == 0 || self.scanned >= SCAN_MAX || self.body.len >= PAGE_LEN_MAX
    }

    fn append_entries(&mut self, lane: usize, views: &[BatchView], kinds: &TypeFilter) {
        for entry in views.iter().flat_map(BatchView::entries) {
            if self.is_full() {
                return;
            }
            self.scanned += 1;
            self.progress.reached(lane, entry.mark);
            if kinds.matches(entry.kind()) {
                self.left -= 1;
                if self.delivered > 0 {
                    self.body.push(b",");
                }
                self.delivered += 1;
                self.body.push(entry.json);
            }
        }
    }

    fn finish(self, uri: &Uri, room: PageReservation) -> Response {
        let next = next_link(uri, &self.progress.cursor().to_string());
        let headers = [(CONTENT_TYPE, ResponseForm::Page.media_type()), (CACHE_CONTROL, "no-store")];
        let len = self.body.len.to_string();
        let body = Body::from_stream(PageBody { pieces: self.body.finish(), room });
        (headers, [(LINK, next), (CONTENT_LENGTH, len)], body).into_response()
    }
}

impl BodyPieces {
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

/// The body of a page; sent pieces are released from the budget.
#[derive(Debug)]
struct PageBody {
    pieces: VecDeque<Bytes>,
    room: PageReservation,
}

impl Stream for PageBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(piece) = self.pieces.pop_front() else { return Poll::Ready(None) };
        self.room.release_sent(piece.len());
        Poll::Ready(Some(Ok(piece)))
    }
}

/// The link to the next page: the same query with `after=cursor`, without the ticket, which is used.
fn next_link(uri: &Uri, cursor: &str) -> String {
    let begins = |pair: &&str| ["after=", "since=", "from=", "ticket="].iter().any(|name| pair.starts_with(name));
    let kept = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !begins(pair));
    let query: Vec<&str> = kept.collect();
    let separator = if query.is_empty() { "" } else { "&" };
    format!("<{}?{}{separator}after={cursor}>; rel=\"next\"", uri.path(), query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_link_repeats_the_query_after_the_cursor() {
        for (asked, next) in [
            ("/v1/streams/queues/events", "/v1/streams/queues/events?after=4f2a-17"),
            ("/v1/streams/queues/events?from=first", "/v1/streams/queues/events?after=4f2a-17"),
            (
                "/v1/streams/queues/events?limit=5&after=4f2a-3&type=a%2Ab",
                "/v1/streams/queues/events?limit=5&type=a%2Ab&after=4f2a-17",
            ),
            ("/v1/streams/queues/events?ticket=a1", "/v1/streams/queues/events?after=4f2a-17"),
            ("/v1/events?stream=a&since=10m&stream=b", "/v1/events?stream=a&stream=b&after=4f2a-17"),
        ] {
            let link = next_link(&asked.parse().unwrap(), "4f2a-17");
            assert_eq!(link, format!("<{next}>; rel=\"next\""), "{asked}");
        }
    }
}
