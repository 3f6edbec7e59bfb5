//! Random faults on four streams of two replicas with one Redis. At the end, every event is in its log once and in order
//! or is covered by a gap, and memory and file descriptors have not grown.
//!
//! `SOAK_SECONDS` is the duration (default 60). `SOAK_SEED` selects other faults. Each run prints its seed.

mod faults;
mod log_check;

use std::{collections::BTreeMap, fs, time::Duration};

use trunkline::{
    clock,
    simulator::{EmittedNotification, PlatformFault, Settings},
};

use self::{faults::faults, log_check::check_log};
use crate::{
    harness::RedisServer,
    process::{
        RelayProcess, Site,
        child::{WAIT_MAX, eventually},
        client, pages_of,
    },
};

const SECONDS: u64 = 60;
/// The default seed, so that two runs of one tree inject the same faults.
const SEED: u64 = 7;
const RATE: f64 = 40.0;
const STREAMS: [&str; 4] = ["calls", "summaries", "queues", "users"];
/// Time after the last fault within which all streams are live and complete. All pauses and backoffs are shorter.
const RECOVERY: Duration = Duration::from_secs(90);
/// Age from which a replica's measurements count.
const SETTLED: u64 = 5;
/// Permitted growth of the median memory from the first to the last third. Allocators keep memory after a burst.
const MEMORY_FACTOR: u64 = 2;
const MEMORY_SLACK_KB: u64 = 48 * 1_024;
/// Permitted growth of the median number of descriptors: sockets of an overlap, a token request, pooled connections.
const DESCRIPTORS_SLACK: u64 = 48;

fn configure(site: &Site, redis: &RedisServer) {
    let address = site.platform.address();
    let mut text = site.base(&site.store()).replace("platform = \"generic\"", "platform = \"genesys-cloud\"");
    text = text.replace("[store]\n", &format!("[store]\nkind = \"redis\"\nurl = \"{}\"\n", redis.url()));
    for name in STREAMS {
        let own = match name {
            "calls" | "summaries" => format!(
                "connector = \"genesys-sequenced\"\n\
                 url = \"ws://{address}/api/v2/analytics/conversations/summary/stream\"\n"
            ),
            "queues" => "connector = \"genesys-notifications\"\n\
                         topics = [\"v2.analytics.queues.*.observations\"]\n"
                .to_owned(),
            _users => "connector = \"genesys-notifications\"\n\
                       topics = [\"v2.users.*.presence\", \"v2.users.*.routingStatus\"]\n"
                .to_owned(),
        };
        text.push_str(&format!(
            "[streams.{name}]\naccount = \"demo\"\nsilence_max = \"5s\"\nretention = \"60s\"\nframe_max = \"1MiB\"\n{own}\
             backoff = {{ first = \"200ms\", cap = \"2s\" }}\n"
        ));
    }
    fs::write(&site.config, text).unwrap();
}

