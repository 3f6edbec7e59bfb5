//! One word, one type: a type name exists once in the workspace.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::sources::{code, root, rust_files};

/// Names with one type in each of several modules: a module's settings, and the interface of a state machine.
const SHARED: [&str; 4] = ["Settings", "Input", "Output", "Error"];

const FOLDERS: [&str; 3] = ["src", "crates/core/src", "crates/simulator/src"];

/// The types that a text defines. A type of a trait or of an `impl` (indented `type`) has no name of its own.
fn definitions(code: &str) -> Vec<&str> {
    code.lines().filter_map(definition).collect()
}

fn definition(line: &str) -> Option<&str> {
    let text = line.trim_start();
    let is_indented = text.len() < line.len();
    let text = match text.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ')?,
        None => text,
    };
    let (keyword, rest) = text.split_once(' ')?;
    let defines = matches!(keyword, "struct" | "enum" | "trait" | "union") || (keyword == "type" && !is_indented);
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (defines && rest.starts_with(char::is_uppercase)).then(|| &rest[..end])
}

#[test]
fn every_type_name_exists_once_in_the_workspace() {
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in FOLDERS.iter().flat_map(|folder| rust_files(&root().join(folder))) {
        let code = code(&file);
        for name in definitions(&code) {
            places.entry(name.to_owned()).or_default().push(short(&file));
        }
    }
    assert!(places.len() > 500, "only {} types were found", places.len());
    let twice = places.iter().filter(|(name, files)| files.len() > 1 && !SHARED.contains(&name.as_str()));
    let twice: Vec<_> = twice.collect();
    assert!(twice.is_empty(), "give each of these types a name of its own: {twice:#?}");
}

fn short(file: &Path) -> PathBuf {
    file.strip_prefix(root()).unwrap_or(file).to_owned()
}

#[test]
fn definitions_are_found_in_any_visibility() {
    let code = "pub(crate) struct A<T>(T);\nenum B {}\n    pub trait C: D {\npub(in crate::x) type E = F;\nimpl G {\n    \
                type H = I;\nlet structure = 1;\nstruct J;";
    assert_eq!(definitions(code), ["A", "B", "C", "E", "J"]);
}
