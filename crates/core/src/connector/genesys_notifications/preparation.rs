//! The way to a channel: look up the ids for `*`, create the channel, subscribe its topics.
//!
//! Each member of an answer is parsed alone. The endpoint lists every topic that is refused or unreadable; the other
//! topics are subscribed. This holds for a failed look-up of a family, a part of a combined topic, and a topic beyond
//! the limit.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Settings, TOPICS_MAX,
    listing::{Family, IDS_MAX, ListingPage, id_of_entity},
    subscription,
};
use crate::{
    connector::{
        Credential, Endpoint, Failure, Method, PreparationStep, RefusedTopic, RestConversation, RestRequest,
        RestResponse, TopicState, json::Members,
    },
    model::{Exchange, StatusMeaning},
};

/// The state of the calls that lead to a channel.
#[derive(Debug, Clone)]
pub struct ChannelPreparation {
    settings: Settings,
    stage: ChannelState,
    /// The ids that are known so far, by family.
    discovered: BTreeMap<Family, BTreeSet<String>>,
    /// The topics whose ids are unknown or incomplete, with the reason.
    failed: Vec<RefusedTopic>,
    /// The first look-up that was refused the token or throttled. The whole preparation fails with it if no topic remains.
    stream_failure: Option<Failure>,
    /// The pause that the platform demands before the next look-up.
    pause: Option<Duration>,
    /// The topics of the session before. They are subscribed again, even if the listings do not contain them.
    subscribed: BTreeSet<String>,
    /// The families without a look-up so far.
    lookups: VecDeque<Family>,
    /// The live channel whose subscriptions are refreshed; none to create a channel.
    live_channel: Option<Endpoint>,
    /// A channel that was created and is not subscribed yet.
    spare: Option<Endpoint>,
}

