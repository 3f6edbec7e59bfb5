//! Faults at random, on four streams of two replicas over one Redis: afterwards every event is in its log once and in
//! order, or lies in a marked gap, and memory and descriptors have not grown.
//!
//! `TRUNKLINE_SOAK_SECONDS` says for how long (60), `TRUNKLINE_SOAK_SEED` draws other faults; each run prints its seed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    time::Duration,
};

use serde_json::{Value, json};
use trunkline::{
    clock,
    simulator::{Fault, Notification, Settings},
};

use crate::{
    harness::Redis,
    process::{
        Relay, Site,
        child::{PATIENCE, eventually},
        client, pages_of,
    },
};

const SECONDS: u64 = 60;
/// The seed of a run that names none, so that two runs of one tree inject the same faults.
const SEED: u64 = 7;
const RATE: f64 = 40.0;
const STREAMS: [&str; 4] = ["calls", "summaries", "queues", "users"];
/// After the last fault everything must be live and caught up within this time: pauses and backoffs end long before.
const RECOVERY: Duration = Duration::from_secs(90);
/// A replica's figures count from this age on.
const SETTLED: u64 = 5;
/// How far the last third's median memory may lie above the first third's: allocators keep what a burst needed.
const MEMORY_FACTOR: u64 = 2;
const MEMORY_SLACK_KB: u64 = 48 * 1_024;
/// The same for descriptors: sockets of an overlap, a token request, pooled connections.
const DESCRIPTORS_SLACK: u64 = 48;

/// Every kind of fault that the simulator has, as a script would write it.
fn faults() -> Vec<Value> {
    let answer = |to: &str, how: Value| json!({"fault": "answer", "to": to, "how": how});
    let mut faults = vec![
        json!({"fault": "drop"}),
        json!({"fault": "stall", "for": "7s"}),
        json!({"fault": "close", "code": 1008}),
        json!({"fault": "close", "code": 1002}),
        json!({"fault": "close", "code": 1011}),
        json!({"fault": "socket_closing", "lead": "2s"}),
        json!({"fault": "close_quiet", "after": "4s"}),
        json!({"fault": "close_quiet", "after": "0s"}),
        json!({"fault": "token_revoked"}),
        json!({"fault": "no_longer_subscribed"}),
        json!({"fault": "refuse", "status": 503, "times": 2}),
        json!({"fault": "rest", "status": 500, "times": 2}),
        json!({"fault": "reset"}),
        json!({"fault": "reorder", "n": 3}),
        json!({"fault": "oversize", "bytes": 2_000_000}),
        json!({"fault": "pad", "bytes": 2_000_000}),
        json!({"fault": "delay", "for": "5ms"}),
        json!({"fault": "delay", "for": "0s"}),
        json!({"fault": "duplicate", "n": 20}),
        json!({"fault": "jump", "n": 3}),
        json!({"fault": "unsent", "n": 3}),
        json!({"fault": "flood", "n": 500}),
        json!({"fault": "flood", "n": 500, "when": "overlap"}),
        json!({"fault": "binary", "n": 3}),
        json!({"fault": "empty_text"}),
        json!({"fault": "reword", "n": 3, "decimal": true, "time": "2026-02-30T00:00:00Z"}),
        json!({"fault": "fragments", "n": 5}),
        json!({"fault": "slow_loris", "every": "2ms"}),
        json!({"fault": "undecodable", "what": "invalid_json"}),
        json!({"fault": "undecodable", "what": "invalid_utf8"}),
        answer("connection", json!("hang")),
        answer("upgrade", json!("hang")),
        answer("upgrade", json!({"late": {"for": "3s"}})),
        answer("upgrade", json!({"trickle": {"every": "1s"}})),
        answer("upgrade", json!("connection_list")),
        answer("upgrade", json!("interim")),
        answer("upgrade", json!({"closed": {"after": "1s", "code": 1008}})),
        json!({"fault": "token", "failure": "invalid_client"}),
        json!({"fault": "token", "failure": "html"}),
        json!({"fault": "token", "failure": "huge"}),
        json!({"fault": "token", "failure": {"slow": {"for": "3s"}}}),
        json!({"fault": "token", "failure": {"expires_in": {"json": "\"soon\""}}}),
        answer("token", json!("hang")),
        answer("token", json!("reset")),
        answer("token", json!({"status": {"status": 503, "retry_after": "2"}})),
        answer("token", json!({"changed": {"set": "{\"expires_in\":0}"}})),
        answer("token", json!({"changed": {"status": 201, "content_type": "text/plain", "gzip": true}})),
        answer("token", json!({"body": {"text": "{\"error\":\"server_error\"}"}})),
        answer("rest", json!("hang")),
        answer("rest", json!({"status": {"status": 429, "retry_in": 2, "clock": -3600}})),
        answer("rest", json!({"status": {"status": 503}})),
        answer("rest", json!({"changed": {"set": "{\"pageCount\":null}"}})),
    ];
    faults.extend(
        [200, 302, 403, 404, 421, 429, 503].map(|status| answer("upgrade", json!({"status": {"status": status}}))),
    );
    faults.extend([400, 404, 409, 410, 416].map(
        |status| json!({"fault": "answer", "to": "upgrade", "resuming": true, "how": {"status": {"status": status}}}),
    ));
    faults.extend(
        ["0000", "03e7", "03ed", "03ee", "03f7", "1388", "03e9e282"]
            .map(|hex| json!({"fault": "close_raw", "hex": hex})),
    );
    faults
}

