//! Scripts of one replica: inputs, and the expected outputs.
//!
//! The store of a script answers renewals and reads at once. Changes are outputs that the script answers.

use super::*;

/// Steps and their outputs: `change a none to 1/1`, `own a/1`, `release a`, … (holder/number of the fence).
type Script<'a> = &'a [(&'a str, &'a str)];

/// Replica 2 has a stream, and this replica follows it.
const FOLLOWS: Script<'_> = &[
    ("members 1 2", ""),
    ("record a 2/7", ""),
    ("record b 1/3", ""),
    ("start", "own b/3, resume"),
    ("wait 400ms", "follow a"),
];

#[test]
fn a_vacant_stream_is_acquired_after_the_start_delay() {
    play(&[
        ("members 1", ""),
        ("start", "resume"),
        ("wait 900ms", ""),
        ("wait 400ms", "change a none to 1/1, change b none to 1/1"),
        ("done a", "own a/1"),
        // Another replica was faster.
        ("record b 2/4", ""),
        ("refused b", ""),
        ("wait 400ms", "change b 4 to 1/5"),
        ("done b", "own b/5"),
    ]);
}

#[test]
fn a_standby_acquires_the_stream_after_the_heartbeat_timeout() {
    let script = [
        ("prepared a", ""),
        ("beat 2", ""),
        ("wait 300ms", ""),
        ("beat 2", ""),
        ("wait 399ms", ""),
        ("wait 1ms", "change a 7 to 1/8"),
        ("done a", "own a/8"),
    ];
    play(&[FOLLOWS, &script[..]].concat());
}

#[test]
fn a_lost_connection_of_our_own_does_not_count_as_a_dead_holder() {
    let script = [
        ("beat 2", ""),
        ("away", ""),
        ("wait 1099ms", ""),
        ("wait 1ms", "step down"),
        ("wait 5s", ""),
        ("back", ""),
        ("wait 100ms", "resume"),
        ("beat 2", ""),
        ("wait 390ms", ""),
    ];
    play(&[FOLLOWS, &script[..]].concat());
}

#[test]
fn a_new_member_gets_its_share_after_its_session_is_live() {
    play(&[
        ("members 1", ""),
        ("record a 1/1", ""),
        ("record b 1/1", ""),
        ("start", "own a/1, own b/1, resume"),
        ("members 1 2", ""),
        ("wait 400ms", "ask 2 a"),
        ("wait 400ms", ""),
        // A replica that was not asked.
        ("ready 3 a", ""),
        ("ready 2 a", "change a 1 to 2/2"),
        ("done a", "release a, given 2 a/2"),
        ("wait 400ms", "follow a"),
    ]);
}

#[test]
fn a_handover_without_a_ready_successor_is_cancelled() {
    play(&[
        ("members 1 2", ""),
        ("record a 1/1", ""),
        ("record b 1/1", ""),
        ("start", "own a/1, own b/1, resume"),
        ("wait 400ms", "ask 2 a"),
        ("wait 14s", ""),
        ("wait 1200ms", "ask 2 a"),
        // The replica is gone, so its late message has no effect.
        ("members 1", ""),
        ("wait 400ms", ""),
        ("ready 2 a", ""),
    ]);
}

#[test]
fn a_successor_reports_ready_when_live_and_owns_after_the_record_changed() {
    play(&[
        ("members 1 2", ""),
        ("record a 2/4", ""),
        ("record b 2/4", ""),
        ("start", "resume"),
        ("ask 2 a", "prepare a"),
        ("prepared a", "ready 2 a"),
        ("record a 1/5", ""),
        ("given 2 a/5", "own a/5"),
        // An unexpected second message causes a read of the records.
        ("given 2 b/5", ""),
    ]);
}

#[test]
fn a_standby_whose_session_is_live_is_ready_at_once() {
    play(&[
        ("members 1 2", ""),
        ("record a 2/4", ""),
        ("record b 2/4", ""),
        ("start", "resume"),
        ("wait 400ms", "follow a, follow b"),
        ("beat 2", ""),
        ("prepared a", ""),
        ("ask 2 a", "ready 2 a"),
        ("ask 2 b", ""),
        ("prepared b", "ready 2 b"),
    ]);
}

