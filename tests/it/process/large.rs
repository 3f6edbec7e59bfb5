//! Large events while the store is unavailable: the buffer is bounded in bytes, and nothing is lost.

use std::{fs, path::Path};

use trunkline::simulator::{FaultTarget, PlatformFault, Settings};

use super::{
    child::{WAIT_MAX, eventually},
    disk_errors::{CHANGE, Injection},
    log::{assert_complete, pages},
    relay::RelayProcess,
    site::Site,
};
use crate::harness::RedisServer;

const EVENT_BYTES: usize = 1_000_000;
const BUFFER_BYTES: u64 = 8 << 20;
/// Many times the capacity of the buffer.
const EVENTS: u64 = 96;
/// Permitted growth of the process: the buffer, an append in flight with its copies, and frames in progress. All
/// events would need 96 MB.
const GROWTH_MAX: u64 = 8 * BUFFER_BYTES;

/// One large event in each frame.
async fn site() -> Site {
    let keys = format!("buffer_bytes = \"{BUFFER_BYTES}B\"");
    Site::start_with(Settings { frame_max: 1, ..Settings::default() }, &[&keys]).await
}

/// The peak memory of a process in bytes.
fn peak(relay: &RelayProcess) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel gives the peak");
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Sends all events while the store is unavailable, then calls `repair` and waits for all of them.
#[expect(clippy::print_stdout, reason = "a full run prints its measurements")]
async fn a_burst_is_bounded(site: &Site, relay: &RelayProcess, repair: impl FnOnce()) {
    let before = peak(relay);
    for _ in 0..EVENTS {
        site.platform.inject(PlatformFault::Oversize { on: FaultTarget::Sequenced, bytes: EVENT_BYTES });
    }
    let full = BUFFER_BYTES / EVENT_BYTES as u64;
    eventually("the buffer is full", WAIT_MAX, async || {
        (relay.stream().await["buffered"].as_u64()? >= full).then_some(())
    })
    .await;
    eventually("the stream gives the reason", WAIT_MAX, async || {
        relay.ready().await.filter(|(status, _)| *status == 503).map(drop)
    })
    .await;
    let waiting = relay.stream().await["buffered"].as_u64().unwrap();
    assert!(waiting < EVENTS / 4, "{waiting} events wait");
    let grown = peak(relay) - before;
    println!("{waiting} events wait in {} MiB", grown >> 20);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);

    repair();
    let last_sent = site.platform.ledger().last_sequence();
    relay.wait_for_number(last_sent).await;
    let grown = peak(relay) - before;
    println!("all was appended in {} MiB", grown >> 20);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    assert_complete(&pages(&relay.consumers).await, last_sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_that_wait_for_redis_are_bounded_in_bytes_and_none_is_lost() {
    let server = RedisServer::volatile();
    let site = site().await;
    site.use_redis(&server.url());
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(1);
    relay.wait_for_number(1).await;
    server.pause();
    a_burst_is_bounded(&site, &relay, || server.resume()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_that_wait_for_the_disk_are_bounded_in_bytes_and_none_is_lost() {
    let site = site().await;
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(1);
    relay.wait_for_number(1).await;
    let files = ["trunkline.db", "trunkline.db-wal"].map(|name| site.store().join(name));
    let files = files.each_ref().map(AsRef::<Path>::as_ref);
    let injection = Injection::into(&relay, &site, &files, CHANGE, "EROFS").await;
    a_burst_is_bounded(&site, &relay, || drop(injection)).await;
}
