//! The REST calls that fetch the current state of the topics' queues and users after a gap
//! (docs/platforms/genesys-cloud.md, "Snapshots").

use std::collections::BTreeSet;

use serde_json::json;

use super::id_of;
use crate::connector::{Method, RestRequest, RestResponse, json::Members};

const USERS: &str = "/api/v2/users?expand=presence,routingStatus&pageSize=100&pageNumber=";
/// Entries of a full page.
const PAGE_LEN: usize = 100;
/// The limit of pages. It exceeds the room of a channel by far.
const PAGES_MAX: u32 = 100;
const QUEUE_METRICS: [&str; 8] = [
    "oWaiting",
    "oInteracting",
    "oOnQueueUsers",
    "oOffQueueUsers",
    "oActiveUsers",
    "oMemberUsers",
    "oUserPresences",
    "oUserRoutingStatuses",
];

/// The calls for a set of topics.
pub(in crate::connector) fn snapshot(topics: &[String]) -> Vec<RestRequest> {
    let mut requests = Vec::new();
    let queues: BTreeSet<&str> = ids(topics, &["v2.analytics.queues.", "v2.routing.queues."]).collect();
    if !queues.is_empty() {
        requests.push(queue_observations(&queues));
    }
    if ids(topics, &["v2.users."]).next().is_some() {
        requests.push(RestRequest { method: Method::Get, target: format!("{USERS}1"), body: None });
    }
    requests
}

fn ids<'a>(topics: &'a [String], families: &'static [&'static str]) -> impl Iterator<Item = &'a str> {
    let about = |topic: &&String| families.iter().any(|family| topic.starts_with(family));
    topics.iter().filter(about).filter_map(|topic| id_of(topic)).filter(|id| *id != "*")
}

fn queue_observations(queues: &BTreeSet<&str>) -> RestRequest {
    let predicate =
        |queue: &&str| json!({"type": "dimension", "dimension": "queueId", "operator": "matches", "value": queue});
    let predicates: Vec<_> = queues.iter().map(predicate).collect();
    let body = json!({"filter": {"type": "or", "predicates": predicates}, "metrics": QUEUE_METRICS});
    let target = "/api/v2/analytics/queues/observations/query".to_owned();
    RestRequest { method: Method::Post, target, body: Some(body.to_string()) }
}

/// The next page of a paged call, none after the last one.
pub(in crate::connector) fn next_page(request: &RestRequest, answer: &RestResponse) -> Option<RestRequest> {
    let page: u32 = request.target.strip_prefix(USERS)?.parse().ok()?;
    let listed = Members::read(&answer.body)?;
    let has_more = match listed.number("pageCount") {
        Some(pages) => u64::from(page) < pages,
        None => listed.text("nextUri").is_some_and(|uri| !uri.is_empty()) || listed.list("entities").len() >= PAGE_LEN,
    };
    // A counted page number cannot loop or lead to another host, as `nextUri` could.
    let target = format!("{USERS}{}", page.checked_add(1)?);
    (has_more && page < PAGES_MAX).then_some(RestRequest { method: Method::Get, target, body: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_requests_the_resources_of_the_topics() {
        let topics = |list: &[&str]| list.iter().map(|topic| (*topic).to_owned()).collect::<Vec<_>>();
        let both = snapshot(&topics(&[
            "v2.users.u-1.presence",
            "v2.analytics.queues.q-1.observations",
            "v2.routing.queues.q-1.users",
        ]));
        assert_eq!(both.len(), 2);
        let body = both[0].body.as_deref().unwrap();
        assert_eq!(body.matches("q-1").count(), 1);
        assert_eq!(both[1].target, "/api/v2/users?expand=presence,routingStatus&pageSize=100&pageNumber=1");
        assert_eq!(snapshot(&topics(&["v2.conversations.c-1.transcription"])), []);
    }

    #[test]
    fn users_are_requested_page_by_page() {
        let answer = RestResponse { status: 200, retry_after: None, body: r#"{"pageCount":2}"#.into() };
        let first = &snapshot(&["v2.users.u-1.presence".to_owned()])[0];
        let second = next_page(first, &answer).unwrap();
        assert!(second.target.ends_with("pageNumber=2"));
        assert_eq!(next_page(&second, &answer), None);
    }
}
