//! Logging never blocks the process, and each line is JSON unless the output is a terminal.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
};

use serde_json::Value;
use trunkline::simulator::{FaultTarget, PlatformFault, Settings, TokenFailure};

use super::{
    child::{WAIT_MAX, eventually},
    log::{assert_complete, pages},
    relay::{RelayProcess, client},
    site::{STREAM, Site},
};

/// A daemon whose standard error is a pipe. Only its first lines are read.
struct PipedRelay {
    process: Child,
    stderr: Option<BufReader<ChildStderr>>,
    consumers: String,
    admin: String,
}

impl PipedRelay {
    fn start(site: &Site, log: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(["run", "--config", site.config()]).env("TRUNKLINE_LOG", log).current_dir(site.folder.path());
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let runs = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "ended before it ran");
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "trunkline started" {
                break line;
            }
        };
        let address = |name: &str| format!("http://{}", runs[name].as_str().unwrap());
        Self { process, stderr: Some(stderr), consumers: address("consumers"), admin: address("admin") }
    }

    async fn dropped(&self) -> u64 {
        let page = client().get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("trunkline_log_lines_dropped_total "));
        line.expect("the metric exists from the start").parse().unwrap()
    }
}

impl Drop for PipedRelay {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn lines_that_standard_error_refuses_are_counted() {
    let site = Site::start().await;
    let mut relay = PipedRelay::start(&site, "debug");
    assert_eq!(relay.dropped().await, 0);
    relay.stderr = None;
    eventually("a line that the closed pipe refused is counted", WAIT_MAX, async || {
        // A refused request is a line at this level.
        let unknown = client().get(format!("{}/v1/streams/none/events", relay.consumers)).send().await.unwrap();
        assert_eq!(unknown.status(), 404);
        (relay.dropped().await > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_standard_error_blocks_nothing() {
    let site = Site::start().await;
    let mut relay = PipedRelay::start(&site, "debug");
    assert_eq!(relay.dropped().await, 0);
    let traffic = site.start_traffic(500);
    let pooled = reqwest::Client::builder().no_proxy().timeout(WAIT_MAX).build().unwrap();
    eventually("more lines than the pipe and the queue hold", WAIT_MAX * 2, async || {
        // A refused request is a line at this level.
        for _ in 0..500 {
            let unknown = pooled.get(format!("{}/v1/streams/none/events", relay.consumers)).send().await.unwrap();
            assert_eq!(unknown.status(), 404);
        }
        (relay.dropped().await > 0).then_some(())
    })
    .await;
    let healthy = client().get(format!("{}/healthz", relay.admin)).send().await.unwrap();
    assert_eq!(healthy.status(), 200);
    let last = traffic.stop().await;
    eventually("everything that was sent is in the log", WAIT_MAX, async || {
        let log = pages(&relay.consumers).await;
        (log.last().and_then(|entry| entry.number) == Some(last)).then(|| assert_complete(&log, last))
    })
    .await;
    let id = relay.process.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &id]).status().unwrap().success());
    let ended =
        eventually("it ends although its log is not read", WAIT_MAX, async || relay.process.try_wait().unwrap());
    assert!(ended.await.success());
    let mut rest = String::new();
    relay.stderr.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "dropped lines leave complete lines: {line}");
    }
}

#[tokio::test]
async fn lines_of_a_stream_and_of_an_account_name_it_at_every_level() {
    let rejected = PlatformFault::Token { failure: TokenFailure::InvalidClient, times: 1 };
    let refused = PlatformFault::Refuse { on: FaultTarget::All, status: 503, times: 9, retry_after: None };
    for (fault, kind, name) in [(rejected, "account", "demo"), (refused, "stream", STREAM)] {
        for level in ["debug", "warn", "error"] {
            let site = Site::start_with(Settings::default(), &["backoff = { breaker_after = 1 }"]).await;
            site.platform.inject(fault.clone());
            let child = RelayProcess::spawn(site.folder.path(), site.config(), &[("TRUNKLINE_LOG", level)]);
            let line = eventually("an error is logged", WAIT_MAX, async || {
                let log = child.stderr();
                let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                lines.into_iter().find(|line| line["level"] == "ERROR")
            })
            .await;
            assert_eq!(line["span"][kind], name, "{level}: {line}");
        }
    }
}

#[tokio::test]
async fn an_unknown_level_is_named_in_the_one_format_and_the_relay_runs() {
    let site = Site::start().await;
    for (given, named) in [("verbose", "unknown level \\\"verbose\\\""), ("\u{1b}[31mred", "unknown level")] {
        let variables = [("TRUNKLINE_LOG", given)];
        let relay = RelayProcess::start_with(&site, &variables).await;
        let log = relay.child.stderr();
        assert!(log.contains(named), "{log}");
        for line in log.lines() {
            let read: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(read["level"].is_string() && !line.contains('\u{1b}'), "{line}");
        }
    }
}
