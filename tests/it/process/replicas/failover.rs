//! A Sentinel promotes a replica without the newest entries while two relays run.

use redis::cmd;
use trunkline::{clock, simulator::Settings};

use super::{one_owns, rate, wait_for_progress};
use crate::{
    harness::{RedisServer, eventually as soon},
    process::{
        child::{WAIT_MAX, eventually},
        log::{LogEntry, assert_complete, pages},
        relay::{RelayProcess, client},
        site::{STREAM, Site},
    },
};

/// A primary, its replica, and the Sentinel that monitors them.
struct SentinelFixture {
    primary: RedisServer,
    replica: RedisServer,
    sentinel: RedisServer,
}

impl SentinelFixture {
    async fn start() -> Self {
        let (primary, replica) = (RedisServer::durable(), RedisServer::durable());
        let mut follow = cmd("REPLICAOF");
        replica.connection().run::<()>(follow.arg("127.0.0.1").arg(primary.port())).await.unwrap();
        soon("the replica follows", async || about(&replica).await.contains("master_link_status:up")).await;
        // Load of the machine must not cause a failover.
        let sentinel = RedisServer::sentinel_with(&primary, "sentinel down-after-milliseconds main 2000\n");
        Self { primary, replica, sentinel }
    }

    fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/main", self.sentinel.port())
    }

    /// Waits until the Sentinel knows the replica.
    async fn is_watched(&self) {
        let sentinel = self.sentinel.connection();
        soon("the Sentinel knows the replica", async || {
            let known = sentinel.run::<Vec<redis::Value>>(cmd("SENTINEL").arg("replicas").arg("main")).await;
            known.is_ok_and(|known| !known.is_empty())
        })
        .await;
    }

    /// Waits until the replica has this entry.
    async fn has(&self, offset: u64) {
        let redis = self.replica.connection();
        let head = format!("{{trunkline:{STREAM}}}:head");
        soon("the replica has the entry", async || {
            let last = redis.run::<u64>(cmd("HGET").arg(&head).arg("last")).await;
            last.is_ok_and(|last| last >= offset)
        })
        .await;
    }

    /// Stops replication. Returns the newest entry of the replica.
    async fn disconnect_replica(&self) -> u64 {
        let cut = async || {
            let mut kill = cmd("CLIENT");
            self.primary.connection().run::<i64>(kill.arg("KILL").arg("TYPE").arg("replica")).await.ok();
        };
        // A wrong password prevents a reconnection.
        let mut config = cmd("CONFIG");
        let secret = config.arg("SET").arg("masterauth").arg("not the one");
        self.replica.connection().run::<()>(secret).await.unwrap();
        let mut rule = cmd("ACL");
        let rule = rule.arg("SETUSER").arg("default").arg("-psync").arg("-replconf").arg("-sync");
        self.primary.connection().run::<()>(rule).await.unwrap();
        cut().await;
        soon("the replica is disconnected", async || about(&self.replica).await.contains("master_link_status:down"))
            .await;
        let head = format!("{{trunkline:{STREAM}}}:head");
        self.replica.connection().run(cmd("HGET").arg(head).arg("last")).await.unwrap()
    }

    /// Promotes the replica.
    async fn fail_over(&mut self) {
        self.primary.kill();
        soon("the replica is the primary", async || about(&self.replica).await.contains("role:master")).await;
    }
}

async fn about(server: &RedisServer) -> String {
    server.connection().run(cmd("INFO").arg("replication")).await.unwrap_or_default()
}

/// The HTTP status of a page after this entry.
async fn page_after(relay: &RelayProcess, id: &str) -> u16 {
    let url = format!("{}/v1/streams/{STREAM}/events?after={id}", relay.consumers);
    let answer = client().get(url).header("accept", "application/cloudevents-batch+json").send().await.unwrap();
    answer.status().as_u16()
}

/// The first entry of a stream after this entry.
async fn first_after(relay: &RelayProcess, id: &str) -> LogEntry {
    let url = format!("{}/v1/streams/{STREAM}/events?after={id}", relay.consumers);
    let mut answer = client().get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    let mut text = Vec::new();
    while !text.contains(&b'\n') {
        text.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    LogEntry::read(text.lines().next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_lost_by_a_failover_are_refetched_from_the_platform() {
    let mut trio = SentinelFixture::start().await;
    trio.is_watched().await;
    let site = Site::start_with(Settings::default(), &[]).await;
    site.use_redis(&trio.url());
    let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
    let traffic = site.start_traffic(rate().min(1_000));
    wait_for_progress(&site, &relays[1], clock::now()).await;
    let kept = relays[0].newest().await.unwrap();
    trio.has(kept.offset).await;
    let last_kept = trio.disconnect_replica().await;
    let seen = shown_beyond(&relays, last_kept).await;
    trio.fail_over().await;
    let since = clock::now();
    for relay in &relays {
        let back = wait_for_progress(&site, relay, since).await;
        println!("takeover after a Sentinel failover: {back:?}");
    }
    one_owns(&relays).await;
    let last_sent = traffic.stop().await;
    let mut logs = Vec::new();
    for relay in &relays {
        relay.wait_for_number(last_sent).await;
        logs.push(pages(&relay.consumers).await);
    }
    assert_complete(&logs[0], last_sent);
    assert!(logs[0] == logs[1], "both replicas have the same log");
    println!("kept {}, seen {seen}, in the log {}", kept.id, logs[0].len());
    for relay in &relays {
        assert_eq!(page_after(relay, &kept.id).await, 200, "the cursor of a surviving entry is valid");
        assert_eq!(page_after(relay, &seen).await, 410, "the cursor of a lost entry is not valid");
        assert_eq!(first_after(relay, &seen).await.kind, "trunkline.gap.v1", "a stream starts with a gap");
    }
}

/// Waits for an entry of either relay that is so far behind `last` that the new primary does not have it.
async fn shown_beyond(relays: &[RelayProcess], last: u64) -> String {
    eventually("newer entries are served", WAIT_MAX, async || {
        for relay in relays {
            let newest = relay.newest().await?;
            if newest.offset > last {
                return Some(newest.id);
            }
        }
        None
    })
    .await
}