fn configure(site: &Site, redis: &Redis) {
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
    assert!(third > 0, "too few figures: {}", samples.len());
    let of = |part: &[(u64, u64)]| {
        let (memory, descriptors) = part.iter().copied().unzip();
        (median(memory), median(descriptors))
    };
    let (first, last) = (of(&samples[..third]), of(&samples[samples.len() - third..]));
    assert!(last.0 <= first.0 * MEMORY_FACTOR + MEMORY_SLACK_KB, "memory grows: {first:?} kB, then {last:?} kB");
    assert!(last.1 <= first.1 + DESCRIPTORS_SLACK, "descriptors grow: {first:?}, then {last:?}");
}

/// One thing that happens to replicas or to Redis.
async fn calamity(rng: &mut fastrand::Rng, site: &Site, relays: &mut [Relay; 2], redis: &Redis) -> String {
    let which = rng.usize(0..2);
    let pause = Duration::from_millis(rng.u64(200..4_000));
    match rng.u8(0..4) {
        0 => {
            relays[which].child.kill();
            relays[which] = Relay::start(site).await;
            format!("replica {which} killed")
        }
        1 => {
            relays[which].child.signal("TERM");
            assert_eq!(relays[which].child.ends(PATIENCE).await, 0, "a replica that is asked to end");
            relays[which] = Relay::start(site).await;
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

/// The correlation ids of a log in its order; a gap is `None`.
async fn log_of(relay: &Relay, stream: &str) -> Vec<Option<String>> {
    let log = pages_of(&relay.consumers, stream).await;
    let dense = log.iter().zip(1..).all(|(entry, offset)| entry.offset == offset);
    assert!(dense, "{stream}: offsets are dense");
    log.into_iter()
        .filter_map(|entry| match entry.kind.as_str() {
            "trunkline.gap.v1" => Some(None),
            kind if kind.starts_with("trunkline.") => None,
            _event => Some(entry.correlation).filter(Option::is_some),
        })
        .collect()
}

/// Once, in order, and what is missing between two events has a gap there.
fn judge(stream: &str, log: &[Option<String>], said: &[Notification]) {
    let wanted = |topic: &str| match stream {
        "queues" => topic.ends_with(".observations"),
        "users" => topic.ends_with(".presence") || topic.ends_with(".routingStatus"),
        _numbered => true,
    };
    let places: HashMap<&str, usize> = said
        .iter()
        .filter(|said| wanted(&said.topic))
        .enumerate()
        .map(|(place, said)| (said.correlation.as_str(), place))
        .collect();
    let (mut last, mut in_gap, mut heard) = (None::<usize>, false, 0);
    for entry in log {
        let Some(id) = entry else {
            in_gap = true;
            continue;
        };
        let Some(&place) = places.get(id.as_str()) else { continue };
        if let Some(last) = last {
            assert!(place > last, "{stream}: event {place} ({id}) comes after event {last}");
            assert!(place == last + 1 || in_gap, "{stream}: {} events are missing before {id}", place - last - 1);
        }
        (last, in_gap, heard) = (Some(place), false, heard + 1);
    }
    assert!(heard > 0, "{stream}: nothing was heard");
    assert_eq!(last.map(|last| last + 1), Some(places.len()), "{stream}: the log ends with what was said last");
}

fn variable(name: &str, otherwise: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a test is told by its environment how long it runs")]
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing_without_a_mark() {
    let seconds = variable("TRUNKLINE_SOAK_SECONDS", SECONDS);
    let seed = variable("TRUNKLINE_SOAK_SEED", SEED);
    // Shown when the test fails.
    println!("TRUNKLINE_SOAK_SEED={seed} TRUNKLINE_SOAK_SECONDS={seconds}");
    let (faults, mut rng) = (faults(), fastrand::Rng::with_seed(seed));
    let settings = Settings {
        seed,
        rate: RATE,
        heartbeat: Duration::from_secs(2),
        token_ttl: Duration::from_secs(20),
        ..Settings::default()
    };
    let (site, redis) = (Site::start_with(settings, &[]).await, Redis::volatile());
    configure(&site, &redis);
    let mut relays = [Relay::live(&site).await, Relay::start(&site).await];
    let ledger = site.platform.ledger();
    let (mut said, mut samples, mut ages) = (Vec::<Notification>::new(), Vec::new(), BTreeMap::<u32, u64>::new());
    let until = clock::now() + Duration::from_secs(seconds);
    while clock::now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        said.extend(ledger.said_since(said.last().map_or(0, |last| last.number + 1)));
        for relay in &mut relays {
            assert!(relay.child.has_ended().is_none(), "a replica ended by itself\n{}", relay.child.told());
            let age = ages.entry(relay.child.id()).or_default();
            *age += 1;
            samples.extend(figures(relay.child.id()).filter(|_| *age > SETTLED));
        }
        if rng.u8(0..3) == 0 {
            let fault: Fault = serde_json::from_value(faults[rng.usize(..faults.len())].clone()).unwrap();
            println!("{:?}: {}", until - clock::now(), fault.label());
            site.platform.inject(fault);
        }
        if rng.u8(0..12) == 0 {
            println!("{:?}: {}", until - clock::now(), calamity(&mut rng, &site, &mut relays, &redis).await);
        }
    }
    settle(&site, &relays, &mut said).await;
    assert_flat(&samples);
}

/// Waits until the logs hold what is said after the last fault, then judges them. The platform talks on, so that the
/// end is the last event that every stream was seen to hold.
async fn settle(site: &Site, relays: &[Relay; 2], said: &mut Vec<Notification>) {
    let ledger = site.platform.ledger();
    eventually("every stream is live again", RECOVERY, async || {
        let answer = client().get(format!("{}/readyz?streams=all", relays[0].admin)).send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    said.extend(ledger.said_since(said.last().map_or(0, |last| last.number + 1)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    for stream in STREAMS {
        let log = log_of(&relays[0], stream).await;
        judge(stream, &log, said);
    }
}

#[test]
fn the_soak_injects_every_kind_of_fault() {
    let injected: BTreeSet<String> = faults().iter().map(|fault| fault["fault"].as_str().unwrap().to_owned()).collect();
    let table = include_str!("../../docs/simulator.md").split("\n## ").next().unwrap();
    let names = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let documented: BTreeSet<String> =
        names.flat_map(|names| names.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    assert_eq!(injected, documented);
}

#[test]
fn an_event_that_is_missing_doubled_or_late_without_a_gap_fails_the_soak() {
    let said: Vec<Notification> = (0..4)
        .map(|number| Notification {
            number,
            topic: "v2.users.u.presence".to_owned(),
            correlation: number.to_string(),
            subscribed: true,
            written: true,
        })
        .collect();
    for (log, sound) in [
        ("0 1 2 3", true),
        ("1 2 3", true),
        ("0 gap 3", true),
        ("0 3", false),
        ("0 1 1 2 3", false),
        ("0 2 gap 1 3", false),
        ("0 1 2", false),
    ] {
        let entries: Vec<Option<String>> =
            log.split(' ').map(|word| (word != "gap").then(|| word.to_owned())).collect();
        let judged = std::panic::catch_unwind(|| judge("users", &entries, &said));
        assert_eq!(judged.is_ok(), sound, "{log}");
    }
}