#[test]
fn without_the_store_it_steps_down_and_later_resumes_its_valid_leases() {
    play(&[
        ("members 1", ""),
        ("record a 1/1", ""),
        ("record b 1/1", ""),
        ("start", "own a/1, own b/1, resume"),
        ("away", ""),
        ("wait 1199ms", ""),
        ("right a", "1"),
        ("wait 1ms", "step down"),
        ("right a", "none"),
        ("wait 1m", ""),
        ("record b 2/2", ""),
        ("back", ""),
        ("wait 100ms", "release b, resume"),
        ("right a", "1"),
        ("right b", "none"),
    ]);
}

#[test]
fn after_a_partition_a_replica_gives_the_others_one_lease_ttl_to_return() {
    let script = [
        ("prepared a", ""),
        ("beat 2", ""),
        ("away", ""),
        ("wait 1m", "step down"),
        ("members 1", ""),
        ("back", ""),
        ("wait 100ms", "resume"),
        ("wait 1s", ""),
    ];
    let back = [("members 1 2", ""), ("wait 950ms", ""), ("beat 2", ""), ("wait 399ms", "")];
    let gone = [("wait 999ms", ""), ("wait 1ms", "change a 7 to 1/8"), ("done a", "own a/8")];
    play(&[FOLLOWS, &script[..], &back[..]].concat());
    play(&[FOLLOWS, &script[..], &gone[..]].concat());
}

#[test]
fn after_a_suspend_a_replica_may_not_append_before_any_timer_fires() {
    play(&[
        ("members 1", ""),
        ("record a 1/1", ""),
        ("start", "own a/1, resume"),
        ("right a", "1"),
        ("sleep 1200ms", ""),
        ("right a", "none"),
        ("record a 2/2", ""),
        ("prepared a", "step down, release a, resume"),
    ]);
}

#[test]
fn a_refused_append_ends_the_ownership() {
    play(&[
        ("members 1 2", ""),
        ("record a 1/1", ""),
        ("record b 2/1", ""),
        ("start", "own a/1, resume"),
        ("fenced a/9", ""),
        ("record a 2/2", ""),
        ("fenced a/1", "release a"),
        ("right a", "none"),
    ]);
}

#[test]
fn a_record_that_names_this_replica_makes_it_the_owner() {
    play(&[
        ("members 1", ""),
        ("record a 1/1", ""),
        ("record b 1/1", ""),
        ("start", "own a/1, own b/1, resume"),
        // The store lost the newest change.
        ("record a 1/9", ""),
        ("wait 2s", "own a/9"),
        ("right a", "9"),
    ]);
}

#[test]
fn a_change_with_an_unknown_outcome_is_read_back() {
    play(&[
        ("members 1", ""),
        ("start", "resume"),
        ("wait 1300ms", "change a none to 1/1, change b none to 1/1"),
        ("record a 1/1", ""),
        ("unknown a", ""),
        ("unknown b", ""),
        ("wait 100ms", "own a/1"),
        ("wait 400ms", "change b none to 1/1"),
    ]);
}

#[test]
fn a_neglected_stream_is_acquired_by_any_member_with_capacity() {
    play(&[
        ("members 1 2", ""),
        ("record b 1/1", ""),
        ("start", "own b/1, resume"),
        ("wait 4s", ""),
        ("wait 400ms", "change a none to 1/1"),
    ]);
}

#[test]
fn a_drain_hands_everything_over_and_then_leaves() {
    play(&[
        ("members 1 2", ""),
        ("record a 1/1", ""),
        ("record b 2/1", ""),
        ("start", "own a/1, resume"),
        ("wait 400ms", "follow b"),
        ("beat 2", ""),
        ("drain 5s", "ask 2 a, release b"),
        ("ready 2 a", "change a 1 to 2/2"),
        ("done a", "release a, given 2 a/2, leave"),
        ("wait 1m", ""),
    ]);
}

