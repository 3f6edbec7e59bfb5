//! Getting a channel: look up what `*` stands for, mint the channel, subscribe its topics.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;

use super::{Settings, TOPICS_MAX, text_or};
use crate::connector::{Answer, Credential, Endpoint, Failure, Method, RefusedTopic, Request, Step};

/// Where the conversation stands.
#[derive(Debug, Clone)]
pub struct Preparation {
    settings: Settings,
    stage: Stage,
    /// The ids found so far, by family.
    found: BTreeMap<Family, Vec<String>>,
    /// Families that are still to be looked up.
    wanted: VecDeque<Family>,
    /// The live channel that is tended; none when one is to be minted.
    tended: Option<Endpoint>,
}

#[derive(Debug, Clone)]
enum Stage {
    LookingUp {
        family: Family,
        page: u32,
    },
    Minting {
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    Subscribing {
        channel: Channel,
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    /// Adding to a live channel.
    Adding {
        endpoint: Endpoint,
        added: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    Done,
}

/// What `*` can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Queues,
    Users,
}

const PAGE_LEN: usize = 100;
/// More pages than any organisation that fits on a channel has; a platform that pages for ever is cut off.
const PAGES_MAX: u32 = 100;

/// The families whose ids `*` stands for.
pub const EXPANDED: [&str; 2] = ["queues", "users"];

/// Whether the ids that `*` stands for in a topic can be looked up.
pub fn expands(topic: &str) -> bool {
    Family::of(topic).is_some()
}

impl Family {
    const ALL: [Self; 2] = [Self::Queues, Self::Users];

    fn of(topic: &str) -> Option<Self> {
        let segments: Vec<&str> = topic.split('.').collect();
        let star = segments.iter().position(|segment| *segment == "*" || segment.starts_with("*?"))?;
        match segments.get(star.checked_sub(1)?).copied() {
            Some("queues") => Some(Self::Queues),
            Some("users") => Some(Self::Users),
            _ => None,
        }
    }

    fn page(self, page: u32) -> Step {
        let path = match self {
            Self::Queues => "/api/v2/routing/queues",
            Self::Users => "/api/v2/users",
        };
        let target = format!("{path}?pageSize={PAGE_LEN}&pageNumber={page}");
        Step::Call(Request { method: Method::Get, target, body: None })
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Channel {
    id: String,
    #[serde(rename = "connectUri")]
    connect_uri: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    entities: Vec<Entity>,
    #[serde(rename = "pageCount", default)]
    page_count: u32,
}

#[derive(Deserialize)]
struct Entity {
    id: String,
}

#[derive(Deserialize)]
struct Subscriptions {
    #[serde(default)]
    entities: Vec<Subscription>,
}

#[derive(Deserialize)]
struct Subscription {
    id: String,
    #[serde(default)]
    state: Option<String>,
    #[serde(rename = "rejectionReason", default)]
    reason: Option<String>,
    #[serde(rename = "missingPermissions", default)]
    missing: Vec<String>,
}

impl Preparation {
    /// Begins with a new channel.
    pub(in crate::connector) fn begin(settings: &Settings) -> (Self, Step) {
        Self::start(settings, None)
    }

    /// Begins to look after a live channel: new topics, and those that were refused.
    pub(in crate::connector) fn tend(settings: &Settings, endpoint: &Endpoint) -> (Self, Step) {
        Self::start(settings, Some(endpoint.clone()))
    }

    fn start(settings: &Settings, tended: Option<Endpoint>) -> (Self, Step) {
        let wants = |family: &Family| settings.topics.iter().any(|topic| Family::of(topic) == Some(*family));
        let wanted = Family::ALL.into_iter().filter(wants).collect();
        let mut preparation =
            Self { settings: settings.clone(), stage: Stage::Done, found: BTreeMap::new(), wanted, tended };
        let step = preparation.look_up_or_go_on();
        (preparation, step)
    }

    fn look_up_or_go_on(&mut self) -> Step {
        if let Some(family) = self.wanted.pop_front() {
            self.stage = Stage::LookingUp { family, page: 1 };
            return family.page(1);
        }
        let (topics, left_out) = self.topics();
        match self.tended.take() {
            None => {
                self.stage = Stage::Minting { topics, left_out };
                let target = "/api/v2/notifications/channels".to_owned();
                Step::Call(Request { method: Method::Post, target, body: None })
            }
            Some(endpoint) => self.add(endpoint, topics, left_out),
        }
    }

    fn add(&mut self, endpoint: Endpoint, topics: Vec<String>, left_out: Vec<RefusedTopic>) -> Step {
        let added: Vec<String> = topics.into_iter().filter(|topic| !endpoint.topics.contains(topic)).collect();
        let id = endpoint.id.clone().unwrap_or_default();
        if added.is_empty() {
            return Step::Ready(Endpoint { refused: left_out, ..endpoint });
        }
        let request = subscribe(Method::Post, &id, &added);
        self.stage = Stage::Adding { endpoint, added, left_out };
        Step::Call(request)
    }

    /// All topics with `*` replaced, without doubles, and what has no room on one channel.
    fn topics(&self) -> (Vec<String>, Vec<RefusedTopic>) {
        let mut topics: Vec<String> = Vec::new();
        for topic in &self.settings.topics {
            match Family::of(topic).and_then(|family| self.found.get(&family)) {
                Some(ids) => topics.extend(ids.iter().map(|id| topic.replacen('*', id, 1))),
                None => topics.push(topic.clone()),
            }
        }
        topics.sort_unstable();
        topics.dedup();
        let beyond = topics.split_off(topics.len().min(TOPICS_MAX));
        let reason = format!("a channel holds {TOPICS_MAX} topics");
        let left_out = beyond.into_iter().map(|topic| RefusedTopic { topic, reason: reason.clone() }).collect();
        (topics, left_out)
    }

    /// Takes the answer to the call of the last step.
    pub(in crate::connector) fn answered(&mut self, answer: &Answer) -> Step {
        if !(200..300).contains(&answer.status) {
            return Step::Failed(Failure::Call { status: answer.status, retry_after: answer.retry_after });
        }
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::LookingUp { family, page } => self.looked_up(family, page, answer),
            Stage::Minting { topics, left_out } => self.minted(topics, left_out, answer),
            Stage::Subscribing { channel, topics, left_out } => subscribed(channel, &topics, left_out, answer),
            Stage::Adding { endpoint, added, left_out } => extended(endpoint, &added, left_out, answer),
            Stage::Done => nonsense("an answer that nobody asked for"),
        }
    }

    fn looked_up(&mut self, family: Family, page: u32, answer: &Answer) -> Step {
        let Ok(listed) = serde_json::from_slice::<Page>(&answer.body) else {
            return nonsense("a page without entities");
        };
        let more = page < listed.page_count.min(PAGES_MAX);
        let ids = self.found.entry(family).or_default();
        ids.extend(listed.entities.into_iter().map(|entity| entity.id).filter(|id| !id.is_empty()));
        if more {
            self.stage = Stage::LookingUp { family, page: page + 1 };
            return family.page(page + 1);
        }
        self.look_up_or_go_on()
    }

    fn minted(&mut self, topics: Vec<String>, left_out: Vec<RefusedTopic>, answer: &Answer) -> Step {
        let Ok(channel) = serde_json::from_slice::<Channel>(&answer.body) else {
            return nonsense("a channel without connectUri");
        };
        let socket = channel.connect_uri.starts_with("wss://") || channel.connect_uri.starts_with("ws://");
        if !socket || !channel.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return nonsense("a channel whose address is none");
        }
        let request = subscribe(Method::Put, &channel.id, &topics);
        self.stage = Stage::Subscribing { channel, topics, left_out };
        Step::Call(request)
    }
}

/// Section 2.2: with `ignoreErrors` one bad topic does not take the others down.
fn subscribe(method: Method, channel: &str, topics: &[String]) -> Request {
    let ids: Vec<_> = topics.iter().map(|topic| serde_json::json!({ "id": topic })).collect();
    let target = format!("/api/v2/notifications/channels/{channel}/subscriptions?ignoreErrors=true");
    Request { method, target, body: Some(serde_json::Value::from(ids).to_string()) }
}

fn subscribed(channel: Channel, topics: &[String], left_out: Vec<RefusedTopic>, answer: &Answer) -> Step {
    let endpoint = Endpoint {
        url: channel.connect_uri,
        credential: Credential::InUrl,
        id: Some(channel.id),
        topics: Vec::new(),
        refused: Vec::new(),
    };
    extended(endpoint, topics, left_out, answer)
}

/// The endpoint with what the platform accepted and refused of `asked`.
fn extended(mut endpoint: Endpoint, asked: &[String], left_out: Vec<RefusedTopic>, answer: &Answer) -> Step {
    let Ok(listed) = serde_json::from_slice::<Subscriptions>(&answer.body) else {
        return nonsense("subscriptions without entities");
    };
    let refused: BTreeMap<String, String> = listed.entities.into_iter().filter_map(refusal).collect();
    endpoint.refused = left_out;
    for topic in asked {
        match refused.get(topic) {
            Some(reason) => endpoint.refused.push(RefusedTopic { topic: topic.clone(), reason: reason.clone() }),
            None => endpoint.topics.push(topic.clone()),
        }
    }
    Step::Ready(endpoint)
}

fn refusal(subscription: Subscription) -> Option<(String, String)> {
    let state = subscription.state.as_deref().unwrap_or("Permitted");
    if !state.eq_ignore_ascii_case("rejected") {
        return None;
    }
    let mut reason = text_or(subscription.reason.as_deref(), "no reason given").into_owned();
    if !subscription.missing.is_empty() {
        reason.push_str("; missing permissions: ");
        reason.push_str(&subscription.missing.join(", "));
    }
    Some((subscription.id, reason))
}

fn nonsense(what: &str) -> Step {
    Step::Failed(Failure::Unreachable(format!("the platform answered with {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn settings(topics: &[&str]) -> Settings {
        Settings {
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            channel_life: Duration::from_secs(86_400),
            discovery: Duration::from_secs(60),
        }
    }

    fn answer(body: &str) -> Answer {
        Answer { status: 200, retry_after: None, body: body.to_owned().into() }
    }

    fn target(step: &Step) -> &str {
        match step {
            Step::Call(request) => &request.target,
            Step::Ready(_) | Step::Failed(_) => panic!("{step:?}"),
        }
    }

    const CHANNEL: &str = r#"{"id":"streaming-4-x","connectUri":"wss://s/channels/streaming-4-x","expires":"…"}"#;

    #[test]
    fn a_star_is_looked_up_page_by_page_before_the_channel_is_minted() {
        let (mut preparation, step) = Preparation::begin(&settings(&["v2.analytics.queues.*.observations"]));
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=1");
        let step = preparation.answered(&answer(r#"{"entities":[{"id":"q-2"}],"pageCount":2}"#));
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=2");
        let step = preparation.answered(&answer(r#"{"entities":[{"id":"q-1"}],"pageCount":2}"#));
        assert_eq!(target(&step), "/api/v2/notifications/channels");
        let step = preparation.answered(&answer(CHANNEL));
        let Step::Call(request) = step else { panic!("{step:?}") };
        assert_eq!(request.target, "/api/v2/notifications/channels/streaming-4-x/subscriptions?ignoreErrors=true");
        let body = r#"[{"id":"v2.analytics.queues.q-1.observations"},{"id":"v2.analytics.queues.q-2.observations"}]"#;
        assert_eq!((request.method, request.body.as_deref()), (Method::Put, Some(body)));
    }

    #[test]
    fn a_star_in_a_combined_topic_is_looked_up_too() {
        let (mut preparation, step) = Preparation::begin(&settings(&["v2.users.*?presence&routingStatus"]));
        assert_eq!(target(&step), "/api/v2/users?pageSize=100&pageNumber=1");
        preparation.answered(&answer(r#"{"entities":[{"id":"u-1"}],"pageCount":1}"#));
        let Step::Call(request) = preparation.answered(&answer(CHANNEL)) else { panic!() };
        assert_eq!(request.body.as_deref(), Some(r#"[{"id":"v2.users.u-1?presence&routingStatus"}]"#));
    }

    #[test]
    fn a_refused_topic_is_told_and_does_not_take_the_others_down() {
        let (mut preparation, _) = Preparation::begin(&settings(&["v2.users.1.presence", "v2.users.2.presence"]));
        preparation.answered(&answer(CHANNEL));
        let step = preparation.answered(&answer(
            r#"{"entities":[{"id":"v2.users.1.presence","state":"Permitted"},
                {"id":"v2.users.2.presence","state":"Rejected","rejectionReason":"no","missingPermissions":["a:b:c"]}]}"#,
        ));
        let Step::Ready(endpoint) = step else { panic!("{step:?}") };
        assert_eq!(endpoint.topics, ["v2.users.1.presence"]);
        let reason = "no; missing permissions: a:b:c".to_owned();
        assert_eq!(endpoint.refused, [RefusedTopic { topic: "v2.users.2.presence".to_owned(), reason }]);
    }

    #[test]
    fn topics_beyond_the_channels_limit_are_told_as_refused() {
        let topics: Vec<String> = (0..1_002).map(|n| format!("v2.users.{n:05}.presence")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let (mut preparation, _) = Preparation::begin(&settings(&topics));
        preparation.answered(&answer(CHANNEL));
        let Step::Ready(endpoint) = preparation.answered(&answer(r#"{"entities":[]}"#)) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused.len()), (1_000, 2));
    }

    #[test]
    fn a_live_channel_gets_the_queues_that_were_added_since() {
        let live = Endpoint {
            url: "wss://s/channels/c".to_owned(),
            credential: Credential::InUrl,
            id: Some("c".to_owned()),
            topics: vec!["v2.routing.queues.q-1.users".to_owned()],
            refused: Vec::new(),
        };
        let (mut preparation, step) = Preparation::tend(&settings(&["v2.routing.queues.*.users"]), &live);
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=1");
        let step = preparation.answered(&answer(r#"{"entities":[{"id":"q-1"},{"id":"q-2"}],"pageCount":1}"#));
        let Step::Call(request) = step else { panic!("{step:?}") };
        assert_eq!(request.method, Method::Post);
        assert_eq!(request.body.as_deref(), Some(r#"[{"id":"v2.routing.queues.q-2.users"}]"#));
        let Step::Ready(endpoint) = preparation.answered(&answer(r#"{"entities":[]}"#)) else { panic!() };
        assert_eq!(endpoint.topics.len(), 2);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_a_failure_and_not_a_panic() {
        for body in ["", "{}", r#"{"id":"x","connectUri":"http://evil"}"#, r#"{"id":"../x","connectUri":"ws://a"}"#] {
            let (mut preparation, _) = Preparation::begin(&settings(&["v2.users.1.presence"]));
            assert!(matches!(preparation.answered(&answer(body)), Step::Failed(Failure::Unreachable(_))), "{body}");
        }
        let (mut preparation, _) = Preparation::begin(&settings(&["v2.users.1.presence"]));
        let refused = Answer { status: 403, retry_after: None, body: "".into() };
        assert!(matches!(preparation.answered(&refused), Step::Failed(Failure::Call { status: 403, .. })));
    }
}
