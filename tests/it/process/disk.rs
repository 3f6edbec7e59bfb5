//! A disk that is full, is not writable, or returns damaged data.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use trunkline::{clock, simulator::Settings};

use super::{
    child::{Child, WAIT_MAX, eventually},
    log::{LogEntry, assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// Space for the reserve of 16 MiB, a write-ahead log of some MiB, and a few thousand events.
const DISK_MIB: u64 = 48;
/// Longest time to resume after space is available.
const RESUME_MAX: Duration = Duration::from_secs(5);
const BUFFER: u64 = 500;
/// Events of one frame, and those that one read of the socket may add beyond the buffer.
const SLACK: u64 = 64 * 5;

/// A small disk. Drop unmounts it.
struct TmpfsDisk(PathBuf);

impl TmpfsDisk {
    fn mount(folder: &Path) -> Self {
        let place = folder.join("disk");
        fs::create_dir(&place).unwrap();
        let size = format!("size={DISK_MIB}m");
        mount(&["-t", "tmpfs", "-o", &size, "trunkline-test", place.to_str().unwrap()]);
        Self(place)
    }

    /// Remounts it as `ro` (read-only) or `rw` (writable).
    fn remount(&self, how: &str) {
        mount(&["-o", &format!("remount,{how}"), self.0.to_str().unwrap()]);
    }

    /// Fills it except for about 1 MiB.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let file = fs::File::create(&ballast).unwrap();
        let piece = vec![0; 1 << 16];
        let full = (0..DISK_MIB * 16).find(|at| file.write_all_at(&piece, at << 16).is_err());
        let end = full.expect("the disk has the mounted size") << 16;
        file.set_len(end - (1 << 20)).unwrap();
        ballast
    }
}

impl Drop for TmpfsDisk {
    fn drop(&mut self) {
        // Lazily, because a process may still be exiting.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

fn mount(arguments: &[&str]) {
    let command = format!("mount {}", arguments.join(" "));
    let output = Command::new("mount").args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "a small disk is needed, and only root can mount one. `{command}`: {why}");
}

#[tokio::test]
async fn a_full_disk_causes_backpressure_and_loses_nothing() {
    let buffer = format!("buffer = {BUFFER}");
    let site = Site::start_with(Settings::default(), &[&buffer]).await;
    let disk = TmpfsDisk::mount(site.folder.path());
    site.write(&disk.0.join("data"), &[&buffer]);
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(100);
    relay.wait_for_number(100).await;
    let ballast = disk.fill();
    let traffic = site.start_traffic(3_000);

    let why = store_error(&relay).await;
    assert!(!why.is_empty() && why != "ok");
    let full = eventually("the buffer is full", WAIT_MAX, async || {
        let stream = relay.stream().await;
        (stream["buffered"].as_u64()? >= BUFFER).then_some(stream)
    })
    .await;
    assert!(full["last_error"].as_str().unwrap().starts_with("store unavailable: "), "{full}");
    assert_eq!(full["state"], "live", "the store blocks, but the socket stays");
    assert_backpressure(&site, &relay, &full).await;
    assert_eq!(pages(&relay.consumers).await.len() as u64, offset(&full), "stored entries are still served");

    fs::remove_file(ballast).unwrap();
    let made = clock::now();
    eventually("ready again", RESUME_MAX, async || relay.ready().await.filter(|(status, _)| *status == 200)).await;
    eventually("the log grows", RESUME_MAX, async || (offset(&relay.stream().await) > offset(&full)).then_some(()))
        .await;
    assert!(made.elapsed() < RESUME_MAX, "{:?}", made.elapsed());
    // Stop the traffic before the events fill the small disk.
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    assert_complete(&pages(&relay.consumers).await, last_sent);
    assert!(!relay.child.stderr().contains("damaged"), "{}", relay.child.stderr());
}

#[tokio::test]
async fn a_relay_killed_on_a_full_disk_starts_and_resumes_when_there_is_space() {
    let site = Site::start().await;
    let disk = TmpfsDisk::mount(site.folder.path());
    site.write(&disk.0.join("data"), &[]);
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(100);
    relay.wait_for_number(100).await;
    let ballast = disk.fill();
    let traffic = site.start_traffic(3_000);
    store_error(&relay).await;
    relay.child.kill();

    let relay = RelayProcess::start(&site).await;
    store_error(&relay).await;
    let held = pages(&relay.consumers).await;
    assert!(held.len() >= 100, "{}", held.len());
    fs::remove_file(ballast).unwrap();
    eventually("ready again", RESUME_MAX, async || relay.ready().await.filter(|(status, _)| *status == 200)).await;
    let last_sent = traffic.stop().await;
    relay.wait_for_number(last_sent).await;
    assert_complete(&pages(&relay.consumers).await, last_sent);
}

/// Waits until the relay is not ready because of its store, and returns the reason.
async fn store_error(relay: &RelayProcess) -> String {
    eventually("the store has no space", WAIT_MAX, async || {
        let (status, shown) = relay.ready().await?;
        (status == 503).then(|| shown["checks"]["store"].as_str().unwrap().to_owned())
    })
    .await
}

fn offset(stream: &serde_json::Value) -> u64 {
    stream["last"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap()
}

/// Checks that the platform keeps sending and the relay stores nothing more.
async fn assert_backpressure(site: &Site, relay: &RelayProcess, full: &serde_json::Value) {
    let sent = site.platform.ledger().last_sequence();
    eventually("the platform sends many more events", WAIT_MAX, async || {
        (site.platform.ledger().last_sequence() > sent + 2 * BUFFER).then_some(())
    })
    .await;
    let later = relay.stream().await;
    assert_eq!(later["last"], full["last"], "nothing is appended");
    assert!(later["buffered"].as_u64().unwrap() <= BUFFER + SLACK, "the buffer stays within its bound: {later}");
}

#[tokio::test]
async fn an_unwritable_directory_is_reported_with_its_cause_and_retried() {
    let site = Site::start().await;
    let disk = TmpfsDisk::mount(site.folder.path());
    disk.remount("ro");
    site.write(&disk.0.join("data"), &[]);
    let mut child = RelayProcess::spawn(site.folder.path(), site.config(), &[]);
    assert_waits(&mut child, "Read-only file system").await;
    disk.remount("rw");
    RelayProcess::of(child).await.wait_until_live().await;

    let locked = site.folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    site.write(&locked.join("data"), &[]);
    let mut command = without_privileges();
    command.args([env!("CARGO_BIN_EXE_trunkline"), "run", "--config", site.config()]);
    let mut child = Child::spawn(site.folder.path(), command);
    assert_waits(&mut child, "Permission denied").await;
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
    RelayProcess::of(child).await.wait_until_live().await;
}

/// A command that runs without root's privilege to write everywhere. No change for other users.
fn without_privileges() -> Command {
    let root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let mut command = Command::new(if root { "setpriv" } else { "env" });
    if root {
        command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]);
    }
    command
}

/// Checks that the process runs and reports why its store cannot be opened.
async fn assert_waits(child: &mut Child, cause: &str) {
    child.wait_for_output(cause).await;
    assert!(child.stderr().contains("the store's directory "), "{}", child.printed_output());
    assert!(child.has_ended().is_none(), "{}", child.printed_output());
}

#[tokio::test]
async fn a_damaged_database_is_quarantined_and_marked_in_the_log() {
    let site = Site::start().await;
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(500);
    relay.wait_for_number(500).await;
    let before = pages(&relay.consumers).await;
    relay.child.signal("TERM");
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 0);
    damage(&site.store(), |_| 0);

    let relay = RelayProcess::live(&site).await;
    site.platform.emit(10);
    relay.wait_for_number(510).await;
    assert_quarantined(&site, &relay);
    assert_new_epoch(&before, &pages(&relay.consumers).await, 510);
    let old = before.last().unwrap();
    assert_eq!(page_after(&relay, &old.id).await, 410, "a cursor of the lost log is not valid for the new one");
    let first = first_line_after(&relay, &old.id).await;
    assert_eq!(first.kind, "trunkline.gap.v1", "{}", first.json);
    assert!(first.json.contains("trimmed"), "{}", first.json);
}

