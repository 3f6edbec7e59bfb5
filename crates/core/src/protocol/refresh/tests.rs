//! Scripts of one replica: inputs, and the expected outputs.

mod explore;
mod model;

use proptest::prelude::*;

use super::*;

#[test]
fn a_token_is_renewed_ahead_of_its_end_counted_from_the_sending_of_the_request() {
    // lifetime, random number, due after the sending (buffer 300 s, jitter up to 2 s)
    let table = [
        (1_800.0, 0.0, "1500"),
        (1_800.0, 1.0, "1502"),
        (1_200.0, 0.0, "900"),
        (1_199.0, 0.0, "899.25"),
        (20.0, 0.0, "15"),
        (20.0, 1.0, "16.25"),
        (2.0, 1.0, "1.625"),
        (1.0, 0.0, "1"),
    ];
    for (life, unit, due) in table {
        let lifetime = Some(Duration::from_secs_f64(life));
        let trace = play(&[(0.0, Input::Start), (0.5, Input::Granted { lifetime, repeated: false, unit })], life);
        assert_eq!(trace, format!("0 fetch, 0.5 adopt 1, {due} fetch"), "{life} {unit}");
    }
    assert_eq!(play(&[(0.0, Input::Start), (1.0, without_expiry())], 1e6), "0 fetch, 1 adopt 1");
}

#[test]
fn a_refused_token_is_replaced_at_once_and_only_once() {
    let start = [(0.0, Input::Start), (1.0, granted(1800))];
    let table = [
        // fifty callers report the same rejected token
        (vec![(20.0, refused(1)), (20.0, refused(1)), (21.0, refused(1))], "20 fetch"),
        (vec![(20.0, refused(1)), (21.0, granted(1800)), (22.0, refused(1))], "20 fetch, 21 adopt 2"),
        // an older token, and an unknown one
        (vec![(20.0, refused(0)), (20.0, refused(2))], ""),
        // tokens that carried a live session, several times
        (vec![(2.0, refused(1))], "2 fetch"),
        (
            vec![(2.0, refused(1)), (3.0, granted(1800)), (8.0, refused(2)), (9.0, granted(1800)), (14.0, refused(3))],
            "2 fetch, 3 adopt 2, 8 fetch, 9 adopt 3, 14 fetch",
        ),
        // a token that never carried one waits for the interval, unless a session under it is live after all
        (vec![(2.0, unproven(1))], "60 fetch"),
        (vec![(2.0, unproven(1)), (5.0, refused(1))], "5 fetch"),
        (vec![(2.0, unproven(1)), (5.0, cleared(1))], ""),
        (vec![(2.0, unproven(1)), (5.0, cleared(1)), (9.0, refused(1))], "9 fetch"),
        (vec![(2.0, unproven(1)), (5.0, cleared(0)), (5.0, cleared(2))], "60 fetch"),
        (vec![(2.0, refused(1)), (3.0, granted(1800)), (4.0, unproven(2))], "2 fetch, 3 adopt 2, 62 fetch"),
        (vec![(2.0, refused(1)), (3.0, granted(1800)), (63.0, unproven(2))], "2 fetch, 3 adopt 2, 63 fetch"),
        // the endpoint grants the same token again: the next request follows sooner, with growing delays
        (
            vec![
                (20.0, refused(1)),
                (21.0, repeated()),
                (22.0, unproven(2)),
                (26.0, repeated()),
                (27.0, unproven(3)),
                (36.0, granted(1800)),
                (37.0, unproven(4)),
            ],
            "20 fetch, 21 adopt 2, 25 fetch, 26 adopt 3, 35 fetch, 36 adopt 4, 95 fetch",
        ),
    ];
    for (script, expected) in table {
        let trace = play(&[&start[..], &script].concat(), 600.0);
        assert_eq!(trace.strip_prefix("0 fetch, 1 adopt 1").unwrap().trim_start_matches(", "), expected);
    }
}

#[test]
fn a_refused_token_is_retried_unless_it_was_proven() {
    let start = [(0.0, Input::Start), (1.0, granted(1800))];
    let table = [
        (vec![], true),
        (vec![(2.0, unproven(1))], true),
        (vec![(2.0, unproven(1)), (60.0, failed(GrantFailure::Unreachable))], true),
        (vec![(2.0, refused(1))], false),
        (vec![(2.0, unproven(1)), (3.0, refused(1))], false),
        (vec![(2.0, refused(1)), (3.0, granted(1800))], true),
        (vec![(2.0, refused(1)), (3.0, granted(1800)), (4.0, unproven(2))], true),
    ];
    for (script, expected) in table {
        let mut world = RefreshRunner::new();
        world.play(&[&start[..], &script].concat());
        assert_eq!(world.machine.is_retryable(), expected, "{script:?}");
    }
}

