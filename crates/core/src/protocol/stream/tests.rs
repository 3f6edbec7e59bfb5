//! Scripts of a stream: inputs, and the expected outputs.

mod feed_change;
mod handover;
mod opaque_position;
mod script_runner;

use self::script_runner::{
    CHANNEL_1, CHANNEL_2, LIVE, Script, WALL, checkpoint, notifications, position, run_overlap_script, run_script,
    sequenced,
};
use super::*;
use crate::{model::Timestamp, protocol::backoff};

#[test]
fn a_first_connect_has_no_position_and_a_reconnect_resumes() {
    run_script(
        sequenced(),
        LogHead::default(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 5 6", "append 5 6 at 6"),
            ("events 1 7", ""),
            ("stored", "append 7 at 7"),
            ("stored", ""),
            ("wait 20s", ""),
            ("close 1 1006", "drop socket 1, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 2 under 1 after 7, connecting"),
            ("refuse 2 503", "drop socket 2, retry in 1s, backing-off"),
            ("wait 1s", "dial 3 under 1 after 7, connecting"),
            // The checkpoint is renewed.
            ("join 3", "probe 3, append at 7, live"),
            ("stored", ""),
            ("events 3 7 8", "dropped 1, append 8 at 8"),
        ],
    );
}

#[test]
fn an_outage_without_a_position_is_marked_as_a_gap() {
    run_script(
        sequenced(),
        LogHead::default(),
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("join 1", "probe 1, live"),
            ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
            ("wait 1s", "dial 2 under 1 after none, connecting"),
            (
                "join 2",
                "probe 2, gap no-replay, call GET https://p.test/summary, append gap(no-replay ?..?), recovering",
            ),
        ],
    );
}

#[test]
fn a_new_token_gets_a_live_session_before_the_old_one_closes() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("token 2", ""),
            ("wait 75ms", "rotation token, dial 2 under 2 after 4"),
            ("events 1 5", "append 5 at 5"),
            ("join 2", "probe 2, rotated after 0ns, close 1 1000"),
            ("events 2 5 6", "dropped 1"),
            ("stored", "append 6 at 6"),
            ("close 1 1000", "drop socket 1"),
        ],
    );
}

#[test]
fn where_one_socket_is_allowed_the_old_one_closes_first() {
    run_script(
        Settings { rotation: Rotation::BreakFirst, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, close 1 1000, dial 2 under 1 after 4, connecting"),
            ("wait 60ms", ""),
            ("join 2", "probe 2, rotated after 60ms, live"),
        ],
    );
}

#[test]
fn a_rejected_token_is_never_used_again() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("close 1 1008", "drop socket 1, refuse token 1, retry at once, starting"),
            ("wait 61s", ""),
            ("token 2", "dial 2 under 2 after none, connecting"),
        ],
    );
}

#[test]
fn a_rejected_token_that_stays_current_is_retried_with_backoff() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("refuse 1 401", "drop socket 1, refuse token 1, retry at once, starting"),
            ("token 1", "backing-off"),
            ("token 1", ""),
            ("wait 1s", "dial 2 under 1 after 4, connecting"),
            ("refuse 2 401", "drop socket 2, refuse token 1, retry at once, starting"),
            ("token 1", "backing-off"),
            ("wait 2s", "dial 3 under 1 after 4, connecting"),
            ("join 3", "probe 3, live"),
            ("token 1", ""),
        ],
    );
}

#[test]
fn a_newer_token_ends_the_backoff_of_a_rejected_one() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("refuse 1 401", "drop socket 1, refuse token 1, retry at once, starting"),
            ("token 1", "backing-off"),
            ("objects rotate", ""),
            ("wait 999ms", ""),
            ("token 2", "dial 2 under 2 after 4, connecting"),
            // Another failure causes a backoff.
            ("refuse 2 503", "drop socket 2, retry in 2s, backing-off"),
            ("token 3", ""),
        ],
    );
}

