//! The embedded store from its callers' view: acknowledged data stays, also after a kill or a change of the files.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command as Process, Stdio},
    time::Duration,
};

use bytestring::ByteString;
use futures_util::future::join_all;

use super::*;
use crate::{
    clock,
    model::{BatchBuilder, Body, Checkpoint, Epoch, Event, Position, Sequence, Source},
};

mod copies;
mod presence;

pub(super) const RETAIN_ALL: Retention =
    Retention { events: u64::MAX, age: Duration::from_secs(1 << 30), bytes: u64::MAX };

pub(super) fn open(path: &Path, retention: Retention) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(&Settings { path: path.to_owned(), retention })
}

pub(super) fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

/// An append of `len` entries of `body_len` bytes each to the end of the log.
pub(super) fn next(stream: &StreamName, state: &LogState, len: usize, body_len: usize, received: Timestamp) -> Append {
    let source = Source::new(&"acme".parse().unwrap(), stream);
    let mut builder = BatchBuilder::new(&source, state.lineage.current(), state.last);
    for _ in 0..len {
        let mut event = Event::internal("test.v1", &(), received);
        event.body = Body::Json(ByteString::from(format!("\"{}\"", "x".repeat(body_len))));
        builder.push(&event);
    }
    Append {
        stream: stream.clone(),
        fence: state.fence,
        batches: builder.finish().map(Arc::new).into_iter().collect(),
        checkpoint: checkpoint(state.last.0 + len as u64),
    }
}

pub(super) fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint {
        position: Some(Position::Numbered(Sequence(position))),
        last_received_at: Timestamp(1_777_901_509_570),
        feed: None,
    }
}

/// A stream of a store, with functions to append and to read.
struct StreamFixture {
    store: EmbeddedStore,
    name: StreamName,
    state: LogState,
}

impl StreamFixture {
    async fn open(store: &EmbeddedStore, name: &str) -> Self {
        let name = stream(name);
        let state = store.claim(&name, None, &ObservedLog::NONE).await.unwrap();
        Self { store: store.clone(), name, state }
    }

    fn epoch(&self) -> Epoch {
        self.state.lineage.current()
    }

    async fn append(&mut self, len: usize) -> Result<(), AppendError> {
        self.append_received(len, clock::wall()).await
    }

    async fn append_received(&mut self, len: usize, received: Timestamp) -> Result<(), AppendError> {
        self.store.append(next(&self.name, &self.state, len, 600, received)).await?;
        self.state.last = Offset(self.state.last.0 + len as u64);
        Ok(())
    }

    async fn entries(&self) -> Vec<u64> {
        let batches = self.store.read(&self.name, Offset::START, Offset(u64::MAX), usize::MAX).await.unwrap();
        batches.iter().flat_map(|batch| batch.first().0..=batch.last().0).collect()
    }

    async fn trimmed_to(&self, first: u64) {
        for _ in 0..500 {
            if self.store.first(&self.name) == Offset(first) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the log still begins at {}, not at {first}", self.store.first(&self.name));
    }
}

/// A connection that blocks every step while it is open.
fn blocker(path: &Path) -> rusqlite::Connection {
    let blocker = rusqlite::Connection::open(path.join("trunkline.db")).unwrap();
    blocker.busy_timeout(Duration::from_secs(10)).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    blocker
}

/// Copies the files as a kill at this moment would leave them.
pub(crate) fn killed_copy(from: &Path, to: &Path) {
    let _blocker = blocker(from);
    fs::create_dir_all(to).unwrap();
    for name in ["trunkline.db", "trunkline.db-wal", "trunkline.lock"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn quarantined_count(path: &Path) -> usize {
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".damaged-") && !name.ends_with("-wal")).count()
}

#[tokio::test]
async fn appends_that_wait_together_share_a_step() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut logs = join_all((0..100).map(async |n| StreamFixture::open(&store, &format!("s{n}")).await)).await;
    let before = store.steps();
    for _ in 0..5 {
        join_all(logs.iter_mut().map(async |log| log.append(2).await.unwrap())).await;
    }
    let steps = store.steps() - before;
    assert!(steps <= 100, "500 appends took {steps} steps");
    for log in &logs {
        assert_eq!(log.entries().await, (1..=10).collect::<Vec<_>>());
    }
    store.close().await;
}

