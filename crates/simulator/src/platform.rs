//! The simulated platform as a whole: its state behind one lock, what it says, and what goes wrong with it.
//! It refuses to wait: no method here is async, and the lock is never held across one that is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::channels::Channels;
use super::clock::now;
use super::fault::{Answered, Asked, Fault, Target, When, bytes};
use super::harm::undecodable;
use super::line::Order;
use super::sequence::{Raw, Sequence};
use super::server::Fate;
use super::tally::{Dialect, Said, Tally};
use super::tokens::{Client, Tokens};
use super::trouble::{Trouble, Waits};
use super::wording::{Wording, notification_text, sequenced_text};
use super::world::World;

/// Events said under one hold of the lock.
const SAY_BATCH: u64 = 256;
/// Faults that are remembered; older ones are forgotten.
const INJECTED_MAX: usize = 10_000;
/// Keeps ids that are no part of the story from shifting it.
const IDS: u64 = 0x69_64_73;

/// A connected socket, as faults see it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) dialect: Dialect,
    pub(super) fate: Fate,
    /// Bounded; a socket with a full one is stalled, and what more is ordered is dropped.
    pub(super) orders: mpsc::Sender<Order>,
    /// Of a notifications socket.
    pub(super) channel: Option<String>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) sequence: Sequence,
    pub(super) channels: Channels,
    pub(super) tokens: Tokens,
    pub(super) trouble: Trouble,
    pub(super) tally: Tally,
    pub(super) said: Said,
    pub(super) sockets: BTreeMap<u64, Socket>,
    /// For ids that are no part of the story.
    pub(super) rng: fastrand::Rng,
    opened: u64,
    /// How so many of the next sequenced events are worded.
    pub(super) wording: Option<(u64, Wording)>,
    /// What went wrong so far, in the words of a script; the last [`INJECTED_MAX`].
    injected: VecDeque<String>,
    injected_total: u64,
}

#[derive(Debug)]
pub(super) struct Platform {
    pub(super) settings: Settings,
    state: Mutex<State>,
    /// Moves when the sequenced stream has something new.
    pub(super) tail: watch::Sender<u64>,
    /// Added to each frame, in microseconds.
    latency: AtomicU64,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Platform {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            state: Mutex::new(State::new(&settings)),
            settings,
            tail: watch::channel(0).0,
            latency: AtomicU64::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Held for moments, never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the platform")
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }

    /// Says `n` events of the world.
    pub(super) fn say(&self, n: u64) {
        let mut left = n;
        while left > 0 {
            let batch = left.min(SAY_BATCH);
            let mut state = self.lock();
            for _ in 0..batch {
                state.say_next(now());
            }
            drop(state);
            self.wake();
            left -= batch;
        }
    }

    pub(super) fn say_raw_sequenced(&self, raw: Raw) {
        self.lock().sequence.say_raw(now(), raw);
        self.wake();
    }

    pub(super) fn say_raw_notification(&self, raw: Raw) {
        self.lock().order(Target::Notifications, &Order::Say(raw));
    }

    /// Makes something go wrong.
    pub(super) fn inject(&self, fault: Fault) {
        let flood = if let Fault::Flood { n, when: When::Now } = &fault { *n } else { 0 };
        let mut state = self.lock();
        state.note(&fault);
        match fault {
            Fault::Drop { on } => state.drop_sockets(on),
            Fault::Stall { on, lasting } => state.order(on, &Order::Stall(lasting)),
            Fault::Close { on, code, reason } => state.order(on, &Order::Close { code, reason }),
            Fault::SocketClosing { lead } => state.announce_closing(lead),
            Fault::TokenRevoked {} => state.revoke_tokens(&self.settings),
            Fault::NoLongerSubscribed {} => state.take_subscriptions(&self.settings),
            Fault::Refuse { on, status, times, retry_after } => {
                let waits = Waits { to: Asked::Upgrade, on, url: None, resuming: false };
                state.trouble.answer(waits, refusal(status, retry_after), times);
            }
            Fault::Answer { to, on, url, resuming, times, how } => {
                state.trouble.answer(Waits { to, on, url, resuming }, how, times);
            }
            Fault::Token { failure, times } => state.trouble.fail_tokens(failure, times),
            Fault::Rest { status, times, retry_after, path } => {
                let waits = Waits { to: Asked::Rest, on: Target::All, url: path, resuming: false };
                state.trouble.answer(waits, refusal(status, retry_after), times);
            }
            Fault::Duplicate { n } => state.sequence.duplicate(now(), n),
            Fault::Jump { n } => state.sequence.jump(n),
            Fault::Reset {} => state.sequence.reset(),
            Fault::Reorder { n } => state.sequence.reverse(usize::try_from(n).unwrap_or(usize::MAX)),
            Fault::Undecodable { on, what } => state.say_on(on, &undecodable(what)),
            Fault::Oversize { on, bytes } => state.say_oversize(on, bytes),
            Fault::Delay { lasting } => {
                let micros = u64::try_from(lasting.as_micros()).unwrap_or(u64::MAX);
                self.latency.store(micros, Ordering::Relaxed);
            }
            Fault::SlowLoris { on, every } => state.order(on, &Order::SlowLoris(every)),
            Fault::Fragments { on, n } => state.order(on, &Order::Fragments(n)),
            Fault::CloseRaw { on, hex } => state.order(on, &Order::CloseRaw(bytes(&hex).unwrap_or_default())),
            Fault::CloseQuiet { on, after } => state.close_quiet(on, after),
            Fault::Flood { when: When::Now, .. } => (),
            Fault::Flood { n, when: When::Overlap } => state.trouble.at_overlap = n,
            Fault::Binary { on, n } => state.order(on, &Order::Binary(n)),
            Fault::EmptyText { on } => state.say_on(on, &Raw::Text(String::new())),
            Fault::Pad { on, bytes } => state.order(on, &Order::Pad(bytes)),
            Fault::Reword { n, decimal, time } => state.wording = Some((n, Wording { decimal, time })),
            Fault::Unsent { n } => state.sequence.unsent = n,
        }
        drop(state);
        self.wake();
        self.say(flood);
    }

