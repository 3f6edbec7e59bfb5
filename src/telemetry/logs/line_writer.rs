//! Passes whole lines of bounded length to the log thread.

use std::io::{self, Write};

use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::fmt::MakeWriter;

use super::escape;

/// Maximum bytes of a line. A longer one is replaced by a note, so that the queue is bounded in bytes.
const LINE_LEN_MAX: usize = 16 * 1024;

/// Creates a writer for each line.
#[derive(Debug, Clone)]
pub(super) struct LineWriter {
    writer: NonBlocking,
    shape: LineFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineFormat {
    Text,
    Json,
}

impl LineWriter {
    pub(super) fn text(writer: NonBlocking) -> Self {
        Self { writer, shape: LineFormat::Text }
    }

    pub(super) fn json(writer: NonBlocking) -> Self {
        Self { writer, shape: LineFormat::Json }
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes one whole line.
impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.len() > LINE_LEN_MAX {
            self.writer.write_all(self.shape.omitted(line.len()).as_bytes())?;
        } else if self.shape == LineFormat::Text || is_plain(line) {
            self.writer.write_all(line)?;
        } else {
            self.writer.write_all(escape::json(&String::from_utf8_lossy(line)).as_bytes())?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl LineFormat {
    fn omitted(self, len: usize) -> String {
        match self {
            Self::Text => format!(" WARN log line of {len} bytes omitted\n"),
            Self::Json => format!("{{\"level\":\"WARN\",\"message\":\"log line omitted\",\"bytes\":{len}}}\n"),
        }
    }
}

/// Printable ASCII: nothing to escape in JSON.
fn is_plain(line: &[u8]) -> bool {
    line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n'))
}
