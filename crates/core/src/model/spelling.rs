//! Suggestions for misspelt words.

/// The most similar known word; none if it differs in more than a third of the shorter word.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |word: &str| strsim::damerau_levenshtein(found, word);
    let best = known.into_iter().min_by_key(|word| distance(word))?;
    let most = (best.chars().count().min(found.chars().count()) / 3).max(1);
    (distance(best) <= most).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_suggested_only_for_a_similar_one() {
        let known = ["after", "since", "from", "type", "limit", "positions"];
        for (found, suggested) in [
            ("aftr", Some("after")),
            ("form", Some("from")),
            ("typ", Some("type")),
            ("position", Some("positions")),
            ("ticket", None),
            ("token", None),
            ("filter", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, known), suggested, "{found}");
        }
    }
}
