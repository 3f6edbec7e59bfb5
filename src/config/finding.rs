//! An error in a configuration: its location, its key, what is wrong and what is expected.
//!
//! It never contains the value of a secret.

use std::fmt;

use config::Value;

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceLocation {
    /// A file's path as given, or an environment variable.
    name: String,
    /// The line, counted from 1; an environment variable has none.
    line: Option<usize>,
}

impl SourceLocation {
    pub(super) fn line(file: &str, line: usize) -> Self {
        Self { name: file.to_owned(), line: Some(line) }
    }

    pub(super) fn whole(name: &str) -> Self {
        Self { name: name.to_owned(), line: None }
    }

    /// Parses the origin that a value keeps through the merge.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let origin = value.origin()?;
        let with_line = origin.rsplit_once(':').and_then(|(name, line)| Some(Self::line(name, line.parse().ok()?)));
        Some(with_line.unwrap_or_else(|| Self::whole(origin)))
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The keys that lead to a value, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct KeyPath(pub(super) Vec<String>);

impl KeyPath {
    pub(super) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| (*key).to_owned()).collect())
    }

    pub(super) fn join(&self, key: &str) -> Self {
        let mut keys = self.0.clone();
        keys.push(key.to_owned());
        Self(keys)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            let dot = if index == 0 { "" } else { "." };
            let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
            if bare { write!(f, "{dot}{key}")? } else { write!(f, "{dot}{key:?}")? }
        }
        Ok(())
    }
}

/// One configuration error or warning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    location: Option<SourceLocation>,
    path: KeyPath,
    text: String,
}

impl Finding {
    pub(super) fn new(location: Option<SourceLocation>, path: KeyPath, text: impl Into<String>) -> Self {
        Self { location, path, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.location {
            write!(f, "{place}: ")?;
        }
        if !self.path.0.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.text)
    }
}

/// All errors of a configuration, in the order of files and lines; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn of(mut findings: Vec<Finding>) -> Self {
        assert!(!findings.is_empty(), "at least one finding is required");
        findings.sort();
        findings.dedup();
        Self(findings)
    }

    /// The errors, or `good` if there are none.
    pub(super) fn into_result<T>(findings: Vec<Finding>, good: T) -> Result<T, Self> {
        if findings.is_empty() { Ok(good) } else { Err(Self::of(findings)) }
    }

    /// The errors; each is one line when displayed.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }
}

/// One error per line.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}
