//! The Dockerfile. Without a container engine, `deploy/container-steps` executes its steps, with the test's binary
//! instead of the long build.

use std::{fs, path::Path, process::Command, time::Duration};

use tempfile::TempDir;
use trunkline::simulator::{self, Settings};

use super::files::{free, path, text};
use crate::process::{
    RelayProcess,
    child::{Child, WAIT_MAX, eventually},
    client,
};

/// The instructions, with continued lines joined.
fn instructions() -> Vec<String> {
    let dockerfile = text("Dockerfile");
    let lines: String =
        dockerfile.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let lines = lines.replace("\\\n", " ");
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The arguments of all instructions of one kind.
fn all(word: &str) -> Vec<String> {
    let rest = |line: String| Some(line.strip_prefix(word)?.strip_prefix(' ')?.to_owned());
    instructions().into_iter().filter_map(rest).collect()
}

#[test]
fn the_empty_targets_of_the_dependency_layer_are_those_of_the_manifest() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let step = &all("RUN")[0];
    let names = |section: &str| {
        manifest[section].as_array().unwrap().iter().map(|target| target["name"].as_str().unwrap().to_owned())
    };
    for bench in names("bench") {
        assert!(step.contains(&format!("benches/{bench}.rs")), "{step}");
    }
    for test in manifest["test"].as_array().unwrap() {
        assert!(step.contains(test["path"].as_str().unwrap()), "{step}");
    }
    assert!(step.contains("src/lib.rs") && step.contains("> src/main.rs"), "{step}");
    assert!(manifest["profile"]["dist"].is_table() && step.contains("--locked --profile dist"), "{step}");
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert_eq!(all("FROM")[0], format!("rust:{rust}-bookworm AS build"));
}

