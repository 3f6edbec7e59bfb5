//! The simulated platform: its state behind one lock, the events that it emits, and its faults.
//! No method here is async, and the lock is never held across an await.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::channels::NotificationChannels;
use super::clock::now;
use super::connection::ConnectionCommand;
use super::counters::{NotificationLog, SimulatorCounters, SocketDialect};
use super::encoding::{EncodingOverride, notification_text, sequenced_text};
use super::fault::{FaultTarget, FloodTrigger, PlatformFault, RequestKind, ResponseFault, bytes};
use super::fault_effects::undecodable;
use super::pending_faults::{PendingFaults, RequestMatcher};
use super::sequence::{RawFrame, SequenceRing};
use super::server::TransportControl;
use super::tokens::{ClientCredentials, TokenRegistry};
use super::world::ContactCentre;

/// Events that are emitted per hold of the lock.
const EMIT_BATCH: u64 = 256;
/// Injected faults that are kept; older ones are removed.
const INJECTED_MAX: usize = 10_000;
/// A separate seed, so that ids outside of the scenario do not change it.
const ID_SEED: u64 = 0x69_64_73;

/// A connected socket, for faults.
#[derive(Debug)]
pub(super) struct SocketHandle {
    pub(super) dialect: SocketDialect,
    pub(super) control: TransportControl,
    /// Bounded. A full queue belongs to a stalled socket; further commands to it are dropped.
    pub(super) commands: mpsc::Sender<ConnectionCommand>,
    /// The channel of a notifications socket.
    pub(super) channel: Option<String>,
}

#[derive(Debug)]
pub(super) struct PlatformState {
    pub(super) world: ContactCentre,
    pub(super) sequence: SequenceRing,
    pub(super) channels: NotificationChannels,
    pub(super) tokens: TokenRegistry,
    pub(super) faults: PendingFaults,
    pub(super) counters: SimulatorCounters,
    pub(super) notification_log: NotificationLog,
    pub(super) sockets: BTreeMap<u64, SocketHandle>,
    /// For ids outside of the scenario.
    pub(super) rng: fastrand::Rng,
    sockets_opened: u64,
    /// How many of the next sequenced events have this encoding.
    pub(super) encoding_override: Option<(u64, EncodingOverride)>,
    /// The labels of the last [`INJECTED_MAX`] faults.
    injected: VecDeque<String>,
    injected_total: u64,
}

#[derive(Debug)]
pub(super) struct SimulatedPlatform {
    pub(super) settings: Settings,
    state: Mutex<PlatformState>,
    /// Changes when the sequenced stream has something new.
    pub(super) tail: watch::Sender<u64>,
    /// Added to each frame, in microseconds.
    latency: AtomicU64,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl SimulatedPlatform {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            state: Mutex::new(PlatformState::new(&settings)),
            settings,
            tail: watch::channel(0).0,
            latency: AtomicU64::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// The lock is held briefly, never across an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, PlatformState> {
        self.state.lock()
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }

    /// Emits `n` events.
    pub(super) fn emit(&self, n: u64) {
        let mut left = n;
        while left > 0 {
            let batch = left.min(EMIT_BATCH);
            let mut state = self.lock();
            for _ in 0..batch {
                state.emit_next(now());
            }
            drop(state);
            self.notify_readers();
            left -= batch;
        }
    }

    pub(super) fn emit_raw_sequenced(&self, raw: RawFrame) {
        self.lock().sequence.push_raw(now(), raw);
        self.notify_readers();
    }

    pub(super) fn emit_raw_notification(&self, raw: RawFrame) {
        self.lock().broadcast_command(FaultTarget::Notifications, &ConnectionCommand::Send(raw));
    }

