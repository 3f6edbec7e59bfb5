//! A position is valid only for the feed with which it was stored.

use super::script_runner::{
    LIVE, Script, checkpoint, notifications, numbered_frame, run_script, run_standby_script, sequenced, start,
};
use super::*;

const GAP: &str = "gap reset, call GET https://p.test/summary, append gap(reset ?..?), recovering";

fn other_feed() -> FeedId {
    FeedId::of("genesys-sequenced", "wss://other.test/stream")
}

/// A log that ends at this position of this feed.
fn written_from(feed: Option<FeedId>, last: Option<u64>) -> LogHead {
    let checkpoint = Checkpoint { feed, ..checkpoint(last.unwrap_or(0)) };
    let position = checkpoint.position.filter(|_| last.is_some());
    LogHead { checkpoint: Some(Checkpoint { position, ..checkpoint }), damaged: false }
}

#[test]
fn the_position_of_another_feed_is_not_used_and_the_reason_of_the_gap_follows() {
    let own = sequenced().feed;
    for (stored, last, used, reason) in [
        (Some(own), Some(4), Some(4), GapReason::NoReplay),
        // Data of an earlier version.
        (None, Some(4), Some(4), GapReason::NoReplay),
        (Some(other_feed()), Some(4), None, GapReason::Reset),
        (Some(own), None, None, GapReason::NoReplay),
        (None, None, None, GapReason::NoReplay),
        (Some(other_feed()), None, None, GapReason::Reset),
    ] {
        let validated = written_from(stored, last).validated_for(own, Resume::Sequence);
        let position = validated.head.position().and_then(|position| position.order()).map(|number| number.0);
        assert_eq!((position, validated.gap_reason), (used, Some(reason)), "{stored:?} {last:?}");
        assert_eq!(validated.is_other_feed, reason == GapReason::Reset, "{stored:?} {last:?}");
        assert_eq!(
            validated.head.checkpoint.unwrap().last_received_at,
            checkpoint(4).last_received_at,
            "how long it was silent"
        );
    }
    let empty = LogHead::default().validated_for(own, Resume::Sequence);
    assert_eq!((empty.is_other_feed, empty.gap_reason), (false, None), "a new log has nothing to miss");
}

#[test]
fn a_checkpoint_has_the_feed_of_its_events() {
    let (feed, now) = (sequenced().feed, start());
    let mut stream = Stream::new(sequenced(), written_from(None, Some(4)), now);
    let frame = numbered_frame(&["5"]);
    let inputs = [Input::Token(1), Input::Opened(SessionId(1)), Input::Frame { session: SessionId(1), frame }];
    inputs.into_iter().for_each(|input| stream.handle(input, now));
    let mut outputs = std::iter::from_fn(|| stream.poll_output());
    let expected = Checkpoint { feed: Some(feed), ..checkpoint(5) };
    let is_stored = |output| matches!(output, Output::Append { checkpoint, .. } if checkpoint == expected);
    assert!(outputs.any(is_stored), "one of an earlier version is trusted once");
}

#[test]
fn a_stream_with_another_feed_starts_without_a_position_after_a_gap() {
    run_script(
        sequenced(),
        written_from(Some(other_feed()), Some(4)),
        &[
            // The gap is marked only when a session is live: with the former configuration the log continues without a
            // gap.
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("refuse 1 503", "drop socket 1, retry in 1s, backing-off"),
            ("wait 1s", "dial 2 under 1 after none, connecting"),
            ("open 2", "probe 2"),
            ("ping 2", GAP),
            ("events 2 90", ""),
            ("stored", ""),
            ("answer 200 {}", "snapshot, append snapshot(0001-1) 90 at 90, live"),
            ("stored", ""),
            ("close 2 1006", "drop socket 2, retry in 2s, backing-off"),
            ("wait 2s", "dial 3 under 1 after 90, connecting"),
        ],
    );
}

#[test]
fn an_unnumbered_stream_with_another_feed_starts_after_a_gap() {
    let live = LIVE[LIVE.len() - 1];
    let script = [&LIVE[..LIVE.len() - 1], &[(live.0, "gap reset, append gap(reset ?..?), live")]].concat();
    run_script(notifications(), written_from(Some(other_feed()), None), &script);
}

/// Replicas with different configurations, or a feed that was changed and changed back.
#[test]
fn a_standby_with_another_feed_than_the_log_restarts() {
    let own_other: Script<'_> = &[
        ("own-other 6", "other feed, drop socket 1, dial 2 under 1 after none, connecting"),
        // Events of the old session are dropped.
        ("events 1 8", ""),
        ("open 2", "probe 2"),
        ("ping 2", GAP),
        ("events 2 9", ""),
        ("stored", ""),
        ("answer 200 {}", "snapshot, append snapshot(0001-1) 9 at 9, live"),
    ];
    let live: Script<'_> = &[
        ("follow 4", ""),
        ("token 1", "dial 1 under 1 after 4, connecting"),
        ("join 1", "probe 1, live"),
        ("events 1 5 6 7", ""),
    ];
    run_standby_script(sequenced(), &[live, own_other].concat());
    run_standby_script(
        sequenced(),
        &[
            ("own-other 6", "other feed"),
            ("token 1", "dial 1 under 1 after none, connecting"),
            ("open 1", "probe 1"),
            ("ping 1", GAP),
        ],
    );
}
