//! Files that are deleted, renamed or replaced while the store has them open.

use super::*;

/// A change to a directory.
type FileChange = fn(&Path);

/// A change to the files of a running store, and how to undo it where that is possible.
const FILE_CHANGES: [(&str, FileChange, Option<FileChange>); 6] = [
    (
        "the directory is renamed",
        |path| rename(path, &renamed_path(path)),
        Some(|path| rename(&renamed_path(path), path)),
    ),
    (
        "the database is renamed",
        |path| rename(&path.join(DATABASE), &path.join("aside")),
        Some(|path| rename(&path.join("aside"), &path.join(DATABASE))),
    ),
    (
        "the lock file is renamed",
        |path| rename(&path.join(LOCK), &path.join("aside")),
        Some(|path| rename(&path.join("aside"), &path.join(LOCK))),
    ),
    ("the directory is deleted", |path| fs::remove_dir_all(path).unwrap(), None),
    ("the lock file is deleted", |path| fs::remove_file(path.join(LOCK)).unwrap(), None),
    (
        "the database is replaced by a copy",
        |path| {
            fs::copy(path.join(DATABASE), path.join("copy")).unwrap();
            rename(&path.join("copy"), &path.join(DATABASE));
        },
        None,
    ),
];

const LOCK: &str = "trunkline.lock";

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

fn renamed_path(path: &Path) -> std::path::PathBuf {
    path.with_extension("aside")
}

#[tokio::test]
async fn a_store_whose_files_are_gone_takes_nothing_until_they_are_back() {
    for (harm, damage, repair) in FILE_CHANGES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let store = open(&path, RETAIN_ALL).unwrap();
        let mut log = StreamFixture::open(&store, "queues").await;
        log.append(3).await.unwrap();
        damage(&path);
        let refused = log.append(1).await.unwrap_err();
        let named = path.display().to_string();
        assert!(
            matches!(&refused, AppendError::Unavailable(cause) if cause.to_string().contains(&named)),
            "{harm}: {refused}"
        );
        assert!(store.health().unwrap_err().contains(&named), "{harm}");
        assert!(
            matches!(store.claim(&stream("agents"), None, &ObservedLog::NONE).await, Err(AppendError::Unavailable(_))),
            "{harm}"
        );
        let Some(repair) = repair else {
            store.close().await;
            continue;
        };
        repair(&path);
        log.append(1).await.unwrap();
        assert_eq!(store.health(), Ok(()), "{harm}");
        store.close().await;
        let store = open(&path, RETAIN_ALL).unwrap();
        assert_eq!(StreamFixture::open(&store, "queues").await.entries().await, [1, 2, 3, 4], "{harm}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_quiet_store_notices_that_its_files_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let store = open(&path, RETAIN_ALL).unwrap();
    // The writer has created its files by then, and creates none while the directory is deleted.
    StreamFixture::open(&store, "queues").await.append(1).await.unwrap();
    fs::remove_dir_all(&path).unwrap();
    for _ in 0..500 {
        if store.health().is_err() {
            return store.close().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not detected");
}

#[tokio::test]
async fn a_store_that_replaced_a_moved_one_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let moved = open(&path, RETAIN_ALL).unwrap();
    StreamFixture::open(&moved, "queues").await.append(3).await.unwrap();
    rename(&path, &renamed_path(&path));
    let other = open(&path, RETAIN_ALL).unwrap();
    let mut log = StreamFixture::open(&other, "queues").await;
    log.append(2).await.unwrap();
    moved.close().await;
    log.append(2).await.unwrap();
    assert!(path.join("trunkline.db-wal").exists());
    other.close().await;
    let other = open(&path, RETAIN_ALL).unwrap();
    assert_eq!(StreamFixture::open(&other, "queues").await.entries().await, [1, 2, 3, 4]);
    other.close().await;
    let moved = open(&renamed_path(&path), RETAIN_ALL).unwrap();
    assert_eq!(StreamFixture::open(&moved, "queues").await.entries().await, [1, 2, 3]);
    moved.close().await;
}