#[test]
fn a_platform_that_refuses_every_token_causes_few_requests_and_degrades_the_account() {
    let mut world = RefreshRunner::new();
    world.play(&[(0.0, Input::Start), (0.0, granted(1800))]);
    let mut degraded = Vec::new();
    for second in 1..=20_u32 {
        let now = f64::from(second);
        world.run_answered(now, granted(1800));
        let until = world.machine.degraded_until();
        degraded.push(until.is_some_and(|until| world.start + Duration::from_secs_f64(now) < until));
        world.play(&[(now, refused(world.machine.generation()))]);
    }
    world.run_to(world.start + Duration::from_secs(20));
    let fetches = world.fetches.iter().map(|at| (*at - world.start).as_secs().to_string());
    // A request follows five seconds after the last one, whether or not a session was live.
    assert_eq!(fetches.collect::<Vec<_>>().join(" "), "0 1 2 3 8 13 18");
    assert_eq!(degraded.iter().filter(|degraded| !**degraded).count(), 3);
    let past = world.start + Duration::from_secs(3) + REFUSALS_WINDOW;
    assert!(world.machine.degraded_until().unwrap() > past, "it stays degraded while tokens are rejected");
}

#[test]
fn status_shows_why_and_until_when_a_refresh_waits() {
    let throttled = |secs| GrantFailure::Throttled(Some(Duration::from_secs(secs)));
    let start = [(0.0, Input::Start), (0.0, granted(1800))];
    // inputs, time of the check; what the refresh waits for, and until when
    let table = [
        (vec![], 10.0, None),
        (vec![], 1_501.0, Some((WaitReason::Endpoint, None))),
        (vec![(10.0, Input::RefreshRequested)], 20.0, Some((WaitReason::IntervalMin, Some(60)))),
        (vec![(10.0, unproven(1))], 20.0, Some((WaitReason::IntervalMin, Some(60)))),
        (vec![(10.0, unproven(1)), (11.0, cleared(1))], 20.0, None),
        (vec![(10.0, refused(1))], 20.0, Some((WaitReason::Endpoint, None))),
        (vec![(10.0, refused(1)), (10.0, failed(throttled(100)))], 20.0, Some((WaitReason::RetryAfter, Some(120)))),
        (vec![(10.0, refused(1)), (10.0, failed(GrantFailure::Rejected))], 20.0, Some((WaitReason::Backoff, Some(40)))),
        (
            vec![(10.0, refused(1)), (20.0, failed(GrantFailure::Unreachable))],
            20.0,
            Some((WaitReason::Backoff, Some(21))),
        ),
    ];
    for (script, looked, expected) in table {
        let mut world = RefreshRunner::new();
        world.play(&[&start[..], &script].concat());
        let now = world.start + Duration::from_secs_f64(looked);
        world.run_to(now);
        let seconds = |at: Instant| (at - world.start).as_secs();
        let found = world.machine.pending_refresh(now).map(|waiting| (waiting.reason, waiting.until.map(seconds)));
        assert_eq!(found, expected, "{script:?}");
    }
}

#[test]
fn an_operator_request_respects_the_interval() {
    let table = [
        (vec![(20.0, Input::RefreshRequested), (30.0, Input::RefreshRequested)], "60 fetch"),
        (vec![(100.0, Input::RefreshRequested), (100.0, Input::RefreshRequested)], "100 fetch"),
        (
            vec![(100.0, Input::RefreshRequested), (101.0, granted(1800)), (102.0, Input::RefreshRequested)],
            "100 fetch, 101 adopt 2, 160 fetch",
        ),
        // the scheduled refresh comes first
        (
            vec![(1.5, Input::RefreshRequested), (60.0, granted(60)), (61.0, Input::RefreshRequested)],
            "60 fetch, 60 adopt 2, 105 fetch",
        ),
    ];
    for (script, expected) in table {
        let trace = play(&[&[(0.0, Input::Start), (1.0, granted(1800))][..], &script].concat(), 600.0);
        assert_eq!(trace, format!("0 fetch, 1 adopt 1, {expected}"));
    }
}

