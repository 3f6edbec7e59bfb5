//! Messages about keys whose values cannot be read.

/// The format of a log's head that this version reads. A head without the field has this format.
const FORMAT: &str = "1";

/// Characters of an unreadable value that a message shows.
const SHOWN_LEN_MAX: usize = 120;

/// The operator's action for a key that cannot be read. Trunkline never removes a value that it did not write.
pub(crate) const REPAIR_HINT: &str =
    "repair or remove that key (another program may need it); the stream then continues without a restart";

/// Whether a head with this `format` field is left to a later version.
pub(crate) fn is_later_format(format: &str) -> bool {
    format != FORMAT
}

/// The message for a head or a log that has the wrong type.
pub(crate) fn wrong_type(key: &str) -> String {
    format!(
        "{key} is of another type than the stream's data (expected a hash for a head, a stream for a log); {REPAIR_HINT}"
    )
}

/// The message for a head that a later version wrote.
pub(crate) fn later_format(head: &str, format: &str) -> String {
    format!(
        "{head} has the format {}, and this version reads {FORMAT}: only replicas of a later version run the stream",
        quoted(format)
    )
}

/// The first characters of a value, quoted and escaped.
pub(crate) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_LEN_MAX).collect();
    format!("{short:?}")
}
