//! Errors of the program: their messages and exit codes.

use std::{fs, path::Path, time::Duration};

use trunkline::{
    clock,
    simulator::{Settings, SocketDialect},
};

use super::{
    child::Child,
    relay::RelayProcess,
    site::{STREAM, Site},
};

/// Longest time to an error exit on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// Runs a command. Returns exit code, standard output and standard error.
async fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut child = Child::start(folder, arguments);
    let code = child.wait_for_exit(Duration::from_secs(30)).await;
    (code, child.stdout(), child.stderr())
}

#[tokio::test]
async fn all_configuration_errors_are_reported_at_once() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let expected = fs::read_to_string(golden.join("several-errors-at-once.txt")).unwrap();
    let file = golden.join("several-errors-at-once.toml");
    let folder = tempfile::tempdir().unwrap();
    for command in ["run", "check"] {
        let (code, out, err) = run(folder.path(), &[command, "--config", file.to_str().unwrap()]).await;
        assert_eq!((code, out.as_str()), (2, ""), "{command}: {err}");
        let shown = err.replace(&format!("{}/", golden.display()), "");
        assert_eq!(shown.trim_end(), expected.trim_end(), "{command}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "only the output files: nothing was started");
}

#[tokio::test]
async fn a_listener_that_others_can_reach_is_refused_with_the_reason() {
    let site = Site::start().await;
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replacen("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:8080\"", 1)).unwrap();
    for command in ["run", "check"] {
        let (code, _, err) = run(site.folder.path(), &[command, "--config", site.config()]).await;
        assert_eq!(code, 2);
        assert!(err.contains("http.listen: 0.0.0.0:8080 is reachable from other machines"), "{err}");
        assert!(err.contains("consumers do not authenticate"), "{err}");
    }
}

#[tokio::test]
async fn bad_usage_and_missing_files_exit_with_two() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, word) in [
        (vec!["run"], "--config"),
        (vec!["fly"], "unrecognized subcommand"),
        (vec!["run", "--config", "nowhere.toml"], "nowhere.toml"),
        (vec!["tail", "Queues"], "Queues"),
    ] {
        let (code, out, err) = run(folder.path(), &arguments).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(word), "{arguments:?}: {err}");
    }
}

#[tokio::test]
async fn a_listener_in_use_is_reported_with_its_key() {
    let site = Site::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replacen("127.0.0.1:0", &address, 1)).unwrap();
    let (code, _, err) = run(site.folder.path(), &["run", "--config", site.config()]).await;
    assert_eq!(code, 1);
    assert!(err.contains(&format!("error: http.listen: cannot listen on {address}\n  because: ")), "{err}");
}

async fn connect(site: &Site) -> (i32, String, String) {
    run(site.folder.path(), &["check", "--connect", "--config", site.config()]).await
}

#[tokio::test]
async fn a_check_with_connections_reports_each_part() {
    let site = Site::start().await;
    let (code, out, err) = connect(&site).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for line in ["ok      store: ", "ok      account demo: token received", "ok      stream calls: opened and closed"] {
        assert_eq!(out.lines().filter(|found| found.starts_with(line)).count(), 1, "{line}\n{out}");
    }
    let counters = site.platform.counters();
    assert_eq!((counters.grants_total(), counters.sockets(SocketDialect::Sequenced).open), (1, 0));
}

#[tokio::test]
async fn a_check_does_not_disturb_a_running_relay() {
    let site = Site::start().await;
    let relay = RelayProcess::live(&site).await;
    let (code, out, err) = connect(&site).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let holder = format!("is in use by a running daemon (process {}", relay.child.id());
    assert!(out.contains(&holder), "{out}");
    site.platform.emit(2);
    relay.wait_for_number(2).await;
}

#[tokio::test]
async fn a_wrong_secret_is_reported_as_soon_as_the_platform_rejects_it() {
    let site = Site::start_with(Settings::default(), &[]).await;
    fs::write(site.folder.path().join("client-secret"), "not-it").unwrap();
    let began = clock::now();
    let (code, out, err) = connect(&site).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert!(out.contains("failed  account demo: ") && out.contains("invalid_client"), "{out}");
    assert!(out.contains(&format!("skipped stream {STREAM}: account demo has no token\n")), "{out}");
    assert_eq!(err, "error: 1 of the checks above failed\n");
    assert!(!out.contains("not-it"));
}

