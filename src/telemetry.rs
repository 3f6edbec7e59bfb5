//! Logs, metrics and the formatting of errors.

pub mod logs;
pub mod metrics;

use std::{error::Error, fmt, sync::Arc};

/// The cause of an error of which several callers get a copy. It stays a typed error with its own sources until the
/// place that handles it prints the [`chain`].
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// A cause from an error, or from the text of a fact that no other error states.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

/// Equal texts: what a reader of two chains can tell apart.
impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || chain(self) == chain(other)
    }
}

impl Eq for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Maximum number of characters of one error in a chain, because some have text from outside.
const TEXT_LEN_MAX: usize = 1000;

/// An error with all its causes on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    texts(error).iter().map(|text| printable(text)).collect::<Vec<_>>().join(": ")
}

/// Text from outside, without control characters and of bounded length.
pub fn printable(text: &str) -> String {
    let shown = text.chars().take(TEXT_LEN_MAX);
    shown.flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// The texts of an error and its causes, the outermost first. Some libraries print the cause as the end of their own
/// text; it is then not repeated.
pub fn texts(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if texts.last().is_none_or(|before| !before.ends_with(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        #[source]
        cause: Cause,
    }

    #[test]
    fn a_chain_has_each_cause_once_and_copies_share_it() {
        let lowest = Cause::new(io::Error::other("disk full"));
        for (text, expected) in
            [("cannot append", "cannot append: disk full"), ("cannot append: disk full", "cannot append: disk full")]
        {
            let error = Step { text, cause: lowest.clone() };
            assert_eq!(chain(&error), expected);
            assert_eq!(
                chain(&Cause::new(Step { text: "outer", cause: Cause::new(error) })),
                format!("outer: {expected}")
            );
        }
        assert_eq!(chain(&Cause::new("two\r\nlines")), r"two\r\nlines");
        assert_eq!(chain(&Cause::new("x".repeat(2 * TEXT_LEN_MAX))).len(), TEXT_LEN_MAX);
    }
}