#[derive(Debug, Clone)]
enum ChannelState {
    Discovering {
        family: Family,
        page: ListingPage,
    },
    CreatingChannel {
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    Subscribing {
        channel: Endpoint,
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    /// Adds topics to a live channel.
    AddingTopics {
        endpoint: Endpoint,
        added: Vec<String>,
        left_out: Vec<RefusedTopic>,
    },
    Done,
}

/// The names of the subscribing calls in errors.
const PUT_SUBSCRIPTIONS: &str = "PUT /api/v2/notifications/channels/{id}/subscriptions";
const POST_SUBSCRIPTIONS: &str = "POST /api/v2/notifications/channels/{id}/subscriptions";

impl RestConversation for ChannelPreparation {
    fn on_response(&mut self, answer: &RestResponse) -> PreparationStep {
        let fine = (200..300).contains(&answer.status);
        match std::mem::replace(&mut self.stage, ChannelState::Done) {
            ChannelState::Discovering { family, page } if fine => self.on_page(family, page, answer),
            ChannelState::Discovering { family, .. } => {
                self.on_lookup_failed(family, Failure::from_response(&family.call(), answer))
            }
            ChannelState::CreatingChannel { topics, left_out } if fine => {
                self.on_channel_created(topics, left_out, answer)
            }
            ChannelState::CreatingChannel { .. } => {
                PreparationStep::Failed(Failure::from_response("POST /api/v2/notifications/channels", answer))
            }
            ChannelState::Subscribing { channel, topics, left_out } if fine => {
                match subscription::with_added_topics(channel, &topics, left_out, answer) {
                    Ok(mut endpoint) => {
                        self.spare = None;
                        endpoint.refused.retain(|refused| !self.is_deleted(&refused.request));
                        self.ready(endpoint)
                    }
                    Err(why) => PreparationStep::Failed(Failure::Unreachable(format!("{PUT_SUBSCRIPTIONS}: {why}"))),
                }
            }
            ChannelState::Subscribing { .. } => {
                if answer.status == 404 {
                    self.spare = None;
                }
                PreparationStep::Failed(Failure::from_response(PUT_SUBSCRIPTIONS, answer))
            }
            ChannelState::AddingTopics { endpoint, added, left_out } => {
                let extended = match fine {
                    true => subscription::with_added_topics(endpoint.clone(), &added, left_out.clone(), answer),
                    false => Err(Failure::from_response(POST_SUBSCRIPTIONS, answer).to_string()),
                };
                self.ready(extended.unwrap_or_else(|why| subscription::not_added(endpoint, &added, left_out, &why)))
            }
            ChannelState::Done => invalid_response("an answer without a request"),
        }
    }

    fn on_no_response(&mut self, why: String) -> PreparationStep {
        match std::mem::replace(&mut self.stage, ChannelState::Done) {
            ChannelState::Discovering { family, .. } => {
                self.on_lookup_failed(family, Failure::Unreachable(format!("{}: {why}", family.call())))
            }
            ChannelState::AddingTopics { endpoint, added, left_out } => {
                let why = format!("{POST_SUBSCRIPTIONS}: {why}");
                self.ready(subscription::not_added(endpoint, &added, left_out, &why))
            }
            ChannelState::CreatingChannel { .. } | ChannelState::Subscribing { .. } | ChannelState::Done => {
                PreparationStep::Failed(Failure::Unreachable(why))
            }
        }
    }

    fn spare(&self) -> Option<&Endpoint> {
        self.spare.as_ref()
    }
}

impl ChannelPreparation {
    /// Starts with a new channel.
    pub(in crate::connector) fn begin(settings: &Settings, subscribed: &[String]) -> (Self, PreparationStep) {
        Self::start(settings, None, None, subscribed)
    }

    /// Starts with a channel that was created and never subscribed.
    pub(in crate::connector) fn resume(
        settings: &Settings,
        spare: &Endpoint,
        subscribed: &[String],
    ) -> (Self, PreparationStep) {
        Self::start(settings, None, Some(spare.clone()), subscribed)
    }

    /// Starts to refresh the subscriptions of a live channel: new topics, and topics that were refused.
    pub(in crate::connector) fn refresh(settings: &Settings, endpoint: &Endpoint) -> (Self, PreparationStep) {
        Self::start(settings, Some(endpoint.clone()), None, &[])
    }

    fn start(
        settings: &Settings,
        live_channel: Option<Endpoint>,
        spare: Option<Endpoint>,
        subscribed: &[String],
    ) -> (Self, PreparationStep) {
        let wants = |family: &Family| settings.topics.iter().any(|topic| Family::of(topic) == Some(*family));
        let wanted = Family::ALL.into_iter().filter(wants).collect();
        let mut preparation = Self {
            settings: settings.clone(),
            stage: ChannelState::Done,
            discovered: BTreeMap::new(),
            failed: Vec::new(),
            stream_failure: None,
            pause: None,
            subscribed: subscribed.iter().filter(|topic| settings.expansion_of(topic).is_some()).cloned().collect(),
            lookups: wanted,
            live_channel,
            spare,
        };
        let step = preparation.next_step();
        (preparation, step)
    }

    fn next_step(&mut self) -> PreparationStep {
        if let Some(family) = self.lookups.pop_front() {
            let page = ListingPage::first(family);
            let step = page.call();
            self.stage = ChannelState::Discovering { family, page };
            return step;
        }
        let (topics, left_out) = self.topics();
        if let Some(failure) = self.stream_failure.take_if(|_| topics.is_empty() && self.live_channel.is_none()) {
            return PreparationStep::Failed(failure);
        }
        if let Some(endpoint) = self.live_channel.take() {
            return self.add(endpoint, &topics, left_out);
        }
        if let Some(channel) = self.spare.clone() {
            return self.subscribe_all(channel, topics, left_out);
        }
        self.stage = ChannelState::CreatingChannel { topics, left_out };
        let target = "/api/v2/notifications/channels".to_owned();
        PreparationStep::Call(RestRequest { method: Method::Post, target, body: None })
    }

    /// Adds the topics that are not subscribed, and those that were refused in part. If the platform refused a name that
    /// was not requested, all topics are requested again.
    fn add(&mut self, endpoint: Endpoint, topics: &[String], left_out: Vec<RefusedTopic>) -> PreparationStep {
        let refused: BTreeSet<&String> = endpoint.refused.iter().map(|refused| &refused.request).collect();
        let subscribed: BTreeSet<&String> = endpoint.topics.iter().collect();
        let all = endpoint.refused.iter().any(|refused| self.has_no_request(refused, topics));
        let room = TOPICS_MAX.saturating_sub(subscribed.len());
        let mut added: Vec<String> = topics.iter().filter(|topic| !subscribed.contains(topic)).cloned().collect();
        let beyond = added.split_off(added.len().min(room));
        let again = |topic: &&String| subscribed.contains(topic) && (all || refused.contains(topic));
        added.extend(topics.iter().filter(again).cloned());
        let mut left_out = left_out;
        left_out.extend(beyond.iter().map(|topic| subscription::over_limit(topic)));
        let id = endpoint.id.clone().unwrap_or_default();
        if added.is_empty() {
            return self.ready(Endpoint { refused: left_out, ..endpoint });
        }
        let request = subscription::request(Method::Post, &id, &added);
        self.stage = ChannelState::AddingTopics { endpoint, added, left_out };
        PreparationStep::Call(request)
    }

    /// Whether the platform refused a name that was not requested.
    fn has_no_request(&self, refused: &RefusedTopic, topics: &[String]) -> bool {
        let is_asked = |topics: &[String]| topics.contains(&refused.request);
        refused.state == TopicState::Refused && !is_asked(topics) && !is_asked(&self.settings.topics)
    }

    fn ready(&self, endpoint: Endpoint) -> PreparationStep {
        PreparationStep::Ready(Endpoint { refresh_in: self.pause, ..endpoint })
    }

    fn subscribe_all(
        &mut self,
        channel: Endpoint,
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
    ) -> PreparationStep {
        let request = subscription::request(Method::Put, channel.id.as_deref().unwrap_or_default(), &topics);
        self.stage = ChannelState::Subscribing { channel, topics, left_out };
        PreparationStep::Call(request)
    }

    /// All topics with `*` replaced by ids, without duplicates, and the topics that cannot be requested.
    fn topics(&self) -> (Vec<String>, Vec<RefusedTopic>) {
        let mut topics = BTreeSet::new();
        let mut left_out = self.failed.clone();
        for topic in &self.settings.topics {
            let Some(family) = Family::of(topic) else {
                topics.insert(topic.clone());
                continue;
            };
            let ids = self.discovered.get(&family).filter(|ids| !ids.is_empty());
            if ids.is_none() && !left_out.iter().any(|known| known.request == *topic) {
                let reason = format!("{} lists nothing that {topic} could stand for", family.call());
                left_out.push(RefusedTopic::new(topic, reason, TopicState::Unavailable));
            }
            topics.extend(ids.into_iter().flatten().map(|id| topic.replacen('*', id, 1)));
        }
        let mut asked: Vec<String> =
            self.subscribed.iter().chain(topics.difference(&self.subscribed)).cloned().collect();
        let beyond = asked.split_off(asked.len().min(TOPICS_MAX));
        left_out.extend(beyond.iter().map(|topic| subscription::over_limit(topic)));
        (asked, left_out)
    }

    /// Whether a complete listing no longer contains the id of the topic. Its refusal is then expected.
    fn is_deleted(&self, topic: &str) -> bool {
        let Some(pattern) = self.settings.expansion_of(topic) else { return false };
        let ids = Family::of(pattern).and_then(|family| self.discovered.get(&family)).filter(|ids| !ids.is_empty());
        let is_whole = self.failed.iter().all(|failed| failed.request != *pattern);
        is_whole && ids.is_some_and(|ids| ids.iter().all(|id| pattern.replacen('*', id, 1) != topic))
    }

    fn on_page(&mut self, family: Family, mut page: ListingPage, answer: &RestResponse) -> PreparationStep {
        let Some(listed) = Members::read(&answer.body) else {
            let what = format!("{} was answered with {} and no JSON object", family.call(), answer.status);
            return self.on_lookup_failed(family, Failure::Unreachable(what));
        };
        let entities = listed.list("entities");
        let ids = self.discovered.entry(family).or_default();
        for entity in &entities {
            match id_of_entity(entity) {
                Some(id) if ids.len() < IDS_MAX => drop(ids.insert(id)),
                Some(_) | None => page.unread += 1,
            }
        }
        let found = ids.len() as u64;
        match page.next(family, &listed, entities.len()) {
            Ok(Some(next)) => {
                let step = next.call();
                self.stage = ChannelState::Discovering { family, page: next };
                step
            }
            Ok(None) => {
                if page.unread > 0 {
                    let reason = format!("{}: {} entries have no id that can be read", family.call(), page.unread);
                    self.record_failure(family, &reason, TopicState::Unavailable);
                } else if let Some(total) = listed.number("total").filter(|total| *total > found) {
                    let reason = format!("{} lists {found} of {total}", family.call());
                    self.record_failure(family, &reason, TopicState::Unavailable);
                }
                self.next_step()
            }
            Err(why) => {
                self.record_failure(family, &format!("{}: {why}", family.call()), TopicState::Unavailable);
                self.next_step()
            }
        }
    }

    /// A failed look-up affects only its family if other topics remain. A token that is refused everywhere also fails the
    /// next calls. After a demanded pause the look-up is repeated.
    fn on_lookup_failed(&mut self, family: Family, failure: Failure) -> PreparationStep {
        let others = self.settings.topics.iter().any(|topic| Family::of(topic) != Some(family));
        let known = self.discovered.get(&family).is_some_and(|ids| !ids.is_empty()) || !self.subscribed.is_empty();
        if !(others || known) && self.live_channel.is_none() {
            return PreparationStep::Failed(failure);
        }
        let reason = failure.to_string();
        if let Failure::Call { status, retry_after, .. } = failure {
            match StatusMeaning::of(Exchange::Call, status, retry_after) {
                StatusMeaning::Throttled(wait) => {
                    self.pause = self.pause.max(wait);
                    self.stream_failure.get_or_insert(failure);
                }
                StatusMeaning::Unauthenticated => drop(self.stream_failure.get_or_insert(failure)),
                StatusMeaning::Success | StatusMeaning::Transient | StatusMeaning::Refused => (),
            }
        }
        self.record_failure(family, &reason, TopicState::Refused);
        self.next_step()
    }

    /// Records for every topic of a family why its ids are unknown or incomplete.
    fn record_failure(&mut self, family: Family, reason: &str, state: TopicState) {
        let topics = self.settings.topics.iter().filter(|topic| Family::of(topic) == Some(family));
        self.failed.extend(topics.map(|topic| RefusedTopic::new(topic, reason.to_owned(), state)));
    }

    fn on_channel_created(
        &mut self,
        topics: Vec<String>,
        left_out: Vec<RefusedTopic>,
        answer: &RestResponse,
    ) -> PreparationStep {
        let members = Members::read(&answer.body);
        let member = |name| members.as_ref().and_then(|members| members.text(name)).filter(|text| !text.is_empty());
        let (Some(id), Some(url)) = (member("id"), member("connectUri")) else {
            return invalid_response("a channel without id and connectUri");
        };
        let scheme = url.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
        let socket = ["wss", "ws"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
        if !socket || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return invalid_response("a channel without a valid address");
        }
        let channel = Endpoint {
            url,
            credential: Credential::InUrl,
            id: Some(id),
            topics: Vec::new(),
            refused: Vec::new(),
            subscribed: false,
            refresh_in: None,
        };
        self.spare = Some(channel.clone());
        self.subscribe_all(channel, topics, left_out)
    }
}

fn invalid_response(what: &str) -> PreparationStep {
    PreparationStep::Failed(Failure::Unreachable(format!("the platform answered with {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::genesys_notifications::listing::PAGES_MAX;
    use std::time::Duration;

    fn settings(topics: &[&str]) -> Settings {
        Settings {
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            channel_life: Duration::from_secs(86_400),
            discovery: Duration::from_secs(60),
        }
    }

    fn answer(body: &str) -> RestResponse {
        RestResponse { status: 200, retry_after: None, body: body.to_owned().into() }
    }

    fn target(step: &PreparationStep) -> &str {
        match step {
            PreparationStep::Call(request) => &request.target,
            PreparationStep::Ready(_) | PreparationStep::Failed(_) => panic!("{step:?}"),
        }
    }

    const CHANNEL: &str = r#"{"id":"streaming-4-x","connectUri":"wss://s/channels/streaming-4-x","expires":"…"}"#;

    #[test]
    fn a_wildcard_is_resolved_page_by_page_before_the_channel_is_created() {
        let (mut preparation, step) =
            ChannelPreparation::begin(&settings(&["v2.analytics.queues.*.observations"]), &[]);
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=1");
        let step = preparation.on_response(&answer(r#"{"entities":[{"id":"q-2"}],"pageCount":2}"#));
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=2");
        let step = preparation.on_response(&answer(r#"{"entities":[{"id":"q-1"}],"pageCount":2}"#));
        assert_eq!(target(&step), "/api/v2/notifications/channels");
        let step = preparation.on_response(&answer(CHANNEL));
        let PreparationStep::Call(request) = step else { panic!("{step:?}") };
        assert_eq!(request.target, "/api/v2/notifications/channels/streaming-4-x/subscriptions?ignoreErrors=true");
        let body = r#"[{"id":"v2.analytics.queues.q-1.observations"},{"id":"v2.analytics.queues.q-2.observations"}]"#;
        assert_eq!((request.method, request.body.as_deref()), (Method::Put, Some(body)));
    }

    #[test]
    fn a_wildcard_in_a_combined_topic_is_resolved_too() {
        let (mut preparation, step) = ChannelPreparation::begin(&settings(&["v2.users.*?presence&routingStatus"]), &[]);
        assert_eq!(target(&step), "/api/v2/users?pageSize=100&pageNumber=1");
        preparation.on_response(&answer(r#"{"entities":[{"id":"u-1"}],"pageCount":1}"#));
        let PreparationStep::Call(request) = preparation.on_response(&answer(CHANNEL)) else { panic!() };
        assert_eq!(request.body.as_deref(), Some(r#"[{"id":"v2.users.u-1?presence&routingStatus"}]"#));
    }

    #[test]
    fn a_refused_topic_is_reported_and_the_others_stay() {
        let (mut preparation, _) =
            ChannelPreparation::begin(&settings(&["v2.users.1.presence", "v2.users.2.presence"]), &[]);
        preparation.on_response(&answer(CHANNEL));
        let step = preparation.on_response(&answer(
            r#"{"entities":[{"id":"v2.users.1.presence","state":"Permitted"},
                {"id":"v2.users.2.presence","state":"Rejected","rejectionReason":"no","missingPermissions":["a:b:c"]}]}"#,
        ));
        let PreparationStep::Ready(endpoint) = step else { panic!("{step:?}") };
        assert_eq!(endpoint.topics, ["v2.users.1.presence"]);
        let reason = "no; missing permissions: a:b:c".to_owned();
        assert_eq!(endpoint.refused, [RefusedTopic::new("v2.users.2.presence", reason, TopicState::Refused)]);
    }

    #[test]
    fn topics_beyond_the_channel_limit_are_reported_as_refused() {
        let topics: Vec<String> = (0..1_002).map(|n| format!("v2.users.{n:05}.presence")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let (mut preparation, _) = ChannelPreparation::begin(&settings(&topics), &[]);
        preparation.on_response(&answer(CHANNEL));
        let PreparationStep::Ready(endpoint) = preparation.on_response(&answer("")) else { panic!() };
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
            subscribed: true,
            refresh_in: None,
        };
        let (mut preparation, step) = ChannelPreparation::refresh(&settings(&["v2.routing.queues.*.users"]), &live);
        assert_eq!(target(&step), "/api/v2/routing/queues?pageSize=100&pageNumber=1");
        let step = preparation.on_response(&answer(r#"{"entities":[{"id":"q-1"},{"id":"q-2"}],"pageCount":1}"#));
        let PreparationStep::Call(request) = step else { panic!("{step:?}") };
        assert_eq!(request.method, Method::Post);
        assert_eq!(request.body.as_deref(), Some(r#"[{"id":"v2.routing.queues.q-2.users"}]"#));
        let added = r#"{"entities":[{"id":"v2.routing.queues.q-2.users","state":"Permitted"}]}"#;
        let PreparationStep::Ready(endpoint) = preparation.on_response(&answer(added)) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused.len()), (2, 0));
    }

    #[test]
    fn an_invalid_response_is_a_failure_and_not_a_panic() {
        for body in ["", "{}", r#"{"id":"x","connectUri":"http://evil"}"#, r#"{"id":"../x","connectUri":"ws://a"}"#] {
            let (mut preparation, _) = ChannelPreparation::begin(&settings(&["v2.users.1.presence"]), &[]);
            assert!(
                matches!(preparation.on_response(&answer(body)), PreparationStep::Failed(Failure::Unreachable(_))),
                "{body}"
            );
        }
        let (mut preparation, _) = ChannelPreparation::begin(&settings(&["v2.users.1.presence"]), &[]);
        let refused = RestResponse { status: 403, retry_after: None, body: "".into() };
        assert!(matches!(
            preparation.on_response(&refused),
            PreparationStep::Failed(Failure::Call { status: 403, .. })
        ));
    }

    const ALL: [&str; 2] = ["v2.analytics.queues.*.observations", "v2.users.*.presence"];

    fn refusal_of(status: u16, body: &str) -> RestResponse {
        RestResponse { status, retry_after: None, body: body.to_owned().into() }
    }

    /// The last step after these answers.
    fn outcome(topics: &[&str], answers: &[RestResponse]) -> PreparationStep {
        let (mut preparation, mut step) = ChannelPreparation::begin(&settings(topics), &[]);
        for answer in answers {
            assert!(matches!(step, PreparationStep::Call(_)), "{step:?}");
            step = preparation.on_response(answer);
        }
        step
    }

    #[test]
    fn an_unreadable_member_does_not_affect_the_others() {
        for listing in [
            r#"{"entities":[{"id":"q-1"}],"pageCount":null,"nextUri":null}"#,
            r#"{"entities":[{"id":"q-1"}],"pageCount":"1","nextUri":7}"#,
            r#"{"entities":[{"id":"q-1"}],"pageCount":{},"pageCount":1}"#,
        ] {
            for subscribed in [
                "",
                "{}",
                r#"{"entities":null}"#,
                r#"{"entities":[{"id":"v2.analytics.queues.q-1.observations"}, 7, null]}"#,
            ] {
                let answers = [answer(listing), answer(CHANNEL), answer(subscribed)];
                let PreparationStep::Ready(endpoint) = outcome(&ALL[..1], &answers) else {
                    panic!("{listing} {subscribed}")
                };
                assert_eq!(endpoint.topics, ["v2.analytics.queues.q-1.observations"]);
            }
        }
        let odd = r#"{"entities":[{"name":"x"},7,null,{"id":null},{"id":"q-1"},{"id":["q-2"]}],"pageCount":1}"#;
        let PreparationStep::Ready(endpoint) = outcome(&ALL[..1], &[answer(odd), answer(CHANNEL), refusal_of(204, "")])
        else {
            panic!()
        };
        assert_eq!(endpoint.topics, ["v2.analytics.queues.q-1.observations"]);
        let reason = "GET /api/v2/routing/queues: 5 entries have no id that can be read".to_owned();
        assert_eq!(endpoint.refused, [RefusedTopic::new(ALL[0], reason, TopicState::Unavailable)]);
        let rejected = r#"{"entities":[{"id":"v2.analytics.queues.q-1.observations","state":"Rejected",
            "missingPermissions":null,"rejectionReason":null}]}"#;
        let answers = [answer(r#"{"entities":[{"id":"q-1"}]}"#), answer(CHANNEL), answer(rejected)];
        let PreparationStep::Ready(endpoint) = outcome(&ALL[..1], &answers) else { panic!() };
        assert_eq!(
            (endpoint.topics.len(), endpoint.refused[0].reason.as_str(), endpoint.refused[0].state),
            (0, "no reason given", TopicState::Refused)
        );
    }

    #[test]
    fn a_wildcard_without_matches_is_unavailable() {
        for listing in [r#"{"entities":null}"#, r#"{"entities":[],"pageCount":0}"#, "{}"] {
            let answers = [answer(listing), answer(CHANNEL), answer("")];
            let PreparationStep::Ready(endpoint) = outcome(&ALL[..1], &answers) else { panic!("{listing}") };
            assert_eq!((endpoint.refused.len(), endpoint.refused[0].state), (1, TopicState::Unavailable));
        }
    }

    #[test]
    fn next_uri_is_followed_and_never_in_a_loop() {
        let next = |uri: &str| answer(&format!(r#"{{"entities":[{{"id":"q-1"}}],"nextUri":"{uri}"}}"#));
        for (uri, wanted) in [
            ("/api/v2/routing/queues?pageNumber=2", Some("/api/v2/routing/queues?pageNumber=2")),
            ("?cursor=x", Some("/api/v2/routing/queues?cursor=x")),
            ("https://api.test/api/v2/routing/queues?p=2", Some("https://api.test/api/v2/routing/queues?p=2")),
            ("//evil.test/x", None),
            ("@evil.test/x", None),
            ("ftp://evil.test/x", None),
            ("/api/v2/routing/queues?pageSize=100&pageNumber=1", None),
        ] {
            let step = outcome(&ALL[..1], &[next(uri)]);
            assert_eq!(target(&step), wanted.unwrap_or("/api/v2/notifications/channels"), "{uri}");
        }
        let (mut preparation, mut step) = ChannelPreparation::begin(&settings(&ALL[..1]), &[]);
        let mut pages = 0;
        while !target(&step).starts_with("/api/v2/notifications") {
            pages += 1;
            step = preparation.on_response(&next(&format!("/api/v2/routing/queues?p={pages}")));
        }
        assert_eq!(pages, PAGES_MAX);
        preparation.on_response(&answer(CHANNEL));
        let PreparationStep::Ready(endpoint) = preparation.on_response(&answer("")) else { panic!() };
        assert!(endpoint.refused[0].reason.contains("cut off"), "{:?}", endpoint.refused);
    }

    #[test]
    fn a_refused_part_belongs_to_its_request_and_is_requested_again() {
        let topic = "v2.users.u-1?presence&routingStatus";
        let refused = r#"{"entities":[{"id":"v2.users.u-1?presence&routingStatus","state":"Permitted"},
            {"id":"v2.users.u-1.routingStatus","state":"Rejected","missingPermissions":["a:b:c"]}]}"#;
        let PreparationStep::Ready(endpoint) = outcome(&[topic], &[answer(CHANNEL), answer(refused)]) else { panic!() };
        assert_eq!(endpoint.topics, [topic]);
        let part = &endpoint.refused[0];
        assert_eq!((part.topic.as_str(), part.request.as_str()), ("v2.users.u-1.routingStatus", topic));
        let (mut preparation, step) = ChannelPreparation::refresh(&settings(&[topic]), &endpoint);
        assert!(target(&step).ends_with("/subscriptions?ignoreErrors=true"));
        let whole = format!(r#"{{"entities":[{{"id":"{topic}","state":"Permitted"}}]}}"#);
        let PreparationStep::Ready(healed) = preparation.on_response(&answer(&whole)) else { panic!() };
        assert_eq!(
            (healed.topics.as_slice(), healed.refused.as_slice()),
            ([topic.to_owned()].as_slice(), [].as_slice())
        );
        let typo = "v2.user.*?presence";
        let refused = r#"{"entities":[{"id":"v2.user.*.presence","state":"Rejected"}]}"#;
        let PreparationStep::Ready(endpoint) = outcome(&[typo], &[answer(CHANNEL), answer(refused)]) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused[0].request.as_str()), (0, typo));
    }

    #[test]
    fn families_fail_independently_and_the_failed_one_is_retried() {
        let denied = r#"{"code":"missing.permissions","message":"You may not","messageParams":{"permissions":"directory:user:view"}}"#;
        let queues = r#"{"entities":[{"id":"q-1"}],"pageCount":1}"#;
        for status in [302, 401, 403, 404, 429, 500, 503] {
            let answers = [answer(queues), refusal_of(status, denied), answer(CHANNEL), answer("")];
            let PreparationStep::Ready(endpoint) = outcome(&ALL, &answers) else { panic!("{status}") };
            assert_eq!(endpoint.topics, ["v2.analytics.queues.q-1.observations"]);
            let [failed] = endpoint.refused.as_slice() else { panic!("{:?}", endpoint.refused) };
            assert_eq!((failed.topic.as_str(), failed.state), (ALL[1], TopicState::Refused));
            for part in ["GET /api/v2/users", &status.to_string(), "directory:user:view"] {
                assert!(failed.reason.contains(part), "{}", failed.reason);
            }
            let (mut preparation, _) = ChannelPreparation::refresh(&settings(&ALL), &endpoint);
            preparation.on_response(&answer(queues));
            preparation.on_response(&answer(r#"{"entities":[{"id":"u-1"}]}"#));
            let PreparationStep::Ready(healed) = preparation.on_response(&answer("")) else { panic!() };
            assert_eq!((healed.topics.len(), healed.refused.len()), (2, 0));
            let (mut preparation, _) = ChannelPreparation::refresh(&settings(&ALL), &healed);
            preparation.on_response(&refusal_of(status, denied));
            let PreparationStep::Ready(kept) = preparation.on_no_response("no answer".to_owned()) else { panic!() };
            assert_eq!((kept.topics.len(), kept.refused.len()), (2, 2), "what is subscribed stays");
        }
        let whole = outcome(&ALL[1..], &[refusal_of(403, denied)]);
        let PreparationStep::Failed(failure) = whole else { panic!("{whole:?}") };
        assert!(failure.to_string().contains("GET /api/v2/users"), "{failure}");
    }

    #[test]
    fn a_refused_token_or_a_rate_limit_on_every_family_fails_the_stream() {
        for status in [401, 429] {
            let refused = refusal_of(status, "");
            let fails = |step: PreparationStep| matches!(step, PreparationStep::Failed(Failure::Call { status: found, .. }) if found == status);
            assert!(fails(outcome(&ALL[1..], std::slice::from_ref(&refused))));
            assert!(fails(outcome(&ALL, &[refused.clone(), refused.clone()])), "no family is left");
            let queues = answer(r#"{"entities":[{"id":"q-1"}]}"#);
            assert!(fails(outcome(&ALL, &[queues, refused.clone(), refused])), "the channel's call is refused too");
        }
        let forbidden = refusal_of(403, "");
        let answers = [forbidden.clone(), forbidden, answer(CHANNEL), answer("")];
        let PreparationStep::Ready(endpoint) = outcome(&ALL, &answers) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused.len()), (0, 2));
    }

    #[test]
    fn a_throttled_family_is_looked_up_again_after_retry_after() {
        let busy =
            |status, secs| RestResponse { retry_after: Some(Duration::from_secs(secs)), ..refusal_of(status, "") };
        for (queues, users, expected) in [
            (busy(429, 7), answer(r#"{"entities":[{"id":"u-1"}]}"#), Some(7)),
            (answer(r#"{"entities":[{"id":"q-1"}]}"#), busy(503, 9), Some(9)),
            (answer(r#"{"entities":[{"id":"q-1"}]}"#), busy(500, 9), None),
            (answer(r#"{"entities":[{"id":"q-1"}]}"#), refusal_of(429, ""), None),
        ] {
            let PreparationStep::Ready(endpoint) = outcome(&ALL, &[queues, users, answer(CHANNEL), answer("")]) else {
                panic!()
            };
            assert_eq!(endpoint.refresh_in, expected.map(Duration::from_secs));
            let (mut preparation, _) = ChannelPreparation::refresh(&settings(&ALL), &endpoint);
            preparation.on_response(&busy(429, 3));
            let PreparationStep::Ready(refreshed) = preparation.on_response(&busy(429, 4)) else {
                panic!("{endpoint:?}")
            };
            assert_eq!(refreshed.refresh_in, Some(Duration::from_secs(4)));
            let (mut preparation, _) = ChannelPreparation::refresh(&settings(&ALL), &refreshed);
            preparation.on_response(&answer(r#"{"entities":[{"id":"q-1"}]}"#));
            preparation.on_response(&answer(r#"{"entities":[{"id":"u-1"}]}"#));
            let PreparationStep::Ready(healed) = preparation.on_response(&answer("")) else { panic!("{refreshed:?}") };
            assert_eq!((healed.topics.len(), healed.refused.len(), healed.refresh_in), (2, 0, None));
        }
    }

    #[test]
    fn a_subscription_with_an_unreadable_response_fails_and_is_retried() {
        let topic = "v2.users.1.presence";
        let (mut preparation, _) = ChannelPreparation::begin(&settings(&[topic]), &[]);
        preparation.on_response(&answer(CHANNEL));
        let PreparationStep::Failed(failure) = preparation.on_response(&answer("<html>")) else { panic!() };
        assert!(failure.to_string().contains("PUT /api/v2/notifications/channels/{id}/subscriptions"), "{failure}");
        let (mut again, _) = ChannelPreparation::resume(&settings(&[topic]), preparation.spare().unwrap(), &[]);
        let PreparationStep::Ready(endpoint) = again.on_response(&answer(r#"{"entities":[]}"#)) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused[0].state), (0, TopicState::Unavailable));
        let (mut refresh, step) = ChannelPreparation::refresh(&settings(&[topic]), &endpoint);
        assert!(matches!(step, PreparationStep::Call(_)), "it is requested again");
        let PreparationStep::Ready(endpoint) = refresh.on_response(&answer("<html>")) else { panic!() };
        assert!(endpoint.refused[0].reason.contains("no JSON object"), "{endpoint:?}");
        let (mut refresh, _) = ChannelPreparation::refresh(&settings(&[topic]), &endpoint);
        let PreparationStep::Ready(healed) =
            refresh.on_response(&answer(r#"{"entities":[{"id":"V2.users.1.presence"}]}"#))
        else {
            panic!()
        };
        assert_eq!((healed.topics.as_slice(), healed.refused.len()), ([topic.to_owned()].as_slice(), 0));
    }

    #[test]
    fn a_refusal_of_an_unrequested_topic_stays_until_the_platform_permits_it() {
        let topic = "v2.users.1.presence";
        let other = r#"{"entities":[{"id":"v2.users.1.presence","state":"Permitted"},{"id":"x","state":"Rejected"}]}"#;
        let PreparationStep::Ready(endpoint) = outcome(&[topic], &[answer(CHANNEL), answer(other)]) else { panic!() };
        assert_eq!((endpoint.topics.len(), endpoint.refused[0].topic.as_str()), (1, "x"));
        let (mut refresh, step) = ChannelPreparation::refresh(&settings(&[topic]), &endpoint);
        let PreparationStep::Call(request) = step else { panic!("{step:?}") };
        assert_eq!(request.body.as_deref(), Some(r#"[{"id":"v2.users.1.presence"}]"#));
        let PreparationStep::Ready(same) = refresh.on_response(&answer(other)) else { panic!() };
        assert_eq!(same.refused, endpoint.refused);
        let (mut refresh, _) = ChannelPreparation::refresh(&settings(&[topic]), &same);
        let PreparationStep::Ready(healed) = refresh.on_response(&answer("")) else { panic!() };
        assert_eq!(healed.refused, []);
    }

    #[test]
    fn a_channel_without_subscriptions_is_reused_by_the_next_attempt() {
        let (mut preparation, _) = ChannelPreparation::begin(&settings(&["v2.users.1.presence"]), &[]);
        preparation.on_response(&answer(CHANNEL));
        assert!(matches!(preparation.on_response(&refusal_of(500, "")), PreparationStep::Failed(_)));
        let spare = preparation.spare().unwrap().clone();
        let (mut again, step) = ChannelPreparation::resume(&settings(&["v2.users.1.presence"]), &spare, &[]);
        assert_eq!(target(&step), "/api/v2/notifications/channels/streaming-4-x/subscriptions?ignoreErrors=true");
        assert!(matches!(again.on_response(&refusal_of(404, "")), PreparationStep::Failed(_)));
        assert_eq!(again.spare(), None, "a channel that is gone is created again");
    }

    /// The subscribed and the refused topics of a new channel, for these subscribed queues and these answers to the
    /// look-up. The platform refuses `gone`.
    fn renewed(subscribed: &[&str], pages: &[(u16, &str)]) -> (Vec<String>, Vec<String>) {
        let topic = |id: &&str| format!("v2.analytics.queues.{id}.observations");
        let subscribed: Vec<String> = subscribed.iter().map(topic).collect();
        let settings = settings(&["v2.analytics.queues.*.observations", "v2.users.1.presence"]);
        let (mut preparation, _) = ChannelPreparation::begin(&settings, &subscribed);
        let mut step = None;
        for (status, body) in pages {
            step = Some(preparation.on_response(&RestResponse { status: *status, ..answer(body) }));
        }
        assert_eq!(target(&step.unwrap()), "/api/v2/notifications/channels");
        let PreparationStep::Call(request) = preparation.on_response(&answer(CHANNEL)) else { panic!() };
        let asked: Vec<serde_json::Value> = serde_json::from_str(&request.body.unwrap()).unwrap();
        let entity = |asked: &serde_json::Value| {
            let state = if asked["id"].as_str().unwrap().contains("gone") { "Rejected" } else { "Permitted" };
            serde_json::json!({ "id": asked["id"], "state": state })
        };
        let entities: Vec<_> = asked.iter().map(entity).collect();
        let body = serde_json::json!({ "entities": entities }).to_string();
        let PreparationStep::Ready(endpoint) = preparation.on_response(&answer(&body)) else { panic!() };
        let id = |topic: &String| topic.split('.').rev().nth(1).unwrap().to_owned();
        (endpoint.topics.iter().map(id).collect(), endpoint.refused.iter().map(|refused| id(&refused.topic)).collect())
    }

    #[test]
    fn subscribed_topics_stay_subscribed_if_a_listing_omits_them() {
        let empty = r#"{"entities":[],"total":0}"#;
        let (whole, part) =
            (r#"{"entities":[{"id":"a"},{"id":"c"}],"total":2}"#, r#"{"entities":[{"id":"a"}],"total":3}"#);
        for (pages, topics, refused) in [
            (&[(200, whole)][..], &["a", "b", "c", "1"][..], &[][..]),
            (&[(200, empty)], &["a", "b", "1"], &["*"]),
            (&[(200, part)], &["a", "b", "1"], &["*"]),
            (&[(403, "")], &["a", "b", "1"], &["*"]),
            (&[(200, r#"{"entities":[{"id":"a"}],"pageCount":2}"#), (500, "")], &["a", "b", "1"], &["*"]),
        ] {
            let found = renewed(&["a", "b"], pages);
            assert_eq!(
                found,
                (topics.iter().map(ToString::to_string).collect(), refused.iter().map(ToString::to_string).collect()),
                "{pages:?}"
            );
        }
    }

    #[test]
    fn topics_absent_from_a_complete_listing_may_be_refused() {
        let whole = r#"{"entities":[{"id":"a"}],"total":1}"#;
        assert_eq!(renewed(&["a", "gone"], &[(200, whole)]), (vec!["a".to_owned(), "1".to_owned()], vec![]));
        let part = r#"{"entities":[{"id":"a"}],"total":2}"#;
        assert_eq!(renewed(&["a", "gone"], &[(200, part)]).1, ["*", "gone"]);
    }
}
