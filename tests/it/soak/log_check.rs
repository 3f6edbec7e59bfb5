//! Checks of a log after a soak.

use std::collections::HashMap;

use trunkline::simulator::EmittedNotification;

use crate::process::LogEntry;

/// The part of an entry that the check uses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SoakItem<'a> {
    /// An event with its correlation id.
    Event(&'a str),
    Gap,
}

fn classify(entry: &LogEntry) -> Option<SoakItem<'_>> {
    match entry.kind.as_str() {
        "trunkline.gap.v1" => Some(SoakItem::Gap),
        kind if kind.starts_with("trunkline.") => None,
        _event => entry.correlation.as_deref().map(SoakItem::Event),
    }
}

/// Checks that every event is there once and in order, and that a gap covers every loss.
pub(super) fn check_log(stream: &str, log: &[LogEntry], sent: &[EmittedNotification]) -> Result<(), String> {
    if let Some((entry, _)) = log.iter().zip(1..).find(|(entry, offset)| entry.offset != *offset) {
        return Err(format!("{stream}: offsets are not dense at {}", entry.id));
    }
    let items: Vec<SoakItem<'_>> = log.iter().filter_map(classify).collect();
    check_items(&items, &expected_events(stream, sent)).map_err(|fault| format!("{stream}: {fault}"))
}

/// The correlation ids of a stream's subscribed events.
fn expected_events<'a>(stream: &str, sent: &'a [EmittedNotification]) -> Vec<&'a str> {
    let wanted = |topic: &str| match stream {
        "queues" => topic.ends_with(".observations"),
        "users" => topic.ends_with(".presence") || topic.ends_with(".routingStatus"),
        _numbered => true,
    };
    sent.iter().filter(|sent| wanted(&sent.topic)).map(|sent| sent.correlation.as_str()).collect()
}

fn check_items(items: &[SoakItem<'_>], wanted: &[&str]) -> Result<(), String> {
    let places: HashMap<&str, usize> = wanted.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let (mut next, mut in_gap) = (None::<usize>, false);
    for item in items {
        let SoakItem::Event(id) = item else {
            in_gap = true;
            continue;
        };
        let Some(&place) = places.get(id) else { continue };
        let expected = next.unwrap_or(place);
        if place < expected {
            return Err(format!("{id} is duplicated or out of order"));
        }
        if place > expected && !in_gap {
            return Err(format!("{} events from {} to {id} are missing", place - expected, wanted[expected]));
        }
        (next, in_gap) = (Some(place + 1), false);
    }
    match next {
        None => Err("the log has no event".to_owned()),
        Some(next) if next < wanted.len() => Err(format!("the last {} events are missing", wanted.len() - next)),
        Some(_all) => Ok(()),
    }
}

#[test]
fn an_event_that_is_missing_duplicated_or_late_without_a_gap_fails_the_soak() {
    for (log, sound) in [
        ("0 1 2 3", true),
        ("1 2 3", true),
        ("0 gap 3", true),
        ("gap 3", true),
        ("0 3", false),
        ("0 1 1 2 3", false),
        ("0 2 gap 1 3", false),
        ("0 1 2", false),
        ("0 1 gap", false),
        ("gap", false),
    ] {
        let item = |word| if word == "gap" { SoakItem::Gap } else { SoakItem::Event(word) };
        let items: Vec<SoakItem<'_>> = log.split(' ').map(item).collect();
        assert_eq!(check_items(&items, &["0", "1", "2", "3"]).is_ok(), sound, "{log}");
    }
}