#[tokio::test]
async fn a_holder_whose_stream_was_taken_over_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut former = StreamFixture::open(&store, "queues").await;
    former.append(1).await.unwrap();
    let mut holder = StreamFixture::open(&store, "queues").await;
    assert_eq!(holder.state.fence.number, former.state.fence.number + 1);
    assert!(matches!(former.append(1).await, Err(AppendError::Fenced)));
    holder.append(1).await.unwrap();

    let mut forged = StreamFixture::open(&store, "queues").await;
    forged.state.fence.nonce ^= 1;
    assert!(matches!(forged.append(1).await, Err(AppendError::Fenced)));
    assert_eq!(holder.entries().await, [1, 2]);
    store.close().await;
}

#[tokio::test]
async fn an_append_that_would_leave_a_hole_is_refused_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(2).await.unwrap();
    let mut append = next(&log.name, &log.state, 1, 10, clock::wall());
    append.batches.push(Arc::clone(&append.batches[0]));
    assert!(matches!(store.append(append).await, Err(AppendError::Broken(_))));
    assert_eq!(log.entries().await, [1, 2]);
    log.append(1).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_position_is_stored_with_and_without_entries() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    assert_eq!(log.state.checkpoint, None);
    log.append(3).await.unwrap();
    assert_eq!(store.claim(&log.name, None, &ObservedLog::NONE).await.unwrap().checkpoint, Some(checkpoint(3)));
    let fence = store.claim(&log.name, None, &ObservedLog::NONE).await.unwrap().fence;
    let none = Checkpoint { position: None, last_received_at: Timestamp(7), feed: None };
    for expected in [checkpoint(u64::MAX), none.clone()] {
        let append = Append { stream: log.name.clone(), fence, batches: Vec::new(), checkpoint: expected };
        store.append(append).await.unwrap();
    }
    store.close().await;
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    assert_eq!(store.claim(&log.name, None, &ObservedLog::NONE).await.unwrap().checkpoint, Some(none));
    store.close().await;
}

#[tokio::test]
async fn a_second_process_is_refused_by_the_name_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let refused = open(directory.path(), RETAIN_ALL).unwrap_err().to_string();
    assert!(refused.contains(directory.path().to_str().unwrap()) && refused.contains("in use"), "{refused}");
    store.close().await;
    open(directory.path(), RETAIN_ALL).unwrap().close().await;
}

#[test]
fn a_store_whose_handles_are_gone_frees_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path(), RETAIN_ALL).unwrap());
    for _ in 0..500 {
        if open(directory.path(), RETAIN_ALL).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the directory is still in use");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.as_path(), &file.join("below"), Path::new("/proc/trunkline")] {
        let refused = open(path, RETAIN_ALL).unwrap_err();
        assert!(matches!(refused, OpenError::Directory { .. }), "{refused:?}");
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
    }
}

#[tokio::test]
async fn each_bound_of_the_retention_trims_whole_batches() {
    let day = Duration::from_secs(86_400);
    for (retention, first) in [
        (Retention { events: 25, ..RETAIN_ALL }, 71),
        (Retention { bytes: 40_000, ..RETAIN_ALL }, 61),
        (Retention { age: day, ..RETAIN_ALL }, 51),
        (Retention { events: 0, ..RETAIN_ALL }, 91),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), retention).unwrap();
        let mut log = StreamFixture::open(&store, "queues").await;
        for batch in 0..10 {
            let age = if batch < 5 { day * 2 } else { Duration::ZERO };
            log.append_received(10, clock::wall().before(age)).await.unwrap();
        }
        log.trimmed_to(first).await;
        assert_eq!(log.entries().await, (first..=100).collect::<Vec<_>>(), "{retention:?}");
        store.close().await;
        let store = open(directory.path(), retention).unwrap();
        let state = store.claim(&log.name, None, &ObservedLog::NONE).await.unwrap();
        assert_eq!((state.first, state.last), (Offset(first), Offset(100)));
        store.close().await;
    }
}

