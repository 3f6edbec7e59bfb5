//! The request to subscribe topics, and which topics its answer permits (docs/platforms/genesys-cloud.md, "Subscriptions").
//!
//! A requested topic has parts, the names under which its events arrive. An answer may name the request, a part, or the
//! common stem of the parts, in any case of letters. Only a topic that is named as permitted counts as subscribed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

use super::TOPICS_MAX;
use crate::connector::{
    Endpoint, Method, RefusedTopic, RestRequest, RestResponse, TopicState,
    json::{self, Members},
};

/// The requested topics, split into subscribed and refused ones.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SubscriptionOutcome {
    pub(super) subscribed: BTreeSet<String>,
    pub(super) refused: Vec<RefusedTopic>,
}

/// The platform's answer for one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TopicVerdict {
    Permitted,
    Refused(String),
}

/// One part of a requested topic.
#[derive(Debug)]
struct TopicPart {
    name: String,
    verdict: Option<TopicVerdict>,
    /// The answer named the whole request.
    is_of_whole: bool,
}

/// The requested topics, indexed by every name that an answer may use.
#[derive(Debug)]
struct RequestedTopics<'a> {
    requests: Vec<(&'a String, Vec<TopicPart>)>,
    /// Lower-case name to requests, each with one part of it (none: all parts).
    names: BTreeMap<String, Vec<(usize, Option<usize>)>>,
}

/// Reads an answer. The error says why it is unreadable.
pub(super) fn read(topics: &[String], answer: &RestResponse) -> Result<SubscriptionOutcome, String> {
    let Some(entities) = entities(answer)? else {
        return Ok(SubscriptionOutcome { subscribed: topics.iter().cloned().collect(), refused: Vec::new() });
    };
    let mut asked = RequestedTopics::new(topics);
    let mut others = BTreeMap::new();
    for members in entities.iter().filter_map(|entity| Members::read(entity.get().as_bytes())) {
        let (id, verdict) = (members.text("id").unwrap_or_default(), TopicVerdict::of(&members));
        let is_known = asked.take(&id, &verdict);
        if let (TopicVerdict::Refused(reason), false, true) = (verdict, is_known, others.len() < TOPICS_MAX) {
            let id = if id.is_empty() { "(a topic without id)" } else { &id };
            others.insert(json::truncated(id), reason);
        }
    }
    let mut outcome = asked.outcome();
    // A refused name that was not requested is a part of a requested topic.
    outcome.refused.extend(others.into_iter().map(|(id, reason)| RefusedTopic::new(&id, reason, TopicState::Refused)));
    Ok(outcome)
}

/// The list of an answer. A success without a list (204, no body, no `entities`) permits everything: with
/// `ignoreErrors` the list names every refused topic.
fn entities(answer: &RestResponse) -> Result<Option<Vec<&RawValue>>, String> {
    if answer.body.trim_ascii().is_empty() {
        return Ok(None);
    }
    let members = Members::read(&answer.body)
        .ok_or_else(|| format!("the subscription was answered with {} and no JSON object", answer.status))?;
    match members.get("entities").map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(list) => serde_json::from_str(list).map(Some).map_err(|_| {
            format!("the subscription was answered with {} and something else than a list of topics", answer.status)
        }),
    }
}

/// The names under which the events of a requested topic arrive. A combined topic has several.
fn parts(topic: &str) -> Vec<String> {
    match topic.split_once('?') {
        Some((stem, parts)) => parts.split('&').map(|part| format!("{stem}.{part}")).collect(),
        None => vec![topic.to_owned()],
    }
}

impl<'a> RequestedTopics<'a> {
    fn new(topics: &'a [String]) -> Self {
        let mut asked = Self { requests: Vec::new(), names: BTreeMap::new() };
        for (index, topic) in topics.iter().enumerate() {
            let names = parts(topic);
            for (part, name) in names.iter().enumerate().filter(|(_, name)| *name != topic) {
                asked.name(name, (index, Some(part)));
            }
            asked.name(topic, (index, None));
            if let Some((stem, _)) = topic.split_once('?') {
                asked.name(stem, (index, None));
            }
            let parts = names.into_iter().map(|name| TopicPart { name, verdict: None, is_of_whole: false });
            asked.requests.push((topic, parts.collect()));
        }
        asked
    }

