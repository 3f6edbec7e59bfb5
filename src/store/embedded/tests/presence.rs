//! Files that are deleted, renamed or replaced while the store has them open.

use super::*;

/// What is done to a directory.
type Change = fn(&Path);

/// What is done to the files of a running store, and how it is undone where it can be.
const HARMS: [(&str, Change, Option<Change>); 6] = [
    ("the directory is renamed", |path| rename(path, &aside(path)), Some(|path| rename(&aside(path), path))),
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

fn aside(path: &Path) -> std::path::PathBuf {
    path.with_extension("aside")
}

#[tokio::test]
async fn a_store_whose_files_are_gone_takes_nothing_until_they_are_back() {
    for (harm, damage, repair) in HARMS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let store = open(&path, KEEP_ALL).unwrap();
        let mut log = Log::open(&store, "queues").await;
        log.append(3).await.unwrap();
        damage(&path);
        let refused = log.append(1).await.unwrap_err();
        let named = path.display().to_string();
        assert!(matches!(&refused, AppendError::NoRoom(reason) if reason.contains(&named)), "{harm}: {refused}");
        assert!(store.health().unwrap_err().contains(&named), "{harm}");
        assert!(matches!(store.claim(&stream("agents"), None).await, Err(AppendError::NoRoom(_))), "{harm}");
        let Some(repair) = repair else {
            store.close().await;
            continue;
        };
        repair(&path);
        log.append(1).await.unwrap();
        assert_eq!(store.health(), Ok(()), "{harm}");
        store.close().await;
        let store = open(&path, KEEP_ALL).unwrap();
        assert_eq!(Log::open(&store, "queues").await.entries().await, [1, 2, 3, 4], "{harm}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_quiet_store_notices_that_its_files_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let store = open(&path, KEEP_ALL).unwrap();
    // The writer has made its files by then, and adds none while the directory is deleted.
    Log::open(&store, "queues").await.append(1).await.unwrap();
    fs::remove_dir_all(&path).unwrap();
    for _ in 0..500 {
        if store.health().is_err() {
            return store.close().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody noticed it");
}

#[tokio::test]
async fn a_store_in_the_place_of_one_that_was_moved_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let moved = open(&path, KEEP_ALL).unwrap();
    Log::open(&moved, "queues").await.append(3).await.unwrap();
    rename(&path, &aside(&path));
    let other = open(&path, KEEP_ALL).unwrap();
    let mut log = Log::open(&other, "queues").await;
    log.append(2).await.unwrap();
    moved.close().await;
    log.append(2).await.unwrap();
    assert!(path.join("trunkline.db-wal").exists());
    other.close().await;
    let other = open(&path, KEEP_ALL).unwrap();
    assert_eq!(Log::open(&other, "queues").await.entries().await, [1, 2, 3, 4]);
    other.close().await;
    let moved = open(&aside(&path), KEEP_ALL).unwrap();
    assert_eq!(Log::open(&moved, "queues").await.entries().await, [1, 2, 3]);
    moved.close().await;
}
