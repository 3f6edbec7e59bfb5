//! Jumps of the wall clock by a day and more. The monotonic clocks do not jump.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use trunkline::clock;

use super::{
    child::{WAIT_MAX, eventually},
    log::{assert_complete, pages},
    relay::RelayProcess,
    site::Site,
};
use crate::harness::RedisServer;

/// Long enough for two checks of retention.
const WATCHED: Duration = Duration::from_millis(2_500);

/// The library that replaces the clock functions of a process.
pub(super) fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|file| file.exists());
    found.expect("libfaketime is not installed; sudo apt-get install -y libfaketime")
}

/// The wall clock of one process, as an offset in a file that each call reads.
struct FakeWallClock(PathBuf);

impl FakeWallClock {
    fn new(folder: &Path) -> Self {
        let wall = Self(folder.join("wall"));
        wall.set("+0h");
        wall
    }

    fn set(&self, offset: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, offset).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    async fn start(&self, site: &Site) -> RelayProcess {
        let library = faketime();
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let relay = RelayProcess::start_with(site, &variables).await;
        relay.wait_until_live().await;
        relay
    }
}

/// Sends events during checks of retention, and checks that all of them are kept.
async fn keeps_everything(site: &Site, relay: &RelayProcess) {
    let end = clock::now() + WATCHED;
    while clock::now() < end {
        site.platform.emit(1);
        let sent = site.platform.ledger().last_sequence();
        relay.wait_for_number(sent).await;
        let log = pages(&relay.consumers).await;
        assert_eq!(log[0].number, Some(1), "{}", relay.child.printed_output());
        assert_complete(&log, sent);
    }
}

/// Moves the clock ahead and back, then back and ahead. Each jump must be logged.
async fn the_wall_clock_jumps(site: Site) {
    let wall = FakeWallClock::new(site.folder.path());
    let relay = wall.start(&site).await;
    for _ in 0..50 {
        site.platform.emit(1);
        relay.wait_for_number(site.platform.ledger().last_sequence()).await;
    }
    for (offset, logged) in [("+25h", "wall clock was set ahead"), ("-25h", "wall clock was set back")] {
        wall.set(offset);
        eventually(logged, WAIT_MAX, async || relay.child.stderr().contains(logged).then_some(())).await;
        keeps_everything(&site, &relay).await;
        wall.set("+0h");
        keeps_everything(&site, &relay).await;
    }
    let stream = relay.stream().await;
    assert_eq!((&stream["state"], &stream["reconnects"]), (&"live".into(), &0.into()), "{stream}");
    assert_eq!(site.platform.counters().grants_total(), 1, "the jumps end no token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_by_a_day_deletes_nothing_on_disk_and_is_logged() {
    the_wall_clock_jumps(Site::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_by_a_day_deletes_nothing_in_redis_and_is_logged() {
    let server = RedisServer::durable();
    let site = Site::start().await;
    site.use_redis(&server.url());
    the_wall_clock_jumps(site).await;
}