#[tokio::test]
async fn damage_found_only_by_a_reader_ends_the_process_and_the_next_start_marks_it() {
    let site = Site::start().await;
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(20_000);
    relay.wait_for_number(20_000).await;
    let before = pages(&relay.consumers).await;
    relay.child.signal("TERM");
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 0);
    damage(&site.store(), |len| len / 2);

    let mut relay = RelayProcess::live(&site).await;
    let first = format!("{}/v1/streams/{STREAM}/events?from=first", relay.consumers);
    let body = client().get(first).header("accept", "application/x-ndjson").send().await.unwrap().text().await;
    let served = body.as_deref().unwrap_or_default().lines().count();
    assert!(served < before.len(), "no entry behind the damage is served");
    site.platform.emit(1);
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 1, "{}", relay.child.printed_output());
    assert!(relay.child.stderr().contains("store broken; restart required"), "{}", relay.child.printed_output());

    let relay = RelayProcess::live(&site).await;
    site.platform.emit(10);
    relay.wait_for_number(20_011).await;
    assert_quarantined(&site, &relay);
    assert_new_epoch(&before, &pages(&relay.consumers).await, 20_011);
}

/// Overwrites 16 KiB, like a defective disk.
fn damage(store: &Path, at: impl FnOnce(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(store.join("trunkline.db")).unwrap();
    let len = file.metadata().unwrap().len();
    assert!(len > 64 << 10, "the file is large enough to damage: {len} bytes");
    file.write_all_at(&[0xa5; 16 << 10], at(len)).unwrap();
}

fn assert_quarantined(site: &Site, relay: &RelayProcess) {
    let aside = fs::read_dir(site.store()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_database = |name: &String| name.starts_with("trunkline.db.damaged-") && !name.ends_with("-wal");
    assert_eq!(aside.filter(is_database).count(), 1);
    assert!(relay.child.stderr().contains("store damaged; files moved"), "{}", relay.child.stderr());
}

fn assert_new_epoch(before: &[LogEntry], log: &[LogEntry], last: u64) {
    let epoch = |entry: &LogEntry| entry.id.split_once('-').unwrap().0.to_owned();
    assert_ne!(epoch(&log[0]), epoch(&before[0]), "the log has a new epoch");
    assert_eq!((log[0].kind.as_str(), log[0].offset), ("trunkline.gap.v1", 1), "{}", log[0].json);
    assert!(log[0].json.contains(r#""reason":"store""#), "{}", log[0].json);
    let numbers: Vec<u64> = log.iter().filter_map(|entry| entry.number).collect();
    assert_eq!(numbers.last(), Some(&last));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "there is no other loss behind the gap");
}

async fn page_after(relay: &RelayProcess, id: &str) -> u16 {
    let url = format!("{}/v1/streams/{STREAM}/events?after={id}", relay.consumers);
    let answer = client().get(url).header("accept", "application/cloudevents-batch+json").send().await.unwrap();
    answer.status().as_u16()
}

async fn first_line_after(relay: &RelayProcess, id: &str) -> LogEntry {
    let url = format!("{}/v1/streams/{STREAM}/events?after={id}", relay.consumers);
    let mut answer = client().get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    let mut text = String::new();
    while !text.contains('\n') {
        text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().expect("a line")).unwrap());
    }
    LogEntry::read(text.lines().next().unwrap())
}
