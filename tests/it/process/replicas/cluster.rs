//! Two relays on a Redis Cluster of three nodes, with slot migration and restarts of nodes.

use redis::cmd;
use trunkline::clock;

use super::{holder, one_owns, wait_for_progress};
use crate::{
    harness::{RedisServer, eventually as soon},
    process::{
        child::{WAIT_MAX, eventually},
        log::{assert_complete, pages},
        relay::RelayProcess,
        site::{STREAM, Site},
    },
};

const EVENTS_A_SECOND: u64 = 100;

struct ClusterFixture {
    nodes: [RedisServer; 3],
    site: Site,
    relays: [RelayProcess; 2],
}

impl ClusterFixture {
    async fn start(options: &[&str]) -> Self {
        let nodes = RedisServer::cluster_with(options).await;
        let site = Site::start().await;
        site.use_redis(&format!("redis-cluster://127.0.0.1:{}", nodes[0].port()));
        let relays = [RelayProcess::live(&site).await, RelayProcess::live(&site).await];
        Self { nodes, site, relays }
    }

    async fn wait_for_progress(&self) {
        for relay in &self.relays {
            wait_for_progress(&self.site, relay, clock::now()).await;
        }
    }

    async fn assert_complete_logs(&self, last_sent: u64) {
        for relay in &self.relays {
            relay.wait_for_number(last_sent).await;
            assert_complete(&pages(&relay.consumers).await, last_sent);
        }
        self.has_one_owner().await;
    }

    async fn has_one_owner(&self) {
        one_owns(&self.relays).await;
    }

    /// Sends a command to one node and returns any reply.
    async fn run(&self, node: usize, words: &[&str]) -> redis::Value {
        let answer = self.nodes[node].connection().run(cmd(words[0]).arg(&words[1..])).await;
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn text(&self, node: usize, words: &[&str]) -> String {
        redis::from_redis_value(self.run(node, words).await).unwrap()
    }

    /// The index of the node that initially serves a slot.
    fn node_of(slot: u16) -> usize {
        match slot {
            0..=5_460 => 0,
            5_461..=10_922 => 1,
            _ => 2,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_on_a_cluster_take_over_and_hand_over_as_on_one_server() {
    let mut scene = ClusterFixture::start(&["--appendonly", "no"]).await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    for signal in ["KILL", "TERM", "KILL"] {
        scene.wait_for_progress().await;
        for relay in &scene.relays {
            let both = async || relay.text(&relay.admin, "/metrics").await.contains("replica_members 2").then_some(());
            eventually("both are members", WAIT_MAX, both).await;
        }
        let index = holder(&scene.relays).await;
        scene.relays[index].child.signal(signal);
        let ended = async || scene.relays[index].child.has_ended();
        let ended = eventually("it has ended", WAIT_MAX, ended).await;
        assert_eq!(ended.success(), signal == "TERM", "{}", scene.relays[index].child.printed_output());
        wait_for_progress(&scene.site, &scene.relays[1 - index], clock::now()).await;
        scene.relays[index] = RelayProcess::live(&scene.site).await;
    }
    scene.wait_for_progress().await;
    scene.assert_complete_logs(traffic.stop().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_migrates_under_appends_and_back_loses_nothing() {
    let scene = ClusterFixture::start(&["--appendonly", "no"]).await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    let slot: u16 =
        redis::from_redis_value(scene.run(0, &["CLUSTER", "KEYSLOT", &format!("{{trunkline:{STREAM}}}:log")]).await)
            .unwrap();
    let home = ClusterFixture::node_of(slot);
    let away = (home + 1) % 3;
    for (from, to) in [(home, away), (away, home)] {
        scene.wait_for_progress().await;
        migrate(&scene, slot, from, to).await;
    }
    scene.wait_for_progress().await;
    scene.assert_complete_logs(traffic.stop().await).await;
}

/// Moves a slot key by key, so that its keys are temporarily on two nodes.
async fn migrate(scene: &ClusterFixture, slot: u16, from: usize, to: usize) {
    let slot = slot.to_string();
    let ids = [scene.text(from, &["CLUSTER", "MYID"]).await, scene.text(to, &["CLUSTER", "MYID"]).await];
    scene.run(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]).await;
    scene.run(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]).await;
    let port = scene.nodes[to].port().to_string();
    for what in ["head", "log"] {
        let key = format!("{{trunkline:{STREAM}}}:{what}");
        scene.run(from, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]).await;
        let refused = async || {
            let errors = scene.text(from, &["INFO", "errorstats"]).await;
            errors.contains("errorstat_TRYAGAIN") || errors.contains("errorstat_ASK")
        };
        soon("commands are redirected", refused).await;
    }
    for node in [to, from, 3 - to - from] {
        scene.run(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_restarts_with_its_data_loses_nothing() {
    let mut scene = ClusterFixture::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    for _ in 0..2 {
        scene.wait_for_progress().await;
        restart(&mut scene).await;
    }
    scene.wait_for_progress().await;
    scene.assert_complete_logs(traffic.stop().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_restarts_without_its_data_is_a_gap_and_the_streams_continue() {
    let mut scene = ClusterFixture::start(&["--appendonly", "no"]).await;
    let traffic = scene.site.start_traffic(EVENTS_A_SECOND);
    scene.wait_for_progress().await;
    restart(&mut scene).await;
    scene.wait_for_progress().await;
    let last_sent = traffic.stop().await;
    let mut logs = Vec::new();
    for relay in &scene.relays {
        relay.wait_until_live().await;
        relay.wait_for_number(last_sent).await;
        logs.push(pages(&relay.consumers).await);
    }
    assert!(logs[0] == logs[1], "both replicas have the same log");
    let marked = logs[0].iter().filter(|entry| entry.json.contains(r#""reason":"store""#)).count();
    assert_eq!(marked, 1, "the gap is marked once");
    let numbers: Vec<u64> = logs[0].iter().filter_map(|entry| entry.number).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "nothing is missing behind the gap");
    scene.has_one_owner().await;
}

/// Stops all nodes until both relays report it, then restarts them.
async fn restart(scene: &mut ClusterFixture) {
    scene.nodes.iter_mut().for_each(RedisServer::kill);
    for relay in &scene.relays {
        let away = async || (relay.ready().await?.0 == 503).then_some(());
        eventually("it is not ready", WAIT_MAX, away).await;
    }
    scene.nodes.iter_mut().for_each(RedisServer::restart);
    for relay in &mut scene.relays {
        let back = async || (relay.ready().await?.0 == 200).then_some(());
        eventually("it is ready again", WAIT_MAX, back).await;
        assert!(relay.child.has_ended().is_none(), "{}", relay.child.printed_output());
    }
}
