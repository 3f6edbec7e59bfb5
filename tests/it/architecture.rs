//! The structure of the code: layers, purity of the rules, dependencies of the crates, names and words.
//!
//! These tests read the sources as text. Each rule is data at the top of its file, and a failure names the file.

mod cycles;
mod sources;
mod types;
mod words;

use std::{collections::BTreeSet, fs};

use self::sources::{code, module_sources, root, rust_files};

/// The modules of Trunkline that a module may use. `docs/decisions/` has the reasons.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("connector", &["model"]),
    ("protocol", &["model", "connector"]),
    ("clock", &["model"]),
    ("random", &[]),
    ("tasks", &[]),
    ("telemetry", &["model", "connector", "protocol"]),
    ("secrets", &["model"]),
    ("store", &["model", "protocol", "clock", "random", "tasks", "telemetry", "secrets"]),
    ("event_log", &["model", "clock", "tasks", "telemetry", "store"]),
    ("listener", &["clock", "tasks", "telemetry"]),
    ("network", &["model", "protocol", "clock", "telemetry", "listener"]),
    (
        "auth",
        &["model", "network", "protocol", "clock", "random", "tasks", "telemetry", "store", "secrets", "coordination"],
    ),
    ("coordination", &["model", "protocol", "clock", "random", "tasks", "telemetry", "store"]),
    (
        "upstream",
        &[
            "model",
            "connector",
            "protocol",
            "network",
            "clock",
            "tasks",
            "telemetry",
            "store",
            "event_log",
            "auth",
            "coordination",
        ],
    ),
    (
        "downstream",
        &[
            "model",
            "protocol",
            "clock",
            "random",
            "tasks",
            "telemetry",
            "secrets",
            "network",
            "store",
            "event_log",
            "listener",
        ],
    ),
    (
        "admin",
        &[
            "model",
            "clock",
            "tasks",
            "telemetry",
            "secrets",
            "store",
            "event_log",
            "listener",
            "auth",
            "coordination",
            "upstream",
            "downstream",
        ],
    ),
    ("config", &["model", "connector", "protocol", "network", "auth", "clock", "store", "downstream", "listener"]),
    (
        "app",
        &[
            "model",
            "connector",
            "protocol",
            "network",
            "clock",
            "random",
            "tasks",
            "telemetry",
            "store",
            "event_log",
            "auth",
            "coordination",
            "upstream",
            "downstream",
            "admin",
            "config",
            "listener",
        ],
    ),
];

/// Modules that may use everything.
const ENTRIES: [&str; 3] = ["cli", "main", "lib"];

/// Text that would let a rule wait, read a clock, draw random numbers or open a socket.
const FORBIDDEN_IN_RULES: [&str; 11] = [
    "async ",
    "await",
    "tokio",
    "::now()",
    "rand::",
    "fastrand",
    "std::net",
    "std::fs",
    "std::thread",
    "reqwest",
    "rusqlite",
];
/// The only uses of a generator that is seeded from the clock: jitter, and the choice of the first host.
const FASTRAND_ALLOWED: [&str; 2] = ["::f64()", "::usize(..address.hosts.len())"];

const RULES: [&str; 3] = ["model", "connector", "protocol"];

/// The top-level modules in the `crate::` paths of a text, also in braces.
fn used(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(list) = after.strip_prefix('{') else {
            modules.insert(word(after));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    modules.insert(word(item.trim()));
                    item.clear();
                    continue;
                }
                _ => (),
            }
            item.push(c);
        }
        modules.insert(word(item.trim()));
    }
    modules.remove("");
    modules
}

#[test]
fn every_module_uses_only_the_modules_of_its_row() {
    for (module, allowed) in MAY_USE {
        for file in module_sources(module) {
            for other in used(&code(&file)) {
                let fine = other == *module || allowed.contains(&other.as_str());
                assert!(fine, "{} uses {other}; {module} may use {allowed:?}", file.display());
            }
        }
    }
}

#[test]
fn every_module_has_a_row_in_the_table() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        let listed = MAY_USE.iter().any(|(name, _)| *name == module) || ENTRIES.contains(&module);
        assert!(listed, "src/lib.rs: {module} has no row in MAY_USE");
    }
}

#[test]
fn the_rules_do_no_io_and_read_no_clock() {
    for module in RULES {
        for file in module_sources(module) {
            let code = code(&file);
            for word in FORBIDDEN_IN_RULES {
                assert!(!code.contains(word), "{} is a rule and uses {word:?}", file.display());
            }
        }
    }
}

/// The rest of the line behind the first `fastrand` that [`FASTRAND_ALLOWED`] does not list.
fn clock_seeded(code: &str) -> Option<&str> {
    let mut uses = code.split("fastrand").skip(1);
    let found = uses.find(|rest| !FASTRAND_ALLOWED.iter().any(|allowed| rest.starts_with(allowed)))?;
    found.lines().next()
}

#[test]
fn only_jitter_comes_from_the_clock_seeded_generator() {
    let product = MAY_USE.iter().map(|(module, _)| *module).chain(ENTRIES);
    for file in product.flat_map(module_sources) {
        let code = code(&file);
        let found = clock_seeded(&code);
        assert_eq!(found, None, "{} uses fastrand for more than jitter: use crate::random", file.display());
    }
}

/// The compiler keeps a rule from waiting or connecting: its crate has no runtime and no client.
#[test]
fn the_rules_depend_on_no_io_and_the_simulator_on_no_daemon_code() {
    const IO: [&str; 10] =
        ["tokio", "reqwest", "redis", "rusqlite", "axum", "hyper", "config", "tracing", "getrandom", "fastrand"];
    for (name, forbidden) in
        [("core", [&IO[..], &["trunkline-simulator"]].concat()), ("simulator", vec!["trunkline-core"])]
    {
        let manifest = root().join("crates").join(name).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let packages = manifest.get(table).and_then(toml::Value::as_table);
            for package in packages.into_iter().flatten().map(|(package, _)| package.as_str()) {
                assert!(!forbidden.contains(&package) && package != "trunkline", "crates/{name} depends on {package}");
            }
        }
    }
}

/// Folders with Rust files. Each file opens with its doc comment.
const FOLDERS: [&str; 6] = ["src", "crates", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets"];

#[test]
fn every_file_opens_with_its_doc_comment_and_none_is_called_mod() {
    for file in FOLDERS.iter().flat_map(|folder| rust_files(&root().join(folder))) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} has no doc comment at its top", file.display());
        assert!(file.file_name().is_some_and(|name| name != "mod.rs"), "{}", file.display());
    }
}

#[test]
fn the_checks_detect_a_violation() {
    let sample = "use crate::{model::{A, B}, store::{self, C}};\nlet x = crate::config::load();";
    assert_eq!(used(sample), ["config", "model", "store"].map(str::to_owned).into());
    for (sample, found) in [
        ("let unit = fastrand::f64();", None),
        ("let unit = fastrand::f64();\nlet id = fastrand::u64(..);", Some("::u64(..);")),
        ("use fastrand::u128;", Some("::u128;")),
    ] {
        assert_eq!(clock_seeded(sample), found, "{sample}");
    }
}