#[tokio::test]
async fn age_trims_a_quiet_stream_too() {
    let directory = tempfile::tempdir().unwrap();
    let age = Duration::from_secs(60);
    let store = open(directory.path(), Retention { age, ..RETAIN_ALL }).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append_received(3, clock::wall().before(age - Duration::from_millis(400))).await.unwrap();
    log.append(1).await.unwrap();
    assert_eq!(store.first(&log.name), Offset(1));
    log.trimmed_to(4).await;
    store.close().await;
}

#[tokio::test]
async fn an_offset_is_found_by_its_time_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), Retention { events: 250, ..RETAIN_ALL }).unwrap();
    let log = StreamFixture::open(&store, "queues").await;
    let source = Source::new(&"acme".parse().unwrap(), &log.name);
    let mut last = Offset::START;
    // Entry n was received at 10 * n; batches of 1 to 7.
    for len in (0..100).map(|n| n % 7 + 1) {
        let mut builder = BatchBuilder::new(&source, log.state.lineage.current(), last);
        for _ in 0..len {
            let received = Timestamp(i64::try_from(builder.next_mark().offset.0 * 10).unwrap());
            builder.push(&Event::internal("test.v1", &(), received));
        }
        let batch = Arc::new(builder.finish().unwrap());
        last = batch.last();
        let append = Append { batches: vec![batch], ..next(&log.name, &log.state, 0, 0, Timestamp(0)) };
        store.append(append).await.unwrap();
    }
    let first = store.first(&log.name);
    assert!(first.0 > 100, "something was trimmed");
    for (moment, expected) in
        [(0, first.0 - 1), (10 * i64::try_from(first.0).unwrap(), first.0 - 1), (i64::MAX, last.0)]
    {
        assert_eq!(
            store.offset_before(&log.name, Offset(u64::MAX), Timestamp(moment)).await.unwrap(),
            Offset(expected),
            "{moment}"
        );
    }
    for offset in first.0..=last.0 {
        let moment = Timestamp(i64::try_from(offset * 10).unwrap() + 1);
        assert_eq!(store.offset_before(&log.name, Offset(u64::MAX), moment).await.unwrap(), Offset(offset));
    }
    store.close().await;
}

/// A change to the files of a stopped store.
type Damage = fn(&Path);

const DATABASE: &str = "trunkline.db";

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path.join(DATABASE)).unwrap().set_len(len).unwrap();
}

fn flip(path: &Path, at: usize, len: usize) {
    let mut bytes = fs::read(path.join(DATABASE)).unwrap();
    bytes[at..at + len].iter_mut().for_each(|byte| *byte ^= 0x5a);
    fs::write(path.join(DATABASE), bytes).unwrap();
}

fn garbage(path: &Path) {
    let noise: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write(path.join(DATABASE), noise).unwrap();
}

/// Name, whether it follows an orderly close (otherwise a kill), the damage, and how many damaged files are
/// quarantined.
const DAMAGES: [(&str, bool, Damage, usize); 12] = [
    ("an empty database", true, |path| cut(path, 0), 1),
    ("a database of a few bytes", true, |path| cut(path, 50), 1),
    ("a truncated database", true, |path| cut(path, 30_000), 1),
    ("garbage", true, garbage, 1),
    ("a damaged header", true, |path| flip(path, 0, 16), 1),
    ("a damaged first page", true, |path| flip(path, 100, 8_000), 1),
    ("no database", true, |path| fs::remove_file(path.join(DATABASE)).unwrap(), 0),
    ("an empty database after a kill", false, |path| cut(path, 0), 1),
    ("garbage after a kill", false, garbage, 1),
    ("no write-ahead log after a kill", false, |path| fs::remove_file(path.join("trunkline.db-wal")).unwrap(), 1),
    ("no database after a kill", false, |path| fs::remove_file(path.join(DATABASE)).unwrap(), 0),
    (
        "a suspicion that is true",
        true,
        |path| {
            flip_an_envelope(path);
            fs::write(path.join("trunkline.lock"), "suspect entry 1\n").unwrap();
        },
        1,
    ),
];

