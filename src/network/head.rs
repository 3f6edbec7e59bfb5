//! Reads the head of an HTTP response: of a proxy to `CONNECT`, or of a platform to an upgrade.
//!
//! It reads no body. Interim responses (1xx except 101) are skipped (RFC 9110 section 15.2).

use std::{error::Error, io, time::Duration};

use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{clock, protocol::retry_after, telemetry::Cause};

/// Maximum bytes of a response head, including interim responses before it.
const HEAD_LEN_MAX: usize = 64 << 10;
/// Maximum header lines of a head.
const HEADERS_MAX: usize = 128;
/// Bytes per read.
const READ_LEN: usize = 4 << 10;

/// A final response without its body.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub version: HttpVersion,
    pub status: u16,
    pub headers: HeaderMap,
}

/// The HTTP version of a response. Many proxies respond with 1.0 to a 1.1 request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    Http10,
    Http11,
}

impl ResponseHead {
    /// Whether a list header contains this token, in any line and case.
    pub fn has_token(&self, name: HeaderName, word: &str) -> bool {
        let lines = self.headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
    }
}

/// Reads the final head. Returns it with the bytes after it.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(ResponseHead, Vec<u8>)> {
    let mut read = Vec::new();
    let mut parsed = 0;
    loop {
        // Bytes beyond the limit are ignored, so that the result does not depend on the chunking.
        let bounded = read.len().min(HEAD_LEN_MAX);
        while let Some(len) = head_len(&read[parsed..bounded]) {
            let head = parse(&read[parsed..parsed + len])?;
            parsed += len;
            if !is_interim(head.status) {
                return Ok((head, read.split_off(parsed)));
            }
        }
        if read.len() >= HEAD_LEN_MAX {
            return Err(io::Error::other(format!("response head longer than {HEAD_LEN_MAX} bytes")));
        }
        let mut chunk = [0; READ_LEN];
        match stream.read(&mut chunk).await? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the response was complete")),
            len => read.extend_from_slice(&chunk[..len]),
        }
    }
}

/// The delay of `Retry-After`. A date is relative to the `Date` of the response, so that clock skew has no effect.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    retry_after::of_answer(text(RETRY_AFTER), text(DATE), clock::wall())
}

fn is_interim(status: u16) -> bool {
    status != 101 && (100..200).contains(&status)
}

/// Length of the head including its final empty line and leading empty lines.
fn head_len(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let mut line_is_empty = false;
    for (index, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            b'\n' if line_is_empty => return Some(index + 1),
            b'\n' => line_is_empty = true,
            b'\r' => (),
            _ => line_is_empty = false,
        }
    }
    None
}

/// The response has no valid HTTP/1 head.
#[derive(Debug, thiserror::Error)]
#[error("not an HTTP/1 response")]
struct MalformedHead(#[source] Cause);

impl MalformedHead {
    fn of(cause: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, Self(Cause::new(cause)))
    }
}

fn parse(bytes: &[u8]) -> io::Result<ResponseHead> {
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut lines);
    answer.parse(bytes).map_err(MalformedHead::of)?;
    let (version, status) = match (answer.version, answer.code) {
        (Some(0), Some(status)) => (HttpVersion::Http10, status),
        (Some(1), Some(status)) => (HttpVersion::Http11, status),
        _ => return Err(MalformedHead::of("unsupported version")),
    };
    let mut headers = HeaderMap::new();
    for line in answer.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(MalformedHead::of)?;
        let value = HeaderValue::from_bytes(line.value).map_err(MalformedHead::of)?;
        headers.append(name, value);
    }
    Ok(ResponseHead { version, status, headers })
}

#[cfg(test)]
mod tests {
    use reqwest::header::CONNECTION;

    use super::*;
    use crate::telemetry::chain;

    async fn head(text: &str) -> Result<(u16, String), String> {
        // Single bytes are the finest chunking.
        let (head, rest) = read(&mut pieces_of(text, 1)).await.map_err(|error| chain(&error))?;
        Ok((head.status, String::from_utf8(rest).unwrap()))
    }

