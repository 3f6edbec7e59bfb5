//! Scripts of a standby that becomes the owner, and of an owner that is released.

use super::script_runner::{LIVE, SWAP, Script, notifications, position, run_script, run_standby_script, sequenced};
use super::*;

#[test]
fn a_standby_appends_nothing_and_continues_at_the_end_of_the_log() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("kept 0", ""),
            ("join 1", "probe 1, live"),
            ("events 1 5 6 7", ""),
            ("wait 20s", ""),
            ("kept 3 live", ""),
            ("own 5", "append 6 7 at 7"),
            ("stored", ""),
            ("events 1 8", "append 8 at 8"),
        ],
    );
}

#[test]
fn a_log_ahead_of_its_standby_is_no_numbering_reset() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 5 6", ""),
            ("own 9", ""),
            ("events 1 7 8", "dropped 2"),
            ("wait 1s", ""),
            // Out of order, across the end of the log.
            ("events 1 10 9 11", "dropped 1, append 10 11 at 11"),
            ("wait 1s", ""),
        ],
    );
}

#[test]
fn a_replay_to_a_standby_is_no_numbering_reset() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 6", ""),
            ("token 1", "dial 1 under 1 after 6, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7 8 9 10 5 6 7 8 9 10 11 12", ""),
            ("own 11", "append 12 at 12"),
            ("stored", ""),
            ("wait 1s", ""),
        ],
    );
    // This process has not received the replayed events, and a gap follows them.
    run_standby_script(
        sequenced(),
        &[
            ("follow 200", ""),
            ("token 1", "dial 1 under 1 after 200, connecting"),
            ("join 1", "probe 1, live"),
            ("own 200", ""),
            ("events 1 99 100 200 203", "dropped 3"),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 200..203) at 200, recovering"),
            ("stored", ""),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) 203 at 203, live"),
            ("stored", ""),
            ("wait 1s", ""),
        ],
    );
}

#[test]
fn events_that_overflowed_the_standby_buffer_are_refetched() {
    let small = || Settings { buffer: 3, ..sequenced() };
    let to_the_end = [
        ("follow 4", ""),
        ("token 1", "dial 1 under 1 after 4, connecting"),
        ("join 1", "probe 1, live"),
        ("events 1 5 6 7 8 9", ""),
        ("kept 3 live", ""),
    ];
    run_standby_script(small(), &[&to_the_end, &[("own 6", "append 7 8 9 at 9")] as Script<'_>].concat());
    let again = [
        ("own 5", "drop socket 1, dial 2 under 1 after 5, connecting"),
        ("events 1 10", ""),
        ("join 2", "probe 2, live"),
    ];
    run_standby_script(small(), &[&to_the_end, &again as Script<'_>].concat());
}

#[test]
fn a_session_that_started_after_the_end_of_the_log_is_replaced() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 9", ""),
            ("token 1", "dial 1 under 1 after 9, connecting"),
            ("own 4", "drop socket 1, dial 2 under 1 after 4"),
            ("join 2", "probe 2, live"),
        ],
    );
    run_standby_script(
        sequenced(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("join 1", "probe 1, live"),
            ("own 4", "drop socket 1, dial 2 under 1 after 4, connecting"),
        ],
    );
}

#[test]
fn a_standby_that_loses_its_session_follows_the_log_with_the_next() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 5", ""),
            ("follow 5", ""),
            ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
            ("kept 0", ""),
            ("wait 1s", "dial 2 under 1 after 5, connecting"),
            ("join 2", "probe 2, live"),
            ("events 2 6", ""),
            ("own 5", "append 6 at 6"),
        ],
    );
}

#[test]
fn a_standby_rotates_and_keeps_its_buffer() {
    run_standby_script(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 5 6", ""),
            ("follow 5", ""),
            ("token 2", ""),
            ("wait 75ms", "rotation token, dial 2 under 2 after 5"),
            ("join 2", "probe 2, rotated after 0ns, close 1 1000"),
            ("events 2 6 7", ""),
            ("close 1 1000", "drop socket 1"),
            ("own 4", "append 5 6 7 at 7"),
        ],
    );
}

#[test]
fn logged_events_are_not_appended_again_without_sequence_numbers() {
    follow_unnumbered(&[
        ("text 1 b", ""),
        ("text 1 c", ""),
        ("kept 2 live", ""),
        ("own - a gap b", "append c"),
        ("stored", ""),
        ("text 1 d", "append d"),
    ]);
}