#[test]
fn a_drain_abandons_streams_without_a_successor() {
    let start = [("members 1 2", ""), ("record a 1/1", ""), ("record b 2/1", ""), ("start", "own a/1, resume")];
    let alone = [("members 1 2:0", ""), ("drain 5s", "change a 1 to none/2"), ("done a", "release a, leave")];
    let late = [("drain 5s", "ask 2 a"), ("wait 5s", "change a 1 to none/2"), ("done a", "release a, leave")];
    play(&[&start[..], &alone[..]].concat());
    play(&[&start[..], &late[..]].concat());
}

const ME: ReplicaId = ReplicaId(1);

/// A replica, its clock and its store.
struct LeaseRunner {
    lease: Lease,
    now: BootTime,
    members: Vec<Member>,
    records: BTreeMap<StreamName, LeaseRecord>,
    asked_for: BTreeMap<StreamName, LeaseRecord>,
    away: bool,
}

fn play(script: Script<'_>) {
    let settings = Settings {
        me: ME,
        streams: vec![stream("a"), stream("b")],
        limit: 9,
        standby: [stream("a"), stream("b")].into(),
        lease_ttl: Duration::from_secs(2),
        heartbeat_interval: Duration::from_millis(100),
        heartbeat_timeout: Duration::from_millis(400),
        handover_timeout: Duration::from_secs(15),
        start_delay: Duration::from_secs(1),
    };
    let now = Duration::from_secs(1_000);
    let lease = Lease::new(settings, now);
    let (members, records, asked_for) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut runner = LeaseRunner { lease, now, members, records, asked_for, away: false };
    for (number, (step, expected)) in script.iter().enumerate() {
        assert_eq!(runner.step(step), *expected, "step {number}: {step}");
    }
}

impl LeaseRunner {
    fn step(&mut self, step: &str) -> String {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "members" => self.members = rest.split(' ').map(member).collect(),
            "record" => {
                let (name, text) = rest.split_once(' ').unwrap();
                self.records.insert(stream(name), record(text));
            }
            "away" => self.away = true,
            "back" => self.away = false,
            "sleep" => self.now += humantime::parse_duration(rest).unwrap(),
            "right" => {
                let right = self.lease.append_fence(&stream(rest), self.now);
                return right.map_or_else(|| "none".to_owned(), |fence| fence.number.to_string());
            }
            "start" => return self.wait(Duration::ZERO),
            "wait" => return self.wait(humantime::parse_duration(rest).unwrap()),
            _ => return self.apply_input(verb, rest),
        }
        String::new()
    }

    fn apply_input(&mut self, verb: &str, rest: &str) -> String {
        let input = match (verb, rest.split_once(' ')) {
            ("done" | "refused" | "unknown", _) => self.answer(verb, stream(rest)),
            ("beat", _) => Input::Heartbeat { from: replica(rest) },
            ("prepared", _) => Input::Prepared { stream: stream(rest), live: true },
            ("drain", _) => Input::Drain { until: self.now + humantime::parse_duration(rest).unwrap() },
            ("fenced", _) => {
                let (stream, fence) = with_fence(rest);
                Input::Fenced { stream, fence }
            }
            ("ask", Some((from, name))) => received(from, PeerMessage::RequestHandover { stream: stream(name) }),
            ("ready", Some((from, name))) => received(from, PeerMessage::Ready { stream: stream(name) }),
            ("given", Some((from, rest))) => {
                let (stream, fence) = with_fence(rest);
                received(from, PeerMessage::HandedOver { stream, fence })
            }
            _ => panic!("{verb}?"),
        };
        self.lease.handle(input, self.moment());
        self.drain_outputs()
    }

    fn answer(&mut self, verb: &str, stream: StreamName) -> Input {
        let record = self.asked_for.remove(&stream).unwrap();
        let outcome = match verb {
            "done" => ChangeOutcome::Done,
            "refused" => ChangeOutcome::Refused,
            _ => ChangeOutcome::Unknown,
        };
        if outcome == ChangeOutcome::Done {
            self.records.insert(stream.clone(), record);
        }
        Input::Changed { stream, fence: record.fence, outcome }
    }

    fn wait(&mut self, time: Duration) -> String {
        let end = self.now + time;
        let mut lines = Vec::new();
        while let Some(at) = self.lease.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.lease.handle_timeout(self.moment());
            lines.push(self.drain_outputs());
        }
        self.now = end;
        lines.retain(|line| !line.is_empty());
        lines.join(", ")
    }

    fn moment(&self) -> LeaseMoment {
        LeaseMoment { boot: self.now, nonce: 7 }
    }

    /// The outputs as text. The store answers renewals and reads at once.
    fn drain_outputs(&mut self) -> String {
        let mut lines = Vec::new();
        while let Some(output) = self.lease.poll_output() {
            if let Output::ChangeRecord { stream, record, .. } = &output {
                self.asked_for.insert(stream.clone(), *record);
            }
            match self.answered(&output) {
                Some(answer) => self.lease.handle(answer, self.moment()),
                None if output == Output::SendHeartbeat => (),
                None => lines.push(describe(&output)),
            }
        }
        lines.join(", ")
    }

    fn answered(&self, output: &Output) -> Option<Input> {
        match output {
            Output::Renew { .. } if self.away => Some(Input::RequestFailed(LeaseRequest::Renew)),
            Output::Renew { .. } => Some(Input::Renewed { members: self.members.clone() }),
            Output::ReadRecords if self.away => Some(Input::RequestFailed(LeaseRequest::ReadRecords)),
            Output::ReadRecords => Some(Input::RecordsRead { records: self.records.clone() }),
            Output::ChangeRecord { .. }
            | Output::SendHeartbeat
            | Output::Send { .. }
            | Output::Follow { .. }
            | Output::Prepare { .. }
            | Output::BecomeOwner { .. }
            | Output::Release { .. }
            | Output::StepDown
            | Output::Resume
            | Output::Leave => None,
        }
    }
}

