//! Notification channels and their subscriptions: at most twenty channels, each with one socket. A channel ends with its
//! token or after its lifetime. A notification for a channel without a socket is lost.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::clock::after;

/// Channels of one OAuth client. One more deletes the least recently used channel.
const CHANNELS_MAX: usize = 20;
/// Topics of one channel; a combined topic counts once.
const TOPICS_MAX: usize = 1_000;

/// A notification in the outbox of one socket.
#[derive(Clone, Debug)]
pub(super) struct OutboundNotification {
    /// Its number in the ledger.
    pub(super) number: u64,
    pub(super) text: Utf8Bytes,
}

/// The socket of a channel. A full outbox means that the client does not read; the socket is then disconnected.
#[derive(Clone, Debug)]
pub(super) struct SocketAttachment {
    pub(super) socket: u64,
    pub(super) outbox: mpsc::Sender<OutboundNotification>,
}

/// Requested topics and the parts that each of them stands for.
pub(super) type TopicParts = BTreeMap<String, Vec<String>>;

#[derive(Debug)]
pub(super) struct NotificationChannel {
    pub(super) token: String,
    /// The end of its token plus the grace.
    token_expires_at: Instant,
    /// The end of its own lifetime; subscribing extends it.
    pub(super) expires_at: Instant,
    pub(super) topics: TopicParts,
    last_used: u64,
    socket: Option<SocketAttachment>,
}