#[test]
fn a_token_whose_sessions_end_before_any_frame_is_unproven() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "probe 1"),
            ("close 1 1008", "drop socket 1, refuse token 1, retry at once, starting"),
            ("token 2", "dial 2 under 2 after 4, connecting"),
            ("open 2", "probe 2"),
            ("close 2 1008", "drop socket 2, refuse token 2, retry at once, starting"),
            ("token 3", "dial 3 under 3 after 4, connecting"),
            ("open 3", "probe 3"),
            ("close 3 1008", "drop socket 3, refuse token 3, retry in 1s, backing-off"),
            ("token 4", "dial 4 under 4 after 4, connecting"),
        ],
    );
}

#[test]
fn a_platform_that_does_not_answer_the_probe_is_live_after_two_quiet_seconds() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("open 1", "probe 1"),
            ("wait 1999ms", ""),
            ("wait 1ms", "live"),
        ],
    );
}

#[test]
fn the_old_session_closes_only_after_a_frame_from_its_successor() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, dial 2 under 1 after 4"),
            // The platform closes right after the upgrade.
            ("open 2", "probe 2"),
            ("close 2 1000", "drop socket 2"),
            ("events 1 5", "append 5 at 5"),
            ("stored", ""),
            // A successor that sends nothing.
            ("wait 250ms", "dial 3 under 1 after 5"),
            ("open 3", "probe 3"),
            ("wait 9999ms", ""),
            ("events 1 6", "append 6 at 6"),
            ("stored", ""),
            ("wait 1ms", "drop socket 3"),
            // The successor is lost, and the old session continues.
            ("wait 500ms", "dial 4 under 1 after 6"),
            ("open 4", "probe 4"),
            ("close 4 1006", "drop socket 4"),
            ("wait 1s", "dial 5 under 1 after 6"),
            ("open 5", "probe 5"),
            ("events 5 7", "rotated after 0ns, close 1 1000, append 7 at 7"),
            ("events 1 7", "dropped 1"),
        ],
    );
}

#[test]
fn a_silent_successor_is_used_when_the_old_session_is_lost() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, dial 2 under 1 after 4"),
            ("open 2", "probe 2"),
            ("wait 5s", ""),
            ("close 1 1006", "drop socket 1, retry at once, connecting"),
            ("wait 2s", "rotated after 7.075s, live"),
        ],
    );
}

#[test]
fn repeated_close_notices_are_followed_with_growing_delays() {
    let rotation = |id: u32, delay: &'static str| {
        let call = "call POST /api/v2/notifications/channels";
        // The checkpoint of a quiet stream is renewed.
        let checkpoint = if id == 8 { "append, " } else { "" };
        let step =
            |step: &str, outputs: String| (step.replace('N', &id.to_string()), outputs.replace('N', &id.to_string()));
        let mut steps = vec![
            (format!("notice {}", id - 1), String::new()),
            (format!("notice {}", id - 1), String::new()),
            // Two channels alternate.
            step(
                &format!("wait {delay}"),
                format!("{checkpoint}rotation notice, {}", if id == 2 { call } else { "dial N under 1" }),
            ),
            ("stored".to_owned(), String::new()),
            step("open N", "probe N".to_owned()),
            step("pong N", format!("rotated after 0ns, probe {}", id - 1)),
            (format!("pong {}", id - 1), String::new()),
            step("wait 1s", format!("close {} 1000", id - 1)),
            (format!("close {} 1000", id - 1), format!("drop socket {}", id - 1)),
        ];
        if id == 2 {
            let subscribe = "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true";
            let made = [(CHANNEL_2, subscribe), ("answer 200 {}", "dial 2 under 1")];
            steps.splice(4..4, made.map(|(step, outputs)| (step.to_owned(), outputs.to_owned())));
        }
        steps
    };
    let mut script: Vec<(String, String)> = ["75ms", "250ms", "500ms", "1s", "2s", "4s", "5s", "5s"]
        .into_iter()
        .zip(2..)
        .flat_map(|(delay, id)| rotation(id, delay))
        .collect();
    // A stable session resets the delay.
    script.extend([("wait 9s", "append"), ("stored", "")].map(|(step, outputs)| (step.to_owned(), outputs.to_owned())));
    script.extend(rotation(10, "75ms"));
    let script: Vec<_> = script.iter().map(|(step, outputs)| (step.as_str(), outputs.as_str())).collect();
    run_script(notifications(), LogHead::default(), &[LIVE, &script].concat());
}

