//! Tests of the documentation: every fenced block is exercised, and an unknown block fails.
//!
//! A `toml` block is a complete configuration or a script of faults. An `sh` block is run line by line with real
//! processes; a running demo replaces the documented ports, and a simulated platform replaces the real one. A `json` block
//! is JSON. A block without an info string is a drawing.

mod block;
mod faults;
mod line;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use trunkline::{clock, simulator};

use self::{
    block::{CodeBlock, blocks},
    line::{ReadmeAction, ReadmeAddresses, SIMULATOR, Termination, parse_line},
};
use crate::process::child::{Child, WAIT_MAX};

/// All documents for users in the repository.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut documents: Vec<PathBuf> = docs.filter(|path| path.extension().is_some_and(|word| word == "md")).collect();
    documents.push(root.join("README.md"));
    documents.sort();
    documents
}

#[tokio::test]
async fn every_block_of_the_readme_works() {
    let stage = ReadmeFixture::start().await;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let mut exercised = 0;
        for block in blocks(&text) {
            let place = format!("{}:{}", document.display(), block.at_line);
            stage.run_block(&block, &place).await;
            exercised += 1;
        }
        assert_eq!(exercised > 0, text.contains("\n```"), "the examples of {} are exercised", document.display());
    }
}

#[tokio::test]
async fn the_configuration_for_the_simulator_connects_to_it() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/simulator.md")).unwrap();
    let configurations = blocks(&text).into_iter().filter(|block| block.text.contains("[accounts."));
    let [block]: [CodeBlock; 1] = configurations.collect::<Vec<_>>().try_into().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut platform = Child::start(folder.path(), &["simulate", "--listen", "127.0.0.1:0"]);
    platform.wait_for_output("token URL http://").await;
    let printed = platform.stdout();
    let (_, rest) = printed.split_once("http://").unwrap();
    let address = rest.split_whitespace().next().unwrap();
    fs::write(folder.path().join("trunkline.toml"), block.text.replace(SIMULATOR, address)).unwrap();
    let ports = [("TRUNKLINE__HTTP__LISTEN", "127.0.0.1:0"), ("TRUNKLINE__ADMIN__LISTEN", "127.0.0.1:0")];
    let variables: Vec<(&str, &str)> = SECRETS.into_iter().chain(ports).collect();
    let arguments = ["check", "--connect", "--config", "trunkline.toml"];
    let mut check = Child::start_with(folder.path(), &arguments, &variables);
    assert_eq!(check.wait_for_exit(WAIT_MAX).await, 0, "{}", check.printed_output());
    let out = check.stdout();
    for part in ["account acme", "stream conversations", "snapshot of conversations", "stream queues"] {
        assert!(out.contains(&format!("ok      {part}: ")), "{part}: {out}");
    }
}

/// The fixture for a document: a demo, a platform, a folder.
struct ReadmeFixture {
    folder: TempDir,
    places: ReadmeAddresses,
    platform: simulator::Simulator,
    /// Runs until the fixture is dropped.
    _demo: Child,
}

impl ReadmeFixture {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let platform = simulator::start(simulator::Settings { rate: 20.0, ..Default::default() }).await.unwrap();
        let ports = ["demo", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--rate", "100"];
        let mut demo = Child::start(folder.path(), &ports);
        demo.wait_for_output("curl -N").await;
        let printed = demo.stdout();
        let address = |before: &str| {
            let rest = printed.split_once(before).unwrap_or_else(|| panic!("{printed}")).1;
            rest.split(|c: char| c.is_whitespace() || c == '/').next().unwrap().to_owned()
        };
        let places =
            ReadmeAddresses { consumers: address("conversations --url http://"), admin: address("metrics   http://") };
        Self { folder, places, platform, _demo: demo }
    }

