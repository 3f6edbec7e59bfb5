//! The simulated platform as a whole: its state behind one lock, what it says, and what goes wrong with it.
//! It refuses to wait: no method here is async, and the lock is never held across one that is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::channels::Channels;
use super::clock::now;
use super::fault::{Fault, Target};
use super::harm::undecodable;
use super::line::Order;
use super::sequence::{Raw, Sequence};
use super::server::Fate;
use super::tally::{Dialect, Said, Tally};
use super::tokens::{Client, Tokens};
use super::trouble::{Refusal, Trouble};
use super::wording::{notification_text, sequenced_text};
use super::world::World;

/// Events said under one hold of the lock.
const SAY_BATCH: u64 = 256;
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
        let mut state = self.lock();
        match fault {
            Fault::Drop { on } => state.drop_sockets(on),
            Fault::Stall { on, lasting } => state.order(on, &Order::Stall(lasting)),
            Fault::Close { on, code, reason } => state.order(on, &Order::Close { code, reason }),
            Fault::SocketClosing { lead } => state.announce_closing(lead),
            Fault::TokenRevoked {} => state.revoke_tokens(&self.settings),
            Fault::NoLongerSubscribed {} => state.take_subscriptions(&self.settings),
            Fault::Refuse { on, status, times, retry_after } => {
                state.trouble.refuse_handshakes(on, Refusal { status, retry_after }, times);
            }
            Fault::Token { failure, times } => state.trouble.fail_tokens(failure, times),
            Fault::Rest { status, times, retry_after, path } => {
                state.trouble.fail_rest(path, Refusal { status, retry_after }, times);
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
        }
        drop(state);
        self.wake();
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
        state.sockets.insert(number, socket);
        drop(state);
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

impl State {
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
        }
    }

    fn say_next(&mut self, now: Instant) {
        let event = self.world.next_event();
        self.sequence.say(now, |sequence| sequenced_text(sequence, &event));
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
