//! The alert rules: checked by `promtool` and its unit tests, and evaluated by a real Prometheus that scrapes a relay with
//! token lifetimes of seconds.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use serde_json::Value;
use trunkline::simulator::{PlatformFault, Settings};

use super::files::{document, free, path, text};
use crate::process::{
    RelayProcess, Site,
    child::{Child, WAIT_MAX, eventually},
    client,
};

const RULES: &str = "deploy/prometheus/trunkline.rules.yml";
/// Token lifetime of the live test, and the number of renewals.
const TOKEN_TTL: Duration = Duration::from_secs(4);
const ROTATIONS: f64 = 3.0;

/// All alerts.
fn rules() -> Vec<Value> {
    let groups = document(RULES)["groups"].take();
    groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn unit_tests() -> Vec<PathBuf> {
    let folder = fs::read_dir(path("deploy/prometheus/tests")).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}

/// Runs `promtool`, which must succeed.
fn promtool(arguments: &[&str], files: &[PathBuf]) {
    let output = Command::new("promtool").args(arguments).args(files).output();
    let output = output.unwrap_or_else(|error| panic!("promtool: {error}; sudo apt-get install -y prometheus"));
    let out = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}:\n{out}");
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_pass() {
    promtool(&["check", "rules"], &[path(RULES)]);
    promtool(&["test", "rules"], &unit_tests());
}

#[test]
fn promtool_accepts_every_configuration() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(path(RULES), folder.path().join("trunkline.rules.yml")).unwrap();
    let files = [
        "deploy/prometheus/prometheus.yml",
        "deploy/prometheus/prometheus-kubernetes.yml",
        "deploy/compose/prometheus.yml",
    ];
    for (index, file) in files.into_iter().enumerate() {
        let copy = folder.path().join(format!("{index}.yml"));
        fs::copy(path(file), &copy).unwrap();
        promtool(&["check", "config"], &[copy]);
        assert_eq!(document(file)["scrape_configs"][0]["job_name"], "trunkline", "{file}: the rules use this job");
    }
}

#[test]
fn every_alert_has_a_description_and_tests_for_firing_and_silent() {
    let tests: String = unit_tests().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(rule["annotations"]["summary"].is_string() && rule["annotations"]["description"].is_string(), "{name}");
        let firing = format!("alertname: {name}\n        exp_alerts:");
        assert!(tests.contains(&firing), "no test expects {name} to fire");
    }
    assert!(tests.contains("count_over_time(ALERTS{alertstate=\"firing\"}[20m])"), "rotations fire no alert");
}

/// With an unknown metric or label value, an alert would never fire.
#[test]
fn the_rules_use_only_existing_metrics_and_labels() {
    let golden = text("tests/golden/metrics.txt");
    for rule in rules() {
        let expression = rule["expr"].as_str().unwrap();
        for metric in words(expression).filter(|word| word.starts_with("trunkline_")) {
            assert!(golden.contains(&format!("\n# TYPE {metric} ")), "{expression}: unknown metric {metric}");
        }
        for value in expression.split('"').skip(1).step_by(2).filter(|value| *value != "trunkline") {
            for word in value.split('|') {
                assert!(golden.contains(&format!("=\"{word}\"")), "{expression}: unknown label value {word:?}");
            }
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[tokio::test]
async fn a_real_prometheus_scrapes_every_metric_and_fires_no_alert_while_tokens_rotate() {
    let settings = Settings { token_ttl: TOKEN_TTL, ..Settings::default() };
    let site = Site::start_with(settings, &[]).await;
    let relay = RelayProcess::live(&site).await;
    let traffic = site.start_traffic(100);
    // The metrics of durable consumers exist with the first consumer.
    let page = format!("{}/v1/streams/calls/events?consumer=audit", relay.consumers);
    assert!(client().get(page).send().await.unwrap().status().is_success());
    let prometheus = Prometheus::start(&site, &relay.admin).await;

    let rotations = "sum(trunkline_stream_rotations_total{outcome=\"completed\",trigger=\"token\"})";
    eventually("tokens rotate, and Prometheus sees it", WAIT_MAX, async || {
        prometheus.value(rotations).await.filter(|count| *count >= ROTATIONS)
    })
    .await;
    prometheus.knows_every_metric().await;
    prometheus.can_evaluate_every_rule().await;
    assert_eq!(prometheus.value("up{job=\"trunkline\"}").await, Some(1.0));
    assert_eq!(prometheus.value("count(count_over_time(ALERTS{alertstate=\"firing\"}[5m]))").await, None);

    // Prove that the alerts work: missing events fire one.
    site.platform.inject(PlatformFault::Jump { n: 5 });
    let gap = "ALERTS{alertname=\"TrunklineGapMarked\",alertstate=\"firing\",reason=\"jump\"}";
    eventually("the gap fires its alert", WAIT_MAX, async || prometheus.value(gap).await).await;
    traffic.stop().await;
}

/// A Prometheus with the alert rules that scrapes a relay every second.
struct Prometheus {
    url: String,
    _server: Child,
}

impl Prometheus {
    async fn start(site: &Site, admin: &str) -> Self {
        let folder = site.folder.path();
        let target = admin.trim_start_matches("http://");
        let config = text("deploy/prometheus/prometheus.yml").replace("127.0.0.1:9090", target).replace("15s", "1s");
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        fs::copy(path(RULES), folder.join("trunkline.rules.yml")).unwrap();
        let [listen] = free();
        let mut command = Command::new("prometheus");
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]);
        command.arg(format!("--web.listen-address={listen}"));
        let found = Command::new("prometheus").arg("--version").output().is_ok();
        assert!(found, "Prometheus is not installed; sudo apt-get install -y prometheus");
        let prometheus = Self { url: format!("http://{listen}"), _server: Child::spawn(folder, command) };
        eventually("Prometheus is ready", WAIT_MAX, async || {
            let ready = client().get(format!("{}/-/ready", prometheus.url)).send().await.ok()?;
            ready.status().is_success().then_some(())
        })
        .await;
        prometheus
    }

    async fn api(&self, what: &str, query: &[(&str, &str)]) -> Value {
        let answer = client().get(format!("{}/api/v1/{what}", self.url)).query(query).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["status"], "success", "{what} {query:?}: {answer}");
        answer["data"].clone()
    }

    /// The first sample of a query's result.
    async fn value(&self, query: &str) -> Option<f64> {
        let found = self.api("query", &[("query", query)]).await;
        found.pointer("/result/0/value/1")?.as_str()?.parse().ok()
    }

    async fn knows_every_metric(&self) {
        let names = self.api("label/__name__/values", &[]).await;
        let names: BTreeSet<&str> = names.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let golden = text("tests/golden/metrics.txt");
        for declared in golden.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = declared.split_once(' ').unwrap();
            let name = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
            assert!(names.contains(name.as_str()), "{name} is not scraped");
        }
    }

    async fn can_evaluate_every_rule(&self) {
        let groups = self.api("rules", &[]).await["groups"].take();
        let seen: Vec<Value> =
            groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        assert_eq!(seen.len(), rules().len());
        for rule in seen {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
}
