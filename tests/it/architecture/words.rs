//! Words that must not stand in names, messages, comments and documents, each with the term to use.
//!
//! The list has only words that are wrong everywhere. A word with a good use, such as `say` in the control API of the
//! simulator, is not on it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::sources::{files, root};

/// A word or phrase, and what to write.
const REPLACED: &[(&str, &str)] = &[
    // names that were metaphors
    ("farewell", "close handshake, close"),
    ("twin", "duplicate; DedupWindow"),
    ("twins", "duplicates; DedupWindow"),
    ("keeper", "task, owner"),
    ("seat", "lease, permit"),
    ("seats", "leases, permits"),
    ("patience", "timeouts"),
    ("minted", "provisioned, issued"),
    ("hasten", "renew now"),
    ("lament", "log the failure"),
    ("forsaken", "stopped"),
    ("calamity", "fault"),
    ("calamities", "faults"),
    ("blow", "fault"),
    ("tale", "scenario"),
    ("night", "scenario, run"),
    ("nights", "scenarios, runs"),
    ("fate", "outcome, control"),
    // personification
    ("deaf", "disconnected; outage"),
    ("deafen", "mark disconnected"),
    ("mute", "without replies"),
    ("aloud", "with replies"),
    ("hears", "receives"),
    ("unheard", "not received"),
    ("owes", "pending"),
    ("owed", "pending"),
    ("owing", "pending"),
    ("believes", "expects; or name the fact"),
    ("believed", "accepted, trusted"),
    ("tells", "reports, shows, sends"),
    ("told", "reported, sent, received"),
    ("doubted", "suspected"),
    ("lamented", "logged, warned"),
    ("wish", "command"),
    ("wishes", "commands"),
    ("tend", "refresh, maintain"),
    ("tended", "refreshed, maintained"),
    ("tending", "refreshing, maintenance"),
    ("mend", "repair"),
    ("mended", "repaired"),
    // old and vague words
    ("anew", "again"),
    ("whoever", "name the part"),
    ("nobody", "no reader, no replica, no client"),
    ("somebody", "name the part"),
    ("for want of", "without"),
    ("put aside", "moved, renamed"),
    ("for ever", "without a limit"),
    ("so many", "the number"),
    ("so much", "the amount"),
    ("dearly", "at a high cost"),
    ("dearer", "slower, costlier"),
    ("besides", "also"),
    ("a while", "some time, or the duration"),
    ("beside", "next to, in addition to"),
    ("of its own accord", "by itself, automatically"),
    ("the same but", "repeat the meaning: each doc comment is shown alone"),
    ("goes on", "continues"),
    ("hung up", "closed the connection"),
    ("give way", "are evicted, are dropped"),
    ("gives way", "is evicted, is dropped"),
    ("gave way", "was evicted, was dropped"),
    ("agreed to", "accepted"),
];

/// Serialized names, which keep their words.
const NAMES: [&str; 1] = ["snapshot_owed"];

/// The scanned folders and files of the repository.
const SCANNED: &[&str] = &[
    "src",
    "crates",
    "tests",
    "benches",
    "examples",
    "fuzz/src",
    "fuzz/fuzz_targets",
    "docs",
    "deploy",
    "config",
    ".cargo",
    ".ci",
    "ARCHITECTURE.md",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "Dockerfile",
    "docker-compose.yml",
];
/// Endings of the files that hold code or text.
const EXTENSIONS: [&str; 9] = ["rs", "md", "toml", "lua", "yaml", "yml", "json", "sh", "txt"];
/// The list itself.
const THIS_FILE: &str = "tests/it/architecture/words.rs";

/// The words of a text in lower case, each behind a blank: `fooBar`, `FooBar`, `foo_bar` and `foo-bar` are two words.
fn words(line: &str) -> String {
    let (mut words, mut before) = (String::from(" "), ' ');
    for c in line.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        let is_part = c.is_alphanumeric() || c == '\'';
        if is_part {
            words.extend(c.to_lowercase());
        } else if !words.ends_with(' ') {
            words.push(' ');
        }
        before = c;
    }
    words.push(' ');
    words
}

/// The first entry of [`REPLACED`] in a line.
fn replaced(line: &str) -> Option<&'static (&'static str, &'static str)> {
    let words = words(&NAMES.iter().fold(line.to_owned(), |line, name| line.replace(name, "")));
    REPLACED.iter().find(|(word, _)| words.contains(&format!(" {word} ")))
}

fn scanned() -> impl Iterator<Item = PathBuf> {
    let paths = SCANNED.iter().map(|path| root().join(path));
    let files = paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    files.filter(|file| has_text(file) && !file.ends_with(THIS_FILE))
}

fn has_text(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    extension.is_none_or(|extension| EXTENSIONS.contains(&extension))
}

#[test]
fn names_and_texts_use_the_terms_of_the_field() {
    let mut found = Vec::new();
    for file in scanned() {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (index, line) in text.lines().enumerate() {
            if let Some((word, better)) = replaced(line) {
                let place = file.strip_prefix(root()).unwrap_or(&file).display();
                found.push(format!("{place}:{}: {word:?}, use: {better}: {}", index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{} lines have words that were replaced:\n{}", found.len(), found.join("\n"));
}

#[test]
fn words_are_found_in_names_and_in_sentences() {
    for (line, word) in [
        ("struct TwinWindow;", Some("twin")),
        ("let farewell_max = 1;", Some("farewell")),
        ("/// Waits for ever.", Some("for ever")),
        ("a wallboard between seating and tweens", None),
    ] {
        assert_eq!(replaced(line).map(|(word, _)| *word), word, "{line}");
    }
}