#[test]
fn a_delayed_rotation_is_expedited_by_an_operator_and_by_a_token() {
    let delayed: Script<'_> = &[
        ("notice 1", ""),
        ("wait 75ms", "rotation notice, call POST /api/v2/notifications/channels"),
        (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
        ("answer 200 {}", "dial 2 under 1"),
        ("open 2", "probe 2"),
        ("pong 2", "rotated after 0ns, probe 1"),
        ("pong 1", ""),
        ("wait 1s", "close 1 1000"),
        ("close 1 1000", "drop socket 1"),
        ("notice 2", ""),
    ];
    let table = [
        ("rotate", "rotation notice, dial 3 under 1"),
        ("token 2", "rotation token, call POST /api/v2/notifications/channels"),
    ];
    for (step, outputs) in table {
        let script: Script<'_> = &[(step, ""), ("wait 75ms", outputs)];
        run_script(notifications(), LogHead::default(), &[LIVE, delayed, script].concat());
    }
}

#[test]
fn a_successor_without_a_topic_does_not_replace_a_session_that_has_it() {
    let topic = "v2.conversations.c-1.transcription";
    let rejected =
        format!(r#"answer 200 {{"entities":[{{"id":"{topic}","state":"Rejected","rejectionReason":"no"}}]}}"#);
    let subscribe = "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true";
    let begin: Script<'_> = &[
        ("rotate", ""),
        ("wait 75ms", "rotation operator, call POST /api/v2/notifications/channels"),
        (CHANNEL_2, subscribe),
        (&rejected, "drop socket 2"),
        ("text 1 a", "append a"),
        ("stored", ""),
    ];
    let accepted: Script<'_> = &[
        ("wait 250ms", subscribe),
        ("answer 200 {}", "dial 3 under 1"),
        ("open 3", "probe 3"),
        ("pong 3", "rotated after 0ns, probe 1"),
    ];
    run_script(notifications(), LogHead::default(), &[LIVE, begin, accepted].concat());
    // After a minute it replaces the session, and a gap is marked.
    let delays = ["250ms", "500ms", "1s", "2s", "4s", "8s", "10s", "10s", "10s"].map(|delay| format!("wait {delay}"));
    let forgotten = [3, 4, 5, 6, 7, 8, 9, 10, 11].map(|id| format!("drop socket {id}"));
    let probed = format!("probe 1, {subscribe}");
    let mut refused: Vec<(&str, &str)> = Vec::new();
    for (place, (delay, forgotten)) in delays.iter().zip(&forgotten).enumerate() {
        refused.extend([(&**delay, if place == 7 { &*probed } else { subscribe }), (&*rejected, &**forgotten)]);
        if [5, 7].contains(&place) {
            refused.extend([("text 1 b", "append b"), ("stored", "")]);
        }
    }
    let taken: Script<'_> = &[
        ("wait 10s", subscribe),
        (&rejected, "dial 12 under 1"),
        ("open 12", "probe 12"),
        ("pong 12", "rotated after 0ns, probe 1, gap no-replay, append gap(no-replay ?..?), degraded"),
    ];
    run_script(notifications(), LogHead::default(), &[LIVE, begin, &refused, taken].concat());
}

#[test]
fn an_operator_rotation_ends_a_hung_attempt() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("rotate", ""),
            ("wait 5s", ""),
            ("rotate", "drop socket 1, dial 2 under 1 after 4"),
            ("join 2", "probe 2, live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, dial 3 under 1 after 4"),
            ("wait 5s", ""),
            ("rotate", "drop socket 3, dial 4 under 1 after 4"),
            ("join 4", "probe 4, rotated after 0ns, close 2 1000"),
        ],
    );
}

