//! The log as its users see it: what was appended is read, once, in order, whatever lies between.

mod seam;

use std::{path::Path, time::Duration};

use bytestring::ByteString;

use super::*;
use crate::{
    model::{Body, Checkpoint, Event, Position, Sequence},
    store::{
        Retention,
        embedded::{EmbeddedStore, Settings as StoreSettings},
    },
};

const RETAIN_ALL: Retention = Retention { events: u64::MAX, age: Duration::from_secs(1 << 30), bytes: u64::MAX };

/// A log and the store below it.
struct TestLog {
    store: EmbeddedStore,
    logs: EventLogs,
    writer: LogWriter,
}

impl TestLog {
    async fn at(path: &Path, retention: Retention, tail_bytes: usize) -> Self {
        let store = EmbeddedStore::open(&StoreSettings { path: path.to_owned(), retention }).unwrap();
        let stream: StreamName = "queues".parse().unwrap();
        let source = Source::new(&"acme".parse().unwrap(), &stream);
        let settings = Settings { tail_bytes };
        let logs = EventLogs::open(Store::Embedded(store.clone()), &[(stream, source)], &settings).await.unwrap();
        let writer = logs.iter().next().unwrap().1.claim(None).await.unwrap();
        Self { store, logs, writer }
    }

    fn log(&self) -> &EventLog {
        self.logs.iter().next().unwrap().1
    }

    async fn append(&self, count: usize) -> Offset {
        self.append_large(count, 64).await
    }

    /// The platform numbers its events as we do.
    async fn append_large(&self, count: usize, body_len: usize) -> Offset {
        let last = self.log().end().last.0;
        let events: Vec<Event> = (1..=count as u64).map(|n| event(last + n, body_len)).collect();
        self.writer.append(&events, checkpoint(last + count as u64)).await.unwrap()
    }
}

fn event(number: u64, body_len: usize) -> Event {
    let mut event = Event::internal("test.v1", &(), Timestamp(1_777_901_509_570));
    event.sequence = Some(Sequence(number));
    event.body = Body::Json(ByteString::from(format!("\"{}\"", "x".repeat(body_len))));
    event
}

fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint {
        position: Some(Position::Numbered(Sequence(position))),
        last_received_at: Timestamp(1_777_901_509_570),
        feed: None,
    }
}

fn offsets(read: &Read) -> Vec<u64> {
    match read {
        Read::Entries(views) => {
            views.iter().flat_map(|view| view.entries().map(|entry| entry.mark.offset.0).collect::<Vec<_>>()).collect()
        }
        Read::Trimmed { .. } | Read::Wiped { .. } | Read::End => panic!("{read:?} where entries were expected"),
    }
}

async fn read_all(log: &EventLog, after: Offset, bytes_max: usize) -> Vec<u64> {
    let mut reader = log.reader(after);
    let mut all = Vec::new();
    while let Some(read) = reader.try_next(bytes_max).await.unwrap() {
        all.extend(offsets(&read));
    }
    all
}

#[tokio::test]
async fn what_was_appended_is_read_from_the_tail_and_from_the_store_alike() {
    let directory = tempfile::tempdir().unwrap();
    for tail_bytes in [0, 4_096, 1 << 20] {
        let opened = TestLog::at(&directory.path().join(tail_bytes.to_string()), RETAIN_ALL, tail_bytes).await;
        for count in [1, 5, 3, 20, 1] {
            opened.append(count).await;
        }
        for after in [0, 1, 2, 7, 29] {
            let expected: Vec<u64> = (after + 1..=30).collect();
            assert_eq!(read_all(opened.log(), Offset(after), 1_000).await, expected, "{tail_bytes} {after}");
        }
        opened.store.close().await;
    }
}