/// Memory in kB and descriptors of a process.
fn figures(id: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let memory = line.split_whitespace().nth(1)?.parse().ok()?;
    Some((memory, fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64))
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn assert_flat(samples: &[(u64, u64)]) {
    let third = samples.len() / 3;
    assert!(third > 0, "too few measurements: {}", samples.len());
    let of = |part: &[(u64, u64)]| {
        let (memory, descriptors) = part.iter().copied().unzip();
        (median(memory), median(descriptors))
    };
    let (first, last) = (of(&samples[..third]), of(&samples[samples.len() - third..]));
    assert!(last.0 <= first.0 * MEMORY_FACTOR + MEMORY_SLACK_KB, "memory grows: {first:?} kB, then {last:?} kB");
    assert!(last.1 <= first.1 + DESCRIPTORS_SLACK, "descriptors grow: {first:?}, then {last:?}");
}

/// Injects a fault into the replicas or Redis.
async fn inject_fault(
    rng: &mut fastrand::Rng,
    site: &Site,
    relays: &mut [RelayProcess; 2],
    redis: &RedisServer,
    record: &mut String,
) -> String {
    let which = rng.usize(0..2);
    let pause = Duration::from_millis(rng.u64(200..4_000));
    match rng.u8(0..4) {
        0 => {
            relays[which].child.kill();
            record.push_str(&relays[which].child.stderr());
            relays[which] = RelayProcess::start(site).await;
            format!("replica {which} killed")
        }
        1 => {
            relays[which].child.signal("TERM");
            assert_eq!(relays[which].child.wait_for_exit(WAIT_MAX).await, 0, "a drained replica exits with 0");
            record.push_str(&relays[which].child.stderr());
            relays[which] = RelayProcess::start(site).await;
            format!("replica {which} restarted")
        }
        2 => {
            relays[which].child.signal("STOP");
            tokio::time::sleep(pause).await;
            relays[which].child.signal("CONT");
            format!("replica {which} stopped for {pause:?}")
        }
        _redis => {
            redis.pause();
            tokio::time::sleep(pause).await;
            redis.resume();
            format!("Redis paused for {pause:?}")
        }
    }
}

fn variable(name: &str, otherwise: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the environment sets the duration")]
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing_without_a_gap() {
    let seconds = variable("SOAK_SECONDS", SECONDS);
    let seed = variable("SOAK_SEED", SEED);
    // A failed test prints this.
    println!("SOAK_SEED={seed} SOAK_SECONDS={seconds}");
    let (faults, mut rng) = (faults(), fastrand::Rng::with_seed(seed));
    let settings = Settings {
        seed,
        rate: RATE,
        heartbeat: Duration::from_secs(2),
        token_ttl: Duration::from_secs(20),
        ..Settings::default()
    };
    let (site, redis) = (Site::start_with(settings, &[]).await, RedisServer::volatile());
    configure(&site, &redis);
    let mut relays = [RelayProcess::live(&site).await, RelayProcess::start(&site).await];
    let ledger = site.platform.ledger();
    let (mut sent, mut samples, mut ages) =
        (Vec::<EmittedNotification>::new(), Vec::new(), BTreeMap::<u32, u64>::new());
    // The record of a failure: each step with its time, and the log lines of ended replicas.
    let mut record = String::new();
    let until = clock::now() + Duration::from_secs(seconds);
    while clock::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        sent.extend(ledger.emitted_since(sent.last().map_or(0, |last| last.number + 1)));
        for relay in &mut relays {
            assert!(
                relay.child.has_ended().is_none(),
                "a replica ended without a request\n{}",
                relay.child.printed_output()
            );
            let age = ages.entry(relay.child.id()).or_default();
            *age += 1;
            samples.extend(figures(relay.child.id()).filter(|_| *age > SETTLED));
        }
        if rng.u8(0..3) == 0 {
            let fault: PlatformFault = serde_json::from_value(faults[rng.usize(..faults.len())].clone()).unwrap();
            println!("{}", note(&mut record, &sent, &fault.label()));
            site.platform.inject(fault);
        }
        if rng.u8(0..12) == 0 {
            let step = inject_fault(&mut rng, &site, &mut relays, &redis, &mut record).await;
            println!("{}", note(&mut record, &sent, &step));
        }
    }
    settle(&site, &relays, &mut sent, &mut record).await;
    assert_flat(&samples);
}

/// Records a step of the soak with its time and the last event before it.
fn note(record: &mut String, sent: &[EmittedNotification], step: &str) -> String {
    let last = sent.last().map_or("", |last| &last.correlation);
    let line = format!("{} after {last}: {step}", clock::wall());
    record.push_str(&line);
    record.push('\n');
    line
}

/// Waits until the logs have the events after the last fault, then checks them. The platform keeps sending, so the check
/// ends at the last event that every stream had.
async fn settle(site: &Site, relays: &[RelayProcess; 2], sent: &mut Vec<EmittedNotification>, record: &mut String) {
    let ledger = site.platform.ledger();
    eventually("every stream is live again", RECOVERY, async || {
        let answer = client().get(format!("{}/readyz?streams=all", relays[0].admin)).send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    sent.extend(ledger.emitted_since(sent.last().map_or(0, |last| last.number + 1)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut found = Vec::new();
    for stream in STREAMS {
        let log = pages_of(&relays[0].consumers, stream).await;
        if let Err(fault) = check_log(stream, &log, sent) {
            found.push(fault);
            record.extend(log.into_iter().map(|entry| entry.json + "\n"));
        }
    }
    if !found.is_empty() {
        record.extend(relays.iter().map(|relay| relay.child.stderr()));
        let path = format!("{}/soak-{}.log", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        fs::write(&path, record).unwrap();
        panic!("{}\nthe whole record is in {path}", found.join("\n"));
    }
}
