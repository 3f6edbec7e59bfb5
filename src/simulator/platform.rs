//! The simulated platform as a whole: its state behind one lock, what it says, and what goes wrong with it.
//! It refuses to wait: no method here is async, and the lock is never held across one that is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Settings;
use super::channels::Channels;
use super::clock::{after, now, stamp, wall};
use super::line::Order;
use super::script::{Fault, Target, Undecodable};
use super::sequence::{Raw, Sequence};
use super::server::Fate;
use super::tally::{Dialect, Said, Tally};
use super::tokens::{Client, Tokens};
use super::trouble::{Refusal, Trouble};
use super::world::{Event, ORGANIZATION, Origin, World};

/// Events said under one hold of the lock.
const SAY_BATCH: u64 = 256;
/// How deep the frame that nobody can read is nested.
const DEEP: usize = 10_000;
/// How many bytes of a frame that is no JSON or no UTF-8.
const BROKEN: usize = 64;

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
        let seed = settings.script.seed.unwrap_or(settings.seed);
        let client = Client {
            id: settings.client_id.clone(),
            secret: settings.client_secret.clone(),
        };
        let refresh_token = settings.refresh_token.clone();
        let origin = Origin {
            seed,
            agents: settings.agents,
            queues: settings.queues,
            base: settings
                .story_base
                .unwrap_or_else(|| wall(settings.clock_offset)),
            step: settings.story_step(),
        };
        let state = State {
            world: World::new(origin),
            sequence: Sequence::new(settings.retention),
            channels: Channels::new(settings.channel_life),
            tokens: Tokens::new(
                client,
                settings.token_kind,
                settings.token_ttl,
                refresh_token,
                seed,
            ),
            trouble: Trouble::none(),
            tally: Tally::default(),
            said: Said::default(),
            sockets: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ 0x69_64_73),
            opened: 0,
        };
        Self {
            settings,
            state: Mutex::new(state),
            tail: watch::channel(0).0,
            latency: AtomicU64::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nobody panics while holding the platform")
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
            Fault::Refuse {
                on,
                status,
                times,
                retry_after,
            } => {
                state.trouble.refuse_handshakes(
                    on,
                    Refusal {
                        status,
                        retry_after,
                    },
                    times,
                );
            }
            Fault::Token { failure, times } => state.trouble.fail_tokens(failure, times),
            Fault::Rest {
                status,
                times,
                retry_after,
                path,
            } => {
                state.trouble.fail_rest(
                    path,
                    Refusal {
                        status,
                        retry_after,
                    },
                    times,
                );
            }
            Fault::Duplicate { n } => state.sequence.duplicate(now(), n),
            Fault::Jump { n } => state.sequence.jump(n),
            Fault::Reset {} => state.sequence.reset(),
            Fault::Reorder { n } => state
                .sequence
                .reverse(usize::try_from(n).unwrap_or(usize::MAX)),
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
        Registered {
            platform: self.clone(),
            number,
        }
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
        state.tally.sockets.entry(socket.dialect).or_default().open -= 1;
        if let Some(channel) = socket.channel {
            state.channels.detach(&channel, self.number);
        }
    }
}

impl State {
    fn say_next(&mut self, now: Instant) {
        let event = self.world.next_event();
        self.sequence
            .say(now, |sequence| sequenced_text(sequence, &event));
        let number = self.said.end();
        let reach = self
            .channels
            .say(&event.topic, number, || notification_text(&event), now);
        self.tally.events_said += 1;
        self.tally.notifications.said += 1;
        self.tally.notifications.gone += u64::from(!reach.queued);
        self.said
            .push(event.topic, event.correlation, reach.subscribed);
        for number in reach.overflowed {
            self.cut(number);
        }
    }

    /// Resets one connection.
    pub(super) fn cut(&self, number: u64) {
        if let Some(socket) = self.sockets.get(&number) {
            socket.fate.seal();
        }
    }

    /// Tells one socket to do something.
    pub(super) fn order_one(&self, number: u64, order: Order) {
        if let Some(socket) = self.sockets.get(&number) {
            // Full: the socket is stalled and hears nothing anyway.
            let _dropped = socket.orders.try_send(order);
        }
    }

    fn order(&self, on: Target, order: &Order) {
        for (number, socket) in &self.sockets {
            if on.includes(socket.dialect) {
                self.order_one(*number, order.clone());
            }
        }
    }

    fn drop_sockets(&self, on: Target) {
        for socket in self
            .sockets
            .values()
            .filter(|socket| on.includes(socket.dialect))
        {
            socket.fate.seal();
        }
    }

    fn announce_closing(&mut self, lead: Duration) {
        let notice = json!({"message": "The socket is about to be closed"});
        self.notify("v2.system.socket_closing", &notice);
        let close = Order::CloseIn {
            lead,
            code: 1001,
            reason: "Maintenance".to_owned(),
        };
        self.order(Target::Notifications, &close);
    }

