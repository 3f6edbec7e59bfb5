//! A standby that takes the log over, and an owner that makes way.

use super::desk::{LIVE, SWAP, Script, notifications, play, play_standby, position, sequenced};
use super::*;

#[test]
fn a_standby_appends_nothing_and_goes_on_where_the_log_ends() {
    play_standby(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("kept 0", ""),
            ("join 1", "probe 1, live"),
            ("say 1 5 6 7", ""),
            ("wait 20s", ""),
            ("kept 3 live", ""),
            ("own 5", "append 6 7 at 7"),
            ("stored", ""),
            ("say 1 8", "append 8 at 8"),
        ],
    );
}

#[test]
fn a_log_that_is_ahead_of_its_standby_is_no_numbering_that_started_over() {
    play_standby(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("say 1 5 6", ""),
            ("own 9", ""),
            ("say 1 7 8", "dropped 2"),
            ("wait 1s", ""),
            // Out of order, across the end of the log.
            ("say 1 10 9 11", "dropped 1, append 10 11 at 11"),
            ("wait 1s", ""),
        ],
    );
}

#[test]
fn what_the_platform_says_again_to_a_standby_is_no_numbering_that_started_over() {
    play_standby(
        sequenced(),
        &[
            ("follow 6", ""),
            ("token 1", "dial 1 under 1 after 6, connecting"),
            ("join 1", "probe 1, live"),
            ("say 1 7 8 9 10 5 6 7 8 9 10 11 12", ""),
            ("own 11", "append 12 at 12"),
            ("stored", ""),
            ("wait 1s", ""),
        ],
    );
    // Nobody here has heard what it says again, and a hole lies behind it.
    play_standby(
        sequenced(),
        &[
            ("follow 200", ""),
            ("token 1", "dial 1 under 1 after 200, connecting"),
            ("join 1", "probe 1, live"),
            ("own 200", ""),
            ("say 1 99 100 200 203", "dropped 3"),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 200..203) at 200, recovering"),
            ("stored", ""),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) 203 at 203, live"),
            ("stored", ""),
            ("wait 1s", ""),
        ],
    );
}

