//! Where the tail ends and the store begins: whatever readers, appends, retention and kills do to one another, nothing
//! is skipped, doubled or out of order.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{model::BatchView, store::embedded::tests::killed_copy};

const READERS: usize = 4;

#[derive(Debug, Clone)]
enum SeamAction {
    Append {
        count: usize,
        body_len: usize,
    },
    Read {
        reader: usize,
        bytes_max: usize,
    },
    /// The reader comes back with a cursor that it kept.
    Rewind {
        reader: usize,
        part: f64,
    },
    Close,
    Kill,
}

fn act() -> impl Strategy<Value = SeamAction> {
    prop_oneof![
        8 => (1..12_usize, 1..400_usize).prop_map(|(count, body_len)| SeamAction::Append { count, body_len }),
        8 => (0..READERS, 1..6_000_usize).prop_map(|(reader, bytes_max)| SeamAction::Read { reader, bytes_max }),
        2 => (0..READERS, 0.0..1.0).prop_map(|(reader, part)| SeamAction::Rewind { reader, part }),
        1 => Just(SeamAction::Close),
        1 => Just(SeamAction::Kill),
    ]
}

/// A log with its readers, and what must be true of it.
struct SeamScenario {
    directory: TempDir,
    incarnation: usize,
    retention: Retention,
    tail_bytes: usize,
    log: TestLog,
    readers: Vec<LogReader>,
    /// The last entry that was acknowledged.
    last: u64,
}

impl SeamScenario {
    async fn new(events: u64, tail_bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let retention = Retention { events, ..RETAIN_ALL };
        let opened = TestLog::at(&directory.path().join("0"), retention, tail_bytes).await;
        let readers = (0..READERS).map(|_| opened.log().reader(Offset::START)).collect();
        Self { directory, incarnation: 0, retention, tail_bytes, log: opened, readers, last: 0 }
    }

    async fn act(&mut self, act: &SeamAction) {
        match *act {
            SeamAction::Append { count, body_len } => self.last = self.log.append_large(count, body_len).await.0,
            SeamAction::Read { reader, bytes_max } => drop(self.read(reader, bytes_max).await),
            SeamAction::Rewind { reader, part } => self.rewind(reader, part),
            SeamAction::Close => self.reopen(false).await,
            SeamAction::Kill => self.reopen(true).await,
        }
    }

    /// Reads once, and checks what came; false at the end.
    async fn read(&mut self, reader: usize, bytes_max: usize) -> bool {
        let reader = &mut self.readers[reader];
        let before = reader.position();
        match reader.try_next(bytes_max).await.unwrap() {
            None => assert_eq!(before.0, self.last, "nothing came before the end"),
            Some(Read::End) => panic!("the log is open"),
            Some(Read::Wiped { .. }) => panic!("the log was not wiped"),
            Some(Read::Trimmed { after, first }) => {
                assert_eq!((after, first.offset.previous()), (before, reader.position()));
                let kept = self.last - reader.position().0;
                assert!(first.offset > before.next() && kept >= self.retention.events, "{before} {first} {kept}");
            }
            Some(Read::Entries(views)) => {
                let end = check(&views, before);
                assert_eq!(end, reader.position());
                return true;
            }
        }
        reader.position() != before
    }

    fn rewind(&mut self, reader: usize, part: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a small number")]
        let after = (self.last as f64 * part) as u64;
        self.readers[reader] = self.log.log().reader(Offset(after));
    }

    async fn reopen(&mut self, kill: bool) {
        let mut path = self.directory.path().join(self.incarnation.to_string());
        if kill {
            self.incarnation += 1;
            let successor = self.directory.path().join(self.incarnation.to_string());
            killed_copy(&path, &successor);
            path = successor;
        }
        self.log.store.close().await;
        self.log = TestLog::at(&path, self.retention, self.tail_bytes).await;
        assert_eq!(self.log.log().end().last.0, self.last);
        assert!(!self.log.writer.claimed_state().damaged);
        let positions = self.readers.iter().map(LogReader::position);
        self.readers = positions.map(|position| self.log.log().reader(position)).collect();
    }

