//! Scripts and properties of the sequencer.

use std::time::Duration;

use bytestring::ByteString;
use proptest::prelude::*;

use super::*;
use crate::model::{Body, Timestamp};

fn event(sequence: u64, prefix: &str) -> Event {
    Event {
        kind: ByteString::from_static("e"),
        subject: None,
        time: None,
        sequence: Some(Sequence(sequence)),
        correlation: None,
        partition_key: None,
        body: Body::Json(format!("{prefix}{sequence}").into()),
        received: Timestamp(0),
    }
}

/// Runs a script of inputs and compares the decisions. `1 2 3` are numbers, `b:4` comes by the second session, `x1` has
/// another body, `odd` is an event without a number, `live` means that a session without a position is live. In the
/// expected text, `~` marks an event that is stored without a number and `-2` counts duplicates.
fn check(last: Option<u64>, script: &str, expected: &str) {
    let mut order = Sequencer::new(last.map(Sequence));
    assert_eq!(run(&mut order, script), expected, "{script}");
}

fn run(order: &mut Sequencer, script: &str) -> String {
    let start = Instant::now();
    let (mut decisions, mut now) = (Vec::new(), start);
    for word in script.split_whitespace() {
        if word == "wait" {
            now += Duration::from_secs(1);
            order.handle_timeout(now, &mut decisions);
            continue;
        }
        if word == "odd" {
            order.pass_unnumbered(event(0, "odd"), &mut decisions);
            continue;
        }
        if word == "live" {
            order.mark_connected();
            continue;
        }
        let (session, word) = word.strip_prefix("b:").map_or((SessionId(1), word), |word| (SessionId(2), word));
        let (prefix, number) = word.strip_prefix('x').map_or(("", word), |number| ("x", number));
        let (first, end) = number.split_once("..").unwrap_or((number, number));
        for sequence in first.parse().unwrap()..=end.parse().unwrap() {
            order.accept(Sequence(sequence), event(sequence, prefix), session, now, &mut decisions);
        }
    }
    describe(&decisions)
}

fn describe(decisions: &[Decision]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut duplicates = 0;
    for decision in decisions {
        match decision {
            Decision::Accepted(event) => {
                let Body::Json(text) = &event.body else { panic!() };
                words.push(if event.sequence.is_some() { text.to_string() } else { format!("~{text}") });
            }
            Decision::Gap(gap) => words.push(format!(
                "{}({}..{})",
                gap.reason.as_str(),
                gap.after.as_deref().unwrap_or("?"),
                gap.before.as_deref().unwrap_or("?")
            )),
            Decision::Duplicates(count) => duplicates += count,
            Decision::Refetch => words.push("refetch".to_owned()),
        }
    }
    if duplicates > 0 {
        words.push(format!("-{duplicates}"));
    }
    words.join(" ")
}

#[test]
fn events_pass_once_and_in_order() {
    check(None, "5 6 7", "5 6 7");
    check(Some(4), "5 6 7", "5 6 7");
    check(None, "1 2 b:1 b:2 b:3 3 4", "1 2 3 4 -3");
    check(None, "1 3 2 4", "1 2 3 4");
    check(None, "1 4 3 b:2 wait", "1 2 3 4");
    check(None, "1 3 3 2", "1 2 3 -1");
}

#[test]
fn a_missing_number_becomes_a_gap_after_the_wait() {
    check(None, "1 3 wait b:3 wait 4", "1 refetch jump(1..3) 3 4 -1");
    check(Some(4), "9 wait b:9 wait", "refetch jump(4..9) 9 -1");
    check(None, "1 3 5 wait b:3 wait", "1 refetch jump(1..3) 3 -1");
    check(None, "1 3 wait b:3 wait 2 wait", "1 refetch jump(1..3) 3 -2");
    check(None, "1 3 wait wait 4", "1 refetch");
    check(None, "1 3 wait wait wait wait wait wait 4", "1 refetch jump(1..3) 3 4");
}

#[test]
fn a_missing_number_is_refetched_by_a_session_that_resumes_before_it() {
    check(None, "1 4 5 wait b:2 b:3 b:4 b:5 6", "1 refetch 2 3 4 5 6 -2");
    // The new session is slow, and the old session continues.
    check(None, "1 4 wait 5 b:2 6 b:3 b:4 7", "1 refetch 2 3 4 5 6 7 -1");
    // The new session has only some of them.
    check(None, "1 5 wait b:2 b:3 b:5 wait 6", "1 refetch 2 3 jump(3..5) 5 6 -1");
    // A later hole has its own wait.
    check(None, "1 3 6 wait b:2 wait b:4 b:5 b:6", "1 refetch 2 3 refetch 4 5 6 -1");
}

#[test]
fn a_session_that_resumed_there_already_causes_no_refetch() {
    let mut order = Sequencer::new(Some(Sequence(4)));
    order.record_resume(SessionId(1), Sequence(4));
    assert_eq!(run(&mut order, "7 8 wait"), "jump(4..7) 7 8");
    assert_eq!(run(&mut order, "10 wait"), "refetch");
}

