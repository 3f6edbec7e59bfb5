//! A data directory that is put back from a copy: its log gives no id again that another entry had, and whoever read
//! further than the copy goes is answered.

use std::{path::Path, process::Command};

use super::{
    log::{LogEntry, assert_whole, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// `cp -a FROM/. TO`: files that are there are overwritten in place.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(status.success());
}

fn epoch(entry: &LogEntry) -> &str {
    entry.id.split_once('-').unwrap().0
}

async fn read(relay: &RelayProcess, after: &str, accept: &str) -> reqwest::Response {
    let url = format!("{}/v1/streams/{STREAM}/events?after={after}", relay.consumers);
    client().get(url).header("accept", accept).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_restored_from_a_copy_gives_new_ids_and_rejects_cursors_ahead_of_it() {
    let site = Site::start().await;
    let kept = site.folder.path().join("kept");
    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(5);
    relay.holds(5).await;
    relay.child.kill();
    copy(&site.store(), &kept);

    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(3);
    relay.holds(8).await;
    let lost = pages(&relay.consumers).await;
    assert_eq!(epoch(&lost[7]), epoch(&lost[0]), "a kill begins no epoch");
    relay.child.kill();

    copy(&kept, &site.store());
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(2);
    relay.holds(10).await;
    let log = pages(&relay.consumers).await;
    assert_whole(&log, 10);
    assert_eq!(log[..5], lost[..5], "what was copied has the ids that it had");
    assert!(log[5..].iter().all(|entry| epoch(entry) != epoch(&lost[0])), "no id is used again");

    let page = "application/cloudevents-batch+json";
    let next: Vec<serde_json::Value> = read(&relay, &lost[4].id, page).await.json().await.unwrap();
    assert_eq!((next.len(), next[0]["id"].as_str()), (5, Some(&*log[5].id)), "a cursor at the end of the copy is good");
    assert_eq!(read(&relay, &lost[7].id, page).await.status(), 410, "a cursor beyond the copy is refused");
    let mut lines = read(&relay, &lost[7].id, "application/x-ndjson").await;
    let first = lines.chunk().await.unwrap().unwrap();
    let first: serde_json::Value = serde_json::from_slice(first.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((first["type"].as_str(), first["data"]["reason"].as_str()), (Some("trunkline.gap.v1"), Some("trimmed")));
}