#[test]
fn an_equal_event_older_than_the_buffer_hides_no_new_one() {
    follow_unnumbered(&[("text 1 b", ""), ("text 1 a", ""), ("own - a b", "append a")]);
}

#[test]
fn an_event_logged_first_is_not_appended_on_late_arrival() {
    follow_unnumbered(&[("text 1 b", ""), ("own - a b c", ""), ("text 1 c", "dropped 1"), ("text 1 c", "append c")]);
    follow_unnumbered(&[("own-covered - c", ""), ("text 1 c", "dropped 1"), ("text 1 d", "append d")]);
}

#[test]
fn a_possible_loss_between_log_and_standby_is_marked() {
    follow_unnumbered(&[("text 1 c", ""), ("own - a b", "gap no-replay, append gap(no-replay ?..?) c")]);
    follow_unnumbered(&[("text 1 c", ""), ("own-covered - a b", "append c")]);
    follow_unnumbered(&[("own - a b", "gap no-replay, append gap(no-replay ?..?)")]);
    // Nothing is missing in front of an empty log.
    follow_unnumbered(&[("text 1 c", ""), ("own new", "append c")]);
}

#[test]
fn buffered_events_of_a_recorded_gap_are_not_appended_after_newer_events() {
    let kept: Script<'_> = &[("text 1 b", ""), ("text 1 c", ""), ("text 1 d", "")];
    let cases = [
        ("own-covered - a gap d", ""),
        ("own - a gap d", ""),
        ("own-covered - a gap c", "append d"),
        // This replica has received none of the last owner's newer events.
        ("own-covered - a gap e f", "gap no-replay, append gap(no-replay ?..?)"),
        ("own-covered - a gap", "append b c d"),
        ("own-covered - gap a b c d", ""),
        // This replica may lag behind the last owner.
        ("own-covered - gap a b e", "append c d"),
    ];
    for own in cases {
        follow_unnumbered(&[kept, &[own]].concat());
    }
}

#[test]
fn a_repeated_event_in_the_buffer_does_not_determine_the_splice() {
    let kept: Script<'_> = &[("text 1 b", ""), ("text 1 d", ""), ("text 1 c", ""), ("text 1 d", "")];
    // The log has one of the two copies.
    let own = ("own-covered - a gap d", "gap no-replay, append gap(no-replay ?..?) d");
    follow_unnumbered(&[kept, &[own]].concat());
}

#[test]
fn events_buffered_long_after_a_recorded_gap_are_appended() {
    follow_unnumbered(&[("text 1 b", ""), ("own-covered - a old-gap d", "append b")]);
}

#[test]
fn overflowed_events_are_marked_unless_the_log_has_them() {
    let script = [("text 1 b", ""), ("text 1 c", ""), ("text 1 d", ""), ("kept 2 live", "")];
    let small = || Settings { buffer: 2, ..notifications() };
    let marked = [("own-covered - a b", "gap no-replay, append gap(no-replay ?..?) c d")];
    run_standby_script(small(), &[LIVE as Script<'_>, &script, &marked].concat());
    run_standby_script(small(), &[LIVE as Script<'_>, &script, &[("own - a b c", "append d")]].concat());
}

#[test]
fn a_copy_of_an_overflowed_event_is_not_appended_after_newer_events() {
    let small = || Settings { buffer: 3, ..notifications() };
    let script: Script<'_> = &[
        ("text 1 b", ""),
        ("text 2 b", ""),
        ("text 1 c", ""),
        ("text 2 c", ""),
        // The buffer dropped `a` and `b` of the older session. Its `c` proves that they came earlier.
        ("kept 3 live", ""),
        ("own - a b c", ""),
        ("text 1 d", "append d"),
        ("stored", ""),
        ("pong 1", ""),
    ];
    run_standby_script(small(), &[LIVE, &[("text 1 a", "")], SWAP, script].concat());
}

#[test]
fn a_log_shorter_than_the_buffer_gets_the_events_after_its_end() {
    follow_unnumbered(&[("text 1 a", ""), ("text 1 b", ""), ("text 1 c", ""), ("own - b", "append c")]);
}

#[test]
fn duplicates_of_a_standbys_own_overlap_are_one_event() {
    let swap = [&[("text 1 a", "")], SWAP, &[("text 1 b", ""), ("text 2 b", ""), ("text 2 c", "")]].concat();
    // Events that only the successor brought wait for the old session.
    let waits: Script<'_> =
        &[("own - a", "append b"), ("stored", ""), ("text 1 c", "append c"), ("stored", ""), ("pong 1", "dropped 1")];
    follow_unnumbered(&[&swap, waits].concat());
    let done: Script<'_> = &[
        ("pong 1", ""),
        ("text 1 c", ""),
        ("wait 1s", "close 1 1000"),
        ("close 1 1000", "drop socket 1"),
        ("wait 20s", ""),
        ("text 2 a", ""),
        ("own - a b", "append c a"),
    ];
    follow_unnumbered(&[&swap, done].concat());
    // The old session never answered, so events before the successor may be missing.
    let dead: Script<'_> = &[
        ("wait 5s", "close 1 1000"),
        ("kept 2 live", ""),
        ("own-covered - a", "gap no-replay, append gap(no-replay ?..?) b c"),
    ];
    follow_unnumbered(&[&swap, dead].concat());
}

#[test]
fn a_successor_lost_by_a_standby_covers_neither_earlier_nor_later_events() {
    let lost: Script<'_> = &[
        // The old session is dead, and its remaining events are lost.
        ("text 2 c", ""),
        ("kept 2 live", ""),
        ("close 2 1006", "drop socket 2"),
        ("kept 1 live", ""),
        ("own - a", ""),
        ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
    ];
    follow_unnumbered(&[&[("text 1 a", "")], SWAP, lost].concat());
}