#[test]
fn a_sparse_numbering_does_not_cause_a_refetch_per_hole() {
    let mut order = Sequencer::new(Some(Sequence(1)));
    let decisions = run(&mut order, "3 wait b:3 wait 5 wait 7 wait 9 wait 11 wait 13 wait");
    assert!(decisions.matches("refetch").count() <= 4, "{decisions}");
    assert!(decisions.ends_with("13") || decisions.ends_with("refetch -1"), "{decisions}");
}

#[test]
fn sixty_four_later_events_end_the_reorder_wait() {
    let mut order = Sequencer::new(Some(Sequence(1)));
    order.record_resume(SessionId(1), Sequence(1));
    assert_eq!(run(&mut order, "3..65"), "");
    assert!(run(&mut order, "66").starts_with("jump(1..3) 3 4 5"));

    let mut order = Sequencer::new(Some(Sequence(1)));
    assert_eq!(run(&mut order, "3..66"), "refetch");
    assert!(run(&mut order, "67..1030").starts_with("jump(1..3) 3 4 5"), "the limit of held events");

    let mut order = Sequencer::new(Some(Sequence(1)));
    order.record_resume(SessionId(1), Sequence(1));
    assert_eq!(run(&mut order, "3..60 62..66 68"), "jump(1..3) ".to_owned() + &numbers(3, 60));
    assert_eq!(run(&mut order, "67 61"), numbers(61, 68), "the later holes are still waited for");
}

