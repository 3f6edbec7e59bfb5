//! The topics of the platform: combined topics are expanded, unknown ids are rejected.
//! Wildcards are rejected, as the platform does.

use serde_json::{Value, json};

use super::world::Roster;

/// Longest topic, combined ones included.
const TOPIC_LEN_MAX: usize = 200;

/// A kind of topic; `{id}` stands for the id.
struct Template {
    text: &'static str,
    permission: Option<&'static str>,
}

const TEMPLATES: [Template; 18] = [
    Template { text: "v2.analytics.queues.{id}.observations", permission: Some("analytics:queueObservation:view") },
    Template { text: "v2.analytics.queues.{id}.activity", permission: Some("analytics:queueObservation:view") },
    Template { text: "v2.users.{id}.presence", permission: None },
    Template { text: "v2.users.{id}.routingStatus", permission: None },
    Template { text: "v2.users.{id}.activity", permission: None },
    Template { text: "v2.users.{id}.station", permission: None },
    Template { text: "v2.users.{id}.outofoffice", permission: None },
    Template { text: "v2.users.{id}.conversations", permission: None },
    Template { text: "v2.users.{id}.conversationsummary", permission: None },
    Template { text: "v2.routing.queues.{id}.users", permission: Some("routing:queue:view") },
    Template { text: "v2.routing.queues.{id}.conversations", permission: Some("routing:queue:view") },
    Template { text: "v2.detail.events.conversation.{id}.customer.start", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.customer.end", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.acd.start", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.acd.end", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.user.start", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.user.end", permission: None },
    Template { text: "v2.detail.events.conversation.{id}.wrapup", permission: None },
];

/// Why a topic is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopicRejection {
    Unknown,
    TooLong,
    NoSuchEntity,
    Forbidden { permission: &'static str },
}

/// One requested topic: the parts under which events arrive, and the parts that are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicResolution {
    pub(super) permitted: Vec<String>,
    pub(super) rejected: Vec<(String, TopicRejection)>,
}

/// Parses a requested topic. `forbidden` has prefixes of topics that the client has no permission for.
pub(super) fn resolve(topic: &str, roster: &Roster, forbidden: &[String]) -> TopicResolution {
    let mut resolution = TopicResolution { permitted: Vec::new(), rejected: Vec::new() };
    if topic.len() > TOPIC_LEN_MAX {
        resolution.rejected.push((topic.to_owned(), TopicRejection::TooLong));
        return resolution;
    }
    for part in expand(topic) {
        match check(&part, roster, forbidden) {
            Ok(()) => resolution.permitted.push(part),
            Err(rejected) => resolution.rejected.push((part, rejected)),
        }
    }
    resolution
}

/// `v2.users.{id}?presence&routingStatus` is two topics.
fn expand(topic: &str) -> Vec<String> {
    match topic.split_once('?') {
        Some((stem, parts)) => parts.split('&').map(|part| format!("{stem}.{part}")).collect(),
        None => vec![topic.to_owned()],
    }
}

fn check(topic: &str, roster: &Roster, forbidden: &[String]) -> Result<(), TopicRejection> {
    let (template, id) = TEMPLATES
        .iter()
        .find_map(|template| Some((template, id_in(topic, template)?)))
        .ok_or(TopicRejection::Unknown)?;
    if forbidden.iter().any(|start| topic.starts_with(start.as_str())) {
        return Err(TopicRejection::Forbidden { permission: template.permission.unwrap_or("directory:user:view") });
    }
    let exists = match template.text.split('.').nth(1) {
        Some("users") => roster.agent(id).is_some(),
        Some("detail") => id.len() == 36,
        Some(_) | None => roster.queue(id).is_some(),
    };
    if exists { Ok(()) } else { Err(TopicRejection::NoSuchEntity) }
}

fn id_in<'a>(topic: &'a str, template: &Template) -> Option<&'a str> {
    let (before, behind) = template.text.split_once("{id}")?;
    let id = topic.strip_prefix(before)?.strip_suffix(behind)?;
    (!id.is_empty() && !id.contains(['.', '*'])).then_some(id)
}

/// The answer to `GET /api/v2/notifications/availabletopics`.
pub(super) fn catalogue() -> Value {
    let entities: Vec<Value> = TEMPLATES.iter().map(entry).collect();
    json!({ "entities": entities })
}

fn entry(template: &Template) -> Value {
    let permissions: Vec<&str> = template.permission.into_iter().collect();
    json!({
        "id": template.text, "description": "", "enforced": true, "visibility": "Public",
        "transports": ["All"], "requiresPermissions": permissions, "topicParameters": ["id"],
        "permissionDetails": [{
            "type": "requiresPermissions", "permissions": permissions, "allowsCurrentUser": true, "enforced": true,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_permitted_or_rejected_part_by_part() {
        let roster = Roster::generate(1, 3, 2);
        let (user, queue) = (roster.agents[0].id.clone(), roster.queues[0].id.clone());
        let forbidden = ["v2.routing.".to_owned()];
        let table = [
            (format!("v2.users.{user}.presence"), 1, vec![]),
            (format!("v2.users.{user}?presence&routingStatus&shoeSize"), 2, vec![TopicRejection::Unknown]),
            (format!("v2.users.{queue}.presence"), 0, vec![TopicRejection::NoSuchEntity]),
            ("v2.users.*.presence".to_owned(), 0, vec![TopicRejection::Unknown]),
            (format!("v2.analytics.queues.{queue}.observations"), 1, vec![]),
            (format!("v2.detail.events.conversation.{user}.acd.end"), 1, vec![]),
            (format!("v2.users.{}", "x".repeat(200)), 0, vec![TopicRejection::TooLong]),
            (
                format!("v2.routing.queues.{queue}.users"),
                0,
                vec![TopicRejection::Forbidden { permission: "routing:queue:view" }],
            ),
        ];
        for (topic, permitted, rejected) in table {
            let resolution = resolve(&topic, &roster, &forbidden);
            assert_eq!(resolution.permitted.len(), permitted, "{topic}");
            let reasons: Vec<TopicRejection> = resolution.rejected.into_iter().map(|(_, reason)| reason).collect();
            assert_eq!(reasons, rejected, "{topic}");
        }
    }
}