#[test]
fn rejected_proven_tokens_are_replaced_at_once() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("close 1 1008", "drop socket 1, refuse token 1, retry at once, starting"),
            ("token 2", "dial 2 under 2 after 4, connecting"),
            ("join 2", "probe 2, live"),
            ("close 2 1008", "drop socket 2, refuse token 2, retry at once, starting"),
            ("token 3", "dial 3 under 3 after 4, connecting"),
            ("join 3", "probe 3, live"),
            ("close 3 1008", "drop socket 3, refuse token 3, retry at once, starting"),
            ("token 4", "dial 4 under 4 after 4, connecting"),
        ],
    );
}

#[test]
fn a_jump_is_marked_and_its_snapshot_follows_it() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7 8", ""),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 4..7) at 4, recovering"),
            ("events 1 9", ""),
            ("stored", ""),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) 7 8 9 at 9, live"),
        ],
    );
}

#[test]
fn a_failed_snapshot_stays_pending_and_blocks_nothing() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7", ""),
            ("wait 200ms", "gap jump, call GET https://p.test/summary, append gap(jump 4..7) at 4, recovering"),
            ("stored", ""),
            ("answer 500 {}", "no snapshot, append 7 at 7, live"),
            ("stored", ""),
            ("wait 1s", "call GET https://p.test/summary"),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) at 7"),
        ],
    );
}

#[test]
fn a_position_older_than_the_retention_is_abandoned() {
    run_script(
        sequenced(),
        LogHead {
            checkpoint: Some(Checkpoint { last_received_at: Timestamp(WALL - 61_000), ..checkpoint(4) }),
            damaged: false,
        },
        &[
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("join 1", "probe 1, live"),
            (
                "events 1 90",
                "gap retention, call GET https://p.test/summary, append gap(retention 4..90) at 4, recovering",
            ),
        ],
    );
}

#[test]
fn an_oversized_frame_is_skipped_at_once() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7", ""),
            ("oversize 1", "drop socket 1, retry in 1s, backing-off"),
            // A gap precedes the event that waited for 5 and 6.
            (
                "wait 1s",
                "gap oversize, call GET https://p.test/summary, append gap(oversize 4..7) at 4, dial 2 under 1 after 7, \
                 connecting",
            ),
        ],
    );
}

#[test]
fn a_partial_frame_times_out_despite_frames_between_its_parts() {
    run_script(
        notifications(),
        LogHead::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            // A frame that is complete in time.
            ("begin 1", ""),
            ("wait 29s", ""),
            ("text 1 a", "append a"),
            ("stored", ""),
            ("begin 1", ""),
            ("wait 20s", "probe 1"),
            // The checkpoint is renewed.
            ("ping 1", "append"),
            ("stored", ""),
            ("wait 9s", ""),
            ("ping 1", ""),
            ("wait 999ms", ""),
            ("wait 1ms", "drop socket 1, a message not complete in 30 s, retry in 125ms, backing-off"),
        ],
    );
}

#[test]
fn a_busy_platform_still_gets_keepalive_probes() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("wait 20s", ""),
            ("events 1 5", "append 5 at 5"),
            ("wait 9s", ""),
            ("events 1 6", ""),
            ("wait 1s", "probe 1"),
            ("wait 19s", ""),
            ("events 1 7", ""),
            ("wait 11s", "probe 1"),
        ],
    );
}

#[test]
fn a_suspended_process_probes_before_the_silence_timeout() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("stopped 300s", "probe 1"),
            ("wait 14s", ""),
            ("ping 1", "append at 4"),
            ("stored", ""),
            ("stopped 300s", "probe 1"),
            ("wait 15s", "probe 1"),
            ("wait 15s", "drop socket 1, retry in 125ms, backing-off"),
        ],
    );
}

