//! The Rust files of the workspace as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder of the workspace.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file in a folder and the folders in it, sorted. Build output is left out.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                files.push(path);
            } else if path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Every Rust file in a folder and the folders in it, sorted.
pub(super) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = files(folder);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

/// The file of a top-level module of the daemon or of the rules, and the files of its submodules.
pub(super) fn module_sources(module: &str) -> Vec<PathBuf> {
    let folder = match module {
        "model" | "connector" | "protocol" => root().join("crates/core/src"),
        _ => root().join("src"),
    };
    let mut sources = rust_files(&folder.join(module));
    sources.push(folder.join(format!("{module}.rs")));
    sources
}

/// The text of a file without its test module and its comment lines; empty for a file of tests.
pub(super) fn code(file: &Path) -> String {
    if file.file_name().is_some_and(|name| name == "tests.rs")
        || file.components().any(|part| part.as_os_str() == "tests")
    {
        return String::new();
    }
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text[..test_module(&text)].lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// Where the test module of a file begins, with its attributes; the end of the text without one.
fn test_module(text: &str) -> usize {
    let module = ["\nmod tests {", "\nmod tests;"].iter().filter_map(|start| text.find(start)).min();
    let begin = module.and_then(|module| text[..module].rfind("\n#[cfg(test)]"));
    begin.unwrap_or(text.len())
}