#[tokio::test]
async fn a_reopened_log_resumes_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    opened.append(5).await;
    let before = opened.log().end();
    opened.store.close().await;

    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    assert_eq!(opened.log().end(), before);
    assert_eq!(opened.writer.claimed_state().checkpoint, Some(checkpoint(5)));
    assert!(!opened.writer.claimed_state().damaged);
    assert_eq!(opened.append(2).await, Offset(7));
    assert_eq!(read_all(opened.log(), Offset::START, 1).await, [1, 2, 3, 4, 5, 6, 7]);
    opened.store.close().await;
}

#[tokio::test]
async fn a_waiting_reader_wakes_for_an_append_and_ends_with_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    let mut reader = opened.log().reader(Offset::START);
    let (read, _) = tokio::join!(reader.next(1 << 20), opened.append(3));
    assert_eq!(offsets(&read.unwrap()), [1, 2, 3]);
    opened.append(1).await;
    opened.logs.close();
    assert_eq!(offsets(&reader.next(1 << 20).await.unwrap()), [4]);
    assert!(matches!(reader.next(1 << 20).await.unwrap(), Read::End));
    opened.store.close().await;
}

#[tokio::test]
async fn a_large_append_is_stored_in_several_batches_and_one_step() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 30).await;
    opened.append(3).await;
    let steps = opened.store.steps();
    opened.append_large(40, 60_000).await;
    assert_eq!(opened.store.steps(), steps + 1);
    let Ok(Some(Read::Entries(views))) = opened.log().reader(Offset(3)).try_next(usize::MAX).await else {
        panic!("entries were appended")
    };
    let lens: Vec<usize> = views.iter().map(|view| view.batch.bytes().len()).collect();
    assert!(lens.len() > 5 && lens.iter().all(|len| *len < 300_000), "{lens:?}");
    assert_eq!(read_all(opened.log(), Offset::START, 1).await, (1..=43).collect::<Vec<_>>());
    opened.store.close().await;
}

#[tokio::test]
async fn a_checkpoint_without_events_is_stored_and_nothing_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    opened.append(2).await;
    let tail = opened.log().subscribe();
    assert_eq!(opened.writer.append(&[], checkpoint(9)).await.unwrap(), Offset(2));
    assert!(!tail.has_changed().unwrap());
    opened.store.close().await;
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    assert_eq!(opened.writer.claimed_state().checkpoint, Some(checkpoint(9)));
    opened.store.close().await;
}

#[tokio::test]
async fn an_append_that_was_dropped_half_way_ends_the_log_for_writing() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    opened.append(1).await;
    tokio::select! {
        biased;
        _ = opened.append(1) => panic!("an append takes a step of the store's thread"),
        () = std::future::ready(()) => (),
    }
    let refused = opened.writer.append(&[event(2, 10)], checkpoint(2)).await;
    assert!(matches!(refused, Err(AppendError::Broken(_))));
    opened.store.close().await;
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    assert!(opened.log().end().last <= Offset(2));
    let last = opened.append(1).await;
    assert_eq!(read_all(opened.log(), Offset::START, 1).await, (1..=last.0).collect::<Vec<_>>());
    opened.store.close().await;
}

#[tokio::test]
#[should_panic(expected = "one at a time")]
async fn two_concurrent_appends_panic() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    tokio::join!(opened.append(1), opened.append(1));
}