#[test]
fn a_close_keeps_the_position_and_a_poison_frame_is_skipped_at_its_second_occurrence() {
    run_script(
        Settings { backoff: backoff::Settings { breaker_after: 100, ..sequenced().backoff }, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("close 1 1002", "drop socket 1, retry in 1s, backing-off"),
            ("wait 1s", "dial 2 under 1 after 4, connecting"),
            ("join 2", "probe 2, live"),
            ("close 2 1007", "drop socket 2, retry in 2s, backing-off"),
            ("wait 2s", "dial 3 under 1 after 4, connecting"),
            ("join 3", "probe 3, live"),
            ("unreadable 3", "drop socket 3, retry in 4s, backing-off"),
            ("wait 4s", "dial 4 under 1 after 4, connecting"),
            ("join 4", "probe 4, live"),
            ("unreadable 4", "drop socket 4, retry in 8s, backing-off"),
            ("wait 8s", "dial 5 under 1 after none, connecting"),
        ],
    );
}

#[test]
fn a_frame_that_never_ends_is_skipped_at_last() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("begin 1", ""),
            ("wait 30s", "drop socket 1, a message not complete in 30 s, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 2 under 1 after 4, connecting"),
            ("join 2", "probe 2, append at 4, live"),
            ("stored", ""),
            ("begin 2", ""),
            ("wait 30s", "drop socket 2, a message not complete in 30 s, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 3 under 1 after none, connecting"),
        ],
    );
}

#[test]
fn frame_timeouts_are_suspended_under_backpressure() {
    run_script(
        Settings { buffer: 2, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("begin 1", ""),
            ("events 1 5", "append 5 at 5"),
            ("begin 1", ""),
            ("events 1 6 7 8", ""),
            ("begin 1", ""),
            ("wait 50s", "probe 1"),
            ("stored", "append 6 7 8 at 8"),
            ("wait 20s", "probe 1"),
            ("stored", ""),
            ("wait 29s", "probe 1"),
        ],
    );
}

#[test]
fn a_full_buffer_keeps_the_order_of_held_events() {
    run_script(
        Settings { buffer: 3, overflow: OverflowPolicy::DropOldest, ..sequenced() },
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 7 8 9 10 11", ""),
            (
                "wait 200ms",
                "gap jump, shed 3, call GET https://p.test/summary, append gap(shed 4..10) gap(jump 4..7) 10 11 at 11",
            ),
        ],
    );
}

#[test]
fn a_channel_is_replaced_and_the_old_one_closes_after_its_probe_ack() {
    run_script(
        notifications(),
        LogHead::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            ("text 1 a", "append a"),
            ("notice 1", ""),
            ("wait 75ms", "rotation notice, call POST /api/v2/notifications/channels"),
            (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 2 under 1"),
            ("open 2", "probe 2"),
            ("pong 2", "rotated after 0ns, probe 1"),
            // The old session may still bring earlier events.
            ("text 2 b", ""),
            ("stored", ""),
            ("text 1 ab", "append ab"),
            ("text 1 b", ""),
            ("stored", "append b"),
            ("pong 1", "dropped 1"),
            ("text 2 bc", ""),
            ("wait 1s", "close 1 1000"),
            ("text 1 c", ""),
            ("close 1 1000", "drop socket 1"),
            ("text 2 c", "dropped 1"),
        ],
    );
}

#[test]
fn the_rotation_after_a_revocation_is_counted_as_revoked() {
    run_script(
        notifications(),
        LogHead::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            (CHANNEL_1, "call PUT /api/v2/notifications/channels/c1/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 1 under 1"),
            ("open 1", "probe 1"),
            ("pong 1", "live"),
            ("revoke 1", "refuse token 1"),
            ("token 2", ""),
            ("wait 75ms", "rotation revoked, call POST /api/v2/notifications/channels"),
            (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
            ("answer 200 {}", "dial 2 under 2"),
            ("open 2", "probe 2"),
            ("pong 2", "rotated after 0ns, probe 1"),
            // The next token is revoked during the overlap.
            ("revoke 2", "refuse token 2"),
            ("token 3", ""),
            ("pong 1", ""),
            ("wait 1s", "close 1 1000"),
            ("wait 75ms", "rotation revoked, call POST /api/v2/notifications/channels"),
        ],
    );
}

