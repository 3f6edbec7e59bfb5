//! A data directory restored from a copy: no id is used again, and consumers ahead of the copy get an error or a gap.

use std::{path::Path, process::Command};

use super::{
    log::{LogEntry, assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// `cp -a FROM/. TO`: overwrites existing files in place.
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
    relay.wait_for_number(5).await;
    relay.child.kill();
    copy(&site.store(), &kept);

    let mut relay = RelayProcess::live(&site).await;
    site.platform.emit(3);
    relay.wait_for_number(8).await;
    let lost = pages(&relay.consumers).await;
    assert_eq!(epoch(&lost[7]), epoch(&lost[0]), "a kill starts no epoch");
    relay.child.kill();

    copy(&kept, &site.store());
    let relay = RelayProcess::live(&site).await;
    site.platform.emit(2);
    relay.wait_for_number(10).await;
    let log = pages(&relay.consumers).await;
    assert_complete(&log, 10);
    assert_eq!(log[..5], lost[..5], "copied entries keep their ids");
    assert!(log[5..].iter().all(|entry| epoch(entry) != epoch(&lost[0])), "no id is used again");

    let page = "application/cloudevents-batch+json";
    let next: Vec<serde_json::Value> = read(&relay, &lost[4].id, page).await.json().await.unwrap();
    assert_eq!(
        (next.len(), next[0]["id"].as_str()),
        (5, Some(&*log[5].id)),
        "a cursor at the end of the copy is valid"
    );
    assert_eq!(read(&relay, &lost[7].id, page).await.status(), 410, "a cursor beyond the copy is refused");
    let mut lines = read(&relay, &lost[7].id, "application/x-ndjson").await;
    let first = lines.chunk().await.unwrap().unwrap();
    let first: serde_json::Value = serde_json::from_slice(first.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((first["type"].as_str(), first["data"]["reason"].as_str()), (Some("trunkline.gap.v1"), Some("trimmed")));
}
