//! The output of the log thread. Lines that cannot be written are counted.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

/// A writer of whole lines that never fails.
#[derive(Debug)]
pub(super) struct InfallibleWriter<W> {
    writer: W,
    failures: &'static AtomicU64,
}

impl<W: Write> InfallibleWriter<W> {
    pub(super) fn new(writer: W, refused: &'static AtomicU64) -> Self {
        Self { writer, failures: refused }
    }
}

impl<W: Write> Write for InfallibleWriter<W> {
    /// Writes a whole line. A full disk or a closed pipe may reject it or a part of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.writer.write_all(line).is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts some bytes, then fails.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.0.min(bytes.len());
            self.0 -= taken;
            if taken > 0 { Ok(taken) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_that_is_refused_in_whole_or_in_part_is_counted_once() {
        static REFUSED: AtomicU64 = AtomicU64::new(0);
        let mut output = InfallibleWriter::new(Full(9), &REFUSED);
        for _ in 0..4 {
            output.write_all(b"a line\n").unwrap();
        }
        assert_eq!(REFUSED.load(Ordering::Relaxed), 3, "the first was taken, the second in part");
    }
}
