//! One page of events as a JSON array, and where the next begins. It never waits, and it looks at a bounded number of
//! entries: the cursor moves on even when none of them was wanted.

use axum::{
    http::{
        Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE, LINK},
    },
    response::{IntoResponse, Response},
};

use super::{accept::Form, error::Refusal, render::Kinds};
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
    body: Vec<u8>,
    progress: Progress,
    room: usize,
    scanned: usize,
}

/// Reads and answers.
pub(super) async fn response(
    mut feed: Feed,
    kinds: &Kinds,
    limit: usize,
    form: CursorForm,
    uri: &Uri,
) -> Result<Response, Refusal> {
    let _subscriber = metrics::Subscriber::connected("page");
    let progress = Progress::of(&feed, form);
    let mut page = Page { body: vec![b'['], progress, room: limit, scanned: 0 };
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
    Ok(page.finish(uri))
}

impl Page {
    fn full(&self) -> bool {
        self.room == 0 || self.scanned >= SCAN_MAX || self.body.len() >= PAGE_LEN_MAX
    }

    fn take(&mut self, lane: usize, views: &[BatchView], kinds: &Kinds) {
        for entry in views.iter().flat_map(BatchView::entries) {
            if self.full() {
                return;
            }
            self.scanned += 1;
            self.progress.reached(lane, entry.mark);
            if kinds.wants(entry.kind()) {
                self.room -= 1;
                if self.body.len() > 1 {
                    self.body.push(b',');
                }
                self.body.extend_from_slice(entry.json);
            }
        }
    }

    fn finish(mut self, uri: &Uri) -> Response {
        self.body.push(b']');
        let next = next_link(uri, &self.progress.cursor().to_string());
        let headers = [(CONTENT_TYPE, Form::Page.media_type()), (CACHE_CONTROL, "no-store")];
        (headers, [(LINK, next)], self.body).into_response()
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