    fn name(&mut self, name: &str, meant: (usize, Option<usize>)) {
        self.names.entry(name.to_lowercase()).or_default().push(meant);
    }

    /// Records the verdict on an id. False if no request has this name.
    fn take(&mut self, apply_verdict: &str, verdict: &TopicVerdict) -> bool {
        let whole = self.names.get(&apply_verdict.to_lowercase());
        let of_parts =
            || parts(apply_verdict).into_iter().filter_map(|part| self.names.get(&part.to_lowercase())).flatten();
        let meant: Vec<_> = whole.map_or_else(|| of_parts().copied().collect(), Clone::clone);
        for (request, part) in &meant {
            let parts = &mut self.requests[*request].1;
            match part {
                Some(part) => parts[*part].set_verdict(verdict, false),
                None => parts.iter_mut().for_each(|part| part.set_verdict(verdict, true)),
            }
        }
        !meant.is_empty()
    }

    fn outcome(self) -> SubscriptionOutcome {
        let mut outcome = SubscriptionOutcome { subscribed: BTreeSet::new(), refused: Vec::new() };
        for (topic, parts) in self.requests {
            if parts.iter().any(|part| part.verdict == Some(TopicVerdict::Permitted)) {
                outcome.subscribed.insert(topic.clone());
            }
            outcome.refused.extend(missing(topic, &parts));
        }
        outcome
    }
}

/// The refused parts of a request: the request itself if all parts have the same reason, else each part.
fn missing(topic: &str, parts: &[TopicPart]) -> Vec<RefusedTopic> {
    let Some(first) = parts.first() else { return Vec::new() };
    let is_one = parts.iter().all(|part| part.verdict == first.verdict && (part.is_of_whole || part.verdict.is_none()));
    let parts = if is_one { &parts[..1] } else { parts };
    let name = |part: &TopicPart| if is_one { topic.to_owned() } else { part.name.clone() };
    let missing = parts.iter().filter_map(|part| {
        let (reason, state) = part.missing()?;
        Some(RefusedTopic { topic: name(part), reason, state, request: topic.to_owned() })
    });
    missing.collect()
}

impl TopicPart {
    /// A refusal overrides a permission.
    fn set_verdict(&mut self, verdict: &TopicVerdict, is_of_whole: bool) {
        if !matches!(self.verdict, Some(TopicVerdict::Refused(_))) {
            self.verdict = Some(verdict.clone());
            self.is_of_whole = is_of_whole;
        }
    }

    fn missing(&self) -> Option<(String, TopicState)> {
        match &self.verdict {
            Some(TopicVerdict::Permitted) => None,
            Some(TopicVerdict::Refused(reason)) => Some((reason.clone(), TopicState::Refused)),
            None => Some(("the answer to the subscription does not name it".to_owned(), TopicState::Unavailable)),
        }
    }
}

impl TopicVerdict {
    /// A topic without a state is permitted.
    fn of(members: &Members<'_>) -> Self {
        let state = members.get("state").filter(|state| state.get() != "null");
        let verdict = state.map(|state| json::text(state).unwrap_or_else(|| state.get().to_owned()));
        let is = |wanted: &str| verdict.as_deref().is_some_and(|verdict| verdict.eq_ignore_ascii_case(wanted));
        if verdict.is_none() || is("permitted") {
            return Self::Permitted;
        }
        let known =
            if is("rejected") { None } else { verdict.as_deref().map(|verdict| format!("its state is {verdict:?}")) };
        let given = members.text("rejectionReason").filter(|reason| !reason.is_empty());
        let missing = members.list("missingPermissions");
        let missing: Vec<String> = missing.iter().filter_map(|value| json::text(value)).collect();
        let missing = (!missing.is_empty()).then(|| format!("missing permissions: {}", missing.join(", ")));
        let why = match [known, given].into_iter().flatten().collect::<Vec<_>>() {
            words if words.is_empty() => "no reason given".to_owned(),
            words => words.join(": "),
        };
        let reason = [Some(why), missing].into_iter().flatten().collect::<Vec<_>>().join("; ");
        Self::Refused(json::truncated(&reason))
    }
}

