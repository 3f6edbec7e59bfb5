//! Decodes `application/x-www-form-urlencoded`: bodies, queries, and Basic credentials (RFC 6749 section
//! 2.3.1). It rejects broken escapes and text that is not UTF-8.

use percent_encoding::percent_decode_str;

/// The pairs of a form, in order.
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    text.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

/// The first value under this name.
pub(super) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// One encoded name or value.
pub(super) fn decode(text: &str) -> Option<String> {
    let is_code = |after: &str| after.len() >= 2 && after.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
    let decoded = percent_decode_str(&text.replace('+', " ")).decode_utf8().ok()?.into_owned();
    text.split('%').skip(1).all(is_code).then_some(decoded)
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Some((decode(name)?, decode(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let table = [
            ("a=1&b=2", Some(vec![("a", "1"), ("b", "2")])),
            ("a+b=c%20d%2Be", Some(vec![("a b", "c d+e")])),
            ("", Some(vec![])),
            ("a", Some(vec![("a", "")])),
            ("a=%C3%A9", Some(vec![("a", "é")])),
            ("a=%4", None),
            ("a=%zz", None),
            ("a=%FF", None),
        ];
        for (text, expected) in table {
            let expected =
                expected.map(|pairs| pairs.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect::<Vec<_>>());
            assert_eq!(pairs(text), expected, "{text}");
        }
    }
}
