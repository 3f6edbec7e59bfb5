//! Maps each command of a document to an action. Rejects an unknown command, so that none is skipped.

/// The addresses of the test's demo.
#[derive(Debug, Clone)]
pub(super) struct ReadmeAddresses {
    pub(super) consumers: String,
    pub(super) admin: String,
}

/// The action for a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadmeAction {
    /// Only check that the file exists: the command takes long, needs a cluster or a container engine, or runs this test.
    Find(String),
    Run {
        command: String,
        termination: Termination,
        /// Required part of its output.
        expected_output: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Termination {
    Exits,
    Never,
}

/// The documented addresses.
const CONSUMERS: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:9090";
/// The address of the simulated platform in `docs/simulator.md`.
pub(super) const SIMULATOR: &str = "127.0.0.1:9400";

/// The commands of the program: the first words, whether it ends, and a part of its output.
const COMMANDS: [(&str, Termination, &str); 12] = [
    ("--help", Termination::Exits, "Usage: trunkline"),
    ("demo", Termination::Never, "Try in another terminal:"),
    ("simulate", Termination::Never, "token URL http://127.0.0.1:"),
    ("run", Termination::Never, "trunkline started"),
    ("tail", Termination::Never, "\"specversion\":\"1.0\""),
    ("status", Termination::Exits, "conversations"),
    ("check", Termination::Exits, "The configuration is valid"),
    ("config schema", Termination::Exits, "\"$schema\""),
    ("config show", Termination::Exits, "client_secret = \"***\""),
    ("completions", Termination::Exits, "trunkline"),
    ("bench", Termination::Exits, "append"),
    ("token mint", Termination::Exits, "eyJ"),
];

/// The key that `token mint` signs with, in place of one in the configuration.
const TOKEN_SETTINGS: &str = "env TEST_KEY=0123456789abcdef0123456789abcdef \
    TRUNKLINE__HTTP__AUTH__JWT='{ hmac = { env = \"TEST_KEY\" } }' ";

/// Reads a line.
pub(super) fn parse_line(line: &str, places: &ReadmeAddresses) -> Result<ReadmeAction, String> {
    if line.contains(['|', ';', '&', '>', '`']) && !line.contains('\'') && !line.contains('"') {
        return Err("only single commands are run".to_owned());
    }
    let line =
        line.replace(SIMULATOR, "127.0.0.1:0").replace(CONSUMERS, &places.consumers).replace(ADMIN, &places.admin);
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some("./test"), _) => Ok(ReadmeAction::Find("test".to_owned())),
        (Some("docker"), Some("compose")) => Ok(ReadmeAction::Find("docker-compose.yml".to_owned())),
        (Some("docker"), Some("build")) => Ok(ReadmeAction::Find("Dockerfile".to_owned())),
        (Some("kubectl"), Some("apply")) => Ok(ReadmeAction::Find(format!("{}/kustomization.yaml", last(&line)))),
        (Some(script), _) if script.starts_with("deploy/") => Ok(ReadmeAction::Find(script.to_owned())),
        (Some("cargo"), Some("bench")) => Ok(ReadmeAction::Find(named(&line, "--bench", "benches", "rs")?)),
        (Some("cargo"), Some("fuzz")) => Ok(ReadmeAction::Find(named(&line, "run", "fuzz/fuzz_targets", "rs")?)),
        (Some("cargo"), Some("run")) => match line.split_once(" -- ") {
            Some((_, rest)) => program(rest, places),
            None => Ok(ReadmeAction::Find(named(&line, "--example", "examples", "rs")?)),
        },
        (Some("trunkline"), Some(_)) => program(line.trim_start_matches("trunkline "), places),
        (Some("curl"), Some(_)) => Ok(curl(&line)),
        _ => Err("the test does not know this command".to_owned()),
    }
}

fn last(line: &str) -> &str {
    line.split_whitespace().next_back().unwrap_or_default()
}

/// The file for the name behind a word; the folder if there is no name.
fn named(line: &str, word: &str, folder: &str, extension: &str) -> Result<String, String> {
    let mut words = line.split_whitespace().skip_while(|found| *found != word).skip(1);
    match words.next() {
        Some(name) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            Ok(format!("{folder}/{name}.{extension}"))
        }
        Some(name) => Err(format!("{name:?} is not a name")),
        None => Ok(folder.to_owned()),
    }
}

