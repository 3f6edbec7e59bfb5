//! A store that cannot be opened at the start: the process keeps running, reports the reason, and retries.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use redis::cmd;
use serde_json::Value;
use trunkline::clock;

use super::{
    child::{Child, WAIT_MAX, eventually},
    relay::{RelayProcess, client},
    site::Site,
};
use crate::harness::{CommandMatch, ERRORS, FaultReply, RedisServer, RespFault, RespProxy, error_code, free_port};

/// Longest time to stop while the daemon waits for its store, also on a slow machine. The pause between two attempts is
/// longer.
const END_MAX: Duration = Duration::from_secs(5);

/// A daemon on known ports that may not have opened its store.
struct WaitingRelay {
    site: Site,
    child: Child,
    consumers: String,
    admin: String,
}

impl WaitingRelay {
    /// Starts a daemon with its store at `url`.
    async fn with_store(url: &str) -> Self {
        let site = Site::start().await;
        site.use_redis(url);
        Self::start(site)
    }

    fn start(site: Site) -> Self {
        let (consumers, admin) = (free_port(), free_port());
        let text = fs::read_to_string(&site.config).unwrap();
        let text = text.replacen("127.0.0.1:0", &format!("127.0.0.1:{consumers}"), 1);
        fs::write(&site.config, text.replacen("127.0.0.1:0", &format!("127.0.0.1:{admin}"), 1)).unwrap();
        let child = RelayProcess::spawn(site.folder.path(), site.config(), &[]);
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        Self { site, child, consumers: at(consumers), admin: at(admin) }
    }

    /// Waits until `/readyz` answers 503 with `reason`.
    async fn is_not_ready(&mut self, reason: &str) {
        let shown = eventually(&format!("it is not ready: {reason}"), WAIT_MAX, async || {
            let answer = client().get(format!("{}/readyz", self.admin)).send().await.ok()?;
            let status = answer.status().as_u16();
            let shown: Value = answer.json().await.ok()?;
            shown["checks"]["store"].as_str()?.contains(reason).then_some((status, shown))
        })
        .await;
        assert_eq!((shown.0, &shown.1["ready"]), (503, &Value::Bool(false)), "{shown:?}");
        assert_eq!(shown.1["streams"]["calls"], "starting", "{shown:?}");
        assert_eq!(client().get(format!("{}/healthz", self.admin)).send().await.unwrap().status(), 200);
        assert!(client().get(format!("{}/metrics", self.admin)).send().await.unwrap().status().is_success());
        let answer = client().get(format!("{}/v1/streams", self.consumers)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["type"], "urn:trunkline:problem:starting");
        let mut status = Child::start(self.site.folder.path(), &["status", "--url", &self.admin]);
        assert_eq!(status.wait_for_exit(WAIT_MAX).await, 0, "{}", status.printed_output());
        let table = status.stdout();
        assert!(table.lines().any(|line| line.starts_with("NOT READY: store: ") && line.contains(reason)), "{table}");
        assert!(self.child.has_ended().is_none(), "{}", self.child.printed_output());
    }

    /// Waits until the stream is live.
    async fn resumes(self) -> Self {
        let all = format!("{}/readyz?streams=all", self.admin);
        eventually("it serves its stream", WAIT_MAX, async || {
            client().get(&all).send().await.ok()?.status().is_success().then_some(())
        })
        .await;
        self
    }