    /// Injects a fault.
    pub(super) fn inject(&self, fault: PlatformFault) {
        let flood = if let PlatformFault::Flood { n, when: FloodTrigger::Now } = &fault { *n } else { 0 };
        let mut state = self.lock();
        state.record(&fault);
        match fault {
            PlatformFault::Drop { on } => state.reset_connections(on),
            PlatformFault::Stall { on, duration: lasting } => {
                state.broadcast_command(on, &ConnectionCommand::Stall(lasting));
            }
            PlatformFault::Close { on, code, reason } => {
                state.broadcast_command(on, &ConnectionCommand::Close { code, reason });
            }
            PlatformFault::SocketClosing { lead } => state.announce_closing(lead),
            PlatformFault::TokenRevoked {} => state.revoke_tokens(&self.settings),
            PlatformFault::NoLongerSubscribed {} => state.clear_subscriptions(&self.settings),
            PlatformFault::Refuse { on, status, times, retry_after } => {
                let matcher = RequestMatcher { to: RequestKind::Upgrade, on, url: None, resuming: false };
                state.faults.add_answer(matcher, refusal(status, retry_after), times);
            }
            PlatformFault::Answer { to, on, url, resuming, times, how } => {
                state.faults.add_answer(RequestMatcher { to, on, url, resuming }, how, times);
            }
            PlatformFault::Token { failure, times } => state.faults.add_token_failure(failure, times),
            PlatformFault::Rest { status, times, retry_after, path } => {
                let matcher =
                    RequestMatcher { to: RequestKind::Rest, on: FaultTarget::All, url: path, resuming: false };
                state.faults.add_answer(matcher, refusal(status, retry_after), times);
            }
            PlatformFault::Duplicate { n } => state.sequence.duplicate(now(), n),
            PlatformFault::Jump { n } => state.sequence.jump(n),
            PlatformFault::Reset {} => state.sequence.reset(),
            PlatformFault::Reorder { n } => state.sequence.reverse(usize::try_from(n).unwrap_or(usize::MAX)),
            PlatformFault::Undecodable { on, what } => state.send_raw(on, &undecodable(what)),
            PlatformFault::Oversize { on, bytes } => state.send_oversize(on, bytes),
            PlatformFault::Delay { duration: lasting } => {
                let micros = u64::try_from(lasting.as_micros()).unwrap_or(u64::MAX);
                self.latency.store(micros, Ordering::Relaxed);
            }
            PlatformFault::SlowLoris { on, every } => state.broadcast_command(on, &ConnectionCommand::SlowLoris(every)),
            PlatformFault::Fragments { on, n } => state.broadcast_command(on, &ConnectionCommand::Fragments(n)),
            PlatformFault::CloseRaw { on, hex } => {
                state.broadcast_command(on, &ConnectionCommand::CloseRaw(bytes(&hex).unwrap_or_default()));
            }
            PlatformFault::CloseQuiet { on, after } => state.close_idle(on, after),
            PlatformFault::Flood { when: FloodTrigger::Now, .. } => (),
            PlatformFault::Flood { n, when: FloodTrigger::Overlap } => state.faults.flood_at_overlap = n,
            PlatformFault::Binary { on, n } => state.broadcast_command(on, &ConnectionCommand::Binary(n)),
            PlatformFault::EmptyText { on } => state.send_raw(on, &RawFrame::Text(String::new())),
            PlatformFault::Pad { on, bytes } => state.broadcast_command(on, &ConnectionCommand::Pad(bytes)),
            PlatformFault::Reword { n, decimal, time } => {
                state.encoding_override = Some((n, EncodingOverride { decimal, time }));
            }
            PlatformFault::Unsent { n } => state.sequence.unsent = n,
        }
        drop(state);
        self.notify_readers();
        self.emit(flood);
    }

    /// How long a client of this dialect may send nothing.
    pub(super) fn idle_timeout(&self, dialect: SocketDialect) -> Option<Duration> {
        self.lock().faults.idle_timeouts.get(&dialect).copied()
    }

    /// The labels of the faults since a mark, and the next mark.
    pub(super) fn injected_since(&self, mark: u64) -> (Vec<String>, u64) {
        let state = self.lock();
        let first = state.injected_total - state.injected.len() as u64;
        let skip = usize::try_from(mark.saturating_sub(first)).unwrap_or(usize::MAX);
        (state.injected.iter().skip(skip).cloned().collect(), state.injected_total)
    }