#[test]
fn each_failure_has_its_own_delays() {
    let pause = |secs| GrantFailure::Throttled(Some(Duration::from_secs(secs)));
    // failure, attempts within this number of seconds with the random number 0.5
    let table = [
        (GrantFailure::Unreachable, 130.0, "0 1 3 7 15 31 61 91 121"),
        (GrantFailure::Throttled(None), 130.0, "0 1 3 7 15 31 61 91 121"),
        (pause(100), 400.0, "0 110 220 330"),
        (pause(3_600), 3_650.0, "0 3600"),
        (GrantFailure::Rejected, 4_000.0, "0 30 90 210 450 930 1830 2730 3630"),
    ];
    for (failure, until, expected) in table {
        assert_eq!(tries(None, failure, until), expected, "{failure:?}");
    }
}

#[test]
fn an_unreachable_endpoint_is_tried_every_few_seconds_before_the_token_ends() {
    // due at 300 of 400; the fast retries begin at 340
    let trace = tries(Some(400), GrantFailure::Unreachable, 432.0);
    assert_eq!(
        trace,
        "0 300 301 303 307 315 331 340 345 350 355 360 365 370 375 380 385 388 391 393 395 396 397 398 399 400 430"
    );
    let trace = tries(Some(400), GrantFailure::Rejected, 600.0);
    assert_eq!(trace, "0 300 330 390 510", "bad credentials are not tried faster");
}

#[test]
fn rejected_credentials_alarm_once_and_the_current_token_stays() {
    let mut world = RefreshRunner::new();
    world.play(&[(0.0, Input::Start), (0.0, granted(1800)), (1500.0, failed(GrantFailure::Rejected))]);
    world.play(&[(1530.0, failed(GrantFailure::Rejected))]);
    assert_eq!(
        world.transcript(),
        "0 fetch, 0 adopt 1, 1500 fetch, 1500 alarm and retry at 1530, 1530 fetch, 1530 retry at 1590"
    );
    assert_eq!((world.machine.phase(), world.machine.generation()), (TokenPhase::Rejected, 1));
    assert_eq!(world.machine.expires_at(), Some(world.start + Duration::from_secs(1800)));

    world.play(&[(1590.0, granted(1800))]);
    assert_eq!(world.machine.phase(), TokenPhase::Valid);
}

#[test]
fn corrected_credentials_are_tried_within_the_interval_but_not_while_throttled() {
    let rejected = [(0.0, Input::Start), (0.0, failed(GrantFailure::Rejected)), (30.0, failed(GrantFailure::Rejected))];
    let trace = play(&[&rejected[..], &[(31.0, Input::RefreshRequested)]].concat(), 600.0);
    assert!(trace.ends_with("30 fetch, 30 retry at 90, 90 fetch"), "{trace}");
    let late = [&rejected[..], &[(90.0, failed(GrantFailure::Rejected)), (155.0, Input::RefreshRequested)]].concat();
    let trace = play(&late, 600.0);
    assert!(trace.ends_with("90 retry at 210, 155 fetch"), "{trace}");

    let throttled = GrantFailure::Throttled(Some(Duration::from_secs(300)));
    let trace = play(
        &[
            (0.0, Input::Start),
            (0.0, granted(1800)),
            (100.0, Input::RefreshRequested),
            (101.0, failed(throttled)),
            (200.0, Input::RefreshRequested),
            (201.0, refused(1)),
        ],
        1_000.0,
    );
    assert_eq!(trace, "0 fetch, 0 adopt 1, 100 fetch, 101 retry at 431, 431 fetch");
}

#[test]
fn a_refusal_while_the_endpoint_is_unavailable_is_tried_at_once() {
    let script = [
        (0.0, Input::Start),
        (0.0, granted(1800)),
        (1500.0, failed(GrantFailure::Unreachable)),
        (1501.0, failed(GrantFailure::Unreachable)),
        (1501.5, refused(1)),
        (1502.0, failed(GrantFailure::Unreachable)),
        (1502.5, refused(1)),
    ];
    let trace = play(&script, 1_600.0);
    assert!(trace.ends_with("1501.5 fetch, 1502 retry at 1506, 1506 fetch"), "{trace}");
}

#[test]
fn repeated_refusals_do_not_expedite_a_failed_attempt() {
    let rejected = |at| (at, failed(GrantFailure::Rejected));
    let start = [(0.0, Input::Start), (0.0, granted(1800)), (100.0, refused(1))];
    let script = [&start[..], &[rejected(100.0), rejected(130.0), rejected(190.0), (290.0, refused(1))]].concat();
    let trace = play(&script, 600.0);
    assert!(trace.ends_with("190 fetch, 190 retry at 310, 310 fetch"), "{trace}");
}