    /// How long a client of this kind may send nothing.
    pub(super) fn quiet(&self, dialect: Dialect) -> Option<Duration> {
        self.lock().trouble.quiet.get(&dialect).copied()
    }

    /// The faults since a mark, and the next mark.
    pub(super) fn injected_since(&self, mark: u64) -> (Vec<String>, u64) {
        let state = self.lock();
        let first = state.injected_total - state.injected.len() as u64;
        let skip = usize::try_from(mark.saturating_sub(first)).unwrap_or(usize::MAX);
        (state.injected.iter().skip(skip).cloned().collect(), state.injected_total)
    }

    pub(super) fn tally(&self) -> Tally {
        let state = self.lock();
        let mut tally = state.tally.clone();
        tally.last_sequence = state.sequence.last();
        tally
    }

    /// Counts a socket in; the guard counts it out.
    pub(super) fn register(self: &Arc<Self>, socket: Socket) -> Registered {
        let mut state = self.lock();
        state.opened += 1;
        let number = state.opened;
        let count = state.tally.sockets.entry(socket.dialect).or_default();
        count.open += 1;
        count.total += 1;
        let flood = if count.open > 1 { std::mem::take(&mut state.trouble.at_overlap) } else { 0 };
        state.sockets.insert(number, socket);
        drop(state);
        self.say(flood);
        Registered { platform: self.clone(), number }
    }

    fn wake(&self) {
        let end = self.lock().sequence.end();
        self.tail.send_replace(end);
    }
}

/// A socket that is counted as open for as long as this lives.
#[derive(Debug)]
pub(super) struct Registered {
    platform: Arc<Platform>,
    pub(super) number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.platform.lock();
        let Some(socket) = state.sockets.remove(&self.number) else {
            return;
        };
        let count = state.tally.sockets.entry(socket.dialect).or_default();
        count.open -= 1;
        count.deserted += u64::from(count.open == 0);
        if let Some(channel) = socket.channel {
            state.channels.detach(&channel, self.number);
        }
    }
}

fn refusal(status: u16, retry_after: Option<String>) -> Answered {
    Answered::Status { status, retry_after, retry_in: None, clock: None }
}

impl State {
    fn note(&mut self, fault: &Fault) {
        if self.injected.len() >= INJECTED_MAX {
            self.injected.pop_front();
        }
        self.injected.push_back(fault.label());
        self.injected_total += 1;
    }

    fn next_wording(&mut self) -> Wording {
        let Some((left, wording)) = self.wording.take() else { return Wording::default() };
        if left > 1 {
            self.wording = Some((left - 1, wording.clone()));
        }
        wording
    }

    fn new(settings: &Settings) -> Self {
        let seed = settings.story_seed();
        let client = Client { id: settings.client_id.clone(), secret: settings.client_secret.clone() };
        let refresh_token = settings.refresh_token.clone();
        let tokens = Tokens::new(client, settings.token_kind, settings.token_ttl, refresh_token, seed);
        Self {
            world: World::new(settings.origin()),
            sequence: Sequence::new(settings.retention),
            channels: Channels::new(settings.channel_life),
            tokens,
            trouble: Trouble::none(),
            tally: Tally::at_zero(),
            said: Said::default(),
            sockets: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ IDS),
            opened: 0,
            wording: None,
            injected: VecDeque::new(),
            injected_total: 0,
        }
    }

    fn say_next(&mut self, now: Instant) {
        let event = self.world.next_event();
        let wording = self.next_wording();
        self.sequence.say(now, |sequence| wording.of(sequenced_text(sequence, &event)));
        let number = self.said.end();
        let reach = self.channels.say(&event.topic, number, || notification_text(&event), now);
        self.tally.events_said += 1;
        self.tally.notifications.said += 1;
        self.tally.notifications.gone += u64::from(!reach.queued);
        self.said.push(event.topic, event.correlation, reach.subscribed);
        for number in reach.overflowed {
            self.cut(number);
        }
    }
}