/// A command of the program, with the test's addresses instead of the default ones.
fn program(rest: &str, places: &ReadmeAddresses) -> Result<ReadmeAction, String> {
    let known = COMMANDS.iter().find(|(command, _, _)| rest.starts_with(command));
    let (command, mut ends, text) = *known.ok_or_else(|| format!("trunkline has no known command in {rest:?}"))?;
    let mut arguments = rest.to_owned();
    let mut add = |option: &str, value: &str| {
        if !rest.contains(option) {
            arguments.push_str(&format!(" {option} {value}"));
        }
    };
    match command {
        "demo" => {
            add("--http", "127.0.0.1:0");
            add("--admin", "127.0.0.1:0");
        }
        "tail" => add("--url", &format!("http://{}", places.consumers)),
        "status" => add("--url", &format!("http://{}", places.admin)),
        _ => (),
    }
    if rest.contains("--watch") {
        ends = Termination::Never;
    }
    let settings = if command == "token mint" { TOKEN_SETTINGS } else { "" };
    let command = format!("exec {settings}'{}' {arguments}", env!("CARGO_BIN_EXE_trunkline"));
    Ok(ReadmeAction::Run { command, termination: ends, expected_output: text })
}

/// A `curl` command. An HTTP error fails the test.
fn curl(line: &str) -> ReadmeAction {
    let endless = line.split_whitespace().any(|word| word == "-N" || word == "--no-buffer");
    let ends = if endless { Termination::Never } else { Termination::Exits };
    let command = format!("exec {}", line.replacen("curl ", "curl --fail-with-body --max-time 25 ", 1));
    ReadmeAction::Run {
        command,
        termination: ends,
        expected_output: if endless { "\"specversion\":\"1.0\"" } else { "" },
    }
}

#[test]
fn each_kind_of_line_is_understood() {
    let places = ReadmeAddresses { consumers: "127.0.0.1:1".to_owned(), admin: "127.0.0.1:2".to_owned() };
    let run = |line: &str| match parse_line(line, &places).unwrap() {
        ReadmeAction::Run { command, termination: ends, .. } => {
            (command.replace(&format!("'{}'", env!("CARGO_BIN_EXE_trunkline")), "T"), ends == Termination::Never)
        }
        ReadmeAction::Find(path) => (path, false),
    };
    for (line, done, endless) in [
        ("./test", "test", false),
        ("docker compose stop replica-a", "docker-compose.yml", false),
        ("kubectl apply --kustomize deploy/kubernetes", "deploy/kubernetes/kustomization.yaml", false),
        ("deploy/redis-memory 20000 1200", "deploy/redis-memory", false),
        ("cargo bench", "benches", false),
        ("cargo bench --bench log", "benches/log.rs", false),
        ("cargo fuzz run cursor", "fuzz/fuzz_targets/cursor.rs", false),
        ("cargo run --example mutants", "examples/mutants.rs", false),
        ("cargo run --release -- demo", "exec T demo --http 127.0.0.1:0 --admin 127.0.0.1:0", true),
        ("trunkline simulate --listen 127.0.0.1:9400", "exec T simulate --listen 127.0.0.1:0", true),
        ("trunkline status", "exec T status --url http://127.0.0.1:2", false),
        ("trunkline status --watch", "exec T status --watch --url http://127.0.0.1:2", true),
        ("trunkline tail q --url http://127.0.0.1:8080", "exec T tail q --url http://127.0.0.1:1", true),
        (
            "curl -N 'http://127.0.0.1:8080/v1/events?stream=a&stream=b'",
            "exec curl --fail-with-body --max-time 25 -N 'http://127.0.0.1:1/v1/events?stream=a&stream=b'",
            true,
        ),
    ] {
        assert_eq!(run(line), (done.to_owned(), endless), "{line}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let places = ReadmeAddresses { consumers: String::new(), admin: String::new() };
    for line in [
        "docker run x",
        "kubectl delete pod x",
        "trunkline fly",
        "trunkline",
        "cargo bench --bench ../x",
        "curl x | sh",
        "ls",
    ] {
        assert!(parse_line(line, &places).is_err(), "{line}");
    }
}