#[test]
fn what_gave_way_is_asked_for_again() {
    let small = || Settings { buffer: 3, ..sequenced() };
    let to_the_end = [
        ("follow 4", ""),
        ("token 1", "dial 1 under 1 after 4, connecting"),
        ("join 1", "probe 1, live"),
        ("say 1 5 6 7 8 9", ""),
        ("kept 3 live", ""),
    ];
    play_standby(small(), &[&to_the_end, &[("own 6", "append 7 8 9 at 9")] as Script<'_>].concat());
    let again =
        [("own 5", "forget 1, dial 2 under 1 after 5, connecting"), ("say 1 10", ""), ("join 2", "probe 2, live")];
    play_standby(small(), &[&to_the_end, &again as Script<'_>].concat());
}

#[test]
fn a_session_that_began_behind_the_end_of_the_log_is_replaced() {
    play_standby(
        sequenced(),
        &[
            ("follow 9", ""),
            ("token 1", "dial 1 under 1 after 9, connecting"),
            ("own 4", "forget 1, dial 2 under 1 after 4"),
            ("join 2", "probe 2, live"),
        ],
    );
    play_standby(
        sequenced(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("join 1", "probe 1, live"),
            ("own 4", "forget 1, dial 2 under 1 after 4, connecting"),
        ],
    );
}

#[test]
fn a_standby_that_loses_its_session_follows_the_log_with_the_next() {
    play_standby(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("say 1 5", ""),
            ("follow 5", ""),
            ("close 1 1006", "forget 1, again in 1s, backing-off"),
            ("kept 0", ""),
            ("wait 1s", "dial 2 under 1 after 5, connecting"),
            ("join 2", "probe 2, live"),
            ("say 2 6", ""),
            ("own 5", "append 6 at 6"),
        ],
    );
}

#[test]
fn a_standby_rotates_as_any_stream_does_and_keeps_what_it_kept() {
    play_standby(
        sequenced(),
        &[
            ("follow 4", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("say 1 5 6", ""),
            ("follow 5", ""),
            ("token 2", ""),
            ("wait 75ms", "rotation token, dial 2 under 2 after 5"),
            ("join 2", "probe 2, rotated after 0ns, leave 1 1000"),
            ("say 2 6 7", ""),
            ("close 1 1000", "forget 1"),
            ("own 4", "append 5 6 7 at 7"),
        ],
    );
}

#[test]
fn what_the_log_has_is_not_appended_again_where_nothing_is_numbered() {
    follow_unnumbered(&[
        ("tell 1 b", ""),
        ("tell 1 c", ""),
        ("kept 2 live", ""),
        ("own - a gap b", "append c"),
        ("stored", ""),
        ("tell 1 d", "append d"),
    ]);
}

#[test]
fn an_equal_event_from_before_the_ring_hides_no_new_one() {
    follow_unnumbered(&[("tell 1 b", ""), ("tell 1 a", ""), ("own - a b", "append a")]);
}

#[test]
fn what_the_log_heard_first_is_not_appended_when_it_comes() {
    follow_unnumbered(&[("tell 1 b", ""), ("own - a b c", ""), ("tell 1 c", "dropped 1"), ("tell 1 c", "append c")]);
    follow_unnumbered(&[("own-covered - c", ""), ("tell 1 c", "dropped 1"), ("tell 1 d", "append d")]);
}

#[test]
fn what_may_be_in_nobodys_hands_is_marked() {
    follow_unnumbered(&[("tell 1 c", ""), ("own - a b", "gap no-replay, append gap(no-replay ?..?) c")]);
    follow_unnumbered(&[("tell 1 c", ""), ("own-covered - a b", "append c")]);
    follow_unnumbered(&[("own - a b", "gap no-replay, append gap(no-replay ?..?)")]);
    // In front of an empty log nothing is missing.
    follow_unnumbered(&[("tell 1 c", ""), ("own new", "append c")]);
}

#[test]
fn what_was_kept_of_a_gap_that_the_log_records_is_not_appended_behind_newer_events() {
    let kept: Script<'_> = &[("tell 1 b", ""), ("tell 1 c", ""), ("tell 1 d", "")];
    let cases = [
        ("own-covered - a gap d", ""),
        ("own - a gap d", ""),
        ("own-covered - a gap c", "append d"),
        // None of what the last owner received since was received here.
        ("own-covered - a gap e f", "gap no-replay, append gap(no-replay ?..?)"),
        ("own-covered - a gap", "append b c d"),
        ("own-covered - gap a b c d", ""),
        // It may lag behind the last owner.
        ("own-covered - gap a b e", "append c d"),
    ];
    for own in cases {
        follow_unnumbered(&[kept, &[own]].concat());
    }
}

#[test]
fn an_event_that_stands_twice_in_the_ring_does_not_show_where_the_log_goes_on() {
    let kept: Script<'_> = &[("tell 1 b", ""), ("tell 1 d", ""), ("tell 1 c", ""), ("tell 1 d", "")];
    // The log has one of the two.
    let own = ("own-covered - a gap d", "gap no-replay, append gap(no-replay ?..?) d");
    follow_unnumbered(&[kept, &[own]].concat());
}

#[test]
fn what_was_kept_long_after_the_gap_of_a_log_is_appended() {
    follow_unnumbered(&[("tell 1 b", ""), ("own-covered - a old-gap d", "append b")]);
}

#[test]
fn what_gave_way_is_marked_unless_the_log_has_it() {
    let told = [("tell 1 b", ""), ("tell 1 c", ""), ("tell 1 d", ""), ("kept 2 live", "")];
    let small = || Settings { buffer: 2, ..notifications() };
    let marked = [("own-covered - a b", "gap no-replay, append gap(no-replay ?..?) c d")];
    play_standby(small(), &[LIVE as Script<'_>, &told, &marked].concat());
    play_standby(small(), &[LIVE as Script<'_>, &told, &[("own - a b c", "append d")]].concat());
}

#[test]
fn a_copy_whose_first_gave_way_stands_behind_nothing_newer() {
    let small = || Settings { buffer: 3, ..notifications() };
    let told: Script<'_> = &[
        ("tell 1 b", ""),
        ("tell 2 b", ""),
        ("tell 1 c", ""),
        ("tell 2 c", ""),
        // The older session's `a` and `b` gave way; its `c` says that they came before.
        ("kept 3 live", ""),
        ("own - a b c", ""),
        ("tell 1 d", "append d"),
        ("stored", ""),
        ("pong 1", ""),
    ];
    play_standby(small(), &[LIVE, &[("tell 1 a", "")], SWAP, told].concat());
}

#[test]
fn a_log_shorter_than_the_ring_gets_what_lies_behind_its_end() {
    follow_unnumbered(&[("tell 1 a", ""), ("tell 1 b", ""), ("tell 1 c", ""), ("own - b", "append c")]);
}

#[test]
fn copies_of_a_standbys_own_overlap_are_one_event() {
    let swap = [&[("tell 1 a", "")], SWAP, &[("tell 1 b", ""), ("tell 2 b", ""), ("tell 2 c", "")]].concat();
    // What only the successor brought waits for the old session, as in any overlap.
    let waits: Script<'_> =
        &[("own - a", "append b"), ("stored", ""), ("tell 1 c", "append c"), ("stored", ""), ("pong 1", "dropped 1")];
    follow_unnumbered(&[&swap, waits].concat());
    let done: Script<'_> = &[
        ("pong 1", ""),
        ("tell 1 c", ""),
        ("wait 1s", "leave 1 1000"),
        ("close 1 1000", "forget 1"),
        ("wait 20s", ""),
        ("tell 2 a", ""),
        ("own - a b", "append c a"),
    ];
    follow_unnumbered(&[&swap, done].concat());
    // The old session never answered: what it brought does not reach up to its successor.
    let dead: Script<'_> = &[
        ("wait 5s", "leave 1 1000"),
        ("kept 2 live", ""),
        ("own-covered - a", "gap no-replay, append gap(no-replay ?..?) b c"),
    ];
    follow_unnumbered(&[&swap, dead].concat());
}

#[test]
fn a_successor_that_a_standby_lost_reaches_neither_back_nor_forward() {
    let lost: Script<'_> = &[
        // The old session is dead, and what it would have brought is heard by nobody.
        ("tell 2 c", ""),
        ("kept 2 live", ""),
        ("close 2 1006", "forget 2"),
        ("kept 1 live", ""),
        ("own - a", ""),
        ("close 1 1006", "forget 1, again in 1s, backing-off"),
    ];
    follow_unnumbered(&[&[("tell 1 a", "")], SWAP, lost].concat());
}

#[test]
fn what_the_log_has_is_not_appended_again_when_an_old_session_brings_it_late() {
    follow_unnumbered(
        &[
            &[("tell 1 a", "")],
            SWAP,
            &[
                ("tell 2 d", ""),
                ("tell 2 e", ""),
                ("tell 2 f", ""),
                ("own - a b c d e f", ""),
                ("tell 1 b", "dropped 1"),
                ("tell 1 c", "dropped 1"),
                ("tell 2 g", ""),
                ("pong 1", "dropped 3, append g"),
            ],
        ]
        .concat(),
    );
}

#[test]
fn a_standby_that_hears_nobody_begins_as_a_restart_does() {
    follow_unnumbered(&[
        ("tell 1 b", ""),
        ("close 1 1006", "forget 1, again in 1s, backing-off"),
        ("own - a", ""),
        ("wait 1s", "dial 2 under 1, connecting"),
        ("open 2", "probe 2"),
        ("pong 2", "gap no-replay, append gap(no-replay ?..?), live"),
    ]);
    play_standby(
        sequenced(),
        &[
            ("follow 4", ""),
            ("own 6", ""),
            ("token 1", "dial 1 under 1 after 6, connecting"),
            ("join 1", "probe 1, live"),
            ("say 1 7", "append 7 at 7"),
        ],
    );
}

#[test]
fn an_owner_says_when_everything_is_durable_that_its_successor_may_not_have_heard() {
    let live = [LIVE, &[("tell 1 a", "append a"), ("flush", "probe 1"), ("tell 1 b", "")]].concat();
    let answered: Script<'_> = &[
        // It comes unasked.
        ("heartbeat 1", ""),
        ("tell 1 c", ""),
        ("pong 1", ""),
        ("stored", "append b c"),
        ("tell 1 d", ""),
        // It is the owner until it is released.
        ("stored", "flushed, append d"),
        ("release", "leave 1 1000, paused"),
        ("tell 1 e", ""),
        ("close 1 1000", "forget 1, drained"),
        ("stored", ""),
    ];
    play(notifications(), Opening::default(), &[&live, answered].concat());
    let lost: Script<'_> = &[
        ("stored", "append b"),
        ("close 1 1006", "forget 1, again in 1s, backing-off"),
        ("stored", ""),
        ("wait 1s", "dial 2 under 1, connecting"),
        ("open 2", "probe 2"),
        ("pong 2", "gap no-replay, probe 2, append gap(no-replay ?..?), live"),
        ("stored", ""),
        ("pong 2", "flushed"),
    ];
    play(notifications(), Opening::default(), &[&live, lost].concat());
}

#[test]
fn where_the_platform_repeats_a_successor_waits_for_nothing_but_a_live_owner() {
    play(
        sequenced(),
        position(4),
        &[
            ("flush", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, flushed, live"),
            ("say 1 5", "append 5 at 5"),
            ("say 1 6", ""),
            ("release", "leave 1 1000, paused"),
            ("stored", ""),
            ("wait 2s", "forget 1, drained"),
        ],
    );
}

#[test]
fn a_standby_that_is_released_or_drained_appends_nothing() {
    for end in ["release", "drain"] {
        follow_unnumbered(&[
            ("tell 1 b", ""),
            (end, "leave 1 1000, paused"),
            ("tell 1 c", ""),
            ("close 1 1000", "forget 1, drained"),
        ]);
    }
}

fn follow_unnumbered(script: Script<'_>) {
    play_standby(notifications(), &[LIVE, script].concat());
}
