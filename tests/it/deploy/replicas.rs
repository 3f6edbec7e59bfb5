//! `docs/replicas.md`: its configuration is valid, its figures match a real Redis, and its names match the files.

use std::{fs, process::Command};

use super::files::{assert_good, document, drain_secs_max, path, text};
use crate::harness::{RedisServer, documented_rules};

const DOCUMENT: &str = "docs/replicas.md";
/// Documented memory per byte of an entry, for each size of nodes.
const FACTORS: [(u32, f64); 2] = [(4_096, 1.55), (16_384, 1.15)];
/// Tolerance: memory depends on the version of Redis.
const TOLERANCE: f64 = 0.05;

#[test]
fn its_configuration_is_good() {
    let text = text(DOCUMENT);
    let block = text.split("```").find(|block| block.contains("[store]\n")).unwrap();
    let secrets = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "secret")];
    assert_good(DOCUMENT, block, &secrets);
}

/// Bytes of an entry and its memory.
fn figures(text: &str) -> Vec<(f64, [f64; 2])> {
    let (_, table) = text.split_once("| bytes of an entry |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let number = |cell: &str| cell.trim().replace(',', "").parse().unwrap();
    let row = |row: &str| {
        let cells: Vec<f64> = row.trim_matches('|').split('|').map(number).collect();
        (cells[0], [cells[1], cells[2]])
    };
    rows.map(row).collect()
}

#[test]
fn its_memory_figures_match_redis() {
    let text = text(DOCUMENT);
    assert!(text.contains("memory = 1.15 × Σ") && text.contains("it is up to 1.55"));
    let figures = figures(&text);
    assert!(figures.len() > 5);
    let mut command = Command::new(path("deploy/redis-memory"));
    command.arg("20000").args(figures.iter().map(|(bytes, _)| bytes.to_string()));
    let output = command.output().unwrap();
    let out = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{out}\nis there a redis-server? sudo apt-get install -y redis-server");
    for (bytes, figures) in figures {
        for ((node, factor), figure) in FACTORS.into_iter().zip(figures) {
            let start = format!("node={node} bytes={bytes} memory=");
            let measured: f64 = out.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap();
            assert!((measured / figure - 1.0).abs() < TOLERANCE, "{bytes}: {measured}, not {figure}\n{out}");
            assert!(figure / bytes <= factor, "{bytes}: {figure}");
        }
    }
}

#[test]
fn its_example_adds_up() {
    let text = text(DOCUMENT);
    assert!(text.contains("288,000 × 1,200 + 720,000 × 1,500 = 1.43 GB of events, 1.64 GB of logs"));
    let seconds = 2.0 * 3600.0;
    assert_eq!((40.0 * seconds, 100.0 * seconds), (288_000.0, 720_000.0));
    let gigabytes = (288_000.0 * 1200.0 + 720_000.0 * 1500.0) / 1e9;
    assert_eq!(
        (format!("{gigabytes:.2}"), format!("{:.2}", gigabytes * FACTORS[1].1)),
        ("1.43".to_owned(), "1.64".to_owned())
    );
}

#[test]
fn its_names_match_the_files() {
    let (text, compose) = (text(DOCUMENT), document("docker-compose.yml"));
    let grace = compose["services"]["replica-a"]["stop_grace_period"].as_str().unwrap().trim_end_matches('s');
    assert!(text.contains(&format!("give it {grace} s")) && text.contains(&format!("docker stop -t {grace}")));
    assert!(grace.parse::<u64>().unwrap() > drain_secs_max());
    assert!(text.contains(&format!("add up to {} s", drain_secs_max())));
    let deployment = document("deploy/kubernetes/deployment.yaml");
    let grace = &deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert!(text.contains(&format!("in Kubernetes {grace} s")), "{grace}");
    let command = super::files::strings(&compose["services"]["redis"]["command"]).join(" ");
    let (_, user) = text.split_once("\nACL SETUSER trunkline ").unwrap();
    let (user, _) = user.split_once("\n```").unwrap();
    let rules: Vec<_> = user.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    assert_eq!(rules, documented_rules(), "as in config/trunkline.toml");
    for setting in ["noeviction", "appendonly", "appendfsync", "stream-node-max-bytes"] {
        assert!(text.contains(setting) && command.contains(setting), "{setting}");
    }
}

#[test]
fn its_user_can_be_pasted_into_a_shell_and_into_the_prompt_of_redis_cli() {
    let document = text(DOCUMENT);
    let block = document.split("\n```").find_map(|block| block.strip_prefix("\nACL SETUSER ")).unwrap();
    assert_eq!(block.lines().count(), 1, "{block}");
    let server = RedisServer::volatile();
    let folder = tempfile::tempdir().unwrap();
    let typed = folder.path().join("typed");
    fs::write(&typed, format!("ACL SETUSER {block}\n")).unwrap();
    let port = server.port();
    for command in
        [format!("redis-cli -p {port} ACL SETUSER {block}"), format!("redis-cli -p {port} < '{}'", typed.display())]
    {
        let shell = |command: &str| {
            let output = Command::new("sh").args(["-c", command]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(shell(&command), "OK\n", "{command}");
        let user = shell(&format!("redis-cli -p {port} ACL GETUSER trunkline"));
        for rule in ["+unsubscribe", "+config|get", "~{trunkline:*", "&trunkline:*"] {
            assert!(user.contains(rule), "{rule}: {user}");
        }
        assert_eq!(shell(&format!("redis-cli -p {port} ACL DELUSER trunkline")), "1\n");
    }
}