#[test]
fn phases_describe_the_account() {
    let mut world = RefreshRunner::new();
    let mut phases = Vec::new();
    for step in [(0.0, Input::Start), (0.0, granted(400)), (1.0, refused(1)), (2.0, granted(400))] {
        world.play(&[step]);
        phases.push(world.machine.phase());
    }
    world.run_to(world.start + Duration::from_secs(302));
    phases.push(world.machine.phase());
    let expected =
        [TokenPhase::NoToken, TokenPhase::Valid, TokenPhase::Renewing, TokenPhase::Valid, TokenPhase::Renewing];
    assert_eq!(phases, expected);
}

proptest! {
    /// Any inputs of the endpoint, the platform and the operators. `World` checks the rules at each step.
    #[test]
    fn one_request_at_a_time_and_none_before_retry_after(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut world = RefreshRunner::new();
        world.play(&[(0.0, Input::Start)]);
        let mut now = 0.0;
        for (pause, input) in steps {
            now += pause;
            world.run_to(world.start + Duration::from_secs_f64(now));
            if world.in_flight || !is_answer(&input) {
                world.play(&[(now, input)]);
            }
        }
    }

    #[test]
    fn a_token_is_replaced_before_it_ends_when_the_endpoint_answers(
        life in 2.0..200_000.0_f64,
        latency in 0.0..0.18_f64,
        unit in 0.0..1.0_f64,
    ) {
        let mut world = RefreshRunner::new();
        let lifetime = Some(Duration::from_secs_f64(life));
        world.play(&[(0.0, Input::Start), (latency, Input::Granted { lifetime, repeated: false, unit })]);
        for _ in 0..20 {
            let ends_at = world.machine.expires_at().unwrap();
            let due = world.machine.poll_timeout().unwrap();
            world.run_to(due);
            prop_assert!(world.in_flight);
            let answered = due + Duration::from_secs_f64(latency);
            prop_assert!(answered < ends_at);
            world.apply_input(Input::Granted { lifetime, repeated: false, unit }, answered);
        }
        prop_assert_eq!(world.machine.generation(), 21);
    }

    #[test]
    fn refusals_and_operator_requests_cost_few_requests_a_minute(
        steps in proptest::collection::vec((0.0..40.0_f64, any::<bool>()), 1..200),
        accepted in any::<bool>(),
    ) {
        let mut world = RefreshRunner::new();
        world.play(&[(0.0, Input::Start), (0.0, granted(1800))]);
        let mut now = 0.0;
        for (pause, refuse) in steps {
            now += pause;
            let answer = if accepted { granted(1800) } else { failed(GrantFailure::Rejected) };
            world.run_answered(now, answer);
            let generation = world.machine.generation();
            world.play(&[(now, if refuse { unproven(generation) } else { Input::RefreshRequested })]);
        }
        // a scheduled or repeated request, a requested one, and the first after a rejection
        let spread_min = Duration::from_secs(if accepted { 60 } else { 30 });
        for window in world.fetches.windows(4) {
            prop_assert!(window[3] - window[0] >= spread_min);
        }
    }
}

/// Runs the script and then the clock to `until`. Returns the outputs as text.
fn play(script: &[(f64, Input)], until: f64) -> String {
    let mut world = RefreshRunner::new();
    world.play(script);
    world.run_to(world.start + Duration::from_secs_f64(until));
    world.transcript()
}

/// The times of requests to an endpoint that always fails like this, after it granted one token with the lifetime
/// `life`.
fn tries(life: Option<u64>, failure: GrantFailure, until: f64) -> String {
    let mut world = RefreshRunner::new();
    world.play(&[(0.0, Input::Start)]);
    if let Some(life) = life {
        world.play(&[(0.0, granted(life))]);
    }
    world.run_answered(until, failed(failure));
    let seconds = world.fetches.iter().map(|at| (*at - world.start).as_secs().to_string());
    seconds.collect::<Vec<_>>().join(" ")
}

fn step() -> impl Strategy<Value = (f64, Input)> {
    let unit = 0.0..1.0_f64;
    let failure = prop_oneof![
        Just(GrantFailure::Unreachable),
        Just(GrantFailure::Rejected),
        proptest::option::of(1..3_600_u64).prop_map(|secs| GrantFailure::Throttled(secs.map(Duration::from_secs))),
    ];
    let input = prop_oneof![
        (10..100_000_u64, unit.clone()).prop_map(|(life, unit)| Input::Granted {
            lifetime: Some(Duration::from_secs(life)),
            repeated: false,
            unit
        }),
        (failure, unit).prop_map(|(failure, unit)| Input::Failed { failure, unit }),
        (0..20_u64, any::<bool>()).prop_map(|(generation, proven)| Input::Refused { generation, proven }),
        (0..20_u64).prop_map(cleared),
        Just(Input::RefreshRequested),
    ];
    (0.0..100.0_f64, input)
}

