//! Shows that the world test (or another that a mutant names) bites: breaks one rule at a time in a copy of the tree
//! (`tests/mutants.toml`), and expects the test to fail. It changes nothing in the tree itself.
//!
//! `cargo run --example mutants [WORD]` tries those whose name holds the word.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

#[derive(Deserialize)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// One rule, and how it is broken.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    file: PathBuf,
    find: String,
    replace: String,
    /// What notices it, as arguments of `cargo test`; the world test, if nothing else is said.
    #[serde(default = "world")]
    test: Vec<String>,
}

fn world() -> Vec<String> {
    ["--test", "it", "world::"].map(str::to_owned).to_vec()
}

/// A broken rule may make a test wait for ever: after this time it is noticed, too. (`timeout` is of coreutils.)
const RUN_MAX: &str = "15m";

/// What stays out of the copy.
const LEFT_OUT: [&str; 3] = [".git", "target", "examples"];

fn main() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let word = std::env::args().nth(1).unwrap_or_default();
    let listed: Mutants = toml::from_str(&fs::read_to_string(root.join("tests/mutants.toml"))?)?;
    let bench = Bench::set_up(root)?;
    let mutants: Vec<&Mutant> = listed.mutant.iter().filter(|mutant| mutant.name.contains(&word)).collect();
    for test in mutants.iter().map(|mutant| &mutant.test).collect::<BTreeSet<_>>() {
        ensure!(bench.passes(test)?, "{test:?} fails without any mutant");
    }
    let mut survived = 0;
    for mutant in mutants {
        let caught = bench.catches(mutant)?;
        survived += u32::from(!caught);
        writeln!(io::stdout(), "{}  {}", if caught { "caught  " } else { "SURVIVED" }, mutant.name)?;
    }
    Ok(ExitCode::from(u8::from(survived > 0)))
}

/// A copy of the tree, and where it is built.
struct Bench {
    tree: PathBuf,
    build: PathBuf,
}

impl Bench {
    fn set_up(root: &Path) -> anyhow::Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let (tree, build) = (target.join("mutants/tree"), target.join("mutants/build"));
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        copy(root, &tree).context("copying the tree")?;
        Ok(Self { tree, build })
    }

    fn catches(&self, mutant: &Mutant) -> anyhow::Result<bool> {
        let path = self.tree.join(&mutant.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("reading {}", mutant.file.display()))?;
        ensure!(sound.matches(&mutant.find).count() == 1, "{:?}: `find` must stand once in its file", mutant.name);
        fs::write(&path, sound.replace(&mutant.find, &mutant.replace))?;
        if !self.cargo(&[&["test".to_owned(), "--no-run".to_owned()], &mutant.test[..]].concat())? {
            bail!("{:?} does not compile", mutant.name);
        }
        let passes = self.passes(&mutant.test);
        fs::write(&path, sound)?;
        Ok(!passes?)
    }

    fn passes(&self, test: &[String]) -> anyhow::Result<bool> {
        self.cargo(&[&["test".to_owned()], test].concat())
    }

    fn cargo(&self, arguments: &[String]) -> anyhow::Result<bool> {
        let mut cargo = Command::new("timeout");
        cargo
            .args(["--kill-after=5s", RUN_MAX, env!("CARGO")])
            .args(arguments)
            .arg("--quiet")
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build);
        let status = cargo.stdout(Stdio::null()).stderr(Stdio::null()).status().context("running cargo")?;
        Ok(status.success())
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        if entry.is_dir() {
            copy(&entry, &to.join(name))?;
        } else {
            fs::copy(&entry, to.join(name))?;
        }
    }
    Ok(())
}
