//! Selects the form of a response by its `Accept` header (RFC 9110 section 12.5.1). Pure.

use axum::http::{HeaderMap, header::ACCEPT};

/// A form of events over plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseForm {
    /// One page with a link to the next.
    Page,
    /// Server-sent events, endless.
    Sse,
    /// One JSON object per line, endless.
    Ndjson,
}

impl ResponseForm {
    /// The media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Page => "application/cloudevents-batch+json",
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }
}

/// The media ranges of each form with their specificity. Wildcards select a page.
const RANGES: [(&str, ResponseForm, u8); 7] = [
    ("application/cloudevents-batch+json", ResponseForm::Page, 2),
    ("application/json", ResponseForm::Page, 2),
    ("text/event-stream", ResponseForm::Sse, 2),
    ("application/x-ndjson", ResponseForm::Ndjson, 2),
    ("application/*", ResponseForm::Page, 1),
    ("text/*", ResponseForm::Sse, 1),
    ("*/*", ResponseForm::Page, 0),
];

/// The preferred form: by weight, then specificity, then order. None if no form is acceptable.
pub(super) fn form(headers: &HeaderMap) -> Option<ResponseForm> {
    if !headers.contains_key(ACCEPT) {
        return Some(ResponseForm::Page);
    }
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let preferences = lines.flat_map(|line| line.split(',')).filter_map(parse_range);
    preferences.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(form, _)| form)
}

/// The rank of a media range: weight in thousandths, then specificity.
type PreferenceRank = (u16, u8);

fn parse_range(range: &str) -> Option<(ResponseForm, PreferenceRank)> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next()?.to_ascii_lowercase();
    let (_, form, exactness) = RANGES.iter().find(|(range, _, _)| *range == name)?;
    let weight =
        parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="))).map_or(1000, weight);
    (weight > 0).then_some((*form, (weight, *exactness)))
}

/// A weight in thousandths; 0 if it is invalid.
fn weight(text: &str) -> u16 {
    let weight = text.trim().parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight));
    weight.map_or(0, |weight| (weight * 1000.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_chooses_the_form() {
        for (accept, chosen) in [
            ("*/*", Some(ResponseForm::Page)),
            ("application/json", Some(ResponseForm::Page)),
            ("application/cloudevents-batch+json", Some(ResponseForm::Page)),
            ("text/event-stream", Some(ResponseForm::Sse)),
            ("TEXT/Event-Stream; charset=utf-8", Some(ResponseForm::Sse)),
            ("application/x-ndjson", Some(ResponseForm::Ndjson)),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Some(ResponseForm::Page)),
            ("text/event-stream, */*", Some(ResponseForm::Sse)),
            ("*/*, text/event-stream", Some(ResponseForm::Sse)),
            ("application/json;q=0.5, application/x-ndjson;q=0.9", Some(ResponseForm::Ndjson)),
            ("application/json, application/x-ndjson", Some(ResponseForm::Page)),
            ("application/x-ndjson, application/json", Some(ResponseForm::Ndjson)),
            ("text/event-stream;q=0, application/json", Some(ResponseForm::Page)),
            ("text/event-stream;q=0", None),
            ("text/event-stream;q=lots", None),
            ("text/*", Some(ResponseForm::Sse)),
            ("image/png", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(form(&headers), chosen, "{accept}");
        }
        assert_eq!(form(&HeaderMap::new()), Some(ResponseForm::Page));
    }
}
