//! Renders entries for each transport. Pure. The envelope is unchanged except for line breaks between JSON tokens, where
//! a transport gives them a meaning.

use std::{io::Write, iter, ops::Range};

use bytes::Bytes;
use globset::GlobMatcher;
use memchr::memchr2;

use crate::model::{Batch, BatchView, Entry, Piece, Pieces, Rendering};

/// A filter of entries by `type`.
#[derive(Debug, Clone, Default)]
pub struct TypeFilter(pub Option<GlobMatcher>);

impl TypeFilter {
    /// Whether every type matches.
    pub fn matches_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this type matches.
    pub fn matches(&self, kind: &str) -> bool {
        self.0.as_ref().is_none_or(|glob| glob.is_match(kind))
    }

    /// The matching entries of a view as consecutive runs.
    pub fn runs<'a>(&'a self, view: &'a BatchView) -> impl Iterator<Item = Range<usize>> + 'a {
        let end = view.batch.len();
        let mut from = view.from;
        iter::from_fn(move || {
            let wanted = |index: &usize| self.matches(view.batch.entry(*index).kind());
            let start = if self.matches_all() { (from < end).then_some(from)? } else { (from..end).find(wanted)? };
            let stop = if self.matches_all() { end } else { (start..end).find(|index| !wanted(index)).unwrap_or(end) };
            from = stop;
            Some(start..stop)
        })
    }
}

/// A final text frame, unmasked (RFC 6455 section 5.2).
const TEXT_FRAME: u8 = 0x81;

/// The longest head of an unmasked frame.
const FRAME_HEAD_LEN_MAX: usize = 10;

/// The batch as unmasked WebSocket text frames, shared by all subscribers.
pub fn frames(batch: &Batch) -> Rendering {
    render(batch, 0..batch.len(), FRAME_HEAD_LEN_MAX, |out, entry| {
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

/// Length of the first frame in `bytes` including its head; none if the head is incomplete.
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

/// Bytes passed to the HTTP library at a time. It buffers up to twice as much.
pub const PIECE_LEN: usize = 32 * 1024;

/// Bytes of `id: `, `data: ` and line ends.
const SSE_WRAPPING_LEN: usize = 48;

/// The batch as server-sent events with the mark as `id`, shared by readers of one stream. A piece is at most
/// [`PIECE_LEN`] long (without line breaks in the JSON); longer entries are left out.
pub fn sse(batch: &Batch) -> Pieces {
    sse_pieces(batch, PIECE_LEN)
}

fn sse_pieces(batch: &Batch, len_max: usize) -> Pieces {
    let render = |run: Range<usize>| Piece {
        first: run.start,
        rendering: render(batch, run, SSE_WRAPPING_LEN, |out, entry| sse_event(out, entry.mark, entry.json)),
    };
    Pieces::new(sse_runs(batch, len_max).map(render).collect())
}

/// The entries of a batch in runs of bounded length, without those that are too long.
fn sse_runs(batch: &Batch, len_max: usize) -> impl Iterator<Item = Range<usize>> {
    let len = move |index: usize| batch.entry(index).json.len() + SSE_WRAPPING_LEN;
    let mut from = 0;
    iter::from_fn(move || {
        let start = (from..batch.len()).find(|index| len(*index) <= len_max)?;
        let mut room = len_max;
        let fits = |index: &usize| room.checked_sub(len(*index)).inspect(|left| room = *left).is_some();
        from = start + (start..batch.len()).take_while(fits).count();
        Some(start..from)
    })
}

/// One server-sent event.
pub fn sse_event(out: &mut Vec<u8>, id: impl std::fmt::Display, json: &[u8]) {
    sse_begin(out, id);
    sse_part(out, json);
    out.extend_from_slice(b"\n\n");
}

/// The head of a server-sent event, before the envelope.
pub fn sse_begin(out: &mut Vec<u8>, id: impl std::fmt::Display) {
    write!(out, "id: {id}\ndata: ").expect("writing to memory does not fail");
}

/// Part of the envelope of a server-sent event. A line break starts another `data` line, which the client joins.
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

/// Part of a line of NDJSON. A line break is between JSON tokens, where it is replaced by a space.
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

fn render(
    batch: &Batch,
    run: Range<usize>,
    wrapping_len: usize,
    mut wrap: impl FnMut(&mut Vec<u8>, Entry<'_>),
) -> Rendering {
    let mut out = Vec::with_capacity(batch.bytes_of(&run).len() + run.len() * wrapping_len);
    let mut end_after = |index| {
        wrap(&mut out, batch.entry(index));
        u32::try_from(out.len()).expect("a batch is bounded far below 4 GiB")
    };
    let ends = run.map(&mut end_after).collect();
    Rendering { bytes: Bytes::from(out), ends }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Offset, StoredEntry, Timestamp};

    fn batch(lens: &[usize]) -> Batch {
        let texts: Vec<Vec<u8>> = lens.iter().map(|len| vec![b'x'; *len]).collect();
        let entries: Vec<StoredEntry<'_>> =
            texts.iter().map(|json| StoredEntry { json, kind: (0, 0), received: Timestamp(0) }).collect();
        Batch::of(Epoch(1), Offset(7), &entries).unwrap()
    }

    fn alone(batch: &Batch, index: usize) -> Vec<u8> {
        let mut out = Vec::new();
        sse_event(&mut out, batch.entry(index).mark, batch.entry(index).json);
        out
    }

    #[test]
    fn server_sent_events_are_shared_in_pieces_of_bounded_length() {
        const LEN_MAX: usize = 200;
        for lens in [&[1_usize][..], &[300], &[50, 50, 50, 50, 50, 50], &[10, 300, 300, 10, 150, 150, 300]] {
            let batch = batch(lens);
            let pieces = sse_pieces(&batch, LEN_MAX);
            for (start, end) in (0..lens.len()).flat_map(|start| (start + 1..=lens.len()).map(move |end| (start, end)))
            {
                let Some((bytes, count)) = pieces.slice_from(&(start..end)) else {
                    assert!(lens[start] + SSE_WRAPPING_LEN > LEN_MAX, "{lens:?}: {start} is in no piece");
                    continue;
                };
                let expected: Vec<u8> = (start..start + count).flat_map(|index| alone(&batch, index)).collect();
                assert_eq!(bytes, expected, "{lens:?}: {start}..{end}");
                assert!(bytes.len() <= LEN_MAX && start + count <= end, "{lens:?}: {start}..{end}");
            }
        }
        let whole = sse_pieces(&batch(&[10, 10, 10]), LEN_MAX);
        assert_eq!(whole.slice_from(&(1..3)).map(|(_, count)| count), Some(2));
    }
}
