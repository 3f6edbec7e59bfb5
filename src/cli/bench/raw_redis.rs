//! The baseline for appends in Redis: the same bytes in prepared transactions with increasing numbers, one at a time.
//! It checks no fence.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use redis::{ConnectionLike, Value, pipe};

use super::{
    machine::{self, Cores},
    server::BenchRedis,
    source::{DIGITS, FIRST_NUMBER, write_digits},
};
use crate::clock;

/// The result of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct AppendMeasurement {
    pub(super) events: u64,
    pub(super) elapsed: Duration,
    /// CPU time of the server.
    pub(super) cpu: Option<Duration>,
}

/// Appends `entry` repeatedly, `len` per transaction, on the daemon's core; measures for `span` after a warm-up.
pub(super) fn append(
    server: &BenchRedis,
    entry: &[u8],
    len: usize,
    (warm_up, span): (Duration, Duration),
    cores: Option<Cores>,
) -> anyhow::Result<AppendMeasurement> {
    let done = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            if let Some(cores) = cores {
                machine::pin(cores.daemon);
            }
            let mut writer = RawRedisWriter::new(server, entry, len)?;
            writer.write_until(clock::now() + warm_up)?;
            let (written, start, cpu) = (writer.written, clock::now(), server.cpu());
            writer.write_until(start + span)?;
            let cpu = server.cpu().zip(cpu).map(|(after, before)| after - before);
            Ok(AppendMeasurement { events: writer.written - written, elapsed: start.elapsed(), cpu })
        });
        writer.join()
    });
    // A panic of the thread is a bug, so it is passed on.
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct RawRedisWriter {
    connection: redis::Connection,
    transaction: PackedTransaction,
    written: u64,
}

impl RawRedisWriter {
    fn new(server: &BenchRedis, entry: &[u8], len: usize) -> anyhow::Result<Self> {
        let transaction = PackedTransaction::new(&server.key("bare", "log"), &server.key("bare", "head"), entry, len);
        Ok(Self { connection: server.connect()?, transaction, written: 0 })
    }

    fn write_until(&mut self, end: Instant) -> anyhow::Result<()> {
        while clock::now() < end {
            let PackedTransaction { len, .. } = self.transaction;
            let bytes = self.transaction.numbered_after(self.written);
            // MULTI and each command have a reply before the one of EXEC.
            let answers = self
                .connection
                .req_packed_commands(bytes, len + 2, 1)
                .context("Redis did not reply to a transaction")?;
            let done = matches!(&answers[..], [Value::Array(done)] if done.len() == len + 1);
            ensure!(done, "Redis rejected a transaction: {answers:?}");
            self.written += len as u64;
        }
        Ok(())
    }
}

/// A packed transaction of entries and the number of the last one, with placeholders for the numbers.
struct PackedTransaction {
    bytes: Vec<u8>,
    /// Positions of the numbers: one per entry, and the last one again.
    id_offsets: Vec<usize>,
    len: usize,
}

impl PackedTransaction {
    fn new(log: &str, head: &str, entry: &[u8], len: usize) -> Self {
        let id = format!("{FIRST_NUMBER}-0");
        let mut pipe = pipe();
        pipe.atomic();
        for _ in 0..len {
            pipe.cmd("XADD").arg(log).arg(&id).arg("event").arg(entry);
        }
        pipe.cmd("HSET").arg(head).arg("last").arg(&id);
        let bytes = pipe.get_packed_pipeline();
        let places = memchr::memmem::find_iter(&bytes, format!("\r\n{id}\r\n").as_bytes()).map(|at| at + 2).collect();
        Self { bytes, id_offsets: places, len }
    }

    /// The bytes of the transaction after `written` entries.
    fn numbered_after(&mut self, written: u64) -> &[u8] {
        for (index, at) in self.id_offsets.iter().enumerate() {
            let number = FIRST_NUMBER + written + index.min(self.len - 1) as u64;
            write_digits(&mut self.bytes[*at..*at + DIGITS], number);
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_numbered_on() {
        let mut transaction = PackedTransaction::new("log", "head", b"{\"id\":\"1000000000-0\"}", 3);
        for written in [0, 3, 999_999] {
            let text = String::from_utf8(transaction.numbered_after(written).to_vec()).unwrap();
            let ids = [1, 2, 3, 3].map(|number| format!("$12\r\n{}-0\r\n", FIRST_NUMBER + written + number - 1));
            let found: Vec<&str> = text.match_indices("$12\r\n").map(|(at, _)| &text[at..at + 19]).collect();
            assert_eq!(found, ids);
            assert!(text.starts_with("*1\r\n$5\r\nMULTI\r\n") && text.ends_with("*1\r\n$4\r\nEXEC\r\n"), "{text}");
        }
    }
}
