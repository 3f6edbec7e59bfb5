//! Copies of a store's directory, and restored directories: no id is used again for another entry.

use std::{ffi::OsString, path::PathBuf};

use super::*;
use crate::model::{CursorValidity, Lineage};

fn files(path: &Path) -> Vec<OsString> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// `cp -a FROM/. TO`: existing files are overwritten and keep their inodes.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in files(from) {
        copy_file(&from.join(&name), &to.join(&name));
    }
}

/// Copies a file with the times of the original, as restore tools do.
fn copy_file(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    let modified = from.metadata().unwrap().modified().unwrap();
    fs::OpenOptions::new().write(true).open(to).unwrap().set_modified(modified).unwrap();
}

/// `rm -r TO; cp -a FROM TO`
fn replace(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy(from, to);
}

/// `rsync -a FROM/ TO`: skips files with equal size and time, and replaces all others under their names.
fn sync(from: &Path, to: &Path) {
    let facts = |path: PathBuf| path.metadata().ok().map(|file| (file.len(), file.modified().unwrap()));
    for name in files(from).iter().filter(|name| facts(from.join(name)) != facts(to.join(name))) {
        let temporary = to.join(".part");
        copy_file(&from.join(name), &temporary);
        fs::rename(temporary, to.join(name)).unwrap();
    }
}

/// Copies only the database over the existing one.
fn copy_database(from: &Path, to: &Path) {
    copy_file(&from.join(DATABASE), &to.join(DATABASE));
}

/// A way to restore entries.
type Restore = fn(&Path, &Path);

const RESTORES: [(&str, Restore); 4] =
    [("copied over", copy), ("replaced", replace), ("synchronized", sync), ("the database alone", copy_database)];

/// Opens the log, appends, and closes the store in order.
async fn run_once(path: &Path, len: usize) -> LogState {
    let store = open(path, RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(len).await.unwrap();
    store.close().await;
    log.state
}

fn mark(lineage: &Lineage, offset: u64) -> Mark {
    Mark { epoch: lineage.current(), offset: Offset(offset) }
}

#[tokio::test]
async fn a_copy_and_its_original_never_give_the_same_id_to_different_entries() {
    let directory = tempfile::tempdir().unwrap();
    let (original, copied) = (directory.path().join("original"), directory.path().join("copied"));
    let before = run_once(&original, 5).await.lineage;
    copy(&original, &copied);
    let store = open(&original, RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    assert_eq!(log.state.lineage, before, "the original continues in its epoch");
    log.append(4).await.unwrap();
    let ninth = mark(&log.state.lineage, 9);
    store.close().await;

    let store = open(&copied, RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&store, "queues").await;
    log.append(10).await.unwrap();
    let lineage = log.state.lineage.clone();
    assert_eq!(lineage.earlier(), [(before.current(), Offset(5))]);
    assert_eq!(lineage.validity(mark(&before, 5), Offset(15)), CursorValidity::Valid(Offset(5)), "it was copied");
    assert_eq!(lineage.validity(ninth, Offset(15)), CursorValidity::AheadOfLog, "it was not");
    let batches = store.read(&log.name, Offset::START, Offset(u64::MAX), usize::MAX).await.unwrap();
    let epochs: Vec<_> = batches.iter().map(|batch| (batch.epoch(), batch.last().0)).collect();
    assert_eq!(epochs, [(before.current(), 5), (lineage.current(), 15)], "an entry keeps its id");
    store.close().await;
}

#[tokio::test]
async fn a_restored_directory_starts_an_epoch_by_every_method() {
    for (how, restore) in RESTORES {
        // The copy is made after the store was closed, or as a kill during the next run would leave the files.
        for is_killed in [false, true] {
            if is_killed && how == "the database alone" {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let (path, kept) = (directory.path().join("data"), directory.path().join("kept"));
            run_once(&path, 5).await;
            if is_killed {
                let store = open(&path, RETAIN_ALL).unwrap();
                StreamFixture::open(&store, "queues").await.append(2).await.unwrap();
                copy(&path, &kept);
                store.close().await;
            } else {
                copy(&path, &kept);
            }
            let lost = run_once(&path, 7).await;
            restore(&kept, &path);
            let found = run_once(&path, 1).await;
            let what = format!("{how}, killed: {is_killed}");
            assert_ne!(found.lineage.current(), lost.lineage.current(), "{what}");
            let end = if is_killed { 7 } else { 5 };
            assert_eq!(found.lineage.earlier(), [(lost.lineage.current(), Offset(end))], "{what}");
            assert_eq!(quarantined_count(&path), 0, "{what}");
        }
    }
}

/// The copy and the lost data come from one process run, which a kill ended.
#[tokio::test]
async fn restoring_a_copy_over_its_original_starts_an_epoch() {
    for (how, restore) in RESTORES.into_iter().filter(|(how, _)| *how != "the database alone") {
        let directory = tempfile::tempdir().unwrap();
        let [path, kept] = ["data", "kept"].map(|name| directory.path().join(name));
        let lost = run_until_killed(&path, 3, || {
            let blocker = blocker(&path);
            copy(&path, &kept);
            blocker.query_row("SELECT last FROM stream", (), |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
        });
        restore(&kept, &path);
        let found = run_once(&path, 1).await;
        let [(_, end)] = found.lineage.earlier() else { panic!("{how}: {:?}", found.lineage) };
        assert!(end.0 > 0 && end.0 < lost, "{how}: {end} of {lost}");
        assert_eq!(quarantined_count(&path), 0, "{how}");
    }
}

#[tokio::test]
async fn files_that_stay_keep_their_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("data"), directory.path().join("moved"));
    let lineage = run_once(&path, 1).await.lineage;
    for _ in 0..3 {
        assert_eq!(run_once(&path, 1).await.lineage, lineage, "started again");
    }
    fs::rename(&path, &moved).unwrap();
    assert_eq!(run_once(&moved, 1).await.lineage, lineage, "moved");
    // A process was killed before the database named its new seal.
    let seals: Vec<_> = files(&moved).into_iter().filter(|name| name.to_string_lossy().contains("seal")).collect();
    assert_eq!(seals.len(), 1);
    let next = if seals[0] == "trunkline.seal-a" { "trunkline.seal-b" } else { "trunkline.seal-a" };
    fs::write(moved.join(next), "").unwrap();
    assert_eq!(run_once(&moved, 1).await.lineage, lineage, "killed between the two steps");
    for file in [DATABASE, "trunkline.seal-a", "trunkline.seal-b", "trunkline.lock"] {
        fs::File::open(moved.join(file)).map(|mut file| std::io::Read::read(&mut file, &mut [0; 16])).ok();
    }
    assert_eq!(run_once(&moved, 1).await.lineage, lineage, "read");
}

#[tokio::test]
async fn a_store_without_its_seal_starts_an_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let former = run_once(directory.path(), 3).await;
    for name in files(directory.path()).into_iter().filter(|name| name.to_string_lossy().contains("seal")) {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let found = run_once(directory.path(), 1).await;
    assert_eq!(found.lineage.earlier(), [(former.lineage.current(), Offset(3))]);
    assert_eq!(run_once(directory.path(), 1).await.lineage, found.lineage);
}