/// With `ignoreErrors` one refused topic does not fail the others (docs/platforms/genesys-cloud.md, "Subscriptions").
pub(super) fn request(method: Method, channel: &str, topics: &[String]) -> RestRequest {
    let ids: Vec<_> = topics.iter().map(|topic| serde_json::json!({ "id": topic })).collect();
    let target = format!("/api/v2/notifications/channels/{channel}/subscriptions?ignoreErrors=true");
    RestRequest { method, target, body: Some(serde_json::Value::from(ids).to_string()) }
}

/// Adds the confirmed topics of `asked` to the endpoint, and the others to its refused topics. The error says why the
/// answer is unreadable.
pub(super) fn with_added_topics(
    mut endpoint: Endpoint,
    asked: &[String],
    left_out: Vec<RefusedTopic>,
    answer: &RestResponse,
) -> Result<Endpoint, String> {
    let outcome = read(asked, answer)?;
    let known: BTreeSet<String> = endpoint.topics.iter().cloned().collect();
    let unconfirmed: BTreeSet<&String> = asked.iter().filter(|topic| !outcome.subscribed.contains(*topic)).collect();
    endpoint.topics.retain(|topic| !unconfirmed.contains(topic));
    let is_new = |topic: &&String| !unconfirmed.contains(topic) && !known.contains(*topic);
    endpoint.topics.extend(asked.iter().filter(is_new).cloned());
    endpoint.refused = left_out;
    endpoint.refused.extend(outcome.refused);
    endpoint.subscribed = true;
    Ok(endpoint)
}

/// The endpoint after a failed addition: its topics stay, and the others are refused until the next refresh.
pub(super) fn not_added(endpoint: Endpoint, added: &[String], left_out: Vec<RefusedTopic>, why: &str) -> Endpoint {
    let missing = added.iter().map(|topic| RefusedTopic::new(topic, why.to_owned(), TopicState::Unavailable));
    let refused = left_out.into_iter().chain(missing).collect();
    Endpoint { refused, ..endpoint }
}