/// Changes a byte in the first envelope, and in copies of it that SQLite left in unused space: a check of the structure
/// cannot detect it.
fn flip_an_envelope(path: &Path) {
    let bytes = fs::read(path.join(DATABASE)).unwrap();
    let needle = b"\"sequence\":\"1\"";
    let found: Vec<usize> = memchr::memmem::find_iter(&bytes, needle).collect();
    assert!(!found.is_empty());
    found.iter().for_each(|at| flip(path, at + 3, 1));
}

#[tokio::test]
async fn damaged_files_are_quarantined_and_a_new_epoch_starts() {
    for (harm, orderly, damage, aside) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let (live, path) = (directory.path().join("live"), directory.path().join("harmed"));
        let store = open(if orderly { &path } else { &live }, RETAIN_ALL).unwrap();
        let mut log = StreamFixture::open(&store, "queues").await;
        for _ in 0..20 {
            log.append(10).await.unwrap();
        }
        if !orderly {
            killed_copy(&live, &path);
        }
        store.close().await;
        damage(&path);

        let store = open(&path, RETAIN_ALL).unwrap_or_else(|error| panic!("{harm}: {error}"));
        let mut replacement = StreamFixture::open(&store, "queues").await;
        assert!(replacement.state.damaged, "{harm}");
        assert_eq!(replacement.state.last, Offset::START, "{harm}");
        assert_ne!(replacement.state.lineage.current(), log.state.lineage.current(), "{harm}");
        assert_eq!(quarantined_count(&path), aside, "{harm}");
        let still_pending = store.claim(&replacement.name, None, &ObservedLog::NONE).await.unwrap();
        assert!(still_pending.damaged, "{harm}: the gap is pending until it is in the log");
        replacement.state = still_pending;
        replacement.append(1).await.unwrap();
        assert!(!store.claim(&replacement.name, None, &ObservedLog::NONE).await.unwrap().damaged, "{harm}");
        store.close().await;

        let store = open(&path, RETAIN_ALL).unwrap();
        assert!(
            !store.claim(&stream("agents"), None, &ObservedLog::NONE).await.unwrap().damaged,
            "{harm}: a later stream lost nothing"
        );
        store.close().await;
    }
}

#[tokio::test]
async fn a_reader_that_finds_damage_closes_the_store_and_the_next_start_quarantines_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    for _ in 0..5 {
        log.append(10).await.unwrap();
    }
    store.close().await;
    flip_an_envelope(directory.path());

    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    assert!(!log.state.damaged);
    assert!(store.read(&log.name, Offset::START, Offset(u64::MAX), 1).await.is_err());
    assert!(store.health().is_err());
    assert!(matches!(log.append(1).await, Err(AppendError::Broken(_))));
    store.close().await;

    let store = open(directory.path(), RETAIN_ALL).unwrap();
    assert!(StreamFixture::open(&store, "queues").await.state.damaged);
    assert_eq!(quarantined_count(directory.path()), 1);
    store.close().await;
}

#[tokio::test]
async fn a_false_suspicion_of_damage_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(10).await.unwrap();
    log.append(10).await.unwrap();
    store.close().await;
    fs::write(directory.path().join("trunkline.lock"), "suspect entry 1\n").unwrap();
    let store = open(directory.path(), RETAIN_ALL).unwrap();
    let log = StreamFixture::open(&store, "queues").await;
    assert_eq!((log.state.last, log.state.damaged), (Offset(20), false));
    store.close().await;
}

/// Earlier schemas without an identity, each with the SQL that removes the tables it does not have.
const EARLIER: [(i64, &str); 2] = [(1, "DROP TABLE cursor; DROP TABLE revocation"), (2, "")];

/// Removes the additions of the sixth schema.
const WITHOUT_CONSUMERS: &str = "DROP TABLE consumer";

/// Removes the additions of the fifth schema and of later ones.
const WITHOUT_POSITION_TEXT: &str = "DROP TABLE consumer; ALTER TABLE stream DROP COLUMN position_text";

/// Removes the additions of the fourth schema and of later ones.
const WITHOUT_SINKS: &str = "DROP TABLE consumer; DROP TABLE sink; DROP TABLE sink_cursor; DROP TABLE dead_letter;
     ALTER TABLE stream DROP COLUMN position_text";

