//! Operator requests with several replicas: which replica owns a stream, where to send a command, and which Redis
//! permissions are necessary.

use std::{collections::BTreeSet, fs};

use redis::cmd;
use serde_json::Value;

use super::{
    child::{Child, WAIT_MAX, eventually},
    log::{assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};
use crate::harness::{RedisServer, documented_rules};

const EVENTS_A_SECOND: u64 = 200;

async fn site(url: &str, keys: &[&str]) -> Site {
    let site = Site::start_with(trunkline::simulator::Settings::default(), keys).await;
    site.use_redis(url);
    site
}

/// The owner of the stream, and the other replica.
async fn holder_and_standby(relays: [RelayProcess; 2]) -> (RelayProcess, RelayProcess) {
    let [one, two] = relays;
    let here = eventually("both replicas report the same owner and each other", WAIT_MAX, async || {
        let (first, second) = (one.status().await, two.status().await);
        let holders = [&first, &second].map(|status| status["streams"][0]["holder"].clone());
        let agreed = holders[0].is_string() && holders[0] == holders[1] && first["members"] == second["members"];
        (agreed && first["members"].as_array()?.len() == 2).then(|| first["replica"] == holders[0])
    })
    .await;
    if here { (one, two) } else { (two, one) }
}

async fn operator_request(relay: &RelayProcess, command: &str) -> (u16, Value) {
    let url = format!("{}/admin/v1/streams/{STREAM}/{command}", relay.admin);
    let answer = client().post(url).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_request_is_accepted_by_the_holder_and_the_other_replica_names_it() {
    let server = RedisServer::volatile();
    let site = site(&server.url(), &[]).await;
    let (mut holder, other) =
        holder_and_standby([RelayProcess::live(&site).await, RelayProcess::live(&site).await]).await;
    let id = holder.status().await["replica"].as_str().unwrap().to_owned();
    for kind in ["pause", "rotate", "resume"] {
        let (status, problem) = operator_request(&other, kind).await;
        assert_eq!((status, &problem["type"]), (409, &"urn:trunkline:problem:not-owner".into()), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(&id), "{problem}");
    }
    for (kind, state) in [("pause", "paused"), ("resume", "live")] {
        assert_eq!(operator_request(&holder, kind).await.0, 202);
        let met = async || (holder.stream().await["state"] == state).then_some(());
        eventually(&format!("the stream is {state}"), WAIT_MAX, met).await;
    }
    shows_the_holder(&site, &holder, "here").await;
    shows_the_holder(&site, &other, &id).await;

    assert_eq!(operator_request(&holder, "pause").await.0, 202);
    let paused = async || (holder.stream().await["state"] == "paused").then_some(());
    eventually("the stream is paused again", WAIT_MAX, paused).await;
    holder.child.signal("TERM");
    assert_eq!(holder.child.wait_for_exit(WAIT_MAX).await, 0, "{}", holder.child.printed_output());
    other.wait_until_live().await;
    shows_the_holder(&site, &other, "here").await;
}

/// Checks the owner in the output of `trunkline status`.
async fn shows_the_holder(site: &Site, relay: &RelayProcess, holder: &str) {
    let mut status = Child::start(site.folder.path(), &["status", "--url", &relay.admin]);
    assert_eq!(status.wait_for_exit(WAIT_MAX).await, 0, "{}", status.printed_output());
    let table = status.stdout();
    let row = table.lines().find(|line| line.starts_with(STREAM)).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some(holder), "{table}");
    let id = relay.status().await["replica"].as_str().unwrap().to_owned();
    assert!(table.lines().nth(1).unwrap().starts_with(&format!("replica {id}, ")), "{table}");
}

/// The permissions in `config/trunkline.toml` are sufficient for replicas, and `docs/replicas.md` lists all names of
/// their keys in Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_use_only_the_documented_redis_permissions_and_keys() {
    let server = RedisServer::volatile();
    server.connection().run::<()>(cmd("ACL").arg("SETUSER").arg("trunkline").arg(documented_rules())).await.unwrap();
    let url = format!("redis://trunkline:PASSWORD@127.0.0.1:{}", server.port());
    let site = site(&url, &["standby = true"]).await;
    let traffic = site.start_traffic(EVENTS_A_SECOND);
    let (mut holder, other) =
        holder_and_standby([RelayProcess::live(&site).await, RelayProcess::live(&site).await]).await;
    let mut left = stored_names(&server).await;
    holder.child.signal("TERM");
    assert_eq!(holder.child.wait_for_exit(WAIT_MAX).await, 0, "{}", holder.child.printed_output());
    let (mut killed, heir) = holder_and_standby([other, RelayProcess::live(&site).await]).await;
    killed.child.kill();
    heir.wait_until_live().await;
    let last_sent = traffic.stop().await;
    heir.wait_for_number(last_sent).await;
    assert_complete(&pages(&heir.consumers).await, last_sent);

    let refused: Vec<redis::Value> = server.connection().run(cmd("ACL").arg("LOG")).await.unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    left.extend(stored_names(&server).await);
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/replicas.md")).unwrap();
    for name in left {
        assert!(document.contains(&format!("`{name}`")), "docs/replicas.md does not list {name}");
    }
}

/// Keys, channels and head fields in Redis, with the example names of the document.
async fn stored_names(server: &RedisServer) -> BTreeSet<String> {
    let redis = server.connection();
    let keys: Vec<String> = redis.run(cmd("KEYS").arg("*")).await.unwrap();
    let channels: Vec<String> = redis.run(cmd("PUBSUB").arg("CHANNELS")).await.unwrap();
    let fields: Vec<String> = redis.run(cmd("HKEYS").arg(format!("{{trunkline:{STREAM}}}:head"))).await.unwrap();
    assert!(!keys.is_empty() && !channels.is_empty() && !fields.is_empty());
    let example = |name: &String| match name.rsplit_once(':') {
        Some((about, id)) if id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => format!("{about}:ID"),
        Some(_) | None => name.replace(STREAM, "queues").replace("demo", "acme"),
    };
    keys.iter().chain(&channels).chain(&fields).map(example).collect()
}