    pub(super) fn counters(&self) -> SimulatorCounters {
        let state = self.lock();
        let mut counters = state.counters.clone();
        counters.last_sequence = state.sequence.last();
        counters
    }

    /// Counts a socket as open until the guard is dropped.
    pub(super) fn register(self: &Arc<Self>, socket: SocketHandle) -> SocketRegistration {
        let mut state = self.lock();
        state.sockets_opened += 1;
        let number = state.sockets_opened;
        let count = state.counters.sockets.entry(socket.dialect).or_default();
        count.open += 1;
        count.total += 1;
        let flood = if count.open > 1 { std::mem::take(&mut state.faults.flood_at_overlap) } else { 0 };
        state.sockets.insert(number, socket);
        drop(state);
        self.emit(flood);
        SocketRegistration { platform: self.clone(), number }
    }

    fn notify_readers(&self) {
        let end = self.lock().sequence.end();
        self.tail.send_replace(end);
    }
}

/// Counts a socket as open until it is dropped.
#[derive(Debug)]
pub(super) struct SocketRegistration {
    platform: Arc<SimulatedPlatform>,
    pub(super) number: u64,
}

impl Drop for SocketRegistration {
    fn drop(&mut self) {
        let mut state = self.platform.lock();
        let Some(socket) = state.sockets.remove(&self.number) else {
            return;
        };
        let count = state.counters.sockets.entry(socket.dialect).or_default();
        count.open -= 1;
        count.deserted += u64::from(count.open == 0);
        if let Some(channel) = socket.channel {
            state.channels.detach(&channel, self.number);
        }
    }
}

fn refusal(status: u16, retry_after: Option<String>) -> ResponseFault {
    ResponseFault::Status { status, retry_after, retry_in: None, clock: None }
}

impl PlatformState {
    fn record(&mut self, fault: &PlatformFault) {
        if self.injected.len() >= INJECTED_MAX {
            self.injected.pop_front();
        }
        self.injected.push_back(fault.label());
        self.injected_total += 1;
    }

    fn next_encoding_override(&mut self) -> EncodingOverride {
        let Some((left, wording)) = self.encoding_override.take() else { return EncodingOverride::default() };
        if left > 1 {
            self.encoding_override = Some((left - 1, wording.clone()));
        }
        wording
    }

    fn new(settings: &Settings) -> Self {
        let seed = settings.scenario_seed();
        let client = ClientCredentials { id: settings.client_id.clone(), secret: settings.client_secret.clone() };
        let refresh_token = settings.refresh_token.clone();
        let tokens = TokenRegistry::new(client, settings.token_kind, settings.token_ttl, refresh_token, seed);
        Self {
            world: ContactCentre::new(settings.world_settings()),
            sequence: SequenceRing::new(settings.retention),
            channels: NotificationChannels::new(settings.channel_lifetime),
            tokens,
            faults: PendingFaults::new(),
            counters: SimulatorCounters::zero(),
            notification_log: NotificationLog::default(),
            sockets: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ ID_SEED),
            sockets_opened: 0,
            encoding_override: None,
            injected: VecDeque::new(),
            injected_total: 0,
        }
    }

    fn emit_next(&mut self, now: Instant) {
        let event = self.world.next_event();
        let wording = self.next_encoding_override();
        self.sequence.push_event(now, |sequence| wording.apply(sequenced_text(sequence, &event)));
        let number = self.notification_log.next_number();
        let reach = self.channels.emit(&event.topic, number, || notification_text(&event), now);
        self.counters.events_said += 1;
        self.counters.notifications.said += 1;
        self.counters.notifications.gone += u64::from(!reach.queued);
        self.notification_log.push(event.topic, event.correlation, reach.subscribed);
        for number in reach.overflowed {
            self.reset_connection(number);
        }
    }
}