impl NotificationChannel {
    fn ends_at(&self) -> Instant {
        self.token_expires_at.min(self.expires_at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionChange {
    Add,
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelError {
    Gone,
    TooManyTopics,
}

/// Which channels a notification reached when it was emitted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DeliveryReach {
    /// At least one channel is subscribed, with or without a socket.
    pub(super) subscribed: bool,
    /// It was put into at least one outbox.
    pub(super) queued: bool,
    /// Sockets whose outbox was full.
    pub(super) overflowed: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct NotificationChannels {
    lifetime: Duration,
    all: BTreeMap<String, NotificationChannel>,
    by_part: HashMap<String, Vec<String>>,
    uses: u64,
}

impl NotificationChannels {
    pub(super) fn new(life: Duration) -> Self {
        Self { lifetime: life, all: BTreeMap::new(), by_part: HashMap::new(), uses: 0 }
    }

    /// Creates a channel. Returns the socket of the channel that was evicted for it, if that one had a socket.
    pub(super) fn create(&mut self, id: String, token: String, token_expires_at: Instant, now: Instant) -> Option<u64> {
        self.remove_expired(now);
        let evicted = if self.all.len() >= CHANNELS_MAX { self.evict() } else { None };
        self.uses += 1;
        let channel = NotificationChannel {
            token,
            token_expires_at,
            expires_at: after(now, self.lifetime),
            topics: TopicParts::new(),
            last_used: self.uses,
            socket: None,
        };
        self.all.insert(id, channel);
        evicted
    }

    pub(super) fn get(&self, id: &str, now: Instant) -> Option<&NotificationChannel> {
        self.all.get(id).filter(|channel| now < channel.ends_at())
    }

    pub(super) fn list(&self, now: Instant) -> impl Iterator<Item = (&String, &NotificationChannel)> {
        self.all.iter().filter(move |(_, channel)| now < channel.ends_at())
    }

    /// When the channel ends; `None` if it has ended.
    pub(super) fn ends_at(&self, id: &str, now: Instant) -> Option<Instant> {
        self.get(id, now).map(NotificationChannel::ends_at)
    }

    /// Adds or replaces topics and extends the lifetime of the channel.
    pub(super) fn subscribe(
        &mut self,
        id: &str,
        topics: TopicParts,
        change: SubscriptionChange,
        now: Instant,
    ) -> Result<(), ChannelError> {
        let channel = self.get(id, now).ok_or(ChannelError::Gone)?;
        let mut wanted = match change {
            SubscriptionChange::Add => channel.topics.clone(),
            SubscriptionChange::Replace => TopicParts::new(),
        };
        wanted.extend(topics);
        if wanted.len() > TOPICS_MAX {
            return Err(ChannelError::TooManyTopics);
        }
        self.set_topics(id, wanted);
        let expires = after(now, self.lifetime);
        self.touch(id).expires_at = expires;
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, id: &str, topics: &[String], now: Instant) -> Result<(), ChannelError> {
        let mut left = self.get(id, now).ok_or(ChannelError::Gone)?.topics.clone();
        left.retain(|topic, _| !topics.contains(topic));
        self.set_topics(id, left);
        self.touch(id);
        Ok(())
    }

    pub(super) fn clear(&mut self, id: &str, now: Instant) -> Result<(), ChannelError> {
        self.get(id, now).ok_or(ChannelError::Gone)?;
        self.set_topics(id, TopicParts::new());
        self.touch(id);
        Ok(())
    }

    /// Removes the subscriptions of every channel.
    pub(super) fn clear_all(&mut self) {
        self.by_part.clear();
        for channel in self.all.values_mut() {
            channel.topics.clear();
        }
    }

    /// Ends every channel at this moment at the latest.
    pub(super) fn expire_all(&mut self, at: Instant) {
        for channel in self.all.values_mut() {
            channel.token_expires_at = channel.token_expires_at.min(at);
        }
    }

    /// Attaches a socket to the channel. Returns the previous socket, which must be closed.
    pub(super) fn attach(
        &mut self,
        id: &str,
        socket: SocketAttachment,
        now: Instant,
    ) -> Result<Option<u64>, ChannelError> {
        self.get(id, now).ok_or(ChannelError::Gone)?;
        Ok(self.touch(id).socket.replace(socket).map(|old| old.socket))
    }

    /// Detaches the socket, unless another one was attached since.
    pub(super) fn detach(&mut self, id: &str, socket: u64) {
        if let Some(channel) = self.all.get_mut(id)
            && channel.socket.as_ref().is_some_and(|attached| attached.socket == socket)
        {
            channel.socket = None;
        }
    }

    /// Puts a notification into the outbox of each channel that is subscribed and connected.
    pub(super) fn emit(&self, topic: &str, number: u64, write: impl FnOnce() -> String, now: Instant) -> DeliveryReach {
        let mut reach = DeliveryReach::default();
        let Some(ids) = self.by_part.get(topic) else {
            return reach;
        };
        let mut text = LazyText::Unwritten(write);
        for channel in ids.iter().filter_map(|id| self.get(id, now)) {
            reach.subscribed = true;
            let Some(attached) = &channel.socket else {
                continue;
            };
            let notification = OutboundNotification { number, text: text.read() };
            match attached.outbox.try_send(notification) {
                Ok(()) => reach.queued = true,
                Err(mpsc::error::TrySendError::Full(_)) => reach.overflowed.push(attached.socket),
                Err(mpsc::error::TrySendError::Closed(_)) => (),
            }
        }
        reach
    }

    fn set_topics(&mut self, id: &str, topics: TopicParts) {
        self.remove_from_index(id);
        for part in topics.values().flatten() {
            self.by_part.entry(part.clone()).or_default().push(id.to_owned());
        }
        self.touch(id).topics = topics;
    }

    fn remove_from_index(&mut self, id: &str) {
        let Some(channel) = self.all.get(id) else {
            return;
        };
        for part in channel.topics.values().flatten() {
            if let Some(ids) = self.by_part.get_mut(part) {
                ids.retain(|listed| listed != id);
            }
        }
        self.by_part.retain(|_, ids| !ids.is_empty());
    }

    fn touch(&mut self, id: &str) -> &mut NotificationChannel {
        self.uses += 1;
        let channel = self.all.get_mut(id).expect("the caller has looked the channel up");
        channel.last_used = self.uses;
        channel
    }

    fn remove_expired(&mut self, now: Instant) {
        let dead: Vec<String> =
            self.all.iter().filter(|(_, channel)| channel.ends_at() <= now).map(|(id, _)| id.clone()).collect();
        for id in dead {
            self.remove(&id);
        }
    }

    /// Removes the least recently used channel, one without a socket first.
    fn evict(&mut self) -> Option<u64> {
        let least = self.all.iter().min_by_key(|(_, channel)| (channel.socket.is_some(), channel.last_used));
        let id = least.map(|(id, _)| id.clone())?;
        self.remove(&id)
    }

    fn remove(&mut self, id: &str) -> Option<u64> {
        self.remove_from_index(id);
        self.all.remove(id)?.socket.map(|attached| attached.socket)
    }
}

/// A text that is written at its first use and then shared.
enum LazyText<F> {
    Unwritten(F),
    Written(Utf8Bytes),
    Empty,
}

impl<F: FnOnce() -> String> LazyText<F> {
    fn read(&mut self) -> Utf8Bytes {
        let text = match std::mem::replace(self, Self::Empty) {
            Self::Unwritten(write) => Utf8Bytes::from(write()),
            Self::Written(text) => text,
            Self::Empty => Utf8Bytes::default(),
        };
        *self = Self::Written(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    const LIFETIME: Duration = Duration::from_secs(60);

    #[test]
    fn the_21st_channel_takes_the_place_of_the_least_used_unconnected_one() {
        let begin = now();
        let mut channels = channels(20, begin);
        for index in 0..2 {
            channels.attach(&name(index), attached(index as u64), begin).unwrap();
        }
        channels.clear(&name(2), begin).unwrap();
        assert_eq!(channels.create(name(20), String::new(), after(begin, LIFETIME), begin), None);
        assert!(channels.get(&name(3), begin).is_none(), "the third was used, the fourth was not");
        assert_eq!(channels.list(begin).count(), 20);
    }

    #[test]
    fn when_all_are_connected_the_least_used_one_loses_its_socket() {
        let begin = now();
        let mut channels = channels(20, begin);
        for index in 0..20 {
            channels.attach(&name(index), attached(index as u64), begin).unwrap();
        }
        assert_eq!(channels.create(name(20), String::new(), after(begin, LIFETIME), begin), Some(0));
    }

    #[test]
    fn a_notification_reaches_those_subscribed_and_connected() {
        let begin = now();
        let mut channels = channels(2, begin);
        let topics = |topic: &str| TopicParts::from([(topic.to_owned(), vec![topic.to_owned()])]);
        channels.subscribe(&name(0), topics("a"), SubscriptionChange::Add, begin).unwrap();
        channels.subscribe(&name(1), topics("b"), SubscriptionChange::Add, begin).unwrap();
        let (outbox, mut inbox) = mpsc::channel(1);
        channels.attach(&name(0), SocketAttachment { socket: 7, outbox }, begin).unwrap();
        let emit = |topic: &str| channels.emit(topic, 1, || topic.to_owned(), begin);
        assert_eq!(emit("c"), DeliveryReach::default());
        assert_eq!(emit("b"), DeliveryReach { subscribed: true, ..DeliveryReach::default() });
        assert_eq!(emit("a"), DeliveryReach { subscribed: true, queued: true, overflowed: vec![] });
        assert_eq!(emit("a"), DeliveryReach { subscribed: true, queued: false, overflowed: vec![7] });
        assert_eq!(inbox.try_recv().unwrap().text.as_str(), "a");
    }

    #[test]
    fn a_channel_ends_with_its_token_and_subscribing_extends_its_lifetime() {
        let begin = now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut channels = NotificationChannels::new(LIFETIME);
        channels.create(name(0), String::new(), at(90), begin);
        channels.subscribe(&name(0), TopicParts::new(), SubscriptionChange::Add, at(50)).unwrap();
        assert_eq!(channels.ends_at(&name(0), at(80)), Some(at(90)));
        assert!(channels.get(&name(0), at(90)).is_none());
    }

    #[test]
    fn the_1001st_topic_is_refused_and_changes_nothing() {
        let begin = now();
        let mut channels = channels(1, begin);
        let topics = |count: usize| (0..count).map(|index| (index.to_string(), vec![])).collect::<TopicParts>();
        channels.subscribe(&name(0), topics(1_000), SubscriptionChange::Add, begin).unwrap();
        let extra = TopicParts::from([("extra".to_owned(), vec![])]);
        assert_eq!(
            channels.subscribe(&name(0), extra, SubscriptionChange::Add, begin),
            Err(ChannelError::TooManyTopics)
        );
        assert_eq!(channels.get(&name(0), begin).unwrap().topics.len(), 1_000);
        channels.subscribe(&name(0), topics(3), SubscriptionChange::Replace, begin).unwrap();
        assert_eq!(channels.get(&name(0), begin).unwrap().topics.len(), 3);
    }

    fn channels(count: usize, now: Instant) -> NotificationChannels {
        let mut channels = NotificationChannels::new(LIFETIME);
        for index in 0..count {
            channels.create(name(index), String::new(), after(now, LIFETIME), now);
        }
        channels
    }

    fn name(index: usize) -> String {
        format!("streaming-{index}")
    }

    fn attached(socket: u64) -> SocketAttachment {
        SocketAttachment { socket, outbox: mpsc::channel(1).0 }
    }
}
