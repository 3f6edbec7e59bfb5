//! Readers of large events that are only in Redis: memory stays bounded, and readers delay no append and no renewal.

use std::{fs, time::Duration};

use tokio::task::JoinSet;
use trunkline::simulator::{FaultTarget, PlatformFault};

use super::foreign_data::{INVALID_VALUE as OTHER, with_two_streams};
use crate::{
    harness::{CommandMatch, FaultReply, RedisServer, RespFault, RespProxy},
    process::{relay::RelayProcess, site::Site},
};

const READERS: usize = 32;
const EVENT_LEN: usize = 1 << 20;
/// Far more than the tail in memory.
const EVENTS: u64 = 32;

/// Memory limit: 32 readers with 1 MB each plus the process itself, doubled.
const MEMORY_MAX: u64 = 256 << 20;

/// Delay of a reader's reply, shorter than the reply timeout.
const SLOW: Duration = Duration::from_millis(1_200);

/// A site with its store behind `url`, and large events in both logs.
async fn with_large_events(server: &RedisServer, url: &str) -> (Site, RelayProcess) {
    let site = with_two_streams(server).await;
    let text = fs::read_to_string(&site.config).unwrap();
    // A long lease, because load may delay a renewal by a second.
    let text = text.replace(&server.url(), url).replace("[store]\n", "[store]\nlease = \"8s\"\n");
    fs::write(&site.config, text).unwrap();
    let relay = RelayProcess::live(&site).await;
    for _ in 0..EVENTS {
        site.platform.inject(PlatformFault::Oversize { on: FaultTarget::All, bytes: EVENT_LEN });
        relay.wait_for_number(site.platform.ledger().last_sequence()).await;
    }
    (site, relay)
}

/// Reads the first `EVENTS` entries of the other stream's log.
async fn read(consumers: String) -> u64 {
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let url = format!("{consumers}/v1/streams/{OTHER}/events?from=first");
    let mut answer = client.get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    let (mut lines, mut bytes) = (0, 0);
    while lines < EVENTS {
        let chunk = answer.chunk().await.unwrap().expect("an endless response");
        bytes += chunk.len() as u64;
        lines += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    bytes
}

/// Checks until all readers are done that new events are served and the membership is renewed.
async fn is_not_delayed(site: &Site, relay: &RelayProcess, mut readers: JoinSet<u64>) {
    let (mut bytes, mut rounds) = (0, 0_u32);
    while !readers.is_empty() {
        site.platform.emit(1);
        relay.wait_for_number(site.platform.ledger().last_sequence()).await;
        rounds += 1;
        while let Some(read) = readers.try_join_next() {
            bytes += read.unwrap();
        }
    }
    assert!(rounds > 10, "too few appends: {rounds}");
    assert!(bytes > EVENTS * EVENT_LEN as u64, "{bytes} bytes");
    let metrics = relay.text(&relay.admin, "/metrics").await;
    assert!(metrics.contains("trunkline_replica_renewal_failures_total 0"), "a renewal was missed");
    assert!(!relay.child.stderr().contains("nothing is appended until"), "{}", relay.child.stderr());
}

/// The peak memory of a process.
fn memory_max(relay: &RelayProcess) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cold_readers_of_large_events_take_bounded_memory_and_delay_no_append() {
    let server = RedisServer::volatile();
    let (site, relay) = with_large_events(&server, &server.url()).await;
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        readers.spawn(read(relay.consumers.clone()));
    }
    is_not_delayed(&site, &relay, readers).await;
    let most = memory_max(&relay);
    println!("{READERS} cold readers of {EVENTS} events of 1 MiB: {} MiB at most", most >> 20);
    assert!(most < MEMORY_MAX, "{} MiB", most >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_redis_answers_slowly_delay_no_append_and_no_renewal() {
    let server = RedisServer::volatile();
    let proxy = RespProxy::to(server.port()).await;
    let (site, relay) = with_large_events(&server, &proxy.url()).await;
    proxy.set(RespFault { commands: CommandMatch::Ranges, reply: FaultReply::Late(SLOW) });
    let mut readers = JoinSet::new();
    readers.spawn(read(relay.consumers.clone()));
    is_not_delayed(&site, &relay, readers).await;
    assert!(proxy.replaced() > 5, "reads were slow");
}