    /// Requests a stop, which must be quick and successful.
    async fn ends(mut self) {
        let since = clock::now();
        self.child.signal("TERM");
        assert_eq!(self.child.wait_for_exit(WAIT_MAX).await, 0, "{}", self.child.printed_output());
        assert!(since.elapsed() < END_MAX, "{:?}", since.elapsed());
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_down_at_the_start_is_retried() {
    let mut server = RedisServer::durable();
    server.kill();
    let mut waiting = WaitingRelay::with_store(&server.url()).await;
    waiting.is_not_ready("cannot be reached").await;
    server.restart();
    waiting.resumes().await.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_waits_for_its_store_stops_at_once_on_a_signal() {
    let mut waiting = WaitingRelay::with_store(&url(free_port())).await;
    waiting.is_not_ready("cannot be reached").await;
    waiting.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_accepts_and_never_replies_is_retried() {
    let server = RedisServer::durable();
    server.pause();
    let mut waiting = WaitingRelay::with_store(&server.url()).await;
    waiting.is_not_ready("cannot be reached").await;
    server.resume();
    waiting.resumes().await.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_redis_is_reported_and_the_process_stays_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 64];
            // The reply is invalid for reads and for writes.
            drop(client.read(&mut request));
            drop(std::io::Write::write_all(&mut client, b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let mut waiting = WaitingRelay::with_store(&url(port)).await;
    waiting.is_not_ready("not a Redis server").await;
    waiting.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_login_is_reported_and_retried_until_it_succeeds() {
    let server = RedisServer::start(&["--appendonly", "no", "--requirepass", "right"]);
    let wrong = format!("redis://:wrong@127.0.0.1:{}/0", server.port());
    let mut waiting = WaitingRelay::with_store(&wrong).await;
    waiting.is_not_ready("WRONGPASS").await;
    assert!(!waiting.child.printed_output().contains("wrong@"), "{}", waiting.child.printed_output());
    let right = trunkline::store::redis::connection::RedisConnection::new(
        format!("redis://:right@127.0.0.1:{}/0", server.port()).parse().unwrap(),
        trunkline::store::redis::connection::RedisTimeouts::default(),
    );
    right.run::<()>(cmd("CONFIG").arg("SET").arg("requirepass").arg("wrong")).await.unwrap();
    waiting.resumes().await.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_permissions_are_reported_and_retried_until_granted() {
    let server = RedisServer::volatile();
    let rule = |words: &[&str]| cmd("ACL").arg("SETUSER").arg("ann").arg(words).clone();
    let operator = server.connection();
    operator.run::<()>(&rule(&["on", ">pw", "~*", "&*", "+@all", "-xadd"])).await.unwrap();
    let mut waiting = WaitingRelay::with_store(&format!("redis://ann:pw@127.0.0.1:{}/0", server.port())).await;
    waiting.is_not_ready("may not run what is needed").await;
    operator.run::<()>(&rule(&["+@all"])).await.unwrap();
    waiting.resumes().await.ends().await;
}

/// Checks that a start during this fault waits and shows the reason.
async fn is_waited_for(fault: RespFault, reason: &str) {
    let server = RedisServer::durable();
    let proxy = RespProxy::to(server.port()).await;
    proxy.set(fault);
    let mut waiting = WaitingRelay::with_store(&proxy.url()).await;
    waiting.is_not_ready(reason).await;
    proxy.clear();
    waiting.resumes().await.ends().await;
}

/// Every second error of the table, starting with `first`. Two tests share the table.
async fn errors_are_waited_for(first: usize) {
    for (commands, error) in ERRORS.into_iter().skip(first).step_by(2) {
        is_waited_for(RespFault { commands, reply: FaultReply::Error(error) }, error_code(error)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_replies_with_an_error_is_retried() {
    errors_are_waited_for(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_replies_with_another_error_is_retried() {
    errors_are_waited_for(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_closes_within_a_reply_is_retried() {
    for commands in [CommandMatch::Every, CommandMatch::All, CommandMatch::Named("EXEC"), CommandMatch::Named("INFO")] {
        is_waited_for(RespFault { commands, reply: FaultReply::Half }, "cannot be reached").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_too_old_is_reported_with_its_version_and_retried() {
    let reply = FaultReply::Text("redis_version:6.2.14");
    is_waited_for(RespFault { commands: CommandMatch::Named("INFO"), reply }, "Redis 6.2.14; 7 or later").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_at_once_is_retried() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(drop));
    let mut waiting = WaitingRelay::with_store(&url(port)).await;
    waiting.is_not_ready("cannot be reached").await;
    waiting.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_login_is_reported_and_retried_until_none_is_required() {
    let server = RedisServer::start(&["--appendonly", "no", "--requirepass", "right"]);
    let mut waiting = WaitingRelay::with_store(&server.url()).await;
    waiting.is_not_ready("NOAUTH").await;
    let operator = trunkline::store::redis::connection::RedisConnection::new(
        format!("redis://:right@127.0.0.1:{}/0", server.port()).parse().unwrap(),
        trunkline::store::redis::connection::RedisTimeouts::default(),
    );
    operator.run::<()>(cmd("CONFIG").arg("SET").arg("requirepass").arg("")).await.unwrap();
    waiting.resumes().await.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_of_another_kind_of_server_is_refused_with_its_reason() {
    let server = RedisServer::volatile();
    let sentinel = RedisServer::sentinel(&server);
    let nodes = RedisServer::cluster().await;
    for (url, reason) in [
        (url(sentinel.port()), "unknown command"),
        (url(nodes[0].port()), "MOVED"),
        (format!("redis-cluster://127.0.0.1:{}", server.port()), "cluster support disabled"),
        (format!("redis+sentinel://127.0.0.1:{}/main", server.port()), "unknown command"),
        (format!("redis+sentinel://127.0.0.1:{}/other", sentinel.port()), "unknown to the Sentinel"),
    ] {
        let mut waiting = WaitingRelay::with_store(&url).await;
        waiting.is_not_ready(reason).await;
        waiting.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_directory_is_retried() {
    let site = Site::start().await;
    let place = site.folder.path().join("place");
    fs::write(&place, "a file where a directory should be").unwrap();
    site.write(&place, &[]);
    let mut waiting = WaitingRelay::start(site);
    waiting.is_not_ready(&format!("{} is a file where a directory is expected", place.display())).await;
    fs::remove_file(&place).unwrap();
    let waiting = waiting.resumes().await;
    assert!(place.is_dir() && waiting.site.folder.path().is_dir());
    waiting.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_used_by_another_process_is_retried_until_it_is_released() {
    for signal in ["TERM", "KILL"] {
        let site = Site::start().await;
        let mut first = RelayProcess::live(&site).await;
        let mut second = WaitingRelay::start(site);
        let holder = format!("{} is in use by process {}", second.site.store().display(), first.child.id());
        second.is_not_ready(&holder).await;
        second.site.platform.emit(1);
        first.wait_for_number(1).await;
        first.child.signal(signal);
        eventually("the first process has ended", WAIT_MAX, async || first.child.has_ended().map(drop)).await;
        let WaitingRelay { site, child, consumers, admin } = second.resumes().await;
        site.platform.emit(1);
        RelayProcess { consumers, admin, child }.wait_for_number(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_file_that_changes_is_read_again_at_the_start_and_while_it_runs() {
    let server = RedisServer::start(&["--appendonly", "no", "--requirepass", "first"]);
    let site = Site::start().await;
    site.use_redis(&server.url());
    let file = site.folder.path().join("redis-password");
    let key = format!("kind = \"redis\"\npassword = {{ file = \"{}\" }}\n", file.display());
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("kind = \"redis\"\n", &key)).unwrap();
    fs::write(&file, "not-yet\n").unwrap();
    let mut waiting = WaitingRelay::start(site);
    waiting.is_not_ready("WRONGPASS").await;
    fs::write(&file, "first\n").unwrap();
    let WaitingRelay { site, child, consumers, admin } = waiting.resumes().await;
    let relay = RelayProcess { child, consumers, admin };

    let operator = trunkline::store::redis::connection::RedisConnection::new(
        format!("redis://:first@127.0.0.1:{}/0", server.port()).parse().unwrap(),
        trunkline::store::redis::connection::RedisTimeouts::default(),
    );
    operator.run::<()>(cmd("CONFIG").arg("SET").arg("requirepass").arg("second")).await.unwrap();
    fs::write(&file, "second\n").unwrap();
    for kind in ["pubsub", "normal"] {
        operator.run::<i64>(cmd("CLIENT").arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes")).await.unwrap();
    }
    site.platform.emit(1);
    relay.wait_for_number(1).await;
    relay.wait_until_live().await;
    assert!(!relay.child.printed_output().contains("not-yet"), "{}", relay.child.printed_output());
}