#[tokio::test]
async fn a_log_is_read_without_a_claim_and_a_claim_ends_the_previous_one() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    opened.append(3).await;
    let (stream, source) = (opened.log().name().clone(), opened.log().source().clone());
    let other: StreamName = "agents".parse().unwrap();
    let streams = [(stream.clone(), source.clone()), (other.clone(), source)];
    let settings = Settings { tail_bytes: 1 << 20 };
    let looked = EventLogs::open(Store::Embedded(opened.store.clone()), &streams, &settings).await.unwrap();
    let (log, empty) = (looked.get(&stream).unwrap(), looked.get(&other).unwrap());
    assert_eq!(log.end(), opened.log().end());
    assert_eq!(read_all(log, Offset::START, 1).await, [1, 2, 3]);
    let end = empty.end();
    assert_eq!((end.lineage.current(), end.first, end.last), (Epoch::NONE, Offset(1), Offset::START));
    opened.append(1).await;

    let mut reader = empty.reader(Offset::START);
    let writer = empty.claim(None).await.unwrap();
    writer.append(&[event(1, 10)], checkpoint(1)).await.unwrap();
    assert_eq!(offsets(&reader.next(1).await.unwrap()), [1]);
    let newer = empty.claim(Some(writer.fence())).await.unwrap();
    assert!(matches!(writer.append(&[event(2, 10)], checkpoint(2)).await, Err(AppendError::Fenced)));
    drop(writer);
    newer.append(&[event(2, 10)], checkpoint(2)).await.unwrap();
    assert_eq!(offsets(&reader.next(1).await.unwrap()), [2]);
    opened.store.close().await;
}

#[tokio::test]
async fn a_claim_finds_what_others_appended_and_readers_wake_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    let streams = [(opened.log().name().clone(), opened.log().source().clone())];
    let settings = Settings { tail_bytes: 1 << 20 };
    let second = EventLogs::open(Store::Embedded(opened.store.clone()), &streams, &settings).await.unwrap();
    let log = second.get(opened.log().name()).unwrap();
    let mut reader = log.reader(Offset::START);
    opened.append(5).await;
    assert!(reader.try_next(1 << 20).await.unwrap().is_none(), "not visible yet");
    let (read, writer) = tokio::join!(reader.next(1 << 20), log.claim(None));
    assert_eq!(offsets(&read.unwrap()), [1, 2, 3, 4, 5]);
    assert_eq!(writer.unwrap().append(&[event(6, 10)], checkpoint(6)).await.unwrap(), Offset(6));
    assert_eq!(read_all(log, Offset(2), 1 << 20).await, [3, 4, 5, 6], "a tail with a hole in front is not one");
    opened.store.close().await;
}

#[tokio::test]
async fn cursor_validity_follows_what_the_log_holds() {
    let directory = tempfile::tempdir().unwrap();
    let opened = TestLog::at(directory.path(), RETAIN_ALL, 1 << 20).await;
    opened.append(5).await;
    let epoch = opened.log().end().lineage.current();
    let standing = |epoch, offset| opened.log().cursor_validity(Mark { epoch, offset: Offset(offset) });
    assert_eq!(standing(epoch, 5), CursorValidity::Valid(Offset(5)));
    assert_eq!(standing(epoch, 6), CursorValidity::AheadOfLog);
    assert_eq!(standing(Epoch(epoch.0 ^ 1), 1), CursorValidity::UnknownEpoch);
    opened.store.close().await;
}

#[tokio::test]
async fn delivered_entries_are_reread_or_reported_trimmed() {
    let directory = tempfile::tempdir().unwrap();
    for tail_bytes in [0, 1 << 20] {
        let opened = TestLog::at(&directory.path().join(tail_bytes.to_string()), RETAIN_ALL, tail_bytes).await;
        for _ in 0..5 {
            opened.append(4).await;
        }
        let epoch = opened.log().end().lineage.current();
        let again = async |epoch, offset, bytes_max| {
            let from = Mark { epoch, offset: Offset(offset) };
            opened.log().reread(EntryRange { from, last: Offset(20), entry_len: 300 }, bytes_max).await.unwrap()
        };
        let offsets = |views| offsets(&Read::Entries(views));
        assert_eq!(offsets(again(epoch, 6, usize::MAX).await.unwrap()), (6..=20).collect::<Vec<_>>());
        let some = offsets(again(epoch, 6, 1).await.unwrap());
        assert!(some.starts_with(&[6]) && some.len() <= 4, "{some:?}");
        assert!(again(Epoch(epoch.0 ^ 1), 6, usize::MAX).await.is_none(), "of another log");
        assert!(again(epoch, 21, usize::MAX).await.is_none(), "not there");
        opened.store.close().await;
    }
}