#[test]
fn logged_events_are_not_appended_again_when_an_old_session_delivers_them_late() {
    follow_unnumbered(
        &[
            &[("text 1 a", "")],
            SWAP,
            &[
                ("text 2 d", ""),
                ("text 2 e", ""),
                ("text 2 f", ""),
                ("own - a b c d e f", ""),
                ("text 1 b", "dropped 1"),
                ("text 1 c", "dropped 1"),
                ("text 2 g", ""),
                ("pong 1", "dropped 3, append g"),
            ],
        ]
        .concat(),
    );
}

#[test]
fn a_standby_without_a_session_takes_over_like_a_restart() {
    follow_unnumbered(&[
        ("text 1 b", ""),
        ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
        ("own - a", ""),
        ("wait 1s", "dial 2 under 1, connecting"),
        ("open 2", "probe 2"),
        ("pong 2", "gap no-replay, append gap(no-replay ?..?), live"),
    ]);
    run_standby_script(
        sequenced(),
        &[
            ("follow 4", ""),
            ("own 6", ""),
            ("token 1", "dial 1 under 1 after 6, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7", "append 7 at 7"),
        ],
    );
}

#[test]
fn an_owner_reports_flushed_when_everything_before_its_successor_is_durable() {
    let live = [LIVE, &[("text 1 a", "append a"), ("flush", "probe 1"), ("text 1 b", "")]].concat();
    let answered: Script<'_> = &[
        // An answer without a probe.
        ("heartbeat 1", ""),
        ("text 1 c", ""),
        ("pong 1", ""),
        ("stored", "append b c"),
        ("text 1 d", ""),
        // The owner stays the owner until it is released.
        ("stored", "flushed, append d"),
        ("release", "close 1 1000, paused"),
        ("text 1 e", ""),
        ("close 1 1000", "drop socket 1, drained"),
        ("stored", ""),
    ];
    run_script(notifications(), LogHead::default(), &[&live, answered].concat());
    let lost: Script<'_> = &[
        ("stored", "append b"),
        ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
        ("stored", ""),
        ("wait 1s", "dial 2 under 1, connecting"),
        ("open 2", "probe 2"),
        ("pong 2", "gap no-replay, probe 2, append gap(no-replay ?..?), live"),
        ("stored", ""),
        ("pong 2", "flushed"),
    ];
    run_script(notifications(), LogHead::default(), &[&live, lost].concat());
}

#[test]
fn with_replay_a_successor_waits_only_for_a_live_owner() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("flush", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, flushed, live"),
            ("events 1 5", "append 5 at 5"),
            ("events 1 6", ""),
            ("release", "close 1 1000, paused"),
            ("stored", ""),
            ("wait 2s", "drop socket 1, drained"),
        ],
    );
}

#[test]
fn a_standby_that_is_released_or_drained_appends_nothing() {
    for end in ["release", "drain"] {
        follow_unnumbered(&[
            ("text 1 b", ""),
            (end, "close 1 1000, paused"),
            ("text 1 c", ""),
            ("close 1 1000", "drop socket 1, drained"),
        ]);
    }
}

fn follow_unnumbered(script: Script<'_>) {
    run_standby_script(notifications(), &[LIVE, script].concat());
}
