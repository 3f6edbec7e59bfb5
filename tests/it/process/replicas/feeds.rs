//! Replicas with different feeds under one stream name, as during a rolling update and its rollback.

use trunkline::simulator::Simulator;

use super::*;

/// The log as words: numbers and the reasons of gaps.
async fn log_summary(relay: &RelayProcess) -> String {
    let log = pages(&relay.consumers).await;
    let word = |entry: &LogEntry| {
        let value: serde_json::Value = serde_json::from_str(&entry.json).unwrap();
        entry.number.map_or_else(|| format!("gap({})", value["data"]["reason"].as_str().unwrap()), |n| n.to_string())
    };
    log.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Stops the former owner. This relay takes over behind a gap and receives the next number.
async fn takes_over(relay: &RelayProcess, mut former: RelayProcess, platform: &Simulator) {
    former.child.signal("TERM");
    assert_eq!(former.child.wait_for_exit(WAIT_MAX).await, 0, "{}", former.child.printed_output());
    let marked = async || (relay.newest().await?.kind == "trunkline.gap.v1").then_some(());
    eventually("the gap is marked", WAIT_MAX, marked).await;
    platform.emit(1);
    relay.wait_for_number(platform.ledger().last_sequence()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_another_feed_never_resumes_from_the_position_of_the_first() {
    for keys in [&[] as &[&str], &["standby = true"]] {
        let server = RedisServer::durable();
        let (first, second) = (site(&server, keys).await, site(&server, keys).await);
        let relay = RelayProcess::live(&first).await;
        first.platform.emit(5);
        relay.wait_for_number(5).await;
        second.platform.emit(8);
        let other = RelayProcess::live(&second).await;
        takes_over(&other, relay, &second.platform).await;
        assert!(other.child.stderr().contains("another feed"), "{}", other.child.printed_output());
        // And back: the first feed's events in this time are missing, and its earlier events are not repeated.
        first.platform.emit(4);
        let back = RelayProcess::live(&first).await;
        takes_over(&back, other, &first.platform).await;
        assert_eq!(log_summary(&back).await, "1 2 3 4 5 gap(reset) 9 gap(reset) 10", "{keys:?}");
    }
}
