//! Compares the messages about invalid configurations with the files under `tests/golden/config`.
//!
//! `NAME.toml` is an invalid configuration, `NAME.txt` the expected messages. Optional: `NAME.over.toml` is a second
//! file, `NAME.env` sets variables. With `UPDATE_GOLDEN` set the test overwrites `NAME.txt`; read the diff before you
//! commit it.

use std::{fs, path::PathBuf};

use super::{source::Document, *};

const SECRET: &str = "hunter2";

#[test]
fn every_invalid_configuration_reports_all_its_errors() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let cases = cases();
    assert!(cases.len() >= 30, "only {} cases were found", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let found = rendered_findings(&case);
        assert!(!found.contains(SECRET), "{case} shows a secret:\n{found}");
        let expected = path(&case, "txt");
        if update {
            fs::write(&expected, &found).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("{case}\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "these messages differ from the expected ones:\n\n{}", wrong.join("\n"));
}

fn rendered_findings(case: &str) -> String {
    let documents: Vec<_> = ["toml", "over.toml"].iter().filter_map(|ending| document(case, ending)).collect();
    match load_documents(&documents, &environment(case)) {
        Ok(config) => config.ineffective.iter().map(|finding| format!("{finding}\n")).collect(),
        Err(findings) => format!("{findings}\n"),
    }
}

fn cases() -> Vec<String> {
    let names = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<_> = names
        .filter(|name| !name.ends_with(".over.toml"))
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    cases.sort();
    cases
}

fn document(case: &str, ending: &str) -> Option<Document> {
    let text = fs::read_to_string(path(case, ending)).ok()?;
    Some(Document { name: format!("{case}.{ending}"), text })
}

fn environment(case: &str) -> Environment {
    let text = fs::read_to_string(path(case, "env")).unwrap_or_default();
    let own = text.lines().filter_map(|line| line.split_once('='));
    let usual = [("CLIENT_ID", "id"), ("CLIENT_SECRET", SECRET), ("EMPTY", "")];
    usual.into_iter().chain(own).collect()
}

fn path(case: &str, ending: &str) -> PathBuf {
    directory().join(format!("{case}.{ending}"))
}

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/config"))
}