#[test]
fn a_dead_channel_is_marked_as_a_gap_when_its_successor_is_live() {
    run_overlap_script(
        notifications(),
        &[("text 2 c", ""), ("wait 5s", "gap no-replay, close 1 1000, append gap(no-replay ?..?) c")],
    );
}

#[test]
fn an_older_probe_ack_does_not_acknowledge_the_flush_probe() {
    // A heartbeat and the answer to a silence probe do not end the wait.
    let asked_twice: Script<'_> = &[
        ("wait 30s", "probe 1"),
        ("rotate", ""),
        ("wait 75ms", "rotation operator, call POST /api/v2/notifications/channels"),
        (CHANNEL_2, "call PUT /api/v2/notifications/channels/c2/subscriptions?ignoreErrors=true"),
        ("answer 200 {}", "dial 2 under 1"),
        ("open 2", "probe 2"),
        ("pong 2", "rotated after 0ns, probe 1, append"),
        ("stored", ""),
        ("text 2 c", ""),
        ("heartbeat 1", ""),
        ("pong 1", ""),
    ];
    let answered: Script<'_> = &[("text 1 b", "append b"), ("stored", ""), ("pong 1", "append c")];
    run_script(notifications(), LogHead::default(), &[LIVE, asked_twice, answered].concat());
    let dies: Script<'_> = &[("close 1 1006", "drop socket 1, gap no-replay, append gap(no-replay ?..?) c")];
    run_script(notifications(), LogHead::default(), &[LIVE, asked_twice, dies].concat());
}

#[test]
fn a_successor_that_fills_the_buffer_abandons_the_silent_channel() {
    run_overlap_script(
        Settings { buffer: 2, ..notifications() },
        &[("text 2 c", ""), ("text 2 d", "gap no-replay, append gap(no-replay ?..?) c d"), ("wait 1s", "close 1 1000")],
    );
}

#[test]
fn events_of_a_lost_successor_wait_for_the_remaining_session() {
    run_overlap_script(
        notifications(),
        &[
            ("text 2 c", ""),
            ("close 2 1006", "drop socket 2"),
            ("text 1 b", "append b"),
            ("stored", ""),
            (
                "close 1 1006",
                "drop socket 1, gap no-replay, retry in 1s, gap no-replay, append gap(no-replay ?..?) c gap(no-replay ?..?), \
                 backing-off",
            ),
        ],
    );
}

#[test]
fn a_failed_call_is_retried() {
    run_script(
        notifications(),
        LogHead::default(),
        &[
            ("token 1", "call POST /api/v2/notifications/channels, connecting"),
            ("answer 500 {}", "drop socket 1, retry in 1s, backing-off"),
            ("wait 1s", "call POST /api/v2/notifications/channels, connecting"),
            ("answer 401 {}", "drop socket 2, refuse token 1, retry at once, starting"),
        ],
    );
}

#[test]
fn a_drain_accepts_late_events_and_ends_when_they_are_durable() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("events 1 5", "append 5 at 5"),
            ("drain", "close 1 1000, paused"),
            ("events 1 6", ""),
            ("close 1 1000", "drop socket 1"),
            ("stored", "append 6 at 6"),
            ("stored", "drained"),
        ],
    );
}