#[test]
fn the_build_context_has_only_the_copied_files() {
    let ignored = text(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"));
    let mut context: Vec<&str> = lines.map(|line| line.strip_prefix('!').unwrap()).collect();
    let copied = all("COPY");
    let copied = copied.iter().filter(|line| !line.starts_with("--from=build"));
    let mut copied: Vec<&str> =
        copied.flat_map(|line| line.split(' ').collect::<Vec<_>>().split_last().unwrap().1.to_vec()).collect();
    // The manifests of a folder are copied before the folder itself.
    copied.retain(|path| !path.starts_with("crates/"));
    context.sort_unstable();
    copied.sort_unstable();
    assert_eq!(context, copied);
    for file in copied {
        assert!(path(file).exists(), "{file}");
    }
}

#[tokio::test]
async fn the_image_runs_read_only_as_a_numeric_user_and_checks_its_health() {
    let image = ImageRoot::assemble();
    let platform = simulator::start(Settings::default()).await.unwrap();
    fs::write(image.path().join("runtime/etc/trunkline/trunkline.toml"), config(&platform.url())).unwrap();
    let [admin] = free();
    let admin = admin.to_string();
    let variables = [
        ("TRUNKLINE__ADMIN__LISTEN", admin.as_str()),
        ("TRUNKLINE__HTTP__LISTEN", "127.0.0.1:0"),
        ("CLIENT_ID", "demo"),
        ("CLIENT_SECRET", "demo-secret"),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let mut start = steps(&["start"], image.path());
    start.envs(variables);
    let mut relay = RelayProcess::of(Child::spawn(scratch.path(), start)).await;
    relay.wait_until_live().await;
    platform.emit(5);
    eventually("five events are durable", WAIT_MAX, async || {
        let page = client().get(format!("{}/v1/streams/calls/events?from=first", relay.consumers)).send().await.ok()?;
        let events: Vec<serde_json::Value> = page.json().await.ok()?;
        (events.len() == 5).then_some(())
    })
    .await;

    is_confined(relay.child.id());
    let mut health = steps(&["health"], image.path());
    health.args(["--url", &format!("http://{admin}")]);
    let mut health = Child::spawn(scratch.path(), health);
    assert_eq!(health.wait_for_exit(WAIT_MAX).await, 0, "{}", health.printed_output());
    assert!(health.stdout().contains("calls"), "{}", health.printed_output());

    relay.child.signal("TERM");
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 0, "{}", relay.child.printed_output());
    assert!(fs::read_dir(image.path().join("runtime/data")).unwrap().count() > 0, "the log is in the volume");
    let mut health = steps(&["health"], image.path());
    health.args(["--url", &format!("http://{admin}")]);
    assert_eq!(
        Child::spawn(scratch.path(), health).wait_for_exit(Duration::from_secs(15)).await,
        1,
        "no process is left"
    );
    platform.stop().await;
}

#[test]
fn the_default_command_is_a_command_of_the_program() {
    let image = ImageRoot::assemble();
    let output = steps(&["start"], image.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "the image has no configuration: {error}");
    assert!(error.contains("/etc/trunkline/trunkline.toml") && error.contains("No such file"), "{error}");
}

/// The script reads the Dockerfile, and rejects an unknown instruction.
#[test]
fn an_unknown_instruction_is_rejected_and_so_is_root() {
    for (from, to, error) in [
        ("VOLUME /data", "ADD . /data", "the instruction ADD is not known"),
        ("USER 65532:65532", "USER root", "USER root is no number"),
        ("USER 65532:65532", "USER 0:0", "USER 0:0 is no number"),
        ("CMD [\"run\", ", "CMD run [", "only the list form is understood"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (deploy, image) = (folder.path().join("deploy"), folder.path().join("image"));
        fs::create_dir(&deploy).unwrap();
        fs::copy(path("deploy/container-steps"), deploy.join("container-steps")).unwrap();
        let dockerfile = text("Dockerfile");
        assert!(dockerfile.contains(from));
        fs::write(folder.path().join("Dockerfile"), dockerfile.replace(from, to)).unwrap();
        let step = |act: &str, argument: Option<&str>| {
            let output =
                Command::new(deploy.join("container-steps")).arg(act).arg(&image).args(argument).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (assembled, mut output) = step("assemble", Some(env!("CARGO_BIN_EXE_trunkline")));
        let mut succeeded = assembled;
        if assembled {
            (succeeded, output) = step("start", None);
        }
        assert!(!succeeded && output.contains(error), "{to}: {output}");
    }
}

fn steps(act: &[&str], image: &Path) -> Command {
    let mut command = Command::new(path("deploy/container-steps"));
    command.args(act).arg(image);
    command
}

/// The folders of the stages. Drop makes them writable, because other users than root cannot delete read-only folders.
struct ImageRoot(TempDir);

impl ImageRoot {
    fn assemble() -> Self {
        let image = Self(tempfile::tempdir().unwrap());
        let output = steps(&["assemble"], image.path()).arg(env!("CARGO_BIN_EXE_trunkline")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for ImageRoot {
    fn drop(&mut self) {
        drop(Command::new("chmod").args(["-R", "u+w"]).arg(self.path()).status());
    }
}

/// Secrets come from the environment, as in a container.
fn config(platform: &str) -> String {
    let socket = platform.replacen("http", "ws", 1);
    format!(
        r#"
[accounts.demo]
platform = "generic"
token_url = "{platform}/oauth/token"
api_url = "{platform}"
client_id = {{ env = "CLIENT_ID" }}
client_secret = {{ env = "CLIENT_SECRET" }}
[streams.calls]
account = "demo"
connector = "genesys-sequenced"
url = "{socket}/api/v2/analytics/conversations/summary/stream"
"#
    )
}

/// Checks the process in `/proc`: its own user, no capabilities, and only the volume is writable. Needs root.
fn is_confined(id: u32) {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if field("Uid:")[0] != "65532" {
        assert_ne!(own_user(), "0", "as root, the script uses the image's user");
        return;
    }
    assert_eq!(field("Gid:"), ["65532"; 4]);
    assert_eq!(field("Groups:"), Vec::<String>::new());
    assert_eq!((field("NoNewPrivs:"), field("CapEff:")), (vec!["1".to_owned()], vec!["0".repeat(16)]));
    let root = Path::new("/proc").join(id.to_string()).join("root");
    assert!(fs::write(root.join("probe"), "").is_err() && fs::write(root.join("usr/probe"), "").is_err());
    fs::write(root.join("data/probe"), "").unwrap();
    assert!(!root.join("bin/sh").exists(), "the image has no shell");
}

fn own_user() -> String {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
