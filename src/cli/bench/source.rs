//! The source: a sequenced stream at full speed, at a fixed rate, or up to the limit of a gate.
//!
//! Frames are prepared once and sent repeatedly with increasing numbers, so that the source uses little CPU compared
//! with the daemon. Unlike the simulator it has one protocol and no faults.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio_tungstenite::tungstenite::{
    self,
    handshake::server::{ErrorResponse, Request, Response},
};

use crate::{clock, downstream::server::render};

/// The length of one event in bytes.
pub(super) const EVENT_LEN: usize = 1_024;
/// A byte that occurs exactly once in each event, so that events can be counted without parsing.
pub(super) const MARKER: u8 = 0x7f;
/// The first number; all numbers of a run have the same number of digits.
pub(super) const FIRST_NUMBER: u64 = 1_000_000_000;
pub(super) const DIGITS: usize = 10;
/// The maximum number of events in a frame.
const FRAME_EVENTS_MAX: usize = 50;
/// The number of prepared frames, after which the lengths repeat.
const FRAMES: usize = 50;
/// The approximate number of bytes per write.
const WRITE_LEN: usize = 256 * 1024;

/// The number of events per frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameSizes {
    One,
    /// One to fifty, evenly distributed.
    Mixed,
}

/// The speed of the source while its gate is open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    Unlimited,
    /// Events per second on each connection.
    Rate(f64),
}

/// The limit of sent events.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open_to: Mutex<u64>,
    raised: Condvar,
}

impl Gate {
    /// Allows events up to this count; it never falls.
    pub(super) fn raise(&self, count: u64) {
        let mut open_to = self.open_to.lock();
        if count > *open_to {
            *open_to = count;
            self.raised.notify_all();
        }
    }

    /// Waits until the limit is above `sent`; returns the limit.
    fn wait_beyond(&self, sent: u64) -> u64 {
        let mut open_to = self.open_to.lock();
        self.raised.wait_while(&mut open_to, |open_to| *open_to <= sent);
        *open_to
    }

    fn is_open(&self, sent: u64) -> bool {
        *self.open_to.lock() > sent
    }
}

/// The shared state of the source and its user.
#[derive(Debug)]
struct SourceState {
    frames: FrameSizes,
    pace: Pace,
    gate: Gate,
    connected: AtomicUsize,
    /// The send time of each event; recorded only at a fixed rate.
    sent_at: Mutex<Vec<Instant>>,
}

/// A running source. Its threads end with their sockets; the listening thread ends with the process.
#[derive(Debug, Clone)]
pub(super) struct BenchSource {
    address: SocketAddr,
    shared: Arc<SourceState>,
}

impl BenchSource {
    /// Listens on a free loopback port. It sends nothing before its gate is raised.
    pub(super) fn start(frames: FrameSizes, pace: Pace) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(SourceState {
            frames,
            pace,
            gate: Gate::default(),
            connected: AtomicUsize::new(0),
            sent_at: Mutex::default(),
        });
        let source = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // An error means that the client has disconnected; the thread ends.
                thread::spawn(move || shared.serve(socket).unwrap_or_default());
            }
        });
        Ok(source)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// The number of connections so far.
    pub(super) fn connected(&self) -> usize {
        self.shared.connected.load(Ordering::Relaxed)
    }

    /// The send times of all events, in order; for a source with one connection and a fixed rate.
    pub(super) fn sent_at(&self) -> Vec<Instant> {
        self.shared.sent_at.lock().clone()
    }
}

impl SourceState {
    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut sent = 0;
        #[expect(clippy::result_large_err, reason = "the library defines this signature")]
        let resume = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            sent = resume_count(request.uri().query());
            Ok(response)
        };
        let Ok(mut socket) = tungstenite::accept_hdr(socket, resume) else { return Ok(()) };
        self.connected.fetch_add(1, Ordering::Relaxed);
        let mut script = FrameSequence::new(self.frames, sent);
        match self.pace {
            Pace::Unlimited => self.send_unlimited(socket.get_mut(), &mut script),
            Pace::Rate(rate) => self.send_at_rate(socket.get_mut(), &mut script, rate),
        }
    }

    fn send_unlimited(&self, socket: &mut TcpStream, script: &mut FrameSequence) -> io::Result<()> {
        let mut out = Vec::with_capacity(2 * WRITE_LEN);
        loop {
            let open_to = self.gate.wait_beyond(script.sent);
            while script.sent < open_to && out.len() < WRITE_LEN {
                script.write(&mut out, open_to);
            }
            socket.write_all(&out)?;
            out.clear();
        }
    }

    fn send_at_rate(&self, socket: &mut TcpStream, script: &mut FrameSequence, rate: f64) -> io::Result<()> {
        let mut out = Vec::new();
        let mut due = clock::now();
        loop {
            if !self.gate.is_open(script.sent) {
                self.gate.wait_beyond(script.sent);
                // Time at a closed gate is not made up for.
                due = clock::now();
            }
            thread::sleep(due.saturating_duration_since(clock::now()));
            script.write(&mut out, u64::MAX);
            self.sent_at.lock().push(clock::now());
            socket.write_all(&out)?;
            out.clear();
            due += Duration::from_secs_f64(1.0 / rate);
        }
    }
}

