//! A stream whose platform sends opaque positions: the dummy dialect, where `@TEXT` is a position.

use super::{
    script_runner::{Script, opaque_checkpoint, run_script, run_standby_script, sequenced},
    *,
};
use crate::connector::{Connector, Opening, Transport, dummy};

fn opaque() -> Settings {
    let connector = Connector::Dummy(dummy::Settings {
        transport: Transport::LongPoll,
        url: "https://p.test/stream".to_owned(),
        token_parameter: None,
        resume_parameter: "sequenceId".to_owned(),
        opening: Opening::default(),
        probe: "ping".to_owned(),
        close_codes: Vec::new(),
        provision: None,
    });
    Settings { feed: connector.feed("https://p.test"), connector, ..sequenced() }
}

fn at(text: &str) -> LogHead {
    LogHead { checkpoint: Some(opaque_checkpoint(text)), damaged: false }
}

/// The first session is live without a position.
const LIVE: Script<'_> =
    &[("token 1", "dial 1 under 1 after none, connecting"), ("open 1", "probe 1"), ("lines 1 pong", "live")];

#[test]
fn a_session_resumes_after_the_last_opaque_position() {
    let lost: Script<'_> = &[
        (r#"lines 1 e:"a" e:"b" @c-1"#, "append a b at c-1"),
        (r#"lines 1 e:"c" @c&2 e:"d""#, ""),
        ("stored", "append c d at c&2"),
        ("stored", ""),
        ("close 1 1006", "drop socket 1, retry in 1s, backing-off"),
        ("wait 1s", "dial 2 under 1 after c%262, connecting"),
        ("open 2", "probe 2"),
        (r#"lines 2 pong e:"d" @c-3"#, "append d at c-3, live"),
    ];
    run_script(opaque(), LogHead::default(), &[LIVE, lost].concat());
}

#[test]
fn a_restart_resumes_after_the_stored_position() {
    run_script(
        opaque(),
        at("c 1"),
        &[
            ("token 1", "dial 1 under 1 after c%201, connecting"),
            ("open 1", "probe 1"),
            ("lines 1 pong", "live"),
            ("wait 15s", ""),
            // Nothing happened, and the platform moves the position.
            ("lines 1 @c-2", "append at c-2"),
        ],
    );
}

#[test]
fn a_position_of_another_kind_is_not_used() {
    run_script(opaque(), script_runner::position(4), &[("token 1", "dial 1 under 1 after none, connecting")]);
    run_script(sequenced(), at("4"), &[("token 1", "dial 1 under 1 after none, connecting")]);
}

#[test]
fn an_old_or_refused_position_is_abandoned_with_a_gap() {
    run_script(
        opaque(),
        at("c-1"),
        &[
            ("wait 61s", ""),
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("open 1", "probe 1"),
            ("lines 1 pong", "gap retention, append gap(retention ?..?) at c-1, live"),
        ],
    );
    run_script(
        opaque(),
        at("c-1"),
        &[
            ("token 1", "dial 1 under 1 after c%2D1, connecting"),
            ("refuse 1 410", "drop socket 1, retry in 125ms, backing-off"),
            ("wait 1s", "dial 2 under 1 after none, connecting"),
            ("open 2", "probe 2"),
            ("lines 2 pong", "gap retention, append gap(retention ?..?) at c-1, live"),
        ],
    );
}

#[test]
fn a_successor_repeats_events_and_copies_are_dropped() {
    let swap: Script<'_> = &[
        (r#"lines 1 e:"a" @c-1"#, "append a at c-1"),
        ("stored", ""),
        ("rotate", ""),
        ("wait 75ms", "rotation operator, dial 2 under 1 after c%2D1"),
        (r#"lines 1 e:"b" @c-2"#, "append b at c-2"),
        ("stored", ""),
        ("open 2", "probe 2"),
        ("lines 2 pong", "rotated after 0ns, close 1 1000"),
        (r#"lines 2 e:"b" @c-2 e:"c" @c-3"#, "dropped 1, append c at c-3"),
    ];
    run_script(opaque(), LogHead::default(), &[LIVE, swap].concat());
}

#[test]
fn without_a_position_events_of_a_successor_wait_with_their_position() {
    let swap: Script<'_> = &[
        ("rotate", ""),
        ("wait 75ms", "rotation operator, dial 2 under 1 after none"),
        ("open 2", "probe 2"),
        ("lines 2 pong", "rotated after 0ns, probe 1"),
        (r#"lines 2 e:"b" @c-2"#, ""),
        (r#"lines 1 e:"a""#, "append a"),
        ("stored", ""),
        (r#"lines 1 e:"b" pong"#, "dropped 1, append b at c-2"),
    ];
    run_script(opaque(), LogHead::default(), &[LIVE, swap].concat());
}

#[test]
fn a_standby_starts_again_at_the_position_of_the_log() {
    let taken: Script<'_> = &[
        (r#"lines 1 e:"a" @c-1"#, ""),
        ("own @c-7", "drop socket 1, dial 2 under 1 after c%2D7, connecting"),
        ("open 2", "probe 2"),
        (r#"lines 2 pong e:"a" @c-8"#, "append a at c-8, live"),
    ];
    run_standby_script(opaque(), &[LIVE, taken].concat());
}

#[test]
fn a_flush_needs_no_probe_if_the_log_has_a_position() {
    let probed: Script<'_> = &[("flush", "probe 1"), ("lines 1 pong", "flushed")];
    run_script(opaque(), LogHead::default(), &[LIVE, probed].concat());
    let resumable: Script<'_> = &[(r#"lines 1 e:"a" @c-1"#, "append a at c-1"), ("flush", ""), ("stored", "flushed")];
    run_script(opaque(), LogHead::default(), &[LIVE, resumable].concat());
}
