//! Notification channels and who is subscribed to what: at most twenty, one socket each, dying with their token
//! or after their life. It refuses to keep anything for a channel without a socket: what is said then is gone.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::clock::after;

/// Channels of one OAuth client; one more, and the least used one is deleted.
const CHANNELS_MAX: usize = 20;
/// Topics of one channel; a combined one counts once.
const TOPICS_MAX: usize = 1_000;

/// A notification on its way to one socket.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Its number in the ledger.
    pub(super) number: u64,
    pub(super) text: Utf8Bytes,
}

/// The socket of a channel. A full outbox means a client that does not read: it is cut off.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) socket: u64,
    pub(super) outbox: mpsc::Sender<Said>,
}

/// Requested topics and the parts that each of them stands for.
pub(super) type Topics = BTreeMap<String, Vec<String>>;

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) token: String,
    /// When its token, and the grace after it, has ended.
    dies: Instant,
    /// When its own life ends; subscribing extends it.
    pub(super) expires: Instant,
    pub(super) topics: Topics,
    used: u64,
    attached: Option<Attached>,
}

impl Channel {
    fn ends(&self) -> Instant {
        self.dies.min(self.expires)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelError {
    Gone,
    TooManyTopics,
}

/// Who wanted a notification when it was said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// A channel is subscribed, with or without a socket.
    pub(super) subscribed: bool,
    /// It was put into at least one outbox.
    pub(super) queued: bool,
    /// Sockets whose outbox was full.
    pub(super) overflowed: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Channels {
    life: Duration,
    all: BTreeMap<String, Channel>,
    by_part: HashMap<String, Vec<String>>,
    uses: u64,
}

impl Channels {
    pub(super) fn new(life: Duration) -> Self {
        Self { life, all: BTreeMap::new(), by_part: HashMap::new(), uses: 0 }
    }

    /// Makes a channel. Returns the socket of the one that had to go for it, if it had one.
    pub(super) fn create(&mut self, id: String, token: String, dies: Instant, now: Instant) -> Option<u64> {
        self.bury(now);
        let evicted = if self.all.len() >= CHANNELS_MAX { self.evict() } else { None };
        self.uses += 1;
        let channel = Channel {
            token,
            dies,
            expires: after(now, self.life),
            topics: Topics::new(),
            used: self.uses,
            attached: None,
        };
        self.all.insert(id, channel);
        evicted
    }

    pub(super) fn get(&self, id: &str, now: Instant) -> Option<&Channel> {
        self.all.get(id).filter(|channel| now < channel.ends())
    }

    pub(super) fn list(&self, now: Instant) -> impl Iterator<Item = (&String, &Channel)> {
        self.all.iter().filter(move |(_, channel)| now < channel.ends())
    }

    /// When the channel ends, unless it has.
    pub(super) fn ends(&self, id: &str, now: Instant) -> Option<Instant> {
        self.get(id, now).map(Channel::ends)
    }

    /// Adds or replaces topics, and extends the channel's life.
    pub(super) fn subscribe(
        &mut self,
        id: &str,
        topics: Topics,
        change: Change,
        now: Instant,
    ) -> Result<(), ChannelError> {
        let channel = self.get(id, now).ok_or(ChannelError::Gone)?;
        let mut wanted = match change {
            Change::Add => channel.topics.clone(),
            Change::Replace => Topics::new(),
        };
        wanted.extend(topics);
        if wanted.len() > TOPICS_MAX {
            return Err(ChannelError::TooManyTopics);
        }
        self.set_topics(id, wanted);
        let expires = after(now, self.life);
        self.touch(id).expires = expires;
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
        self.set_topics(id, Topics::new());
        self.touch(id);
        Ok(())
    }

    /// Every channel loses its subscriptions.
    pub(super) fn clear_all(&mut self) {
        self.by_part.clear();
        for channel in self.all.values_mut() {
            channel.topics.clear();
        }
    }

    /// Every channel ends at this moment at the latest.
    pub(super) fn end_all(&mut self, at: Instant) {
        for channel in self.all.values_mut() {
            channel.dies = channel.dies.min(at);
        }
    }

    /// Gives the channel its socket. Returns the socket that it had, which must go.
    pub(super) fn attach(&mut self, id: &str, attached: Attached, now: Instant) -> Result<Option<u64>, ChannelError> {
        self.get(id, now).ok_or(ChannelError::Gone)?;
        Ok(self.touch(id).attached.replace(attached).map(|old| old.socket))
    }

    /// Takes the socket away, unless another one has come since.
    pub(super) fn detach(&mut self, id: &str, socket: u64) {
        if let Some(channel) = self.all.get_mut(id)
            && channel.attached.as_ref().is_some_and(|attached| attached.socket == socket)
        {
            channel.attached = None;
        }
    }

    /// Puts a notification into the outbox of everybody subscribed and connected.
    pub(super) fn say(&self, topic: &str, number: u64, write: impl FnOnce() -> String, now: Instant) -> Reach {
        let mut reach = Reach::default();
        let Some(ids) = self.by_part.get(topic) else {
            return reach;
        };
        let mut text = LazyText::Unwritten(write);
        for channel in ids.iter().filter_map(|id| self.get(id, now)) {
            reach.subscribed = true;
            let Some(attached) = &channel.attached else {
                continue;
            };
            let said = Said { number, text: text.read() };
            match attached.outbox.try_send(said) {
                Ok(()) => reach.queued = true,
                Err(mpsc::error::TrySendError::Full(_)) => reach.overflowed.push(attached.socket),
                Err(mpsc::error::TrySendError::Closed(_)) => (),
            }
        }
        reach
    }

    fn set_topics(&mut self, id: &str, topics: Topics) {
        self.unlist(id);
        for part in topics.values().flatten() {
            self.by_part.entry(part.clone()).or_default().push(id.to_owned());
        }
        self.touch(id).topics = topics;
    }

    fn unlist(&mut self, id: &str) {
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

    fn touch(&mut self, id: &str) -> &mut Channel {
        self.uses += 1;
        let channel = self.all.get_mut(id).expect("the caller has looked the channel up");
        channel.used = self.uses;
        channel
    }

    fn bury(&mut self, now: Instant) {
        let dead: Vec<String> =
            self.all.iter().filter(|(_, channel)| channel.ends() <= now).map(|(id, _)| id.clone()).collect();
        for id in dead {
            self.remove(&id);
        }
    }

    /// The channel without a socket that was used longest ago, else the one with a socket.
    fn evict(&mut self) -> Option<u64> {
        let least = self.all.iter().min_by_key(|(_, channel)| (channel.attached.is_some(), channel.used));
        let id = least.map(|(id, _)| id.clone())?;
        self.remove(&id)
    }

    fn remove(&mut self, id: &str) -> Option<u64> {
        self.unlist(id);
        self.all.remove(id)?.attached.map(|attached| attached.socket)
    }
}

/// Written for the first who wants it, shared with the others.
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

    const LIFE: Duration = Duration::from_secs(60);

    #[test]
    fn the_21st_channel_takes_the_place_of_the_least_used_unconnected_one() {
        let begin = now();
        let mut channels = channels(20, begin);
        for index in 0..2 {
            channels.attach(&name(index), attached(index as u64), begin).unwrap();
        }
        channels.clear(&name(2), begin).unwrap();
        assert_eq!(channels.create(name(20), String::new(), after(begin, LIFE), begin), None);
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
        assert_eq!(channels.create(name(20), String::new(), after(begin, LIFE), begin), Some(0));
    }

    #[test]
    fn a_notification_reaches_those_subscribed_and_connected() {
        let begin = now();
        let mut channels = channels(2, begin);
        let topics = |topic: &str| Topics::from([(topic.to_owned(), vec![topic.to_owned()])]);
        channels.subscribe(&name(0), topics("a"), Change::Add, begin).unwrap();
        channels.subscribe(&name(1), topics("b"), Change::Add, begin).unwrap();
        let (outbox, mut inbox) = mpsc::channel(1);
        channels.attach(&name(0), Attached { socket: 7, outbox }, begin).unwrap();
        let say = |topic: &str| channels.say(topic, 1, || topic.to_owned(), begin);
        assert_eq!(say("c"), Reach::default());
        assert_eq!(say("b"), Reach { subscribed: true, ..Reach::default() });
        assert_eq!(say("a"), Reach { subscribed: true, queued: true, overflowed: vec![] });
        assert_eq!(say("a"), Reach { subscribed: true, queued: false, overflowed: vec![7] });
        assert_eq!(inbox.try_recv().unwrap().text.as_str(), "a");
    }

    #[test]
    fn a_channel_lives_as_long_as_its_token_and_subscribing_extends_the_rest() {
        let begin = now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut channels = Channels::new(LIFE);
        channels.create(name(0), String::new(), at(90), begin);
        channels.subscribe(&name(0), Topics::new(), Change::Add, at(50)).unwrap();
        assert_eq!(channels.ends(&name(0), at(80)), Some(at(90)));
        assert!(channels.get(&name(0), at(90)).is_none());
    }

    #[test]
    fn the_1001st_topic_is_refused_and_changes_nothing() {
        let begin = now();
        let mut channels = channels(1, begin);
        let topics = |count: usize| (0..count).map(|index| (index.to_string(), vec![])).collect::<Topics>();
        channels.subscribe(&name(0), topics(1_000), Change::Add, begin).unwrap();
        let extra = Topics::from([("extra".to_owned(), vec![])]);
        assert_eq!(channels.subscribe(&name(0), extra, Change::Add, begin), Err(ChannelError::TooManyTopics));
        assert_eq!(channels.get(&name(0), begin).unwrap().topics.len(), 1_000);
        channels.subscribe(&name(0), topics(3), Change::Replace, begin).unwrap();
        assert_eq!(channels.get(&name(0), begin).unwrap().topics.len(), 3);
    }

    fn channels(count: usize, now: Instant) -> Channels {
        let mut channels = Channels::new(LIFE);
        for index in 0..count {
            channels.create(name(index), String::new(), after(now, LIFE), now);
        }
        channels
    }

    fn name(index: usize) -> String {
        format!("streaming-{index}")
    }

    fn attached(socket: u64) -> Attached {
        Attached { socket, outbox: mpsc::channel(1).0 }
    }
}