/// The number of events before this connection, from its resume parameter.
fn resume_count(query: Option<&str>) -> u64 {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let last = pairs.filter(|(name, _)| name == "sequenceId").filter_map(|(_, value)| value.parse::<u64>().ok()).last();
    last.map_or(0, |last| (last + 1).saturating_sub(FIRST_NUMBER))
}

/// Prepared frames with placeholders for the numbers.
#[derive(Debug)]
struct FrameSequence {
    frames: Vec<FrameTemplate>,
    turn: usize,
    sent: u64,
}

#[derive(Debug)]
struct FrameTemplate {
    bytes: Vec<u8>,
    /// Positions of the numbers.
    numbers: Vec<usize>,
}

impl FrameSequence {
    fn new(frames: FrameSizes, sent: u64) -> Self {
        let lens: Vec<usize> = match frames {
            FrameSizes::One => vec![1],
            // Steps of 7 visit every length once and alternate large and small.
            FrameSizes::Mixed => (0..FRAMES).map(|turn| turn * 7 % FRAME_EVENTS_MAX + 1).collect(),
        };
        Self { frames: lens.into_iter().map(FrameTemplate::new).collect(), turn: 0, sent }
    }

    /// Writes the next frame; with fewer events if the gate does not allow all.
    fn write(&mut self, out: &mut Vec<u8>, open_to: u64) {
        let turn = self.turn;
        self.turn = (turn + 1) % self.frames.len();
        let room = usize::try_from(open_to - self.sent).unwrap_or(usize::MAX);
        let short;
        let frame = if self.frames[turn].numbers.len() <= room {
            &self.frames[turn]
        } else {
            short = FrameTemplate::new(room);
            &short
        };
        let start = out.len();
        out.extend_from_slice(&frame.bytes);
        for at in &frame.numbers {
            write_digits(&mut out[start + at..start + at + DIGITS], FIRST_NUMBER + self.sent);
            self.sent += 1;
        }
    }
}

impl FrameTemplate {
    fn new(events: usize) -> Self {
        let text = format!("[{}]", vec![event(); events].join(","));
        let bytes = render::frame(&text);
        let head = bytes.len() - text.len();
        let numbers = text.match_indices(&FIRST_NUMBER.to_string()).map(|(at, _)| head + at).collect();
        Self { bytes, numbers }
    }
}

pub(super) fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
}

/// One event of [`EVENT_LEN`] bytes: queue observations in the platform's format.
fn event() -> String {
    let mut event = format!(
        r#"{{"sequenceId":{FIRST_NUMBER},"type":"v2.analytics.queues.observations","eventTime":"2026-05-04T13:31:49.570Z","queueId":"3fa85f64-5717-4562-b3fc-2c963f66afa6","mark":"{}","metrics":["#,
        char::from(MARKER)
    );
    let end = r#"],"note":""}"#;
    for index in 0.. {
        let comma = if index == 0 { "" } else { "," };
        let metric = format!(
            r#"{comma}{{"metric":"oWaiting","qualifier":"voice","interval":{index},"stats":{{"count":{index},"max":31.5}}}}"#
        );
        if event.len() + metric.len() + end.len() > EVENT_LEN {
            break;
        }
        event.push_str(&metric);
    }
    let note = "n".repeat(EVENT_LEN - event.len() - end.len());
    format!(r#"{event}],"note":"{note}"}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(frame: &[u8]) -> Vec<u64> {
        let head = frame.iter().position(|byte| *byte == b'[').unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_slice(&frame[head..]).unwrap();
        events.iter().map(|event| event["sequenceId"].as_u64().unwrap() - FIRST_NUMBER).collect()
    }

    #[test]
    fn an_event_has_its_length_and_one_marker() {
        let event = event();
        assert_eq!(event.len(), EVENT_LEN);
        assert_eq!(event.bytes().filter(|byte| *byte == MARKER).count(), 1);
        assert!(serde_json::from_str::<serde_json::Value>(&event).is_ok());
    }

    #[test]
    fn frames_continue_the_numbering_and_stop_at_the_gate() {
        let mut script = FrameSequence::new(FrameSizes::Mixed, 3);
        let (mut expected, mut lens) = (3, Vec::new());
        while script.sent < 2_000 {
            let mut out = Vec::new();
            script.write(&mut out, 2_000);
            let found = numbers(&out);
            assert_eq!(found, (expected..expected + found.len() as u64).collect::<Vec<_>>());
            assert_eq!(render::frame_len(&out), Some(out.len()));
            expected += found.len() as u64;
            lens.push(found.len());
        }
        assert_eq!(expected, 2_000);
        lens.truncate(FRAMES);
        lens.sort_unstable();
        assert_eq!(lens, (1..=FRAME_EVENTS_MAX).collect::<Vec<_>>());
    }

    #[test]
    fn a_source_resumes_after_the_requested_number() {
        assert_eq!(resume_count(None), 0);
        assert_eq!(resume_count(Some("sequenceId=1000000004")), 5);
        assert_eq!(resume_count(Some("a=b&sequenceId=7")), 0);
    }
}
