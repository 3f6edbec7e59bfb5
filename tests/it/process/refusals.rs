//! What the program refuses, how it says so, and with which exit code.

use std::{fs, path::Path, time::Duration};

use trunkline::{
    clock,
    simulator::{Dialect, Settings},
};

use super::{
    child::Child,
    relay::Relay,
    site::{STREAM, Site},
};

/// No refusal takes longer on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// Runs to the end: exit code, standard output, standard error.
async fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut child = Child::start(folder, arguments);
    let code = child.ends(Duration::from_secs(30)).await;
    (code, child.stdout(), child.stderr())
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_told_at_once() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let expected = fs::read_to_string(golden.join("several-mistakes-at-once.txt")).unwrap();
    let file = golden.join("several-mistakes-at-once.toml");
    let folder = tempfile::tempdir().unwrap();
    for command in ["run", "check"] {
        let (code, out, err) = run(folder.path(), &[command, "--config", file.to_str().unwrap()]).await;
        assert_eq!((code, out.as_str()), (2, ""), "{command}: {err}");
        let shown = err.replace(&format!("{}/", golden.display()), "");
        assert_eq!(shown.trim_end(), expected.trim_end(), "{command}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "only what was printed: nothing was started");
}

#[tokio::test]
async fn a_listener_that_others_can_reach_is_refused_with_the_reason() {
    let site = Site::start().await;
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replacen("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:8080\"", 1)).unwrap();
    for command in ["run", "check"] {
        let (code, _, err) = run(site.folder.path(), &[command, "--config", site.config()]).await;
        assert_eq!(code, 2);
        assert!(err.contains("http.listen: 0.0.0.0:8080 can be reached from other machines"), "{err}");
        assert!(err.contains("cannot authenticate consumers"), "{err}");
    }
}

#[tokio::test]
async fn bad_usage_and_missing_files_are_told_with_two() {
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
async fn a_listener_in_use_is_told_with_its_key() {
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
async fn a_check_with_connections_tells_each_part_that_it_tried() {
    let site = Site::start().await;
    let (code, out, err) = connect(&site).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for line in ["ok      store: ", "ok      account demo: has a token", "ok      stream calls: opened and closed"] {
        assert_eq!(out.lines().filter(|found| found.starts_with(line)).count(), 1, "{line}\n{out}");
    }
    let tally = site.platform.tally();
    assert_eq!((tally.grants_total(), tally.sockets(Dialect::Sequenced).open), (1, 0));
}

#[tokio::test]
async fn a_check_beside_a_running_relay_leaves_it_alone() {
    let site = Site::start().await;
    let relay = Relay::live(&site).await;
    let (code, out, err) = connect(&site).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let holder = format!("is in use by a running daemon (process {}", relay.child.id());
    assert!(out.contains(&holder), "{out}");
    site.platform.say(2);
    relay.holds(2).await;
}

#[tokio::test]
async fn a_wrong_secret_is_told_as_soon_as_the_platform_said_so() {
    let site = Site::start_with(Settings::default(), &[]).await;
    fs::write(site.folder.path().join("client-secret"), "not-it").unwrap();
    let began = clock::now();
    let (code, out, err) = connect(&site).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert!(out.contains("failed  account demo: ") && out.contains("invalid_client"), "{out}");
    assert!(out.contains(&format!("failed  stream {STREAM}: ")), "{out}");
    assert_eq!(err, "error: 2 of the parts cannot be used, for the reasons above\n");
    assert!(!out.contains("not-it"));
}

#[tokio::test]
async fn a_platform_that_nobody_answers_for_is_told_with_the_cause() {
    let site = Site::start().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace(&site.platform.address().to_string(), &nobody.to_string())).unwrap();
    let began = clock::now();
    let (code, out, err) = connect(&site).await;
    assert_eq!(code, 3, "{out}{err}");
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert!(out.contains("failed  account demo: ") && out.contains("refused"), "{out}");
}
