//! Hints for text that is not valid TOML: another format, a missing quote, a duplicate key.
//!
//! It scans the text line by line and never quotes a value, because it may be a secret.

use toml::de::DeValue;

/// The other format that the text is probably written in.
pub(super) fn other_format(text: &str) -> Option<&'static str> {
    let lines = || text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
    let mut content = lines().filter(|line| !line.starts_with('#')).peekable();
    if content.peek().is_some_and(|line| line.starts_with('{')) {
        return Some("JSON");
    }
    let is_toml = |line: &str| line.starts_with('[') || keys(line).is_some();
    let is_yaml = |line: &str| line == "---" || line.starts_with("- ") || is_yaml_key(line);
    let mut yaml = false;
    for line in content {
        if is_toml(line) {
            return None;
        }
        yaml |= is_yaml(line);
    }
    yaml.then_some("YAML")
}

/// `key:` or `key: value`.
fn is_yaml_key(line: &str) -> bool {
    let Some((key, rest)) = line.split_once(':') else { return false };
    !key.is_empty() && !key.contains(char::is_whitespace) && (rest.is_empty() || rest.starts_with(' '))
}

/// The key of a line (counted from 1) whose value is a string without quotes.
pub(super) fn unquoted(text: &str, line: usize) -> Option<String> {
    let line = text.lines().nth(line.checked_sub(1)?)?;
    let key = keys(line)?.join(".");
    let (_, value) = line.split_once('=')?;
    let value = value.split('#').next().unwrap_or_default().trim();
    let begins_as_text =
        value.starts_with(|first: char| first.is_alphanumeric() || matches!(first, '.' | '/' | ':' | '*'));
    let plain = !value.contains(['"', '\'', '{', '[', ',']);
    (begins_as_text && plain && DeValue::parse(value).is_err()).then_some(key)
}

/// A duplicate key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Duplicate {
    /// Its path, outermost key first, joined by dots.
    pub(super) path: String,
    /// The line of its first occurrence, counted from 1.
    pub(super) first: usize,
}

/// The duplicate key whose second occurrence is on `line` (counted from 1) and ends with `name`.
pub(super) fn duplicate(text: &str, line: usize, name: &str) -> Option<Duplicate> {
    let paths = paths(text, line);
    let (_, last) = paths.iter().rfind(|(at, _)| *at == line)?;
    let end = last.iter().rposition(|key| key == name.trim_matches(['"', '\'']))?;
    let path = &last[..=end];
    let mut before = paths.iter().filter(|(at, _)| *at < line);
    let first =
        before.clone().find(|(_, other)| other == path).or_else(|| before.find(|(_, other)| other.starts_with(path)));
    Some(Duplicate { path: path.join("."), first: first?.0 })
}

/// The full path of each line up to `until` that opens a table or sets a key.
fn paths(text: &str, until: usize) -> Vec<(usize, Vec<String>)> {
    let mut table = Vec::new();
    let mut paths = Vec::new();
    for (number, line) in (1..=until).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.starts_with('[') {
            let header = line.trim_start_matches('[').split(']').next().unwrap_or_default();
            table = segments(header);
            paths.push((number, table.clone()));
        } else if let Some(keys) = keys(line) {
            paths.push((number, table.iter().cloned().chain(keys).collect()));
        }
    }
    paths
}

/// The keys before an equals sign.
fn keys(line: &str) -> Option<Vec<String>> {
    let (keys, _) = line.split_once('=')?;
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'"' | b'\'' | b' ' | b'\t');
    (!keys.trim().is_empty() && keys.bytes().all(plain)).then(|| segments(keys))
}

fn segments(keys: &str) -> Vec<String> {
    keys.split('.').map(|key| key.trim().trim_matches(['"', '\'']).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_without_quotes_is_recognised() {
        for (line, key) in [
            ("listen = 127.0.0.1:8080", Some("listen")),
            ("listen=localhost:8080 # here", Some("listen")),
            ("http.listen = :8080", Some("http.listen")),
            ("silence_max = 45s", Some("silence_max")),
            ("region = mypurecloud.de", Some("region")),
            ("listen = \"127.0.0.1:8080", None),
            ("connections = 10", None),
            ("insecure = true", None),
            ("retention = { age = 1h }", None),
            ("listen", None),
            ("", None),
        ] {
            assert_eq!(unquoted(&format!("[http]\n{line}\n"), 2).as_deref(), key, "{line}");
        }
        assert_eq!(unquoted("", 1), None);
    }

    #[test]
    fn a_text_in_another_format_is_recognised() {
        for (text, format) in [
            ("http:\n  listen: \"127.0.0.1:8080\"\nstreams:\n  - a\n", Some("YAML")),
            ("---\n# relay\nhttp:\n", Some("YAML")),
            ("\u{feff}http: {listen: 1}\n", Some("YAML")),
            ("\n{\n  \"http\": {}\n}\n", Some("JSON")),
            ("[http]\nlisten: \"x\"\n", None),
            ("listen = x:y\n", None),
            ("", None),
            ("some words\n", None),
        ] {
            assert_eq!(other_format(text), format, "{text:?}");
        }
    }

    #[test]
    fn a_duplicate_key_is_reported_with_the_line_of_its_first_occurrence() {
        for (text, line, name, expected) in [
            ("[a.b]\nx=1\n[c]\ny=2\n[a.b]\nx=2\n", 5, "b", Some(("a.b", 1))),
            ("[a]\nx = 1\n# x = 5\ny=2\nx = 3\n", 5, "x", Some(("a.x", 2))),
            ("[a]\nb.c=1\n[a.b]\nd=1\n", 3, "b", Some(("a.b", 2))),
            ("[http]\nlisten=\"x\"\n\"listen\"=\"y\"\n", 3, "\"listen\"", Some(("http.listen", 2))),
            ("[a.b.c]\n[a.b]\n[a.b]\n", 3, "b", Some(("a.b", 2))),
            ("a={x=1,x=2}\n", 1, "x", None),
        ] {
            let expected = expected.map(|(path, first)| Duplicate { path: path.to_owned(), first });
            assert_eq!(duplicate(text, line, name), expected, "{text:?}");
        }
    }
}