    async fn read_all(&mut self) {
        for reader in 0..READERS {
            while self.read(reader, 3_000).await {}
            assert_eq!(self.readers[reader].position().0, self.last);
        }
    }
}

/// Entries follow `before` without a hole, and are those that were appended; returns the last.
fn check(views: &[BatchView], before: Offset) -> Offset {
    let mut last = before;
    for entry in views.iter().flat_map(BatchView::entries) {
        assert_eq!(entry.mark.offset, last.next());
        let json: serde_json::Value = serde_json::from_slice(entry.json).unwrap();
        assert_eq!(json["platformsequence"], entry.mark.offset.to_string());
        assert_eq!(json["id"], entry.mark.to_string());
        last = entry.mark.offset;
    }
    assert_ne!(last, before, "an answer is never empty");
    last
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn readers_miss_nothing_under_any_sequence_of_actions(
        events in prop_oneof![Just(u64::MAX), 5..120_u64],
        tail_bytes in prop_oneof![Just(0), 0..40_000_usize, Just(1 << 20)],
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = SeamScenario::new(events, tail_bytes).await;
            for act in &acts {
                world.act(act).await;
            }
            world.read_all().await;
            world.log.store.close().await;
        });
    }
}

/// Follows a log to its end, now and then too slowly for the tail; returns how many entries it had and how many were
/// trimmed before it came.
async fn follow(mut reader: LogReader, bytes_max: usize, pause: Duration) -> (u64, u64) {
    let (mut had, mut trimmed) = (0, 0);
    loop {
        let before = reader.position();
        match reader.next(bytes_max).await.unwrap() {
            Read::End => return (had, trimmed),
            Read::Wiped { .. } => panic!("the log was not wiped"),
            Read::Trimmed { after, first } => {
                assert!(after == before && first.offset > before.next());
                trimmed += first.offset.previous().0 - before.0;
            }
            Read::Entries(views) => had += check(&views, before).0 - before.0,
        }
        tokio::time::sleep(pause).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_every_speed_follow_a_log_that_is_written_and_trimmed() {
    for retention in [RETAIN_ALL, Retention { events: 300, ..RETAIN_ALL }] {
        let directory = tempfile::tempdir().unwrap();
        let opened = TestLog::at(directory.path(), retention, 100_000).await;
        let mut tasks = tokio::task::JoinSet::new();
        for (bytes_max, pause) in [(1, 0), (2_000, 0), (100_000, 0), (2_000, 1), (20_000, 3), (1, 2), (50_000, 20)] {
            tasks.spawn(follow(opened.log().reader(Offset::START), bytes_max, Duration::from_millis(pause)));
        }
        for round in 0..300 {
            opened.append(round % 17 + 1).await;
        }
        let last = opened.log().end().last.0;
        opened.logs.close();
        let mut skipped = 0;
        while let Some(followed) = tasks.join_next().await {
            let (had, trimmed) = followed.unwrap();
            assert_eq!(had + trimmed, last);
            skipped += trimmed;
        }
        assert_eq!(skipped > 0, retention != RETAIN_ALL, "{skipped} entries were trimmed under slow readers");
        opened.store.close().await;
    }
}

#[tokio::test]
async fn a_reader_whose_wait_is_dropped_skips_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for (tail_bytes, name) in [(0, "store"), (1 << 20, "tail")] {
        let opened = TestLog::at(&directory.path().join(name), RETAIN_ALL, tail_bytes).await;
        let mut reader = opened.log().reader(Offset::START);
        let mut all = Vec::new();
        for _ in 0..50 {
            opened.append(3).await;
            opened.append(2).await;
            // Dropped after its first step, wherever that led to.
            tokio::select! {
                biased;
                read = reader.next(1) => all.extend(offsets(&read.unwrap())),
                () = std::future::ready(()) => (),
            }
            all.extend(offsets(&reader.next(1).await.unwrap()));
        }
        while let Some(read) = reader.try_next(1).await.unwrap() {
            all.extend(offsets(&read));
        }
        assert_eq!(all, (1..=250).collect::<Vec<_>>(), "{name}");
        opened.store.close().await;
    }
}