fn numbers(first: u64, last: u64) -> String {
    (first..=last).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_replay_is_dropped_even_beyond_the_recent_digests() {
    check(None, "1..5 2..6", "1 2 3 4 5 6 -4");
    check(Some(5), "2 3 4 5 6", "6 -4");
    check(Some(5), "3 4 5 wait", "-3");
    check(Some(5), "6 7 8 3 4 5 6 7 8 wait 9", "6 7 8 9 -6");
    check(None, "5 6 3 4 5 6 7 wait", "5 6 7 -4");
    check(Some(5), "b:6 b:7 3 4 wait b:8", "6 7 8 -2");
}

#[test]
fn numbers_inside_a_jump_survive_a_stray_number_and_a_reset() {
    let far = "1 2 9000 b:9000 wait wait wait wait wait wait";
    let jump = "1 2 refetch jump(2..9000) 9000";
    check(None, &format!("{far} b:3 wait b:4 wait b:5"), &format!("{jump} ~3 reset(9000..4) 4 5 -1"));
    check(None, &format!("{far} b:3..200"), &format!("{jump} reset(9000..3) {} -1", numbers(3, 200)));
    check(None, &format!("{far} b:3 b:4 b:9001"), &format!("{jump} 9001 -3"));
    check(None, &format!("{far} b:9001 b:100..210"), &format!("{jump} 9001 reset(9001..100) {} -1", numbers(100, 210)));
}

#[test]
fn a_numbering_reset_is_recorded_and_loses_nothing() {
    check(Some(500), "1 2 3 wait 4", "reset(500..1) 1 2 3 4");
    check(None, "1 2 3 x1 x2 wait x3 x4", "1 2 3 reset(3..1) x1 x2 x3 x4");
    check(Some(500), "1 3 2 wait 4", "reset(500..1) 1 2 3 4");
    check(Some(500), "200 201 1 2 wait", "reset(500..200) 200 201 reset(201..1) 1 2");
    let mut order = Sequencer::new(Some(Sequence(5_000)));
    let decisions = run(&mut order, "1..150");
    assert!(decisions.starts_with("reset(5000..1) 1 2 3"));
    assert!(decisions.ends_with(" 149 150"));
}

#[test]
fn one_event_with_an_old_number_is_no_reset() {
    // The numbering continues: an event with another body or an unknown old number is stored without its number.
    check(None, "1 2 3 x1 4 5", "1 2 3 ~x1 4 5");
    check(None, "1 2 3 x1 x2 4 5", "1 2 3 ~x1 ~x2 4 5");
    check(None, "1 2 3 x3 4", "1 2 3 ~x3 4");
    check(None, "1 2 3 x2 5 4", "1 2 3 ~x2 4 5");
    check(Some(500), "7 501", "~7 501");
    check(Some(500), "490 501", "501 -1");
    check(None, "1000..1019 5 1020 12 1021", &format!("{} ~5 1020 ~12 1021", numbers(1000, 1019)));
    // The numbering does not continue: the event is stored, and the position stays.
    check(None, "1 2 3 x1 wait 4", "1 2 3 ~x1 4");
    check(Some(500), "7 wait 501 502", "~7 501 502");
    check(None, "1 2 3 x2 wait x2 wait 4", "1 2 3 ~x2 4 -1");
    check(Some(500), "200 1 wait 501", "~200 ~1 501");
    let mut order = Sequencer::new(Some(Sequence(500)));
    run(&mut order, "7 wait");
    assert_eq!(order.resume(), Some(Sequence(500)));
}

#[test]
fn a_slow_run_of_old_numbers_is_a_reset() {
    check(Some(500), "1 wait 2 wait 3 wait 4", "~1 reset(500..2) 2 3 4");
    check(Some(500), "1 wait b:2 wait b:3", "~1 reset(500..2) 2 3");
    check(Some(500), "1 wait b:1 b:2 b:3 wait b:4", "~1 reset(500..2) 2 3 4 -1");
    check(Some(500), "1 wait 501 2 wait 502", "~1 501 ~2 502");
    check(Some(500), "1 wait 300 wait", "~1 ~300");
    check(None, "1 2 3 x1 x2 x3 x4", "1 2 3 reset(3..1) x1 x2 x3 x4");
}

#[test]
fn a_replay_mistaken_for_a_reset_is_not_appended_again() {
    check(None, "1..9 x2 x3 wait b:4..11", &format!("{} reset(9..2) x2 x3 10 11 -6", numbers(1, 9)));
}

#[test]
fn the_gap_of_an_abandoned_position_precedes_unnumbered_events() {
    let abandoned = || {
        let mut order = Sequencer::new(Some(Sequence(4)));
        order.abandon(GapReason::Jump);
        order
    };
    assert_eq!(run(&mut abandoned(), "live odd 9"), "jump(4..?) ~odd0 9");
    assert_eq!(run(&mut abandoned(), "live odd odd live odd 9 odd"), {
        "jump(4..?) ~odd0 ~odd0 jump(4..?) ~odd0 9 ~odd0"
    });
    assert_eq!(run(&mut abandoned(), "live odd live live 9"), "jump(4..?) ~odd0 jump(4..9) 9");
    assert_eq!(run(&mut abandoned(), "live 2 wait 9"), "jump(4..?) ~2 9");
    assert_eq!(run(&mut Sequencer::new(Some(Sequence(4))), "live odd live 5"), "~odd0 5");
}

#[test]
fn an_abandoned_position_is_no_jump() {
    let mut order = Sequencer::new(Some(Sequence(4)));
    order.abandon(GapReason::Retention);
    assert_eq!(run(&mut order, "9 10"), "retention(4..9) 9 10");

    let mut order = Sequencer::new(Some(Sequence(4)));
    order.abandon(GapReason::Retention);
    assert_eq!(run(&mut order, "5 6"), "5 6");

    let mut order = Sequencer::new(Some(Sequence(4)));
    order.abandon(GapReason::Oversize);
    assert_eq!(run(&mut order, "5 6"), "oversize(4..5) 5 6", "an oversized frame is a gap without a missing number");

    let mut order = Sequencer::new(Some(Sequence(4)));
    order.abandon(GapReason::Retention);
    assert_eq!(order.take_abandoned_gap().unwrap().before, None);
    assert_eq!(order.take_abandoned_gap(), None);
    assert_eq!(run(&mut order, "9 10"), "9 10");
}

#[test]
fn a_catching_up_session_may_repeat_more_than_the_recent_digests() {
    let mut order = Sequencer::new(Some(Sequence(1)));
    run(&mut order, "2..3000");
    order.record_resume(SessionId(2), Sequence(1));
    assert_eq!(run(&mut order, "b:2..3001"), "3001 -2999");
}

proptest! {
    /// Two sessions bring every number from the start, interleaved in any way.
    #[test]
    fn two_overlapping_sessions_deliver_every_event_once(switches in proptest::collection::vec(1_u64..20, 1..20), lag in 0_u64..60) {
        let mut order = Sequencer::new(None);
        let (mut decisions, now) = (Vec::new(), Instant::now());
        let (mut old, mut new) = (1, 1);
        for (turn, count) in switches.iter().enumerate() {
            let (next, session) = if turn % 2 == 0 { (&mut old, SessionId(1)) } else { (&mut new, SessionId(2)) };
            for _ in 0..*count {
                order.accept(Sequence(*next), event(*next, ""), session, now, &mut decisions);
                *next += 1;
            }
        }
        for sequence in new..(old + lag) {
            order.accept(Sequence(sequence), event(sequence, ""), SessionId(2), now, &mut decisions);
        }
        let accepted: Vec<u64> = decisions.iter().filter_map(|decision| match decision {
            Decision::Accepted(event) => event.sequence.map(|sequence| sequence.0),
            Decision::Gap(_) | Decision::Duplicates(_) | Decision::Refetch => None,
        }).collect();
        let end = accepted.last().copied().unwrap_or(0);
        prop_assert_eq!(accepted, (1..=end).collect::<Vec<_>>());
        prop_assert!(!decisions.iter().any(|decision| matches!(decision, Decision::Gap(_))));
    }
}