fn describe(output: &Output) -> String {
    match output {
        Output::ChangeRecord { stream, expected, record } => {
            let expected = expected.map_or_else(|| "none".to_owned(), |fence| fence.number.to_string());
            let holder = record.holder.map_or_else(|| "none".to_owned(), |holder| holder.0.to_string());
            format!("change {stream} {expected} to {holder}/{}", record.fence.number)
        }
        Output::Send { to, note: PeerMessage::RequestHandover { stream } } => format!("ask {} {stream}", to.0),
        Output::Send { to, note: PeerMessage::Ready { stream } } => format!("ready {} {stream}", to.0),
        Output::Send { to, note: PeerMessage::HandedOver { stream, fence } } => {
            format!("given {} {stream}/{}", to.0, fence.number)
        }
        Output::Follow { stream } => format!("follow {stream}"),
        Output::Prepare { stream } => format!("prepare {stream}"),
        Output::BecomeOwner { stream, fence } => format!("own {stream}/{}", fence.number),
        Output::Release { stream } => format!("release {stream}"),
        Output::StepDown => "step down".to_owned(),
        Output::Resume => "resume".to_owned(),
        Output::Leave => "leave".to_owned(),
        Output::Renew { .. } | Output::ReadRecords | Output::SendHeartbeat => {
            panic!("{output:?} is answered by the store")
        }
    }
}

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn replica(id: &str) -> ReplicaId {
    ReplicaId(id.parse().unwrap())
}

fn member(text: &str) -> Member {
    let (id, limit) = text.split_once(':').unwrap_or((text, "9"));
    Member { replica: replica(id), limit: limit.parse().unwrap() }
}

fn fence(number: &str) -> Fence {
    Fence { number: number.parse().unwrap(), nonce: 7 }
}

fn record(text: &str) -> LeaseRecord {
    let (holder, number) = text.split_once('/').unwrap();
    LeaseRecord { holder: Some(replica(holder)), fence: fence(number) }
}

fn with_fence(text: &str) -> (StreamName, Fence) {
    let (name, number) = text.split_once('/').unwrap();
    (stream(name), fence(number))
}

fn received(from: &str, note: PeerMessage) -> Input {
    Input::Received { from: replica(from), message: note }
}