pub(super) fn over_limit(topic: &str) -> RefusedTopic {
    RefusedTopic::new(topic, format!("a channel holds {TOPICS_MAX} topics"), TopicState::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(topics: &[&str], body: &str) -> Result<SubscriptionOutcome, String> {
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        read(&topics, &RestResponse { status: 200, retry_after: None, body: body.to_owned().into() })
    }

    /// `topic<request: reason` for each refused topic, with `?` before an unavailable one.
    fn subscribed_and_refused(topics: &[&str], entities: &str) -> (Vec<String>, Vec<String>) {
        let outcome = outcome(topics, &format!(r#"{{"entities":[{entities}]}}"#)).unwrap();
        let show = |refused: &RefusedTopic| {
            let mark = if refused.state == TopicState::Unavailable { "?" } else { "" };
            format!("{mark}{}<{}: {}", refused.topic, refused.request, refused.reason)
        };
        (outcome.subscribed.into_iter().collect(), outcome.refused.iter().map(show).collect())
    }

    const A: &str = "v2.users.a?presence&routingStatus";
    const NOT_NAMED: &str = "the answer to the subscription does not name it";

    #[test]
    fn a_refusal_is_found_by_every_name_of_its_request() {
        let permitted = format!(r#"{{"id":"{A}","state":"Permitted"}}"#);
        let part = |name: &str| vec![format!("{name}<{A}: r")];
        let status = "v2.users.a.routingStatus";
        for (id, expected) in [
            ("v2.users.a.routingStatus", part(status)),
            ("v2.users.a.ROUTINGSTATUS", part(status)),
            ("v2.users.a?routingStatus", part(status)),
            ("V2.users.a?routingstatus", part(status)),
            ("v2.users.a", part(A)),
            (A, part(A)),
            (
                "v2.users.a?routingStatus&presence",
                vec![format!("v2.users.a.presence<{A}: r"), format!("{status}<{A}: r")],
            ),
            ("v2.users.b", vec!["v2.users.b<v2.users.b: r".to_owned()]),
            ("", vec!["(a topic without id)<(a topic without id): r".to_owned()]),
        ] {
            let refused = format!(r#"{{"id":"{id}","state":"Rejected","rejectionReason":"r"}}"#);
            for entities in [format!("{permitted},{refused}"), format!("{refused},{permitted}")] {
                let (subscribed, missing) = subscribed_and_refused(&[A], &entities);
                assert_eq!(missing, expected, "{id}");
                let is_subscribed = expected.iter().filter(|refused| refused.ends_with(&format!("<{A}: r"))).count()
                    < 2
                    && !expected[0].starts_with(A);
                assert_eq!(subscribed, if is_subscribed { vec![A] } else { vec![] }, "{id}");
            }
        }
    }

    #[test]
    fn an_unnamed_or_unpermitted_topic_is_not_subscribed() {
        let not_named = |topic: &str, request: &str| format!("?{topic}<{request}: {NOT_NAMED}");
        let (x, y) = ("v2.users.x.presence", "v2.users.y.presence");
        assert_eq!(subscribed_and_refused(&[x, y], ""), (vec![], vec![not_named(x, x), not_named(y, y)]));
        assert_eq!(
            subscribed_and_refused(&[x, y], r#"{"id":"V2.USERS.X.PRESENCE","state":"PERMITTED"}, 7, null, {}"#),
            (vec![x.to_owned()], vec![not_named(y, y)])
        );
        assert_eq!(subscribed_and_refused(&[A], r#"{"id":"v2.users.a.presence","state":"Permitted"}"#), {
            (vec![A.to_owned()], vec![not_named("v2.users.a.routingStatus", A)])
        });
        for (state, reason) in [
            (r#""Pending""#, r#"its state is "Pending""#),
            (r#""Denied","rejectionReason":"no""#, r#"its state is "Denied": no"#),
            ("7", r#"its state is "7""#),
            ("{}", r#"its state is "{}""#),
            (r#""""#, r#"its state is """#),
            (r#""rejected""#, "no reason given"),
            (r#""Rejected","missingPermissions":["a:b",null,"c:d"]"#, "no reason given; missing permissions: a:b, c:d"),
        ] {
            let entity = format!(r#"{{"id":"{x}","state":{state}}}"#);
            assert_eq!(subscribed_and_refused(&[x], &entity), (vec![], vec![format!("{x}<{x}: {reason}")]), "{state}");
        }
        for named in [format!(r#"{{"id":"{x}"}}"#), format!(r#"{{"id":"{x}","state":null}}"#)] {
            assert_eq!(subscribed_and_refused(&[x], &named), (vec![x.to_owned()], vec![]));
        }
    }

    #[test]
    fn an_answer_without_a_list_refuses_nothing_and_one_that_is_no_answer_is_an_error() {
        for body in ["", " \r\n", "{}", r#"{"entities":null}"#] {
            let outcome = outcome(&["a", "b"], body).unwrap();
            assert_eq!((outcome.subscribed.len(), outcome.refused.len()), (2, 0), "{body}");
        }
        for body in
            ["<html>", "[]", "null", r#"[{"id":"a"}]"#, r#"{"entities":{"id":"a"}}"#, r#"{"entities":"a"}"#, "{"]
        {
            assert!(outcome(&["a"], body).unwrap_err().contains("was answered with 200"), "{body}");
        }
    }
}
