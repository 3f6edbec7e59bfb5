//! `deny.toml` applied to the dependencies: licences, bans and sources. cargo-deny checks the same and the advisories;
//! it is not needed here.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

const MANIFEST_DIR: &str = env!("CARGO_MANIFEST_DIR");
/// The platform of the releases. Packages of other platforms are not downloaded.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The packages of `Cargo.lock` for [`PLATFORM`], without the workspace.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", PLATFORM]);
    let output = cargo.current_dir(MANIFEST_DIR).output().unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else { panic!("cargo metadata lists packages") };
    packages.into_iter().filter(|package| !package["source"].is_null()).collect()
}

/// The texts of an array in `deny.toml`; of an array of tables, their names.
fn rules(table: &str, key: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(MANIFEST_DIR).join("deny.toml")).unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let entries = deny[table][key].as_array().unwrap().iter();
    let text = |entry: &toml::Value| entry.get("name").unwrap_or(entry).as_str().unwrap().to_owned();
    entries.map(text).collect()
}

/// Whether an SPDX expression can be met with the allowed licences. `/` is the old form of `OR`.
fn is_permitted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut tokens = expression.split_whitespace().peekable();
    any_of(&mut tokens, allowed)
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = all_of(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        permitted |= all_of(tokens, allowed);
    }
    permitted
}

fn all_of(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = licence(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        permitted &= licence(tokens, allowed);
    }
    permitted
}

fn licence(tokens: &mut Tokens<'_>, allowed: &BTreeSet<String>) -> bool {
    if tokens.next_if_eq(&"(").is_some() {
        let permitted = any_of(tokens, allowed);
        assert_eq!(tokens.next(), Some(")"), "a bracket is closed");
        return permitted;
    }
    let name = tokens.next().unwrap_or_default();
    match tokens.next_if_eq(&"WITH").and_then(|_| tokens.next()) {
        Some(exception) => allowed.contains(&format!("{name} WITH {exception}")),
        None => allowed.contains(name),
    }
}

#[test]
fn every_dependency_has_a_permitted_licence_and_source() {
    let (licences, banned) = (rules("licenses", "allow"), rules("bans", "deny"));
    let sources: Vec<String> =
        rules("sources", "allow-registry").iter().map(|source| format!("registry+{source}")).collect();
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let expression = package["license"].as_str().unwrap_or("none");
        assert!(is_permitted(expression, &licences), "{name}: deny.toml does not permit the licence {expression}");
        assert!(!banned.contains(name), "{name}: deny.toml bans this package");
        let source = package["source"].as_str().unwrap();
        assert!(sources.iter().any(|allowed| allowed == source), "{name}: deny.toml does not permit {source}");
    }
}

/// One implementation of cryptography: aws-lc-rs. `Cargo.lock` also lists optional packages that are not built, so the
/// tree of the build counts.
#[test]
fn no_second_implementation_of_cryptography_is_built() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--workspace", "--locked", "--offline", "--prefix", "none", "--target", PLATFORM]);
    let output = cargo.current_dir(MANIFEST_DIR).output().unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let is_built = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    assert!(is_built("aws-lc-rs") && is_built("jsonwebtoken"), "the tree is read");
    for name in ["ring", "rsa", "openssl", "ed25519-dalek", "p256"] {
        assert!(!is_built(name), "{name} is built");
    }
}

#[test]
fn licence_expressions_follow_spdx() {
    let allowed = ["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, permitted) in [
        ("MIT", true),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("(MIT OR ISC) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0 WITH other-exception", false),
        ("none", false),
    ] {
        assert_eq!(is_permitted(expression, &allowed), permitted, "{expression}");
    }
}
