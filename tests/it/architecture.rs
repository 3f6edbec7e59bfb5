//! The house: who may use whom, and which words the rules may not know.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Module → what of ours it may use. `docs/decisions/` has the reasons.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("connector", &["model"]),
    ("protocol", &["model", "connector"]),
    ("clock", &["model"]),
    ("random", &[]),
    ("tasks", &[]),
    ("telemetry", &["model"]),
    ("secrets", &["model"]),
    ("store", &["model", "protocol", "clock", "random", "tasks", "telemetry", "secrets"]),
    ("event_log", &["model", "clock", "tasks", "telemetry", "store"]),
    ("listener", &["clock", "tasks", "telemetry"]),
    ("network", &["model", "protocol", "clock", "listener"]),
    ("auth", &["model", "network", "protocol", "clock", "random", "tasks", "telemetry", "store", "secrets"]),
    ("replica", &["model", "protocol", "clock", "random", "tasks", "telemetry", "store"]),
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
            "replica",
        ],
    ),
    ("downstream", &["model", "clock", "random", "tasks", "telemetry", "store", "event_log", "listener"]),
    (
        "admin",
        &["model", "clock", "tasks", "telemetry", "store", "event_log", "listener", "auth", "replica", "upstream"],
    ),
    ("config", &["model", "connector", "network", "auth", "clock", "store", "listener"]),
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
            "replica",
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

/// What would let a rule wait, look at a clock, draw lots or touch a socket.
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
/// What may be drawn from a generator that is seeded from the clock: jitter, and the host that is dialled first.
const FASTRAND_ALLOWED: [&str; 2] = ["::f64()", "::usize(..address.hosts.len())"];

const RULES: [&str; 3] = ["model", "connector", "protocol"];

/// Where the sources of a module stand.
fn home(module: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match module {
        "model" | "connector" | "protocol" => root.join("crates/core/src"),
        _ => root.join("src"),
    }
}

fn source(module: &str) -> Vec<PathBuf> {
    let root = home(module);
    let mut files = vec![root.join(format!("{module}.rs"))];
    let mut folders = vec![root.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The code of a file without its tests and comments.
fn code(file: &Path) -> String {
    if file.file_name().is_some_and(|name| name == "tests.rs")
        || file.components().any(|part| part.as_os_str() == "tests")
    {
        return String::new();
    }
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let text = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// The modules of ours that a text names after `crate::`, also in braces.
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
fn every_module_uses_only_what_lies_below_it() {
    for (module, allowed) in MAY_USE {
        for file in source(module) {
            for other in used(&code(&file)) {
                let fine = other == *module || allowed.contains(&other.as_str());
                assert!(fine, "{} uses {other}; {module} may use {allowed:?}", file.display());
            }
        }
    }
}

#[test]
fn every_module_is_in_the_layer_table() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        let known = MAY_USE.iter().any(|(name, _)| *name == module) || ENTRIES.contains(&module);
        assert!(known, "src/lib.rs: {module} is in no layer");
    }
}

#[test]
fn the_rules_never_wait_read_a_clock_or_use_a_socket() {
    for module in RULES {
        for file in source(module) {
            let code = code(&file);
            for word in FORBIDDEN_IN_RULES {
                assert!(!code.contains(word), "{} is a rule and says {word:?}", file.display());
            }
        }
    }
}

/// The first use of `fastrand` in a code that is not in [`FASTRAND_ALLOWED`]; of its line the rest.
fn clock_seeded(code: &str) -> Option<&str> {
    let mut uses = code.split("fastrand").skip(1);
    let found = uses.find(|rest| !FASTRAND_ALLOWED.iter().any(|allowed| rest.starts_with(allowed)))?;
    found.lines().next()
}

#[test]
fn nonces_epochs_and_ids_come_from_the_systems_generator() {
    let product = MAY_USE.iter().map(|(module, _)| *module).chain(ENTRIES);
    for file in product.flat_map(source) {
        let code = code(&file);
        let found = clock_seeded(&code);
        assert_eq!(found, None, "{} uses fastrand for more than jitter: use crate::random", file.display());
    }
}

/// The packages of ours that a crate may depend on, and packages that its manifest must not name. A rule that cannot
/// name a runtime or a client cannot wait or connect.
#[test]
fn the_manifests_keep_the_rules_pure_and_the_simulator_independent() {
    const IO: [&str; 10] =
        ["tokio", "reqwest", "redis", "rusqlite", "axum", "hyper", "config", "tracing", "getrandom", "fastrand"];
    for (name, forbidden) in
        [("core", [&IO[..], &["trunkline-simulator"]].concat()), ("simulator", vec!["trunkline-core"])]
    {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates").join(name).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let packages = manifest.get(table).and_then(toml::Value::as_table);
            for package in packages.into_iter().flatten().map(|(package, _)| package.as_str()) {
                assert!(!forbidden.contains(&package) && package != "trunkline", "crates/{name} depends on {package}");
            }
        }
    }
}

#[test]
fn every_file_starts_with_its_doc_comment_and_none_is_called_mod() {
    let modules = MAY_USE.iter().map(|(module, _)| *module).chain(ENTRIES);
    for file in modules.flat_map(source) {
        let text = fs::read_to_string(&file).unwrap();
        let test_module = file.file_name().is_some_and(|name| name == "tests.rs");
        assert!(text.starts_with("//!") || test_module, "{} does not say what it is", file.display());
        assert!(file.file_name().is_some_and(|name| name != "mod.rs"), "{}", file.display());
    }
}

#[test]
fn the_layer_check_detects_a_violation() {
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