    fn pieces_of(text: &str, piece: usize) -> impl AsyncRead + Unpin + use<> {
        use std::{
            pin::Pin,
            task::{Context, Poll},
        };
        struct Slow(std::collections::VecDeque<u8>, usize);
        impl AsyncRead for Slow {
            fn poll_read(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let len = self.1.min(self.0.len()).min(buffer.remaining());
                let bytes: Vec<u8> = self.0.drain(..len).collect();
                buffer.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
        }
        Slow(text.bytes().collect(), piece)
    }

    #[tokio::test]
    async fn interim_answers_are_skipped_and_bytes_after_the_head_are_returned() {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let switching = "HTTP/1.1 101 Switching Protocols\r\na: b\r\n\r\n";
        assert_eq!(head(switching).await, Ok((101, String::new())));
        assert_eq!(
            head(&format!("\r\nHTTP/1.1 100 Continue\r\n\r\n{early}{switching}")).await,
            Ok((101, String::new()))
        );
        assert_eq!(head("HTTP/1.1 200 x\na: b\n\n").await, Ok((200, String::new())));
        let mut together = format!("{early}{switching}frames").into_bytes();
        let (head, rest) = read(&mut together.as_slice()).await.unwrap();
        assert_eq!((head.status, rest.as_slice()), (101, b"frames".as_slice()));
        together.clear();
        assert!(read(&mut together.as_slice()).await.is_err_and(|error| error.to_string().contains("closed before")));
    }

    #[tokio::test]
    async fn an_invalid_response_is_rejected() {
        for (text, why) in [
            ("SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1 response"),
            ("HTTP/2.0 200 x\r\n\r\n", "not an HTTP/1 response"),
            ("HTTP/1.1 101 x\r\na", "closed before"),
            ("HTTP/1.1 103 x\r\n\r\n", "closed before"),
        ] {
            assert!(head(text).await.is_err_and(|error| error.contains(why)), "{text}");
        }
        let endless = format!("HTTP/1.1 200 x\r\na: {}", "b".repeat(HEAD_LEN_MAX));
        let read = read(&mut endless.as_bytes()).await;
        assert!(read.is_err_and(|error| error.to_string().contains("longer than 65536 bytes")));
    }

    #[tokio::test]
    async fn both_versions_and_every_way_to_end_a_line_are_read() {
        for (text, version) in [
            ("HTTP/1.0 200 Connection established\r\n\r\n", HttpVersion::Http10),
            ("HTTP/1.1 200 Connection established\r\n\r\n", HttpVersion::Http11),
            ("HTTP/1.1 200\r\n\r\n", HttpVersion::Http11),
            ("HTTP/1.0 200 \r\n\r\n", HttpVersion::Http10),
            ("HTTP/1.0 200 x\nProxy-Agent: a\n\n", HttpVersion::Http10),
            ("HTTP/1.0 200\n\n", HttpVersion::Http10),
            ("HTTP/1.1 200 x\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n", HttpVersion::Http11),
        ] {
            let (head, rest) = read(&mut [text, "rest"].concat().as_bytes()).await.unwrap();
            assert_eq!((head.version, head.status, rest.as_slice()), (version, 200, b"rest".as_slice()), "{text}");
        }
    }

    #[tokio::test]
    async fn the_head_length_limit_does_not_depend_on_the_chunking() {
        let head_of = |len: usize, value: char| {
            let (begin, end) = ("HTTP/1.1 200 x\r\na: ", "\r\n\r\n");
            format!("{begin}{}{end}", value.to_string().repeat(len - begin.len() - end.len()))
        };
        for (len, value, expected) in [
            (HEAD_LEN_MAX, 'b', Ok(200)),
            (HEAD_LEN_MAX, '\u{1}', Err("not an HTTP/1 response")),
            (HEAD_LEN_MAX + 1, 'b', Err("longer than")),
            (HEAD_LEN_MAX + 1, '\u{1}', Err("longer than")),
        ] {
            let text = head_of(len, value);
            for piece in [READ_LEN, 4_095, 17] {
                let mut pieces = pieces_of(&text, piece);
                match (read(&mut pieces).await.map(|(head, _)| head.status), expected) {
                    (Ok(status), Ok(expected)) => assert_eq!(status, expected),
                    (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{len} {piece}: {error}"),
                    (found, expected) => panic!("{len} {piece}: {found:?}, {expected:?}"),
                }
            }
        }
    }

    #[test]
    fn a_list_header_is_searched_in_all_lines_and_cases() {
        for (lines, expected) in [
            (&["Upgrade"][..], true),
            (&["keep-alive, Upgrade"], true),
            (&["upgrade,keep-alive"], true),
            (&["keep-alive", " UPGRADE "], true),
            (&["keep-alive"], false),
            (&["upgrades"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CONNECTION, HeaderValue::from_static(line));
            }
            assert_eq!(
                ResponseHead { version: HttpVersion::Http11, status: 101, headers }.has_token(CONNECTION, "upgrade"),
                expected,
                "{lines:?}"
            );
        }
    }
}
