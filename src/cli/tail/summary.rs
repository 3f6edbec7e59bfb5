//! One event as a line for people: time, type, subject, id. Gaps are highlighted.
//!
//! Control characters from the network are shown as `·`, so that they cannot control the terminal.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde::Deserialize;

use crate::telemetry::logs::is_unsafe;

const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const ALERT: &str = "\x1b[1;97;41m";
const RESET: &str = "\x1b[0m";

const GAP: &str = "trunkline.gap.v1";

/// The fields of an event that a summary shows.
#[derive(Debug, Deserialize)]
pub(super) struct EventSummary<'a> {
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a serde_json::value::RawValue>,
}

/// The `data` of a gap.
#[derive(Debug, Deserialize)]
struct GapSummary {
    reason: String,
    after: Option<String>,
    before: Option<String>,
    lost: Option<u64>,
    silence_ms: Option<u64>,
}

impl<'a> EventSummary<'a> {
    /// Parses an event; `None` if the line is not an event.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_str(std::str::from_utf8(line).ok()?).ok()
    }

    pub(super) fn write(&self, colour: bool, out: &mut impl Write) -> io::Result<()> {
        let paint = |code, text: &str| if colour { format!("{code}{text}{RESET}") } else { text.to_owned() };
        let (clock, id) = (paint(DIM, &self.clock()), paint(DIM, &printable(&self.id)));
        if self.kind == GAP {
            return writeln!(out, "{clock}  {}  {id}", paint(ALERT, &self.gap()));
        }
        let kind = paint(CYAN, &printable(&self.kind));
        match &self.subject {
            Some(subject) => writeln!(out, "{clock}  {kind}  {}  {id}", printable(subject)),
            None => writeln!(out, "{clock}  {kind}  {id}"),
        }
    }

    /// The time of day, without the date.
    fn clock(&self) -> String {
        let time = self.time.as_deref().unwrap_or_default();
        let of_day = time.split_once('T').map_or(time, |(_, of_day)| of_day);
        printable(of_day)
    }

    fn gap(&self) -> String {
        let Some(gap) = self.data.and_then(|data| serde_json::from_str::<GapSummary>(data.get()).ok()) else {
            return " GAP ".to_owned();
        };
        let mut text = format!(" GAP {}", gap.reason);
        let parts = [
            gap.after.map(|after| format!("after {after}")),
            gap.before.map(|before| format!("before {before}")),
            gap.lost.map(|lost| format!("{lost} lost")),
            gap.silence_ms.map(|silence| format!("{silence} ms of silence")),
        ];
        for part in parts.into_iter().flatten() {
            text = format!("{text}, {part}");
        }
        printable(&text) + " "
    }
}

/// The text with `·` in place of characters that control a terminal or change the displayed text.
pub(in crate::cli) fn printable(text: &str) -> String {
    text.chars().map(|character| if is_unsafe(character) { '·' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, colour: bool) -> String {
        let mut out = Vec::new();
        EventSummary::read(line.as_bytes()).unwrap().write(colour, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_one_line_with_time_type_subject_and_entry() {
        let line = r#"{"id":"4f2a-17","type":"v2.users.presence","subject":"v2.users.7.presence",
            "time":"2026-05-04T13:31:49.570Z","data":{}}"#;
        assert_eq!(shown(line, false), "13:31:49.570Z  v2.users.presence  v2.users.7.presence  4f2a-17\n");
        assert!(shown(line, true).contains("\x1b[36mv2.users.presence\x1b[0m"));
    }

    #[test]
    fn a_gap_is_highlighted_with_known_details() {
        let line = r#"{"id":"4f2a-18","type":"trunkline.gap.v1","time":"2026-05-04T13:31:49.570Z",
            "data":{"reason":"retention","after":"17","before":"25","lost":7,"silence_ms":null}}"#;
        assert_eq!(shown(line, false), "13:31:49.570Z   GAP retention, after 17, before 25, 7 lost   4f2a-18\n");
        assert!(shown(line, true).contains(ALERT));
    }

    #[test]
    fn control_sequences_from_the_network_are_escaped() {
        let line = r#"{"id":"4f2a-17","type":"a\u001b[2J","subject":"b\u0007\n","time":"\u009b31m","data":1}"#;
        let line = shown(line, false);
        assert_eq!(line, "·31m  a·[2J  b··  4f2a-17\n");
    }
}
