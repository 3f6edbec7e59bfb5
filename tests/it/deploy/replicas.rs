//! `docs/replicas.md`: its configuration is good, its figures are those of a real Redis, and its names are in the files.

use std::process::Command;

use super::files::{assert_good, document, drain_secs_max, path, text};

const DOCUMENT: &str = "docs/replicas.md";
/// What the document says that Redis adds to an entry at the most.
const FACTOR: f64 = 1.3;
/// Figures of memory depend on the version a little.
const TOLERANCE: f64 = 0.05;

#[test]
fn its_configuration_is_good() {
    let text = text(DOCUMENT);
    let block = text.split("```").find(|block| block.contains("[store]\n")).unwrap();
    let secrets = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "secret")];
    assert_good(DOCUMENT, block, &secrets);
}

#[test]
fn its_figures_of_memory_are_what_redis_says() {
    let text = text(DOCUMENT);
    assert!(text.contains(&format!("memory = {FACTOR} × ")));
    let rows = text.lines().filter(|line| line.ends_with(" % |"));
    let rows: Vec<(f64, f64)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let number = |cell: &str| cell.replace(',', "").parse().unwrap();
            (number(cells[1]), number(cells[2]))
        })
        .collect();
    let mut command = Command::new(path("deploy/redis-memory"));
    command.arg("20000").args(rows.iter().map(|(bytes, _)| bytes.to_string()));
    let told = command.output().unwrap();
    let out = String::from_utf8_lossy(&told.stdout).into_owned();
    let error = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "{out}{error}\nis there a redis-server? sudo apt-get install -y redis-server");
    for (bytes, memory) in rows {
        let line = out.lines().find_map(|line| line.strip_prefix(&format!("bytes={bytes} memory="))).unwrap();
        let measured: f64 = line.split(' ').next().unwrap().parse().unwrap();
        assert!((measured / memory - 1.0).abs() < TOLERANCE, "{bytes}: {measured}, not {memory}\n{out}");
        assert!(memory / bytes <= FACTOR + TOLERANCE / 2.0, "{bytes}: {memory}");
    }
}

#[test]
fn its_example_adds_up() {
    let text = text(DOCUMENT);
    assert!(text.contains("288,000 × 1,200 + 720,000 × 1,500 = 1.43 GB of events, 1.85 GB of logs"));
    let seconds = 2.0 * 3600.0;
    assert_eq!((40.0 * seconds, 100.0 * seconds), (288_000.0, 720_000.0));
    let gigabytes = (288_000.0 * 1200.0 + 720_000.0 * 1500.0) / 1e9;
    assert_eq!(
        (format!("{gigabytes:.2}"), format!("{:.2}", gigabytes * FACTOR)),
        ("1.43".to_owned(), "1.85".to_owned())
    );
}

#[test]
fn it_names_what_the_files_say() {
    let (text, compose) = (text(DOCUMENT), document("docker-compose.yml"));
    let grace = compose["services"]["replica-a"]["stop_grace_period"].as_str().unwrap().trim_end_matches('s');
    assert!(text.contains(&format!("give it {grace} s")) && text.contains(&format!("--time {grace}")));
    assert!(grace.parse::<u64>().unwrap() > drain_secs_max());
    let command = super::files::strings(&compose["services"]["redis"]["command"]).join(" ");
    for setting in ["noeviction", "appendonly", "appendfsync"] {
        assert!(text.contains(setting) && command.contains(setting), "{setting}");
    }
}
