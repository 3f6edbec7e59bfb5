//! How entries are wrapped for each transport. Pure: bytes in, bytes out; the envelope itself is never changed, but for
//! line breaks between its JSON tokens where a transport gives them a meaning.

use std::{io::Write, iter, ops::Range};

use bytes::Bytes;
use globset::GlobMatcher;
use memchr::memchr2;

use crate::model::{Batch, BatchView, Entry, Rendering};

/// Which entries a subscriber wants, by their `type`.
#[derive(Debug, Clone, Default)]
pub struct Kinds(pub Option<GlobMatcher>);

impl Kinds {
    /// Whether it is everything.
    pub fn all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is this one.
    pub fn wants(&self, kind: &str) -> bool {
        self.0.as_ref().is_none_or(|glob| glob.is_match(kind))
    }

    /// The wanted entries of a view as runs of neighbours.
    pub fn runs<'a>(&'a self, view: &'a BatchView) -> impl Iterator<Item = Range<usize>> + 'a {
        let end = view.batch.len();
        let mut from = view.from;
        iter::from_fn(move || {
            let wanted = |index: &usize| self.wants(view.batch.entry(*index).kind());
            let start = if self.all() { (from < end).then_some(from)? } else { (from..end).find(wanted)? };
            let stop = if self.all() { end } else { (start..end).find(|index| !wanted(index)).unwrap_or(end) };
            from = stop;
            Some(start..stop)
        })
    }
}

/// Where the entries of a run lie in a rendering of their batch.
pub fn span(rendering: &Rendering, run: &Range<usize>) -> Range<usize> {
    let end_of = |index: usize| rendering.ends[index] as usize;
    run.start.checked_sub(1).map_or(0, end_of)..end_of(run.end - 1)
}

/// A final text frame, unmasked (RFC 6455 section 5.2).
const TEXT_FRAME: u8 = 0x81;

/// The longest head of a frame that a server sends.
const FRAME_HEAD_LEN_MAX: usize = 10;

/// The batch as WebSocket text frames, the same for every subscriber because a server does not mask.
pub fn frames(batch: &Batch) -> Rendering {
    render(batch, FRAME_HEAD_LEN_MAX, |out, entry| {
        frame_head(out, entry.json.len());
        out.extend_from_slice(entry.json);
    })
}

/// One text frame.
pub fn frame(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME_HEAD_LEN_MAX + text.len());
    frame_head(&mut out, text.len());
    out.extend_from_slice(text.as_bytes());
    out
}

fn frame_head(out: &mut Vec<u8>, len: usize) {
    out.push(TEXT_FRAME);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// How long the first frame in `bytes` is as a whole, head included; none when its head is cut off.
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            usize::try_from(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])).ok()?.checked_add(10)
        }
        [_, 126, a, b, ..] => Some(usize::from(u16::from_be_bytes([*a, *b])) + 4),
        [_, short, ..] if *short < 126 => Some(usize::from(*short) + 2),
        [..] => None,
    }
}

/// What `id: ` and `data: ` and the line ends take beside mark and envelope.
const SSE_WRAPPING_LEN: usize = 48;

/// The batch as server-sent events whose `id` is the entry's own mark: good for whoever reads this one stream.
pub fn sse(batch: &Batch) -> Rendering {
    render(batch, SSE_WRAPPING_LEN, |out, entry| sse_event(out, entry.mark, entry.json))
}

/// One server-sent event.
pub fn sse_event(out: &mut Vec<u8>, id: impl std::fmt::Display, json: &[u8]) {
    sse_begin(out, id);
    sse_part(out, json);
    out.extend_from_slice(b"\n\n");
}

/// What goes before the envelope of a server-sent event.
pub fn sse_begin(out: &mut Vec<u8>, id: impl std::fmt::Display) {
    write!(out, "id: {id}\ndata: ").expect("writing to memory does not fail");
}

/// Part of the envelope of a server-sent event. A line break begins another `data` line, which the client joins again.
pub fn sse_part(out: &mut Vec<u8>, json: &[u8]) {
    let mut rest = json;
    while let Some(at) = memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(b"\ndata: ");
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// One line of NDJSON.
pub fn line(out: &mut Vec<u8>, json: &[u8]) {
    line_part(out, json);
    out.push(b'\n');
}

/// Part of a line of NDJSON. A line break in JSON can only stand between tokens, where a space means the same.
pub fn line_part(out: &mut Vec<u8>, json: &[u8]) {
    let start = out.len();
    out.extend_from_slice(json);
    let written = &mut out[start..];
    let mut from = 0;
    while let Some(at) = memchr2(b'\n', b'\r', &written[from..]) {
        written[from + at] = b' ';
        from += at + 1;
    }
}

fn render(batch: &Batch, wrapping_len: usize, mut wrap: impl FnMut(&mut Vec<u8>, Entry<'_>)) -> Rendering {
    let mut out = Vec::with_capacity(batch.bytes().len() + batch.len() * wrapping_len);
    let mut end_after = |index| {
        wrap(&mut out, batch.entry(index));
        u32::try_from(out.len()).expect("a batch is bounded far below 4 GiB")
    };
    let ends = (0..batch.len()).map(&mut end_after).collect();
    Rendering { bytes: Bytes::from(out), ends }
}
