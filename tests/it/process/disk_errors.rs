//! Failing system calls on the store's files. `strace` injects the errors.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::{
    child::{WAIT_MAX, eventually},
    log::{assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// The system calls that sync a file.
const SYNC: &str = "fsync,fdatasync";
/// The system calls that change a file. Syncs succeed on a read-only file system.
pub(super) const CHANGE: &str = "write,pwrite64,pwritev,ftruncate,fallocate,copy_file_range,sendfile,splice";
/// Longest time to resume after the fault ends.
const RESUME_MAX: Duration = Duration::from_secs(5);

/// A tracer that makes system calls of a process fail. Drop detaches it.
pub(super) struct Injection(Child);

impl Injection {
    /// Attaches to a relay: these calls on any of these files fail with this error.
    pub(super) async fn into(relay: &RelayProcess, site: &Site, files: &[&Path], calls: &str, error: &str) -> Self {
        let notes = site.folder.path().join("strace.err");
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-p", &relay.child.id().to_string()]);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}")]);
        for file in files {
            command.arg("-P").arg(file);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&notes).unwrap());
        let tracer = command.spawn().unwrap_or_else(|error| panic!("sudo apt-get install -y strace: {error}"));
        let read = || fs::read_to_string(&notes).unwrap();
        eventually("the tracer is attached", WAIT_MAX, async || read().contains(" attached").then_some(())).await;
        assert!(!read().contains("ptrace("), "a process may not be traced here: {}", read());
        Self(tracer)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let sent = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        assert!(sent.is_ok(), "{sent:?}");
        drop(self.0.wait());
    }
}

/// A site and a live relay whose log has `events` events.
async fn running(events: u64) -> (Site, RelayProcess) {
    let site = Site::start().await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(events);
    relay.wait_for_number(events).await;
    (site, relay)
}

/// Reads the log from its first entry until the connection ends. Returns all lines.
async fn follow(relay: &RelayProcess) -> JoinHandle<Vec<String>> {
    let url = format!("{}/v1/streams/{STREAM}/events?from=first", relay.consumers);
    let answer = client().get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    TaskTracker::new().spawn(async move {
        let mut chunks = answer.bytes_stream();
        let mut text = Vec::new();
        while let Some(Ok(chunk)) = chunks.next().await {
            text.extend(chunk);
        }
        String::from_utf8(text).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    })
}

/// Waits until `/readyz` answers 503 with this reason for the store.
async fn store_is(relay: &RelayProcess, reason: &str) {
    eventually(&format!("the store is not ready: {reason}"), WAIT_MAX, async || {
        let (status, shown) = relay.ready().await?;
        (status == 503 && shown["checks"]["store"].as_str()?.contains(reason)).then_some(())
    })
    .await;
}

/// Checks that the process exits with code 1 and logs the reason.
async fn ends_broken(relay: &mut RelayProcess) {
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 1, "{}", relay.child.printed_output());
    let log = relay.child.stderr();
    assert!(log.contains("store broken; restart required") && log.contains("disk I/O error"), "{log}");
}

/// Starts a new process and checks that its log has everything up to this number.
async fn restarts_complete(site: &Site, last_sent: u64) -> RelayProcess {
    let relay = RelayProcess::live(site).await;
    relay.wait_for_number(last_sent).await;
    let log = pages(&relay.consumers).await;
    assert_complete(&log, last_sent);
    assert_eq!(log[0].number, Some(1));
    assert!(!relay.child.stderr().contains("damaged"), "{}", relay.child.stderr());
    relay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fsync_of_an_append_ends_the_process_and_the_log_stays_complete() {
    let (site, mut relay) = running(100).await;
    let reader = follow(&relay).await;
    let wal = site.store().join("trunkline.db-wal");
    let injection = Injection::into(&relay, &site, &[&wal], SYNC, "EIO").await;
    site.platform.emit(50);
    ends_broken(&mut relay).await;
    drop(injection);
    let served = reader.await.unwrap();
    assert_eq!(served.len(), 100, "only durable entries are served");

    let relay = restarts_complete(&site, 150).await;
    let log = pages(&relay.consumers).await;
    assert!(served.iter().zip(&log).all(|(line, entry)| *line == entry.json), "served entries do not change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fsync_of_a_checkpoint_is_reported_and_the_next_append_ends_the_process() {
    let (site, mut relay) = running(100).await;
    let database = site.store().join("trunkline.db");
    eventually("the whole log is in the database", WAIT_MAX, async || {
        String::from_utf8_lossy(&fs::read(&database).unwrap()).contains(r#""platformsequence":"100""#).then_some(())
    })
    .await;
    let injection = Injection::into(&relay, &site, &[&database], SYNC, "EIO").await;
    site.platform.emit(1);
    store_is(&relay, "disk I/O error").await;
    assert_eq!(pages(&relay.consumers).await.len(), 101, "durable entries are still served");
    assert!(relay.child.has_ended().is_none(), "{}", relay.child.printed_output());
    site.platform.emit(50);
    ends_broken(&mut relay).await;
    drop(injection);
    restarts_complete(&site, 151).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_becomes_read_only_is_reported_and_loses_nothing() {
    let (site, relay) = running(100).await;
    let file = |name: &str| site.store().join(name);
    let files = fs::read_dir(site.store()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert!(files.contains(&file("trunkline.db-wal")), "{files:?}");
    let files = files.iter().map(AsRef::as_ref).collect::<Vec<&Path>>();
    let injection = Injection::into(&relay, &site, &files, CHANGE, "EROFS").await;
    site.platform.emit(50);
    store_is(&relay, "disk I/O error").await;
    eventually("the stream gives the reason", WAIT_MAX, async || {
        let error = relay.stream().await["last_error"].as_str()?.to_owned();
        error.starts_with("store unavailable: ").then_some(())
    })
    .await;
    assert_eq!(pages(&relay.consumers).await.len(), 100, "only stored entries are still served");
    assert_eq!(relay.stream().await["state"], "live", "the socket stays");

    drop(injection);
    eventually("ready again", RESUME_MAX, async || relay.ready().await.filter(|(status, _)| *status == 200)).await;
    relay.wait_for_number(150).await;
    assert_complete(&pages(&relay.consumers).await, 150);
}
