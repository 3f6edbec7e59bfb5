//! `docs/faults.md`: each row names existing tests, or the reason why it has none.

use std::{fs, path::Path};

const NO_TEST: &str = "No test: ";
/// Minimal length of a reason.
const REASON_LEN_MIN: usize = 20;

/// The error of a table row; `None` for a valid row or another line.
fn fault(root: &Path, line: &str) -> Option<String> {
    let cells: Vec<&str> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [what, _, tests] = cells[..] else { return Some(format!("three cells are expected: {line}")) };
    if what.starts_with("---") || tests == "test" {
        return None;
    }
    if let Some(reason) = tests.strip_prefix(NO_TEST) {
        return (reason.len() < REASON_LEN_MIN).then(|| format!("{what}: the reason is missing"));
    }
    tests.split(", ").find_map(|named| {
        let Some((folders, path)) = test_location(named) else {
            return Some(format!("{what}: {named:?} names no test"));
        };
        let found = folders.iter().any(|folder| exists(&root.join(folder), path));
        (!found).then(|| format!("{what}: there is no test {named}"))
    })
}

/// The folders in which a test may be, and its module path.
fn test_location(named: &str) -> Option<(&[&str], &str)> {
    let (kind, rest) = named.split_once(" `")?;
    let folders: &[&str] = match kind {
        "it" => &["tests/it"],
        "lib" => &["src", "crates/core/src", "crates/simulator/src"],
        _ => return None,
    };
    Some((folders, rest.strip_suffix('`')?))
}

/// Whether a file of this module path has the test. Inner modules are in the same file.
fn exists(folder: &Path, path: &str) -> bool {
    let mut modules: Vec<&str> = path.split("::").collect();
    let Some(name) = modules.pop() else { return false };
    (1..=modules.len()).rev().any(|count| {
        let (files, inner) = modules.split_at(count);
        let file = folder.join(files.join("/")).with_extension("rs");
        let text = fs::read_to_string(file).unwrap_or_default();
        inner.iter().all(|module| text.contains(&format!("mod {module} {{"))) && has_test(&text, name)
    })
}

fn has_test(text: &str, name: &str) -> bool {
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    attributes.contains("#[test]") || attributes.contains("#[tokio::test")
}

#[test]
fn every_fault_names_tests_that_exist_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let faults: Vec<String> = text.lines().filter_map(|line| fault(root, line)).collect();
    assert!(faults.is_empty(), "docs/faults.md:\n{}", faults.join("\n"));
    let rows = text.lines().filter(|line| line.starts_with("| ")).count();
    assert!(rows > 50, "{rows} rows");
}

#[test]
fn a_row_without_a_test_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = "it `readme::faults::a_row_without_a_test_is_found`";
    for (tests, is_good) in [
        (own.to_owned(), true),
        ("lib `model::name::tests::a_name_is_short_lower_case_and_safe_in_a_url`".to_owned(), true),
        (format!("{own}, it `readme::faults::renamed`"), false),
        // A function that is not a test, and a test in another file.
        ("it `readme::faults::exists`".to_owned(), false),
        ("it `readme::block::a_row_without_a_test_is_found`".to_owned(), false),
        ("`readme::faults::a_row_without_a_test_is_found`".to_owned(), false),
        (String::new(), false),
        ("No test: the compiler refuses such code.".to_owned(), true),
        ("No test: why?".to_owned(), false),
    ] {
        let found = fault(root, &format!("| a fault | what follows | {tests} |"));
        assert_eq!(found.is_none(), is_good, "{tests}: {found:?}");
    }
    assert!(fault(root, "| a fault | what follows |").is_some());
}