    async fn run_block(&self, block: &CodeBlock, place: &str) {
        match block.language.as_str() {
            "sh" => {
                for line in block.lines() {
                    let act = parse_line(&line, &self.places).unwrap_or_else(|why| panic!("{place}: {line}: {why}"));
                    self.run_action(act, &format!("{place}: {line}")).await;
                }
            }
            "toml" if block.text.contains("[[fault]]") => {
                simulator::FaultScript::parse(&block.text).unwrap_or_else(|error| panic!("{place}: {error:?}"));
            }
            "toml" => self.check(&block.text, place).await,
            "json" => drop(serde_json::from_str::<serde_json::Value>(&block.text).unwrap_or_else(|error| {
                panic!("{place}: {error}");
            })),
            "" => (),
            word => panic!("{place}: unknown block {word:?}"),
        }
    }

    async fn run_action(&self, act: ReadmeAction, line: &str) {
        match act {
            ReadmeAction::Find(path) => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
                assert!(path.exists(), "{line}: {} does not exist", path.display());
            }
            ReadmeAction::Run { command, termination: ends, expected_output: text } => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &command]).envs(self.variables());
                let mut child = Child::spawn(self.folder.path(), shell);
                match ends {
                    Termination::Exits => {
                        let code = child.wait_for_exit(WAIT_MAX).await;
                        assert_eq!(code, 0, "{line}\n{}", child.printed_output());
                        assert!(!child.stdout().trim().is_empty() && child.printed_output().contains(text), "{line}");
                    }
                    Termination::Never => expect_output(&mut child, text, line).await,
                }
            }
        }
    }

    /// Checks a configuration with test secrets, and keeps it for the next commands.
    async fn check(&self, text: &str, place: &str) {
        let file = self.folder.path().join("block.toml");
        fs::write(&file, self.supply_files(text)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(["check", "--config", "block.toml"]).envs(SECRETS);
        let mut child = Child::spawn(self.folder.path(), command);
        assert_eq!(child.wait_for_exit(WAIT_MAX).await, 0, "{place}: {}", child.printed_output());
        assert!(child.stdout().starts_with("The configuration is valid"), "{place}: {}", child.printed_output());
        let first = self.folder.path().join("trunkline.toml");
        if !first.exists() {
            fs::rename(file, first).unwrap();
        }
    }

    /// Moves secret files to the fixture's folder.
    fn supply_files(&self, text: &str) -> String {
        let secret = self.folder.path().join("secret");
        fs::write(&secret, "demo-secret").unwrap();
        let mut pieces = text.split("{ file = \"");
        let mut supplied = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (_, rest) = piece.split_once('"').expect("a path ends with a quote");
            supplied.push_str(&format!("{{ file = \"{}\"{rest}", secret.display()));
        }
        supplied
    }

    /// The secrets, and the simulated platform instead of the real one: no request leaves this machine.
    fn variables(&self) -> Vec<(String, String)> {
        let platform = self.platform.url();
        let steer = [
            ("TRUNKLINE__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
            ("TRUNKLINE__ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("TRUNKLINE__ACCOUNTS__ACME__TOKEN_URL", format!("{platform}/oauth/token")),
            ("TRUNKLINE__ACCOUNTS__ACME__API_URL", platform),
        ];
        let steer = steer.into_iter().map(|(name, value)| (name.to_owned(), value));
        steer.chain(SECRETS.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
    }
}

/// The secret that the simulated platform accepts.
const SECRETS: [(&str, &str); 2] = [("GENESYS_CLIENT_ID", "demo"), ("GENESYS_CLIENT_SECRET", "demo-secret")];

/// Waits until an endless command has printed the expected text.
async fn expect_output(child: &mut Child, text: &str, line: &str) {
    let until = clock::now() + WAIT_MAX;
    while !child.printed_output().contains(text) {
        assert!(child.has_ended().is_none(), "{line}: it ended\n{}", child.printed_output());
        assert!(clock::now() < until, "{line}: it did not print {text:?}\n{}", child.printed_output());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