fn is_answer(input: &Input) -> bool {
    match input {
        Input::Granted { .. } | Input::Failed { .. } => true,
        Input::Start
        | Input::Refused { .. }
        | Input::RefusalCleared { .. }
        | Input::RefreshRequested
        | Input::VaultRead { .. }
        | Input::Locked { .. }
        | Input::Published(_)
        | Input::VaultNotified { .. } => false,
    }
}

fn granted(life: u64) -> Input {
    Input::Granted { lifetime: Some(Duration::from_secs(life)), repeated: false, unit: 0.0 }
}

/// The rejected token is granted again.
fn repeated() -> Input {
    Input::Granted { lifetime: Some(Duration::from_secs(1_800)), repeated: true, unit: 0.0 }
}

fn without_expiry() -> Input {
    Input::Granted { lifetime: None, repeated: false, unit: 0.0 }
}

fn failed(failure: GrantFailure) -> Input {
    Input::Failed { failure, unit: 0.5 }
}

/// A token that had carried a live session.
fn refused(generation: u64) -> Input {
    Input::Refused { generation, proven: true }
}

/// A token that never carried a live session.
fn unproven(generation: u64) -> Input {
    Input::Refused { generation, proven: false }
}

fn cleared(generation: u64) -> Input {
    Input::RefusalCleared { generation }
}

/// A machine, its clock, and its outputs so far.
struct RefreshRunner {
    machine: Refresh,
    start: Instant,
    in_flight: bool,
    not_before: Instant,
    fetches: Vec<Instant>,
    trace: Vec<String>,
}

impl RefreshRunner {
    fn new() -> Self {
        let machine = Refresh::new(Settings {
            buffer: Duration::from_secs(300),
            interval_min: Duration::from_secs(60),
            jitter_max: Duration::from_secs(2),
            sharing: TokenSharing::None,
        });
        let start = Instant::now();
        Self { machine, start, in_flight: false, not_before: start, fetches: Vec::new(), trace: Vec::new() }
    }

    fn play(&mut self, script: &[(f64, Input)]) {
        for (at, input) in script {
            let at = self.start + Duration::from_secs_f64(*at);
            self.run_to(at);
            self.apply_input(*input, at);
        }
    }

    fn apply_input(&mut self, input: Input, at: Instant) {
        if is_answer(&input) {
            assert!(self.in_flight, "the script answers what was not asked");
            self.in_flight = false;
        }
        if let Input::Failed { failure: GrantFailure::Throttled(Some(pause)), .. } = input {
            self.not_before = at + pause;
        }
        self.machine.handle(input, at);
        self.drain_outputs(at);
    }

    /// Fires every timer that is due by then.
    fn run_to(&mut self, end: Instant) {
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) {
            self.machine.handle_timeout(at);
            self.drain_outputs(at);
        }
    }

    /// Fires every timer that is due by then, with an endpoint that always answers at once.
    fn run_answered(&mut self, until: f64, answer: Input) {
        let end = self.start + Duration::from_secs_f64(until);
        loop {
            if self.in_flight {
                self.apply_input(answer, *self.fetches.last().unwrap());
            }
            let Some(next) = self.machine.poll_timeout().filter(|at| *at <= end) else { return };
            self.run_to(next);
        }
    }

    fn drain_outputs(&mut self, now: Instant) {
        let seconds = |at: Instant| (at - self.start).as_secs_f64();
        while let Some(output) = self.machine.poll_output() {
            self.trace.push(match output {
                Output::Fetch => {
                    assert!(!self.in_flight, "two requests under way");
                    assert!(now >= self.not_before, "requested during a pause");
                    self.in_flight = true;
                    self.fetches.push(now);
                    format!("{} fetch", seconds(now))
                }
                Output::Adopt { generation, origin: TokenOrigin::Grant } => {
                    format!("{} adopt {generation}", seconds(now))
                }
                Output::Retry { at, alarm: false } => format!("{} retry at {}", seconds(now), seconds(at)),
                Output::Retry { at, alarm: true } => format!("{} alarm and retry at {}", seconds(now), seconds(at)),
                Output::Adopt { origin: TokenOrigin::Vault, .. }
                | Output::PauseRequests { .. }
                | Output::ReadVault
                | Output::Lock { .. }
                | Output::Renew { .. }
                | Output::Release { .. }
                | Output::Publish { .. } => panic!("a token that is not shared knows no vault"),
            });
        }
    }

    fn transcript(&self) -> String {
        self.trace.join(", ")
    }
}