/// Removes the additions of the third schema.
const WITHOUT_IDENTITY: &str =
    "ALTER TABLE stream DROP COLUMN earlier; ALTER TABLE stream DROP COLUMN feed; DROP TABLE life";

#[tokio::test]
async fn an_earlier_schema_is_migrated_and_starts_an_epoch() {
    for (schema, harm) in EARLIER {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), RETAIN_ALL).unwrap();
        let mut former = StreamFixture::open(&store, "queues").await;
        former.append(3).await.unwrap();
        store.close().await;
        let database = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
        database
            .execute_batch(&format!("{WITHOUT_SINKS}; {WITHOUT_IDENTITY}; {harm}; PRAGMA user_version = {schema}"))
            .unwrap();
        drop(database);
        let (billing, queues) = ("billing".parse().unwrap(), "queues".parse().unwrap());
        let mark = Mark { epoch: former.epoch(), offset: Offset(2) };
        let mut epoch = None;
        for found in [None, Some(mark)] {
            let store = open(directory.path(), RETAIN_ALL).unwrap();
            let log = StreamFixture::open(&store, "queues").await;
            assert_eq!((log.state.last, &log.state.checkpoint), (Offset(3), &Some(checkpoint(3))), "schema {schema}");
            assert_eq!(log.state.lineage.earlier(), [(former.epoch(), Offset(3))], "schema {schema}");
            assert_eq!(*epoch.get_or_insert(log.epoch()), log.epoch(), "one epoch for all later starts");
            assert_eq!(store.cursor(&billing, &queues).await.unwrap(), found);
            assert!(store.move_cursor(&billing, &queues, found, mark).await.unwrap());
            store.close().await;
        }
        assert_eq!(quarantined_count(directory.path()), 0);
    }
}

#[tokio::test]
async fn a_schema_with_an_identity_is_migrated_and_keeps_its_epoch() {
    for (schema, harm) in [(3, WITHOUT_SINKS), (4, WITHOUT_POSITION_TEXT), (5, WITHOUT_CONSUMERS)] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), RETAIN_ALL).unwrap();
        let mut former = StreamFixture::open(&store, "queues").await;
        former.append(3).await.unwrap();
        store.close().await;
        let database = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
        database.execute_batch(&format!("{harm}; PRAGMA user_version = {schema}")).unwrap();
        drop(database);
        let opaque = Checkpoint { position: Position::opaque("cursor"), ..checkpoint(3) };
        for stored in [checkpoint(3), opaque.clone()] {
            let store = open(directory.path(), RETAIN_ALL).unwrap();
            let log = StreamFixture::open(&store, "queues").await;
            assert_eq!((log.state.last, log.epoch()), (Offset(3), former.epoch()), "schema {schema}");
            assert_eq!(log.state.checkpoint.as_ref(), Some(&stored), "schema {schema}");
            assert!(store.dead_letters(&"webhook".parse().unwrap(), 0, 1).await.unwrap().is_empty());
            assert!(store.consumers().await.unwrap().is_empty());
            let append = Append { checkpoint: opaque.clone(), ..next(&log.name, &log.state, 0, 0, Timestamp(0)) };
            store.append(append).await.unwrap();
            store.close().await;
        }
        assert_eq!(quarantined_count(directory.path()), 0);
    }
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), RETAIN_ALL).unwrap().close().await;
    let database = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let before = fs::read(directory.path().join(DATABASE)).unwrap();
    for _ in 0..2 {
        let refused = open(directory.path(), RETAIN_ALL).unwrap_err();
        assert!(matches!(refused, OpenError::Newer { found: 99, .. }), "{refused}");
    }
    assert_eq!(fs::read(directory.path().join(DATABASE)).unwrap(), before);
    assert_eq!(quarantined_count(directory.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_stays_within_its_bound_while_it_is_written_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), Retention { bytes: 8 << 20, ..RETAIN_ALL }).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(1).await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (store, name) = (store.clone(), log.name.clone());
        // Readers run until the store is closed.
        readers
            .spawn(async move { while store.read(&name, Offset::START, Offset(u64::MAX), 2 << 20).await.is_ok() {} });
    }
    for _ in 0..300 {
        log.append(512).await.unwrap();
    }
    let len = |name: &str| fs::metadata(directory.path().join(name)).unwrap().len();
    let (database, wal) = (len(DATABASE), len("trunkline.db-wal"));
    assert!(database < 64 << 20, "freed pages are used again, yet the database has {database} bytes");
    assert!(wal < 80 << 20, "the write-ahead log has {wal} bytes");
    store.close().await;
    readers.join_all().await;
    assert!(open(directory.path(), RETAIN_ALL).unwrap().health().is_ok());
}