    fn revoke_tokens(&mut self, settings: &Settings) {
        self.system_message("token_revoked", "user_tokens_revoked", settings);
        let now = now();
        self.tokens.revoke_all(now);
        let ends = after(now, settings.grace);
        self.channels.end_all(ends);
        self.order(Target::All, &Order::EndAt(ends));
    }

    fn take_subscriptions(&mut self, settings: &Settings) {
        self.channels.clear_all();
        self.system_message(
            "no_longer_subscribed",
            "another_channel_subscribed",
            settings,
        );
    }

    /// Tells each notifications socket, with its own channel in the body.
    fn system_message(&mut self, kind: &str, reason: &str, settings: &Settings) {
        let user = self.world.cast().agents[0].id.clone();
        for (number, channel) in self.channel_sockets() {
            let body = json!({
                "channelId": channel, "systemTopicType": kind, "organizationId": ORGANIZATION, "userId": user,
                "oauthClientId": settings.client_id, "reason": reason, "message": "", "data": {},
            });
            let text = self.system_text(&format!("v2.system.{kind}.{user}"), &body);
            self.order_one(number, Order::Say(Raw::Text(text)));
        }
    }

    fn notify(&mut self, topic: &str, body: &Value) {
        for (number, _) in self.channel_sockets() {
            let text = self.system_text(topic, body);
            self.order_one(number, Order::Say(Raw::Text(text)));
        }
    }

    fn channel_sockets(&self) -> Vec<(u64, String)> {
        self.sockets
            .iter()
            .filter_map(|(number, socket)| Some((*number, socket.channel.clone()?)))
            .collect()
    }

    fn system_text(&mut self, topic: &str, body: &Value) -> String {
        let correlation = super::world::uuid(&mut self.rng);
        write(&Notification {
            topic_name: topic,
            version: "2",
            event_body: body,
            metadata: Metadata {
                correlation: &correlation,
            },
        })
    }

    fn say_on(&mut self, on: Target, raw: &Raw) {
        if on.includes(Dialect::Sequenced) {
            self.sequence.say_raw(now(), raw.clone());
        }
        if on.includes(Dialect::Notifications) {
            self.order(Target::Notifications, &Order::Say(raw.clone()));
        }
    }

    fn say_oversize(&mut self, on: Target, bytes: usize) {
        let body = json!({ "padding": "x".repeat(bytes) });
        let event = Event {
            topic: "v2.simulated.oversize".to_owned(),
            kind: "v2.simulated.oversize",
            at: self.world.story_time(),
            body,
            correlation: super::world::uuid(&mut self.rng),
        };
        if on.includes(Dialect::Sequenced) {
            self.sequence
                .say(now(), |sequence| sequenced_text(sequence, &event));
        }
        if on.includes(Dialect::Notifications) {
            self.order(
                Target::Notifications,
                &Order::Say(Raw::Text(notification_text(&event))),
            );
        }
    }
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(rename = "CorrelationId")]
    correlation: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sequenced<'a> {
    sequence_id: u64,
    event_type: &'a str,
    topic_name: &'a str,
    event_time: String,
    event_body: &'a Value,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Notification<'a> {
    topic_name: &'a str,
    version: &'a str,
    event_body: &'a Value,
    metadata: Metadata<'a>,
}

fn sequenced_text(sequence: u64, event: &Event) -> String {
    write(&Sequenced {
        sequence_id: sequence,
        event_type: event.kind,
        topic_name: &event.topic,
        event_time: stamp(event.at),
        event_body: &event.body,
        metadata: Metadata {
            correlation: &event.correlation,
        },
    })
}

fn notification_text(event: &Event) -> String {
    write(&Notification {
        topic_name: &event.topic,
        version: "2",
        event_body: &event.body,
        metadata: Metadata {
            correlation: &event.correlation,
        },
    })
}

fn write(what: &impl Serialize) -> String {
    serde_json::to_string(what).expect("texts, numbers and JSON values can always be written")
}

fn undecodable(what: Undecodable) -> Raw {
    match what {
        Undecodable::Binary => Raw::Binary((0..BROKEN as u8).collect()),
        Undecodable::InvalidJson => {
            Raw::Text("{\"sequenceId\": 12, \"eventBody\": {\"cut off".to_owned())
        }
        Undecodable::WrongShape => Raw::Text("\"a string is no event\"".to_owned()),
        Undecodable::Deep => Raw::Text("[".repeat(DEEP) + &"]".repeat(DEEP)),
        Undecodable::InvalidUtf8 => Raw::InvalidText(vec![0xff; BROKEN]),
    }
}