#[test]
fn a_refused_upgrade_backs_off_and_waits_for_the_cap_from_the_third_on() {
    for status in ["200", "302", "403", "421"] {
        let refuse = |session: u32| format!("refuse {session} {status}");
        run_script(
            sequenced(),
            position(4),
            &[
                ("token 1", "dial 1 under 1 after 4, connecting"),
                ("join 1", "probe 1, live"),
                ("wait 10s", ""),
                ("close 1 1006", "drop socket 1, retry in 125ms, backing-off"),
                ("wait 125ms", "dial 2 under 1 after 4, connecting"),
                (&refuse(2), "drop socket 2, retry in 1s, backing-off"),
                ("wait 1s", "dial 3 under 1 after 4, connecting"),
                (&refuse(3), "drop socket 3, retry in 2s, backing-off"),
                ("wait 2s", "dial 4 under 1 after 4, connecting"),
                (&refuse(4), "drop socket 4, action required, retry in 30s, failed"),
                ("wait 30s", "dial 5 under 1 after 4, connecting"),
                (&refuse(5), "drop socket 5, action required, retry in 30s, failed"),
                ("wait 30s", "dial 6 under 1 after none, connecting"),
            ],
        );
    }
}

#[test]
fn a_refused_position_is_abandoned_only_when_a_session_without_it_is_live() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("refuse 1 410", "drop socket 1, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 2 under 1 after none, connecting"),
            ("refuse 2 400", "drop socket 2, retry in 1s, backing-off"),
            // The position was not the cause.
            ("wait 1s", "dial 3 under 1 after 4, connecting"),
            ("refuse 3 416", "drop socket 3, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 4 under 1 after none, connecting"),
            ("join 4", "probe 4, live"),
            (
                "events 4 9",
                "gap retention, call GET https://p.test/summary, append gap(retention 4..9) at 4, recovering",
            ),
        ],
    );
}

#[test]
fn a_position_that_is_not_found_is_requested_once_more() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("refuse 1 404", "drop socket 1, retry in 1s, backing-off"),
            ("wait 1s", "dial 2 under 1 after 4, connecting"),
            ("refuse 2 404", "drop socket 2, retry in 125ms, backing-off"),
            ("wait 125ms", "dial 3 under 1 after none, connecting"),
            ("join 3", "probe 3, live"),
            ("events 3 5", "append 5 at 5"),
        ],
    );
}

#[test]
fn a_successor_with_a_refused_position_starts_without_one_while_the_old_session_serves() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("join 1", "probe 1, live"),
            ("rotate", ""),
            ("wait 75ms", "rotation operator, dial 2 under 1 after 4"),
            ("refuse 2 410", "drop socket 2"),
            ("wait 250ms", "dial 3 under 1 after none"),
            ("events 1 5", "append 5 at 5"),
            ("join 3", "probe 3, rotated after 0ns, close 1 1000"),
            ("events 3 6", ""),
            ("stored", "append 6 at 6"),
        ],
    );
}

#[test]
fn an_operator_expedites_the_next_attempt_or_gets_the_objection() {
    run_script(
        sequenced(),
        position(4),
        &[
            ("objects rotate", "it waits for a token that the platform accepts: see the account's status"),
            ("objects resume", "it waits for a token that the platform accepts: see the account's status"),
            ("objects pause", ""),
            ("token 1", "dial 1 under 1 after 4, connecting"),
            ("objects rotate", ""),
            ("refuse 1 503", "drop socket 1, retry in 1s, backing-off"),
            ("objects rotate", ""),
            ("rotate", "dial 2 under 1 after 4, connecting"),
            ("refuse 2 403", "drop socket 2, retry in 2s, backing-off"),
            ("resume", "dial 3 under 1 after 4, connecting"),
            ("refuse 3 403", "drop socket 3, retry in 4s, backing-off"),
            ("rotate", "dial 4 under 1 after 4, connecting"),
            ("refuse 4 403", "drop socket 4, action required, retry in 30s, failed"),
            ("rotate", "dial 5 under 1 after 4, connecting"),
            ("join 5", "probe 5, live"),
            ("resume", ""),
            ("pause", "close 5 1000, paused"),
            ("objects rotate", "it is paused: resume it first"),
            ("objects pause", ""),
            ("objects resume", ""),
            ("drain", ""),
            ("objects resume", "it is ending"),
        ],
    );
}
