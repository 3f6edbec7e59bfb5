//! Where a session connects, and which topics it receives.

use std::time::Duration;

use super::Credential;

/// How to reach the socket, until it has to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `wss://`, or `https://` for a poll transport, without token and resume parameter.
    pub url: String,
    pub credential: Credential,
    /// The platform's id of the endpoint, such as a channel id.
    pub id: Option<String>,
    /// The topics that are subscribed on it.
    pub topics: Vec<String>,
    /// The configured topics that are not subscribed, with the reason.
    pub refused: Vec<RefusedTopic>,
    /// False if it was created and nothing is subscribed on it yet.
    pub subscribed: bool,
    /// The next refresh of the subscriptions, if the platform asked for a pause. Overrides the usual interval.
    pub refresh_in: Option<Duration>,
}

impl Endpoint {
    /// A topic that is subscribed here and that the platform refused to `other`.
    pub fn topic_refused_by<'a>(&self, other: &'a Self) -> Option<&'a RefusedTopic> {
        let known = |refused: &RefusedTopic| self.refused.iter().any(|known| known.topic == refused.topic);
        let subscribed = |refused: &RefusedTopic| {
            self.topics.iter().any(|topic| *topic == refused.topic || *topic == refused.request)
        };
        let is_less =
            |refused: &&RefusedTopic| refused.state == TopicState::Refused && !known(refused) && subscribed(refused);
        other.refused.iter().find(is_less)
    }

    /// This endpoint without subscriptions.
    pub fn unsubscribed(self) -> Self {
        Self { topics: Vec::new(), refused: Vec::new(), subscribed: false, ..self }
    }
}

/// A configured topic that is not subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTopic {
    pub topic: String,
    pub reason: String,
    pub state: TopicState,
    /// The requested topic. It differs from `topic` if that is a part of a combined topic.
    pub request: String,
}

/// Why a topic is not subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// The platform refused it, or refused the look-up of its ids.
    Refused,
    /// It exceeds the limit of topics, or no ids could be found or read.
    Unavailable,
}

impl RefusedTopic {
    pub(crate) fn new(topic: &str, reason: String, state: TopicState) -> Self {
        Self { topic: topic.to_owned(), reason, state, request: topic.to_owned() }
    }
}
