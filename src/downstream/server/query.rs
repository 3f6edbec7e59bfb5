//! Parses the query of a request for events. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use axum::extract::Query as Pairs;
use globset::Glob;
use hyper::{HeaderMap, Uri};

use super::{access::TICKET, render::TypeFilter};
use crate::model::{self, ConsumerName, Cursor, CursorError, Mark, NameError, Span, StreamName, Timestamp};

/// A request for events.
#[derive(Debug, Clone)]
pub(super) struct EventQuery {
    /// The streams of the query; empty if the path has the stream.
    pub(super) streams: Vec<StreamName>,
    pub(super) start: StartPoint,
    pub(super) type_filter: TypeFilter,
    /// Maximum entries of a page. Endless forms ignore it.
    pub(super) limit: usize,
    /// Whether NDJSON has position lines between the events.
    pub(super) positions: bool,
    /// The durable consumer that reads.
    pub(super) consumer: Option<ConsumerName>,
}

/// The requested start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StartPoint {
    /// After the cursor of the reader.
    After(Cursor),
    /// With the first stored entry received at this time or later.
    Since(Timestamp),
    /// With the oldest stored entry.
    First,
    /// With the next new entry.
    Last,
}

/// Why a query is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("the query must consist of name=value pairs in percent-encoded UTF-8")]
    Unreadable,
    #[error("unknown parameter {found:?}{}", did_you_mean(*nearest))]
    Unknown { found: String, nearest: Option<&'static str> },
    #[error("the parameter {0} is allowed only once")]
    Repeated(&'static str),
    #[error("{0} and {1} both select the start; use one of them")]
    Conflict(&'static str, &'static str),
    #[error("{0}: {1}")]
    Cursor(&'static str, CursorError),
    #[error("Last-Event-ID: the header occurs more than once; send it once")]
    LastEventIdRepeated,
    #[error("Last-Event-ID: the header is not plain ASCII text: expected an event's id such as 4f2a-17")]
    LastEventIdUnreadable,
    #[error("since: {0:?} is neither a duration such as 10m nor a time such as 2026-05-04T13:31:49Z")]
    Since(String),
    #[error("from: {0:?} is neither first nor last")]
    From(String),
    #[error("type: {0}")]
    Type(String),
    #[error("limit: {0:?} is not a number from 1 to {LIMIT_MAX}")]
    Limit(String),
    #[error("positions: {0:?} is neither true nor false")]
    Positions(String),
    #[error("stream: {0}")]
    Stream(NameError),
    #[error("consumer: {0}")]
    Consumer(NameError),
    #[error("select at least one stream, as in ?stream=queues")]
    NoStream,
    #[error("at most {STREAMS_MAX} streams can be read at once")]
    TooManyStreams,
    #[error("the cursor lacks stream {0}; add its position, such as {0}:4f2a-17 (get one from GET /v1/streams)")]
    StreamNotInCursor(StreamName),
    #[error("a cursor for several streams needs their names, as in queues:4f2a-17,agents:9c01-3")]
    NamesRequired,
}

fn did_you_mean(nearest: Option<&'static str>) -> String {
    nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

/// Maximum streams per connection.
const STREAMS_MAX: usize = 256;
const LIMIT_MAX: usize = 1_000;
const LIMIT_DEFAULT: usize = 100;
/// Maximum length of a type pattern.
const GLOB_LEN_MAX: usize = 256;
/// Maximum length of a value quoted in an error.
const SHOWN_MAX: usize = 80;

const PARAMETERS: [&str; 8] = ["after", "since", "from", "type", "limit", "positions", "consumer", TICKET];
const PARAMETERS_OF_SEVERAL: [&str; 9] =
    ["stream", "after", "since", "from", "type", "limit", "positions", "consumer", TICKET];

/// Whether the path has the stream, or the query has one or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamNameLocation {
    InPath,
    InQuery,
}

impl EventQuery {
    /// Parses the query of `uri`. `resumed` is `Last-Event-ID`, which overrides `after` and every other start, because a
    /// browser repeats its first URL when it reconnects.
    pub(super) fn read(
        uri: &Uri,
        named: StreamNameLocation,
        resumed: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, QueryError> {
        let Pairs(pairs) = Pairs::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| QueryError::Unreadable)?;
        let mut streams = Vec::new();
        let mut given = BTreeMap::new();
        for (name, value) in pairs {
            let name = known_parameter(&name, named)?;
            if name == "stream" {
                add_stream(&mut streams, &value)?;
            } else if given.insert(name, value).is_some() {
                return Err(QueryError::Repeated(name));
            }
        }
        if named == StreamNameLocation::InQuery && streams.is_empty() {
            return Err(QueryError::NoStream);
        }
        let start = start(&given, now)?;
        let consumer = given.get("consumer").map(|text| text.parse().map_err(QueryError::Consumer)).transpose()?;
        // A durable consumer starts at what it acknowledged, not at what its connection received.
        let resumed = resumed.filter(|_| consumer.is_none());
        Ok(Self {
            streams,
            start: resumed.map_or(Ok(start), |text| after(LAST_EVENT_ID, text))?,
            type_filter: given.get("type").map_or(Ok(TypeFilter::default()), |text| kinds(text))?,
            limit: given.get("limit").map_or(Ok(LIMIT_DEFAULT), |text| limit(text))?,
            positions: given.get("positions").map_or(Ok(false), |text| flag(text))?,
            consumer,
        })
    }
}

/// The header of a reconnecting event source.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// The value of `Last-Event-ID`; it is empty before the first event.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<&str>, QueryError> {
    let mut values = headers.get_all(LAST_EVENT_ID).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(QueryError::LastEventIdRepeated);
    }
    let text = value.to_str().map_err(|_| QueryError::LastEventIdUnreadable)?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn known_parameter(found: &str, named: StreamNameLocation) -> Result<&'static str, QueryError> {
    let names = match named {
        StreamNameLocation::InPath => PARAMETERS.as_slice(),
        StreamNameLocation::InQuery => PARAMETERS_OF_SEVERAL.as_slice(),
    };
    let exact = names.iter().find(|name| **name == found);
    exact.copied().ok_or_else(|| QueryError::Unknown { found: shown(found), nearest: nearest(found, names) })
}