#[tokio::test]
async fn a_kill_at_the_edge_of_start_and_close_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live");
    let store = open(&live, RETAIN_ALL).unwrap();
    killed_copy(&live, &directory.path().join("started"));
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(5).await.unwrap();
    // The marker is written last at the start and first at the end, so it may be older than the files.
    for word in ["", "clean\n", "open\n"] {
        let copy = directory.path().join(format!("word-{}", word.len()));
        killed_copy(&live, &copy);
        fs::write(copy.join("trunkline.lock"), word).unwrap();
        let store = open(&copy, RETAIN_ALL).unwrap();
        let state = StreamFixture::open(&store, "queues").await.state;
        assert_eq!((state.last, state.damaged), (Offset(5), false), "{word}");
        store.close().await;
    }
    store.close().await;
    assert!(!live.join("trunkline.db-wal").exists(), "an orderly close leaves one file to copy");

    let store = open(&directory.path().join("started"), RETAIN_ALL).unwrap();
    assert!(!StreamFixture::open(&store, "queues").await.state.damaged);
    assert_eq!(quarantined_count(&directory.path().join("started")), 0);
    store.close().await;
    assert!(store.health().is_err());
}

const CHILD_DIRECTORY: &str = "TRUNKLINE_TEST_DIRECTORY";

/// Appends until it is killed, and prints each acknowledged offset.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test of kills, as a process of its own"]
async fn child_that_appends_until_it_is_killed() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("the parent names the directory");
    let store = open(Path::new(&directory), Retention { events: 4_000, ..RETAIN_ALL }).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    println!("acknowledged {}", log.state.last);
    for round in 0..100_000 {
        log.append(round % 40 + 1).await.unwrap();
        println!("acknowledged {}", log.state.last);
    }
}

/// Kills the process after `midway`, which runs after `appends` appends, and after some more appends than the offset
/// that it returns. Returns the last acknowledged offset.
fn run_until_killed(directory: &Path, appends: usize, midway: impl FnOnce() -> u64) -> u64 {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::embedded::tests::child_that_appends_until_it_is_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged = lines.filter_map(|line| line.unwrap().strip_prefix("acknowledged ")?.parse().ok());
    let mut acknowledged = acknowledged.peekable();
    assert!(acknowledged.peek().is_some(), "the child did not start");
    let mut seen: Vec<u64> = acknowledged.by_ref().take(appends).collect();
    let held = midway();
    seen.extend(acknowledged.by_ref().skip_while(|offset| *offset <= held).take(3));
    child.kill().unwrap();
    let last = acknowledged.last().or(seen.last().copied());
    child.wait().unwrap();
    last.unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let (mut before, mut epoch) = (0, None);
    for appends in [1, 2, 3, 5, 8, 13, 40, 80, 120, 200] {
        let acknowledged = run_until_killed(directory.path(), appends, || 0);
        assert!(acknowledged >= before, "{acknowledged} after {before}");
        let store = open(directory.path(), RETAIN_ALL).unwrap();
        let log = StreamFixture::open(&store, "queues").await;
        assert!(log.state.last.0 >= acknowledged, "{} of {acknowledged}", log.state.last);
        assert!(!log.state.damaged);
        assert_eq!(*epoch.get_or_insert(log.state.lineage.current()), log.state.lineage.current());
        assert_eq!(log.entries().await, (log.state.first.0..=log.state.last.0).collect::<Vec<_>>());
        before = log.state.last.0;
        store.close().await;
    }
    assert_eq!(quarantined_count(directory.path()), 0);
}
