//! A full disk, simulated by a limit on the database's pages: which writes are rejected, which succeed, and how the
//! store recovers.

#![expect(clippy::unwrap_in_result, reason = "a test that cannot continue fails")]

use std::path::Path;

use tokio::sync::oneshot;

use super::*;
use crate::store::embedded::{
    Settings, opening,
    tests::{RETAIN_ALL, checkpoint, next, stream},
};
use crate::{model::Offset, store::Append};

/// A writer without a thread, so that its connection can be limited.
fn writer(path: &Path) -> EmbeddedWriter {
    let settings = Settings { path: path.to_owned(), retention: RETAIN_ALL };
    let directory = Directory::claim(&settings.path).unwrap();
    let (connection, replaced) = opening::open(&directory).unwrap();
    let presence = FilePresence::of(&directory).unwrap();
    EmbeddedWriter::new(connection, presence, replaced, RETAIN_ALL, Arc::new(EmbeddedShared::new(directory)))
}

fn open(writer: &mut EmbeddedWriter, name: &str) -> Result<LogState, AppendError> {
    let (reply, mut answer) = oneshot::channel();
    let mut group = CommandGroup::default();
    group.add(Command::Claim(stream(name), None, reply));
    writer.serve(group);
    answer.try_recv().unwrap()
}

fn append(writer: &mut EmbeddedWriter, append: Append) -> Result<(), AppendError> {
    let (reply, mut answer) = oneshot::channel();
    let mut group = CommandGroup::default();
    group.add(Command::Append(append, reply));
    writer.serve(group);
    answer.try_recv().unwrap()
}

/// Limits the database to its current pages, or removes the limit.
fn limit_disk(writer: &EmbeddedWriter, full: bool) {
    let pages: i64 = writer.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let max = if full { pages } else { 1 << 30 };
    writer.connection.query_row(&format!("PRAGMA max_page_count = {max}"), (), |_| Ok(())).unwrap();
}

#[test]
fn a_full_disk_refuses_entries_whole_and_takes_them_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    writer.make_reserve();
    let reserve = directory.path().join("trunkline.reserve");
    assert!(reserve.exists());
    let queues = stream("queues");
    let mut state = open(&mut writer, "queues").unwrap();
    let large = |state: &LogState| next(&queues, state, 100, 5_000, clock::wall());
    append(&mut writer, large(&state)).unwrap();
    state.last = Offset(100);

    limit_disk(&writer, true);
    assert!(matches!(append(&mut writer, large(&state)), Err(AppendError::Unavailable(_))));
    assert!(!reserve.exists(), "the room is needed elsewhere");
    assert!(writer.shared.unavailable().is_some());
    assert!(matches!(append(&mut writer, large(&state)), Err(AppendError::Unavailable(_))));
    let position = Append { batches: Vec::new(), checkpoint: checkpoint(7), ..large(&state) };
    append(&mut writer, position).expect("a position needs no room");
    let reopened = open(&mut writer, "queues").expect("a fence needs no room");
    assert_eq!((reopened.last, reopened.checkpoint), (Offset(100), Some(checkpoint(7))));

    limit_disk(&writer, false);
    state.fence = reopened.fence;
    writer.maintain(true);
    assert!(reserve.exists() && writer.shared.unavailable().is_none());
    append(&mut writer, large(&state)).unwrap();
}

#[test]
fn a_group_in_which_one_append_finds_no_room_stores_none_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let names = ["a", "b"];
    let states = names.map(|name| open(&mut writer, name).unwrap());
    limit_disk(&writer, true);
    let mut group = CommandGroup::default();
    let answers = [(0, 10), (1, 500_000)].map(|(index, body_len)| {
        let (reply, answer) = oneshot::channel();
        let name = stream(names[index]);
        group.add(Command::Append(next(&name, &states[index], 1, body_len, clock::wall()), reply));
        answer
    });
    writer.serve(group);
    for mut answer in answers {
        assert!(matches!(answer.try_recv().unwrap(), Err(AppendError::Unavailable(_))));
    }
    for name in names {
        assert_eq!(open(&mut writer, name).unwrap().last, Offset::START);
    }
}

#[test]
fn what_a_holder_left_in_its_write_ahead_log_is_in_the_database_before_anything_is_appended() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = writer(directory.path());
    let state = open(&mut first, "queues").unwrap();
    append(&mut first, next(&stream("queues"), &state, 10, 100, clock::wall())).unwrap();
    first.record_fault(&SqliteFault::Failed(Cause::new("fsync failed")));
    first.finish();

    drop(writer(directory.path()));
    let alone = directory.path().join("alone.db");
    std::fs::copy(directory.path().join("trunkline.db"), &alone).unwrap();
    let batches: i64 =
        Connection::open(alone).unwrap().query_row("SELECT count(*) FROM batch", (), |row| row.get(0)).unwrap();
    assert_eq!(batches, 1, "without the write-ahead log");
}

#[test]
fn a_step_of_unknown_outcome_ends_the_store_and_costs_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = writer(directory.path());
    let state = open(&mut first, "queues").unwrap();
    append(&mut first, next(&stream("queues"), &state, 10, 100, clock::wall())).unwrap();
    first.record_fault(&SqliteFault::Failed(Cause::new("fsync failed")));
    assert!(matches!(open(&mut first, "queues"), Err(AppendError::Broken(_))));
    first.finish();

    let mut second = writer(directory.path());
    let reopened = open(&mut second, "queues").unwrap();
    assert_eq!((reopened.last, reopened.damaged), (Offset(10), false));
    assert_eq!(reopened.lineage, state.lineage);
}