fn nearest(found: &str, names: &[&'static str]) -> Option<&'static str> {
    model::nearest(found, names.iter().copied())
}

fn add_stream(streams: &mut Vec<StreamName>, text: &str) -> Result<(), QueryError> {
    let name = text.parse().map_err(QueryError::Stream)?;
    if !streams.contains(&name) {
        streams.push(name);
    }
    if streams.len() > STREAMS_MAX { Err(QueryError::TooManyStreams) } else { Ok(()) }
}

fn start(given: &BTreeMap<&'static str, String>, now: Timestamp) -> Result<StartPoint, QueryError> {
    let mut starts = ["after", "since", "from"].into_iter().filter_map(|name| Some((name, given.get(name)?)));
    let Some((name, value)) = starts.next() else { return Ok(StartPoint::Last) };
    if let Some((other, _)) = starts.next() {
        return Err(QueryError::Conflict(name, other));
    }
    match (name, value.as_str()) {
        ("after", text) => after("after", text),
        ("since", text) => parse_time(text, now).map(StartPoint::Since).ok_or_else(|| QueryError::Since(shown(text))),
        (_, "first") => Ok(StartPoint::First),
        (_, "last") => Ok(StartPoint::Last),
        (_, text) => Err(QueryError::From(shown(text))),
    }
}

fn after(source: &'static str, text: &str) -> Result<StartPoint, QueryError> {
    parse_cursor(text).map(StartPoint::After).map_err(|error| QueryError::Cursor(source, error))
}

pub(super) fn parse_time(text: &str, now: Timestamp) -> Option<Timestamp> {
    // An unencoded plus of a UTC offset arrives as a space.
    let time = Timestamp::parse(&text.replace(' ', "+"));
    time.or_else(|| text.parse().ok().map(|Span(age)| now.before(age)))
}

fn kinds(text: &str) -> Result<TypeFilter, QueryError> {
    if text.is_empty() {
        return Err(QueryError::Type(
            "the pattern is empty; use one such as v2.analytics.*, or omit the parameter".to_owned(),
        ));
    }
    if text.len() > GLOB_LEN_MAX {
        return Err(QueryError::Type(format!("a pattern has at most {GLOB_LEN_MAX} characters")));
    }
    let glob = Glob::new(text).map_err(|error| QueryError::Type(error.to_string()))?;
    Ok(TypeFilter((text != "*").then(|| glob.compile_matcher())))
}

fn limit(text: &str) -> Result<usize, QueryError> {
    let number = text.parse().ok().filter(|number| (1..=LIMIT_MAX).contains(number));
    number.ok_or_else(|| QueryError::Limit(shown(text)))
}

fn flag(text: &str) -> Result<bool, QueryError> {
    text.parse().map_err(|_| QueryError::Positions(shown(text)))
}

pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// Suffix of the `id` of a trimmed gap, which a client may use as its cursor.
const TRIMMED: &str = "/trimmed";

/// Parses a cursor. The `id` of a trimmed gap has the oldest stored entry and means to start directly before it.
pub(super) fn parse_cursor(text: &str) -> Result<Cursor, CursorError> {
    if !text.contains(TRIMMED) {
        return text.parse();
    }
    let pieces: Result<Vec<Cow<'_, str>>, CursorError> = text.split(',').map(before_trimmed).collect();
    pieces?.join(",").parse()
}

fn before_trimmed(piece: &str) -> Result<Cow<'_, str>, CursorError> {
    let Some(entry) = piece.strip_suffix(TRIMMED) else { return Ok(piece.into()) };
    let (prefix, id) = entry.rsplit_once(':').map_or(("", entry), |(name, id)| (&entry[..=name.len()], id));
    let first: Mark = id.parse()?;
    Ok(format!("{prefix}{}", Mark { offset: first.offset.previous(), ..first }).into())
}

impl StartPoint {
    /// The start in the log of `stream`. `several`: the request reads several streams.
    pub(super) fn of(&self, stream: &StreamName, several: bool) -> Result<LogStartPoint, QueryError> {
        Ok(match self {
            Self::After(Cursor::Single(_)) if several => return Err(QueryError::NamesRequired),
            Self::After(Cursor::Single(mark)) => LogStartPoint::After(*mark),
            Self::After(Cursor::Several(marks)) => {
                LogStartPoint::After(*marks.get(stream).ok_or_else(|| QueryError::StreamNotInCursor(stream.clone()))?)
            }
            Self::Since(moment) => LogStartPoint::Since(*moment),
            Self::First => LogStartPoint::First,
            Self::Last => LogStartPoint::Last,
        })
    }
}

/// The requested start in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogStartPoint {
    After(Mark),
    Since(Timestamp),
    First,
    Last,
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const NOW: Timestamp = Timestamp(1_777_901_509_570);

    fn read(named: StreamNameLocation, query: &str) -> Result<EventQuery, QueryError> {
        EventQuery::read(&uri(query), named, None, NOW)
    }

    fn uri(query: &str) -> Uri {
        format!("/v1/events?{query}").parse().unwrap()
    }

    #[test]
    fn a_query_selects_the_start() {
        for (query, start) in [
            ("", StartPoint::Last),
            ("from=last", StartPoint::Last),
            ("from=first", StartPoint::First),
            ("after=4f2a-17", StartPoint::After("4f2a-17".parse().unwrap())),
            ("after=4f2a-17/trimmed", StartPoint::After("4f2a-16".parse().unwrap())),
            (
                "after=queues:4f2a-17%2Ftrimmed,agents:9c01-3",
                StartPoint::After("queues:4f2a-16,agents:9c01-3".parse().unwrap()),
            ),
            ("since=10m", StartPoint::Since(Timestamp(NOW.0 - 600_000))),
            ("since=2026-05-04T13:31:49.570Z", StartPoint::Since(NOW)),
            ("since=2026-05-04T15:31:49.570%2B02:00", StartPoint::Since(NOW)),
            ("since=2026-05-04T15:31:49.570+02:00", StartPoint::Since(NOW)),
        ] {
            assert_eq!(read(StreamNameLocation::InPath, query).unwrap().start, start, "{query}");
        }
    }

    #[test]
    fn an_invalid_query_names_the_correct_form() {
        for (query, says) in [
            ("aftr=4f2a-17", r#"unknown parameter "aftr"; did you mean "after"?"#),
            ("zzz=1", r#"unknown parameter "zzz""#),
            ("filter=true", r#"unknown parameter "filter""#),
            ("stream=queues", r#"unknown parameter "stream""#),
            ("after=4f2a-17&from=first", "after and from both select the start; use one of them"),
            ("since=10m&after=4f2a-17", "after and since both select the start; use one of them"),
            ("from=first&from=last", "the parameter from is allowed only once"),
            ("from=middle", r#"from: "middle" is neither first nor last"#),
            ("after=17", r#"after: "17" is not a cursor: expected an event's id such as 4f2a-17"#),
            ("after=-1/trimmed", r#"after: "-1" is not a cursor: expected an event's id such as 4f2a-17"#),
            ("type=", "type: the pattern is empty; use one"),
            ("after=queues:4f2a-1,queues:4f2a-2", "after: the cursor names the stream queues more than once"),
            (
                "after=queues:4f2a-1,%20agents:9c01-3",
                r#"after: in a cursor over several streams " agents" is not a valid name: use 1 to 64"#,
            ),
            ("tickets=x", r#"unknown parameter "tickets"; did you mean "ticket"?"#),
            ("limit=0", r#"limit: "0" is not a number from 1 to 1000"#),
            ("positions=yes", r#"positions: "yes" is neither true nor false"#),
            ("limit=1001", r#"limit: "1001" is not a number from 1 to 1000"#),
            (
                "since=yesterday",
                r#"since: "yesterday" is neither a duration such as 10m nor a time such as 2026-05-04T13:31:49Z"#,
            ),
            ("since=10", r#"since: "10" is neither a duration such as 10m nor a time such as 2026-05-04T13:31:49Z"#),
        ] {
            let said = read(StreamNameLocation::InPath, query).unwrap_err().to_string();
            assert!(said.starts_with(says), "{query}: {said}");
        }
        assert!(matches!(read(StreamNameLocation::InPath, "type=%5Ba").unwrap_err(), QueryError::Type(_)));
        assert_eq!(read(StreamNameLocation::InQuery, "").unwrap_err(), QueryError::NoStream);
        assert!(matches!(read(StreamNameLocation::InQuery, "stream=A").unwrap_err(), QueryError::Stream(_)));
    }

    #[test]
    fn the_last_event_id_wins_over_the_address() {
        let uri = "/v1/streams/queues/events?after=4f2a-1".parse().unwrap();
        let query = EventQuery::read(&uri, StreamNameLocation::InPath, Some("4f2a-9"), NOW).unwrap();
        assert_eq!(query.start, StartPoint::After("4f2a-9".parse().unwrap()));
        assert!(EventQuery::read(&uri, StreamNameLocation::InPath, Some("nonsense"), NOW).is_err());
    }

    #[test]
    fn an_invalid_last_event_id_is_rejected() {
        let headers = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(LAST_EVENT_ID, HeaderValue::from_bytes(value).unwrap());
            }
            last_event_id(&headers).map(|text| text.map(str::to_owned))
        };
        assert_eq!(headers(&[]), Ok(None));
        assert_eq!(headers(&[b""]), Ok(None), "before the first event");
        assert_eq!(headers(&[b"4f2a-9"]), Ok(Some("4f2a-9".to_owned())));
        assert_eq!(headers(&[b"\xef\xbb\xbf4f2a-9"]), Err(QueryError::LastEventIdUnreadable));
        assert_eq!(headers(&[b"\xff"]), Err(QueryError::LastEventIdUnreadable));
        assert_eq!(headers(&[b"4f2a-9", b"4f2a-9"]), Err(QueryError::LastEventIdRepeated));
    }

    #[test]
    fn streams_are_named_once_each() {
        let query = read(StreamNameLocation::InQuery, "stream=queues&stream=agents&stream=queues&limit=7").unwrap();
        assert_eq!(query.streams, ["queues".parse().unwrap(), "agents".parse().unwrap()]);
        assert_eq!(query.limit, 7);
    }

    #[test]
    fn a_type_matches_as_a_whole_and_a_star_crosses_dots() {
        for (glob, kind, wanted) in [
            ("*", "v2.analytics.queues.observations", true),
            ("v2.analytics.*", "v2.analytics.queues.observations", true),
            ("*observations", "v2.analytics.queues.observations", true),
            ("v2.*.observations", "v2.analytics.queues.observations", true),
            ("v2.analytics", "v2.analytics.queues.observations", false),
            ("{trunkline.gap.v1,v2.*}", "trunkline.gap.v1", true),
            ("trunkline.gap.v?", "trunkline.gap.v1", true),
            ("V2.*", "v2.analytics", false),
            ("v2/*", "v2/a/b", true),
        ] {
            assert_eq!(kinds(glob).unwrap().matches(kind), wanted, "{glob} {kind}");
        }
    }

    #[test]
    fn a_cursor_over_several_streams_must_have_a_mark_for_each() {
        let (queues, agents) = ("queues".parse().unwrap(), "agents".parse().unwrap());
        let after = |text| StartPoint::After(parse_cursor(text).unwrap());
        let mark = |text: &str| LogStartPoint::After(text.parse().unwrap());
        assert_eq!(after("4f2a-17").of(&queues, false), Ok(mark("4f2a-17")));
        assert_eq!(after("queues:4f2a-17").of(&queues, false), Ok(mark("4f2a-17")));
        assert_eq!(after("queues:4f2a-17,agents:9c01-3").of(&agents, true), Ok(mark("9c01-3")));
        assert_eq!(after("4f2a-17").of(&queues, true), Err(QueryError::NamesRequired));
        assert_eq!(after("queues:4f2a-17").of(&agents, true), Err(QueryError::StreamNotInCursor(agents)));
    }
}