#[tokio::test]
async fn an_unreachable_platform_is_reported_with_the_cause() {
    let site = Site::start().await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace(&site.platform.address().to_string(), &unused.to_string())).unwrap();
    let began = clock::now();
    let (code, out, err) = connect(&site).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    let asked = format!("failed  account demo: POST http://{unused}/oauth/token (accounts.demo.token_url): ");
    assert!(out.contains(&asked) && out.contains("refused"), "{out}");
}

#[tokio::test]
async fn a_wrong_token_url_path_is_reported_and_not_mistaken_for_wrong_credentials() {
    let site = Site::start().await;
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace("/oauth/token", "/nope")).unwrap();
    let (code, out, err) = connect(&site).await;
    assert_eq!(code, 3, "{out}{err}");
    let address = site.platform.address();
    let failed = format!("failed  account demo: POST http://{address}/nope (accounts.demo.token_url): answered 404");
    assert!(out.contains(&failed) && !out.contains("credentials"), "{out}");
}

#[tokio::test]
async fn a_socket_that_cannot_be_opened_is_reported_with_its_url_and_key() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let platform = Site::start().await;
    let address = platform.platform.address();
    for (url, cause) in [(format!("ws://{unused}/x"), "TCP connection to"), (format!("ws://{address}/nope"), "404")] {
        let site = Site::start().await;
        let text = fs::read_to_string(site.config()).unwrap();
        let at = text.find("\nurl = ").unwrap() + 1;
        let line = text[at..].lines().next().unwrap();
        fs::write(site.config(), text.replace(line, &format!("url = \"{url}?key=hunter2\""))).unwrap();
        let (code, out, err) = connect(&site).await;
        assert_eq!(code, 3, "{out}{err}");
        let failed =
            out.lines().find(|line| line.starts_with("failed  stream calls: ")).unwrap_or_else(|| panic!("{out}"));
        assert!(failed.contains(&format!("{url} (streams.calls.url)")) && failed.contains(cause), "{failed}");
        assert!(!out.contains("hunter2"), "{out}");
    }
}

#[tokio::test]
async fn a_snapshot_url_is_requested_once_by_a_check() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let site = Site::start().await;
    let address = site.platform.address();
    let good = format!("http://{address}/api/v2/analytics/conversations/summary");
    for (url, expected, line) in [
        (good, 0, "ok      snapshot of calls: answered with 200".to_owned()),
        (
            format!("http://{unused}/x"),
            3,
            format!("failed  snapshot of calls: streams.calls.snapshot_url: http://{unused}/x: "),
        ),
        (
            format!("http://{address}/nope"),
            3,
            "failed  snapshot of calls: streams.calls.snapshot_url: answered with 404".to_owned(),
        ),
    ] {
        site.write(&site.store(), &[&format!("snapshot_url = \"{url}\"")]);
        let (code, out, err) = connect(&site).await;
        assert_eq!(code, expected, "{url}: {out}{err}");
        assert!(out.lines().any(|found| found.starts_with(&line)), "{line}: {out}");
    }
}

#[tokio::test]
async fn a_log_filter_that_cannot_be_used_stops_neither_a_check_nor_the_daemon() {
    let site = Site::start().await;
    let variables = [("TRUNKLINE_LOG", "verbose")];
    let complaint = "unknown level";
    let mut check = Child::start_with(site.folder.path(), &["check", "--config", site.config()], &variables);
    assert_eq!(check.wait_for_exit(BOUND).await, 0, "{}", check.printed_output());
    assert!(check.stdout().starts_with("warning: log filter ") && check.stdout().contains(complaint));
    let relay = RelayProcess::start_with(&site, &variables).await;
    assert!(relay.child.stderr().contains(complaint), "{}", relay.child.stderr());
}
